"""Random access to the validated examples of a split: dicts of an image and its targets."""

import dataclasses
import functools
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from squeeze_jax.data import decoding
from squeeze_jax.data.decoding import Crop
from squeeze_jax.errors import DataError

CACHE_BYTES = 2**30  # a split whose decoded images fit into this is decoded only once
HELD_OUT_SEED = 0
# Keys that are added to a batch: which rows are examples and not padding, and which were replaced because they could
# not be used.
VALID, UNREADABLE = "valid", "unreadable"
# Targets that say what an example belongs to: int32 indices into the `group_names` of its dataset. A patient is never
# in two splits. A scan is one examination; a case is what is judged as one, such as a nodule with several slices.
PATIENT, SCAN, CASE = "patient", "scan", "case"
GROUPS = (PATIENT, SCAN, CASE)
NAME = "{}_name"  # beside each of GROUPS in the records of an evaluation: the names of its ids
IGNORED = "ignored"  # target, bool: on an irrelevant finding, which FROC counts neither as found nor as wrong

Example = dict[str, np.ndarray]


class UndecodableError(DataError):
    """An example whose image is damaged, or no image."""


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of one split.

    Attributes:
      name: such as "digits/train", for messages.
      examples: the stored examples, dicts of "image" (an array or encoded bytes) and targets such as "label"; a target
        has the same shape and dtype in all examples.
      image_shape: (*spatial, channels) of the images after cropping on the host.
      num_classes: labels are in 0..num_classes - 1.
      crop: crops photographs to `image_shape`; None if all images already have this shape.
      skip_unreadable: replace an image that cannot be decoded by the next one and report it, instead of raising an
        error. Anything else that is wrong is still an error.
      exif: without `crop`, turn an image as its EXIF data say.
      max_unreadable: the largest share of such images; above it, `check_unreadable` raises an error.
    """

    name: str
    examples: Sequence[Mapping[str, Any]]
    image_shape: tuple[int, ...]
    num_classes: int
    crop: Crop | None = None
    skip_unreadable: bool = False
    max_unreadable: float = 1.0
    exif: bool = True

    def __len__(self) -> int:
        return len(self.examples)

    def subset(self, indices: np.ndarray) -> "Split":
        """Returns a split of the examples at these indices, in that order."""
        return dataclasses.replace(self, examples=Subset(self.examples, indices))

    def relabeled(self, new_labels: Sequence[int], num_classes: int) -> "Split":
        """Returns the same examples with each label replaced by `new_labels[label]`.

        Args:
          new_labels: the new label of each old one.
          num_classes: the new number of classes.
        """
        examples = _Relabeled(self.examples, new_labels)
        return dataclasses.replace(self, examples=examples, num_classes=num_classes)

    @functools.cached_property
    def _cache(self) -> "_Cache | None":
        """A cache that is filled as examples are read; None if they do not fit into CACHE_BYTES."""
        example, _ = self._read_or_replace(0)
        size = len(self) * sum(value.nbytes for value in example.values())
        return _Cache(len(self), example) if size <= CACHE_BYTES else None

    @property
    def is_cached(self) -> bool:
        """Whether decoded images stay in memory. Random crops are never cached."""
        return self._cache is not None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the cache out when pickling: each worker process fills its own cache."""
        return {key: value for key, value in self.__dict__.items() if key != "_cache"}

    def read(self, index: int, rng: np.random.Generator | None = None) -> Example:
        """Reads one example.

        Args:
          index: the index of the example.
          rng: the random generator of a random crop; None for the central crop.

        Returns:
          "image", uint8 or finite float32 of shape `image_shape`, and the targets; long integers become int32 and
          floats float32.

        Raises:
          UndecodableError: the image cannot be decoded.
          DataError: the image has another shape, channels or depth, or values that are not finite, or the label is out
            of range; the message names the file or the index of the example.
        """
        index = int(index)
        try:
            example = dict(self.examples[index])
            image = example.pop("image")
            targets = {name: _as_target(name, value) for name, value in example.items()}
        except Exception as error:  # of whatever holds the examples
            reason = " ".join(str(error).split())[:500]
            raise DataError(f"{self.describe(index)} cannot be read: {reason}") from error
        if isinstance(image, bytes):
            try:
                image = self._decode(image, rng)
            except decoding.Undecodable as error:
                raise UndecodableError(f"{self.describe(index)} cannot be read: {error}") from error
            except decoding.Unsuitable as error:
                raise DataError(f"{self.describe(index)} cannot be used: {error}") from error
        image = np.asarray(image)
        if image.shape != self.image_shape:
            hint = ", like the first image; set config.crop.size" if self.crop is None and image.ndim == 3 else ""
            raise DataError(f"{self.describe(index)} has shape {image.shape}; expected {self.image_shape}{hint}.")
        if image.dtype != np.uint8:
            image = image.astype(np.float32)
            if not np.isfinite(image).all():
                raise DataError(f"{self.describe(index)} contains NaN or infinite pixels; repair or remove it.")
        label = targets.get("label")
        if label is not None and not ((label >= 0) & (label < self.num_classes)).all():
            raise DataError(f"{self.describe(index)} has the label {label}; expected 0 to {self.num_classes - 1}.")
        return {"image": image, **targets}

    def has(self, target: str) -> bool:
        """Returns whether the examples have this target."""
        return len(self) > 0 and target in targets_of(self.examples, 0)

    def batch(self, indices: Sequence[int], rngs: Sequence[np.random.Generator] | None = None) -> dict[str, Any]:
        """Reads a batch of examples.

        Args:
          indices: the indices of the examples.
          rngs: one random generator per example for random crops; None for central crops.

        Returns:
          The examples as from `read`, stacked along a new first axis. If examples were replaced because they could not
          be decoded, also "unreadable", a list of (row, what is wrong with which example).

        Raises:
          DataError: an example cannot be used, see `read`; or with `skip_unreadable` none can be decoded.
        """
        indices = np.asarray(indices, int)
        if rngs is not None and self.crop is not None:
            return _stack([self._read_or_replace(i, rng) for i, rng in zip(indices, rngs, strict=True)])
        cache = self._cache  # once: two threads may make one each
        if cache is None:
            return _stack([self._read_or_replace(i) for i in indices])
        for index in indices[~cache.known[indices]]:
            cache.put(index, *self._read_or_replace(index))
        batch = {name: values[indices] for name, values in cache.arrays.items()}
        return batch | _unreadable([cache.unreadable.get(i) for i in indices.tolist()])

    def targets(self) -> dict[str, np.ndarray]:
        """Returns the targets of all examples, stacked along the first axis, without decoding images."""
        return dict(self._targets)

    @functools.cached_property
    def _targets(self) -> dict[str, np.ndarray]:  # tasks, folds and checks ask for them
        rows = [targets_of(self.examples, i) for i in range(len(self))]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def describe(self, index: int) -> str:
        """Returns a name of the example for messages: its file if it has one, else its index."""
        examples = self.examples
        while isinstance(examples, Subset):
            examples, index = examples.examples, int(examples.indices[index])
        return examples.describe(index) if hasattr(examples, "describe") else f"example {index} of {self.name}"

    def _decode(self, stored: bytes, rng: np.random.Generator | None) -> np.ndarray:
        channels = self.image_shape[-1]
        if self.crop is None:
            return decoding.decode(stored, channels, self.exif)
        # No dataset has targets yet that would have to be cropped like the image, so the box is not used.
        if rng is None:
            return self.crop.for_evaluation(stored, channels)[0]
        return self.crop.for_training(stored, channels, rng)[0]

    def _read_or_replace(self, index: int, rng: np.random.Generator | None = None) -> tuple[Example, str | None]:
        """Returns the example, and what is wrong with the one that it replaces, if any."""
        if not self.skip_unreadable:
            return self.read(index, rng), None
        wrong = None
        for distance in range(len(self)):
            try:
                return self.read((index + distance) % len(self), rng), wrong
            except UndecodableError as error:
                wrong = wrong or str(error)
        raise DataError(f"no example of {self.name} can be decoded, such as: {wrong}")

    def check_unreadable(self, found: Collection[str]) -> None:
        """Checks the share of examples that were replaced.

        Args:
          found: what is wrong with each of them.

        Raises:
          DataError: it is above `max_unreadable`.
        """
        if len(found) > self.max_unreadable * len(self):
            raise DataError(
                f"{len(found)} of the {len(self)} examples of {self.name} cannot be decoded, more than a share of "
                f"{self.max_unreadable:g}, such as: {'; '.join(sorted(found)[:3])}. Repair them, or raise "
                f"config.dataset.max_unreadable."
            )


def _as_target(name: str, value: Any) -> np.ndarray:
    """Returns a target as the device takes it: floats as float32, long integers as int32, all others as they are."""
    value = np.asarray(value)
    if name in (VALID, UNREADABLE):
        raise ValueError(f"a target is called {name!r}, which batches use themselves; give it another name")
    if value.dtype.kind not in "buif":
        raise ValueError(f"its {name} is of {value.dtype}; expected numbers")
    if value.dtype.kind == "f":
        return value.astype(np.float32)
    if value.dtype.kind in "ui" and value.dtype.itemsize >= 4:
        converted = value.astype(np.int32)
        if (converted != value).any():
            raise ValueError(f"its {name} holds integers that int32 cannot hold")
        return converted
    return value


def _stack(read: list[tuple[Example, str | None]]) -> dict[str, Any]:
    examples, replaced = zip(*read, strict=True)
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]} | _unreadable(replaced)


def _unreadable(replaced: Sequence[str | None]) -> dict[str, Any]:
    rows = [(row, name) for row, name in enumerate(replaced) if name is not None]
    return {UNREADABLE: rows} if rows else {}


def targets_of(examples: Sequence[Mapping[str, Any]], index: int) -> dict[str, Any]:
    """Returns the targets of an example, without reading its image if the source supports this."""
    if hasattr(examples, "targets"):
        return examples.targets(index)
    return {name: value for name, value in examples[index].items() if name != "image"}


class Subset(Sequence):
    """The examples of a sequence at given indices, in that order."""

    def __init__(self, examples: Sequence[Mapping[str, Any]], indices: np.ndarray):
        self.examples, self.indices = examples, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.examples[int(self.indices[index])]

    def targets(self, index: int) -> dict[str, Any]:
        """Returns the targets of an example, see `targets_of`."""
        return targets_of(self.examples, int(self.indices[index]))


class _Relabeled(Subset):
    """All examples of a sequence, with new labels."""

    def __init__(self, examples: Sequence[Mapping[str, Any]], new_labels: Sequence[int]):
        super().__init__(examples, np.arange(len(examples)))
        self._new_labels = new_labels

    def _relabel(self, example: Mapping[str, Any]) -> dict[str, Any]:
        label = int(example["label"])
        if not 0 <= label < len(self._new_labels):
            raise ValueError(f"its label is {label}; expected 0 to {len(self._new_labels) - 1}")
        return {**example, "label": self._new_labels[label]}

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._relabel(super().__getitem__(index))

    def targets(self, index: int) -> dict[str, Any]:
        """Returns the targets of an example, see `targets_of`."""
        return self._relabel(super().targets(index))


class Sum(Sequence):
    """The concatenation of several sequences."""

    def __init__(self, parts: Sequence[Sequence[Mapping[str, Any]]]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, index: int) -> tuple[Sequence[Mapping[str, Any]], int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[part], int(index - (self._ends[part - 1] if part else 0))

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        part, index = self._locate(index)
        return part[index]

    def targets(self, index: int) -> dict[str, Any]:
        """Returns the targets of an example, see `targets_of`."""
        return targets_of(*self._locate(index))


class _Cache:
    """The examples of a small split. If two threads store the same example, both write the same values.

    Args:
      size: the number of examples.
      example: one of them, for names, shapes and dtypes.
    """

    def __init__(self, size: int, example: Example):
        self.arrays = {name: np.empty((size, *value.shape), value.dtype) for name, value in example.items()}
        self.unreadable: dict[int, str] = {}
        self.known = np.zeros(size, bool)

    def put(self, index: int, example: Example, replaced: str | None) -> None:
        """Stores an example, and what is wrong with the one that it replaces, if any."""
        for name, value in example.items():
            if value.dtype != self.arrays[name].dtype:
                raise DataError(
                    f"the {name} of example {index} is {value.dtype}, that of others {self.arrays[name].dtype}; store "
                    f"all of them alike."
                )
            self.arrays[name][index] = value
        if replaced is not None:
            self.unreadable[int(index)] = replaced
        self.known[index] = True  # last, because a reader must not see it before its arrays


def hold_out(split: Split, count: int | float) -> tuple[Split, Split]:
    """Splits off `count` random examples, always the same ones; a `count` below 1 is a share of all examples.

    If the examples name patients, all examples of a patient are held out or none, so that there may be a few more.

    Returns:
      The other examples, and the held-out examples.

    Raises:
      DataError: `count` is not a share and not between 1 and the number of examples - 1, or nothing would be left.
    """
    count = max(1, round(count * len(split))) if 0 < count < 1 else count
    if not 0 < count < len(split):
        raise DataError(
            f"cannot hold out {count} of the {len(split)} examples of {split.name}; expected 1 to {len(split) - 1}, or "
            f"a share such as config.dataset.held_out=0.1."
        )
    if not split.has(PATIENT):
        order = np.random.default_rng(HELD_OUT_SEED).permutation(len(split))
        return split.subset(np.sort(order[count:])), split.subset(np.sort(order[:count]))
    _, patient, sizes = np.unique(split.targets()[PATIENT], return_inverse=True, return_counts=True)
    order = np.random.default_rng(HELD_OUT_SEED).permutation(len(sizes))
    chosen = order[: np.searchsorted(np.cumsum(sizes[order]), count) + 1]
    held_out = np.isin(patient, chosen)
    if held_out.all():
        raise DataError(f"holding out {count} examples of {split.name} by patient leaves none; hold out fewer.")
    return split.subset(np.flatnonzero(~held_out)), split.subset(np.flatnonzero(held_out))


def make_folds(split: Split, count: int) -> list[np.ndarray]:
    """Divides a split into parts for cross-validation, always in the same way.

    The classes have about equal shares in all parts, if each example has one class. If the examples name patients, all
    examples of a patient are in one part.

    Args:
      split: the examples.
      count: the number of parts, at least 2.

    Returns:
      The indices of each part's examples, in increasing order.

    Raises:
      DataError: there are fewer patients, or examples of every class, than parts.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    targets = split.targets()
    classes = targets.get("label", np.zeros(len(split), int))
    if classes.ndim != 1 or classes.dtype.kind not in "ui":
        classes = np.zeros(len(split), int)
    patients = targets.get(PATIENT)
    if patients is not None and len(np.unique(patients)) < count:
        found = len(np.unique(patients))
        raise DataError(f"{split.name} has {found} patients; expected at least {count}, one per fold.")
    divide = StratifiedKFold if patients is None else StratifiedGroupKFold
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a class with fewer examples than folds
            folds = divide(count, shuffle=True, random_state=HELD_OUT_SEED).split(classes, classes, patients)
            return [np.sort(part) for _, part in folds]
    except ValueError as error:
        raise DataError(f"{split.name} cannot be divided into {count} folds: {error}") from error
