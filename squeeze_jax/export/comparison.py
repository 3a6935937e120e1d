"""The comparison of an exported file with its network."""

import dataclasses
from collections.abc import Iterable

import jax
import numpy as np

from squeeze_jax.compression.report import Answers
from squeeze_jax.errors import ExportError
from squeeze_jax.export import LARGEST_CHANGE, LARGEST_LOSS
from squeeze_jax.export.exported import Exported
from squeeze_jax.export.forward import forward
from squeeze_jax.network import Network
from squeeze_jax.runtime.devices import compile_often

BATCH = 32
TOLERANCE = 1e-4  # of the logits of a float file, relative to the largest logit


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a file and its network answered to the same images.

    Attributes:
      difference: the largest difference between two logits.
      largest: the largest absolute value of a logit of the network.
      network: the answers of the network.
      file: the answers of the file, compared with those of the network.
    """

    difference: float
    largest: float
    network: Answers
    file: Answers

    @property
    def agreement(self) -> float:
        """The share of images with the same best class."""
        return self.file.agree / self.file.images

    def __str__(self) -> str:
        relative = self.difference / max(self.largest, np.finfo(np.float32).tiny)
        lines = [
            f"{self.file.images} images: largest difference of logits {self.difference:.2g} ({relative:.1e} of the "
            f"largest logit), same best class {self.agreement:.1%}"
        ]
        if self.file.has_labels:
            for name, its in (("network", self.network), ("file", self.file)):
                shares = ", ".join(f"{top} {share:.4f}" for top, share in its.accuracies().items())
                lines.append(f"  {name}: {shares} ({its.top1} of {its.images} images)")
        return "\n".join(lines)

    def check_float(self) -> None:
        """Raises ExportError if a float file does not compute the same as the network."""
        if not self.difference <= TOLERANCE * self.largest:
            raise ExportError(
                f"the file was not written, because its logits differ by {self.difference:.2g}; expected at most "
                f"{TOLERANCE:.0e} of the largest logit, {self.largest:.3g}. This is a bug; please report it."
            )

    def check_int8(self, allow_loss: float | None) -> None:
        """Raises ExportError if an int8 file loses too much.

        Args:
          allow_loss: points of top-1 accuracy, or without labels the percentage of images whose best class changes;
            None for LARGEST_LOSS and LARGEST_CHANGE.
        """
        images = self.file.images
        if self.file.has_labels:
            count, unit, allowed = self.network.top1 - self.file.top1, "points of top-1 accuracy", LARGEST_LOSS
            cost = f"int8 gets {count} fewer of {images} images right"
        else:
            count, unit, allowed = images - self.file.agree, "%", LARGEST_CHANGE
            cost = f"int8 changes {count} of {images} answers"
        allowed = allowed if allow_loss is None else allow_loss
        loss = 100 * count / images
        if not loss <= allowed:
            fix = "Use more calibration images"
            if 100 / images > allowed > 0:  # a single image is too much
                fix = f"{images} images are too few to show so little: judge by more with --evaluation FOLDER"
            raise ExportError(
                f"the file was not written, because {cost}, {loss:.1f} {unit}; at most {allowed:g} are allowed. {fix}, "
                f"or allow more by --allow_loss."
            )


def compare(network: Network, exported: Exported, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Comparison:
    """Runs a file and its network on images.

    Args:
      network: the network.
      exported: the file.
      batches: raw images, uint8 (batch, *image_shape) with at most BATCH images, and labels, int (batch,); -1 for
        images without a label.
    """
    function, variables = forward(network)
    expected = compile_often(function)
    difference = largest = 0.0
    ours, theirs = Answers(), Answers()
    for images, labels in batches:
        filled = np.resize(images, (BATCH, *images.shape[1:]))  # pads the last batch to avoid a recompilation
        reference = jax.device_get(expected(variables, filled))[: len(images)]
        logits = exported.logits(images)
        difference = max(difference, float(np.abs(logits - reference).max(initial=0.0)))
        largest = max(largest, float(np.abs(reference).max(initial=0.0)))
        probability, wanted = _softmax(logits), _softmax(reference)
        ours.add(wanted, wanted, labels)
        theirs.add(probability, wanted, labels)
    return Comparison(difference, largest, ours, theirs)


def random_images(network: Network, count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Returns a batch of random images without labels, the same on every call."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, *network.image_shape), dtype=np.uint8), np.full(count, -1)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(np.float64(logits) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
