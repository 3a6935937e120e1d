"""Weight sharing: clusters the weights of each layer (Han et al. 2016, arXiv 1510.00149, section 3)."""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from squeeze_jax.compression import BITS, INITIALIZATIONS
from squeeze_jax.errors import ConfigError

ITERATIONS = 1000  # maximum of k-means
KERNEL = "kernel"
FIRST = "params/"


def share(variables: Mapping[str, Any], bits: int | Mapping[str, int], initialization: str = "density") -> dict:
    """Clusters the weights of each layer, so that each kernel has few distinct values.

    Zeros stay zero, and no other weight becomes zero. A layer with b bits has at most 2 ** b - 1 distinct values
    besides 0. A layer that already has no more than that is left unchanged.

    Args:
      variables: the variables of the network, with "params" and possibly other collections.
      bits: the number of bits of all layers, or of single layers by name ("fire2/squeeze1x1"), 2 to 8. Layers that are
        not named are left unchanged.
      initialization: the initial centroids of k-means. "linear" spaces them evenly between the smallest and the largest
        weight, as in the paper. "density" places them with a density proportional to the cube root of the weights'
        density, which is asymptotically optimal for many centroids.

    Returns:
      Variables of the same structure.

    Raises:
      ConfigError: the number of bits is out of range, or the initialization or a layer is unknown.
    """
    if initialization not in INITIALIZATIONS:
        raise ConfigError(
            f"initialization={initialization!r} is unknown; expected one of {', '.join(INITIALIZATIONS)}."
        )
    leaves = flax.traverse_util.flatten_dict(variables, sep="/")
    for name, width in layer_bits(variables, bits).items():
        kernel = np.asarray(leaves[f"{FIRST}{name}/{KERNEL}"])
        leaves[f"{FIRST}{name}/{KERNEL}"] = cluster(kernel, (1 << width) - 1, initialization)
    return flax.traverse_util.unflatten_dict(leaves, sep="/")


def layer_bits(variables: Mapping[str, Any], bits: int | Mapping[str, int]) -> dict[str, int]:
    """Returns the number of bits of each layer, by name.

    Args:
      variables: the variables of the network.
      bits: the number of bits of all layers, or of single layers by name, see `share`.

    Raises:
      ConfigError: the number of bits is out of range, or a layer is unknown.
    """
    leaves = flax.traverse_util.flatten_dict(variables, sep="/")
    layers = [name[len(FIRST) : -len(KERNEL) - 1] for name in leaves if name.endswith(f"/{KERNEL}")]
    found = dict.fromkeys(layers, bits) if isinstance(bits, int) else dict(bits)
    for name, width in found.items():
        if name not in layers:
            raise ConfigError(f"no layer is called {name!r}; the network has {', '.join(layers[:5])}, ...")
        if width not in BITS:
            raise ConfigError(f"{width} bits for {name}; expected {BITS[0]} to {BITS[-1]}.")
    return found


def cluster(weights: np.ndarray, count: int, initialization: str) -> np.ndarray:
    """Clusters weights by one-dimensional k-means; zeros are left unchanged.

    Args:
      weights: the weights, float32 of any shape.
      count: the maximum number of distinct values besides 0.
      initialization: the initial centroids, see `share`.

    Returns:
      The weights, each replaced by the nearest centroid, float32 of the same shape.
    """
    nonzero = weights[weights != 0].astype(np.float64)
    if len(np.unique(nonzero)) <= count:
        return weights
    ordered = np.sort(nonzero)
    start = _linear if initialization == "linear" else _by_density
    centroids = _kmeans(ordered, start(ordered, count)).astype(np.float32)
    centroids = centroids[centroids != 0]
    shared = np.zeros(weights.shape, np.float32)
    borders = (centroids[1:].astype(np.float64) + centroids[:-1]) / 2
    shared[weights != 0] = centroids[np.searchsorted(borders, nonzero)]
    return shared


def _linear(ordered: np.ndarray, count: int) -> np.ndarray:
    return np.linspace(ordered[0], ordered[-1], count)


def _by_density(ordered: np.ndarray, count: int) -> np.ndarray:
    """Returns centroids whose density is proportional to the cube root of the weights' density (Panter and Dite 1951).

    The histogram is coarse, because the cube root would amplify the noise of a fine one.
    """
    histogram, edges = np.histogram(ordered, max(16, count // 4))
    share = np.concatenate([[0], np.cumsum(np.cbrt(histogram))])
    return np.interp((np.arange(count) + 0.5) / count * share[-1], share, edges)


def _kmeans(ordered: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Runs Lloyd's algorithm on sorted values; centroids without members stay unchanged."""
    sums = np.concatenate([[0], np.cumsum(ordered)])
    for _ in range(ITERATIONS):
        borders = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        ends = np.concatenate([[0], borders, [len(ordered)]])
        members = np.diff(ends)
        moved = np.sort(np.where(members > 0, np.diff(sums[ends]) / np.maximum(members, 1), centroids))
        if (moved == centroids).all():
            break
        centroids = moved
    return centroids
