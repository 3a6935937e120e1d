"""Reduced precision for the biases and for the parameters and statistics of batch norm."""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from squeeze_jax.compression import BIAS_FORMS, NORM_FORMS
from squeeze_jax.errors import ConfigError

LARGEST_INT8 = 127


def round_biases(variables: Mapping[str, Any], form: str) -> tuple[dict, dict[str, float]]:
    """Rounds the biases of convolutions.

    Args:
      variables: the variables of the network.
      form: "float32" (unchanged), "float16" or "int8". With "int8", biases become integer multiples of a step, which is
        the largest absolute bias of the layer divided by 127.

    Returns:
      Variables of the same structure and, for "int8", the step of each array by name ("params/conv1/bias"). All values
      remain float32.

    Raises:
      ConfigError: the form is unknown, or a value is too large for it.
    """
    leaves = flax.traverse_util.flatten_dict(variables, sep="/")
    norms = _norm_layers(leaves)
    biases = [name for name in leaves if name.endswith("/bias") and _layer(name) not in norms]
    if form != "int8":
        return flax.traverse_util.unflatten_dict(_to_float(leaves, biases, form, BIAS_FORMS), sep="/"), {}
    steps = {}
    for name in biases:
        leaves[name], step = round_to_int8(np.asarray(leaves[name]))
        if step:
            steps[name] = step
    return flax.traverse_util.unflatten_dict(leaves, sep="/"), steps


def round_to_int8(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Rounds float32 values to multiples of a step, their largest magnitude divided by 127; returns both.

    Values that are all zero are returned with a step of 0.
    """
    step = np.float32(np.abs(values).max(initial=0) / LARGEST_INT8)
    if not step > 0:
        return values, 0.0
    return np.clip(np.round(values / step), -LARGEST_INT8, LARGEST_INT8).astype(np.float32) * step, float(step)


def round_batch_norm(variables: Mapping[str, Any], form: str) -> dict:
    """Rounds the parameters and statistics of batch norm.

    Args:
      variables: the variables of the network.
      form: "float32" (unchanged) or "float16".

    Returns:
      Variables of the same structure. All values remain float32.

    Raises:
      ConfigError: the form is unknown, or a value is too large for it.
    """
    leaves = flax.traverse_util.flatten_dict(variables, sep="/")
    norms = _norm_layers(leaves)
    names = [name for name in leaves if _layer(name) in norms]
    return flax.traverse_util.unflatten_dict(_to_float(leaves, names, form, NORM_FORMS), sep="/")


def _to_float(leaves: dict[str, Any], names: list[str], form: str, forms: tuple[str, ...]) -> dict[str, Any]:
    if form not in forms:
        raise ConfigError(f"the form {form!r} is unknown; expected one of {', '.join(forms)}.")
    changed = dict(leaves)
    for name in names:
        values = np.asarray(leaves[name])
        if form == "float16" and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise ConfigError(f"{name} holds values that are too large for float16; use float32.")
        changed[name] = values.astype(form).astype(np.float32)
    return changed


def _norm_layers(leaves: dict[str, Any]) -> set[str]:
    return {_layer(name) for name in leaves if name.startswith("batch_stats/")}


def _layer(name: str) -> str:
    """Returns the layer of a variable, such as "fire2/squeeze1x1" for "params/fire2/squeeze1x1/bias"."""
    return name.partition("/")[2].rpartition("/")[0]
