"""The Fire module of SqueezeNet and the simplified Fire module of SqueezeNodule-Net."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from squeeze_jax.errors import ModelError
from squeeze_jax.models import layers


class Fire(nn.Module):
    """A squeeze layer of 1x1 convolutions and an expand layer of 1x1 and 3x3 ones (Iandola et al. 2016, section 3.2).

    Attributes:
      squeeze: s1x1, the number of squeeze filters.
      expand1x1: e1x1, the number of 1x1 expand filters.
      expand3x3: e3x3, the number of 3x3 expand filters; the output channels are `[1x1, 3x3]`, as in Caffe.
      bypass: "none"; "identity" adds the input to the output; "conv" adds a 1x1 convolution of the input, with ReLU
        (the complex bypass of Figure 2, songhan/SqueezeNet-Generator).
      use_batch_norm: whether batch normalization follows every convolution.
      dtype: dtype of the computation.
      axis_name: the mapped axis that batch statistics are averaged over (pmap only).

    Raises:
      ModelError: a filter count is below 1, or there are more squeeze filters than expand filters.
    """

    squeeze: int
    expand1x1: int
    expand3x3: int
    bypass: str = "none"
    use_batch_norm: bool = False
    dtype: str = "float32"
    axis_name: str | None = None

    def __post_init__(self):
        check_widths(squeeze=self.squeeze, expand1x1=self.expand1x1, expand3x3=self.expand3x3)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps (batch, *spatial, channels) to (batch, *spatial, expand1x1 + expand3x3)."""
        block = _conv_block(self, train)
        squeezed = block(x, self.squeeze, 1, name="squeeze1x1")
        expanded = jnp.concatenate(
            [
                block(squeezed, self.expand1x1, 1, name="expand1x1"),
                block(squeezed, self.expand3x3, 3, name="expand3x3"),
            ],
            axis=-1,
        )
        return _add_bypass(self, block, x, expanded)


class SimplifiedFire(nn.Module):
    """A Fire module without its 1x1 expand branch (SqueezeNodule-Net, Tsivgoulis et al. 2022).

    The attributes and errors are those of `Fire`, without `expand1x1`.
    """

    squeeze: int
    expand3x3: int
    bypass: str = "none"
    use_batch_norm: bool = False
    dtype: str = "float32"
    axis_name: str | None = None

    def __post_init__(self):
        check_widths(squeeze=self.squeeze, expand3x3=self.expand3x3)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps (batch, *spatial, channels) to (batch, *spatial, expand3x3)."""
        block = _conv_block(self, train)
        squeezed = block(x, self.squeeze, 1, name="squeeze1x1")
        expanded = block(squeezed, self.expand3x3, 3, name="expand3x3")
        return _add_bypass(self, block, x, expanded)


def check_widths(*, squeeze: int, **expand: int) -> None:
    """Checks the filter counts of a Fire module. A squeeze ratio of 1.0 is valid: Figure 3a of the paper uses it.

    Args:
      squeeze: the number of squeeze filters.
      **expand: the number of filters of each expand branch.

    Raises:
      ModelError: a width is below 1, or `squeeze` is larger than the sum of the expand widths.
    """
    for name, width in {"squeeze": squeeze, **expand}.items():
        if width < 1:
            raise ModelError(f"a Fire module got {name}={width}; expected at least 1.")
    if squeeze > sum(expand.values()):
        raise ModelError(
            f"a Fire module got squeeze={squeeze}, more than its {sum(expand.values())} expand filters; "
            f"expected a squeeze ratio with 0 < ratio <= 1."
        )


def _conv_block(fire: Fire | SimplifiedFire, train: bool) -> layers.ConvBlock:
    return layers.ConvBlock(fire.use_batch_norm, fire.dtype, fire.axis_name, train)


def _add_bypass(fire: Fire | SimplifiedFire, block: layers.ConvBlock, x: jax.Array, expanded: jax.Array) -> jax.Array:
    if fire.bypass == "none":
        return expanded
    if fire.bypass == "identity":
        return expanded + x
    if fire.bypass == "conv":
        return expanded + block(x, expanded.shape[-1], 1, name="bypass1x1")
    raise ModelError(f"a Fire module got bypass={fire.bypass!r}; expected 'none', 'identity' or 'conv'.")
