"""Starts a run from existing weights instead of random ones."""

import dataclasses
import logging
import pathlib
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from squeeze_jax.compression.sharing import share
from squeeze_jax.config import CONFIG_FILE, as_stored, complete, read, validate
from squeeze_jax.errors import ConfigError
from squeeze_jax.files import user_path
from squeeze_jax.models.variables import differences
from squeeze_jax.network import load
from squeeze_jax.training.state import TrainState

logger = logging.getLogger(__name__)

# Attributes of a network that say nothing about what its weights mean, or that a new head changes.
FREE = ("num_classes", "dropout_rate", "dtype", "axis_name", "head_relu", "parent", "name")


def with_weights(config: ConfigDict, workdir: str | pathlib.Path | None = None) -> ConfigDict:
    """Returns a config with what it leaves to the weights of `init_from`: their preprocessing and their network.

    Args:
      config: the config.
      workdir: of the run; if it has begun already, its config counts, and the weights are not read again.

    Raises:
      ConfigError: the config normalizes pixels in another way than the weights were trained with. Other errors are
        those of `config.read` and `load`.
    """
    validate(config)
    if workdir is not None and (user_path(workdir) / CONFIG_FILE).exists():
        return as_stored(config, read(user_path(workdir))[0])
    if not config.init_from:
        return complete(config)
    weights = complete(load(config.init_from).config)
    for key in ("mean", "std"):
        ours, theirs = config.dataset[key], weights.dataset[key]
        average = (sum(theirs) / len(theirs),)  # for a gray image or volume
        if ours is not None and ours not in (theirs, average) and not len({*ours, *theirs}) == 1:
            raise ConfigError(
                f"config.dataset.{key}={ours}, but the weights of config.init_from={config.init_from!r} were trained "
                f"with {theirs}; leave config.dataset.{key} out to use theirs."
            )
    return complete(config, weights)


def start_from(
    state: TrainState,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    source: str | pathlib.Path,
    *,
    new_head: bool,
    sharing: ConfigDict | None = None,
) -> TrainState:
    """Replaces the weights of a new state by those of a workdir or a weight file.

    The kernels of a 2-D network are inflated for a 3-D one, see `inflate`.

    Args:
      state: a state with random weights.
      model: the network of the state.
      optimizer: its optimizer, which is initialized again: its state may depend on the weights.
      source: see `load`.
      new_head: keep the random weights of the last layer, for example for a different number of classes.
      sharing: the `sharing` section of the config; if its bits are positive, the weights of each layer are clustered.

    Returns:
      The state; its weights are NumPy arrays.

    Raises:
      ConfigError: weights are missing, unexpected or of another shape; the message has one line per array.
    """
    network = load(source)
    _warn_of_differences(network.model, model, source)
    fresh = flax.traverse_util.flatten_dict({"params": state.params, "batch_stats": state.batch_stats}, sep="/")
    found = flax.traverse_util.flatten_dict(network.variables, sep="/")
    planar = [name for name, leaf in found.items() if name in fresh and fresh[name].ndim == leaf.ndim + 1 == 5]
    for name in planar:
        found[name] = inflate(np.asarray(found[name]), fresh[name].shape)
    if planar:
        logger.info("%d kernels are inflated from 2-D to 3-D", len(planar))
    head = {name for name in fresh | found if name.startswith(f"params/{model.head}/")}
    kept = head if new_head else set()
    wanted = {name: leaf.shape for name, leaf in fresh.items() if name not in kept}
    given = {name: leaf.shape for name, leaf in found.items() if name not in kept}
    if wanted != given:
        lines = differences(wanted, given)
        differs = {name for name, _ in wanted.items() ^ given.items()}
        hint = "\nSet config.init_new_head=True to reinitialize the last layer." if differs <= head else ""
        raise ConfigError(
            f"config.init_from={str(source)!r} does not fit the model (- expected, + found):\n{lines}{hint}"
        )
    for name in sorted(kept & fresh.keys()):
        logger.info("%s of shape %s is initialized at random, not taken from %s", name, fresh[name].shape, source)
    logger.info("%d weight arrays are taken from %s", len(given), source)
    merged = {
        name: np.asarray(fresh[name] if name in kept else found[name], leaf.dtype) for name, leaf in fresh.items()
    }
    variables = {"params": {}, "batch_stats": {}} | flax.traverse_util.unflatten_dict(merged, sep="/")
    if sharing and sharing.bits:
        variables = clustered(variables, sharing)
    # A copy, because one buffer cannot be donated twice.
    ema = jax.tree.map(np.copy, variables) if state.ema else {}
    params, opt_state = variables["params"], jax.device_get(optimizer.init(variables["params"]))
    return state.replace(params=params, batch_stats=variables["batch_stats"], opt_state=opt_state, ema=ema)


def _warn_of_differences(before: nn.Module, now: nn.Module, source: str | pathlib.Path) -> None:
    """Warns of what a network computes in another way than the one whose weights it takes, although all shapes fit."""
    if type(before) is not type(now):
        return
    names = [field.name for field in dataclasses.fields(now) if field.name not in FREE]
    pairs = {name: (getattr(before, name), getattr(now, name)) for name in names}
    differing = [f"{name}={new!r} instead of {old!r}" for name, (old, new) in pairs.items() if old != new]
    if differing:
        logger.warning("the weights of %s were trained with another network: now %s", source, ", ".join(differing))


def inflate(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Makes a 3-D kernel from a 2-D one (Carreira and Zisserman 2017, arXiv 1705.07750, section 2.4).

    It is repeated along the depth and divided by the depth, so that a volume that is constant along its depth gives
    what each of its slices gives, but for padding. If the volumes have 1 channel, the 3 input channels of a kernel for
    color images are added up.

    Args:
      kernel: (height, width, inputs, outputs).
      shape: of the 3-D kernel, (depth, height, width, inputs, outputs).
    """
    if kernel.shape[2] == 3 and shape[3] == 1:
        kernel = kernel.sum(axis=2, keepdims=True)
    return np.repeat(kernel[None] / shape[0], shape[0], axis=0)


def clustered(variables: dict[str, Any], sharing: ConfigDict) -> dict[str, Any]:
    """Returns variables with the weights of each layer clustered, in the same dtypes.

    Args:
      variables: the variables, NumPy arrays.
      sharing: the `sharing` section of the config.
    """
    shared = share(variables, sharing.bits, sharing.initialisation)
    logger.info("the weights of each layer share at most %d values besides 0", (1 << sharing.bits) - 1)
    return jax.tree.map(lambda leaf, before: leaf.astype(before.dtype), shared, variables)
