"""ResNet-18 (He et al. 2015, arXiv 1512.03385), as in torchvision."""

from collections.abc import Iterator
from typing import ClassVar

import jax
from flax import linen as nn

from squeeze_jax.models import layers
from squeeze_jax.models.convnet import SMALL_STEM, PooledConvNet, Stage

STEM_FILTERS = 64
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # filters and stride
BLOCKS = 2  # per stage


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and an identity, or a 1x1 convolution where the shape changes (section 3.3, option B).

    Attributes:
      filters: output channels.
      stride: stride of the first convolution and of the shortcut.
    """

    filters: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, block: layers.ConvBlock) -> jax.Array:
        """Maps (batch, *spatial, channels) to (batch, *spatial / stride, filters)."""
        y = block(x, self.filters, 3, strides=self.stride, name="conv1")
        y = block(y, self.filters, 3, activate=False, name="conv2")
        if self.stride > 1 or x.shape[-1] != self.filters:
            x = block(x, self.filters, 1, strides=self.stride, activate=False, name="shortcut")
        return nn.relu(x + y)


class ResNet(PooledConvNet):
    """ResNet-18 (Table 1 of the paper), in 2-D and 3-D. Attributes and errors are those of `PooledConvNet`.

    The stem "3x3/1" has no max pooling after it, as in the paper's networks for CIFAR-10 (section 4.2).
    """

    stems: ClassVar = {"7x7/2": (7, 2), SMALL_STEM: (3, 1)}

    stem: str = "7x7/2"

    def _blocks(self) -> Iterator[tuple[str, int, int]]:
        for stage, (filters, stride) in enumerate(STAGES, start=1):
            for i in range(BLOCKS):
                yield f"stage{stage}_{i}", filters, stride if i == 0 else 1

    def _feature_maps(self, x: jax.Array, block: layers.ConvBlock, positions: jax.Array | None) -> dict[str, jax.Array]:
        kernel, stride = self.stems[self.stem]
        maps = {}
        x = maps["conv1"] = block(x, STEM_FILTERS, kernel, strides=stride, name="conv1")
        if self.stem != SMALL_STEM:
            x = maps["pool1"] = layers.MaxPool("floor", padding=1, name="pool1")(x)
        for name, filters, stride in self._blocks():
            x = maps[name] = ResidualBlock(filters, stride, name=name)(x, block)
        return maps

    def stages(self) -> Iterator[Stage]:
        kernel, stride = self.stems[self.stem]
        yield Stage("conv1", kernel, stride, kernel // 2)
        if self.stem != SMALL_STEM:
            yield Stage("pool1", layers.POOL_WINDOW, layers.POOL_STRIDE, 1)
        for name, _, stride in self._blocks():
            yield Stage(f"{name}/conv1", 3, stride, 1)
            yield Stage(f"{name}/conv2", 3, 1, 1)
