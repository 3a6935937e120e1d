"""Exact evaluation of a split: every example counts once, for any dataset size, batch size and device count."""

import logging
import math
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from squeeze_jax import metrics, run, workdir, writers
from squeeze_jax.config import SPLITS, ConfigError, check_same_experiment, validate
from squeeze_jax.data import pipeline
from squeeze_jax.data.sources import Dataset, Split
from squeeze_jax.loading import load
from squeeze_jax.parallel import Parallel, is_main_process
from squeeze_jax.steps import make_eval_step

logger = logging.getLogger(__name__)


class Evaluator:
    """Evaluates splits with one compiled step.

    Args:
      model: the network.
      config: of the run.
      spread: the devices.
      largest: examples of the largest split that will be measured; batches are no larger. None where it is not known.
      confusion: also count the confusion matrix.
    """

    def __init__(
        self, model: Any, config: ConfigDict, spread: Parallel, *, largest: int | None = None, confusion: bool = False
    ):
        preprocessing = run.preprocessing_of(config)
        step = make_eval_step(
            model,
            preprocessing.evaluate,
            confusion=confusion,
            scores=config.evaluation.auc,
            mirror=config.evaluation.mirror,
            axis_name=spread.axis_name,
        )
        self._eval_step = spread.compile_eval_step(step)
        self._spread = spread
        self._num_classes = model.num_classes
        # The padding is masked, so any batch size is exact; round up to what the devices can share. All splits have
        # batches of this one size, so the step is compiled once.
        num_devices = spread.num_devices
        self._batch_size = -(-min(config.evaluation.batch_size, largest or math.inf) // num_devices) * num_devices
        self._num_threads = config.run.num_threads
        self._num_workers = config.run.num_workers

    def measure(
        self, split: Split, variables: Any, label_map: np.ndarray | None = None
    ) -> tuple[dict[str, Any], metrics.Values]:
        """Measures a split.

        Args:
          split: the examples.
          variables: of the model.
          label_map: the model's class of each class of the split; None where they are the same.

        Returns:
          The sums over all examples, in int64 and float64; and mean loss, accuracies and what the config asks for.
        """
        batches = pipeline.eval_batches(
            split,
            batch_size=self._batch_size,
            num_threads=self._num_threads,
            num_workers=self._num_workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        unreadable = set()

        def evaluated():
            for batch in batches:
                unreadable.update(name for _, name in batch.pop("unreadable", ()))
                if label_map is not None:
                    batch["label"] = label_map[batch["label"]]
                yield self._eval_step(variables, self._spread.shard(batch))

        sums, scores = metrics.add_up(evaluated())
        for name in sorted(unreadable):
            logger.warning("left out: %s cannot be read", name)
        return sums, metrics.example_means(sums, self._num_classes) | metrics.score_metrics(scores)


def evaluate(
    source: str | pathlib.Path,
    *,
    split: str = "test",
    checkpoint: str | int = "best",
    config: ConfigDict | None = None,
    dataset_name: str | None = None,
    output: str | pathlib.Path | None = None,
) -> metrics.Values:
    """Evaluates a network on a split and writes its tables to `OUTPUT/evaluation/<split>_step_<step>/`.

    The tables are metrics.csv, per_class.csv, confusion.csv and confusion.png. With `config.evaluation.mirror` the
    folder's name ends in "_mirrored". Nothing else in OUTPUT changes.

    Args:
      source: a workdir, or a weight file.
      split: "train", "validation" or "test".
      checkpoint: of a workdir: "best", "latest" or a step.
      config: the network's own by default; another may differ in its `run` and `evaluation` sections only.
      dataset_name: another dataset, with splits of these names, preprocessed as the network's own. Its classes must be
        among the network's, by their names.
      output: a folder; by default the workdir.

    Returns:
      Mean loss, top-1 and, with more than five classes, top-5 accuracy in 0..1; with `evaluation.auc` the metrics of
      `metrics.score_metrics`.
    """
    network = load(source, checkpoint)
    if config is None:
        config = network.config
    validate(config)
    check_same_experiment(network.config, config, source, free=("run", "evaluation"))
    if dataset_name is not None:
        config = config.copy_and_resolve_references()
        config.dataset.name = dataset_name
        config.dataset.held_out = 0
        for name in SPLITS:
            config.dataset[f"{name}_split"] = name
    num_devices = min(config.run.num_devices, jax.device_count()) if config.run.num_devices else None
    spread = Parallel.create(config.run.backend, num_devices)
    dataset = run.dataset_of(config)
    label_map = _label_map(source, network, dataset)
    examples = run.split_of(dataset, config, split)
    if examples is None:
        raise ConfigError(f"config.dataset.{split}_split is empty: this experiment has no {split} split.")
    evaluator = Evaluator(network.model, config, spread, largest=len(examples), confusion=True)
    sums, values = evaluator.measure(examples, spread.replicate(network.variables), label_map)
    text = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    logger.info("%s of %s, step %d: %d examples, %s", split, dataset.name, network.step, sums["examples"], text)
    if is_main_process():
        name = f"{split}_step_{network.step}{'_mirrored' if config.evaluation.mirror else ''}"
        folder = workdir.create(pathlib.Path(output or source) / "evaluation" / name)
        row = {"split": split, "step": network.step, "examples": int(sums["examples"]), **values}
        writers.write_csv(folder / "metrics.csv", [row])
        writers.write_csv(folder / "per_class.csv", metrics.per_class(sums["confusion"], network.class_names))
        writers.write_confusion(folder, sums["confusion"], network.class_names)
        logger.info("tables and the confusion matrix are in %s", folder)
    return values


def _label_map(source: object, network: run.Run, dataset: Dataset) -> np.ndarray | None:
    """The network's class of each class of the dataset; None where they are the same."""
    if dataset.class_names == network.class_names:
        return None
    unknown = sorted(set(dataset.class_names) - set(network.class_names))
    if unknown:
        raise ConfigError(
            f"{dataset.name} has classes that {source} does not know: {', '.join(unknown[:5])}; it knows "
            f"{', '.join(network.class_names[:5])}, ..."
        )
    return np.array([network.class_names.index(name) for name in dataset.class_names], np.int32)
