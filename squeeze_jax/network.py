"""Trained networks: `load` opens one from a workdir or a weight file, to predict, evaluate and inspect features."""

import collections
import dataclasses
import functools
import logging
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from squeeze_jax import config as config_lib
from squeeze_jax import pretrained
from squeeze_jax.config import check_same_experiment, complete
from squeeze_jax.data import SPLITS, decoding
from squeeze_jax.data.identity import Identity
from squeeze_jax.data.sources import Dataset, MissingSplitError
from squeeze_jax.data.splits import NAME, Split
from squeeze_jax.data.volumes import is_volume
from squeeze_jax.errors import ConfigError, DataError, InputError
from squeeze_jax.experiment import (
    find_split,
    make_crop,
    make_model,
    make_task,
    open_config_dataset,
    stored_splits,
)
from squeeze_jax.files import user_path
from squeeze_jax.pretrained.weights import check_shapes
from squeeze_jax.runtime.devices import DeviceMesh, compile_often, is_main_process
from squeeze_jax.tasks import Task
from squeeze_jax.training.evaluation import Evaluation, Evaluator
from squeeze_jax.validation import validate
from squeeze_jax.workdir import folder as folder_lib
from squeeze_jax.workdir.checkpoints import Checkpoints, eval_variables

logger = logging.getLogger(__name__)

ARRAY, DICOM = ".npy", ".dcm"
SCANS = "CT scans are classified with --candidates LIST.csv or --grid MM of python -m squeeze_jax.predict."


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network, as `load` returns it.

    Attributes:
      model: the Linen module.
      variables: "params" and, with batch norm, "batch_stats"; the averaged ones if the run averages weights.
      config: the config of the run.
      step: the step of the checkpoint.
      class_names: the class names, in the order of the outputs.
      image_shape: (*spatial, channels) of the images that `predict` takes.
      workdir: the workdir of the run; None for a weight file.
      preparation: how the images of the run's dataset were made of raw data, such as the "cut" of patches from scans,
        see `data.sources.Source`; empty if nothing is recorded.
    """

    model: nn.Module
    variables: dict[str, Any]
    config: ConfigDict
    step: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    workdir: pathlib.Path | None = None
    preparation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def task(self) -> Task:
        """The task that the network was trained for."""
        return make_task(self.config, self.class_names)

    def read_image(self, path: str | pathlib.Path) -> np.ndarray:
        """Reads an image file as for evaluation: resized and cropped, uint8 of shape `image_shape`.

        An array in a .npy file, such as a volume, must have that shape, without or with the axis of a single channel.

        Raises:
          InputError: the file cannot be read, or the image does not have the shape that the network needs.
        """
        return read_image(path, self.config, self.image_shape)

    def predict(self, images: Any) -> np.ndarray:
        """Applies the network to raw images.

        Args:
          images: (batch, *spatial, channels), uint8 or float in 0..255, not normalized.

        Returns:
          The predictions of the task; for a classifier, probabilities, float32 (batch, num_classes).

        Raises:
          InputError: the shape is wrong, or some values are not finite or not in 0..255.
        """
        return jax.device_get(self._predict(self.variables, self._checked(images)))

    def features(self, images: Any) -> dict[str, np.ndarray]:
        """Returns the named feature maps of raw images, each (batch, *spatial, channels), in order of computation.

        Arguments and errors are those of `predict`.
        """
        return dict(jax.device_get(self._features(self.variables, self._checked(images))))

    def explain(
        self, path: str | pathlib.Path, image: np.ndarray, predicted: np.ndarray, class_name: str | None = None
    ) -> str:
        """Draws an explanation of a prediction as a PNG, and returns a sentence about what the picture shows.

        For a classifier this is the class activation map, unless the network's last feature map has a single cell.

        Args:
          path: the file to write.
          image: one raw image, (*spatial, channels).
          predicted: the prediction for this image, one row of the output of `predict`.
          class_name: the class to explain; None for the predicted one.

        Raises:
          InputError: there is no such class.
        """
        head = self.features(image[None])[self.model.head][0]
        inside = tuple(slice(self.model.head_margin, size - self.model.head_margin) for size in head.shape[:-1])
        return self.task.explain(pathlib.Path(path), image, predicted, head[inside], class_name)

    def evaluate(self, split: str = "test", dataset: str | None = None, config: ConfigDict | None = None) -> Evaluation:
        """Evaluates the network on a split, without writing anything.

        For the test split, a task that fits on validation data is fitted to the network's own validation split first.

        Args:
          split: "train", "validation" or "test".
          dataset: a dataset to use instead of the run's, with splits of these names; preprocessed like the run's. Its
            class names must be among the network's.
          config: the network's own config by default; may differ from it in the sections `run`, `evaluation` and
            `task` only.

        Returns:
          The metrics, and the task's records of each example; `task.confusion(evaluation.records)` is the confusion
          matrix of a classifier. Records of groups ("patient", "scan", "case") that have names have these beside them
          ("patient_name", ...).

        Raises:
          ConfigError, DataError: the split does not exist, the config is of another experiment, a class is unknown, or
            the run's dataset is not what it was in training.
        """
        config = self.config if config is None else complete(config, self.config)
        validate(config)
        check_same_experiment(self.config, config, self.workdir or "the network", free=("run", "evaluation", "task"))
        opened, examples = self._open_split(split, dataset, config)
        num_devices = min(config.run.num_devices, jax.device_count()) if config.run.num_devices else None
        mesh = DeviceMesh.create(config.run.backend, num_devices)
        task = make_task(config, self.class_names)
        fit_on = self.split("validation", config=config) if task.fits_on_validation and split == "test" else None
        largest = max(len(examples), len(fit_on or ()))
        evaluator = Evaluator(self.model, task, config, mesh, largest=largest)
        evaluation = evaluator.measure(examples, mesh.replicate(self.variables), fit_on=fit_on)
        names = {
            NAME.format(group): np.array(names, object)[evaluation.records[group]]
            for group, names in opened.group_names.items()
            if group in evaluation.records
        }
        return dataclasses.replace(evaluation, records={**evaluation.records, **names})

    def split(self, name: str = "test", dataset: str | None = None, config: ConfigDict | None = None) -> Split:
        """Returns the split that `evaluate` measures; arguments and errors are the same."""
        return self._open_split(name, dataset, self.config if config is None else config)[1]

    def _open_split(self, name: str, dataset: str | None, config: ConfigDict) -> tuple[Dataset, Split]:
        before = Identity.read(self.workdir) if self.workdir and dataset is None else None
        if dataset is not None:
            config = config.copy_and_resolve_references()
            config.dataset.name = dataset
            config.dataset.held_out = 0
            if dataset != self.config.dataset.name:
                config.dataset.validation_share = config.dataset.test_share = 0.0
            config.dataset.folds = 0
            for split in SPLITS:
                config.dataset[f"{split}_split"] = split
        opened = open_config_dataset(config)
        try:
            examples = find_split(opened, config, name)
        except MissingSplitError as error:
            if dataset is None:
                raise
            found = ", ".join(sorted(opened.source.split_sizes))
            raise DataError(
                f"{dataset} has no split {name!r}; it has {found}. Name one of these with --split."
            ) from error
        if examples is None:
            others = [other for other in SPLITS if other != name and find_split(opened, config, other) is not None]
            raise ConfigError(
                f"config.dataset.{name}_split is empty: this experiment has no {name} split. It has "
                f"{' and '.join(others)}; name one of these with --split."
            )
        for note in opened.notes:
            logger.info("dataset: %s", note)
        used = stored_splits(opened, config, name)
        if before and (changes := before.changes(opened.identity(used), used)):
            raise DataError(
                f"{opened.name} is not what the run in {self.workdir} was trained on: {changes}. Restore the dataset; "
                f"or evaluate it as it is now, by naming it: --dataset={opened.name}, or evaluate(dataset=...)."
            )
        examples = self._with_our_labels(examples, opened)
        self.task.check_split(examples, opened.group_names)
        return opened, examples

    def _with_our_labels(self, split: Split, dataset: Dataset) -> Split:
        """Maps the dataset's class indices to the network's, by class name."""
        if dataset.class_names == self.class_names:
            return split
        unknown = sorted(set(dataset.class_names) - set(self.class_names))
        if unknown:
            raise ConfigError(
                f"{dataset.name} has classes that the network does not have: {', '.join(unknown[:5])}; the network has "
                f"{', '.join(self.class_names[:5])}, ..."
            )
        return split.relabeled([self.class_names.index(name) for name in dataset.class_names], len(self.class_names))

    def _checked(self, images: Any) -> np.ndarray:
        images = np.asarray(images)
        if not images.size and images.ndim == 1:  # no images at all
            images = images.reshape(0, *self.image_shape).astype(np.uint8)
        if images.shape[1:] != self.image_shape:
            raise InputError(f"images have shape {images.shape}; expected (batch, {str(self.image_shape)[1:-1]}).")
        if images.dtype != np.uint8:
            if not np.issubdtype(images.dtype, np.number) or not np.isfinite(images).all():
                raise InputError("images contain values that are not finite; expected uint8, or float in 0..255.")
            if images.size and (images.min() < 0 or images.max() > 255):
                raise InputError(
                    f"images have values in {images.min():g}..{images.max():g}; expected 0..255, not normalized: the "
                    f"network normalizes them."
                )
            if images.size and 0 < images.max() <= 1:
                warnings.warn("no pixel is above 1; the network expects pixels in 0..255.", stacklevel=3)
        return images

    @functools.cached_property
    def _predict(self):
        def predict(variables: Any, images: jax.Array) -> Any:
            return self.task.predict(self.model.apply(variables, self.task.preprocessing.evaluate(images)))

        return compile_often(predict)

    @functools.cached_property
    def _features(self):
        def features(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
            inputs = self.task.preprocessing.evaluate(images)
            maps = self.model.apply(variables, inputs, method="features")
            return collections.OrderedDict(maps)  # JAX sorts the keys of a plain dict

        return compile_often(features)


def read_image(path: str | pathlib.Path, config: ConfigDict, image_shape: tuple[int, ...]) -> np.ndarray:
    """Reads an image file as for evaluation; see `Network.read_image`."""
    crop, channels = make_crop(config), image_shape[-1]
    if is_volume(path) or pathlib.Path(path).suffix.lower() == DICOM:
        raise InputError(f"{path} is a scan, not an image. {SCANS}")
    try:
        if pathlib.Path(path).suffix.lower() == ARRAY:
            image = _open_array(pathlib.Path(path))
            if image_shape == (*image.shape, 1):
                image = image[..., None]
        elif crop is None:
            image = decoding.decode(decoding.read_file(path), channels, complete(config).dataset.exif_orientation)
        else:
            image, _ = crop.for_evaluation(decoding.read_file(path), channels)
    except (OSError, decoding.Undecodable, decoding.Unsuitable) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be read: {reason}") from error
    if image.shape != image_shape or image.dtype != np.uint8:
        raise InputError(f"{path} has shape {image.shape}, {image.dtype}; the network expects {image_shape}, uint8.")
    return np.array(image)


def _open_array(path: pathlib.Path) -> np.ndarray:
    """Maps an array in a .npy file without reading its values, because it may have any shape."""
    if not path.is_file():
        raise decoding.Undecodable("it is not a file.")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy evaluates the header, which raises errors of many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise decoding.Undecodable(f"it is not an intact .npy file: {reason}") from error


def load(source: str | pathlib.Path, checkpoint: str | int = "best") -> Network:
    """Loads a network from the workdir of a run or from a weight file, on any machine and without writing anything.

    Args:
      source: the workdir of a run of `python -m squeeze_jax.main`, or a file or a name ("digits",
        "torchvision/resnet18") supported by `squeeze_jax.pretrained.read`.
      checkpoint: for a workdir: "best" (on the validation split; the latest if there was none), "latest" or a step.

    Raises:
      ConfigError: the folder has no config.
      CheckpointError: the checkpoint does not exist, or none is intact.
      WeightError: the weight file cannot be used, or the checkpoint is not of the config's network.
    """
    source = user_path(source)
    workdir, preparation = source if source.is_dir() else None, {}
    if workdir is None:
        weights = pretrained.read(source)
        config, class_names, image_shape = weights.config, weights.class_names, weights.image_shape
        variables, step = weights.variables, weights.step
    else:
        config, resolved = config_lib.read(source)
        class_names, image_shape = tuple(resolved["class_names"]), tuple(resolved["image_shape"])
        preparation = resolved.get("preparation", {})
        checkpoints = Checkpoints(source, read_only=True)
        try:
            step, leaves = checkpoints.read(checkpoint)
        finally:
            checkpoints.close()
        variables = eval_variables(leaves)
    task = make_task(config, class_names)
    model, input_shape = make_model(config, task), task.preprocessing.input_shape(image_shape)
    if workdir is not None:
        found = {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(variables, sep="/").items()}
        check_shapes(source, model, found, input_shape)
    return Network(model, variables, config, step, class_names, image_shape, workdir, preparation)


def evaluate(
    source: str | pathlib.Path,
    *,
    split: str = "test",
    checkpoint: str | int = "best",
    config: ConfigDict | None = None,
    dataset: str | None = None,
    output: str | pathlib.Path | None = None,
) -> Evaluation:
    """Evaluates a network and writes tables to `OUTPUT/evaluation/<split>_step_<step>/`.

    The files are metrics.csv and the task's report; for a classifier per_class.csv, confusion.csv and confusion.png,
    and with `config.task.metrics="full"` also scores.csv, cases.csv and curves.png. If `config.task` differs from the
    network's own, the changed options are appended to the folder name.
    Nothing else in OUTPUT changes.

    Args:
      source: a workdir or a weight file.
      split, dataset, config: see `Network.evaluate`.
      checkpoint: for a workdir: "best", "latest" or a step.
      output: the folder to write to; the workdir by default.

    Raises:
      WorkdirError: the output folder is not writable. Other errors are those of `load` and `Network.evaluate`.
    """
    network = load(source, checkpoint)
    config = network.config if config is None else complete(config, network.config)
    evaluation = network.evaluate(split, dataset, config)
    naming = evaluation.task.naming
    words = [f"{name} {value}" for name, value in naming.items()]
    text = ", ".join(words + [f"{name} {value:.4f}" for name, value in evaluation.values.items()])
    examples = int(evaluation.sums["examples"])
    name = dataset or config.dataset.name
    logger.info("%s of %s, step %d: %d examples, %s", split, name, network.step, examples, text)
    if is_main_process():
        changed = [
            "-".join([key, *map(str, value if isinstance(value, tuple) else (value,))])
            for key, value in config.task.items()
            if value != network.config.task[key]
        ]
        subfolder = "_".join([split, "step", str(network.step), *changed])
        folder = folder_lib.create(pathlib.Path(output or source) / "evaluation" / subfolder)
        evaluation.write(folder, split, network.step)
        logger.info("the tables are in %s", folder)
    return evaluation
