"""Exact evaluation of a split: every example counts once, for any dataset size, batch size and device count."""

import logging
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from squeeze_jax import metrics, run, workdir, writers
from squeeze_jax.config import ConfigError, check_same_experiment, validate
from squeeze_jax.data import pipeline
from squeeze_jax.data.sources import Split
from squeeze_jax.parallel import Parallel, is_main_process
from squeeze_jax.steps import make_eval_step

logger = logging.getLogger(__name__)


class Evaluator:
    """Evaluates splits with one compiled step.

    Args:
      model: the network.
      config: of the run.
      spread: the devices.
      confusion: also count the confusion matrix.
    """

    def __init__(self, model: Any, config: ConfigDict, spread: Parallel, *, confusion: bool = False):
        preprocessing = run.preprocessing_of(config)
        step = make_eval_step(
            model,
            preprocessing.evaluate,
            confusion=confusion,
            scores=config.evaluation.auc,
            axis_name=spread.axis_name,
        )
        self._eval_step = spread.compile_eval_step(step)
        self._spread = spread
        # The padding is masked, so any batch size is exact; round up to what the devices can share.
        self._batch_size = -(-config.evaluation.batch_size // spread.num_devices) * spread.num_devices
        self._num_threads = config.run.num_threads
        self._num_workers = config.run.num_workers

    def measure(self, split: Split, variables: Any) -> tuple[dict[str, Any], metrics.Values]:
        """Measures a split.

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
                yield self._eval_step(variables, self._spread.shard(batch))

        sums, scores = metrics.add_up(evaluated())
        for name in sorted(unreadable):
            logger.warning("left out: %s cannot be read", name)
        return sums, metrics.example_means(sums, split.num_classes) | metrics.score_metrics(scores)


def evaluate(
    folder: str | pathlib.Path,
    *,
    split: str = "test",
    checkpoint: str | int = "best",
    config: ConfigDict | None = None,
) -> metrics.Values:
    """Evaluates a checkpoint of a workdir and writes its tables to `evaluation/<split>_step_<step>/` there.

    The tables are metrics.csv, per_class.csv, confusion.csv and confusion.png. Nothing else in the folder changes.

    Args:
      folder: a workdir.
      split: "train", "validation" or "test".
      checkpoint: "best", "latest" or a step.
      config: the run's own by default; another may differ in its `run` section only.

    Returns:
      Mean loss, top-1 and, with more than five classes, top-5 accuracy in 0..1; with `evaluation.auc` the metrics of
      `metrics.score_metrics`.
    """
    trained = run.load(folder, checkpoint)
    if config is None:
        config = trained.config
    validate(config)
    check_same_experiment(trained.config, config, folder)
    num_devices = min(config.run.num_devices, jax.device_count()) if config.run.num_devices else None
    spread = Parallel.create(config.run.backend, num_devices)
    dataset = run.dataset_of(config)
    if dataset.class_names != trained.class_names:
        raise ConfigError(f"{dataset.name} has other classes than the run in {folder}: {dataset.class_names}.")
    examples = run.split_of(dataset, config, split)
    if examples is None:
        raise ConfigError(f"config.dataset.{split}_split is empty: this experiment has no {split} split.")
    evaluator = Evaluator(trained.model, config, spread, confusion=True)
    sums, values = evaluator.measure(examples, spread.replicate(trained.variables))
    text = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    logger.info("%s of %s, step %d: %d examples, %s", split, dataset.name, trained.step, sums["examples"], text)
    if is_main_process():
        output = workdir.create(pathlib.Path(folder) / "evaluation" / f"{split}_step_{trained.step}")
        row = {"split": split, "step": trained.step, "examples": int(sums["examples"]), **values}
        writers.write_csv(output / "metrics.csv", [row])
        writers.write_csv(output / "per_class.csv", metrics.per_class(sums["confusion"], dataset.class_names))
        writers.write_confusion(output, sums["confusion"], dataset.class_names)
        logger.info("tables and the confusion matrix are in %s", output)
    return values
