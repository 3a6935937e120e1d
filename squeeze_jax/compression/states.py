"""The inputs of one layer after another, for all images, in a network and in its quantized copy.

Those of a few hundred images take gigabytes. Only the smallest of every few are kept, on disk; the layers between are
computed again for each batch. The narrow layers of SqueezeNet, MobileNetV2 and the like make that a small part.
"""

import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from squeeze_jax.compression.on_disk import DiskArray
from squeeze_jax.compression.segments import SegmentedForward

BATCH = 32
WINDOW = 3  # the smallest of this many consecutive states is kept

Images = np.ndarray | DiskArray  # uint8 (images, *image_shape)
State = tuple[jax.Array, ...]


def filled_batches(images: Images) -> Iterator[tuple[np.ndarray, int]]:
    """Yields batches of BATCH images and the number of them that count; the last batch is filled up."""
    for first in range(0, len(images), BATCH):
        part = images[first : first + BATCH]
        yield np.resize(part, (BATCH, *part.shape[1:])), len(part)


class States:
    """The states of both networks before each layer, see `SegmentedForward`; one pass over the layers in order."""

    def __init__(
        self,
        forward: SegmentedForward,
        preprocess: Callable[[np.ndarray], jax.Array],
        images: Images,
        folder: pathlib.Path | None = None,
    ) -> None:
        """Starts before the first layer.

        Args:
          forward: the network.
          preprocess: turns a batch of raw images into inputs of the network.
          images: raw images, uint8 (images, *image_shape).
          folder: the folder whose disk is used, see `DiskArray`.
        """
        self._forward, self._preprocess, self._images, self._folder = forward, preprocess, images, folder
        self._places = _places(forward)
        self._kept: list[list[DiskArray]] = []  # of the original and the quantized network
        self._last = -1  # the layer before which they are

    def before(self, layer: int, original: Any, quantized: Any) -> Iterator[tuple[int, State, State]]:
        """Yields the states of each batch before a layer, which must not lie before an earlier call's.

        Args:
          layer: the index of the layer.
          original: the variables of the original network.
          quantized: those of the quantized network; layers that earlier calls asked for must not have changed since
            the next one was asked for.

        Yields:
          The number of images of the batch that count, and the states of the original and the quantized network.
        """
        keeps = layer in self._places
        shapes = self._forward.state_shapes(layer)
        new = [[DiskArray(s.shape[1:], s.dtype, self._folder) for s in shapes] for _ in range(2 * keeps)]
        for first in range(0, len(self._images), BATCH):
            rows = slice(first, first + BATCH)
            if self._kept:
                pair = [tuple(array[rows] for array in arrays) for arrays in self._kept]
            else:
                pair = [(self._preprocess(next(filled_batches(self._images[rows]))[0]),)] * 2
            for index in range(self._last + 1, layer + 1):
                pair = [self._forward.run(index, *each) for each in zip((original, quantized), pair, strict=True)]
            for arrays, state in zip(new, pair, strict=False):
                for array, values in zip(arrays, state, strict=True):
                    array.append(np.asarray(values))
            yield min(BATCH, len(self._images) - first), *pair
        if keeps:
            self._kept, self._last = new, layer

    @staticmethod
    def disk_bytes(forward: SegmentedForward, images: int) -> int:
        """Returns the most bytes that the states of so many images take on disk: those kept, and the next ones."""
        sizes = [_bytes(forward, place) for place in _places(forward)]
        largest = max(before + after for before, after in zip([0, *sizes], sizes, strict=False))
        return 2 * largest * -(-images // BATCH)


def _places(forward: SegmentedForward) -> list[int]:
    """Returns the layers before which states are kept."""
    layers = range(len(forward.layers))
    return [min(layers[i : i + WINDOW], key=lambda layer: _bytes(forward, layer)) for i in layers[::WINDOW]]


def _bytes(forward: SegmentedForward, layer: int) -> int:
    """Returns the bytes of the state of one batch before a layer."""
    return sum(math.prod(state.shape) * state.dtype.itemsize for state in forward.state_shapes(layer))
