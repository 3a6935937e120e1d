"""Free-response ROC: sensitivity against false positives per scan, and the competition score of LUNA16.

The rules are those of LUNA16's evaluation script (Setio et al. 2017, arXiv 1612.08012):

- Of each scan at most 100 candidates count: those with a score above that of the 101st.
- A nodule counts with the best of its candidates. The others of the same nodule are not false positives.
- A candidate on an irrelevant finding counts neither as a nodule nor as a false positive.
- Every other candidate is a false positive.
- A nodule without a candidate that counts is never found.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from squeeze_jax.data.splits import IGNORED
from squeeze_jax.errors import MetricError
from squeeze_jax.metrics.cases import groups_of
from squeeze_jax.metrics.operating_point import OperatingPoint
from squeeze_jax.metrics.scores import RESAMPLES, explained_bootstrap

LUNA16_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per scan
LUNA16_MARKS = 100  # of a scan


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


def candidates(
    records: Mapping[str, np.ndarray], point: OperatingPoint, first: int = 0, positive: int = 1
) -> dict[str, np.ndarray]:
    """Returns the arguments of `froc` for the examples of an evaluation: each of them is a candidate.

    Args:
      records, point, first, positive: as in `Cases.of`; and "ignored", bool (examples,), if known.
    """
    label = np.asarray(records["label"])
    nodule, _, scan = groups_of(records, first)
    return {
        "score": point.scale(np.asarray(records["probability"]))[:, positive],
        "label": (label == positive).astype(int),
        "scan": scan,
        "nodule": nodule,
        "ignored": np.asarray(records.get(IGNORED, np.zeros(len(label))), bool),
    }


def froc(score: np.ndarray, label: np.ndarray, scan: np.ndarray, **given: Any) -> Froc:
    """Computes the FROC curve of candidates by the rules above; arguments and errors are those of `Marks.of`."""
    return Marks.of(score, label, scan, **given).curve()


@dataclasses.dataclass(frozen=True)
class Marks:
    """What the rules above count, so that a curve of candidates with weights is computed fast.

    Attributes:
      score_of: the score of each candidate, float (candidates,).
      best: the candidate that counts for each nodule that is found, int (hits,).
      nodules: a candidate of each nodule that has one, int (nodules,).
      false: the candidates that are false positives, int (misses,).
      scans: a candidate of each scan that has one, int (scans,).
      more_nodules, more_scans: the number of those without a candidate.
    """

    score_of: np.ndarray
    best: np.ndarray
    nodules: np.ndarray
    false: np.ndarray
    scans: np.ndarray
    more_nodules: int
    more_scans: int

    @classmethod
    def of(
        cls,
        score: np.ndarray,
        label: np.ndarray,
        scan: np.ndarray,
        *,
        nodule: np.ndarray | None = None,
        ignored: np.ndarray | None = None,
        num_nodules: int | None = None,
        num_scans: int | None = None,
    ) -> "Marks":
        """Applies the rules to candidates.

        Args:
          score: float (candidates,).
          label: int (candidates,), 1 on a nodule, else 0.
          scan: the scan of each candidate, int (candidates,).
          nodule: the nodule of each candidate with label 1, int (candidates,); None if each is of another one.
          ignored: whether a candidate is on an irrelevant finding, bool (candidates,); None if none is.
          num_nodules: the nodules in all scans; None if each has a candidate.
          num_scans: the scans, also those without candidates; None if each has one.

        Raises:
          MetricError: no candidate is on a nodule, or a count is smaller than what the candidates have.
        """
        score = np.asarray(score, np.float64)
        relevant = np.ones(len(score), bool) if ignored is None else ~np.asarray(ignored, bool)
        on_nodule = (np.asarray(label) == 1) & relevant
        nodule = np.arange(len(score)) if nodule is None else np.asarray(nodule)
        nodules = np.flatnonzero(on_nodule)[np.unique(nodule[on_nodule], return_index=True)[1]]
        scans = np.unique(scan, return_index=True)[1]
        found = {"nodules": len(nodules), "scans": len(scans)}
        given = {"nodules": num_nodules, "scans": num_scans}
        counts = {name: found[name] if count is None else count for name, count in given.items()}
        if not counts["nodules"]:
            raise MetricError("FROC needs at least one nodule; no candidate is on one.")
        for name, count in counts.items():
            if count < found[name]:
                raise MetricError(
                    f"the candidates are of {found[name]} {name}, but the number of {name} is given as {count}."
                )
        counted = _counted(score, scan)
        hits = np.flatnonzero(on_nodule & counted)
        hits = hits[np.argsort(-score[hits], kind="stable")]
        best = hits[np.unique(nodule[hits], return_index=True)[1]]  # the first one of each nodule is the best
        false = np.flatnonzero(relevant & ~on_nodule & counted)
        more = (counts[name] - found[name] for name in ("nodules", "scans"))
        return cls(score, best, nodules, false, scans, *more)

    @functools.cached_property
    def _steps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the candidates by falling score, which of them are hits, and the last one of each threshold."""
        marks = np.concatenate([self.best, self.false])
        order = np.argsort(-self.score_of[marks], kind="stable")
        score = self.score_of[marks][order]
        last = np.flatnonzero(np.append(score[1:] != score[:-1], True)[: len(score)])
        return marks[order], (order < len(self.best)), last

    def curve(self, weight: np.ndarray | None = None) -> Froc:
        """Returns the curve where each candidate, with its scan and nodule, is there so many times.

        Args:
          weight: (candidates,), the same for all candidates of a scan; None for once.
        """
        weight = np.ones(len(self.score_of)) if weight is None else weight
        marks, is_hit, last = self._steps
        true, false = (np.append(0, np.cumsum(weight[marks] * chosen)[last]) for chosen in (is_hit, ~is_hit))
        num_scans = weight[self.scans].sum() + self.more_scans
        num_nodules = weight[self.nodules].sum() + self.more_nodules
        return Froc(false / num_scans, true / num_nodules if num_nodules else 0.0 * true)

    def competition_interval(
        self, patient: np.ndarray, resamples: int = RESAMPLES
    ) -> tuple[tuple[float, float] | None, str]:
        """Returns the 95 % bootstrap interval of the competition score over patients, or None and the reason.

        Patients are resampled with their scans and candidates. Nodules and scans without a candidate, whose patients
        are not known, are in every resample.

        Args:
          patient: the patient of each candidate, (candidates,); all candidates of a scan are of one.
          resamples: the number of resamples.
        """

        def statistic(rows: np.ndarray) -> dict[str, float]:
            return {"score": self.curve(np.bincount(rows, minlength=len(self.score_of))).competition_score}

        ranges, reasons = explained_bootstrap(patient, statistic, resamples=resamples)
        return ranges.get("score"), reasons.get("score", "")


def _counted(score: np.ndarray, scan: np.ndarray) -> np.ndarray:
    """Returns which candidates are among the best ones of their scan, bool (candidates,); ties at the end are not."""
    _, of_scan, sizes = np.unique(scan, return_inverse=True, return_counts=True)
    best_first = np.lexsort((-score, of_scan))
    crowded = sizes > LUNA16_MARKS
    limit = np.full(len(sizes), -np.inf)
    limit[crowded] = score[best_first[(np.cumsum(sizes) - sizes)[crowded] + LUNA16_MARKS]]
    return score > limit[of_scan]
