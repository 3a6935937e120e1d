"""Images grouped by patient and case: layouts of folders, splits by patient, groups in the records of an evaluation."""

import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SHARED, configure
from PIL import Image

from squeeze_jax.config import base_config, validate
from squeeze_jax.data.prepare import unpack
from squeeze_jax.data.sources import open_dataset
from squeeze_jax.data.splits import Split, hold_out, make_folds
from squeeze_jax.errors import ConfigError, DataError
from squeeze_jax.experiment import build, find_split, make_task
from squeeze_jax.network import Network


def write_images(root, paths):
    for i, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(file)


def test_a_case_of_several_classes_is_named():
    examples = [
        {"image": np.zeros((2, 2, 1), np.uint8), "label": label, "case": case, "patient": 0}
        for label, case in ((1, 0), (0, 1), (1, 1), (0, 1))
    ]
    names = {"patient": ("p",), "case": ("s1/n7", "s1/n8")}
    task = make_task(base_config(), ("vessel", "nodule"))
    message = r"train: the case s1/n8 has examples of several classes \(vessel, nodule\), .* cases of their own"
    with pytest.raises(DataError, match=message):
        task.check_split(Split("lung/train", examples, (2, 2, 1), 2), names)
    examples[2]["label"] = 0
    task.check_split(Split("lung/train", examples, (2, 2, 1), 2), names)


def grouped(patients, rng):
    """A split of one to four examples a patient, of two classes."""
    examples = [
        {"image": np.zeros((2, 2, 1), np.uint8), "label": int(rng.random() < 0.3), "patient": patient}
        for patient in range(patients)
        for _ in range(rng.integers(1, 5))
    ]
    return Split("grouped/all", examples, (2, 2, 1), 2)


@pytest.mark.parametrize(
    ("paths", "sizes", "groups"),
    [
        (["train/a/1.png", "val/a/1.png", "val/b/1.png"], {"train": 1, "validation": 2}, {}),
        (["train/a/p1/1.png", "test/b/p2/1.png"], {"test": 1, "train": 1}, {"patient": ("p2", "p1")}),
        (
            ["a/p1/n1/1.png", "a/p1/n1/2.png", "b/p1/n1/1.png"],
            {"train": 3},
            {"patient": ("p1",), "case": ("a/p1/n1", "b/p1/n1")},
        ),
        (
            ["subset0/a/p1/n1/1.png", "subset1/b/p2/n1/1.png"],
            {"subset0": 1, "subset1": 1},
            {"patient": ("p1", "p2"), "case": ("a/p1/n1", "b/p2/n1")},
        ),
    ],
)
def test_layouts(tmp_path, paths, sizes, groups):
    write_images(tmp_path, paths)
    dataset = open_dataset(str(tmp_path))
    assert dataset.source.split_sizes == sizes and dataset.group_names == groups
    for name in sizes:
        targets = dataset.split(name).targets()
        assert targets.keys() == {"label", *groups}
        batch = dataset.split(name).batch(range(sizes[name]))
        for group, names in groups.items():
            assert batch[group].dtype == np.int32 and batch[group].tolist() == targets[group].tolist()
            assert set(targets[group]) <= set(range(len(names)))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["1.png"], "contains no images in split/class/"),
        (["train/a/p/n/s/1.png"], "the other layouts are"),
        (
            ["train/a/p1/n1/1.png", "train/a/p1/2.png"],
            "a/p1/n1/1.png is not in split/class/patient/, like other images",
        ),
        (["train/a/p1/1.png", "test/b/p1/1.png"], "the patient p1 is in test and in train; move all images"),
        (["train/a/p1/1.png", "other/b/p2/1.png"], r"called like splits \(train\), so the others .* \(other\)"),
        (["Train/a/p1/1.png", "other/b/p2/1.png"], r"called like splits \(Train\), so the others .* \(other\)"),
    ],
)
def test_wrong_layouts_are_named(tmp_path, paths, message):
    write_images(tmp_path, paths)
    with pytest.raises(DataError, match=message):
        open_dataset(str(tmp_path))


def test_folds_are_divided_by_patient_with_equal_shares_of_the_classes():
    split = grouped(200, np.random.default_rng(0))
    targets = split.targets()
    folds = make_folds(split, 5)
    assert sorted(np.concatenate(folds)) == list(range(len(split)))
    patients = [set(targets["patient"][fold]) for fold in folds]
    assert not any(patients[i] & patients[j] for i in range(5) for j in range(i))
    shares = [targets["label"][fold].mean() for fold in folds]
    np.testing.assert_allclose(shares, targets["label"].mean(), atol=0.02)
    np.testing.assert_allclose([len(fold) for fold in folds], len(split) / 5, rtol=0.05)
    assert all((a == b).all() for a, b in zip(folds, make_folds(split, 5), strict=True))
    with pytest.raises(DataError, match="grouped/all has 3 patients; expected at least 5"):
        make_folds(split.subset(np.flatnonzero(targets["patient"] < 3)), 5)


def test_patients_are_held_out_as_a_whole():
    split = grouped(50, np.random.default_rng(1))
    rest, held_out = hold_out(split, 20)
    assert 20 <= len(held_out) < 24 and len(rest) + len(held_out) == len(split)
    assert not set(rest.targets()["patient"]) & set(held_out.targets()["patient"])
    for count in (0, -3, len(split)):
        with pytest.raises(DataError, match=f"cannot hold out {count} of the {len(split)} examples"):
            hold_out(split, count)
    with pytest.raises(DataError, match="by patient leaves none"):
        hold_out(split.subset(np.flatnonzero(split.targets()["patient"] == 7)[:2].repeat(2)), 1)


def test_every_example_is_tested_in_one_fold(data_dir):
    folds = {"dataset.folds": 4, "dataset.train_split": "train[:400]"}
    tested = []
    for fold in range(4):
        config = configure(data_dir, **folds, **{"dataset.fold": fold})
        dataset = open_dataset(config.dataset.name, data_dir)
        splits = {name: find_split(dataset, config, name) for name in ("train", "validation", "test")}
        assert sum(map(len, splits.values())) == 400 and len(splits["test"]) == 100
        tested.append(splits)
    images = [split["test"].batch(range(100))["image"] for split in tested]
    assert len(np.unique(np.concatenate(images).reshape(400, -1), axis=0)) == len(
        np.unique(open_dataset("digits", data_dir).split("train").batch(range(400))["image"].reshape(400, -1), axis=0)
    )
    following = tested[1]["test"].batch(range(100))["image"]
    np.testing.assert_array_equal(tested[0]["validation"].batch(range(100))["image"], following)


def test_stored_splits_are_folds(tmp_path):
    write_images(tmp_path, [f"subset{i}/{c}/p{i}{c}/1.png" for i in range(4) for c in "ab"])
    config = configure(None, **{"dataset.name": str(tmp_path), "dataset.fold": 3})
    config.dataset.folds = tuple(f"subset{i}" for i in range(4))
    splits = build(config).splits
    assert {name: split.name.rsplit("/", 1)[1] for name, split in splits.items()} == {
        "train": "subset1+subset2",
        "validation": "subset0",
        "test": "subset3",
    }
    config.dataset.folds = ("subset0", "subset1", "subset9")
    config.dataset.fold = 0
    with pytest.raises(DataError, match="has no split 'subset9'"):
        build(config)


def test_a_patient_in_two_splits_of_a_run_is_refused(tmp_path):
    write_images(tmp_path, [f"{c}/p{i}{c}/n/{j}.png" for i in range(4) for c in "ab" for j in range(2)])
    splits = {"train_split": "train", "validation_split": "train", "test_split": ""}
    with pytest.raises(ConfigError, match="a patient is in the splits train and validation; divide by"):
        build(configure(None, **{"dataset.name": str(tmp_path)}, **{f"dataset.{k}": v for k, v in splits.items()}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.sampling": "balanced", "task.mixup": 0.2}, "would mix the same pairs of classes"),
        ({"dataset.folds": 2}, "expected 0, at least 3 folds, or the names"),
        ({"dataset.folds": 5, "dataset.fold": 5}, "config.dataset.fold=5; expected 0 to 4"),
        (
            {"dataset.folds": 5, "dataset.held_out": 9, "dataset.validation_split": ""},
            "leave config.dataset.held_out at 0",
        ),
    ],
)
def test_wrong_folds_and_sampling_are_named(data_dir, changes, message):
    with pytest.raises(ConfigError, match=message):
        validate(configure(data_dir, **changes))


def test_records_name_the_groups(tmp_path):
    write_images(tmp_path, [f"{c}/p{i}/n{j}/{k}.png" for c in "ab" for i in range(3) for j in range(2) for k in "xy"])
    config = configure(None, **{"dataset.name": str(tmp_path), "dataset.folds": 3})
    experiment = build(config)
    batch = experiment.splits["test"].batch(range(4))
    records = experiment.task.records(jnp.zeros((4, 2)), batch)
    assert records.keys() == {"label", "prediction", "patient", "case"}
    np.testing.assert_array_equal(records["case"], batch["case"])
    names = [experiment.dataset.group_names["case"][i] for i in batch["case"]]
    assert all(name[0] == "ab"[label] for name, label in zip(names, batch["label"], strict=True))


def test_an_evaluation_names_its_cases_and_patients(tmp_path):
    write_images(tmp_path, [f"{c}/p{i}/n{j}/{k}.png" for c in "ab" for i in range(3) for j in range(2) for k in "xy"])
    small = {"model.base_filters": 8, "model.filter_increment": 8, "task.metrics": "full"}
    config = configure(None, **{"dataset.name": str(tmp_path), "dataset.folds": 3, **small})
    experiment = build(config)
    variables = experiment.model.init(jax.random.key(0), jnp.zeros((1, *experiment.input_shape)))
    network = Network(experiment.model, variables, config, 0, ("a", "b"), experiment.dataset.image_shape)
    evaluation = network.evaluate()
    rows = evaluation.task.cases(evaluation.records).rows(network.class_names)
    assert [row["case"][0] for row in rows] == [row["label"] for row in rows]
    assert all(row["case"].split("/")[1] == row["patient"] for row in rows) and len(rows) == 4


def test_lidc_slices_are_divided_by_exam(tmp_path):
    archive = SHARED / "lung" / "lidc_malignancy_slices_64x64.zip"
    if not archive.exists():
        pytest.skip(f"{archive} is not there; set SQUEEZE_JAX_SHARED")
    unpack(archive, str(tmp_path))
    dataset = open_dataset(archive.stem, str(tmp_path))
    assert dataset.class_names == ("benign", "malignant") and dataset.image_shape == (64, 64, 1)
    whole = dataset.split("train")
    targets = whole.targets()
    assert np.bincount(targets["label"]).tolist() == [2189, 1735] and len(dataset.group_names["patient"]) == 396
    with zipfile.ZipFile(archive) as zipped:
        cases = {name.rsplit("/", 1)[0] for name in zipped.namelist() if name.endswith(".png")}
    assert set(dataset.group_names["case"]) == cases
    # All slices of a case have one label.
    for case in range(len(cases)):
        assert len(set(targets["label"][targets["case"] == case])) == 1
    patients = [set(targets["patient"][fold]) for fold in make_folds(whole, 5)]
    assert sum(map(len, patients)) == 396
