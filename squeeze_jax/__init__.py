"""A JAX/Flax research codebase for the SqueezeNet family.

from squeeze_jax import models, load
model = models.create("squeezenet_v1_1", num_classes=10)
network = load("runs/digits")
"""

import importlib
from typing import TYPE_CHECKING, Any

from squeeze_jax.version import __version__

if TYPE_CHECKING:
    from squeeze_jax import models, pretrained
    from squeeze_jax.network import Network, load

__all__ = ["Network", "__version__", "load", "models", "pretrained"]

_MODULES = {"Network": "network", "load": "network", "models": "models", "pretrained": "pretrained"}


def __getattr__(name: str) -> Any:
    """Imports a name on first access, because squeeze_jax.main must run code before JAX is imported."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    globals()[name] = module if name == _MODULES[name] else getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    return __all__
