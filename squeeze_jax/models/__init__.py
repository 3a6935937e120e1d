"""The registry of networks: `create` makes one by name, `list_models` names them."""

import dataclasses
import difflib
from typing import Any

from squeeze_jax.models.squeezenet import SqueezeNet
from squeeze_jax.models.squeezenodule import SqueezeNoduleNet

_V1_0: dict[str, Any] = {"stem": "7x7/2", "stem_filters": 96, "pool_after": (1, 4, 8)}
_V1_1: dict[str, Any] = {"stem": "3x3/2", "stem_filters": 64, "pool_after": (1, 3, 5)}

_REGISTRY: dict[str, tuple[type[SqueezeNet], dict[str, Any]]] = {
    "squeezenet_v1_0": (SqueezeNet, _V1_0),
    "squeezenet_v1_1": (SqueezeNet, _V1_1),
    "squeezenet_v1_0_simple_bypass": (SqueezeNet, {**_V1_0, "bypass": "simple"}),
    "squeezenet_v1_0_complex_bypass": (SqueezeNet, {**_V1_0, "bypass": "complex"}),
    "squeezenodule_v1": (SqueezeNoduleNet, {**_V1_0, "squeeze_ratio": 0.25}),
    "squeezenodule_v2": (SqueezeNoduleNet, {**_V1_0, "squeeze_ratio": (0.5,) * 6 + (0.25,) * 2}),
}

# What `create` and `config.model` may override: the network's attributes, less those that linen adds to every module
# and the one that belongs to pmap.
OVERRIDES: tuple[str, ...] = tuple(
    field.name for field in dataclasses.fields(SqueezeNet) if field.name not in ("parent", "name", "axis_name")
)


def list_models() -> list[str]:
    """The names that `create` knows, sorted."""
    return sorted(_REGISTRY)


def create(name: str, **overrides: Any) -> SqueezeNet:
    """Makes a network by its name.

    Args:
      name: one of `list_models()`.
      **overrides: attributes of `SqueezeNet` that differ from the named network's.

    Raises:
      ValueError: an unknown name or override (the nearest one is suggested), or an illegal value.
    """
    if name not in _REGISTRY:
        raise ValueError(f"no model is called {name!r}{_nearest(name, list_models())}")
    for override in overrides:
        if override not in OVERRIDES:
            raise ValueError(f"a model has no option {override!r}{_nearest(override, OVERRIDES)}")
    network, settings = _REGISTRY[name]
    return network(**{**settings, **overrides})


def _nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Known: {', '.join(known)}."
