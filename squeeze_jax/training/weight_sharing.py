"""Training of shared weights (Han et al. 2016, arXiv 1510.00149, section 3.3) as an optimizer wrapper.

The wrapped optimizer sees one vector per kernel, the codebook, instead of the kernel. The gradient of a centroid is the
sum of the gradients of its weights. All weights with the same code get the same update, so they stay bit-identical.
"""

from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from squeeze_jax.models.variables import kernels


class SharingState(NamedTuple):
    """The state of an optimizer of shared weights.

    Attributes:
      codes: for each kernel, uint8 of its shape: the index of each weight in the codebook. Code 0 is the value zero,
        which is not trained.
      inner: the state of the wrapped optimizer.
    """

    codes: Any
    inner: optax.OptState

    def project(self, params: Any) -> Any:
        """Returns the parameters with one value per code, which is needed after averaging.

        Rounding could differ between weights with the same code.
        """
        leaves = flax.traverse_util.flatten_dict(params)
        for path, codes in flax.traverse_util.flatten_dict(self.codes).items():
            leaves[path] = _codebook(leaves[path], codes, 256).at[0].set(0)[codes]
        return flax.traverse_util.unflatten_dict(leaves)


def share_weights(inner: optax.GradientTransformation, bits: int) -> optax.GradientTransformation:
    """Wraps an optimizer so that it trains the centroids of shared weights.

    Args:
      inner: the optimizer, which sees a codebook of shape (2 ** bits,) in the place of each kernel. Muon treats it like
        a bias, and there is no weight decay on it by default.
      bits: the bits per weight, at most 8.

    Returns:
      An optimizer with a `SharingState`. The parameters it is initialized with must have at most 2 ** bits - 1 distinct
      values besides zero in each kernel, see `squeeze_jax.compression.sharing.share`.
    """
    size = 1 << bits

    def init(params: Any) -> SharingState:
        codes = flax.traverse_util.unflatten_dict({path: _codes(leaf, size) for path, leaf in kernels(params).items()})
        return SharingState(codes, inner.init(reduced(params, codes, _codebook)))

    def reduced(tree: Any, codes: Any, reduce: Any) -> Any:
        leaves = flax.traverse_util.flatten_dict(tree)
        for path, of_kernel in flax.traverse_util.flatten_dict(codes).items():
            leaves[path] = reduce(leaves[path], of_kernel, size)
        return flax.traverse_util.unflatten_dict(leaves)

    def update(gradients: Any, state: SharingState, params: Any) -> tuple[Any, SharingState]:
        of_centroids = reduced(gradients, state.codes, _summed)
        updates, inner_state = inner.update(of_centroids, state.inner, reduced(params, state.codes, _codebook))
        # The barrier keeps XLA from computing the update of a centroid again for each of its weights.
        leaves = jax.lax.optimization_barrier(flax.traverse_util.flatten_dict(updates))
        for path, codes in flax.traverse_util.flatten_dict(state.codes).items():
            leaves[path] = leaves[path].at[0].set(0)[codes]
        return flax.traverse_util.unflatten_dict(leaves), SharingState(state.codes, inner_state)

    return optax.GradientTransformation(init, update)


def _codes(kernel: jax.Array, size: int) -> jax.Array:
    """Returns the codes of a kernel with few distinct values, uint8 of its shape; zero has code 0."""
    values = jnp.unique(jnp.append(kernel.ravel(), 0), size=size, fill_value=jnp.inf)
    zero, codes = jnp.searchsorted(values, 0), jnp.searchsorted(values, kernel)
    return jnp.where(codes == zero, 0, codes + (codes < zero)).astype(jnp.uint8)


def _codebook(kernel: jax.Array, codes: jax.Array, size: int) -> jax.Array:
    """Returns the value of each code, (size,); zero for codes that no weight has."""
    return jnp.zeros(size, kernel.dtype).at[codes.ravel()].set(kernel.ravel())


def _summed(gradient: jax.Array, codes: jax.Array, size: int) -> jax.Array:
    """Returns the gradient of each centroid, (size,): the sum over its weights; none for the value zero."""
    return jnp.zeros(size, gradient.dtype).at[codes.ravel()].add(gradient.ravel()).at[0].set(0)
