"""Compression in stages: pruning, quantization and reduced precision, each of which gives a network and a file size."""

import dataclasses
import functools
import json
import logging
import math
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from squeeze_jax.compression import report
from squeeze_jax.compression.bias_correction import correct_biases
from squeeze_jax.compression.report import Stage
from squeeze_jax.compression.rounding import round_batch_norm, round_biases
from squeeze_jax.compression.sequential import Sequential, double
from squeeze_jax.compression.sharing import share
from squeeze_jax.compression.stage_folder import StageFolder
from squeeze_jax.compression.states import Images
from squeeze_jax.errors import InputError
from squeeze_jax.network import Network
from squeeze_jax.pretrained import sqz

logger = logging.getLogger(__name__)

FIRST_RATE_FACTOR = 4e-7  # nats per bit
TRIALS = 10
TOLERANCE = 0.01  # how far below the target a search may end
LARGEST_MOVE = 3.0  # of the logarithm of the rate factor
# Typical changes of the logarithm of the bytes and of the divergence with the logarithm of the rate factor.
BYTES_SLOPE = -0.15
DIVERGENCE_SLOPE = 1.2


class Compressor:
    """Compresses a network stage by stage.

    Attributes:
      original: the original network.
      network: the network after the last stage.
      steps: the quantization steps by array name, for `sqz.save`.
      stages: the stages so far.
    """

    def __init__(
        self,
        network: Network,
        calibration: Images | None = None,
        *,
        augment: bool = True,
        serialize: Callable[[Network, Mapping[str, float]], bytes] | None = None,
        folder: pathlib.Path | None = None,
        scratch: pathlib.Path | None = None,
    ) -> None:
        """Starts with an original network.

        Args:
          network: the network.
          calibration: unlabeled raw images as for `predict`, uint8 (images, *image_shape); needed by `prune`,
            `correct_biases`, `round_to_size` and `round_to_divergence`. A `DiskArray` is never in memory as a whole.
          augment: whether to calibrate `prune` and `round_to_...` on shifted copies too, which are mirror images if the
            network was trained on mirror images.
          serialize: returns the contents of a file, given a network and its steps; those of `.sqz` by default.
          folder: where to keep the results of stages, see `StageFolder`.
          scratch: where temporary files are while it runs, see `DiskArray`; `folder` by default.
        """
        self.original = self.network = network
        self.steps: dict[str, float] = {}
        self.stages: list[Stage] = []
        self._calibration = calibration
        self._augment = augment
        self._serialize = serialize or (lambda network, steps: sqz.serialize(network, steps=steps))
        self._folder = StageFolder(folder)
        self._scratch = scratch or folder

    def prune(self, density: float) -> None:
        """Keeps this fraction of the weights of each layer; see `Sequential.quantize`.

        Raises:
          InputError: the density is not in (0, 1), or there are no calibration images.
        """
        if not 0 < density < 1:
            raise InputError(f"the density is {density}; expected a fraction of the weights, 0 < density < 1.")
        self._add_anew(f"{density:.0%} of the weights", *self._rounded(None, density))

    def share(self, bits: Mapping[str, int], initialization: str) -> None:
        """Shares weights, see `sharing.share`."""
        self.add(f"{initialization} weight sharing", share(self.network.variables, bits, initialization))

    def correct_biases(self) -> None:
        """Corrects biases, see `bias_correction.correct_biases`."""
        images = self._calibration_images(augment=False)
        inputs = ["bias correction", self.network.variables, self.original.variables, images, self._settings]
        found = self._folder.result(inputs, lambda: (correct_biases(self.network, self.original, images), {}))
        self.add(f"bias correction, {len(images)} images", *found)

    def round(self, rate_factor: float, density: float | None = None) -> None:
        """Rounds the weights layer by layer, see `Sequential.quantize`; biases become int8.

        Args:
          rate_factor: the loss (in nats per image) that one bit of the file may cost.
          density: the fraction of the weights of each layer that stay; None to let the rate factor decide.

        Raises:
          InputError: there are no calibration images.
        """
        self._add_anew(_rounding(rate_factor), *self._rounded(rate_factor, density))

    def round_to_size(self, size: int, density: float | None = None, batch_norm: str = "float32") -> None:
        """Rounds the weights as finely as a file of at most `size` bytes allows; biases become int8.

        Args:
          size: the largest size of the file in bytes.
          density: the fraction of the weights of each layer that stay; None to let the size decide.
          batch_norm: the form of batch norm variables in that file, see `rounding.round_batch_norm`.

        Raises:
          InputError: there are no calibration images, or no such file was found.
        """

        def measure(network: Network, steps: dict[str, float]) -> float:
            stored = dataclasses.replace(network, variables=round_batch_norm(network.variables, batch_norm))
            return len(self._serialize(stored, steps))

        self._search(measure, size, BYTES_SLOPE, "bytes", density)

    def round_to_divergence(self, divergence: float, density: float | None = None) -> None:
        """Rounds the weights as coarsely as a divergence from the original network allows; biases become int8.

        Args:
          divergence: the largest mean Kullback-Leibler divergence on the calibration images in nats.
          density: the fraction of the weights of each layer that stay; None to let the divergence decide.

        Raises:
          InputError: there are no calibration images, or no such file was found.
        """
        images = self._calibration_images(augment=False)

        def measure(network: Network, steps: dict[str, float]) -> float:
            stages = [Stage("original", self.original, 0), Stage("rounded", network, 0)]
            parts = (images[first : first + report.BATCH] for first in range(0, len(images), report.BATCH))
            answers = report.evaluate(stages, ((part, np.full(len(part), -1)) for part in parts))
            return answers[1].divergence / len(images)

        self._search(measure, divergence, DIVERGENCE_SLOPE, "nats", density)

    def round_batch_norm(self, form: str) -> None:
        """Reduces the precision of batch norm, see `rounding.round_batch_norm`."""
        self.add(f"batch norm in {form}", round_batch_norm(self.network.variables, form))

    def round_biases(self, form: str) -> None:
        """Reduces the precision of biases, see `rounding.round_biases`."""
        self.add(f"biases in {form}", *round_biases(self.network.variables, form))

    def keep(self) -> None:
        """Adds a stage that stores the network without loss."""
        self.add("coded without loss", self.network.variables)

    def add(self, name: str, variables: dict, steps: Mapping[str, float] | None = None) -> None:
        """Adds a stage.

        Args:
          name: the name of the stage.
          variables: the variables of the network after the stage.
          steps: the quantization steps of arrays that are integer multiples of one, by array name.
        """
        self.network = dataclasses.replace(self.network, variables=variables)
        self.steps = {**self.steps, **(steps or {})}
        self.stages.append(Stage(name, self.network, len(self._serialize(self.network, self.steps))))
        logger.info("%s: %s bytes", name, f"{self.stages[-1].bytes:,}")

    def _add_anew(self, name: str, variables: dict, steps: Mapping[str, float]) -> None:
        """Adds a stage that starts from the original network, whatever the stages before it were."""
        self.steps = {}
        self.add(name, variables, steps)

    def _calibration_images(self, augment: bool | None = None) -> Images:
        if self._calibration is None or not len(self._calibration):
            raise InputError("calibration images are needed: --calibration FOLDER.")
        if not (self._augment if augment is None else augment):
            return self._calibration
        mirrored = "width" in self.original.config.augment.flip
        return double(self._calibration, mirrored, self._scratch)

    def _rounded(self, rate_factor: float | None, density: float | None) -> tuple[dict, dict[str, float]]:
        images = self._sequential_images
        inputs = ["sequential", rate_factor, density, self.original.variables, images, self._settings]
        return self._folder.result(inputs, lambda: self._sequential.quantize(rate_factor, density))

    @functools.cached_property
    def _sequential_images(self) -> Images:
        return self._calibration_images()

    @property
    def _settings(self) -> str:
        """What a result depends on beside variables and images, such as the preprocessing."""
        return json.dumps(self.original.config.to_dict(), sort_keys=True)

    @functools.cached_property
    def _sequential(self) -> Sequential:
        return Sequential(self.original, self._sequential_images, self._scratch)

    def _search(
        self,
        measure: Callable[[Network, dict[str, float]], float],
        limit: float,
        slope: float,
        unit: str,
        density: float | None,
    ) -> None:
        """Searches the rate factor whose network measures at most `limit`, by less than TOLERANCE if possible."""
        trials: dict[float, float] = {}
        best = None
        target = math.log(limit * (1 - TOLERANCE / 2))
        place = math.log(FIRST_RATE_FACTOR)
        for trial in range(1, TRIALS + 1):
            factor = float(f"{math.exp(place):.4g}")
            variables, steps = self._rounded(factor, density)
            value = measure(dataclasses.replace(self.original, variables=variables), steps)
            logger.info("trial %d: rate factor %g, %g %s; the target is %g", trial, factor, value, unit, limit)
            trials[math.log(factor)] = math.log(max(value, 1e-12))
            if value <= limit and (best is None or value > best[0]):
                best = value, factor, variables, steps
            if limit * (1 - TOLERANCE) <= value <= limit:
                break
            place = _next(trials, target, slope)
        if best is None:
            raise InputError(f"no file with at most {limit:g} {unit} was found in {TRIALS} trials; allow more.")
        _, factor, variables, steps = best
        self._add_anew(_rounding(factor), variables, steps)


def _rounding(rate_factor: float) -> str:
    return f"second-order rounding, {rate_factor:g} nats a bit"


def _next(trials: Mapping[float, float], target: float, slope: float) -> float:
    """Returns where to try next: between the nearest trials below and above the target, else along the slope."""
    below, above = (
        sorted((abs(value - target), place) for place, value in trials.items() if (value > target) == is_above)
        for is_above in (False, True)
    )
    if below and above:
        (down, low), (up, high) = below[0], above[0]
        return low + (high - low) * min(max(down / (down + up), 0.1), 0.9)
    distance, place = (below or above)[0]
    step = (distance if below else -distance) / slope
    return place + min(max(step, -LARGEST_MOVE), LARGEST_MOVE)
