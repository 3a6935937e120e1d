"""The metrics of a classifier, from scikit-learn where it has them, with bootstrap intervals over patients."""

import math
from collections.abc import Callable, Collection, Mapping

import numpy as np

from squeeze_jax.errors import MetricError
from squeeze_jax.metrics.cases import Cases

BINS = 10  # of the expected calibration error and of the reliability plot
RESAMPLES = 1000
LEVEL = 0.95
NEEDED_SHARE = 0.9  # of the resamples in which a metric must be defined to have an interval

# Whether a higher value is better.
MULTI_CLASS = {
    "auc": True,
    "average_precision": True,
    "accuracy": True,
    "balanced_accuracy": True,
    "f1": True,
    "brier": False,
    "calibration_error": False,
}
BINARY = MULTI_CLASS | {"sensitivity": True, "specificity": True, "sensitivity_at_specificity": True}
NEED_ALL_CLASSES = {"auc", "average_precision", "balanced_accuracy", "sensitivity_at_specificity"}
NEED_POSITIVES = {"sensitivity", "f1"}
NEED_NEGATIVES = {"specificity"}


def available(num_classes: int) -> Mapping[str, bool]:
    """Returns the names of the metrics for this number of classes, and whether a higher value is better."""
    return BINARY if num_classes == 2 else MULTI_CLASS


def defined(label: np.ndarray, num_classes: int) -> set[str]:
    """Returns the names of the metrics that these labels define; the others need cases of a class that has none.

    Args:
      label: int (cases,).
      num_classes: the number of classes.
    """
    counts = np.bincount(label, minlength=num_classes)
    undefined = set() if counts.all() else set(NEED_ALL_CLASSES)
    if num_classes == 2:
        undefined |= (set() if counts[1] else NEED_POSITIVES) | (set() if counts[0] else NEED_NEGATIVES)
    elif not counts.all():
        undefined |= {"f1"}
    return set(available(num_classes)) - undefined if len(label) else set()


def scores(cases: Cases, names: Collection[str], specificity: float = 0.9) -> dict[str, float]:
    """Returns those of the named metrics that are defined, see `defined`.

    With two classes, class 1 is the positive one. With more, "auc" and "average_precision" are means of each class
    against the rest, "f1" is the mean over the classes, and "brier" the squared distance of the probabilities from the
    one-hot label (Brier 1950), which is between 0 and 2.

    Args:
      cases: the cases.
      names: some of `available`.
      specificity: of "sensitivity_at_specificity", the highest sensitivity at which the specificity is at least this.
    """
    from sklearn import metrics

    label, probability, prediction = cases.label, cases.probability, cases.prediction
    binary = cases.num_classes == 2
    score = probability[:, 1] if binary else probability
    one_hot = label if binary else np.eye(cases.num_classes)[label]
    functions: dict[str, Callable[[], float]] = {
        "auc": lambda: metrics.roc_auc_score(one_hot, score),
        "average_precision": lambda: metrics.average_precision_score(one_hot, score),
        "accuracy": lambda: metrics.accuracy_score(label, prediction),
        "balanced_accuracy": lambda: metrics.balanced_accuracy_score(label, prediction),
        "f1": lambda: metrics.f1_score(label, prediction, average="binary" if binary else "macro", zero_division=0),
        "brier": lambda: metrics.brier_score_loss(label, score, labels=range(cases.num_classes)),
        "calibration_error": lambda: expected_calibration_error(*confidence_and_hit(cases)),
        "sensitivity": lambda: metrics.recall_score(label, prediction),
        "specificity": lambda: metrics.recall_score(label, prediction, pos_label=0),
        "sensitivity_at_specificity": lambda: sensitivity_at(specificity, label, score),
    }
    known = defined(label, cases.num_classes)
    return {name: float(function()) for name, function in functions.items() if name in names and name in known}


def explain_undefined(cases: Cases, names: Collection[str], class_names: Collection[str]) -> str:
    """Returns a sentence about those of the named metrics that are not defined; "" if all are."""
    left_out = [name for name in names if name not in defined(cases.label, cases.num_classes)]
    if not left_out:
        return ""
    absent = [name for i, name in enumerate(class_names) if i not in cases.label]
    return f"{', '.join(left_out)} cannot be computed: none of the {len(cases)} cases is of class {', '.join(absent)}."


def auc(probability: np.ndarray, label: np.ndarray) -> float:
    """Returns the area under the ROC curve, as in MedMNIST's evaluator.

    With two classes this is the AUC of the second one, else the mean AUC of each class against the rest.

    Args:
      probability: float (examples, num_classes).
      label: int (examples,).

    Raises:
      MetricError: a class has no examples.
    """
    from sklearn.metrics import roc_auc_score

    num_classes = probability.shape[1]
    if "auc" not in defined(label, num_classes):
        raise MetricError(
            f"AUC needs examples of all {num_classes} classes; these {len(label)} have {np.unique(label)}."
        )
    if num_classes == 2:
        return float(roc_auc_score(label, probability[:, 1]))
    return float(roc_auc_score(np.eye(num_classes)[label], probability))


def sensitivity_at(specificity: float, label: np.ndarray, score: np.ndarray) -> float:
    """Returns the highest sensitivity of a threshold whose specificity is at least the given one.

    Args:
      specificity: in 0..1.
      label: int (cases,), 0 or 1, both present.
      score: float (cases,), higher for class 1.
    """
    from sklearn.metrics import roc_curve

    false_positives, sensitivity, _ = roc_curve(label, score, drop_intermediate=False)
    return float(sensitivity[1 - false_positives >= specificity].max())


def confidence_and_hit(cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    """Returns what reliability compares, two arrays (cases,).

    With two classes these are the probability of class 1 and whether it is the label; with more, the largest
    probability and whether its class is the label (Guo et al. 2017, arXiv 1706.04599, section 2).
    """
    if cases.num_classes == 2:
        return cases.probability[:, 1], cases.label == 1
    return cases.probability.max(axis=1), cases.probability.argmax(axis=1) == cases.label


def reliability(confidence: np.ndarray, hit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the mean confidence, the share of hits and the number of cases of each bin that is not empty.

    Args:
      confidence: float (cases,), in 0..1, which BINS bins of equal width divide.
      hit: bool (cases,).
    """
    index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts, confidences, hits = (np.bincount(index, weights, BINS) for weights in (None, confidence, hit))
    used = counts > 0
    return confidences[used] / counts[used], hits[used] / counts[used], counts[used]


def expected_calibration_error(confidence: np.ndarray, hit: np.ndarray) -> float:
    """Returns the mean distance between confidence and share of hits over the bins, weighted by their cases.

    Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning"; arguments as in `reliability`.
    """
    confidences, hits, counts = reliability(confidence, hit)
    return float(np.sum(np.abs(confidences - hits) * counts) / np.sum(counts))


def bootstrap(
    patient: np.ndarray,
    statistic: Callable[[np.ndarray], Mapping[str, float]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Returns bootstrap intervals of a statistic, by resampling patients with all of their cases.

    They are percentile intervals, widened for a small number of patients (Hesterberg 2015, "What Teachers Should Know
    About the Bootstrap", section 5.3).

    The cases of one patient are alike, so resampling cases or slices would give intervals that are too narrow (Field
    and Welsh 2007, "Bootstrapping clustered data").

    Args:
      patient: the patient of each case, int (cases,).
      statistic: maps the indices of the drawn cases, int (drawn,), to named values; a value that the draw does not
        define is left out.
      resamples: the number of draws.
      seed: the seed of the draws.

    Returns:
      (low, high) by name, at a level of 95 %; without values that fewer than 90 % of the draws define.
    """
    from scipy.stats import norm, t

    _, inverse, sizes = np.unique(patient, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(sizes)[:-1])
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(resamples):
        drawn = rng.integers(len(members), size=len(members))
        for name, value in statistic(np.concatenate([members[i] for i in drawn])).items():
            found.setdefault(name, []).append(value)
    count = len(members)
    tail = norm.cdf(math.sqrt(count / (count - 1)) * t.ppf((1 - LEVEL) / 2, count - 1)) if count > 1 else 0.0
    return {
        name: tuple(map(float, np.quantile(values, (tail, 1 - tail))))
        for name, values in found.items()
        if len(values) >= NEEDED_SHARE * resamples
    }


def intervals(
    cases: Cases, names: Collection[str], specificity: float = 0.9, *, resamples: int = RESAMPLES
) -> dict[str, tuple[float, float]]:
    """Returns 95 % bootstrap intervals of `scores` over patients; see `bootstrap`."""
    import sklearn

    # The checks of the arguments take longer than the metrics of a few hundred cases.
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        return bootstrap(cases.patient, lambda rows: scores(cases.take(rows), names, specificity), resamples=resamples)
