"""The layers every network of the family is made of: convolution blocks, pooling, dropout.

All of them take `(batch, *spatial, channels)` with any number of spatial axes, so that one module is the 2-D and the
3-D network.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

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
        conv_general_dilated=_convolve,
        name=name,
    )


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _convolve(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **options: Any) -> jax.Array:
    """`lax.conv_general_dilated`, but for the branch that 1x1 and 3-D kernels take on CPU."""
    size, stride, is_3d = kernel.shape[0], strides[0], x.ndim == 5
    is_cubic = set(kernel.shape[:-2]) == {size} and set(strides) == {stride}
    keeps_size = padding == "SAME" and stride == 1 and size % 2 == 1
    if _on_cpu() and is_cubic and (keeps_size or padding == "VALID"):
        if size == 1 or (is_3d and len(x) == 1):  # one volume alone is faster unfolded
            return _convolve_unfolded(x, kernel, stride, padding)
        if is_3d:
            return _convolve_planes(x, kernel, stride, padding)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _convolve_unfolded(x: jax.Array, kernel: jax.Array, stride: int, padding: str) -> jax.Array:
    """A convolution as one product of two matrices, one of them what every output cell sees.

    XLA's CPU backend takes longer for the convolution itself on large maps and in 3-D (benchmarks/layers.py).
    """
    size = kernel.shape[0]
    if padding == "SAME":
        x = jnp.pad(x, [(0, 0), *[(size // 2, size // 2)] * (x.ndim - 2), (0, 0)])
    columns = jnp.concatenate(_taps(x, size, stride), axis=-1)
    y = columns.reshape(-1, columns.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return y.reshape(*columns.shape[:-1], -1)


def _convolve_planes(x: jax.Array, kernel: jax.Array, stride: int, padding: str) -> jax.Array:
    """A convolution in 3-D as one in 2-D of each plane, its neighbours before and behind it as further channels.

    XLA's CPU backend takes more than twice as long for the convolution in 3-D (benchmarks/layers.py).
    """
    size = kernel.shape[0]
    if padding == "SAME":
        x = jnp.pad(x, [(0, 0), (size // 2, size // 2), *[(0, 0)] * 3])
    depth = (x.shape[1] - size) // stride + 1
    last = (depth - 1) * stride + 1
    planes = jnp.concatenate([x[:, first : first + last : stride] for first in range(size)], axis=-1)
    y = jax.lax.conv_general_dilated(
        planes.reshape(-1, *planes.shape[2:]),
        jnp.moveaxis(kernel, 0, 2).reshape(size, size, -1, kernel.shape[-1]),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(len(x), depth, *y.shape[1:])


def _taps(x: jax.Array, size: int, stride: int) -> list[jax.Array]:
    """For each cell of a window, in the order of memory: what all windows have there."""
    rank = x.ndim - 2
    extents = [(length - size) // stride * stride + 1 for length in x.shape[1:-1]]
    return [
        jax.lax.slice(
            x,
            (0, *offset, 0),
            (x.shape[0], *map(operator.add, offset, extents), x.shape[-1]),
            (1, *(stride,) * rank, 1),
        )
        for offset in itertools.product(range(size), repeat=rank)
    ]


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
        if _on_cpu():
            return _max_pool_on_cpu(x, self.pooling)
        padding = [
            (0, max(0, (pooled_size(size, self.pooling) - 1) * POOL_STRIDE + POOL_WINDOW - size))
            for size in x.shape[1:-1]
        ]
        rank = x.ndim - 2
        return nn.max_pool(x, (POOL_WINDOW,) * rank, (POOL_STRIDE,) * rank, padding)


def _max_pool_on_cpu(x: jax.Array, pooling: str) -> jax.Array:
    """The same as a maximum of slices, with the winner of each window kept for the gradient.

    XLA's CPU backend takes several times as long with a window reduction (benchmarks/layers.py).
    """
    whole_windows = [
        (0, POOL_STRIDE * (pooled_size(size, pooling) - 1) + POOL_WINDOW - size, 0) for size in x.shape[1:-1]
    ]
    return _pool_whole_windows(jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(0, 0, 0), *whole_windows, (0, 0, 0)]))


@jax.custom_vjp
def _pool_whole_windows(x: jax.Array) -> jax.Array:
    return _maximum_and_winner(x)[0]


def _maximum_and_winner(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maximum of each window, and as uint8 which of its cells that is: the earliest one, as lax has it."""
    first, *others = _taps(x, POOL_WINDOW, POOL_STRIDE)
    maximum, winner = first, jnp.zeros(first.shape, jnp.uint8)
    for cell, value in enumerate(others, start=1):
        wins = (value > maximum) | jnp.isnan(value)
        maximum, winner = jnp.where(wins, value, maximum), jnp.where(wins, jnp.uint8(cell), winner)
    return maximum, winner


def _pool_backward(winner: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    """Every cell gathers from the windows that it won.

    An odd cell of an axis is the middle of one window. An even one is the first of a window and the last of the one
    before, either of which may lie outside.
    """
    rank, windows = winner.ndim - 2, winner.shape[1:-1]
    border = [(0, 0), *[(1, 1)] * rank, (0, 0)]
    winner = jnp.pad(winner, border, constant_values=POOL_WINDOW**rank)
    gradient = jnp.pad(gradient, border)
    gathered: dict[tuple[int, ...], jax.Array] = {}  # by whether a cell is odd, an entry an axis
    for cell, offset in enumerate(itertools.product(range(POOL_WINDOW), repeat=rank)):
        starts = [0 if place == POOL_WINDOW - 1 else 1 for place in offset]
        seen = (slice(None), *[slice(i, i + count + 1) for i, count in zip(starts, windows, strict=True)])
        won = jnp.where(winner[seen] == cell, gradient[seen], 0)
        is_odd = tuple(place % 2 for place in offset)
        gathered[is_odd] = gathered[is_odd] + won if is_odd in gathered else won
    parts = []
    for is_odd, cells in gathered.items():
        pairs = cells.reshape(len(cells), *(n for count in windows for n in (count + 1, 1)), -1)
        ends = (end for odd in is_odd for end in ((0, 0), (odd, 1 - odd)))
        parts.append(jnp.pad(pairs, [(0, 0), *ends, (0, 0)]))  # its place in each pair of an even and an odd cell
    interleaved = functools.reduce(operator.add, parts)
    interleaved = interleaved.reshape(len(winner), *(POOL_STRIDE * (count + 1) for count in windows), -1)
    return (interleaved[(slice(None), *[slice(length - 1) for length in interleaved.shape[1:-1]])],)


_pool_whole_windows.defvjp(_maximum_and_winner, _pool_backward)


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
            *cells, channels = example.shape
            pairs = jax.random.bits(key, (*cells, -(-channels // 2)), jnp.uint32)  # 16 bits a value: half the work
            bits = jax.lax.bitcast_convert_type(pairs, jnp.uint16).reshape(*cells, -1)[..., :channels]
            return jnp.where(bits < jnp.uint16(keep * 2**16), example / keep, 0)

        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), positions)
        return jax.vmap(drop)(keys, x).astype(x.dtype)
