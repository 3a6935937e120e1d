"""The layers of all networks in the family: convolution blocks, pooling, dropout.

All of them take `(batch, *spatial, channels)` with any number of spatial axes, so the same module serves as a 2-D and
as a 3-D network.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# Caffe's `xavier` filler scales by the fan-in, U(+-sqrt(3 / fan_in)), which JAX calls lecun_uniform
# (BVLC/caffe include/caffe/filler.hpp; forresti/SqueezeNet train_val.prototxt).
CONV_INIT = nn.initializers.lecun_uniform()
HEAD_INIT = nn.initializers.normal(0.01)

BATCH_NORM_MOMENTUM = 0.9

LARGEST_FILLED_WINDOW = 512  # values in the window of a grouped convolution, over all channels

POOL_WINDOW = 3
POOL_STRIDE = 2


def parameter_dtype(dtype: str) -> jnp.dtype:
    """Returns the dtype of the parameters: float64 for float64 networks, else float32 (also for bfloat16)."""
    return jnp.dtype("float64") if dtype == "float64" else jnp.dtype("float32")


def conv(
    features: int,
    kernel_size: Sequence[int],
    *,
    name: str,
    dtype: str,
    strides: int = 1,
    padding: str | int = "SAME",
    groups: int = 1,
    use_bias: bool = True,
    kernel_init: Callable = CONV_INIT,
) -> nn.Conv:
    """Makes a convolution with this project's initializers, and faster formulations on CPU.

    Args:
      features: output channels.
      kernel_size: one size per spatial axis.
      name: the name of the module.
      dtype: dtype of the computation.
      strides: the stride along every axis.
      padding: "SAME" (kernel_size // 2 at every side, at any stride, as in PyTorch), "VALID" or the padding of every
        side.
      groups: the number of groups that input and output channels are split into; as many as there are channels make a
        depthwise convolution.
      use_bias: whether to add a bias.
      kernel_init: the initializer of the kernel.
    """
    if padding == "SAME" and strides > 1:
        sides = [(size // 2, size // 2) for size in kernel_size]
        padding = sides if any(map(any, sides)) else "VALID"
    return nn.Conv(
        features,
        tuple(kernel_size),
        strides=strides,
        padding=padding,
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=jnp.dtype(dtype),
        param_dtype=parameter_dtype(dtype),
        conv_general_dilated=_convolve,
        name=name,
    )


def _by_platform(on_cpu: Callable, elsewhere: Callable, *arguments: jax.Array) -> jax.Array:
    """Selects one of two formulations of an operation when the program is lowered.

    So a program exported for a GPU on a machine without one contains only the plain operation.
    """
    return jax.lax.platform_dependent(*arguments, cpu=on_cpu, default=elsewhere)


def _convolve(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **options: Any) -> jax.Array:
    """Computes `lax.conv_general_dilated`; on CPU, some of them in another formulation.

    These are grouped and depthwise convolutions, 1x1 and 3-D kernels, and kernels larger than the map.
    """
    size, stride, is_3d = kernel.shape[0], strides[0], x.ndim == 5
    groups = options.get("feature_group_count", 1)
    is_cubic = set(kernel.shape[:-2]) == {size} and set(strides) == {stride}
    keeps_size = padding == "SAME" and stride == 1 and size % 2 == 1
    plain = functools.partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
    if groups > 1:
        is_depthwise = groups == x.shape[-1] == kernel.shape[-1]
        on_cpu = _convolve_depthwise if is_depthwise else functools.partial(_convolve_groups, options=options)
        return _by_platform(functools.partial(on_cpu, strides=strides, padding=padding), plain, x, kernel)
    unfolded = functools.partial(_convolve_unfolded, strides=strides, padding=padding)
    if any(map(operator.gt, kernel.shape, jax.eval_shape(plain, x, kernel).shape[1:-1])):
        return _by_platform(unfolded, plain, x, kernel)
    if not (is_cubic and (keeps_size or padding == "VALID") and (size == 1 or is_3d)):
        return plain(x, kernel)
    # A batch of one volume is faster unfolded.
    planes = functools.partial(_convolve_planes, stride=stride, padding=padding)
    return _by_platform(unfolded if size == 1 or x.shape[0] == 1 else planes, plain, x, kernel)


def _convolve_depthwise(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any) -> jax.Array:
    """Computes a depthwise convolution as a sum, over the cells of the window, of shifted images times a weight.

    XLA's CPU backend computes it as a dense convolution with a kernel of mostly zeros, which takes many times as long
    (benchmarks/layers.py).
    """
    columns = _unfold(x, kernel.shape[:-2], strides, padding)
    cells = zip(columns, kernel.reshape(-1, kernel.shape[-1]), strict=True)
    return functools.reduce(operator.add, (values * weight for values, weight in cells))


def _convolve_groups(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, options: dict[str, Any]
) -> jax.Array:
    """Computes a grouped convolution as one convolution per group, because XLA's own is as slow as a depthwise one.

    A small kernel is filled up with zeros instead, which costs less than dividing and joining the maps.
    """
    groups, channels = options["feature_group_count"], kernel.shape[-2]
    each = options | {"feature_group_count": 1}
    kernels = jnp.split(kernel, groups, axis=-1)
    if math.prod(kernel.shape[:-2]) * x.shape[-1] <= LARGEST_FILLED_WINDOW:
        rest = [(0, 0)] * (kernel.ndim - 2)
        filled = [
            jnp.pad(part, [*rest, (i * channels, (groups - 1 - i) * channels), (0, 0)])
            for i, part in enumerate(kernels)
        ]
        return _convolve(x, jnp.concatenate(filled, axis=-1), strides, padding, **each)
    pairs = zip(jnp.split(x, groups, axis=-1), kernels, strict=True)
    return jnp.concatenate([_convolve(*pair, strides, padding, **each) for pair in pairs], axis=-1)


def _convolve_unfolded(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any) -> jax.Array:
    """Computes a convolution as one matrix product of the unfolded input patches and the kernel (im2col).

    On XLA's CPU backend this is faster than the convolution for large maps and in 3-D (benchmarks/layers.py). If the
    kernel is larger than its input or output, XLA loops over all products, which takes 48 times as long for a 3x3
    kernel on maps of 2x2 with 512 channels.
    """
    columns = jnp.concatenate(_unfold(x, kernel.shape[:-2], strides, padding), axis=-1)
    y = columns.reshape(-1, columns.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return y.reshape(*columns.shape[:-1], -1)


def _convolve_planes(x: jax.Array, kernel: jax.Array, stride: int, padding: str) -> jax.Array:
    """Computes a 3-D convolution as a 2-D convolution of each plane, with the neighboring planes as extra channels.

    On XLA's CPU backend the 3-D convolution takes more than twice as long (benchmarks/layers.py).
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
    return y.reshape(x.shape[0], depth, *y.shape[1:])


def _unfold(x: jax.Array, window: Sequence[int], strides: Sequence[int], padding: Any) -> list[jax.Array]:
    """Returns what `_taps` returns of the padded maps."""
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:-1], window, strides, padding)
    return _taps(jnp.pad(x, [(0, 0), *padding, (0, 0)]), window, strides)


def _taps(x: jax.Array, window: Sequence[int], strides: Sequence[int]) -> list[jax.Array]:
    """Returns, for each cell of a window in row-major order, the values of all windows at that cell."""
    extents = [
        (length - size) // stride * stride + 1
        for length, size, stride in zip(x.shape[1:-1], window, strides, strict=True)
    ]
    return [
        jax.lax.slice(
            x,
            (0, *offset, 0),
            (x.shape[0], *map(operator.add, offset, extents), x.shape[-1]),
            (1, *strides, 1),
        )
        for offset in itertools.product(*map(range, window))
    ]


@dataclasses.dataclass(frozen=True)
class ConvBlock:
    """Makes blocks of convolution, optional batch normalization, and activation; call it inside a compact method.

    Attributes:
      use_batch_norm: add batch normalization after the convolution, which then has no bias, because the normalization
        would cancel it.
      dtype: dtype of the computation.
      axis_name: the mapped axis that batch statistics are averaged over (pmap only).
      train: normalize by the statistics of the batch instead of the running ones.
      activation: the activation function.
    """

    use_batch_norm: bool
    dtype: str
    axis_name: str | None
    train: bool
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    def __call__(
        self,
        x: jax.Array,
        features: int,
        kernel: int | Sequence[int],
        *,
        name: str,
        strides: int = 1,
        padding: str | int = "SAME",
        groups: int = 1,
        activate: bool = True,
    ) -> jax.Array:
        """Maps (batch, *spatial, channels) to (batch, *spatial / strides, features), less the border if "VALID".

        The submodules are `name` and `name + "_bn"` of the calling module. `activate=False` leaves the activation out.
        """
        x = conv(
            features,
            (kernel,) * (x.ndim - 2) if isinstance(kernel, int) else kernel,
            strides=strides,
            padding=padding,
            groups=groups,
            use_bias=not self.use_batch_norm,
            dtype=self.dtype,
            name=name,
        )(x)
        if self.use_batch_norm:
            x = nn.BatchNorm(
                use_running_average=not self.train,
                momentum=BATCH_NORM_MOMENTUM,
                dtype=jnp.dtype(self.dtype),
                param_dtype=parameter_dtype(self.dtype),
                axis_name=self.axis_name,
                name=f"{name}_bn",
            )(x)
        return self.activation(x) if activate else x


def pooled_size(size: int, pooling: str) -> int:
    """Returns the length of an axis after 3x3 max pooling with stride 2; zero or less if the window does not fit.

    Args:
      size: the length before pooling.
      pooling: "ceil" or "floor", see `MaxPool`.
    """
    span = size - POOL_WINDOW
    return (math.ceil(span / POOL_STRIDE) if pooling == "ceil" else span // POOL_STRIDE) + 1


class MaxPool(nn.Module):
    """Max pooling with window 3 and stride 2.

    Attributes:
      pooling: how the output size is rounded: "ceil" (Caffe, torchvision) or "floor" (Keras 'valid').
      padding: the number of cells added at every side; they never win.
    """

    pooling: str = "ceil"
    padding: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        options = {"pooling": self.pooling, "padding": self.padding}
        on_cpu, plain = (functools.partial(pool, **options) for pool in (_max_pool_by_slices, _max_pool))
        return _by_platform(on_cpu, plain, x)


def _max_pool(x: jax.Array, pooling: str, padding: int) -> jax.Array:
    rank = x.ndim - 2
    margins = [(before, max(0, after)) for before, after in _pool_margins(x, pooling, padding)]
    return nn.max_pool(x, (POOL_WINDOW,) * rank, (POOL_STRIDE,) * rank, margins)


def _pool_margins(x: jax.Array, pooling: str, padding: int) -> list[tuple[int, int]]:
    """Returns the cells before and after each spatial axis that make the windows whole; negative ones are cut off."""
    return [
        (padding, (pooled_size(size + 2 * padding, pooling) - 1) * POOL_STRIDE + POOL_WINDOW - size - padding)
        for size in x.shape[1:-1]
    ]


def _max_pool_by_slices(x: jax.Array, pooling: str, padding: int) -> jax.Array:
    """Computes the same as a maximum of slices, and keeps the winner of each window for the gradient.

    On XLA's CPU backend a window reduction takes several times as long (benchmarks/layers.py).
    """
    margins = [(before, after, 0) for before, after in _pool_margins(x, pooling, padding)]
    return _pool_whole_windows(jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(0, 0, 0), *margins, (0, 0, 0)]))


@jax.custom_vjp
def _pool_whole_windows(x: jax.Array) -> jax.Array:
    return _maximum_and_winner(x)[0]


def _maximum_and_winner(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the maximum of each window, and the index of its cell as uint8; of equal cells the first, as in lax."""
    rank = x.ndim - 2
    first, *others = _taps(x, (POOL_WINDOW,) * rank, (POOL_STRIDE,) * rank)
    maximum, winner = first, jnp.zeros(first.shape, jnp.uint8)
    for cell, value in enumerate(others, start=1):
        wins = (value > maximum) | jnp.isnan(value)
        maximum, winner = jnp.where(wins, value, maximum), jnp.where(wins, jnp.uint8(cell), winner)
    return maximum, winner


def _pool_backward(winner: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    """Adds up, for every cell, the gradients of the windows that it won.

    Along an axis, an odd cell is the middle of one window. An even cell is the first of a window and the last of the
    previous one, either of which may be outside.
    """
    rank, windows = winner.ndim - 2, winner.shape[1:-1]
    border = [(0, 0), *[(1, 1)] * rank, (0, 0)]
    winner = jnp.pad(winner, border, constant_values=POOL_WINDOW**rank)
    gradient = jnp.pad(gradient, border)
    gathered: dict[tuple[int, ...], jax.Array] = {}  # key: whether the cell is odd, one entry per axis
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
        parts.append(jnp.pad(pairs, [(0, 0), *ends, (0, 0)]))  # its position in each (even, odd) pair of cells
    interleaved = functools.reduce(operator.add, parts)
    interleaved = interleaved.reshape(len(winner), *(POOL_STRIDE * (count + 1) for count in windows), -1)
    return (interleaved[(slice(None), *[slice(length - 1) for length in interleaved.shape[1:-1]])],)


_pool_whole_windows.defvjp(_maximum_and_winner, _pool_backward)


class Dropout(nn.Module):
    """Dropout whose mask depends on an example's position in the global batch, not on its device.

    So the masks are the same for any number of devices, under jit and pmap. The random key is the `dropout` stream;
    `positions`, int (batch,), defaults to 0, 1, 2, ...

    Attributes:
      rate: the probability of dropping a value; 0 <= rate < 1.
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
            pairs = jax.random.bits(key, (*cells, -(-channels // 2)), jnp.uint32)  # 16 bits per value are half the work
            bits = jax.lax.bitcast_convert_type(pairs, jnp.uint16).reshape(*cells, -1)[..., :channels]
            return jnp.where(bits < jnp.uint16(keep * 2**16), example / keep, 0)

        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), positions)
        return jax.vmap(drop)(keys, x).astype(x.dtype)
