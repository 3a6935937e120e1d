"""Rounding and pruning of the weights of one layer, with feedback of the error to the weights that follow.

The change of a layer is measured on calibration inputs: for a change e of the weights of one output channel, the mean
square of the change of its output is e A e, where A are the second moments of the inputs. Weights are rounded one input
at a time; the inputs that follow compensate the error (Frantar et al. 2023, "GPTQ", arXiv:2210.17323, section 3, after
Hassibi and Stork 1993, "Optimal Brain Surgeon"). Rounding is entropy-constrained: among the nearest integer, the next
integer toward zero, and zero, the cheapest is chosen in terms of distortion + rate_factor * bits (Chou, Lookabaugh and
Gray 1989, "Entropy-constrained vector quantization").

All arrays are float64. Weights are (groups, inputs, outputs); most layers have one group of channels. Moments of the
inputs are (groups, inputs, inputs) and positive definite. The importance of an output, (groups, outputs), is the
increase of the loss per mean square of its change.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

BLOCK = 64  # this many inputs are rounded before the inputs after them are updated
STEP_CANDIDATES = (0.7, 1.0, 1.4)  # relative to the best step of a uniform quantizer at a high rate
PRUNING_ROUNDS = 4
RATE_ITERATIONS = 2  # the cost of a symbol depends on the frequencies, which depend on the rounding
SMOOTHING = 0.02  # added to the counts of symbols
LARGEST_INTEGER = 2047  # .sqz files store at most 4096 symbols


@dataclasses.dataclass(frozen=True)
class Rounded:
    """Weights as integer multiples of a step.

    Attributes:
      integers: (groups, inputs, outputs).
      step: the step, a float32 value.
      cost: distortion + rate_factor * bits.
    """

    integers: np.ndarray
    step: float
    cost: float


def round_weights(
    weights: np.ndarray,
    moments: np.ndarray,
    importance: np.ndarray,
    rate_factor: float,
) -> Rounded:
    """Rounds weights to integer multiples of the step with the lowest cost; zeros stay zero.

    Args:
      weights: (groups, inputs, outputs), not all zero.
      moments: (groups, inputs, inputs).
      importance: (groups, outputs), positive.
      rate_factor: the loss that one bit may cost; positive.
    """
    feedback = _Feedback(moments)
    ordered = feedback.sort(weights)
    # At a high rate, rounding to multiples of a step costs step^2 / 12 and log2(step) bits per weight.
    curvature = importance.mean() * math.exp(np.log(feedback.curvatures).mean())
    largest = np.abs(weights).max()
    best_step = math.sqrt(6 * rate_factor / (math.log(2) * curvature))
    best_step = min(max(best_step, largest / LARGEST_INTEGER / STEP_CANDIDATES[0]), largest)
    found = []
    for factor in STEP_CANDIDATES:
        step = float(np.float32(best_step * factor))
        integers = np.round(np.clip(ordered / step, -LARGEST_INTEGER, LARGEST_INTEGER))
        for _ in range(RATE_ITERATIONS):
            choose = _entropy_constrained(_bits(integers), step * step * importance, rate_factor)
            integers = feedback.replace(ordered / step, choose)
        change = feedback.restore(integers) * step - weights
        distortion = (((moments @ change) * change).sum(1) * importance).sum()
        total = _bits(integers)[np.abs(integers).astype(int)].sum()
        found.append(Rounded(feedback.restore(integers) + 0.0, step, float(distortion + rate_factor * total)))
    return min(found, key=lambda rounded: rounded.cost)


def prune_weights(weights: np.ndarray, moments: np.ndarray, density: float) -> np.ndarray:
    """Sets weights to zero in several rounds; after each, least squares fits the others to the outputs.

    A weight's saliency is the error that its removal leaves if all other weights compensate it.

    Args:
      weights: (groups, inputs, outputs).
      moments: (groups, inputs, inputs).
      density: the fraction of weights that stay.
    """
    outputs = moments @ weights
    curvatures = 1 / np.diagonal(np.linalg.inv(moments), axis1=1, axis2=2)[:, :, None]
    pruned = weights.copy()
    for turn in range(1, PRUNING_ROUNDS + 1):
        saliency = np.where(pruned == 0, -1, pruned**2 * curvatures)
        count = round((1 - density ** (turn / PRUNING_ROUNDS)) * weights.size)
        stays = np.ones(weights.size, bool)
        stays[np.argsort(saliency, axis=None, kind="stable")[:count]] = False
        pruned = _least_squares(moments, outputs, stays.reshape(weights.shape))
    return pruned


def _least_squares(moments: np.ndarray, outputs: np.ndarray, stays: np.ndarray) -> np.ndarray:
    """Returns the weights, 0 where not `stays`, whose outputs are closest to `outputs` = moments @ original weights."""
    fitted = np.zeros_like(outputs)
    identity = np.eye(moments.shape[1])
    for output in range(outputs.shape[2]):
        mask = stays[:, :, output]
        both = mask[:, :, None] & mask[:, None, :]
        target = np.where(mask, outputs[:, :, output], 0)
        fitted[:, :, output] = np.linalg.solve(np.where(both, moments, identity), target[..., None])[..., 0] * mask
    return fitted


def _bits(integers: np.ndarray) -> np.ndarray:
    """Returns the cost of each magnitude in bits by the frequencies of `integers`; a sign costs one bit."""
    counts = np.bincount(np.abs(integers).astype(int).ravel(), minlength=LARGEST_INTEGER + 1) + SMOOTHING
    bits = -np.log2(counts / counts.sum())
    bits[1:] += 1
    return bits


def _entropy_constrained(bits: np.ndarray, scale: np.ndarray, rate_factor: float) -> Callable:
    def choose(values: np.ndarray, curvature: np.ndarray) -> np.ndarray:
        nearest = np.minimum(np.round(np.abs(values)), LARGEST_INTEGER)
        candidates = np.stack([nearest, np.maximum(nearest - 1, 0), np.zeros_like(nearest)])
        distortions = (np.abs(values) - candidates) ** 2 * (scale * curvature[:, None])
        costs = distortions + rate_factor * bits[candidates.astype(int)]
        return np.sign(values) * np.take_along_axis(candidates, costs.argmin(0)[None], 0)[0]

    return choose


class _Feedback:
    """The order of the inputs of a layer, by decreasing moment, and the compensation of the error of each.

    `upper` is U, upper triangular, with U^T U = inverse of the moments: the error of input j, divided by U[j, j], is
    subtracted from the later inputs with the weights U[j, j + 1:]. What remains of the error of input j weighs
    U[j, j]^-2, its curvature.
    """

    def __init__(self, moments: np.ndarray) -> None:
        diagonal = np.diagonal(moments, axis1=1, axis2=2)
        self._order = np.argsort(-diagonal, axis=1, kind="stable")
        rows = np.take_along_axis(moments, self._order[:, :, None], 1)
        inverse = np.linalg.inv(np.take_along_axis(rows, self._order[:, None, :], 2))
        self.upper = np.linalg.cholesky(inverse).swapaxes(1, 2)
        self.curvatures = np.diagonal(self.upper, axis1=1, axis2=2) ** -2

    def sort(self, weights: np.ndarray) -> np.ndarray:
        return np.take_along_axis(weights, self._order[:, :, None], 1)

    def restore(self, ordered: np.ndarray) -> np.ndarray:
        return np.take_along_axis(ordered, np.argsort(self._order, axis=1)[:, :, None], 1)

    def replace(self, values: np.ndarray, choose: Callable) -> np.ndarray:
        """Replaces the weights of one input after another by `choose(values, curvature)`; zeros stay zero."""
        values, chosen, stays = values.copy(), np.empty_like(values), values != 0
        for first in range(0, values.shape[1], BLOCK):
            last = min(first + BLOCK, values.shape[1])
            errors = np.empty_like(values[:, first:last])
            for j in range(first, last):
                chosen[:, j] = np.where(stays[:, j], choose(values[:, j], self.curvatures[:, j]), 0)
                error = (values[:, j] - chosen[:, j]) / self.upper[:, j, j, None]
                errors[:, j - first] = error
                values[:, j + 1 : last] -= self.upper[:, j, j + 1 : last, None] * error[:, None]
            values[:, last:] -= self.upper[:, first:last, last:].swapaxes(1, 2) @ errors
        return chosen
