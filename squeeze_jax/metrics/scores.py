"""The metrics of a classifier, with bootstrap intervals over patients."""

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
SAME = 1e-12  # values of resamples that differ by less are equal but for rounding


def available(num_classes: int) -> Mapping[str, bool]:
    """Returns the names of the metrics for this number of classes, and whether a higher value is better."""
    return BINARY if num_classes == 2 else MULTI_CLASS


def defined(label: np.ndarray, num_classes: int, positive: int = 1) -> set[str]:
    """Returns the names of the metrics that these labels define; the others need cases of a class that has none.

    Args:
      label: int (cases,).
      num_classes: the number of classes.
      positive: the positive one of two classes.
    """
    counts = np.bincount(label, minlength=num_classes)
    undefined = set() if counts.all() else set(NEED_ALL_CLASSES)
    if num_classes == 2:
        undefined |= set() if counts[positive] else NEED_POSITIVES
        undefined |= set() if counts[1 - positive] else NEED_NEGATIVES
    elif not counts.all():
        undefined |= {"f1"}
    return set(available(num_classes)) - undefined if len(label) else set()


def scores(cases: Cases, names: Collection[str], specificity: float = 0.9) -> dict[str, float]:
    """Returns those of the named metrics that are defined, see `defined`.

    With two classes, one of them is positive (`Cases.positive`). With more, "auc" and "average_precision" are means of
    each class against the rest, "f1" is the mean over the classes, and "brier" the squared distance of the
    probabilities from the one-hot label (Brier 1950), which is between 0 and 2.

    Args:
      cases: the cases.
      names: some of `available`.
      specificity: of "sensitivity_at_specificity", the highest sensitivity at which the specificity is at least this.
    """
    wanted = defined(cases.label, cases.num_classes, cases.positive).intersection(names)
    found = _decisions(cases) | _probabilities(cases)
    if wanted & {"auc", "average_precision", "sensitivity_at_specificity"}:
        found |= _rankings(cases, specificity)
    return {name: found[name] for name in available(cases.num_classes) if name in wanted}


def _decisions(cases: Cases) -> dict[str, float]:
    """Returns the metrics of the predicted classes; those that are not defined are NaN.

    They are counted here, because the checks of scikit-learn's functions would take most of the time of the bootstrap.
    """
    size = cases.num_classes
    confusion = np.bincount(cases.label * size + cases.prediction, minlength=size**2).reshape(size, size)
    hits, labels, predictions = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        recall = hits / labels
        f1 = 2 * hits / (labels + predictions)
    found = {"accuracy": hits.sum() / labels.sum(), "balanced_accuracy": recall.mean()}
    if size == 2:
        positive, negative = cases.positive, 1 - cases.positive
        found |= {"f1": f1[positive], "specificity": recall[negative], "sensitivity": recall[positive]}
    else:
        found["f1"] = f1.mean()
    return {name: float(value) for name, value in found.items()}


def _probabilities(cases: Cases) -> dict[str, float]:
    distance = np.sum((cases.probability - np.eye(cases.num_classes)[cases.label]) ** 2, axis=1)
    if cases.num_classes == 2:
        distance = distance / 2  # that of one class alone
    return {
        "brier": float(distance.mean()),
        "calibration_error": expected_calibration_error(*confidence_and_hit(cases)),
    }


def _rankings(cases: Cases, specificity: float) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, roc_curve

    if cases.num_classes > 2:
        one_hot = np.eye(cases.num_classes)[cases.label]
        return {
            "auc": auc(cases.probability, cases.label),
            "average_precision": float(average_precision_score(one_hot, cases.probability)),
        }
    score, label = confidence_and_hit(cases)
    false_positives, sensitivity, _ = roc_curve(label, score, drop_intermediate=False)
    return {
        "auc": float(np.trapezoid(sensitivity, false_positives)),
        "average_precision": float(average_precision_score(label, score)),
        "sensitivity_at_specificity": float(sensitivity[1 - false_positives >= specificity].max()),
    }


def explain_undefined(cases: Cases, names: Collection[str], class_names: Collection[str]) -> str:
    """Returns a sentence about those of the named metrics that are not defined; "" if all are."""
    left_out = [name for name in names if name not in defined(cases.label, cases.num_classes, cases.positive)]
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


def confidence_and_hit(cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    """Returns what reliability compares, two arrays (cases,).

    With two classes these are the probability of the positive one and whether it is the label; with more, the largest
    probability and whether its class is the label (Guo et al. 2017, arXiv 1706.04599, section 2).
    """
    if cases.num_classes == 2:
        return cases.probability[:, cases.positive], cases.label == cases.positive
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
      (low, high) by name, at a level of 95 %; without those of `explained_bootstrap` that have none.
    """
    return explained_bootstrap(patient, statistic, resamples=resamples, seed=seed)[0]


def explained_bootstrap(
    patient: np.ndarray, statistic: Callable[[np.ndarray], Mapping[str, float]], *, resamples: int, seed: int = 0
) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """Returns the intervals of `bootstrap`, and for each value without an interval a sentence that says why.

    There is none where nothing can vary: with one patient, or if all draws have the same value, such as the AUC of a
    classifier without an error; nor if fewer than 90 % of the draws define the value.
    """
    _, inverse, sizes = np.unique(patient, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(sizes)[:-1])
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(resamples):
        drawn = rng.integers(len(members), size=len(members))
        for name, value in statistic(np.concatenate([members[i] for i in drawn])).items():
            found.setdefault(name, []).append(value)
    ranges, reasons = {}, {}
    for name, values in found.items():
        if len(members) < 2:
            reasons[name] = "no interval: all cases are of one patient."
        elif len(values) < NEEDED_SHARE * resamples:
            reasons[name] = f"no interval: only {len(values)} of {resamples} resamples of the patients define it."
        elif np.ptp(values) < SAME:
            reasons[name] = "no interval: it is the same in all resamples of the patients."
        else:
            tail = _tail(len(members))
            ranges[name] = tuple(map(float, np.quantile(values, (tail, 1 - tail))))
    return ranges, reasons


def _tail(patients: int) -> float:
    """Returns the probability of each tail, which is larger for more patients (Hesterberg 2015, section 5.3)."""
    from scipy.stats import norm, t

    return float(norm.cdf(math.sqrt(patients / (patients - 1)) * t.ppf((1 - LEVEL) / 2, patients - 1)))


def intervals(
    cases: Cases, names: Collection[str], specificity: float = 0.9, *, resamples: int = RESAMPLES
) -> dict[str, tuple[float, float]]:
    """Returns 95 % bootstrap intervals of `scores` over patients; see `bootstrap`."""
    return explained_intervals(cases, names, specificity, resamples=resamples)[0]


def explained_intervals(
    cases: Cases, names: Collection[str], specificity: float = 0.9, *, resamples: int = RESAMPLES
) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """Returns the intervals of `intervals`, and for each metric without one the reason; see `explained_bootstrap`."""
    import sklearn

    # The checks of the arguments take longer than the metrics of a few hundred cases.
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        return explained_bootstrap(
            cases.patient, lambda rows: scores(cases.take(rows), names, specificity), resamples=resamples
        )
