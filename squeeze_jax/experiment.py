"""Builds everything that a run needs from a config: dataset, task, model, schedule and optimizer."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from squeeze_jax import models, tasks
from squeeze_jax.config import complete
from squeeze_jax.data import SPLITS
from squeeze_jax.data.augmentation import Preprocessing
from squeeze_jax.data.decoding import Crop
from squeeze_jax.data.sources import Dataset, MissingSplitError, open_dataset
from squeeze_jax.data.splits import PATIENT, Split, hold_out, make_folds
from squeeze_jax.errors import ConfigError, ModelError
from squeeze_jax.extensions import nearest
from squeeze_jax.models.summary import Summary, summarize
from squeeze_jax.tasks import Task
from squeeze_jax.training.optimizers import make_optimizer
from squeeze_jax.training.pruning import PruningPlan, prune
from squeeze_jax.training.schedules import make_schedule
from squeeze_jax.training.state import TrainState, create_state
from squeeze_jax.training.steps import make_train_step
from squeeze_jax.training.weight_sharing import share_weights
from squeeze_jax.validation import duration_in_steps, is_pruned, number_of_folds, validate


@dataclasses.dataclass(frozen=True)
class Plan:
    """The durations of a config in steps; `epoch` need not be an integer. `pruning` is None without pruning."""

    epoch: float
    total: int
    warmup: int
    patience: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    pruning: PruningPlan | None

    @property
    def first_candidate(self) -> int:
        """The step from which checkpoints compete for the best one: when the weights have their final density."""
        return max(self.pruning.end, self.pruning.release) if self.pruning else 0

    @classmethod
    def of(cls, config: ConfigDict, num_examples: int) -> "Plan":
        """Returns the plan of a config for a training split with `num_examples` examples.

        Raises:
          ConfigError: a duration is invalid, `config.train.duration` is less than one step, or the pruning does not
            end within the run.
        """

        def steps(duration: str) -> int:
            return duration_in_steps(duration, config.train.batch_size, num_examples, total)

        total = duration_in_steps(config.train.duration, config.train.batch_size, num_examples)
        if total < 1:
            raise ConfigError(f"config.train.duration={config.train.duration!r} is less than one step.")
        return cls(
            epoch=num_examples / config.train.batch_size,
            total=total,
            warmup=steps(config.schedule.warmup),
            patience=steps(config.train.patience),
            log_every=max(1, steps(config.run.log_every)),
            evaluate_every=max(1, steps(config.run.evaluate_every)),
            checkpoint_every=max(1, steps(config.run.checkpoint_every)),
            pruning=cls._pruning(config, total, steps) if is_pruned(config) else None,
        )

    @staticmethod
    def _pruning(config: ConfigDict, total: int, steps: Callable[[str], int]) -> PruningPlan:
        durations = {key: steps(config.pruning[key]) for key in ("start", "end", "every", "release")}
        start, end, release = durations["start"], durations["end"], durations["release"]
        if (config.pruning.density < 1 or config.pruning.layer_densities) and not start < end <= total:
            raise ConfigError(
                f"config.pruning.start={config.pruning.start!r} and config.pruning.end={config.pruning.end!r} are "
                f"steps {start} and {end} of {total}; expected start < end, within the run."
            )
        if release and not end < release < total:
            raise ConfigError(
                f"config.pruning.release={config.pruning.release!r} is step {release}; expected a step after the last "
                f"pruning step, {end}, and before the end of the run, {total}."
            )
        durations["every"] = max(1, durations["every"])
        others = ("density", "scope", "layer_densities", "schedule", "keep_zeros")
        return PruningPlan(**durations, **{key: config.pruning[key] for key in others})


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that is built from a config.

    Attributes:
      config: the validated config.
      dataset: the dataset that the splits belong to.
      splits: "train" and, if the config names them, "validation" and "test".
      task: what is learned; it contains the preprocessing.
      model: the network.
      input_shape: (*spatial, channels) of the network's input.
      plan: the durations in steps.
      schedule: the learning rate at each step.
      optimizer: the optimizer, which uses `schedule`.
    """

    config: ConfigDict
    dataset: Dataset
    splits: dict[str, Split]
    task: Task
    model: nn.Module
    input_shape: tuple[int, ...]
    plan: Plan
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation

    def initial_state(self, seed: jax.Array | int) -> TrainState:
        """Returns a state with random weights; a pure function of the seed (int or int array of shape ()) for jit."""
        use_ema = self.config.train.ema_decay > 0
        return create_state(self.model, self.optimizer, self.input_shape, self.sums, seed, use_ema=use_ema)

    def train_step(self, axis_name: str | None = None):
        """Makes the training step, see `make_train_step`."""
        return make_train_step(
            self.model,
            self.task,
            self.optimizer,
            micro_batches=self.config.train.micro_batches,
            ema_decay=self.config.train.ema_decay,
            quantization_aware=self.config.train.quantization_aware,
            axis_name=axis_name,
        )

    @functools.cached_property
    def summary(self) -> Summary:
        """The layers of the network and their totals.

        Raises:
          ModelError: the network cannot take the images.
        """
        return summarize(self.model, self.input_shape)

    @functools.cached_property
    def sums(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the task's sums in training.

        Raises:
          ConfigError: augmentation does not suit the images or the batch size.
          ModelError: the network cannot take the images.
        """
        size = self.config.train.batch_size
        example = self.splits["train"].batch([0])
        arrays = {name: value for name, value in example.items() if isinstance(value, np.ndarray)}

        def many(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)

        def sums(outputs: Any, batch: Any) -> Any:
            return self.task.sums(outputs, self.task.augment(batch, jax.random.split(jax.random.key(0), size)))

        return jax.eval_shape(sums, *jax.tree.map(many, (self.summary.outputs, arrays)))


def build(config: ConfigDict, dataset: Dataset | None = None) -> Experiment:
    """Builds everything that a run of this config needs, without computing anything yet.

    Args:
      config: the config of the experiment.
      dataset: the config's dataset, if it is already open.

    Raises:
      ConfigError, ModelError, DataError: the message names the key or the dataset, what was expected and the fix.
    """
    validate(config)
    dataset = dataset or open_config_dataset(config)
    splits = {name: split for name in SPLITS if (split := find_split(dataset, config, name)) is not None}
    if "train" not in splits:
        raise ConfigError("config.dataset.train_split is empty.")
    _check_patients(splits)
    task = make_task(config, dataset.class_names, splits["train"])
    for split in splits.values():
        task.check_split(split, dataset.group_names)
    check_best_metric(config, task)
    if task.fits_on_validation and "validation" not in splits:
        raise ConfigError(
            "config.task chooses a threshold or a temperature on the validation split, but there is none; set "
            "config.dataset.validation_split or config.dataset.held_out."
        )
    model = make_model(config, task)
    task.check_network(model)
    plan = Plan.of(config, len(splits["train"]))
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, plan.total, plan.warmup)
    optimizer = make_optimizer(config.optimizer, schedule)
    if plan.pruning:
        optimizer = prune(optimizer, plan.pruning)
    if config.sharing.bits:
        optimizer = share_weights(optimizer, config.sharing.bits)
    return Experiment(
        config=config,
        dataset=dataset,
        splits=splits,
        task=task,
        model=model,
        input_shape=task.preprocessing.input_shape(dataset.image_shape),
        plan=plan,
        schedule=schedule,
        optimizer=optimizer,
    )


def _check_patients(splits: Mapping[str, Split]) -> None:
    split_of: dict[int, str] = {}
    for name, split in splits.items():
        for patient in np.unique(split.targets()[PATIENT]).tolist() if split.has(PATIENT) else ():
            if split_of.setdefault(patient, name) != name:
                raise ConfigError(
                    f"a patient is in the splits {split_of[patient]} and {name}; divide by config.dataset.folds or "
                    f"config.dataset.held_out, which keep a patient together."
                )


def make_preprocessing(config: ConfigDict) -> Preprocessing:
    """Returns the preprocessing of a config, which runs on the device."""
    config = complete(config)
    return Preprocessing(
        image_size=tuple(config.dataset.image_size),
        mean=tuple(config.dataset.mean),
        std=tuple(config.dataset.std),
        flip=tuple(config.augment.flip),
        quarter_turns=config.augment.quarter_turns,
        rotate=config.augment.rotate,
        pad_and_crop=config.augment.pad_and_crop,
        scale=tuple(config.augment.scale),
        intensity_shift=config.augment.intensity_shift,
        cutout=config.augment.cutout,
        intensity=tuple(config.augment.intensity),
        own=tuple(config.augment.own),
        dtype="float64" if config.model.dtype == "float64" else "float32",
    )


def make_crop(config: ConfigDict) -> Crop | None:
    """Returns the crop of a config, which runs on the host; None if the images are not cropped."""
    crop = complete(config).crop
    if not crop.size:
        return None
    size = crop.size if isinstance(crop.size, tuple) else (crop.size, crop.size)
    exif = config.dataset.exif_orientation
    return Crop(size, crop.train, crop.resize, crop.keep_aspect, crop.smallest_area, crop.interpolation, exif)


def make_task(config: ConfigDict, class_names: tuple[str, ...], train_split: Split | None = None) -> Task:
    """Returns the task of a config; without a training split it is for evaluation and prediction only."""
    return tasks.named(config.task.name).create(config.task, class_names, make_preprocessing(config), train_split)


def network_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the options that a config gives its network; None in `config.model` means the network's own value.

    Raises:
      ModelError: the name is unknown, or the network lacks an option and `config.model.strict` is set.
    """
    known = models.registered(config.model.name).overrides()
    given = {key: value for key, value in config.model.items() if value is not None and key not in ("name", "strict")}
    if config.model.strict and (other := [key for key in given if key not in known]):
        raise ModelError(
            f"{config.model.name} has no option {other[0]!r}{nearest(other[0], known)} config.model.strict=False skips "
            f"the options that a network lacks."
        )
    return {key: value for key, value in given.items() if key in known}


def make_model(config: ConfigDict, task: Task) -> nn.Module:
    """Returns the network of a config.

    Raises:
      ConfigError: the number of classes differs from the task's number of outputs.
      ModelError: the name is unknown or a value is invalid.
    """
    if config.model.name is None:
        raise ConfigError("config.model.name is None; name a network, or call fine_tuning.with_weights(config) first.")
    if config.model.num_classes not in (None, task.num_outputs):
        raise ConfigError(
            f"config.model.num_classes={config.model.num_classes}, but the dataset requires {task.num_outputs}; "
            f"leave the key out."
        )
    return models.create(config.model.name, **{**network_options(config), "num_classes": task.num_outputs})


def open_config_dataset(config: ConfigDict) -> Dataset:
    """Opens the dataset of a config.

    Raises:
      DataError: see `open_dataset`.
    """
    return open_dataset(
        config.dataset.name,
        config.run.data_dir,
        channels=config.dataset.channels,
        crop=make_crop(config),
        skip_unreadable=config.dataset.skip_unreadable,
        max_unreadable=config.dataset.max_unreadable,
        shares=_shares(config),
        exif=complete(config).dataset.exif_orientation,
    )


def _shares(config: ConfigDict) -> dict[str, float]:
    """Returns the shares of the training images of a folder that become splits which it lacks, by their names."""
    if config.dataset.train_split != "train" or config.dataset.folds:
        return {}
    shares = {"validation": config.dataset.validation_share, "test": config.dataset.test_share}
    if config.dataset.held_out:
        del shares["validation"]
    return {name: share for name, share in shares.items() if share and config.dataset[f"{name}_split"] == name}


def find_split(dataset: Dataset, config: ConfigDict, name: str) -> Split | None:
    """Returns the split that the config uses as "train", "validation" or "test"; None if it has no such split.

    Raises:
      ConfigError: `name` is not one of these.
      DataError: the dataset has no such split, it or it is empty.
    """
    taken_from = _taken_from(config, name)
    if not taken_from:
        return None
    try:
        whole = dataset.split(taken_from)
    except MissingSplitError as error:
        raise MissingSplitError(f"{error} {_instead_of_missing(config, name)}") from error
    if type(config.dataset.folds) is int and config.dataset.folds:
        parts = make_folds(whole, config.dataset.folds)
        return whole.subset(np.sort(np.concatenate([parts[fold] for fold in _chosen_folds(config, name)])))
    if config.dataset.held_out and name != "test":
        if config.dataset.validation_split in dataset.source.split_sizes:
            raise ConfigError(
                f"{dataset.name} has a split {config.dataset.validation_split!r}; set config.dataset.held_out=0 to use "
                f"it, or config.dataset.validation_split='' to hold out training examples instead."
            )
        return hold_out(whole, config.dataset.held_out)[name == "validation"]
    return whole


def _instead_of_missing(config: ConfigDict, name: str) -> str:
    """Returns what to do if the dataset lacks the split that is used as `name`."""
    if config.dataset.folds:
        return "Set config.dataset.folds to the names of stored splits, or to a number."
    if name == "train" or (name == "validation" and config.dataset.held_out):
        return "Set config.dataset.train_split to the one to train on."
    if name == "test":
        return "Set config.dataset.test_split to one of these, or to '' for none."
    return (
        "Set config.dataset.validation_split to one of these, or config.dataset.held_out=0.1 to hold out a tenth of "
        "the training examples."
    )


def stored_splits(dataset: Dataset, config: ConfigDict, name: str) -> tuple[str, ...]:
    """Returns the names of the dataset's stored splits that `find_split` reads; errors are the same."""
    taken_from = _taken_from(config, name)
    return dataset.stored_splits(taken_from) if taken_from else ()


def _taken_from(config: ConfigDict, name: str) -> str:
    """Returns which split of the dataset holds the examples of "train", "validation" or "test"; "" for none."""
    if name not in SPLITS:
        raise ConfigError(f"no split is called {name!r}; expected one of {', '.join(SPLITS)}.")
    if isinstance(config.dataset.folds, tuple):
        return "+".join(config.dataset.folds[fold] for fold in _chosen_folds(config, name))
    if config.dataset.folds or (config.dataset.held_out and name != "test"):
        return config.dataset.train_split
    return config.dataset[f"{name}_split"]


def _chosen_folds(config: ConfigDict, name: str) -> list[int]:
    """Returns the folds of a split in cross-validation, see `config.dataset.folds`."""
    count, test = number_of_folds(config.dataset.folds), config.dataset.fold
    validation = (test + 1) % count
    train = [fold for fold in range(count) if fold not in (test, validation)]
    return {"train": train, "validation": [validation], "test": [test]}[name]


def check_best_metric(config: ConfigDict, task: Task) -> None:
    """Raises ConfigError unless the task has the metric that selects the best checkpoint."""
    metric, known = config.evaluation.best_metric, task.higher_is_better
    if metric not in known:
        switch = f" This metric needs config.task.{metric}=True." if metric in task.OPTIONS else ""
        raise ConfigError(
            f"config.evaluation.best_metric={metric!r} is not a metric of this task; expected one of "
            f"{', '.join(known)}.{switch}"
        )
