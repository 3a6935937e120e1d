"""The function that is exported: from raw pixels to logits, in float32."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from squeeze_jax.network import Network


def forward(network: Network) -> tuple[Callable[[Any, jax.Array], jax.Array], Any]:
    """Returns the function from raw images to logits that an exported file contains, and its weights.

    It computes in float32, whatever the dtype of the network, because the runtimes do.

    Args:
      network: the network.

    Returns:
      A function from the weights and images (batch, *image_shape), uint8 or float32 in 0..255, to logits, float32
      (batch, classes); and the weights.
    """
    model = network.model.clone(dtype="float32")
    preprocessing = dataclasses.replace(network.task.preprocessing, dtype="float32")
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), network.variables)

    def logits(variables: Any, images: jax.Array) -> jax.Array:
        return model.apply(variables, preprocessing.evaluate(images))

    return logits, variables
