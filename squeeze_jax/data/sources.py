"""Finds and opens datasets by name, without TensorFlow."""

import dataclasses
import functools
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from squeeze_jax import console
from squeeze_jax.data import prepared
from squeeze_jax.data.archives import is_archive
from squeeze_jax.data.builders import BUILDERS, builder_class, unknown
from squeeze_jax.data.decoding import Crop
from squeeze_jax.data.fake import Fake
from squeeze_jax.data.folders import ImageFolder
from squeeze_jax.data.identity import Identity
from squeeze_jax.data.splits import Split, Subset, Sum, targets_of
from squeeze_jax.errors import DataError


class MissingSplitError(DataError):
    """A split that a dataset does not have."""


class Source(Protocol):
    """The stored data behind a dataset.

    Attributes:
      version: the version of the stored data.
      class_names: the class names, in the order of the labels.
      image_shape: (*spatial, channels), with None for sizes that differ between images.
      split_sizes: the number of examples in each stored split.
      group_names: the names of the patients, scans and cases that the examples belong to, by the target that indexes
        them (`splits.GROUPS`); empty if the examples name none.
      notes: lines about how the data were read, such as what was left out.
      preparation: JSON values that say how images were made of raw data, such as the "cut" of patches from scans;
        a workdir keeps them, so that `predict` can do the same to new data.
    """

    version: str
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, ...]
    split_sizes: dict[str, int]
    group_names: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]
    preparation: Mapping[str, Any]

    def identity(self, splits: Iterable[str]) -> Identity:
        """Returns what tells the data of stored splits from changed data."""

    def examples(self, split: str) -> Sequence[dict[str, Any]]:
        """Returns the examples of a stored split.

        Each example is a dict of "image" (an array or encoded bytes) and targets such as "label". The sequence may have
        a method `targets(index)` that reads the targets alone.
        """


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset of images and their targets.

    Attributes:
      name: the name in the config.
      source: the stored data.
      image_shape: (*spatial, channels) of the images after cropping on the host.
      crop: crops photographs to that shape; None if all images already have it.
      skip_unreadable: see `Split`.
      max_unreadable: see `Split`.
      exif: see `Split`.
    """

    name: str
    source: Source
    image_shape: tuple[int, ...]
    crop: Crop | None = None
    skip_unreadable: bool = False
    max_unreadable: float = 1.0
    exif: bool = True

    @property
    def version(self) -> str:
        """The version of the stored data."""
        return self.source.version

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names, in the order of the labels."""
        return self.source.class_names

    @property
    def group_names(self) -> dict[str, tuple[str, ...]]:
        """The names of the patients, scans and cases that the targets "patient", "scan" and "case" index, if any."""
        return self.source.group_names

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about how the data were read, see `Source`."""
        return self.source.notes

    @property
    def preparation(self) -> Mapping[str, Any]:
        """JSON values that say how images were made of raw data, see `Source`."""
        return self.source.preparation

    def identity(self, splits: Iterable[str]) -> Identity:
        """Returns what tells the data of stored splits from changed data."""
        return self.source.identity(splits)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def stored_splits(self, name: str) -> tuple[str, ...]:
        """Returns the stored splits that a split is taken from; argument and errors are those of `split`."""
        return tuple(dict.fromkeys(part.splitname for part in self._parts(name)))

    def split(self, name: str) -> Split:
        """Returns a split.

        Args:
          name: the name of a split, or a slice or sum in TFDS notation: "train", "train[:90%]", "train+test".

        Raises:
          DataError: the split does not exist or is empty.
        """
        sizes = self.source.split_sizes
        pieces = []
        for part in self._parts(name):
            first, last, _ = slice(part.from_, part.to).indices(sizes[part.splitname])
            examples = self.source.examples(part.splitname)
            whole = (first, last) == (0, sizes[part.splitname])
            pieces.append(examples if whole else Subset(examples, np.arange(first, last)))
        examples = pieces[0] if len(pieces) == 1 else Sum(pieces)
        if len(examples) == 0:
            raise DataError(f"the split {name!r} of {self.name} is empty; expected at least one example.")
        label = f"{self.name}/{name}"
        options = self.crop, self.skip_unreadable, self.max_unreadable, self.exif
        return Split(label, examples, self.image_shape, self.num_classes, *options)

    def check_learnable(self, stored: Sequence[str]) -> None:
        """Checks that stored splits hold what it takes to learn to tell the classes apart.

        Raises:
          DataError: there is one class, or a class of a folder of images has no image in these splits.
        """
        whole = self.split("+".join(stored))
        if not whole.has("label") or np.ndim(targets_of(whole.examples, 0)["label"]) != 0:
            return
        if self.num_classes == 1:
            raise DataError(
                f"{self.name} has one class, {self.class_names[0]!r}, so there is nothing to learn; expected at least "
                f"two. docs/data.md shows how folders of images are read."
            )
        if isinstance(self.source, ImageFolder):  # whose labels are known without reading files
            present = set(whole.targets()["label"].tolist())
            missing = [repr(name) for label, name in enumerate(self.class_names) if label not in present]
            if missing:
                raise DataError(
                    f"{self.name} has images of {', '.join(missing[:5])}, but none in {', '.join(stored)}; add some, "
                    f"or remove the class from all splits."
                )

    def _parts(self, name: str) -> Sequence[Any]:
        """Returns the parts of stored splits that a split consists of, as TFDS reads its name."""
        import tensorflow_datasets as tfds

        sizes = self.source.split_sizes
        infos = {split: tfds.core.SplitInfo(split, [size], 0) for split, size in sizes.items()}
        try:
            return tfds.core.ReadInstruction.from_spec(name).to_absolute(infos)
        except Exception as error:
            reason = "" if name.isidentifier() else f" ({error})"  # of a slice or a sum
            found = ", ".join(sorted(sizes))
            raise MissingSplitError(f"{self.name} has no split {name!r}{reason}; it has {found}.") from error


def open_dataset(
    name: str,
    data_dir: str | None = None,
    *,
    channels: int | None = None,
    crop: Crop | None = None,
    skip_unreadable: bool = False,
    max_unreadable: float = 1.0,
    shares: Mapping[str, float] | None = None,
    exif: bool = True,
) -> Dataset:
    """Opens a dataset; a dataset of this project is prepared first if it is missing.

    Args:
      name: a dataset of this project, a TFDS dataset, "fake/224x224x3/1000", the folder of a prepared TFDS dataset, or
        a folder of images (its path, or its name in `data_dir`) in a layout of `folders.ImageFolder`.
      data_dir: the folder for datasets; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      channels: 1 or 3; None for the stored channels. Gray images can become RGB, but not the other way round.
      crop: crops photographs to one size.
      skip_unreadable: see `Split`.
      max_unreadable: see `Split`.
      shares: the splits that a folder of images gets from its training images if it lacks them, see
        `folders.ImageFolder`.
      exif: turn images as their EXIF data say.

    Raises:
      DataError: the dataset is unknown or not prepared (the message includes the command that prepares it), does not
        have one image and one label per example, or its images do not fit `channels` and `crop`.
    """
    source = _source(name, data_dir, shares or {}, exif)
    stored_shape = source.image_shape
    *spatial, own_channels = stored_shape
    if channels not in (None, own_channels) and (len(spatial) != 2 or isinstance(source, Fake)):
        raise DataError(
            f"{name} has {own_channels} channel(s); config.dataset.channels={channels} is for photographs only, leave "
            f"it out."
        )
    channels = channels or own_channels
    if crop is not None:
        if len(spatial) != 2 or isinstance(source, Fake):
            raise DataError(f"{name} contains no photographs to crop; set config.crop.size=0.")
        spatial = list(crop.size)
    if None in (*spatial, channels):
        raise DataError(
            f"the images of {name} differ in size or channels ({stored_shape}); set config.crop.size, and "
            f"config.dataset.channels=3 if gray and color images are mixed."
        )
    return Dataset(name, source, (*spatial, channels), crop, skip_unreadable, max_unreadable, exif)


def default_data_dir(data_dir: str | None) -> pathlib.Path:
    """Returns the folder for datasets: `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _source(name: str, data_dir: str | None, shares: Mapping[str, float], exif: bool) -> Source:
    if name.startswith("fake/"):
        return Fake(name)
    if is_archive(name):
        raise DataError(f"{name} is an archive; unpack it first: {prepare_command(name, data_dir)}")
    for folder in (pathlib.Path(name).expanduser(), default_data_dir(data_dir) / name):
        if folder.is_dir() and name.split("/")[0] not in BUILDERS and not _is_tfds_root(folder):
            return _folder(name, folder, shares, exif)
    return prepared.Prepared(name, _builder(name, data_dir))


def _is_tfds_root(folder: pathlib.Path) -> bool:
    """Returns whether this is a dataset's folder in a TFDS data_dir, which contains versions or configs, not splits."""
    return any(folder.glob("*/dataset_info.json")) or any(folder.glob("*/*/dataset_info.json"))


def _folder(name: str, folder: pathlib.Path, shares: Mapping[str, float], exif: bool) -> Source:
    if not (folder / prepared.INFO).exists():
        return ImageFolder(folder, shares, exif)
    import tensorflow_datasets as tfds

    builder = prepared.builder_of(folder)
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise DataError(
            f"{folder} is stored as {builder.info.file_format.value}, which has no random access; convert it to "
            f"array_record: {prepare_command(builder.name, None)} --from {shlex.quote(str(folder))}"
        )
    return prepared.Prepared(name, builder, is_own=True)


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    folder = default_data_dir(data_dir)
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR")
    try:
        if name.split("/")[0] in BUILDERS:
            make = functools.partial(builder_class(name), data_dir=data_dir, file_format="array_record")
            builder = prepared.builder_named(name, folder, make)
            if not builder.is_prepared():
                _prepare_in_child(name, data_dir)
                builder = make()
            return builder
        make = functools.partial(tfds.builder, name, data_dir=data_dir, file_format="array_record")
        builder = prepared.builder_named(name, folder, make)
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(unknown(name)) from error
    if not builder.is_prepared():
        raise DataError(
            f"{name} is not on disk in {builder.data_dir}; prepare it with {prepare_command(name, data_dir)} "
            f"(add --from DIR to convert an existing tfrecord copy)"
        )
    return builder


def prepare_command(name: str, data_dir: str | None) -> str:
    """Returns the command that prepares a dataset, as a shell takes it."""
    return shlex.join(["python", *_prepare_arguments(name, data_dir)])


def _prepare_arguments(name: str, data_dir: str | None) -> list[str]:
    return ["-m", "squeeze_jax.data.prepare", name, *(["--data_dir", data_dir] if data_dir else [])]


def _prepare_in_child(name: str, data_dir: str | None) -> None:
    """Prepares a dataset in a child process, because this needs TensorFlow, which training never imports."""
    command = [sys.executable, *_prepare_arguments(name, data_dir)]
    package_root = str(pathlib.Path(__file__).parents[2])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    shown = console.is_terminal()  # then the child shows its progress, and its error, itself
    console.clear()
    output = None if shown else subprocess.PIPE
    child = subprocess.run(command, stdout=subprocess.PIPE, stderr=output, text=True, env=environment)
    if child.returncode and shown:
        raise DataError(f"{name} could not be prepared by `{shlex.join(command)}`; the error is above.")
    if child.returncode:
        last = child.stderr.strip().rpartition("\n")[2]
        if last.startswith(f"{DataError.__name__}: "):
            raise DataError(last.partition(": ")[2])
        reason = child.stderr.strip()[-2000:]
        raise DataError(f"{name} could not be prepared by `{shlex.join(command)}`:\n{reason}")
