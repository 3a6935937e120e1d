"""From sums on the device to numbers on the host: float64 and int64, divided once."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from squeeze_jax.steps import TOP_K

Values = dict[str, float]


def add_up(batches: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Adds the sums of many evaluation steps in int64 and float64, and joins their scores without the padding."""
    totals: dict[str, np.ndarray] = {}
    parts: dict[str, list[np.ndarray]] = {}
    for sums, scores in batches:
        for name, value in sums.items():
            value = np.asarray(value)
            wide = value.astype(np.int64 if np.issubdtype(value.dtype, np.integer) else np.float64)
            totals[name] = totals[name] + wide if name in totals else wide
        for name in scores.keys() - {"mask"}:
            parts.setdefault(name, []).append(np.asarray(scores[name])[np.asarray(scores["mask"])])
    return totals, {name: np.concatenate(values) for name, values in parts.items()}


def auc(probability: np.ndarray, label: np.ndarray) -> float:
    """Area under the ROC curve: of the last class where there are two, else the mean of one class against the rest.

    That is how MedMNIST's evaluator counts. NaN where a class has no example.

    Args:
      probability: (examples, num_classes).
      label: int (examples,).
    """
    from sklearn.metrics import roc_auc_score

    num_classes = probability.shape[1]
    if len(np.unique(label)) < num_classes:
        return float("nan")
    classes = [num_classes - 1] if num_classes == 2 else range(num_classes)
    return float(np.mean([roc_auc_score(label == i, probability[:, i]) for i in classes]))


def sensitivity_and_specificity(probability: np.ndarray, label: np.ndarray) -> Values:
    """Of a test with two outcomes, class 1 the positive one, at a probability of one half; NaN where undefined."""
    positive = probability[:, 1] > 0.5
    rates = {}
    for name, hit, of in (("sensitivity", positive, label == 1), ("specificity", ~positive, label == 0)):
        rates[name] = float((hit & of).sum() / of.sum()) if of.any() else float("nan")
    return rates


def score_metrics(scores: dict[str, np.ndarray]) -> Values:
    """AUC, and with two classes sensitivity and specificity; nothing where there are no scores."""
    if not scores:
        return {}
    values = {"auc": auc(**scores)}
    if scores["probability"].shape[1] == 2:
        values |= sensitivity_and_specificity(**scores)
    return values


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
