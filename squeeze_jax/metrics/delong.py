"""DeLong's test: whether two classifiers have the same AUC on the same cases."""

import dataclasses
import math

import numpy as np

from squeeze_jax.errors import MetricError

ROUNDING = 1e-13  # of a standard error; the smallest one of a million cases of each class is ten times this


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The AUC of two classifiers on the same cases.

    Attributes:
      first, second: their AUC.
      error: the standard error of second - first; 0 where nothing varies between the cases.
      p: of the two-sided test that both are equal; NaN if `error` is 0, because there is nothing to test against.
    """

    first: float
    second: float
    error: float
    p: float

    @property
    def difference(self) -> float:
        """By how much the second AUC is higher."""
        return self.second - self.first

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference, by the normal approximation; (NaN, NaN) if `error` is 0."""
        from scipy.stats import norm

        if not self.error:
            return math.nan, math.nan
        half = norm.ppf(0.975) * self.error
        return self.difference - half, self.difference + half


def compare(label: np.ndarray, first: np.ndarray, second: np.ndarray, patient: np.ndarray | None = None) -> Comparison:
    """Compares two classifiers (DeLong et al. 1988), with midranks (Sun and Xu 2014).

    With patients of several cases, this is the test for clustered data of Obuchowski 1997; with one case each, it is
    DeLong's.

    Args:
      label: int (cases,), 0 or 1.
      first, second: the score of each classifier, float (cases,), higher for class 1.
      patient: the patient of each case, int (cases,); None if each case is of another one.

    Raises:
      MetricError: fewer than two patients have a case of each class.
    """
    from scipy.stats import norm, rankdata

    positive = np.asarray(label) == 1
    counts = positive.sum(), (~positive).sum()
    groups = np.unique(np.arange(len(label)) if patient is None else patient, return_inverse=True)[1]
    clusters = groups.max(initial=-1) + 1
    having = [len(np.unique(groups[chosen])) for chosen in (positive, ~positive)]
    if min(having) < 2:
        raise MetricError(
            f"DeLong's test needs at least two patients with cases of each class; {having[0]} patient(s) have a "
            f"positive case and {having[1]} a negative one."
        )
    areas, deviations = [], []
    for score in (np.asarray(first, np.float64), np.asarray(second, np.float64)):
        ranks = rankdata(score)
        component = np.empty(
            len(score)
        )  # the share of cases of the other class that a case is ranked correctly against
        component[positive] = (ranks[positive] - rankdata(score[positive])) / counts[1]
        component[~positive] = 1 - (ranks[~positive] - rankdata(score[~positive])) / counts[0]
        area = component[positive].mean()
        areas.append(area)
        deviations.append(
            [np.bincount(groups, np.where(chosen, component - area, 0), clusters) for chosen in (positive, ~positive)]
        )
    of_positives, of_negatives = (later - earlier for earlier, later in zip(*deviations, strict=True))
    variance = sum(
        of @ of * size / ((size - 1) * count**2)
        for of, size, count in zip((of_positives, of_negatives), having, counts, strict=True)
    )
    variance += 2 * (of_positives @ of_negatives) * clusters / ((clusters - 1) * counts[0] * counts[1])
    difference, error = areas[1] - areas[0], math.sqrt(max(variance, 0.0))
    error = error if error > ROUNDING else 0.0
    p = 2 * norm.sf(abs(difference) / error) if error else math.nan
    return Comparison(float(areas[0]), float(areas[1]), error, float(p))
