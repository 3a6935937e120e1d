"""JAX/Flax research codebase of the SqueezeNet family.

from squeeze_jax import models, load
model = models.create("squeezenet_v1_1", num_classes=10)
run = load("runs/digits")
"""

from squeeze_jax import models, pretrained
from squeeze_jax.loading import load
from squeeze_jax.run import Run
from squeeze_jax.version import __version__

__all__ = ["Run", "__version__", "load", "models", "pretrained"]
