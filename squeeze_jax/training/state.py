"""The state of a training run."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from squeeze_jax.models.layers import parameter_dtype


class TrainState(flax.struct.PyTreeNode):
    """The complete state of a run; all of it is saved in checkpoints.

    Attributes:
      step: int32, the number of updates so far.
      params: the trained parameters.
      batch_stats: the running statistics of batch norm; empty without batch norm.
      opt_state: the state of the optimizer.
      ema: the averaged "params" and "batch_stats"; empty if averaging is off.
      window: totals since the last log line: the number of "steps", the task's "sums", and the summed "norms" of
        gradients, parameters and updates.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: dict[str, Any]
    window: dict[str, Any]

    def eval_variables(self) -> dict[str, Any]:
        """Returns the variables for evaluation: the averaged weights if averaging is on, else the trained ones."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


NORMS = ("gradient_norm", "parameter_norm", "update_norm")


def empty_window(sums: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """Returns a window with zero steps.

    Args:
      sums: shapes and dtypes of the task's sums.
    """
    return {
        "steps": jnp.zeros((), jnp.int32),
        "sums": jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), sums),
        "norms": {name: jnp.zeros(()) for name in NORMS},
    }


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    input_shape: tuple[int, ...],
    sums: dict[str, jax.ShapeDtypeStruct],
    seed: jax.Array | int,
    *,
    use_ema: bool,
) -> TrainState:
    """Creates the initial state of a run; a pure function for jit.

    Args:
      model: the network.
      optimizer: its optimizer.
      input_shape: (*spatial, channels) of one preprocessed image.
      sums: shapes and dtypes of the task's sums.
      seed: the seed of the initial weights, an int or an int array of shape ().
      use_ema: whether to keep averaged weights.
    """
    variables = model.init(jax.random.key(seed), jnp.zeros((1, *input_shape)))
    params = variables["params"]
    # Flax creates running statistics in float32, whatever the network's dtype.
    dtype = parameter_dtype(model.dtype)
    batch_stats = jax.tree.map(lambda leaf: leaf.astype(dtype), variables.get("batch_stats", {}))
    averaged = {"params": params, "batch_stats": batch_stats}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        # A copy, because one buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, averaged) if use_ema else {},
        window=empty_window(sums),
    )
