"""Networks of inverted residuals: MobileNetV2's, and EfficientNet's with squeeze-and-excitation."""

from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from squeeze_jax.models import layers
from squeeze_jax.models.convnet import SMALL_STEM, PooledConvNet, Stage

STEM_FILTERS = 32
LAST_FILTERS = 1280


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a depthwise convolution and a linear 1x1 projection (Sandler et al. 2018, arXiv 1801.04381).

    Attributes:
      features: output channels.
      expansion: channels of the depthwise convolution per input channel; 1 leaves the expansion out.
      kernel: the size of the depthwise convolution.
      stride: its stride. With stride 1 and `features` equal to the input channels, the input is added to the output.
      squeeze_excite: scale each channel by squeeze-and-excitation (Hu et al. 2017, arXiv 1709.01507), with a quarter of
        the block's input channels, as EfficientNet does.
      drop_rate: probability of leaving out the block for an example, where its input is added (stochastic depth, Huang
        et al. 2016, arXiv 1603.09382).
    """

    features: int
    expansion: int
    kernel: int
    stride: int
    squeeze_excite: bool = False
    drop_rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, block: layers.ConvBlock, positions: jax.Array | None) -> jax.Array:
        """Maps (batch, *spatial, channels) to (batch, *spatial / stride, features)."""
        channels = x.shape[-1]
        y, wide = x, channels * self.expansion
        if self.expansion > 1:
            y = block(y, wide, 1, name="expand")
        y = block(y, wide, self.kernel, strides=self.stride, groups=wide, name="depthwise")
        if self.squeeze_excite:
            y = self._scale(y, max(1, channels // 4), block)
        y = block(y, self.features, 1, activate=False, name="project")
        if self.stride > 1 or channels != self.features:
            return y
        kept = jnp.ones((y.shape[0], *(1,) * (y.ndim - 1)), y.dtype)
        drop = layers.Dropout(self.drop_rate, name="drop")
        return x + y * drop(kept, train=block.train, positions=positions)

    def _scale(self, x: jax.Array, squeezed: int, block: layers.ConvBlock) -> jax.Array:
        one = (1,) * (x.ndim - 2)
        scale = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), keepdims=True)
        scale = block.activation(layers.conv(squeezed, one, dtype=block.dtype, name="squeeze")(scale))
        return x * nn.sigmoid(layers.conv(x.shape[-1], one, dtype=block.dtype, name="excite")(scale))


class InvertedResidualNet(PooledConvNet):
    """A stem, inverted residuals and a 1x1 convolution, in 2-D and 3-D.

    Class attributes:
      table: expansion, kernel, filters, number of blocks and stride of the first one, of each stage.
      squeeze_excite: see `InvertedResidual`.
    """

    stems: ClassVar = {"3x3/2": (3, 2), SMALL_STEM: (3, 1)}
    table = ()
    squeeze_excite = False

    dropout_rate: float = 0.2
    stem: str = "3x3/2"

    def _drop_rate(self, share: float) -> float:
        """Returns the drop rate of a block; `share` is the fraction of the blocks before it."""
        return 0.0

    def _blocks(self) -> Iterator[tuple[str, dict[str, Any]]]:
        settings = [
            {"expansion": expansion, "kernel": kernel, "features": features, "stride": stride if i == 0 else 1}
            for expansion, kernel, features, count, stride in self.table
            for i in range(count)
        ]
        for i, of_block in enumerate(settings):
            yield f"block{i + 1}", of_block | {"drop_rate": self._drop_rate(i / len(settings))}

    def _feature_maps(self, x: jax.Array, block: layers.ConvBlock, positions: jax.Array | None) -> dict[str, jax.Array]:
        kernel, stride = self.stems[self.stem]
        maps = {}
        x = maps["conv1"] = block(x, STEM_FILTERS, kernel, strides=stride, name="conv1")
        for name, settings in self._blocks():
            unit = InvertedResidual(**settings, squeeze_excite=self.squeeze_excite, name=name)
            x = maps[name] = unit(x, block, positions)
        maps["conv_last"] = block(x, LAST_FILTERS, 1, name="conv_last")
        return maps

    def stages(self) -> Iterator[Stage]:
        kernel, stride = self.stems[self.stem]
        yield Stage("conv1", kernel, stride, kernel // 2)
        for name, settings in self._blocks():
            yield Stage(name, settings["kernel"], settings["stride"], settings["kernel"] // 2)
