"""The state of a training run: everything that its course depends on."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from squeeze_jax.models.layers import parameter_dtype
from squeeze_jax.models.squeezenet import SqueezeNet


class TrainState(flax.struct.PyTreeNode):
    """All of it is saved in a checkpoint.

    Attributes:
      step: int32, updates made so far.
      params: trained parameters.
      batch_stats: running statistics of batch norm; empty without it.
      opt_state: of the optimizer.
      ema: averaged "params" and "batch_stats"; empty where averaging is off.
      window: sums of the metrics since the last log line; see `empty_window`.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: dict[str, Any]
    window: dict[str, jax.Array]

    def eval_variables(self) -> dict[str, Any]:
        """What `model.apply` evaluates: the averaged weights where averaging is on, else the trained ones."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def empty_window() -> dict[str, jax.Array]:
    """Zeroed sums over the steps ("steps", "*_norm") and examples (the others) of a logging window."""
    counts = {name: jnp.zeros((), jnp.int32) for name in ("steps", "examples", "top1", "top5")}
    sums = {name: jnp.zeros(()) for name in ("loss", "gradient_norm", "parameter_norm", "update_norm")}
    return counts | sums


def create_state(
    model: SqueezeNet,
    optimizer: optax.GradientTransformation,
    input_shape: tuple[int, ...],
    seed: jax.Array | int,
    *,
    use_ema: bool,
) -> TrainState:
    """Initialises a run; a pure function, to be compiled.

    Args:
      model: the network.
      optimizer: its optimizer.
      input_shape: (*spatial, channels) of one preprocessed image.
      seed: of the initial weights, int ().
      use_ema: whether to keep averaged weights.
    """
    variables = model.init(jax.random.key(seed), jnp.zeros((1, *input_shape)))
    params = variables["params"]
    # Flax starts running statistics in float32, whatever the network's dtype.
    dtype = parameter_dtype(model.dtype)
    batch_stats = jax.tree.map(lambda leaf: leaf.astype(dtype), variables.get("batch_stats", {}))
    averaged = {"params": params, "batch_stats": batch_stats}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        # A copy: one buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, averaged) if use_ema else {},
        window=empty_window(),
    )


def all_finite(state: TrainState) -> bool:
    """No leaf of the state holds a NaN or an infinity; read on the host, where a checkpoint needs the values anyway."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    return all(np.isfinite(leaf).all() for leaf in leaves)
