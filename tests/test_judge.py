"""`experiments.judge`: folds are pooled, seeds averaged, models compared on the same cases."""

import csv
import dataclasses
import functools
import pathlib
import re

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments import judge
from experiments.judge import ENSEMBLE, Run, compare, evaluate, grouped, judged, name_models, write
from squeeze_jax.data.augmentation import Preprocessing
from squeeze_jax.errors import InputError
from squeeze_jax.tasks import Classification, classification

FOLDS, CASES = 3, 40
TASK = Classification(("benign", "malignant"), Preprocessing(), metrics="full", threshold="youden", calibrate=True)


def records(seed, first, strength):
    """Two slices of each of 40 nodules, two nodules a patient."""
    case = np.repeat(np.arange(first, first + CASES), 2)
    label = case * 7919 % 97 % 2
    logit = np.random.default_rng(seed).normal(size=len(case)) + strength * (label - 0.5)
    p = 1 / (1 + np.exp(-logit))
    return {"label": label, "probability": np.stack([1 - p, p], 1), "case": case, "patient": case // 2}


def run(name, seed, fold, strength=1.0):
    noise = [hash_of(name), seed, fold]
    validation, test = records([*noise, 0], 1000, strength), records([*noise, 1], CASES * fold, strength)
    config = {"model.name": name, "train.batch_size": 32}
    return Run(pathlib.Path(name, f"fold={fold}"), "", config, seed, fold, FOLDS, TASK, validation, test)


def hash_of(name):
    return sum(name.encode())


@pytest.fixture(scope="module")
def runs():
    return [
        run(name, seed, fold, strength)
        for name, strength in (("fire", 0.5), ("nodule", 3.0))
        for seed in (0, 1)
        for fold in (2, 0, 1)
    ]


def all_judged(runs, ensemble=False):
    return {key: judged(folds) for key, folds in grouped(runs, ensemble=ensemble).items()}


def test_every_case_is_judged_once_at_the_threshold_of_its_own_fold(runs):
    found = grouped(runs, ensemble=False)
    assert list(found) == [("fire", 0), ("fire", 1), ("nodule", 0), ("nodule", 1)]
    cases = judged(found["nodule", 1])
    assert cases.case.tolist() == list(range(FOLDS * CASES)) and set(cases.slices) == {2}
    points = {TASK.fitted(r.validation).point for r in runs if r.seed == 1 and r.model["model.name"] == "nodule"}
    assert len(points) == FOLDS
    fold = next(r for r in runs if (r.model["model.name"], r.seed, r.fold) == ("nodule", 1, 2))
    point = TASK.fitted(fold.validation).point
    expected = point.scale(fold.test["probability"])[:, 1].reshape(-1, 2).mean(1)
    np.testing.assert_allclose(cases.probability[2 * CASES :, 1], expected)
    np.testing.assert_array_equal(cases.prediction[2 * CASES :], expected > point.threshold)


def test_an_ensemble_averages_the_seeds_and_is_better(runs):
    alone, together = all_judged(runs), all_judged(runs, ensemble=True)
    assert list(together) == [("fire", ENSEMBLE), ("nodule", ENSEMBLE)]
    hits = {key: (cases.prediction == cases.label).mean() for key, cases in {**alone, **together}.items()}
    assert hits["nodule", ENSEMBLE] > max(hits["nodule", 0], hits["nodule", 1])
    other = dataclasses.replace(runs[0], seed=1, test=records(5, 7 * CASES, 1.0))
    with pytest.raises(InputError, match="the seeds of a model were tested on different examples"):
        grouped([runs[0], other], ensemble=True)


def test_a_missing_or_repeated_fold_is_an_error(runs):
    with pytest.raises(InputError, match="model fire, seed 0: fold 1 is missing"):
        grouped(runs[:2], ensemble=False)
    with pytest.raises(InputError, match="fire/fold=2 are both of the model fire, seed 0, fold 2; judge one of them"):
        grouped([runs[0], *runs[:3]], ensemble=False)


def named_runs(*configs, named=("",) * 9, folds=1):
    paths = (pathlib.Path("sweeps", f"s{i}", f"run{i}") for i in range(9))
    rest = (0, 0, folds, TASK, None, {})
    return [Run(path, name, config, *rest) for path, name, config in zip(paths, named, configs, strict=False)]


def test_models_have_names_that_can_be_read():
    fire, nodule = {"model.name": "fire", "init_from": ""}, {"model.name": "nodule", "init_from": ""}
    loaded = {"model.name": "fire", "init_from": "/far/away/weights.net", "train.batch_size": 8}
    runs = named_runs(fire, nodule, loaded, fire)
    assert name_models(runs) == ["fire", "nodule", "fire, init_from=weights.net", "fire"]
    assert name_models(named_runs(fire, fire)) == ["fire", "fire"]
    flat = {**fire, "augment.flip": ("height", "width"), "dataset.name": "/far/slices", "model.squeeze_ratio": 0.5}
    deep = {**fire, "augment.flip": ("depth",), "dataset.name": "/far/volumes", "model.squeeze_ratio": 0.5}
    assert name_models(named_runs(flat, deep)) == ["fire, dataset=slices", "fire, dataset=volumes"]
    flips = [{**fire, "augment.flip": flip} for flip in (("depth",), ("width",))]  # tuples alone: the folders
    assert name_models(named_runs(*flips)) == ["run0", "run1"] and name_models(named_runs(*flips, folds=5)) == [
        "s0",
        "s1",
    ]
    assert name_models(named_runs({}, {})) == ["run0", "run0"]


def test_models_have_the_names_that_they_are_given():
    fire, nodule = {"model.name": "fire"}, {"model.name": "nodule"}
    assert name_models(named_runs(fire, nodule, fire), ["A", "B"]) == ["A", "B", "A"]
    assert name_models(named_runs(fire, nodule, fire, named=("a", "b", "a"))) == ["a", "b", "a"]
    with pytest.raises(InputError, match="--names has 1 names, but the runs are of 2 models: fire, nodule"):
        name_models(named_runs(fire, nodule), ["A"])
    with pytest.raises(InputError, match="2 models, whose configs differ, are called a; give"):
        name_models(named_runs(fire, nodule, named=("a", "a")))


def test_a_name_precedes_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fold=0").mkdir()
    assert judge.named_path("2-D=runs/slices") == ("2-D", pathlib.Path("runs/slices"))
    for path in ("fold=0", "runs/fold=0"):  # the first one exists, the second one has its "=" in the path
        assert judge.named_path(path) == ("", pathlib.Path(path))


def test_models_are_compared_seed_by_seed_on_the_same_cases(runs):
    found = all_judged(runs)
    rows = compare(found)
    assert [row[:2] for row in rows] == [["nodule", "0"], ["nodule", "1"]]
    assert all(row[2].startswith("+0.") and row[4] == "< 0.001" for row in rows)
    other = {**found, ("nodule", 0): found["nodule", 0].take(np.arange(50))}
    with pytest.raises(InputError, match="nodule and fire were tested on different cases"):
        compare(other)


def test_the_report(runs, tmp_path, capsys):
    found = grouped([r for r in runs if r.seed == 0], ensemble=False)
    write(found, TASK, tmp_path, "lung", num_nodules=100)
    text = capsys.readouterr().out
    assert text.startswith("Positive class: malignant.\n\n| model | seed |") and "no interval" not in text
    assert "| fire | 0 | 120 | 60 | 0." in text and "competition score |" in text and "DeLong's test of" in text
    assert {path.name for path in tmp_path.iterdir()} == {
        "lung.csv",
        "lung.md",
        "lung.png",
        "lung_cases.csv",
        "lung_folds.csv",
        "lung_froc.png",
    }
    with (tmp_path / "lung_folds.csv").open() as file:
        folds = list(csv.DictReader(file))
    assert [(row["model"], row["fold"]) for row in folds] == [
        (name, str(i)) for name in ("fire", "nodule") for i in (0, 1, 2)
    ]
    of_fold = judged([found["nodule", 0][1]])  # the AUC and the sensitivity of a fold alone
    called, label = of_fold.prediction == 1, of_fold.label == 1
    assert float(folds[4]["sensitivity"]) == pytest.approx(called[label].mean())
    assert float(folds[4]["auc"]) == pytest.approx(roc_auc_score(label, of_fold.probability[:, 1]))
    assert "| fire | 0 | mean ± s. d. |" in text and "Pooled, cases of different folds" in text
    score = re.search(r"\| fire \| 0 \| 120 .* ([\d.]+) \(([\d.]+) to ([\d.]+)\) \|\n", text)
    assert float(score[2]) < float(score[1]) < float(score[3])
    with (tmp_path / "lung.csv").open() as file:
        rows = {(row["model"], row["metric"]): row for row in csv.DictReader(file)}
    assert {row["positive class"] for row in rows.values()} == {"malignant"}
    auc = rows["nodule", "auc"]
    assert float(auc["low"]) < float(auc["value"]) < float(auc["high"])
    with (tmp_path / "lung_cases.csv").open() as file:
        judged_cases = list(csv.DictReader(file))
    assert len(judged_cases) == 2 * FOLDS * CASES and judged_cases[0]["positive class"] == "malignant"


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    few = functools.partial(classification.explained_intervals, resamples=100)
    monkeypatch.setattr(classification, "explained_intervals", few)


@pytest.fixture
def quick(monkeypatch):
    """No curves."""
    monkeypatch.setattr(judge, "draw_curves", lambda *_: None)


def test_the_report_of_the_other_class(runs, tmp_path, capsys, monkeypatch, quick):
    """Every number of one class is that of the other one where the classes, and their rules, change places."""
    task = dataclasses.replace(TASK, positive="benign", threshold="sensitivity=0.8")
    swapped = dataclasses.replace(task, positive="", class_names=TASK.class_names[::-1])
    monkeypatch.setattr(judge, "draw_froc", lambda path, curves, positive: drawn.append(positive))

    def swap(records):
        return {**records, "label": 1 - records["label"], "probability": records["probability"][:, ::-1]}

    def tables(task, change=lambda records: records):
        of_task = [
            dataclasses.replace(r, task=task, validation=change(r.validation), test=change(r.test))
            for r in runs
            if r.seed == 0
        ]
        write(grouped(of_task, ensemble=False), task, tmp_path, "lung", num_nodules=100)
        with (tmp_path / "lung.csv").open() as file:
            return capsys.readouterr().out, list(csv.DictReader(file))

    drawn = []
    ours, theirs = tables(task), tables(swapped, swap)
    assert ours == theirs and ours[0].startswith("Positive class: benign.") and drawn == ["benign"] * 2
    other = tables(dataclasses.replace(task, positive="malignant"))
    sensitivity = [next(row for row in rows if row["metric"] == "sensitivity") for _, rows in (ours, other)]
    assert sensitivity[0]["value"] != sensitivity[1]["value"] and float(sensitivity[0]["value"]) > 0.6


def test_where_nothing_varies_the_report_says_so(tmp_path, capsys, quick):
    """One patient; then a perfect classifier against a constant one on four patients."""
    task = Classification(("benign", "malignant"), Preprocessing(), metrics="full")

    def report(patient, **models):
        found = {}
        for name, p in models.items():
            records = {"label": np.array([0, 0, 1, 1]), "probability": np.stack([1 - np.array(p), p], 1)}
            records |= {"case": np.arange(4), "patient": np.array(patient)}
            found[name, 0] = [Run(tmp_path, "", {}, 0, 0, 1, task, None, records)]
        write(found, task, tmp_path, "few")
        return capsys.readouterr().out

    text = report([0] * 4, perfect=[0.1, 0.2, 0.8, 0.9], other=[0.1, 0.6, 0.3, 0.9])
    assert "| perfect | 0 | 4 | 1 | 1.000 | 1.000 |" in text and "- other, seed 0: auc, average precision, " in text
    assert "| other | 0 |  | none: DeLong's test needs at least two patients with cases of each class" in text
    text = report(range(4), perfect=[0.1, 0.2, 0.8, 0.9], constant=[0.5] * 4)
    assert "| constant | 0 | -0.5000 | none: the difference has no variance | none |" in text
    assert "no interval: it is the same in all resamples of the patients." in text


def test_froc_needs_two_classes_and_counts(monkeypatch, tmp_path):
    task = Classification(("a", "b", "c"), Preprocessing(), metrics="full")
    with pytest.raises(InputError, match=r"FROC \(--nodules\) is for two classes; there are a, b, c"):
        write({}, task, tmp_path, "x", num_nodules=3)
    for arguments, message in (
        (["--scans=5"], "--scans is for FROC, which needs --nodules"),
        (["--nodules=0"], "--nodules=0; expected at least 1"),
        (["--nodules=3", "--scans=-1"], "--scans=-1; expected at least 1"),
    ):
        monkeypatch.setattr("sys.argv", ["judge", str(tmp_path), f"--output={tmp_path}", *arguments])
        with pytest.raises(InputError, match=message):
            judge.main()
    assert not list(tmp_path.iterdir())


def test_a_run_of_many_classes_is_judged(reference, tmp_path):
    ((_, seed), folds), *_ = grouped([evaluate(reference, {})], ensemble=False).items()
    cases = judged(folds)
    assert seed == 0 and cases.num_classes == 10 and len(cases) == 300


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not finished; start its command again"):
        evaluate(tmp_path, {})
