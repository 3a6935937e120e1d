"""The table of a compression: what each stage leaves of the network, in bytes and in answers."""

import dataclasses
from collections.abc import Iterable, Sequence

import flax.traverse_util
import numpy as np

from squeeze_jax.network import Network

ALEXNET = 240_000_000  # bytes, as the papers count them
TOP = 5
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Stage:
    """A network on its way.

    Attributes:
      name: of the stage.
      network: after it.
      bytes: of the file that holds it.
    """

    name: str
    network: Network
    bytes: int


@dataclasses.dataclass
class Answers:
    """What a network says of images, summed up beside the original's answers.

    Attributes:
      images: how many.
      labelled: how many of them have a label.
      top1, top5: how many labels are among the best one and five classes.
      agree: how often the best class is the original's.
      divergence: the sum of the Kullback-Leibler divergences of the original's probabilities from these, in nats.
    """

    images: int = 0
    labelled: int = 0
    top1: int = 0
    top5: int = 0
    agree: int = 0
    divergence: float = 0.0

    def add(self, probability: np.ndarray, original: np.ndarray, label: np.ndarray) -> None:
        """Counts a batch: float (images, classes) twice, and int (images,), -1 where there is no label."""
        p, q = (np.maximum(values.astype(np.float64), 1e-30) for values in (original, probability))
        order = np.argsort(-probability, axis=1, kind="stable")[:, :TOP]
        hits = order == label[:, None]
        self.images += len(label)
        self.labelled += int((label >= 0).sum())
        self.top1 += int(hits[:, 0].sum())
        self.top5 += int(hits.any(1).sum())
        self.agree += int((order[:, 0] == original.argmax(1)).sum())
        self.divergence += float((p * np.log(p / q)).sum())


def evaluate(stages: Sequence[Stage], batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[Answers]:
    """What each stage's network says of images; the first one is the original.

    Args:
      stages: whose networks have the same classes and image shape.
      batches: of up to BATCH raw images, uint8 (batch, *image_shape), and labels, int (batch,), -1 where there is none.
    """
    answers = [Answers() for _ in stages]
    for images, label in batches:
        original = None
        filled = np.resize(images, (BATCH, *images.shape[1:]))  # so that the last batch needs no compilation of its own
        for stage, found in zip(stages, answers, strict=True):
            probability = stage.network.predict(filled)[: len(label)]
            original = probability if original is None else original
            found.add(probability, original, label)
    return answers


def rows(stages: Sequence[Stage], answers: Sequence[Answers] | None = None) -> list[dict[str, str]]:
    """A row for each stage, with what its network says of images where that was asked."""
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
            "AlexNet / file": f"{ALEXNET / stage.bytes:.0f}",
        }
        if answers:
            found = answers[i]
            if found.labelled == found.images:
                row |= {"top-1": f"{found.top1 / found.images:.3f}", "top-5": f"{found.top5 / found.images:.3f}"}
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
    """That tell its values apart; 32 where most differ."""
    values = len(np.unique(kernel))
    return max(1, (values - 1).bit_length()) if 2 * values < kernel.size or values <= 256 else 32
