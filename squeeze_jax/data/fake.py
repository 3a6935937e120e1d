"""Random images that are not stored in files, to measure a training step or a network alone."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from squeeze_jax.data.identity import Identity, StoredSplit
from squeeze_jax.errors import DataError

SIZES = {"train": 51_200, "validation": 1_000, "test": 1_000}
_NAME = re.compile(r"fake/(\d+(?:x\d+)+)/(\d+)")


class Fake:
    """A dataset such as `fake/224x224x3/1000`: images of that shape, in 1000 classes, the same every time.

    Args:
      name: "fake/", the shape of the images, "/" and the number of classes.

    Raises:
      DataError: the name is not of that form.
    """

    version = "1.0.0"
    notes = ()
    preparation: ClassVar = {}

    def __init__(self, name: str):
        match = _NAME.fullmatch(name)
        if match is None:
            raise DataError(
                f"{name!r} is not a fake dataset; expected a shape and a number of classes, such as fake/32x32x3/10"
            )
        self.image_shape = tuple(map(int, match[1].split("x")))
        self.class_names = tuple(map(str, range(int(match[2]))))
        self.split_sizes = SIZES
        self.group_names: dict[str, tuple[str, ...]] = {}

    def identity(self, splits: Iterable[str]) -> Identity:
        """Returns what tells these splits from changed ones, see `sources.Source`."""
        return Identity(self.class_names, {split: StoredSplit(SIZES[split]) for split in splits})

    def examples(self, split: str) -> Sequence[dict[str, Any]]:
        """Returns the examples of a split: dicts of "image" (uint8) and "label"."""
        return _Noise(SIZES[split], self.image_shape, len(self.class_names))


class _Noise(Sequence):
    """Each image is a window of one random block, so that creating an image costs no more than copying it."""

    STRIDE = 61

    def __init__(self, size: int, image_shape: tuple[int, ...], num_classes: int):
        self._size = size
        self._shape = image_shape
        self._num_classes = num_classes
        rng = np.random.default_rng(0)
        self._block = rng.integers(0, 256, np.prod(image_shape) + self.STRIDE * size, dtype=np.uint8)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        start = index * self.STRIDE
        image = self._block[start : start + np.prod(self._shape)].reshape(self._shape)
        return {"image": image, **self.targets(index)}

    def targets(self, index: int) -> dict[str, Any]:
        return {"label": index % self._num_classes}
