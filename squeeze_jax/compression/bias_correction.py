"""Bias correction (Nagel et al. 2019, arXiv 1906.04721, section 4.2).

Quantization shifts the mean output of a layer. The shift is measured on a few unlabeled images of the target domain
and subtracted from the bias.
"""

from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from flax import linen as nn

from squeeze_jax.compression.states import BATCH, Images, filled_batches
from squeeze_jax.models.summary import DENSE
from squeeze_jax.network import Network
from squeeze_jax.runtime.devices import compile_often


def correct_biases(network: Network, original: Network, images: Images) -> dict:
    """Corrects the biases of a quantized network so that each convolution and dense layer keeps its mean output.

    Args:
      network: the quantized network.
      original: the original network, of the same structure.
      images: raw images as for `predict`, uint8 (images, *image_shape); a few hundred are enough.

    Returns:
      The variables of the quantized network with corrected biases. For layers followed by batch norm, the means
      in "batch_stats" are corrected instead.
    """
    gaps_of = _gaps(network)
    leaves = flax.traverse_util.flatten_dict(network.variables, sep="/")
    for filled, count in filled_batches(images):
        shares = (np.arange(BATCH) < count) / np.float32(count)
        gaps = jax.device_get(gaps_of(network.variables, original.variables, filled, shares))
        for name, gap in gaps.items():
            gap = gap * np.float32(count / len(images))
            bias, mean = f"params/{name}/bias", f"batch_stats/{name}_bn/mean"
            if bias in leaves:
                leaves[bias] = leaves[bias] + gap
            elif mean in leaves:  # SqueezeNext's head has neither
                leaves[mean] = leaves[mean] - gap
    return flax.traverse_util.unflatten_dict(leaves, sep="/")


def _gaps(network: Network) -> Callable:
    """Returns a compiled function that computes the correction of each layer, by name, float32 (channels,).

    The inputs of a layer are those of the quantized network with its earlier layers already corrected on the same
    images. The average over batches is close to the result of a single batch with all images.
    """

    def gaps(variables: Any, original: Any, images: jax.Array, shares: jax.Array) -> dict[str, jax.Array]:
        inputs = network.task.preprocessing.evaluate(images)
        wanted: dict[str, jax.Array] = {}
        found: dict[str, jax.Array] = {}

        def each_layer(function: Callable) -> Callable:
            def intercept(method: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
                output = method(*args, **kwargs)
                is_layer = isinstance(context.module, nn.Conv | DENSE) and context.method_name == "__call__"
                return function("/".join(context.module.path), output) if is_layer else output

            return intercept

        def mean(output: jax.Array) -> jax.Array:
            return shares @ output.mean(tuple(range(1, output.ndim - 1)))

        def remember(name: str, output: jax.Array) -> jax.Array:
            wanted[name] = mean(output)
            return output

        def correct(name: str, output: jax.Array) -> jax.Array:
            found[name] = wanted[name] - mean(output)
            return output + found[name]

        for function, values in ((remember, original), (correct, variables)):
            with nn.intercept_methods(each_layer(function)):
                network.model.apply(values, inputs)
        return found

    return compile_often(gaps)
