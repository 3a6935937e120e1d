"""Magnitude pruning as an optimizer wrapper (Han et al. 2015, arXiv 1506.02626; Zhu and Gupta 2017, arXiv 1710.01878).

The masks are part of the optimizer's state. Gradients are masked before the optimizer sees them, and its updates are
masked again, because weight decay, momentum and Muon move weights whose gradient is zero.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from squeeze_jax.errors import ConfigError
from squeeze_jax.models.variables import kernels

# The `layer_densities` of Table 1 of the SqueezeNet paper. The table has 0.33 for fire8/expand3x3, but its number of
# parameters and the released network have 0.30.
SQUEEZENET_TABLE_1 = (
    ("fire[89]/expand3x3/kernel", 0.30),
    ("expand3x3/kernel", 0.33),
    ("fire[68]/expand1x1/kernel", 0.50),
    ("fire[79]/squeeze1x1/kernel", 0.50),
    ("conv10/kernel", 0.20),
)


class PruningState(NamedTuple):
    """The state of a pruned optimizer.

    Attributes:
      count: int32 (), the number of updates so far.
      masks: for each kernel, bool of its shape; False for pruned weights, which are zero.
      inner: the state of the wrapped optimizer.
    """

    count: jax.Array
    masks: Any
    inner: optax.OptState

    def project(self, params: Any) -> Any:
        """Returns the parameters with pruned weights set to zero."""
        return _masked(params, self.masks)

    def density(self) -> float:
        """Returns the fraction of the kernel weights that are not pruned."""
        masks = jax.tree.leaves(jax.device_get(self.masks))
        return sum(map(np.count_nonzero, masks)) / sum(map(np.size, masks))


@dataclasses.dataclass(frozen=True)
class PruningPlan:
    """Which weights are pruned when; the fields are those of `config.pruning`, with durations in steps."""

    density: float
    scope: str = "layer"
    layer_densities: Sequence[tuple[str, float]] = ()
    schedule: str = "cubic"
    start: int = 0
    end: int = 0
    every: int = 1
    release: int = 0
    keep_zeros: bool = False

    @property
    def steps(self) -> np.ndarray:
        """The numbers of updates after which weights are pruned: every `every` steps after `start`, and at `end`."""
        return np.append(np.arange(self.start + self.every, self.end, self.every), self.end)

    def densities(self, final: float) -> np.ndarray:
        """Returns the density at each of the `steps`, float64; the last one is `final`.

        "cubic" is equation 1 of Zhu and Gupta: fast at first, when many weights are redundant, then slower. "geometric"
        removes the same fraction of the remaining weights each time, like the rounds of Han et al.
        """
        progress = (self.steps - self.start) / max(1, self.end - self.start)
        return 1 - (1 - final) * (1 - (1 - progress) ** 3) if self.schedule == "cubic" else final**progress

    def groups(self, shapes: dict[tuple[str, ...], tuple[int, ...]]) -> list[tuple[list[tuple[str, ...]], float]]:
        """Returns the kernels whose weights are ranked together, and the final density of each group.

        Args:
          shapes: the shapes of the kernels, by path.
        """
        groups: list[tuple[list[tuple[str, ...]], float]] = []
        together: list[tuple[str, ...]] = []
        for path in shapes:
            name = "/".join(path)
            own = next((density for pattern, density in self.layer_densities if re.search(pattern, name)), None)
            if own is None and self.scope == "global":
                together.append(path)
            else:
                groups.append(([path], self.density if own is None else own))
        return [*groups, (together, self.density)] if together else groups


def prune(inner: optax.GradientTransformation, plan: PruningPlan) -> optax.GradientTransformation:
    """Wraps an optimizer so that it prunes the weights of smallest magnitude, and keeps pruned weights at zero.

    After an update of one of the plan's steps, round(density * size) weights of each group are left, fewer if zeros of
    the initial weights were kept. Pruned weights never return, except after `plan.release` updates, when all weights
    are trained again, starting from zero (Dense-Sparse-Dense, Han et al. 2017, arXiv 1607.04381).

    Args:
      inner: the optimizer.
      plan: which weights are pruned when.

    Returns:
      An optimizer with a `PruningState`. For a pruned weight, parameter + update is exactly zero.

    Raises:
      ConfigError: when the optimizer is initialized, if a pattern of `plan.layer_densities` matches no kernel.
    """
    steps = plan.steps

    def init(params: Any) -> PruningState:
        found = kernels(params)
        for pattern, _ in plan.layer_densities:
            if not any(re.search(pattern, "/".join(path)) for path in found):
                names = ", ".join(map("/".join, found))
                raise ConfigError(
                    f"config.pruning.layer_densities: {pattern!r} matches no kernel; expected part of one of {names}."
                )
        masks = {path: leaf != 0 if plan.keep_zeros else jnp.ones(leaf.shape, bool) for path, leaf in found.items()}
        return PruningState(jnp.zeros((), jnp.int32), flax.traverse_util.unflatten_dict(masks), inner.init(params))

    def pruned(params: Any, masks: Any, index: jax.Array) -> Any:
        weights, masks = kernels(params), flax.traverse_util.flatten_dict(masks)
        for paths, density in plan.groups({path: leaf.shape for path, leaf in weights.items()}):
            size = sum(weights[path].size for path in paths)
            counts = jnp.asarray(np.rint(size * plan.densities(density)), jnp.int32)
            kept = _largest([weights[path] for path in paths], [masks[path] for path in paths], counts[index])
            masks |= dict(zip(paths, kept, strict=True))
        return flax.traverse_util.unflatten_dict(masks)

    def update(gradients: Any, state: PruningState, params: Any) -> tuple[Any, PruningState]:
        updates, inner_state = inner.update(_masked(gradients, state.masks), state.inner, params)
        count = state.count + 1
        index = jnp.minimum(jnp.searchsorted(steps, count), len(steps) - 1)
        masks = jax.lax.cond(
            jnp.asarray(steps)[index] == count,
            lambda: pruned(optax.apply_updates(params, updates), state.masks, index),
            lambda: state.masks,
        )
        leaves, weights = flax.traverse_util.flatten_dict(updates), kernels(params)
        for path, mask in flax.traverse_util.flatten_dict(masks).items():
            leaves[path] = jnp.where(mask, leaves[path], -weights[path])
        if plan.release:
            masks = jax.tree.map(lambda mask: mask | (count >= plan.release), masks)
        return flax.traverse_util.unflatten_dict(leaves), PruningState(count, masks, inner_state)

    return optax.GradientTransformation(init, update)


def _largest(weights: list[jax.Array], masks: list[jax.Array], count: jax.Array) -> list[jax.Array]:
    """Returns masks of the `count` weights of largest magnitude, ranked together; pruned weights stay pruned."""
    magnitudes = [jnp.where(mask, jnp.abs(w), -1).ravel() for w, mask in zip(weights, masks, strict=True)]
    order = jnp.argsort(jnp.concatenate(magnitudes))
    rank = jnp.zeros(order.shape, jnp.int32).at[order].set(jnp.arange(len(order), dtype=jnp.int32))
    borders = np.cumsum([math.prod(w.shape) for w in weights])[:-1]
    parts = jnp.split(rank >= len(order) - count, borders)
    return [part.reshape(mask.shape) & mask for part, mask in zip(parts, masks, strict=True)]


def _masked(tree: Any, masks: Any) -> Any:
    """Returns a tree of parameters or gradients with zeros where a mask is False."""
    leaves = flax.traverse_util.flatten_dict(tree)
    for path, mask in flax.traverse_util.flatten_dict(masks).items():
        leaves[path] = jnp.where(mask, leaves[path], 0)
    return flax.traverse_util.unflatten_dict(leaves)
