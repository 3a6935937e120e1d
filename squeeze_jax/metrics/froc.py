"""Free-response ROC: sensitivity against false positives per scan, and the competition score of LUNA16."""

import dataclasses

import numpy as np

from squeeze_jax.errors import MetricError

LUNA16_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per scan


@dataclasses.dataclass(frozen=True)
class Froc:
    """A FROC curve.

    Attributes:
      false_positives: per scan, increasing, float (points,).
      sensitivity: found nodules of all nodules, float (points,).
    """

    false_positives: np.ndarray
    sensitivity: np.ndarray

    def sensitivity_at(self, false_positives: float) -> float:
        """Returns the interpolated sensitivity at a number of false positives per scan."""
        return float(np.interp(false_positives, self.false_positives, self.sensitivity))

    @property
    def competition_score(self) -> float:
        """The mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan (Setio et al. 2017)."""
        return float(np.mean([self.sensitivity_at(rate) for rate in LUNA16_RATES]))


def froc(
    score: np.ndarray,
    label: np.ndarray,
    scan: np.ndarray,
    *,
    num_nodules: int | None = None,
    num_scans: int | None = None,
) -> Froc:
    """Computes the FROC curve of cases, as LUNA16's evaluation script does of candidates.

    A case is a nodule, which counts with the best of its candidates (`Cases.highest`), or a single candidate without a
    nodule. Nodules without a candidate are never found.

    Args:
      score: float (cases,).
      label: int (cases,), 1 for a nodule, else 0.
      scan: the scan of each case, int (cases,).
      num_nodules: the nodules in all scans; None if each has a candidate.
      num_scans: the scans, also those without candidates; None if each has one.

    Raises:
      MetricError: no case is a nodule, or a count is smaller than what the cases have.
    """
    positive = np.asarray(label) == 1
    score = np.asarray(score, np.float64)
    hits, misses = score[positive], score[~positive]
    scans = len(np.unique(scan))
    num_nodules, num_scans = num_nodules or len(hits), num_scans or scans
    if not num_nodules:
        raise MetricError("FROC needs at least one nodule; no candidate has label 1.")
    for name, count, least in (("nodules", num_nodules, len(hits)), ("scans", num_scans, scans)):
        if count < least:
            raise MetricError(f"the candidates are of {least} {name}, but the number of {name} is given as {count}.")
    thresholds = np.unique(np.concatenate([hits, misses]))[::-1]
    found = len(hits) - np.searchsorted(np.sort(hits), thresholds)
    false = len(misses) - np.searchsorted(np.sort(misses), thresholds)
    return Froc(np.append(0, false) / num_scans, np.append(0, found) / num_nodules)
