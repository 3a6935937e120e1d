"""Exact evaluation of a split: every example counts once, for any split size, batch size and device count."""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from squeeze_jax import tables
from squeeze_jax.data import pipeline
from squeeze_jax.data.splits import UNREADABLE, VALID, Split
from squeeze_jax.runtime.devices import DeviceMesh
from squeeze_jax.tasks import Task
from squeeze_jax.tasks.task import Records, Sums, Values
from squeeze_jax.training.steps import make_eval_step

logger = logging.getLogger(__name__)

NAMED = 50  # unreadable examples in the log


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a split.

    Attributes:
      values: the task's metrics.
      sums: the task's sums over all examples, int64 and float64.
      records: the task's records of each example, in the order of the split.
      task: the task that computed the metrics; for a fitted evaluation, as fitted to the validation split.
    """

    values: Values
    sums: Sums
    records: Records
    task: Task

    def write(self, folder: pathlib.Path, split: str, step: int) -> None:
        """Writes metrics.csv and the task's report to an existing folder."""
        row = {"split": split, "step": step, "examples": int(self.sums["examples"]), **self.task.naming, **self.values}
        tables.write_csv(folder / "metrics.csv", [row])
        self.task.report(folder, self.sums, self.records)


class Evaluator:
    """Evaluates splits with one compiled step.

    Args:
      model: the network.
      task: its task.
      config: the config of the run.
      mesh: the devices.
      largest: the number of examples in the largest split to be measured, which limits the batch size; None if unknown.
    """

    def __init__(
        self, model: nn.Module, task: Task, config: ConfigDict, mesh: DeviceMesh, *, largest: int | None = None
    ):
        self._task = task
        self._eval_step = mesh.compile_eval_step(make_eval_step(model, task, axis_name=mesh.axis_name))
        self._mesh = mesh
        # Padding is left out, so any batch size is exact; it is rounded up to a multiple of the device count. All
        # splits use the same batch size, so the step is compiled only once.
        num_devices = mesh.num_devices
        self._batch_size = -(-min(config.evaluation.batch_size, largest or math.inf) // num_devices) * num_devices
        self._num_threads = config.run.num_threads
        self._num_workers = config.run.num_workers

    def measure(self, split: Split, variables: Any, *, fit_on: Split | None = None) -> Evaluation:
        """Evaluates a split.

        Args:
          split: the examples. Those that cannot be read are logged and skipped if the split allows it.
          variables: the replicated variables of the model.
          fit_on: the validation split that the task is fitted to, see `Task.fits_on_validation`; None for no fitting.
        """
        task = self._task
        if fit_on is not None:
            task = task.fitted(self._run(fit_on, variables)[1])
        sums, records = self._run(split, variables)
        return Evaluation(task.values(sums, records), sums, records, task)

    def _run(self, split: Split, variables: Any) -> tuple[Sums, Records]:
        batches = pipeline.eval_batches(
            split,
            batch_size=self._batch_size,
            num_threads=self._num_threads,
            num_workers=self._num_workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        unreadable = set()

        def evaluated() -> Iterator[tuple[Sums, Records]]:
            for batch in batches:
                unreadable.update(wrong for _, wrong in batch.pop(UNREADABLE, ()))
                yield self._eval_step(variables, self._mesh.shard(batch))

        sums, records = add_up(evaluated())
        for wrong in sorted(unreadable)[:NAMED]:
            logger.warning("skipped: %s", wrong)
        if len(unreadable) > NAMED:
            logger.warning("skipped: %d more", len(unreadable) - NAMED)
        return sums, records


def add_up(batches: Iterable[tuple[Sums, Records]]) -> tuple[Sums, Records]:
    """Adds up the sums of evaluation steps in int64 and float64, and joins their records without the padding."""
    totals: dict[str, np.ndarray] = {}
    parts: dict[str, list[np.ndarray]] = {}
    for sums, records in batches:
        for name, value in sums.items():
            value = np.asarray(value)
            wide = value.astype(np.int64 if np.issubdtype(value.dtype, np.integer) else np.float64)
            totals[name] = totals[name] + wide if name in totals else wide
        for name in records.keys() - {VALID}:
            parts.setdefault(name, []).append(np.asarray(records[name])[np.asarray(records[VALID])])
    return totals, {name: np.concatenate(values) for name, values in parts.items()}
