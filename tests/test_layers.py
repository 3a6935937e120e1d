"""The CPU branches of convolution and pooling against the plain lax formulation: outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from squeeze_jax.models import layers


def close(function, reference, *arguments):
    """Both give the same value and, for a random cotangent, the same gradients."""
    value, pull_back = jax.vjp(jax.jit(function), *arguments)
    expected, expected_pull_back = jax.vjp(jax.jit(reference), *arguments)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=value.shape), value.dtype)
    for gradient, wanted in zip(pull_back(cotangent), expected_pull_back(cotangent), strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-5 * max(1, abs(wanted).max()))


@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [
        ((2, 5, 7, 12), 1, 1),
        ((2, 4, 3, 5, 9), 1, 1),
        ((2, 4, 3, 5, 9), 3, 1),
        ((2, 4, 3, 5, 9), 2, 1),
        ((1, 4, 3, 5, 9), 3, 1),
        ((2, 1, 1, 1, 9), 3, 1),
        ((2, 6, 7, 5, 1), 3, 2),
        ((2, 9, 8, 10, 1), 7, 2),
        ((1, 9, 8, 10, 1), 7, 2),
    ],
)
def test_convolution(shape, size, stride):
    rng = np.random.default_rng(0)
    rank = len(shape) - 2
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size,) * rank + (shape[-1], 7)), jnp.float32)
    spatial = "DHW"[-rank:]
    options = {"dimension_numbers": (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")}
    padding = "SAME" if stride == 1 else "VALID"

    def reference(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (stride,) * rank, padding, **options)

    close(lambda x, kernel: layers._convolve(x, kernel, (stride,) * rank, padding, **options), reference, x, kernel)


@pytest.mark.parametrize(
    ("shape", "kernel", "groups", "strides", "padding"),
    [
        ((2, 5, 8, 6), (3, 3), 6, (1, 1), "SAME"),
        ((2, 9, 8, 6), (5, 5), 6, (2, 2), [(2, 2), (2, 2)]),
        ((2, 5, 6, 4, 6), (3, 3, 3), 6, (2, 2, 2), [(1, 1)] * 3),
        ((2, 5, 8, 6), (3, 1), 2, (1, 1), "SAME"),
        ((2, 5, 8, 6), (1, 1), 3, (2, 2), "VALID"),
        ((2, 5, 8, 60), (3, 3), 2, (1, 1), "SAME"),
        ((2, 2, 2, 6), (3, 3), 1, (1, 1), "SAME"),
        ((2, 4, 3, 6), (3, 3), 1, (2, 2), [(1, 1), (1, 1)]),
        ((2, 2, 9, 6), (3, 1), 1, (1, 1), "SAME"),
        ((2, 1, 1, 6), (3, 3), 2, (1, 1), "SAME"),
    ],
)
def test_grouped_convolution_and_kernels_larger_than_the_map(shape, kernel, groups, strides, padding):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(*kernel, shape[-1] // groups, 6)), jnp.float32)
    spatial = "DHW"[-len(kernel) :]
    options = {"dimension_numbers": (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"), "feature_group_count": groups}

    def reference(x, weights):
        return jax.lax.conv_general_dilated(x, weights, strides, padding, **options)

    close(lambda x, weights: layers._convolve(x, weights, strides, padding, **options), reference, x, weights)


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_padded_max_pooling_is_pytorchs(size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, size, size, 3)), jnp.float32)
    close(
        lambda x: layers.MaxPool("floor", padding=1).apply({}, x),
        lambda x: nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)]),
        x,
    )


@pytest.mark.parametrize("pooling", ["ceil", "floor"])
@pytest.mark.parametrize("shape", [(2, 8, 9, 3), (1, 3, 12, 2), (2, 5, 6, 7, 4)])
@pytest.mark.parametrize("ties", [False, True])
def test_max_pooling(shape, pooling, ties):
    rng = np.random.default_rng(0)
    # After a ReLU ties are the rule, and the gradient must choose the same cell of them.
    x = rng.integers(0, 3, shape) if ties else rng.normal(size=shape)
    padding = [(0, max(0, (layers.pooled_size(n, pooling) - 1) * 2 + 3 - n)) for n in shape[1:-1]]
    rank = len(shape) - 2

    def reference(x):
        return nn.max_pool(x, (3,) * rank, (2,) * rank, padding)

    close(lambda x: layers.MaxPool(pooling).apply({}, x), reference, jnp.asarray(x, jnp.float32))


def test_max_pooling_keeps_nan():
    x = jnp.zeros((1, 5, 5, 1)).at[0, 0, 0, 0].set(jnp.nan)
    pooled = jax.jit(lambda x: layers.MaxPool().apply({}, x))(x)
    np.testing.assert_array_equal(jnp.isnan(pooled).ravel(), [True, False, False, False])
