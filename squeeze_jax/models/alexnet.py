"""AlexNet: torchvision's (Krizhevsky 2014, arXiv 1404.5997), and the grouped original (Krizhevsky et al. 2012)."""

import math
from collections.abc import Callable, Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from squeeze_jax.models import layers
from squeeze_jax.models.convnet import SMALL_STEM, ConvNet, Stage

FILTERS = {False: (64, 192, 384, 256, 256), True: (96, 256, 384, 384, 256)}  # of conv1 to conv5; by `grouped`
KERNELS = (5, 3, 3, 3)  # of conv2 to conv5
GROUPED = (2, 4, 5)  # the convolutions with two groups in the original
POOL_AFTER = (1, 2, 5)
POOLED_SIZE = 6  # cells along each axis that fc6 sees
HIDDEN = 4096

# Local response normalization (section 3.3), with the constants of Caffe's bvlc_alexnet.
NEIGHBORS, ALPHA, BETA = 5, 1e-4, 0.75


class AlexNet(ConvNet):
    """AlexNet, in 2-D and 3-D; the default is torchvision's, with one column and without normalization.

    Attributes:
      num_classes: outputs of fc8; 0 leaves it out, and the output is fc7 (batch, 4096).
      dropout_rate: dropout rate before fc6 and fc7; in the grouped network, before fc7 and fc8.
      grouped: the network of 2012, in the form of Caffe's bvlc_alexnet: two groups in conv2, conv4 and conv5, other
        widths, no padding of conv1, and local response normalization after conv1 and conv2.
      stem: "11x11/4", or "3x3/1" for small images.
      dtype: dtype of the computation: "float32", "bfloat16" (parameters stay float32) or "float64".
      axis_name: unused, because there are no batch statistics.

    Raises:
      ModelError: an attribute is invalid (at construction), or an input is invalid (at the call).
    """

    head = "fc8"
    stems: ClassVar = {"11x11/4": (11, 4), SMALL_STEM: (3, 1)}

    num_classes: int = 1000
    dropout_rate: float = 0.5
    grouped: bool = False
    stem: str = "11x11/4"
    dtype: str = "float32"
    axis_name: str | None = None

    @property
    def _stem_padding(self) -> int:
        if self.stem == SMALL_STEM:
            return 1
        return 0 if self.grouped else 2

    @nn.compact
    def _feature_maps(self, images: jax.Array, train: bool, positions: jax.Array | None) -> dict[str, jax.Array]:
        self._check_images(images)
        block = layers.ConvBlock(False, self.dtype, self.axis_name, train)
        kernel, stride = self.stems[self.stem]
        maps = {}
        x = images.astype(self.dtype)
        for i, filters in enumerate(FILTERS[self.grouped], start=1):
            if i == 1:
                x = block(x, filters, kernel, strides=stride, padding=self._stem_padding, name="conv1")
            else:
                groups = 2 if self.grouped and i in GROUPED else 1
                x = block(x, filters, KERNELS[i - 2], groups=groups, name=f"conv{i}")
            maps[f"conv{i}"] = x
            if self.grouped and i in POOL_AFTER[:2]:
                x = _normalize_locally(x)
            if i in POOL_AFTER:
                x = maps[f"pool{i}"] = layers.MaxPool("ceil" if self.grouped else "floor", name=f"pool{i}")(x)
        x = _average_to(x, POOLED_SIZE)

        def drop(x: jax.Array, layer: int) -> jax.Array:
            return layers.Dropout(self.dropout_rate, name=f"dropout{layer}")(x, train=train, positions=positions)

        for layer in (6, 7):
            x = nn.relu(self._dense(x if self.grouped else drop(x, layer), HIDDEN, f"fc{layer}"))
            maps[f"fc{layer}"] = x
            x = drop(x, layer) if self.grouped else x
        if self.num_classes:
            maps[self.head] = self._dense(x, self.num_classes, self.head, layers.HEAD_INIT)
        spatial = tuple(range(1, images.ndim - 1))
        return {name: x if x.ndim == images.ndim else jnp.expand_dims(x, spatial) for name, x in maps.items()}

    def _dense(self, x: jax.Array, features: int, name: str, init: Callable = layers.CONV_INIT) -> jax.Array:
        """Maps (batch, ...) to (batch, features)."""
        return nn.DenseGeneral(
            features,
            axis=tuple(range(1, x.ndim)),
            kernel_init=init,
            dtype=jnp.dtype(self.dtype),
            param_dtype=layers.parameter_dtype(self.dtype),
            name=name,
        )(x)

    def __call__(self, images: jax.Array, *, train: bool = False, positions: jax.Array | None = None) -> jax.Array:
        """Computes the logits of a batch; arguments, output and errors are those of `PooledConvNet`."""
        *_, x = self._feature_maps(images, train, positions).values()
        return jnp.squeeze(x, tuple(range(1, x.ndim - 1))).astype(layers.parameter_dtype(self.dtype))

    def features(self, images: jax.Array) -> dict[str, jax.Array]:
        """Returns the named feature maps in order of computation, without dropout; fc6 to fc8 have one cell.

        Args:
          images: as in `__call__`.
        """
        return self._feature_maps(images, False, None)

    def stages(self) -> Iterator[Stage]:
        kernel, stride = self.stems[self.stem]
        rounding = "ceil" if self.grouped else "floor"
        yield Stage("conv1", kernel, stride, self._stem_padding)
        yield Stage("pool1", layers.POOL_WINDOW, layers.POOL_STRIDE, rounding=rounding)
        for i, size in enumerate(KERNELS, start=2):
            yield Stage(f"conv{i}", size, 1, size // 2)
            if i in POOL_AFTER:
                yield Stage(f"pool{i}", layers.POOL_WINDOW, layers.POOL_STRIDE, rounding=rounding)


def _normalize_locally(x: jax.Array) -> jax.Array:
    """Divides each value by a power of the mean square of its neighboring channels."""
    margin = NEIGHBORS // 2
    squares = jnp.pad(x * x, [*[(0, 0)] * (x.ndim - 1), (margin, margin)])
    total = sum(squares[..., i : i + x.shape[-1]] for i in range(NEIGHBORS))
    return x * (1 + ALPHA / NEIGHBORS * total) ** -BETA


def _average_to(x: jax.Array, size: int) -> jax.Array:
    """Averages a map to `size` cells along each axis, as PyTorch's AdaptiveAvgPool2d does; small maps are repeated."""
    for axis, length in enumerate(x.shape[1:-1], start=1):
        if length != size:
            shares = np.zeros((size, length))
            for i in range(size):
                cells = slice(i * length // size, math.ceil((i + 1) * length / size))
                shares[i, cells] = 1 / (cells.stop - cells.start)
            x = jnp.moveaxis(jnp.tensordot(x, jnp.asarray(shares, x.dtype), (axis, 1)), -1, axis)
    return x
