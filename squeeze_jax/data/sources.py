"""Datasets by name: where they lie, what they hold, and random access to their examples, without TensorFlow."""

import dataclasses
import functools
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from squeeze_jax.data import decode
from squeeze_jax.data.builders import BUILDERS, builder_class
from squeeze_jax.data.decode import Crop
from squeeze_jax.data.fake import Fake
from squeeze_jax.data.folder import ImageFolder

CACHE_BYTES = 2**30  # a split whose decoded images fit is decoded once
HELD_OUT_SEED = 0


class DataError(ValueError):
    """A dataset that cannot be used; the message names it, what was expected and how to mend it."""


class Source(Protocol):
    """Where a dataset's examples come from.

    Attributes:
      version: of what is stored.
      class_names: in the order of the labels.
      image_shape: (*spatial, channels), with None where images differ in size.
      split_sizes: examples of each stored split.
    """

    version: str
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, ...]
    split_sizes: dict[str, int]

    def examples(self, split: str) -> Sequence[dict[str, Any]]:
        """Dicts of "image", an array or encoded bytes, and "label"; a method `label(index)` may read it alone."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Random access to the checked examples of one split.

    Attributes:
      name: "digits/train", for messages.
      examples: the stored examples.
      image_shape: (*spatial, channels) of the images as they leave the host.
      num_classes: labels lie in 0..num_classes - 1.
      crop: cuts photographs to `image_shape`; None where they have it.
      skip_unreadable: an example that cannot be used is replaced by the next one and reported, instead of an error.
    """

    name: str
    examples: Sequence[dict[str, Any]]
    image_shape: tuple[int, ...]
    num_classes: int
    crop: Crop | None = None
    skip_unreadable: bool = False

    def __len__(self) -> int:
        return len(self.examples)

    def subset(self, indices: np.ndarray) -> "Split":
        """The examples at these indices, in that order."""
        return dataclasses.replace(self, examples=_Subset(self.examples, indices))

    @functools.cached_property
    def _cache(self) -> "_Cache | None":
        """Decoded uint8 images, filled as they are read, where all of them fit in CACHE_BYTES."""
        size = len(self) * math.prod(self.image_shape)
        return _Cache(len(self), self.image_shape) if size <= CACHE_BYTES else None

    @property
    def is_cached(self) -> bool:
        """Whether decoded images stay in memory, where they are not cropped at random."""
        return self._cache is not None

    def __getstate__(self) -> dict[str, Any]:
        """A worker process fills a cache of its own."""
        return {key: value for key, value in self.__dict__.items() if key != "_cache"}

    def read(self, index: int, rng: np.random.Generator | None = None) -> tuple[np.ndarray, int]:
        """The image, uint8 or finite float32 in 0..255 of `image_shape`, and the label.

        Args:
          index: of the example.
          rng: of the random crop; None for the central one.

        Raises:
          DataError: an image that cannot be decoded, of another shape or with values that are not finite, or a label
            out of range; with the file or the index of the example.
        """
        index = int(index)
        try:
            example = self.examples[index]
            image, label = example["image"], int(example["label"])
            if isinstance(image, bytes):
                image = self._decode(image, rng)
            image = np.asarray(image)
        except Exception as error:
            raise DataError(f"{self.describe(index)} cannot be read: {error}") from error
        if image.shape != self.image_shape:
            raise DataError(f"{self.describe(index)} has shape {image.shape}; expected {self.image_shape}.")
        if image.dtype != np.uint8:
            image = image.astype(np.float32)
            if not np.isfinite(image).all():
                raise DataError(f"{self.describe(index)} holds NaN or infinite pixels; repair or remove it.")
        if not 0 <= label < self.num_classes:
            raise DataError(f"{self.describe(index)} has the label {label}; expected 0 to {self.num_classes - 1}.")
        return image, label

    def batch(self, indices: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> dict[str, Any]:
        """The examples at these indices.

        Args:
          indices: of the examples.
          rngs: of their random crops; None for the central ones.

        Returns:
          "image" (batch, *image_shape), "label" int32 (batch,), and where examples were replaced because they could
          not be used "unreadable", a list of (row, name).
        """
        if rngs is not None and self.crop is not None:
            return self._stack([self._read_or_replace(i, rng) for i, rng in zip(indices, rngs, strict=True)])
        if self._cache is None:
            return self._stack([self._read_or_replace(i) for i in indices])
        for index in indices[~self._cache.known[indices]]:
            self._cache.put(index, *self._read_or_replace(index))
        batch = {"image": self._cache.images[indices], "label": self._cache.labels[indices]}
        return batch | _unreadable([self._cache.unreadable.get(i) for i in indices.tolist()])

    def labels(self) -> np.ndarray:
        """All labels, int64, without decoding images."""
        return np.array([label_of(self.examples, i) for i in range(len(self))])

    def describe(self, index: int) -> str:
        """The example for a message: by its file where it has one, else by its index."""
        examples = self.examples
        while isinstance(examples, _Subset):
            examples, index = examples.examples, int(examples.indices[index])
        return examples.describe(index) if hasattr(examples, "describe") else f"example {index} of {self.name}"

    def _decode(self, stored: bytes, rng: np.random.Generator | None) -> np.ndarray:
        channels = self.image_shape[-1]
        if self.crop is None:
            return decode.decode(stored, channels)
        if rng is None:
            return self.crop.for_evaluation(stored, channels)
        return self.crop.for_training(stored, channels, rng)

    def _read_or_replace(
        self, index: int, rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, int, str | None]:
        """Image, label, and the name of the example that they replace."""
        if not self.skip_unreadable:
            return *self.read(index, rng), None
        for distance in range(len(self)):
            try:
                image, label = self.read((index + distance) % len(self), rng)
            except DataError:
                continue
            return image, label, self.describe(index) if distance else None
        raise DataError(f"no example of {self.name} can be used.")

    def _stack(self, read: list[tuple[np.ndarray, int, str | None]]) -> dict[str, Any]:
        images, labels, replaced = zip(*read, strict=True)
        return {"image": np.stack(images), "label": np.array(labels, np.int32)} | _unreadable(replaced)


def _unreadable(replaced: Sequence[str | None]) -> dict[str, Any]:
    rows = [(row, name) for row, name in enumerate(replaced) if name is not None]
    return {"unreadable": rows} if rows else {}


def label_of(examples: Sequence[dict[str, Any]], index: int) -> int:
    """The label of an example, without reading its image where the source can do so."""
    return int(examples.label(index) if hasattr(examples, "label") else examples[index]["label"])


class _Subset(Sequence):
    def __init__(self, examples: Sequence[dict[str, Any]], indices: np.ndarray):
        self.examples, self.indices = examples, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[int(self.indices[index])]

    def label(self, index: int) -> int:
        return label_of(self.examples, int(self.indices[index]))


class _Cache:
    """Examples of a small split. Two threads may put the same one; both write the same values."""

    def __init__(self, size: int, image_shape: tuple[int, ...]):
        self.images = np.empty((size, *image_shape), np.uint8)
        self.labels = np.empty(size, np.int32)
        self.unreadable: dict[int, str] = {}
        self.known = np.zeros(size, bool)

    def put(self, index: int, image: np.ndarray, label: int, replaced: str | None) -> None:
        self.images[index], self.labels[index] = image, label
        if replaced is not None:
            self.unreadable[int(index)] = replaced
        self.known[index] = True  # last: a reader must not see it before the image


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An image classification dataset.

    Attributes:
      name: as the config calls it.
      source: where its examples come from.
      image_shape: (*spatial, channels) of the images as they leave the host.
      crop: cuts photographs to that shape; None where they have it.
      skip_unreadable: see `Split`.
    """

    name: str
    source: Source
    image_shape: tuple[int, ...]
    crop: Crop | None = None
    skip_unreadable: bool = False

    @property
    def version(self) -> str:
        return self.source.version

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def split(self, name: str) -> Split:
        """A split by its name, a slice of one or a sum, as TFDS writes them ("train[:90%]", "train+test").

        Raises:
          DataError: no such split, or an empty one.
        """
        import tensorflow_datasets as tfds

        sizes = self.source.split_sizes
        infos = {split: tfds.core.SplitInfo(split, [size], 0) for split, size in sizes.items()}
        try:
            parts = tfds.core.ReadInstruction.from_spec(name).to_absolute(infos)
        except Exception as error:
            raise DataError(
                f"{self.name} has no split {name!r} ({error}); it has {', '.join(sorted(sizes))}."
            ) from error
        pieces = []
        for part in parts:
            first, last, _ = slice(part.from_, part.to).indices(sizes[part.splitname])
            examples = self.source.examples(part.splitname)
            whole = (first, last) == (0, sizes[part.splitname])
            pieces.append(examples if whole else _Subset(examples, np.arange(first, last)))
        examples = pieces[0] if len(pieces) == 1 else _Sum(pieces)
        if len(examples) == 0:
            raise DataError(f"the split {name!r} of {self.name} is empty.")
        label = f"{self.name}/{name}"
        return Split(label, examples, self.image_shape, self.num_classes, self.crop, self.skip_unreadable)


class _Sum(Sequence):
    """Several sequences, one after the other."""

    def __init__(self, parts: list[Sequence[dict[str, Any]]]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, index: int) -> tuple[Sequence[dict[str, Any]], int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[part], int(index - (self._ends[part - 1] if part else 0))

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, index = self._locate(index)
        return part[index]

    def label(self, index: int) -> int:
        return label_of(*self._locate(index))


def hold_out(split: Split, count: int) -> tuple[Split, Split]:
    """Divides a split at random, always alike, into all but `count` examples and those `count`.

    Raises:
      DataError: there are not more than `count` examples.
    """
    if not 0 < count < len(split):
        raise DataError(f"{count} examples cannot be held out of the {len(split)} of {split.name}.")
    order = np.random.default_rng(HELD_OUT_SEED).permutation(len(split))
    return split.subset(np.sort(order[count:])), split.subset(np.sort(order[:count]))


def open_dataset(
    name: str,
    data_dir: str | None = None,
    *,
    channels: int | None = None,
    crop: Crop | None = None,
    skip_unreadable: bool = False,
) -> Dataset:
    """Opens a dataset; one of this project's own is prepared first where it is missing.

    Args:
      name: a builder of this project, a TFDS dataset, "fake/224x224x3/1000", the folder of a prepared TFDS dataset, or
        a folder of images split/class/image (its path, or its name below `data_dir`).
      data_dir: where datasets are kept; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      channels: 1 or 3; None for the dataset's own. Grey images become colour ones, not the other way round.
      crop: cuts photographs to one size.
      skip_unreadable: see `Split`.

    Raises:
      DataError: unknown or not prepared (the message has the command that prepares it), not one image and one label
        an example, or images that do not fit `channels` and `crop`.
    """
    source = _source(name, data_dir)
    stored_shape = source.image_shape
    if stored_shape is None:
        raise DataError(f"{name} holds no images.")
    *spatial, own_channels = stored_shape
    if channels not in (None, own_channels) and (len(spatial) != 2 or isinstance(source, Fake)):
        raise DataError(f"{name} has {own_channels} channel(s); config.dataset.channels={channels} is for photographs.")
    channels = channels or own_channels
    if crop is not None:
        if len(spatial) != 2 or isinstance(source, Fake):
            raise DataError(f"{name} holds no photographs to crop; set config.crop.size=0.")
        spatial = [crop.size, crop.size]
    if None in (*spatial, channels):
        raise DataError(
            f"the images of {name} differ in size or channels ({stored_shape}); set config.crop.size, and "
            f"config.dataset.channels=3 where they are mixed."
        )
    return Dataset(name, source, (*spatial, channels), crop, skip_unreadable)


class _Tfds:
    """A prepared TFDS dataset in array_record."""

    def __init__(self, name: str, builder: Any):
        import tensorflow_datasets as tfds

        info = builder.info
        keys = info.supervised_keys
        if not keys or len(keys) != 2 or not hasattr(info.features[keys[1]], "num_classes"):
            raise DataError(f"{name} is no dataset of one image and one class label an example: its keys are {keys}.")
        self._builder, (self._image, self._label) = builder, keys
        if info.features[self._label].num_classes is None:
            raise DataError(f"{name} does not say how many classes it has.")
        self.version = str(info.version)
        # TFDS invents names 0, 1, 2, ... where it has none.
        self.class_names = tuple(info.features[self._label].names)
        self.image_shape = tuple(info.features[self._image].shape)
        self.split_sizes = {split: info.splits[split].num_examples for split in info.splits}
        # Encoded images are decoded here, where they are cropped.
        feature = info.features[self._image]
        encoded = isinstance(feature, tfds.features.Image) and np.dtype(feature.np_dtype) == np.uint8
        self._decoders = {self._image: tfds.decode.SkipDecoding()} if encoded else None

    def examples(self, split: str) -> Sequence[dict[str, Any]]:
        stored = self._builder.as_data_source(split=split, decoders=self._decoders)
        return _TfdsExamples(stored, self._image, self._label)


class _TfdsExamples(Sequence):
    def __init__(self, stored: Sequence, image_key: str, label_key: str):
        self._stored, self._image, self._label = stored, image_key, label_key

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._stored[index]
        return {"image": example[self._image], "label": example[self._label]}


def default_data_dir(data_dir: str | None) -> pathlib.Path:
    """Where datasets are kept."""
    return pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _source(name: str, data_dir: str | None) -> Source:
    if name.startswith("fake/"):
        try:
            return Fake(name)
        except ValueError as error:
            raise DataError(str(error)) from error
    for folder in (pathlib.Path(name).expanduser(), default_data_dir(data_dir) / name):
        if folder.is_dir() and name.split("/")[0] not in BUILDERS and not _is_tfds_root(folder):
            return _folder(name, folder)
    return _Tfds(name, _builder(name, data_dir))


def _is_tfds_root(folder: pathlib.Path) -> bool:
    """A dataset's folder in a TFDS data_dir, which holds versions or configs rather than splits."""
    return any(folder.glob("*/dataset_info.json")) or any(folder.glob("*/*/dataset_info.json"))


def _folder(name: str, folder: pathlib.Path) -> Source:
    import tensorflow_datasets as tfds

    if (folder / "dataset_info.json").exists():
        builder = tfds.builder_from_directory(folder)
        if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            raise DataError(
                f"{folder} is stored as {builder.info.file_format.value}, which has no random access; turn it into "
                f"array_record with\n  python -m squeeze_jax.data.prepare {builder.name} --from {folder}"
            )
        return _Tfds(name, builder)
    try:
        return ImageFolder(folder)
    except (ValueError, OSError) as error:
        raise DataError(str(error)) from error


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR")
    try:
        if name.split("/")[0] in BUILDERS:
            builder = builder_class(name)(data_dir=data_dir, file_format="array_record")
            if not builder.is_prepared():
                _prepare_in_child(name, data_dir)
                builder = builder_class(name)(data_dir=data_dir, file_format="array_record")
            return builder
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"no dataset is called {name!r}; expected one of this project ({', '.join(sorted(BUILDERS))}), a TFDS "
            f"name, 'fake/32x32x3/10', or a folder: of a prepared dataset, or of images in split/class/. "
            f"({str(error).splitlines()[0]})"
        ) from error
    if not builder.is_prepared():
        raise DataError(
            f"{name} is not on disk in {builder.data_dir}; prepare it with\n  {prepare_command(name, data_dir)}\n"
            f"(--from DIR turns a tfrecord copy that you have into array_record)"
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
