"""Judging: metrics against scikit-learn, degenerate labels, intervals, operating points, DeLong's test, pictures."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from squeeze_jax import plotting
from squeeze_jax.errors import ConfigError, MetricError
from squeeze_jax.metrics import delong
from squeeze_jax.metrics.cases import Cases, pool
from squeeze_jax.metrics.froc import froc
from squeeze_jax.metrics.operating_point import OperatingPoint, choose_threshold, fit_temperature, parse_rule
from squeeze_jax.metrics.plots import draw_curves, draw_froc
from squeeze_jax.metrics.scores import (
    BINARY,
    MULTI_CLASS,
    auc,
    bootstrap,
    expected_calibration_error,
    explain_undefined,
    explained_intervals,
    intervals,
    scores,
)

HALF = OperatingPoint()


def random_records(examples, classes, seed=0, **ids):
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=examples)
    logits = rng.normal(size=(examples, classes)) + 1.5 * np.eye(classes)[label]
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return {"label": label, "probability": probability, **ids}


@pytest.mark.parametrize(("seed", "positive", "threshold"), [(0, 1, 0.5), (1, 0, 0.5), (2, 1, 0.3), (2, 0, 0.3)])
def test_binary_metrics_are_those_of_scikit_learn(seed, positive, threshold):
    cases = Cases.of(random_records(200, 2, seed), OperatingPoint(threshold), positive=positive)
    label, score, guess = cases.label == positive, cases.probability[:, positive], cases.prediction == positive
    tn, fp, fn, tp = reference.confusion_matrix(label, score > threshold).ravel()
    expected = {
        "auc": reference.roc_auc_score(label, score),
        "average_precision": reference.average_precision_score(label, score),
        "accuracy": reference.accuracy_score(label, guess),
        "balanced_accuracy": reference.balanced_accuracy_score(label, guess),
        "f1": reference.f1_score(label, guess),
        "brier": np.mean((score - label) ** 2),
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
    }
    found = scores(cases, BINARY)
    assert found.keys() == BINARY.keys()
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    # By trying every threshold.
    best = max((score >= t)[label == 1].mean() for t in score if (score < t)[label == 0].mean() >= 0.9)
    assert found["sensitivity_at_specificity"] == pytest.approx(best)


def test_metrics_of_several_classes_are_those_of_scikit_learn():
    cases = Cases.of(random_records(300, 4), HALF)
    found = scores(cases, MULTI_CLASS)
    one_hot = np.eye(4)[cases.label]
    expected = {
        "auc": reference.roc_auc_score(cases.label, cases.probability, multi_class="ovr"),
        "average_precision": np.mean(
            [reference.average_precision_score(one_hot[:, i], cases.probability[:, i]) for i in range(4)]
        ),
        "accuracy": reference.accuracy_score(cases.label, cases.prediction),
        "balanced_accuracy": reference.balanced_accuracy_score(cases.label, cases.prediction),
        "f1": reference.f1_score(cases.label, cases.prediction, average="macro"),
        "brier": np.mean(np.sum((cases.probability - one_hot) ** 2, axis=1)),
    }
    assert found.keys() == MULTI_CLASS.keys()
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert auc(cases.probability, cases.label) == pytest.approx(expected["auc"])


def test_the_calibration_error_by_hand():
    # Bins: [0, 0.1): one case; [0.3, 0.4): two; [0.9, 1]: two, one of which is exactly 1.
    confidence = np.array([0.05, 0.32, 0.38, 0.94, 1.0])
    hit = np.array([False, True, False, True, True])
    expected = (1 * 0.05 + 2 * abs(0.35 - 0.5) + 2 * abs(0.97 - 1)) / 5
    assert expected_calibration_error(confidence, hit) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("only", "left", "missing"),
    [
        (0, {"accuracy", "specificity", "brier", "calibration_error"}, "malignant"),
        (1, {"accuracy", "sensitivity", "f1", "brier", "calibration_error"}, "benign"),
    ],
)
def test_with_one_class_only_what_is_undefined_is_left_out_and_named(only, left, missing):
    records = random_records(20, 2)
    cases = Cases.of({**records, "label": np.full(20, only)}, HALF)
    found = scores(cases, BINARY)
    assert found.keys() == left and np.isfinite(list(found.values())).all()
    message = explain_undefined(cases, BINARY, ("benign", "malignant"))
    assert f"none of the 20 cases is of class {missing}" in message and "auc" in message
    assert intervals(cases, BINARY, resamples=20).keys() == left
    with pytest.raises(MetricError, match=r"AUC needs examples of all 2 classes; these 20 have \[\d\]"):
        auc(cases.probability, cases.label)
    assert explain_undefined(Cases.of(records, HALF), BINARY, ("benign", "malignant")) == ""


def test_a_case_is_the_mean_of_its_slices():
    records = {
        "label": np.array([1, 0, 1, 1]),
        "probability": np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.1, 0.9]]),
        "case": np.array([7, 3, 7, 7]),
        "patient": np.array([1, 2, 1, 1]),
    }
    cases = Cases.of(records, HALF)
    assert cases.case.tolist() == [3, 7] and cases.patient.tolist() == [2, 1] and cases.slices.tolist() == [1, 3]
    np.testing.assert_allclose(cases.probability, [[0.3, 0.7], [0.4, 0.6]])
    assert cases.prediction.tolist() == [1, 1]
    assert Cases.of(records, OperatingPoint(threshold=0.65)).prediction.tolist() == [1, 0]
    row = cases.rows(("benign", "malignant"))[1]
    assert row["probability malignant"] == pytest.approx(0.6) and (row["case"], row["patient"]) == (7, 1)
    named = {**records, "case_name": np.array([f"n{i}" for i in records["case"]], object)}
    assert Cases.of(named, HALF).rows(("a", "b"))[1]["case"] == "n7"
    with pytest.raises(MetricError, match=r"case 7 has examples of several labels \(0, 1\)"):
        Cases.of({**records, "label": np.array([1, 0, 0, 1])}, HALF)
    with pytest.raises(MetricError, match=r"case 7 has examples of several patients \(1, 2\)"):
        Cases.of({**records, "patient": np.array([1, 2, 2, 1])}, HALF)


def test_the_positive_class_is_that_of_a_relabeled_dataset():
    """10 of 10 COVID found, 5 of 10 NonCOVID right; COVID is the first class."""
    p = np.array([0.9] * 10 + [0.8] * 5 + [0.1] * 5)  # of COVID
    records = {"label": np.repeat([0, 1], 10), "probability": np.stack([p, 1 - p], 1)}
    found = scores(Cases.of(records, HALF, positive=0), BINARY)
    assert (found["sensitivity"], found["specificity"]) == (1.0, 0.5)
    swapped = {"label": 1 - records["label"], "probability": records["probability"][:, ::-1]}
    assert found == scores(Cases.of(swapped, HALF), BINARY)
    without = {**records, "label": np.ones(20, int)}
    assert "sensitivity" not in scores(Cases.of(without, HALF, positive=0), BINARY)
    assert "specificity" not in scores(Cases.of(without, HALF), BINARY)


def test_there_is_no_interval_where_nothing_can_vary():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=20)
    records = {"label": np.arange(20) % 2, "probability": np.stack([1 - p, p], 1), "case": np.arange(20)}
    names = ["auc", "accuracy", "brier"]

    def judge(**changes):
        return explained_intervals(Cases.of({**records, **changes}, HALF), names, resamples=200)

    ranges, reasons = judge(patient=np.zeros(20, int))
    assert not ranges and set(reasons) == set(names) and "all cases are of one patient" in reasons["auc"]
    ranges, reasons = judge(patient=np.arange(20) % 10)
    assert set(ranges) == set(names) and not reasons and all(low < high for low, high in ranges.values())
    perfect = np.where(records["label"] == 1, 0.5 + p / 3, 0.5 - p / 3)
    ranges, reasons = judge(probability=np.stack([1 - perfect, perfect], 1))
    assert set(ranges) == {"brier"} and "the same in all resamples" in reasons["auc"]
    ranges, reasons = judge(label=np.arange(20) // 19)
    assert "auc" not in ranges and "of 200 resamples of the patients define it" in reasons["auc"]
    cases = Cases.of({**records, "patient": np.zeros(20, int)}, HALF)
    assert intervals(cases, names, resamples=20) == {}


def test_a_case_has_its_highest_probability_too():
    probability = np.array([0.9, 0.3, 0.6, 0.2])
    records = {"label": np.array([1, 1, 0, 0]), "probability": np.stack([1 - probability, probability], 1)}
    cases = Cases.of({**records, "case": np.array([7, 7, 8, 9])}, HALF)
    assert cases.probability[:, 1].tolist() == [0.6, 0.6, 0.2] and cases.highest[:, 1].tolist() == [0.9, 0.6, 0.2]


def test_folds_are_pooled_and_must_be_disjoint():
    first, second = (Cases.of(random_records(10, 2, seed), HALF, first=10 * seed) for seed in (0, 1))
    pooled = pool([first, second])
    assert pooled.case.tolist() == list(range(20)) and pooled.label[10:].tolist() == second.label.tolist()
    with pytest.raises(MetricError, match="case 0 is in several folds"):
        pool([first, first])
    patients = [Cases.of(random_records(2, 2, patient=np.array([5, 5])), HALF, first=first) for first in (0, 2)]
    with pytest.raises(MetricError, match="patient 5 is in several folds"):
        pool(patients)


def test_intervals_cover_at_the_nominal_rate_if_patients_are_resampled():
    """Patients of one class with 5 cases each that share most of their scores; the true AUC is Phi(1)."""
    rng = np.random.default_rng(0)
    patients, cases, trials = 60, 5, 200
    positive = np.arange(patients) % 2 == 1
    label = np.repeat(positive, cases)
    covered = {"patients": 0, "cases": 0}
    for trial in range(trials):
        shared, own = rng.normal(size=(patients, 1)) * np.sqrt(0.8), rng.normal(size=(patients, cases)) * np.sqrt(0.2)
        score = (shared + own + np.sqrt(2) * positive[:, None]).ravel()
        wins = (score[label][:, None] > score[~label]).astype(np.float32)

        def area(rows, wins=wins):
            drawn = np.bincount(rows, minlength=len(label)).astype(np.float32)
            return {"auc": drawn[label] @ wins @ drawn[~label] / (drawn[label].sum() * drawn[~label].sum())}

        for name, groups in (("patients", np.arange(len(label)) // cases), ("cases", np.arange(len(label)))):
            low, high = bootstrap(groups, area, resamples=200, seed=trial)["auc"]
            covered[name] += low <= stats.norm.cdf(1) <= high
    # The standard deviation of the coverage of 200 intervals is 0.015.
    assert 0.905 <= covered["patients"] / trials <= 0.985
    assert covered["cases"] / trials < 0.75, "what resampling cases would do"


def test_intervals_are_deterministic_and_contain_the_value():
    cases = Cases.of(random_records(80, 2, patient=np.arange(80) // 2), HALF)
    found, values = intervals(cases, BINARY, resamples=100), scores(cases, BINARY)
    assert found == intervals(cases, BINARY, resamples=100) and found.keys() == values.keys()
    assert all(low <= values[name] <= high for name, (low, high) in found.items() if name != "calibration_error")


def test_the_threshold_follows_its_rule():
    label = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 0])
    score = np.array([0.05, 0.1, 0.2, 0.3, 0.6, 0.25, 0.7, 0.8, 0.9, 0.85])
    assert choose_threshold("0.3", label, score) == 0.3
    # Above 0.65: 3 of 4 positives, 5 of 6 negatives below it.
    assert choose_threshold("youden", label, score) == pytest.approx(0.65)
    assert choose_threshold("specificity=0.9", label, score) == pytest.approx(0.875)
    assert choose_threshold("sensitivity=0.9", label, score) == pytest.approx(0.225)
    for wrong in ("1.5", "best", "specificity=2", "accuracy=0.9", ""):
        with pytest.raises(ConfigError, match="config.task.threshold=.*expected a probability such as '0.5'"):
            parse_rule(wrong)
    with pytest.raises(MetricError, match="needs cases of both classes in the validation data, but all of the 3"):
        choose_threshold("youden", np.ones(3, int), np.ones(3))
    # Nothing is positive where no score separates anything.
    assert choose_threshold("specificity=0.9", np.array([1, 0]), np.array([0.5, 0.5])) == 1.0


def test_the_temperature_is_that_by_which_the_logits_are_too_large():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(4000, 3))
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    label = (rng.uniform(size=(4000, 1)) > probability.cumsum(1)).sum(1)
    too_sure = np.exp(3 * logits) / np.exp(3 * logits).sum(1, keepdims=True)
    temperature = fit_temperature(label, too_sure.astype(np.float32))
    assert temperature == pytest.approx(3, rel=0.05)
    np.testing.assert_allclose(OperatingPoint(temperature=3).scale(too_sure), probability, rtol=1e-6)
    before, after = (
        expected_calibration_error(p.max(1), p.argmax(1) == label)
        for p in (too_sure, OperatingPoint(temperature=temperature).scale(too_sure))
    )
    assert after < before / 4


def test_delongs_areas_and_error_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=40)
    scores_ = [np.round(rng.normal(size=40) + label, 1) for _ in range(2)]  # with ties
    found = delong.compare(label, *scores_)
    assert [found.first, found.second] == pytest.approx([reference.roc_auc_score(label, score) for score in scores_])
    wins = [
        (score[label == 1][:, None] > score[label == 0]) + 0.5 * (score[label == 1][:, None] == score[label == 0])
        for score in scores_
    ]
    ten, one = (np.cov([win.mean(axis) for win in wins]) / wins[0].shape[1 - axis] for axis in (1, 0))
    covariance = ten + one
    assert found.error == pytest.approx(np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]))
    low, high = found.interval
    assert low < found.difference < high
    with pytest.raises(
        MetricError, match="at least two patients with cases of each class; 1 patient.s. have a positive case and 3"
    ):
        delong.compare(np.array([0, 0, 0, 1]), *np.ones((2, 4)))


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0.8, 0.9, 0.1, 0.2], -1),  # perfect against reversed
        ([0.1, 0.2, 0.8, 0.9], [0.5] * 4, -0.5),
        ([0.1, 0.2, 0.8, 0.9], [0.3, 0.4, 0.5, 0.6], 0),  # two without an error
        ([0.1, 0.8, 0.2, 0.9], [0.1, 0.8, 0.2, 0.9], 0),  # the same twice
    ],
)
def test_a_difference_without_variance_has_no_p_and_no_interval(first, second, difference):
    found = delong.compare(np.array([0, 0, 1, 1]), np.array(first), np.array(second))
    assert found.difference == difference and found.error == 0
    assert np.isnan(found.p) and np.isnan(found.interval).all()


@pytest.mark.parametrize("cases", [1, 4])
def test_delongs_p_is_uniform_under_the_null(cases):
    """With patients of one case each, and of several similar ones."""
    rng = np.random.default_rng(0)
    patients = 80
    patient = np.repeat(np.arange(patients), cases)
    label = np.repeat(np.arange(patients) % 2, cases)
    found, ignored = [], []
    for _ in range(400):
        common = rng.normal(size=patients)[patient]
        own = [rng.normal(size=patients)[patient] + 0.3 * rng.normal(size=len(label)) for _ in range(2)]
        first, second = (label + common + noise for noise in own)
        found.append(delong.compare(label, first, second, patient).p)
        ignored.append(delong.compare(label, first, second).p)
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert (cases == 1) == (stats.kstest(ignored, "uniform").pvalue > 0.01), "what ignoring the patients would do"


def test_curves_are_drawn(tmp_path):
    two, three = (Cases.of(random_records(30, classes), HALF) for classes in (2, 3))
    assert draw_curves(tmp_path / "a.png", {"": two}, ("benign", "malignant")).stat().st_size > 10_000
    assert draw_curves(tmp_path / "b.png", {"v1": three, "v2": three}, ("a", "b", "c")).stat().st_size > 10_000
    only = Cases.of({**random_records(30, 2), "label": np.zeros(30, int)}, HALF)
    assert draw_curves(tmp_path / "c.png", {"$_$": only}, ("benign", "$\\frac$")).exists()  # no formulas
    curve = froc(two.probability[:, 1], two.label, two.patient // 5)
    assert draw_froc(tmp_path / "d.png", {"v1": curve}, "malignant").stat().st_size > 10_000


def test_pictures_name_the_positive_class(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plotting, "save", lambda figure, path: drawn.append(figure))
    cases = Cases.of(random_records(30, 2), HALF, positive=0)
    draw_curves(tmp_path / "a.png", {"": cases}, ("benign", "malignant"))
    draw_froc(tmp_path / "b.png", {"v1": froc(cases.probability[:, 0], cases.label == 0, cases.case)}, "benign")
    titles = [axis.get_title() for figure in drawn for axis in figure.axes]
    assert titles == ["ROC of benign", "precision-recall of benign", "reliability of benign", "FROC of benign"]
    roc, dot = drawn[0].axes[0].lines[:2]
    expected = reference.roc_curve(cases.label == 0, cases.probability[:, 0])
    np.testing.assert_allclose(roc.get_xydata().T, expected[:2])
    tn, fp, fn, tp = reference.confusion_matrix(cases.label == 0, cases.probability[:, 0] > 0.5).ravel()
    assert dot.get_xydata().tolist() == [[fp / (fp + tn), tp / (tp + fn)]]
