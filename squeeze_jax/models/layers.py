"""The layers every network of the family is made of: convolution blocks, pooling, dropout.

All of them take `(batch, *spatial, channels)` with any number of spatial axes, so that one module is the 2-D and the
3-D network.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

# Caffe's `xavier` filler scales by the fan-in, U(+-sqrt(3 / fan_in)): JAX calls that lecun_uniform
# (BVLC/caffe include/caffe/filler.hpp; forresti/SqueezeNet train_val.prototxt).
CONV_INIT = nn.initializers.lecun_uniform()
HEAD_INIT = nn.initializers.normal(0.01)

BATCH_NORM_MOMENTUM = 0.9

POOL_WINDOW = 3
POOL_STRIDE = 2


def parameter_dtype(dtype: str) -> jnp.dtype:
    """Parameters stay in float32 while bfloat16 computes; only float64 networks hold more."""
    return jnp.dtype("float64") if dtype == "float64" else jnp.dtype("float32")


def conv(
    features: int,
    kernel_size: Sequence[int],
    *,
    name: str,
    dtype: str,
    strides: int = 1,
    padding: str | int = "SAME",
    use_bias: bool = True,
    kernel_init: Callable = CONV_INIT,
) -> nn.Conv:
    """A convolution with this project's initialisers; its rank is the length of `kernel_size`."""
    return nn.Conv(
        features,
        tuple(kernel_size),
        strides=strides,
        padding=padding,
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=jnp.dtype(dtype),
        param_dtype=parameter_dtype(dtype),
        name=name,
    )


def conv_block(
    x: jax.Array,
    features: int,
    kernel: int,
    *,
    name: str,
    train: bool,
    use_batch_norm: bool,
    dtype: str,
    axis_name: str | None,
    strides: int = 1,
    padding: str | int = "SAME",
) -> jax.Array:
    """Convolution, batch normalisation where asked for, ReLU; called inside a compact method.

    The submodules are `name` and `name + "_bn"` of the calling module. With batch norm the convolution has no bias, as
    the normalisation would remove it.
    """
    rank = x.ndim - 2
    x = conv(
        features,
        (kernel,) * rank,
        strides=strides,
        padding=padding,
        use_bias=not use_batch_norm,
        dtype=dtype,
        name=name,
    )(x)
    if use_batch_norm:
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=BATCH_NORM_MOMENTUM,
            dtype=jnp.dtype(dtype),
            param_dtype=parameter_dtype(dtype),
            axis_name=axis_name,
            name=f"{name}_bn",
        )(x)
    return nn.relu(x)


def pooled_size(size: int, pooling: str) -> int:
    """Length of an axis after a 3/2 max pooling; zero or less where the window does not fit."""
    span = size - POOL_WINDOW
    return (math.ceil(span / POOL_STRIDE) if pooling == "ceil" else span // POOL_STRIDE) + 1


class MaxPool(nn.Module):
    """Max pooling 3/2. `pooling` is "ceil" (Caffe, torchvision) or "floor" (Keras 'valid')."""

    pooling: str = "ceil"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = [
            (0, max(0, (pooled_size(size, self.pooling) - 1) * POOL_STRIDE + POOL_WINDOW - size))
            for size in x.shape[1:-1]
        ]
        rank = x.ndim - 2
        return nn.max_pool(x, (POOL_WINDOW,) * rank, (POOL_STRIDE,) * rank, padding)


class Dropout(nn.Module):
    """Dropout whose mask depends on an example's position in the global batch, not on its device.

    That makes one device and many, jit and pmap draw the same masks. The key is the `dropout` stream; `positions`,
    int (batch,), defaults to 0, 1, 2, ...
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, positions: jax.Array | None = None) -> jax.Array:
        if not train or self.rate == 0:
            return x
        if positions is None:
            positions = jnp.arange(x.shape[0])
        keep = 1 - self.rate

        def drop(key: jax.Array, example: jax.Array) -> jax.Array:
            return jnp.where(jax.random.bernoulli(key, keep, example.shape), example / keep, 0)

        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), positions)
        return jax.vmap(drop)(keys, x).astype(x.dtype)
