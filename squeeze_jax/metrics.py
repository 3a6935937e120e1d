"""From sums on the device to numbers on the host: float64 and int64, divided once."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from squeeze_jax.steps import TOP_K

Values = dict[str, float]


def add_up(batches: Iterable[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Adds the sums of many batches in int64 and float64."""
    totals: dict[str, np.ndarray] = {}
    for sums in batches:
        for name, value in sums.items():
            value = np.asarray(value)
            wide = value.astype(np.int64 if np.issubdtype(value.dtype, np.integer) else np.float64)
            totals[name] = totals[name] + wide if name in totals else wide
    return totals


def example_means(sums: dict[str, Any], num_classes: int) -> Values:
    """Mean loss and accuracies in 0..1; "top5" only where there are more than five classes."""
    names = ["loss", "top1"] + (["top5"] if num_classes > TOP_K else [])
    return {name: float(sums[name]) / int(sums["examples"]) for name in names}


def window_means(window: dict[str, Any], num_classes: int) -> Values:
    """Means over a logging window: of examples, and of the norms over its steps."""
    norms = {name: float(value) / int(window["steps"]) for name, value in window.items() if name.endswith("_norm")}
    return example_means(window, num_classes) | norms


def per_class(confusion: np.ndarray, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row a class: examples, how many were right, recall ("accuracy") and precision; NaN where undefined."""
    rows = []
    for i, name in enumerate(class_names):
        examples, predicted, correct = int(confusion[i].sum()), int(confusion[:, i].sum()), int(confusion[i, i])
        rows.append(
            {
                "class": i,
                "name": name,
                "examples": examples,
                "correct": correct,
                "accuracy": correct / examples if examples else float("nan"),
                "precision": correct / predicted if predicted else float("nan"),
            }
        )
    return rows
