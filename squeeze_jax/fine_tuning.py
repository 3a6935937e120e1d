"""Starts a run from weights that exist instead of random ones."""

import logging
import pathlib

import flax.traverse_util
import jax
import numpy as np

from squeeze_jax.config import ConfigError
from squeeze_jax.leaves import differences
from squeeze_jax.loading import load
from squeeze_jax.run import Run
from squeeze_jax.state import TrainState

logger = logging.getLogger(__name__)

HEAD = ("params/conv10/kernel", "params/conv10/bias")


def start_from(state: TrainState, source: str | pathlib.Path, *, new_head: bool) -> tuple[TrainState, Run]:
    """Puts the weights of a workdir or a weight file into a fresh state.

    Args:
      state: with random weights; those of conv10 stay where `new_head` asks for it.
      source: see `load`.
      new_head: the last layer is not taken over, for another number of classes.

    Returns:
      The state, with NumPy arrays in place of the weights, and the network that they come from.

    Raises:
      ConfigError: weights that are missing, left over or of another shape; one line each.
    """
    network = load(source)
    fresh = flax.traverse_util.flatten_dict({"params": state.params, "batch_stats": state.batch_stats}, sep="/")
    found = flax.traverse_util.flatten_dict(network.variables, sep="/")
    kept = set(HEAD) if new_head else set()
    wanted = {name: leaf.shape for name, leaf in fresh.items() if name not in kept}
    given = {name: leaf.shape for name, leaf in found.items() if name not in kept}
    if wanted != given:
        lines = differences(wanted, given)
        differs = {name for name, _ in wanted.items() ^ given.items()}
        hint = "\nconfig.init_new_head=True makes a new last layer." if differs <= set(HEAD) else ""
        raise ConfigError(
            f"config.init_from={str(source)!r} does not fit the model (- expected, + found):\n{lines}{hint}"
        )
    for name in sorted(kept):
        logger.info("a new %s of shape %s; not taken from %s", name, fresh[name].shape, source)
    logger.info("%d arrays of weights are those of %s", len(given), source)
    merged = {
        name: np.asarray(fresh[name] if name in kept else found[name], leaf.dtype) for name, leaf in fresh.items()
    }
    variables = {"params": {}, "batch_stats": {}} | flax.traverse_util.unflatten_dict(merged, sep="/")
    # A copy: one buffer cannot be donated twice.
    ema = jax.tree.map(np.copy, variables) if state.ema else {}
    return state.replace(params=variables["params"], batch_stats=variables["batch_stats"], ema=ema), network
