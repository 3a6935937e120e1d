"""SqueezeNext (Gholami et al. 2018, arXiv 1803.10615), as in the authors' Caffe files (amirgholami/SqueezeNext)."""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import jax
from flax import linen as nn

from squeeze_jax.errors import ModelError
from squeeze_jax.models import layers
from squeeze_jax.models.convnet import SMALL_STEM, PooledConvNet, Stage

STEM_FILTERS = 64
STAGE_FILTERS = (32, 64, 128, 256)
LAST_FILTERS = 128
DEEPEST = 100  # blocks of a stage; an untrusted file may ask for any number
NARROWEST, WIDEST = 0.125, 16.0  # a block has at least 4 filters, of which a reduction leaves a quarter


class Block(NamedTuple):
    """The settings of a SqueezeNext block, see `SqueezeNextBlock`."""

    filters: int
    stride: int
    is_first: bool
    vertical: bool


class SqueezeNextBlock(nn.Module):
    """Two 1x1 reductions, a separated 3x3 convolution and a 1x1 expansion around a shortcut (Figure 2 of the paper).

    In the authors' networks ReLU also follows the expansion and the convolution of the shortcut.

    Attributes:
      filters: output channels.
      stride: the stride of the first convolution and of the shortcut.
      is_first: the shortcut is a 1x1 convolution, as in the first block of a stage.
      vertical: the 3x1 convolution comes before the 1x3 one.
      groups: groups of the first reduction and of both halves of the 3x3 convolution.
      reduce_shortcut: compute the block from the convolved shortcut instead of from the input.
    """

    filters: int
    stride: int
    is_first: bool
    vertical: bool
    groups: int
    reduce_shortcut: bool

    @nn.compact
    def __call__(self, x: jax.Array, block: layers.ConvBlock) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, height / stride, width / stride, filters)."""
        half, stride = self.filters // 2, self.stride
        y = x
        if self.is_first:
            x = block(x, self.filters, 1, strides=stride, name="shortcut")
            if self.reduce_shortcut:
                y, stride = x, 1
        kernels = [(3, 1), (1, 3)] if self.vertical else [(1, 3), (3, 1)]
        y = block(y, half, 1, strides=stride, groups=self.groups, name="reduce1")
        y = block(y, half // 2, 1, name="reduce2")
        y = block(y, half, kernels[0], groups=self.groups, name="first")
        y = block(y, half, kernels[1], groups=self.groups, name="second")
        y = block(y, self.filters, 1, name="expand")
        return nn.relu(x + y)


class SqueezeNext(PooledConvNet):
    """SqueezeNext with 23 modules (Table 2 of the paper); the defaults are 1.0-SqNxt-23.

    Attributes and errors are those of `PooledConvNet`, and:

    Attributes:
      width: the factor of the filters of the blocks; conv1 and the last convolution keep theirs.
      depths: the number of blocks in each of the four stages.
      groups: see `SqueezeNextBlock`; 2 in 1.0-G-SqNxt-23.
      reduce_shortcut: see `SqueezeNextBlock`; True in version 5.
      stem: "7x7/2", "5x5/2" (version 5), or "3x3/1" for small images, without max pooling after it. Strided stems have
        no padding, as in Caffe.
    """

    ranks = (2,)
    stems: ClassVar = {"7x7/2": (7, 2), "5x5/2": (5, 2), SMALL_STEM: (3, 1)}
    head_has_bias = False

    stem: str = "7x7/2"
    width: float = 1.0
    depths: tuple[int, ...] = (6, 6, 8, 1)
    groups: int = 1
    reduce_shortcut: bool = False

    def __post_init__(self):
        if len(self.depths) != len(STAGE_FILTERS) or not all(0 <= depth <= DEEPEST for depth in self.depths):
            raise ModelError(
                f"depths={self.depths}; expected {len(STAGE_FILTERS)} numbers from 0 to {DEEPEST}, one per stage."
            )
        if not NARROWEST <= self.width <= WIDEST:
            raise ModelError(f"width={self.width}; expected {NARROWEST} to {WIDEST:g}.")
        filters = [round(width * self.width) for width in STAGE_FILTERS]
        channels = {STEM_FILTERS, *(count // part for count in filters for part in (1, 2, 4))}
        if self.groups < 1 or any(count % self.groups for count in channels):
            raise ModelError(
                f"groups={self.groups}; expected a divisor of the channels of every convolution that has groups: "
                f"{', '.join(map(str, sorted(channels)))}."
            )
        super().__post_init__()

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """Yields the name and the settings of each block, in order."""
        number = 0
        for stage, (filters, depth) in enumerate(zip(STAGE_FILTERS, self.depths, strict=True)):
            for i in range(depth):
                number += 1
                is_first = i == 0
                stride = 2 if is_first and stage > 0 else 1
                yield f"block{number}", Block(round(filters * self.width), stride, is_first, vertical=i % 2 == 0)

    def _feature_maps(self, x: jax.Array, block: layers.ConvBlock, positions: jax.Array | None) -> dict[str, jax.Array]:
        kernel, stride = self.stems[self.stem]
        padding = "SAME" if stride == 1 else "VALID"
        maps = {}
        x = maps["conv1"] = block(x, STEM_FILTERS, kernel, strides=stride, padding=padding, name="conv1")
        if self.stem != SMALL_STEM:
            x = maps["pool1"] = layers.MaxPool(name="pool1")(x)
        for name, settings in self.blocks():
            unit = SqueezeNextBlock(*settings, self.groups, self.reduce_shortcut, name=name)
            x = maps[name] = unit(x, block)
        maps["conv_last"] = block(x, LAST_FILTERS, 1, name="conv_last")
        return maps

    def stages(self) -> Iterator[Stage]:
        kernel, stride = self.stems[self.stem]
        yield Stage("conv1", kernel, stride, padding=kernel // 2 if stride == 1 else 0)
        if self.stem != SMALL_STEM:
            yield Stage("pool1", layers.POOL_WINDOW, layers.POOL_STRIDE, rounding="ceil")
        for name, settings in self.blocks():
            # The stride is in 1x1 convolutions, before the 3x3 window.
            yield Stage(f"{name}/reduce1", 1, settings.stride)
            yield Stage(f"{name}/first", 3, 1, 1)
