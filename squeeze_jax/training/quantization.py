"""Simulated int8 quantization in training (Jacob et al. 2018, arXiv 1712.05877).

Values are rounded as in an int8 network; gradients pass through the rounding unchanged (straight-through estimator,
Bengio et al. 2013, arXiv 1308.3432).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

LARGEST_INT8 = 127
LEVELS = 255  # steps between the smallest and the largest input


def quantized_kernels(params: Any) -> Any:
    """Returns parameters with all kernels rounded to int8, symmetrically, with one scale per output channel.

    The scale does not change when a following batch norm is folded into the kernel.

    Args:
      params: the parameters; kernels have their output channels in the last axis.
    """

    def quantized(leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 1:
            return leaf
        largest = jnp.abs(leaf).max(tuple(range(leaf.ndim - 1)), keepdims=True)
        scale = jnp.where(largest > 0, largest, 1) / LARGEST_INT8
        return _straight_through(leaf, jnp.round(leaf / scale) * scale)

    return jax.tree.map(quantized, params)


def quantized_inputs(axis_name: str | None = None) -> Any:
    """Returns a context in which the inputs of all convolutions are rounded to 8 bits, with one range per tensor.

    The range is that of the current batch, extended to contain zero, which is represented exactly (it is the padding).

    Args:
      axis_name: the axis of pmap; None under jit.
    """

    def intercept(method: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, nn.Conv) and context.method_name == "__call__":
            args = (_quantized(args[0], axis_name), *args[1:])
        return method(*args, **kwargs)

    return nn.intercept_methods(intercept)


def _quantized(inputs: jax.Array, axis_name: str | None) -> jax.Array:
    # Gradients do not flow through the range, whose reduction over devices has none.
    values = jax.lax.stop_gradient(inputs)
    smallest, largest = jnp.minimum(values.min(), 0), jnp.maximum(values.max(), 0)
    if axis_name:
        smallest, largest = jax.lax.pmin(smallest, axis_name), jax.lax.pmax(largest, axis_name)
    scale = jnp.where(largest > smallest, largest - smallest, 1) / LEVELS
    zero = jnp.round(smallest / scale)
    levels = jnp.clip(jnp.round(values / scale), zero, zero + LEVELS)
    return _straight_through(inputs, levels * scale)


def _straight_through(values: jax.Array, rounded: jax.Array) -> jax.Array:
    return values + jax.lax.stop_gradient(rounded - values)


# Former spellings.
quantised_kernels, quantised_inputs = quantized_kernels, quantized_inputs
