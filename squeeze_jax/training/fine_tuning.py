"""Starts a run from existing weights instead of random ones."""

import logging
import pathlib

import flax.traverse_util
import jax
import numpy as np
from flax import linen as nn

from squeeze_jax.errors import ConfigError
from squeeze_jax.models.variables import differences
from squeeze_jax.network import Network, load
from squeeze_jax.training.state import TrainState

logger = logging.getLogger(__name__)


def start_from(
    state: TrainState, model: nn.Module, source: str | pathlib.Path, *, new_head: bool
) -> tuple[TrainState, Network]:
    """Replaces the weights of a new state by those of a workdir or a weight file.

    Args:
      state: a state with random weights.
      model: the network of the state.
      source: see `load`.
      new_head: keep the random weights of the last layer, for example for a different number of classes.

    Returns:
      The state, whose weights are NumPy arrays, and the network that they were taken from.

    Raises:
      ConfigError: weights are missing, unexpected or of another shape; the message has one line per array.
    """
    network = load(source)
    fresh = flax.traverse_util.flatten_dict({"params": state.params, "batch_stats": state.batch_stats}, sep="/")
    found = flax.traverse_util.flatten_dict(network.variables, sep="/")
    head = {name for name in fresh | found if name.startswith(f"params/{model.head}/")}
    kept = head if new_head else set()
    wanted = {name: leaf.shape for name, leaf in fresh.items() if name not in kept}
    given = {name: leaf.shape for name, leaf in found.items() if name not in kept}
    if wanted != given:
        lines = differences(wanted, given)
        differs = {name for name, _ in wanted.items() ^ given.items()}
        hint = "\nSet config.init_new_head=True to reinitialise the last layer." if differs <= head else ""
        raise ConfigError(
            f"config.init_from={str(source)!r} does not fit the model (- expected, + found):\n{lines}{hint}"
        )
    for name in sorted(kept & fresh.keys()):
        logger.info("%s of shape %s is initialised at random, not taken from %s", name, fresh[name].shape, source)
    logger.info("%d weight arrays are taken from %s", len(given), source)
    merged = {
        name: np.asarray(fresh[name] if name in kept else found[name], leaf.dtype) for name, leaf in fresh.items()
    }
    variables = {"params": {}, "batch_stats": {}} | flax.traverse_util.unflatten_dict(merged, sep="/")
    # A copy, because one buffer cannot be donated twice.
    ema = jax.tree.map(np.copy, variables) if state.ema else {}
    return state.replace(params=variables["params"], batch_stats=variables["batch_stats"], ema=ema), network
