"""The Fire module of SqueezeNet and the simplified one of SqueezeNodule-Net."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from squeeze_jax.models import layers


class Fire(nn.Module):
    """Squeeze by 1x1 convolutions, expand by 1x1 and 3x3 ones (Iandola et al. 2016, section 3.2).

    Attributes:
      squeeze: s1x1, filters of the squeeze convolution.
      expand1x1: e1x1, filters of the 1x1 expand branch.
      expand3x3: e3x3, filters of the 3x3 expand branch; the output is `[1x1, 3x3]` along the channels, as in Caffe.
      bypass: "none"; "identity" adds the input to the output; "conv" adds a 1x1 convolution of it, with ReLU (the
        complex bypass of Figure 2, songhan/SqueezeNet-Generator).
      use_batch_norm: normalise after every convolution.
      dtype: of the computation.
      axis_name: the mapped axis that batch statistics are averaged over (pmap only).

    Raises:
      ValueError: a filter count below 1, or more squeeze filters than expand filters.
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

    Attributes are those of `Fire`, less `expand1x1`.
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
    """Raises ValueError unless all widths are at least 1 and `squeeze` is at most the sum of the expand widths.

    A squeeze ratio of 1.0 is legal: Figure 3a of the paper uses it.
    """
    for name, width in {"squeeze": squeeze, **expand}.items():
        if width < 1:
            raise ValueError(f"a Fire module got {name}={width}; the smallest legal width is 1.")
    if squeeze > sum(expand.values()):
        raise ValueError(
            f"a Fire module got squeeze={squeeze}, more than its {sum(expand.values())} expand filters; "
            f"the squeeze ratio lies between 0 (excluded) and 1."
        )


def _conv_block(fire: Fire | SimplifiedFire, train: bool):
    return functools.partial(
        layers.conv_block,
        train=train,
        use_batch_norm=fire.use_batch_norm,
        dtype=fire.dtype,
        axis_name=fire.axis_name,
    )


def _add_bypass(fire: Fire | SimplifiedFire, block, x: jax.Array, expanded: jax.Array) -> jax.Array:
    if fire.bypass == "none":
        return expanded
    if fire.bypass == "identity":
        return expanded + x
    if fire.bypass == "conv":
        return expanded + block(x, expanded.shape[-1], 1, name="bypass1x1")
    raise ValueError(f"a Fire module got bypass={fire.bypass!r}; expected 'none', 'identity' or 'conv'.")
