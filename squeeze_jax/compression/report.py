"""The table of a compression: file size and accuracy after each stage."""

import dataclasses
from collections.abc import Iterable, Sequence

import flax.traverse_util
import numpy as np

from squeeze_jax.network import Network

ALEXNET = 240_000_000  # bytes, as stated in the papers
IMAGENET_CLASSES = 1000  # of the networks that the ratio to AlexNet is for
TOP = 5
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a compression.

    Attributes:
      name: the name of the stage.
      network: the network after the stage.
      bytes: the size of its file in bytes.
    """

    name: str
    network: Network
    bytes: int


@dataclasses.dataclass
class Answers:
    """Sums over the predictions of a network, compared with those of the original network.

    Attributes:
      images: the number of images.
      classes: the number of classes.
      labeled: the number of images with a label.
      top1: the number of labeled images whose label is the top prediction.
      top5: the number of labeled images whose label is among the top five predictions.
      agree: the number of images with the same top prediction as the original network.
      gained: the number of labeled images that only this network, not the original one, predicts correctly.
      lost: the number of labeled images that only the original network predicts correctly.
      divergence: the sum of the Kullback-Leibler divergences KL(original || network), in nats.
    """

    images: int = 0
    classes: int = 0
    labeled: int = 0
    top1: int = 0
    top5: int = 0
    agree: int = 0
    gained: int = 0
    lost: int = 0
    divergence: float = 0.0

    @property
    def has_labels(self) -> bool:
        """Whether all images have labels."""
        return self.labeled == self.images

    def accuracies(self) -> dict[str, float]:
        """Returns "top-1" and, of more than five classes, "top-5", as shares of the images."""
        counts = {"top-1": self.top1} | ({"top-5": self.top5} if self.classes > TOP else {})
        return {name: count / self.images for name, count in counts.items()}

    def add(self, probability: np.ndarray, original: np.ndarray, label: np.ndarray) -> None:
        """Adds a batch of predictions.

        Args:
          probability: the probabilities of the network, float (images, classes).
          original: the probabilities of the original network, float (images, classes).
          label: the labels, int (images,); -1 for unlabeled images.
        """
        p, q = (np.maximum(values.astype(np.float64), 1e-30) for values in (original, probability))
        order = np.argsort(-probability, axis=1, kind="stable")[:, :TOP]
        hits = order == label[:, None]
        self.images += len(label)
        self.classes = probability.shape[1]
        self.labeled += int((label >= 0).sum())
        self.top1 += int(hits[:, 0].sum())
        self.top5 += int(hits.any(1).sum())
        self.agree += int((order[:, 0] == original.argmax(1)).sum())
        before, now = original.argmax(1) == label, hits[:, 0]
        self.gained += int((now & ~before).sum())
        self.lost += int((before & ~now).sum())
        self.divergence += float((p * np.log(p / q)).sum())


def evaluate(stages: Sequence[Stage], batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[Answers]:
    """Evaluates the network of each stage on images.

    Args:
      stages: the stages, starting with the original network; all networks have the same classes and image shape.
      batches: batches of at most BATCH raw images, uint8 (batch, *image_shape), and labels, int (batch,); -1 for
        unlabeled images.

    Returns:
      The sums for each stage.
    """
    answers = [Answers() for _ in stages]
    for images, label in batches:
        original = None
        filled = np.resize(images, (BATCH, *images.shape[1:]))  # pads the last batch to avoid a recompilation
        for stage, found in zip(stages, answers, strict=True):
            probability = stage.network.predict(filled)[: len(label)]
            original = probability if original is None else original
            found.add(probability, original, label)
    return answers


def rows(stages: Sequence[Stage], answers: Sequence[Answers] | None = None) -> list[dict[str, str]]:
    """Returns the rows of the table, one per stage.

    Args:
      stages: the stages, starting with the original network.
      answers: the results of `evaluate`; None for a table without accuracies.
    """
    dense = 4 * sum(leaf.size for leaf in flax.traverse_util.flatten_dict(stages[0].network.variables).values())
    table = []
    for i, stage in enumerate(stages):
        kernels = _kernels(stage.network)
        nonzero, size = (sum(map(count, kernels)) for count in (np.count_nonzero, np.size))
        row = {
            "stage": stage.name,
            "non-zero": f"{nonzero / size:.1%}",
            "bits": str(max(map(_bits, kernels))),
            "bytes": f"{stage.bytes:,}",
            "32 bits / file": f"{dense / stage.bytes:.1f}",
        }
        if len(stage.network.class_names) == IMAGENET_CLASSES:
            row["AlexNet / file"] = f"{ALEXNET / stage.bytes:.0f}"
        if answers:
            found = answers[i]
            if found.has_labels:
                row |= {name: f"{share:.3f}" for name, share in found.accuracies().items()}
                row |= {"gained / lost": f"{found.gained} / {found.lost}"}
            row |= {
                "agreement": f"{found.agree / found.images:.3f}",
                "KL": f"{found.divergence / found.images:.4f}",
            }
        table.append(row)
    return table


def _kernels(network: Network) -> list[np.ndarray]:
    leaves = flax.traverse_util.flatten_dict(network.variables, sep="/")
    return [np.asarray(leaf) for name, leaf in leaves.items() if name.endswith("/kernel")]


def _bits(kernel: np.ndarray) -> int:
    """Returns the number of bits needed to index the distinct values of a kernel; 32 if most of them differ."""
    values = len(np.unique(kernel))
    return max(1, (values - 1).bit_length()) if 2 * values < kernel.size or values <= 256 else 32
