"""The networks of the SqueezeNet family: create them by name, list, register and summarize them."""

from typing import Any

from squeeze_jax.models.registry import create, list_models, override_types, register, registered
from squeeze_jax.models.squeezenet import SqueezeNet
from squeeze_jax.models.squeezenodule import SqueezeNoduleNet
from squeeze_jax.models.summary import summarize

__all__ = [
    "SqueezeNet",
    "SqueezeNoduleNet",
    "create",
    "list_models",
    "override_types",
    "register",
    "registered",
    "summarize",
]

_V1_0: dict[str, Any] = {"stem": "7x7/2", "stem_filters": 96, "pool_after": (1, 4, 8)}
_V1_1: dict[str, Any] = {"stem": "3x3/2", "stem_filters": 64, "pool_after": (1, 3, 5)}

register("squeezenet_v1_0", SqueezeNet, **_V1_0)
register("squeezenet_v1_1", SqueezeNet, **_V1_1)
register("squeezenet_v1_0_simple_bypass", SqueezeNet, **_V1_0, bypass="simple")
register("squeezenet_v1_0_complex_bypass", SqueezeNet, **_V1_0, bypass="complex")
register("squeezenodule_v1", SqueezeNoduleNet, **_V1_0, squeeze_ratio=0.25)
register("squeezenodule_v2", SqueezeNoduleNet, **_V1_0, squeeze_ratio=(0.5,) * 6 + (0.25,) * 2)
