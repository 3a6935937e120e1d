"""FROC: the published rules of LUNA16 by hand and by an independent implementation, from a list to the score."""

import csv
import dataclasses

import numpy as np
import pytest
from sklearn import metrics as reference

from squeeze_jax.data import scans, synthetic_nodules
from squeeze_jax.data.builders.scans import examples, features
from squeeze_jax.data.candidates import read_candidates
from squeeze_jax.errors import DataError, MetricError
from squeeze_jax.metrics import froc as froc_module
from squeeze_jax.metrics.froc import LUNA16_RATES, candidates, froc
from squeeze_jax.metrics.operating_point import OperatingPoint

HALF = OperatingPoint()


def test_froc_and_the_competition_score_by_hand():
    """Two scans with three nodules, one of which has two candidates, one none."""
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    label = np.array([1, 0, 1, 0, 1, 0])
    nodule = np.array([1, 3, 1, 4, 2, 5])
    scan = np.array([0, 0, 0, 1, 1, 1])
    records = {"label": label, "probability": np.stack([1 - score, score], 1), "case": nodule, "scan": scan}
    found = candidates({**records, "patient": scan}, HALF)
    curve = froc(**found, num_nodules=3)
    # At 0.9: nodule 1. At 0.8 and 0.6: a false positive each. At 0.5: nodule 2. At 0.4: the third false positive.
    points = list(zip(curve.false_positives.tolist(), (3 * curve.sensitivity).tolist(), strict=True))
    assert points == [(0, 0), (0, 1), (0.5, 1), (1, 1), (1, 2), (1.5, 2)]
    assert curve.competition_score == pytest.approx((3 * 1 + 4 * 2) / 3 / 7)
    assert froc(**found, num_nodules=3, num_scans=4).false_positives[-1] == 0.75
    assert froc(score, label, scan).sensitivity[-1] == 1
    with pytest.raises(MetricError, match="the candidates are of 2 nodules, but the number of nodules is given as 1"):
        froc(**found, num_nodules=1)
    with pytest.raises(MetricError, match="the candidates are of 2 scans, but the number of scans is given as 0"):
        froc(**found, num_scans=0)
    with pytest.raises(MetricError, match="no candidate is on one"):
        froc(score, 0 * label, scan)
    assert froc(score, 0 * label, scan, num_nodules=3).competition_score == 0


def test_the_positive_class_is_the_nodule():
    probability = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    records = {"label": np.array([0, 1, 0]), "probability": probability, "case": np.array([4, 5, 4])}
    found = candidates(records, HALF, positive=0)
    assert found["score"].tolist() == [0.9, 0.4, 0.3] and found["label"].tolist() == [1, 0, 1]
    assert froc(**found).sensitivity.tolist() == [0, 1, 1] and not found["ignored"].any()


def test_a_candidate_on_an_irrelevant_finding_counts_as_nothing():
    score, label, scan = np.array([0.8, 0.9, 0.7]), np.array([1, 0, 1]), np.zeros(3, int)
    assert froc(score, label, scan).competition_score < 1
    curve = froc(score, label, scan, ignored=np.array([False, True, True]))
    assert curve.competition_score == 1 and curve.false_positives.tolist() == [0, 0]


def test_a_hundred_marks_of_a_scan_count():
    """Scan 0 has 450 false candidates above the nodule of scan 1, and a nodule with the 101st score."""
    score = np.append(np.linspace(0.6, 0.9, 450), 0.5)
    label, scan = np.append(np.zeros(450, int), 1), np.append(np.zeros(450, int), 1)
    curve = froc(score, label, scan, num_scans=50)
    assert curve.false_positives.tolist() == [*(np.arange(101) / 50), 2.0]
    assert curve.competition_score == pytest.approx(3 / 7)  # at 2, 4 and 8
    label[349] = 1
    assert froc(score, label, scan, num_scans=50).sensitivity[-1] == 0.5
    assert froc(np.full(101, 0.5), np.ones(101, int), np.zeros(101, int)).sensitivity[-1] == 0  # ties at the end


def by_the_published_rules(rows, nodules, scan_names, marks):
    """LUNA16's score of rows (scan, score, nodule or None, irrelevant), by loops over scans and nodules."""
    truth, scores = [], []
    for name in scan_names:
        of_scan = [row for row in rows if row[0] == name]
        if len(of_scan) > marks:
            lowest = sorted((row[1] for row in of_scan), reverse=True)[marks]
            of_scan = [row for row in of_scan if row[1] > lowest]
        for nodule in {row[2] for row in of_scan if row[2] is not None and not row[3]}:
            truth.append(1)
            scores.append(max(row[1] for row in of_scan if row[2] == nodule))
        for row in of_scan:
            if row[2] is None and not row[3]:
                truth.append(0)
                scores.append(row[1])
    found, false = sum(truth), len(truth) - sum(truth)
    if not found or not false:
        return found / nodules
    false_rate, true_rate, _ = reference.roc_curve(truth, scores)
    per_scan, sensitivity = false_rate * false / len(scan_names), true_rate * found / nodules
    return np.mean([np.interp(rate, per_scan, sensitivity) for rate in LUNA16_RATES])


def test_the_score_is_that_of_the_published_rules(monkeypatch):
    monkeypatch.setattr(froc_module, "LUNA16_MARKS", 12)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        names, rows, nodules = range(rng.integers(1, 6)), [], 0
        for name in names:
            for nodule in range(rng.integers(0, 4)):
                nodules += 1
                rows += [(name, rng.random(), (name, nodule), False) for _ in range(rng.integers(0, 4))]
            rows += [(name, rng.random(), None, rng.random() < 0.3) for _ in range(rng.integers(0, 20))]
        decimals = rng.integers(1, 4)  # with few of them, scores are equal
        rows = [(name, round(score, decimals), nodule, irrelevant) for name, score, nodule, irrelevant in rows]
        if not any(row[2] for row in rows):
            continue
        ids = {nodule: i for i, nodule in enumerate({row[2] for row in rows if row[2]})}
        rows = [rows[i] for i in rng.permutation(len(rows))]
        curve = froc(
            np.array([row[1] for row in rows]),
            np.array([row[2] is not None for row in rows]),
            np.array([row[0] for row in rows]),
            # Candidates beside nodules are false positives each, whatever id they share.
            nodule=np.array([ids.get(row[2], -1) for row in rows]),
            ignored=np.array([row[3] for row in rows]),
            num_nodules=nodules,
            num_scans=len(names),
        )
        expected = by_the_published_rules(rows, nodules, names, 12)
        assert curve.competition_score == pytest.approx(expected, abs=1e-12)
        seen.add(round(expected, 3))
    assert len(seen) > 50


def test_froc_is_scikit_learns_roc_curve_in_other_units():
    rng = np.random.default_rng(0)
    label, score = rng.integers(2, size=500), rng.random(500)
    curve = froc(score, label, np.arange(500) // 10, num_nodules=400)
    false, true, _ = reference.roc_curve(label, score)
    for rate in (0.125, 0.5, 2.0, 8.0):
        expected = np.interp(rate, false * (label == 0).sum() / 50, true * label.sum() / 400)
        assert curve.sensitivity_at(rate) == pytest.approx(expected)


def test_prepared_examples_say_what_is_ignored_if_the_list_does():
    scan, nodules, others = synthetic_nodules.generate(0)
    listed, cut = [nodules[0].candidate, dataclasses.replace(others[0], ignored=True)], scans.Cut("axial", 8)
    assert "ignored" in features(cut, listed) and "ignored" not in features(cut, listed[:1])
    stored = [example for _, example in examples(scan, listed, cut, with_ignored=True)]
    assert [example["ignored"] for example in stored] == [False, True]
    assert all("ignored" not in example for _, example in examples(scan, listed, cut))


def test_the_column_ignore_is_read(tmp_path):
    path = tmp_path / "list.csv"

    def write(*values):
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["seriesuid", "coordX", "coordY", "coordZ", "class", "ignore"])
            writer.writerows(["s1", 1, 2, 3, 0, value] for value in values)

    write("0", "1", "", " 1 ")
    assert [candidate.ignored for candidate in read_candidates(path)] == [False, True, False, True]
    write("0", "yes")
    with pytest.raises(DataError, match=r"list.csv, line 3: the column ignore has 'yes'; expected 1 on an irrelevant"):
        read_candidates(path)
