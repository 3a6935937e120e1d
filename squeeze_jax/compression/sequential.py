"""Layer-by-layer quantization and pruning of a network on unlabeled images.

Each layer is fitted to the outputs of the original layer on the original inputs, given the inputs from the already
quantized layers before it; the biases absorb the change of the mean. How finely a layer is rounded follows from its
Fisher information and from one rate factor for the whole network (`second_order`).
"""

import dataclasses
import functools
import logging
import pathlib
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from squeeze_jax.compression import on_disk, second_order
from squeeze_jax.compression.on_disk import DiskArray
from squeeze_jax.compression.rounding import round_to_int8
from squeeze_jax.compression.segments import Layer, SegmentedForward
from squeeze_jax.compression.states import BATCH, Images, States, filled_batches
from squeeze_jax.console import track
from squeeze_jax.errors import InputError
from squeeze_jax.network import Network
from squeeze_jax.runtime.devices import compile_often
from squeeze_jax.tasks import Likelihood

logger = logging.getLogger(__name__)

POSITIONS = 196  # output positions per image that the moments of a layer are measured at
FISHER_IMAGES = 128
RIDGE = 0.01  # added to the moments, relative to the mean of their diagonal
TARGET_RIDGE = 0.05  # the same when a layer is fitted to the original outputs
SHIFT = 1 / 8  # largest shift of an additional calibration image, relative to its side
OWN_IMPORTANCE = 0.5  # the share of an output channel's own Fisher information; the rest is the mean of the layer
SMALLEST = 1e-12
POOLED = 0.5  # weight of the moments of image means in the layer before global average pooling


@dataclasses.dataclass(frozen=True)
class Moments:
    """Moments of the inputs of a layer.

    Attributes:
      second: covariance of the inputs in the quantized network, float64 (groups, inputs, inputs).
      cross: covariance of the original and the quantized inputs, float64 (groups, inputs, inputs).
      mean: means of the quantized inputs, float64 (groups, inputs).
      original_mean: means of the original inputs, float64 (groups, inputs).
    """

    second: np.ndarray
    cross: np.ndarray
    mean: np.ndarray
    original_mean: np.ndarray


def double(images: Images, mirrored: bool, folder: pathlib.Path | None = None, seed: int = 0) -> DiskArray:
    """Adds a shifted copy of each image, which is a mirror image along the width if `mirrored`.

    Args:
      images: raw images, uint8 (images, *spatial, channels).
      mirrored: whether mirror images are valid images.
      folder: the folder whose disk is used, see `DiskArray`.
      seed: the seed of the shifts.

    Returns:
      uint8 (2 * images, *spatial, channels): the images and their copies. Pixels at the border are repeated.
    """
    rng = np.random.default_rng(seed)
    both = DiskArray(images.shape[1:], images.dtype, folder)
    for change in (np.asarray, functools.partial(_shifted, mirrored, rng)):
        for first in range(0, len(images), BATCH):
            both.append(change(images[first : first + BATCH]))
    return both


def _shifted(mirrored: bool, rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    copies = np.empty_like(images)
    for copy, image in zip(copies, images, strict=True):
        reach = [int(side * SHIFT) for side in image.shape[:-1]]
        padded = np.pad(image, [*((side, side) for side in reach), (0, 0)], mode="edge")
        offsets = [int(rng.integers(2 * side + 1)) for side in reach]
        copy[...] = padded[tuple(slice(at, at + side) for at, side in zip(offsets, image.shape[:-1], strict=True))]
    return copies[..., ::-1, :] if mirrored else copies


class Sequential:
    """Quantizes a network layer by layer; several times with different settings if need be."""

    def __init__(self, network: Network, images: Images, folder: pathlib.Path | None = None, seed: int = 0) -> None:
        """Measures the Fisher information of the network.

        Args:
          network: the original network; its task is a `Likelihood`.
          images: raw images as for `predict`, uint8 (images, *image_shape). The feature maps of one batch of them are
            in memory at a time; the narrow ones of all are kept on disk, see `States`.
          folder: the folder whose disk is used, see `DiskArray`.
          seed: the seed of the labels that are drawn for the Fisher information, and of the positions.

        Raises:
          InputError: the task has no likelihood, or there are no images.
          ModelError: see `SegmentedForward`.
          FileError: the disk has too little room.
        """
        if not isinstance(network.task, Likelihood):
            raise InputError(
                f"rounding by calibration needs a task with log_likelihood_of_draw, which {network.config.task.name!r} "
                f"does not have; use --bits without --calibration."
            )
        if not len(images):
            raise InputError("rounding by calibration needs at least one image.")
        self.network = network
        self.images = images
        self._folder = folder
        self._seed = seed
        self._preprocess = compile_often(network.task.preprocessing.evaluate)
        inputs = jax.eval_shape(network.task.preprocessing.evaluate, next(filled_batches(images))[0])
        self._forward = SegmentedForward(network.model, network.variables, inputs)
        on_disk.check_room("feature maps", States.disk_bytes(self._forward, len(images)), folder)
        self._fisher = self._fisher_information()

    def quantize(self, rate_factor: float | None, density: float | None = None) -> tuple[dict, dict[str, float]]:
        """Rounds or prunes every layer.

        Args:
          rate_factor: the loss (in nats per image) that one bit of the file may cost; None to prune only.
          density: the fraction of weights that stay in each layer; None to let the rate factor decide.

        Returns:
          Variables of the same structure, float32, and the quantization steps by array name. Biases of convolutions are
          integer multiples of a step too, unless `rate_factor` is None.
        """
        original = self.network.variables
        leaves = dict(flax.traverse_util.flatten_dict(original, sep="/"))
        steps: dict[str, float] = {}
        states = States(self._forward, self._preprocess, self.images, self._folder)
        for index, layer in enumerate(track(self._forward.layers, "rounding layers")):
            if np.any(leaves[f"params/{layer.name}/kernel"]):
                moments = self._moments(index, states, flax.traverse_util.unflatten_dict(leaves, sep="/"))
                self._quantize_layer(layer, moments, leaves, steps, rate_factor, density)
            logger.debug("%s, layer %d of %d", layer.name, index + 1, len(self._forward.layers))
        return flax.traverse_util.unflatten_dict(leaves, sep="/"), steps

    quantise = quantize  # the former spelling

    def _quantize_layer(
        self,
        layer: Layer,
        moments: Moments,
        leaves: dict[str, Any],
        steps: dict[str, float],
        rate_factor: float | None,
        density: float | None,
    ) -> None:
        name = f"params/{layer.name}/kernel"
        kernel = np.asarray(leaves[name])
        by_group = kernel.reshape(-1, layer.groups, kernel.shape[-1] // layer.groups)
        weights = by_group.transpose(1, 0, 2).astype(np.float64)  # (groups, inputs, outputs)
        # Least squares: the weights that give the original outputs, from the inputs of the quantized network.
        missing = (moments.cross - moments.second).swapaxes(1, 2) @ weights
        target = weights + np.linalg.solve(_with_ridge(moments.second, TARGET_RIDGE), missing)
        second = _with_ridge(moments.second, RIDGE)
        new = target if density is None else second_order.prune_weights(target, second, density)
        if rate_factor is not None:
            is_head = layer.name == self._forward.layers[-1].name
            importance = self._importance(name, moments, uniform=is_head)
            rounded = second_order.round_weights(new, second, importance, rate_factor)
            new = rounded.integers * rounded.step
            steps[name] = rounded.step
        means = moments.original_mean[:, None], moments.mean[:, None]
        gap = (means[0] @ weights - means[1] @ new).astype(np.float32).ravel()
        leaves[name] = new.astype(np.float32).transpose(1, 0, 2).reshape(kernel.shape)
        bias, mean = f"params/{layer.name}/bias", f"batch_stats/{layer.name}_bn/mean"
        if bias in leaves:
            leaves[bias] = leaves[bias] + gap
            if rate_factor is not None:
                leaves[bias], step = round_to_int8(leaves[bias])
                steps |= {bias: step} if step else {}
        elif mean in leaves:  # SqueezeNext's head has neither
            leaves[mean] = leaves[mean] - gap

    def _importance(self, name: str, moments: Moments, uniform: bool) -> np.ndarray:
        """Returns the Fisher information of each output, (groups, outputs).

        Calibration images rarely show all classes, so all outputs of the head are equally important.
        """
        power = np.trace(moments.second, axis1=1, axis2=2) + (moments.mean**2).sum(1)
        own = self._fisher[name].reshape(len(power), -1) / (power[:, None] + SMALLEST)
        share = 0 if uniform else OWN_IMPORTANCE
        return np.maximum(share * own + (1 - share) * own.mean(), SMALLEST)

    def _moments(self, index: int, states: States, quantized: Any) -> Moments:
        """Measures the inputs of a layer.

        If its outputs are averaged over the image, as those of the last one, errors that all positions share weigh
        more.

        Args:
          index: the index of the layer.
          states: the states of the layers.
          quantized: the variables of the quantized network, in which the layers before are quantized.
        """
        rng = np.random.default_rng(self._seed)
        layer, pooled = self._forward.layers[index], index == len(self._forward.layers) - 1
        cells = layer.output_cells(self._forward.state_shapes(index)[0].shape)
        measure = compile_often(functools.partial(_sums, layer, pooled))
        sums: dict[str, np.ndarray] = {}
        origin = None
        for count, before, after in states.before(index, self.network.variables, quantized):
            if origin is None:  # products are float32, so the inputs are roughly centered first
                origin = np.asarray(layer.inputs_of(before[0], rng.permutation(cells)[:POSITIONS]).mean((0, 1)))
            found = measure(before[0], after[0], origin, rng.permutation(cells)[:POSITIONS], count)
            for key, value in jax.device_get(found).items():
                sums[key] = sums.get(key, 0) + value.astype(np.float64)
        mean, original_mean = sums["mean"] / sums["count"], sums["original_mean"] / sums["count"]
        center = mean[:, :, None] * mean[:, None, :]
        cross_center = original_mean[:, :, None] * mean[:, None, :]
        second, cross = sums["second"] / sums["count"] - center, sums["cross"] / sums["count"] - cross_center
        if pooled:
            images = len(self.images)
            second_pooled = sums["second_pooled"] / images - center
            cross_pooled = sums["cross_pooled"] / images - cross_center
            ratio = np.trace(second, axis1=1, axis2=2) / (np.trace(second_pooled, axis1=1, axis2=2) + SMALLEST)
            second = (1 - POOLED) * second + POOLED * ratio[:, None, None] * second_pooled
            cross = (1 - POOLED) * cross + POOLED * ratio[:, None, None] * cross_pooled
        return Moments(second, cross, mean + origin, original_mean + origin)

    def _fisher_information(self) -> dict[str, np.ndarray]:
        """Returns the Fisher information of each kernel, summed over the inputs, by name: float64 (outputs,).

        It is the mean square of the gradient of the log-likelihood of targets that are drawn from the predictions.
        """
        network, task = self.network, self.network.task
        stride = max(1, len(self.images) // FISHER_IMAGES)
        chosen = range(0, len(self.images), stride)[:FISHER_IMAGES]

        def squares(variables: Any, image: jax.Array, key: jax.Array) -> Any:
            inputs = task.preprocessing.evaluate(image[None])

            def log_likelihood(params: Any) -> jax.Array:
                outputs = network.model.apply({**variables, "params": params}, inputs)
                return task.log_likelihood_of_draw(outputs, key)

            gradients = jax.grad(log_likelihood)(variables["params"])
            return jax.tree.map(lambda leaf: (leaf**2).sum(tuple(range(leaf.ndim - 1))), gradients)

        squares_of = compile_often(squares)
        totals: dict[str, np.ndarray] = {}
        for i, key in zip(chosen, jax.random.split(jax.random.key(self._seed), len(chosen)), strict=True):
            squared = jax.device_get(squares_of(network.variables, self.images[i : i + 1][0], key))
            found = flax.traverse_util.flatten_dict(squared, sep="/")
            for name, value in found.items():
                totals[f"params/{name}"] = totals.get(f"params/{name}", 0) + value.astype(np.float64) / len(chosen)
        return totals


def _with_ridge(second: np.ndarray, ridge: float) -> np.ndarray:
    """Adds `ridge` times the mean of the diagonal to the diagonal, and what makes the matrix positive definite.

    The covariance of inputs that are almost constant consists of rounding errors.
    """
    mean = np.trace(second, axis1=1, axis2=2) / second.shape[1]
    lowest = np.linalg.eigvalsh(second)[:, 0]
    added = ridge * np.maximum(mean, 0) + 2 * np.maximum(-lowest, 0) + SMALLEST
    return second + added[:, None, None] * np.eye(second.shape[1])


def _sums(
    layer: Layer,
    pooled: bool,
    original: jax.Array,
    quantized: jax.Array,
    origin: jax.Array,
    cells: np.ndarray,
    count: int,
) -> dict[str, jax.Array]:
    """Sums over the first `count` images and some output cells; the keys are those of `Moments`, before centering."""
    counts = (jnp.arange(len(original)) < count)[:, None, None, None]
    before, after = (jnp.where(counts, layer.inputs_of(x, cells) - origin, 0) for x in (original, quantized))

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum("...gi,...gj->gij", a, b)

    sums = {
        "count": count * jnp.float32(before.shape[1]),
        "mean": after.sum((0, 1)),
        "original_mean": before.sum((0, 1)),
        "second": product(after, after),
        "cross": product(before, after),
    }
    if pooled:
        before, after = before.mean(1), after.mean(1)
        sums |= {"second_pooled": product(after, after), "cross_pooled": product(before, after)}
    return sums
