"""Datasets by name: where they lie, what they hold, and random access to their examples, without TensorFlow."""

import dataclasses
import functools
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from squeeze_jax.data.builders import BUILDERS, builder_class

CACHE_BYTES = 2**30  # a split whose decoded images fit is decoded once


class DataError(ValueError):
    """A dataset that cannot be used; the message names it, what was expected and how to mend it."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Random access to the checked examples of one split.

    Attributes:
      name: "digits/train", for messages.
      examples: the stored examples, dicts of NumPy values.
      image_key: of the image in an example.
      label_key: of the label.
      image_shape: (*spatial, channels).
      num_classes: labels lie in 0..num_classes - 1.
    """

    name: str
    examples: Sequence[dict[str, Any]]
    image_key: str
    label_key: str
    image_shape: tuple[int, ...]
    num_classes: int

    def __len__(self) -> int:
        return len(self.examples)

    @functools.cached_property
    def _cache(self) -> "_Cache | None":
        """Decoded uint8 images, filled as they are read, where all of them fit in CACHE_BYTES."""
        size = len(self) * math.prod(self.image_shape)
        return _Cache(len(self), self.image_shape) if size <= CACHE_BYTES else None

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """The image, uint8 or finite float32 in 0..255 of `image_shape`, and the label.

        Raises:
          DataError: an image of another shape or with values that are not finite, or a label out of range; with the
            index of the example.
        """
        try:
            example = self.examples[int(index)]
            image, label = np.asarray(example[self.image_key]), int(example[self.label_key])
        except Exception as error:
            raise DataError(f"example {index} of {self.name} cannot be read: {error}") from error
        if image.shape != self.image_shape:
            raise DataError(f"example {index} of {self.name} has shape {image.shape}; expected {self.image_shape}.")
        if image.dtype != np.uint8:
            image = image.astype(np.float32)
            if not np.isfinite(image).all():
                raise DataError(f"example {index} of {self.name} holds NaN or infinite pixels; repair or remove it.")
        if not 0 <= label < self.num_classes:
            raise DataError(
                f"example {index} of {self.name} has the label {label}; expected 0 to {self.num_classes - 1}."
            )
        return image, label

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at these indices: "image" (batch, *image_shape), "label" int32 (batch,)."""
        if self._cache is None:
            images, labels = zip(*(self[index] for index in indices), strict=True)
            return {"image": np.stack(images), "label": np.array(labels, np.int32)}
        for index in indices[~self._cache.known[indices]]:
            self._cache.put(index, *self[index])
        return {"image": self._cache.images[indices], "label": self._cache.labels[indices]}


class _Cache:
    """Examples of a small split. Two threads may put the same one; both write the same values."""

    def __init__(self, size: int, image_shape: tuple[int, ...]):
        self.images = np.empty((size, *image_shape), np.uint8)
        self.labels = np.empty(size, np.int32)
        self.known = np.zeros(size, bool)

    def put(self, index: int, image: np.ndarray, label: int) -> None:
        self.images[index], self.labels[index] = image, label
        self.known[index] = True  # last: a reader must not see it before the image


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An image classification dataset on disk."""

    name: str
    version: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    builder: Any

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def split(self, name: str) -> Split:
        """A split by its name, or a slice of one as TFDS writes it ("train[:90%]").

        Raises:
          DataError: no such split, or an empty one.
        """
        known = sorted(self.builder.info.splits)
        try:
            examples = self.builder.as_data_source(split=name)
        except Exception as error:
            raise DataError(f"{self.name} has no split {name!r} ({error}); it has {', '.join(known)}.") from error
        if len(examples) == 0:
            raise DataError(f"the split {name!r} of {self.name} is empty.")
        image_key, label_key = self.builder.info.supervised_keys
        return Split(f"{self.name}/{name}", examples, image_key, label_key, self.image_shape, self.num_classes)


def open_dataset(name: str, data_dir: str | None = None) -> Dataset:
    """Opens a dataset; one of this project's own is prepared first where it is missing.

    Args:
      name: a builder of this project, the name of a TFDS dataset, or the folder of a prepared one.
      data_dir: where TFDS keeps datasets; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
      DataError: unknown or not prepared (the message has the command that prepares it), or not one image and one
        label an example.
    """
    builder = _builder(name, data_dir)
    info = builder.info
    keys = info.supervised_keys
    if not keys or len(keys) != 2 or not hasattr(info.features[keys[1]], "num_classes"):
        raise DataError(f"{name} is no image classification dataset: its supervised keys are {keys}.")
    label = info.features[keys[1]]
    if label.num_classes is None:
        raise DataError(f"{name} does not say how many classes it has.")
    image_shape = tuple(info.features[keys[0]].shape)
    if None in image_shape:
        raise DataError(f"the images of {name} differ in size ({image_shape}); expected one size for all of them.")
    # TFDS invents names 0, 1, 2, ... where it has none.
    return Dataset(name, str(info.version), tuple(label.names), image_shape, builder)


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR")
    try:
        if pathlib.Path(name).is_dir():
            return tfds.builder_from_directory(name)
        if name in BUILDERS:
            builder = builder_class(name)(data_dir=data_dir, file_format="array_record")
            if not builder.is_prepared():
                _prepare_in_child(name, data_dir)
                builder = builder_class(name)(data_dir=data_dir, file_format="array_record")
            return builder
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, tfds.core.registered.DatasetNotFoundError) as error:
        raise DataError(
            f"no dataset is called {name!r}; expected one of this project ({', '.join(sorted(BUILDERS))}), "
            f"a TFDS name, or the folder of a prepared dataset. ({str(error).splitlines()[0]})"
        ) from error
    if not builder.is_prepared():
        raise DataError(
            f"{name} is not on disk in {builder.data_dir}; prepare it with\n  {prepare_command(name, data_dir)}"
        )
    return builder


def prepare_command(name: str, data_dir: str | None) -> str:
    """The command that prepares a dataset."""
    return f"python -m squeeze_jax.data.prepare {name}" + (f" --data_dir {data_dir}" if data_dir else "")


def _prepare_in_child(name: str, data_dir: str | None) -> None:
    """Writing a dataset needs TensorFlow, which the training process never imports."""
    command = [sys.executable, *prepare_command(name, data_dir).split()[1:]]
    package_root = str(pathlib.Path(__file__).parents[2])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    child = subprocess.run(command, capture_output=True, text=True, env=environment)
    if child.returncode:
        raise DataError(f"{name} could not be prepared by `{' '.join(command)}`:\n{child.stderr.strip()[-2000:]}")
