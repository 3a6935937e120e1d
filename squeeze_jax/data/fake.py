"""Random images without a file behind them, to measure a training step or a network alone."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

SIZES = {"train": 51_200, "validation": 1_000, "test": 1_000}
_NAME = re.compile(r"fake/(\d+(?:x\d+)+)/(\d+)")


class Fake:
    """`fake/224x224x3/1000`: images of that shape in that many classes; the same ones every time.

    Raises:
      ValueError: the name is not of that form.
    """

    version = "1.0.0"

    def __init__(self, name: str):
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is no fake dataset; expected a shape and a number of classes: fake/32x32x3/10")
        self.image_shape = tuple(map(int, match[1].split("x")))
        self.class_names = tuple(map(str, range(int(match[2]))))
        self.split_sizes = SIZES

    def examples(self, split: str) -> Sequence[dict[str, Any]]:
        return _Noise(SIZES[split], self.image_shape, len(self.class_names))


class _Noise(Sequence):
    """Pixels are windows of one random block, so that making an image costs no more than copying it."""

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
        return {"image": image, "label": self.label(index)}

    def label(self, index: int) -> int:
        return index % self._num_classes
