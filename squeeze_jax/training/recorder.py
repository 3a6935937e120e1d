"""The visible output of a run: log lines, metrics, the progress bar. Only the main process writes files."""

import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from squeeze_jax.console import Bar
from squeeze_jax.experiment import Experiment
from squeeze_jax.files import make_folder
from squeeze_jax.runtime.devices import DeviceMesh, is_main_process
from squeeze_jax.tasks.task import Values
from squeeze_jax.training.evaluation import Evaluation
from squeeze_jax.training.stopwatch import clock
from squeeze_jax.workdir import records

logger = logging.getLogger(__name__)

NAMED = 50  # unreadable examples in the log


class Recorder:
    """Records the measurements of a run.

    Args:
      experiment: the experiment.
      folder: the workdir.
      first_step: the step that the run starts from.
    """

    def __init__(self, experiment: Experiment, folder: pathlib.Path, first_step: int):
        self._experiment = experiment
        self._folder = folder
        self._short_folder = min(str(folder), os.path.relpath(folder), key=len)
        self._first_step = first_step
        self._writer = records.MetricsWriter(folder, first_step) if is_main_process() else None
        self._bar = Bar("training", first_step, experiment.plan.total, "compiling ...") if self._writer else None
        self._shown: list[str] = []  # the last training metrics, in the bar
        self._unreadable: set[str] = set()
        self._reported: list[str] = []
        self.last_values: dict[str, Values] = {}

    def __enter__(self) -> "Recorder":
        if self._bar:
            self._bar.__enter__()
        return self

    def __exit__(self, *error) -> None:
        if self._writer and error[0]:
            self._writer.close()
        if self._bar:
            self._bar.__exit__(*error)

    def announce(self, mesh: DeviceMesh) -> None:
        """Logs what is about to run."""
        experiment, plan, config = self._experiment, self._experiment.plan, self._experiment.config
        dataset, splits, summary = experiment.dataset, experiment.splits, experiment.summary
        device = mesh.mesh.devices.flat[0]
        logger.info("workdir %s", self._folder, extra={"parts": [f"workdir {self._short_folder}"]})
        _log(
            f"{mesh.num_devices} {device.platform} device(s) ({device.device_kind})",
            f"{jax.process_count()} process(es)",
            mesh.backend,
        )
        _log(
            f"dataset {dataset.name} {dataset.version}: images {'x'.join(map(str, dataset.image_shape))}",
            f"{len(splits['train'])} training examples",
            *([] if "validation" in splits else ["no validation split"]),
        )
        for note in dataset.notes:
            logger.info("dataset: %s", note)
        logger.info("model %s at %s", config.model.name, "x".join(map(str, summary.input_shape)))
        _log(*summary.totals().split(", "))
        logger.info(
            "%d steps of %d examples (%s)",
            plan.total,
            config.train.batch_size,
            config.train.duration,
        )
        logger.info(
            "log every %d, evaluate every %d, checkpoint every %d steps",
            plan.log_every,
            plan.evaluate_every,
            plan.checkpoint_every,
        )
        if self._first_step:
            logger.info("resumed at step %d", self._first_step)

    def first_batch(self, batch: dict[str, Any]) -> None:
        """Draws first_batch.png, the first augmented batch of a new run, with pixels in 0..255."""
        if self._writer and self._first_step == 0:
            self._experiment.task.draw(self._folder / "first_batch.png", batch)

    def advance(self, step: int, seconds_per_step: float | None) -> None:
        """Moves the progress bar.

        Args:
          step: the current step.
          seconds_per_step: the time per step since the last log line; None if no step was timed.
        """
        if self._bar:
            self._bar.update(step, [*self._timing(step, seconds_per_step), *self._shown] if seconds_per_step else ())

    def _timing(self, step: int, seconds_per_step: float) -> list[str]:
        speed = self._experiment.config.train.batch_size / seconds_per_step
        left = (self._experiment.plan.total - step) * seconds_per_step
        return [f"{speed:.{0 if speed >= 10 else 2}f} images/s", f"{clock(left)} left"]

    def count_unreadable(self, rows: list[tuple[int, str]]) -> None:
        """Logs each example that was replaced because it could not be decoded, once, and the first ones by name.

        Args:
          rows: (row, what is wrong with the example) of a batch.
        """
        for wrong in sorted({wrong for _, wrong in rows} - self._unreadable):
            self._unreadable.add(wrong)
            if len(self._unreadable) <= NAMED:
                logger.warning("replaced by the next example (%d so far): %s", len(self._unreadable), wrong)
            elif len(self._unreadable) == NAMED + 1:
                logger.warning("more examples are replaced; metrics.jsonl counts them (unreadable_examples)")

    def training(self, step: int, values: Values, seconds: float, seconds_per_step: float | None) -> None:
        """Records the training metrics since the last log line, and the speed.

        Args:
          step: the current step.
          values: the metrics.
          seconds: the time since the run (re)started.
          seconds_per_step: the time per step since the last log line; None if no step was timed.
        """
        speed = {"seconds": seconds}
        if self._unreadable:
            speed["unreadable_examples"] = len(self._unreadable)
        timing = []
        if seconds_per_step is not None:
            speed["images_per_second"] = self._experiment.config.train.batch_size / seconds_per_step
            timing = self._timing(step, seconds_per_step)
        self._shown = _texts(values)
        self.write(step, "train", values, speed, timing)

    def write(
        self, step: int, split: str, values: Values, speed: Values | None = None, timing: Sequence[str] = ()
    ) -> None:
        """Records one measurement.

        Args:
          step: the step of the weights.
          split: "train", "validation" or "test".
          values: the metrics.
          speed: timings, which differ between runs and are recorded separately.
          timing: texts for the end of the log line.
        """
        self.last_values[split] = values
        if not self._writer:
            return
        self._writer.write(step, split, values, speed)
        plan = self._experiment.plan
        first, *others = _texts(values)
        _log(f"step {step}/{plan.total}", f"epoch {step / plan.epoch:.2f}", f"{split}: {first}", *others, *timing)

    def report(self, step: int, split: str, evaluation: Evaluation) -> None:
        """Writes the tables and pictures of an evaluation to evaluation/<split>_step_<step>/.

        Args:
          step: the step of the weights.
          split: "test" or "validation".
          evaluation: of this split.
        """
        if self._writer:
            folder = make_folder(self._folder / "evaluation" / f"{split}_step_{step}")
            evaluation.write(folder, split, step)
            self._reported = [str(folder.relative_to(self._folder))]

    def close(self, step: int, finished: bool, best: dict[str, Any]) -> None:
        """Draws the curves, logs the outcome and, if the run is finished, writes result.json.

        Args:
          step: the last step.
          finished: whether the run is complete.
          best: "best_step" and "best_value" on the validation split.
        """
        if not self._writer:
            return
        self._writer.close()
        metric = self._experiment.config.evaluation.best_metric
        curves = records.draw_curves(self._folder, list(dict.fromkeys(("loss", metric, "learning_rate"))))
        if finished:
            summary = self._experiment.summary
            size = {"parameters": summary.parameters, "macs": summary.macs}
            records.write_result(self._folder, best["best_step"], size)
        if self._unreadable:
            logger.warning(
                "%d training images could not be decoded and were replaced; `python -m squeeze_jax.data.check FOLDER` "
                "lists them all",
                len(self._unreadable),
            )
        if best["best_step"] is not None:
            logger.info("best validation %s %.4f at step %d", metric, best["best_value"], best["best_step"])
        if finished:
            files = [*([curves.name] if curves else []), *self._reported, "checkpoints"]
            _log(f"finished; in {self._short_folder} are result.json", *files)
        else:
            plan = self._experiment.plan
            logger.info("stopped at step %d of %d; the same command resumes the run", step, plan.total)


def _log(*parts: str) -> None:
    """Logs a line; a terminal shows those of the first parts that fit."""
    logger.info("%s", ", ".join(parts), extra={"parts": parts})


def _texts(values: Values) -> list[str]:
    hidden = ("learning_rate", "_norm")  # in metrics.jsonl and TensorBoard
    return [f"{name} {value:.4f}" for name, value in values.items() if not name.endswith(hidden)] or ["no metrics"]


def window_means(window: dict[str, Any], task: Any) -> Values:
    """Returns the metrics of a logging window of training, and the means of the norms over its steps."""
    norms = {name: float(value) / int(window["steps"]) for name, value in window["norms"].items()}
    return task.values({name: np.asarray(value) for name, value in window["sums"].items()}, {}) | norms
