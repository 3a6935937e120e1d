"""ShuffleNetV2 (Ma et al. 2018, arXiv 1807.11164), as in torchvision."""

from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from squeeze_jax.errors import ModelError
from squeeze_jax.models import layers
from squeeze_jax.models.convnet import SMALL_STEM, PooledConvNet, Stage

STEM_FILTERS = 24
BLOCKS = (4, 8, 4)  # of stages 2 to 4
LAST_FILTERS = 1024


class ShuffleUnit(nn.Module):
    """Half of the channels pass through three convolutions, then both halves are interleaved (Figure 3c and d).

    With stride 2, both halves of the output are convolutions of the whole input.

    Attributes:
      features: output channels.
      stride: 1 or 2.
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, block: layers.ConvBlock) -> jax.Array:
        """Maps (batch, *spatial, channels) to (batch, *spatial / stride, features)."""
        half = self.features // 2
        if self.stride == 1:
            kept, x = jnp.split(x, 2, axis=-1)
        else:
            kept = self._depthwise(x, block, "shortcut_depthwise")
            kept = block(kept, half, 1, name="shortcut")
        x = block(x, half, 1, name="conv1")
        x = self._depthwise(x, block, "depthwise")
        x = block(x, half, 1, name="conv2")
        both = jnp.concatenate([kept, x], axis=-1).reshape(*x.shape[:-1], 2, half)
        return both.swapaxes(-1, -2).reshape(*x.shape[:-1], 2 * half)

    def _depthwise(self, x: jax.Array, block: layers.ConvBlock, name: str) -> jax.Array:
        return block(x, x.shape[-1], 3, strides=self.stride, groups=x.shape[-1], activate=False, name=name)


class ShuffleNetV2(PooledConvNet):
    """ShuffleNetV2 (Table 5 of the paper; the defaults are 1x), in 2-D and 3-D.

    Attributes and errors are those of `PooledConvNet`, and:

    Attributes:
      stage_filters: output channels of stages 2 to 4. The stem "3x3/1" has no max pooling after it.
    """

    stems: ClassVar = {"3x3/2": (3, 2), SMALL_STEM: (3, 1)}

    stem: str = "3x3/2"
    stage_filters: tuple[int, ...] = (116, 232, 464)

    def __post_init__(self):
        if len(self.stage_filters) != len(BLOCKS) or any(filters < 2 or filters % 2 for filters in self.stage_filters):
            raise ModelError(f"stage_filters={self.stage_filters}; expected {len(BLOCKS)} even numbers from 2.")
        super().__post_init__()

    def _units(self) -> Iterator[tuple[str, int, int]]:
        for stage, (filters, count) in enumerate(zip(self.stage_filters, BLOCKS, strict=True), start=2):
            for i in range(count):
                yield f"stage{stage}_{i}", filters, 2 if i == 0 else 1

    def _feature_maps(self, x: jax.Array, block: layers.ConvBlock, positions: jax.Array | None) -> dict[str, jax.Array]:
        kernel, stride = self.stems[self.stem]
        maps = {}
        x = maps["conv1"] = block(x, STEM_FILTERS, kernel, strides=stride, name="conv1")
        if self.stem != SMALL_STEM:
            x = maps["pool1"] = layers.MaxPool("floor", padding=1, name="pool1")(x)
        for name, filters, stride in self._units():
            x = maps[name] = ShuffleUnit(filters, stride, name=name)(x, block)
        maps["conv_last"] = block(x, LAST_FILTERS, 1, name="conv_last")
        return maps

    def stages(self) -> Iterator[Stage]:
        kernel, stride = self.stems[self.stem]
        yield Stage("conv1", kernel, stride, kernel // 2)
        if self.stem != SMALL_STEM:
            yield Stage("pool1", layers.POOL_WINDOW, layers.POOL_STRIDE, 1)
        for name, _, stride in self._units():
            yield Stage(name, 3, stride, 1)
