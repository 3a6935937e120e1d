"""Weight sharing: each layer's weights become the nearest of a few values (Han et al. 2016, arXiv 1510.00149, 3)."""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from squeeze_jax.errors import ConfigError

INITIALISATIONS = ("linear", "density")
BITS = range(2, 9)
ITERATIONS = 1000  # of k-means at most
KERNEL = "kernel"
FIRST = "params/"


def share(variables: Mapping[str, Any], bits: int | Mapping[str, int], initialisation: str = "density") -> dict:
    """A network whose kernels hold few values.

    Zeros stay zero, and no weight becomes one, so that a layer of b bits holds at most 2 ** b - 1 values beside 0. A
    layer that has no more already stays as it is.

    Args:
      variables: of the network; "params" and others.
      bits: of every layer, or of each by its name ("fire2/squeeze1x1"); 2 to 8. A layer that is
        not named keeps its weights.
      initialisation: where k-means begins: "linear", evenly between the smallest and the largest weight, as in the
        paper; or "density", close where weights are many, by the cube root of their density, which is the best place
        for many centroids.

    Returns:
      Variables of the same structure.

    Raises:
      ConfigError: bits or an initialisation that there are none of, or a layer that is not in the network.
    """
    if initialisation not in INITIALISATIONS:
        raise ConfigError(
            f"initialisation={initialisation!r} is unknown; expected one of {', '.join(INITIALISATIONS)}."
        )
    leaves = flax.traverse_util.flatten_dict(variables, sep="/")
    for name, width in layer_bits(variables, bits).items():
        kernel = np.asarray(leaves[f"{FIRST}{name}/{KERNEL}"])
        leaves[f"{FIRST}{name}/{KERNEL}"] = cluster(kernel, (1 << width) - 1, initialisation)
    return flax.traverse_util.unflatten_dict(leaves, sep="/")


def layer_bits(variables: Mapping[str, Any], bits: int | Mapping[str, int]) -> dict[str, int]:
    """The bits of each layer by its name; arguments and errors are those of `share`."""
    leaves = flax.traverse_util.flatten_dict(variables, sep="/")
    layers = [name[len(FIRST) : -len(KERNEL) - 1] for name in leaves if name.endswith(f"/{KERNEL}")]
    found = dict.fromkeys(layers, bits) if isinstance(bits, int) else dict(bits)
    for name, width in found.items():
        if name not in layers:
            raise ConfigError(f"no layer is called {name!r}; the network has {', '.join(layers[:5])}, ...")
        if width not in BITS:
            raise ConfigError(f"{width} bits for {name}; expected {BITS[0]} to {BITS[-1]}.")
    return found


def cluster(weights: np.ndarray, count: int, initialisation: str) -> np.ndarray:
    """Weights with at most so many values beside 0, float32 in the same shape, by k-means in one dimension."""
    nonzero = weights[weights != 0].astype(np.float64)
    if len(np.unique(nonzero)) <= count:
        return weights
    ordered = np.sort(nonzero)
    start = _linear if initialisation == "linear" else _by_density
    centroids = _kmeans(ordered, start(ordered, count)).astype(np.float32)
    centroids = centroids[centroids != 0]
    shared = np.zeros(weights.shape, np.float32)
    borders = (centroids[1:].astype(np.float64) + centroids[:-1]) / 2
    shared[weights != 0] = centroids[np.searchsorted(borders, nonzero)]
    return shared


def _linear(ordered: np.ndarray, count: int) -> np.ndarray:
    return np.linspace(ordered[0], ordered[-1], count)


def _by_density(ordered: np.ndarray, count: int) -> np.ndarray:
    """As dense as the cube root of the weights' density (Panter and Dite 1951).

    The histogram is coarse, for the root would make much of the noise of a fine one.
    """
    histogram, edges = np.histogram(ordered, max(16, count // 4))
    share = np.concatenate([[0], np.cumsum(np.cbrt(histogram))])
    return np.interp((np.arange(count) + 0.5) / count * share[-1], share, edges)


def _kmeans(ordered: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Lloyd's iterations on rising values; a centroid that nothing is near to stays where it is."""
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
