"""A run whose folder of images changed: resumed, repeated and evaluated, it says what changed and writes nothing."""

import hashlib
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from conftest import configure
from PIL import Image

from squeeze_jax import network
from squeeze_jax.data import identity
from squeeze_jax.data.identity import Identity, StoredSplit
from squeeze_jax.data.sources import open_dataset
from squeeze_jax.errors import ConfigError, DataError
from squeeze_jax.training import trainer


def picture(path, seed, size=(20, 20), level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 60, (*size, 1), np.uint8) + level
    Image.fromarray(pixels[..., 0]).save(path)


def pictures(root):
    for split in ("train", "val"):
        for label, name in enumerate(("ants", "bees")):
            for i in range(8):
                picture(root / split / name / f"{i}.png", i + 8 * label, level=150 * label)


def rename(root):
    for split in ("train", "val"):
        (root / split / "ants").rename(root / split / "wasps")


def add_class(root):
    for split in ("train", "val"):
        shutil.copytree(root / split / "ants", root / split / "cats")


def remove_class(root):
    add_class(root)
    rename(root)
    shutil.rmtree(root / "train" / "bees")
    shutil.rmtree(root / "val" / "bees")


def add_files(root):
    for split in ("train", "val"):
        for i in range(5):
            picture(root / split / "ants" / f"new{i}.png", i)


def delete_files(root):
    for split in ("train", "val"):
        (root / split / "bees" / "3.png").unlink()


def replace_file(root):
    """By one of the same size in bytes and the same time: the last byte of its checksum differs."""
    for split in ("train", "val"):
        path = root / split / "bees" / "3.png"
        stored = path.read_bytes()
        path.write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]))


CHANGES = [
    (rename, "new classes: wasps; classes that are gone: ants"),
    (add_class, "new classes: cats"),
    (remove_class, "new classes: cats, wasps; classes that are gone: ants, bees"),
    (add_files, r"{}: 5 files more \(ants/new0.png, ants/new1.png, ants/new2.png, ...\)"),
    (delete_files, r"{}: 1 file less \(bees/3.png\)"),
    (replace_file, r"{}: 1 file with other contents \(bees/3.png\)"),
]


def written(workdir):
    return {
        path.relative_to(workdir): hashlib.md5(path.read_bytes()).hexdigest()
        for path in workdir.rglob("*")
        if path.is_file() and path.name not in ("log.txt", "lock")
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder, the workdir of a run on it that stopped, and a config for it."""
    root = tmp_path_factory.mktemp("identity")
    pictures(root / "data" / "pictures")

    def config(**overrides):
        values = {"dataset.name": "pictures", "dataset.image_size": (), "dataset.test_split": "", "train.batch_size": 4}
        values |= {"train.duration": "4 steps", "schedule.warmup": "0 steps", "run.evaluate_every": "2 steps"}
        values |= {"run.stop_after_steps": 2, "model.dropout_rate": 0.0}
        return configure(str(root / "data"), **{**values, **overrides})

    trainer.train_and_evaluate(config(), root / "stopped")
    return root, config


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_changed_folder_is_named_when_resumed_and_when_evaluated(run, tmp_path, change, message):
    root, config = run
    before = written(root / "stopped")
    shutil.copytree(root / "data", tmp_path / "data")
    change(tmp_path / "data" / "pictures")
    changed = config(**{"run.data_dir": str(tmp_path / "data")})
    with pytest.raises(
        DataError, match="pictures is not what the run in .* was trained on: " + message.format("train")
    ):
        trainer.train_and_evaluate(changed, root / "stopped")
    with pytest.raises(DataError, match=message.format("validation") + r".* --dataset=pictures, or evaluate\(dataset"):
        network.load(root / "stopped", "latest").evaluate("validation", config=changed)
    assert written(root / "stopped") == before


def test_a_finished_run_on_a_changed_folder_is_left_alone_and_a_moved_folder_resumes(run, tmp_path):
    root, config = run
    shutil.copytree(root / "stopped", tmp_path / "run")
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(root / "data" / "pictures", moved / "around")  # a folder around the splits changes nothing
    last = {"run.stop_after_steps": None, "dataset.name": str(moved)}
    assert trainer.train_and_evaluate(config(**last), tmp_path / "run").finished
    before = written(tmp_path / "run")
    for change, message in CHANGES:
        change(moved / "around")
        with pytest.raises(DataError, match=message.format("train")):
            trainer.train_and_evaluate(config(**last), tmp_path / "run")
        shutil.rmtree(moved)
        shutil.copytree(root / "data" / "pictures", moved / "around")
    shutil.copytree(moved / "around", tmp_path / "other")
    delete_files(tmp_path / "other")
    with pytest.raises(ConfigError, match="dataset.name: "):  # other data under another name: another experiment
        trainer.train_and_evaluate(config(**{**last, "dataset.name": str(tmp_path / "other")}), tmp_path / "run")
    assert written(tmp_path / "run") == before
    assert trainer.train_and_evaluate(config(**last), tmp_path / "run").finished
    found = network.load(tmp_path / "run").evaluate("validation", dataset=str(tmp_path / "other"))
    assert int(found.sums["examples"]) == 15, "named as another dataset, it is evaluated as it is"


def test_a_workdir_of_an_earlier_version_has_nothing_to_compare_but_what_its_config_says(run, tmp_path):
    root, config = run
    shutil.copytree(root / "stopped", tmp_path / "run")
    (tmp_path / "run" / identity.FILE).unlink()
    shutil.copytree(root / "data", tmp_path / "data")
    changed = config(**{"run.data_dir": str(tmp_path / "data")})
    rename(tmp_path / "data" / "pictures")
    with pytest.raises(DataError, match="new classes: wasps; classes that are gone: ants"):
        trainer.train_and_evaluate(changed, tmp_path / "run")
    (tmp_path / "data" / "pictures" / "train" / "wasps").rename(tmp_path / "data" / "pictures" / "train" / "ants")
    (tmp_path / "data" / "pictures" / "val" / "wasps").rename(tmp_path / "data" / "pictures" / "val" / "ants")
    delete_files(tmp_path / "data" / "pictures")
    trainer.train_and_evaluate(changed, tmp_path / "run")
    assert Identity.read(tmp_path / "run").splits["train"].examples == 15, "from now on it is compared"
    resolved = json.loads((tmp_path / "run" / "config.json").read_text())["resolved"]
    assert resolved["class_names"] == ["ants", "bees"]


def test_large_splits_are_compared_by_names_and_sizes(run, tmp_path, monkeypatch):
    root, _ = run
    shutil.copytree(root / "data" / "pictures", tmp_path / "data")

    def now():
        return open_dataset(str(tmp_path / "data")).identity(["train"])

    monkeypatch.setattr("squeeze_jax.data.folders.HASHED_BYTES", 1000)
    before = now()
    replace_file(tmp_path / "data")
    assert before.changes(now(), ["train"]) == ""
    picture(tmp_path / "data" / "train" / "bees" / "3.png", 0, size=(10, 20))
    assert before.changes(now(), ["train"]) == "train: 1 file with other contents (bees/3.png)"
    monkeypatch.setattr(identity, "LISTED", 3)
    counts = now()
    assert counts.splits["train"].files == {} and counts.splits["train"].classes == {"ants": 8, "bees": 8}
    assert counts.changes(now(), ["train"]) == ""
    (tmp_path / "data" / "train" / "bees" / "3.png").rename(tmp_path / "data" / "train" / "bees" / "x.png")
    assert counts.changes(now(), ["train"]) == "train: other data"
    found = open_dataset(str(tmp_path / "data"))
    (tmp_path / "data" / "train" / "bees" / "x.png").unlink()
    with pytest.raises(DataError, match="train/bees/x.png cannot be read: No such file"):
        found.identity(["train"])
    assert counts.changes(now(), ["train"]) == "train: 7 of bees for 8"


def test_other_datasets_are_compared_by_classes_and_counts(data_dir, tmp_path):
    found = open_dataset("digits", data_dir).identity(["train", "test"])
    found.write(tmp_path)
    assert Identity.read(tmp_path) == found and found.splits["train"] == StoredSplit(1197, "digits/1.0.0")
    for digest, changes in (("", ""), ("digits/1.0.1", "train: other data")):  # "" in workdirs of earlier versions
        assert Identity(found.class_names, {"train": StoredSplit(1197, digest)}).changes(found, ["train"]) == changes
    fewer = Identity(found.class_names[1:], {"train": StoredSplit(9)})
    assert found.changes(fewer, ["train", "test", "validation"]) == (
        "classes that are gone: 0; train: 9 examples for 1197; test: the split is gone"
    )
    other_order = Identity(found.class_names[::-1], found.splits)
    assert found.changes(other_order, ["train"]) == "the classes have another order"


def test_a_prepared_folder_of_ones_own_is_compared_by_its_contents(data_dir, tmp_path):
    folder = tmp_path / "mine" / "1.0.0"
    shutil.copytree(pathlib.Path(data_dir) / "digits" / "1.0.0", folder)
    before = open_dataset(str(folder)).identity(["train"])
    shard = next(folder.glob("*train*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert before.changes(open_dataset(str(folder)).identity(["train"]), ["train"]) == "train: other data"


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"version": 1, "class_names": ["a"], "splits": {"train": 3}}', "9" * 5000]
)
def test_a_damaged_identity_is_named(tmp_path, content):
    (tmp_path / identity.FILE).write_text(content)
    with pytest.raises(DataError, match=r"dataset.json cannot be read .* restore it, or delete it"):
        Identity.read(tmp_path)
    (tmp_path / identity.FILE).write_text('{"version": 2}')
    with pytest.raises(DataError, match="has version 2; expected 1. Update squeeze_jax"):
        Identity.read(tmp_path)


def test_names_that_are_not_utf_8_are_kept_and_shown(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / "data" / "train" / name / "1.png", 0)
    odd = os.fsdecode(b"caf\xe9.png")
    picture(tmp_path / "data" / "train" / "a" / odd, 1)
    found = open_dataset(str(tmp_path / "data"))
    before = found.identity(["train"])
    before.write(tmp_path)
    assert Identity.read(tmp_path) == before and len(found.split("train").batch(range(3))["label"]) == 3
    (tmp_path / "data" / "train" / "a" / odd).unlink()
    now = open_dataset(str(tmp_path / "data")).identity(["train"])
    assert before.changes(now, ["train"]) == r"train: 1 file less (a/caf\udce9.png)"
