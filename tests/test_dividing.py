"""Folders of classes as they are: the splits that they get, and that no image is in two of them."""

import collections
import re

import numpy as np
import pytest
from conftest import configure
from PIL import Image

from squeeze_jax.config import base_config, duration_in_steps
from squeeze_jax.data.dividing import divide, identical_files
from squeeze_jax.data.folders import ImageFolder
from squeeze_jax.data.sources import open_dataset
from squeeze_jax.errors import ConfigError, DataError
from squeeze_jax.experiment import Plan, build, find_split, open_config_dataset
from squeeze_jax.network import load
from squeeze_jax.training.trainer import train_and_evaluate

SHARES = {"validation": 0.15, "test": 0.15}


def paint(root, names, seed=0):
    """Noise pictures of 6 x 6 pixels, each with its own bytes, brighter in classes that come later."""
    rng = np.random.default_rng(seed)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 6), np.uint8)).save(path)


def files(source, split):
    return [source.examples(split).describe(i) for i in range(source.split_sizes.get(split, 0))]


def many(**counts):
    return [f"{name}/{i}.png" for name, count in counts.items() for i in range(count)]


def test_each_class_is_divided_by_its_names_alone():
    names = [f"{c}/{i}" for c, n in (("a", 100), ("b", 20)) for i in range(n)]
    labels = [0] * 100 + [1] * 20
    parts = divide(names, labels, range(120), SHARES)
    assert [[sum(i < 100 for i in part), sum(i >= 100 for i in part)] for part in parts] == [[70, 14], [15, 3], [15, 3]]
    assert sorted(i for part in parts for i in part) == list(range(120))
    order = np.random.default_rng(1).permutation(120)  # of the list
    again = divide([names[i] for i in order], [labels[i] for i in order], range(120), SHARES)
    assert [{names[i] for i in part} for part in parts] == [{names[order[i]] for i in part} for part in again]
    more = divide([*names, "a/new"], [*labels, 0], range(121), SHARES)
    moved = sum(len(set(part) - set(other)) for part, other in zip(parts, more, strict=True))
    assert moved <= 2, "one more image moves hardly any other"


def test_groups_stay_together_and_small_classes_train():
    together = [i // 5 for i in range(60)] + [100, 101, 101, 102]
    labels = [0] * 60 + [1, 2, 2, 2]
    parts = divide([str(i) for i in range(64)], labels, together, SHARES)
    of = {i: number for number, part in enumerate(parts) for i in part}
    for group in set(together):
        assert len({of[i] for i, other in enumerate(together) if other == group}) == 1
    assert of[60] == 0, "a class of one image is for training"
    assert {of[61], of[63]} == {0, 1}
    assert [len(part) for part in parts][1:] >= [10, 10]


def test_identical_files_are_found_by_their_bytes(tmp_path):
    for name, contents in {"a": b"12", "b": b"12", "c": b"13", "d": b"123", "e": b"13"}.items():
        (tmp_path / name).write_bytes(contents)
    found = identical_files(str(path) for path in tmp_path.iterdir())
    assert [[path[-1] for path in group] for group in found] == [["a", "b"], ["c", "e"]]


def test_a_folder_of_classes_is_divided_where_a_split_is_missing(tmp_path):
    paint(tmp_path, many(cat=20, dog=40))
    first = (tmp_path / "cat" / "0.png").read_bytes()
    for i in range(5):  # copies under other names
        (tmp_path / "cat" / f"copy{i}.png").write_bytes(first)
    source = ImageFolder(tmp_path, SHARES)
    assert source.split_sizes["validation"] + source.split_sizes["test"] in range(16, 24)
    everything = [path for split in source.split_sizes for path in files(source, split)]
    assert len(everything) == len(set(everything)) == 65
    holding = [
        split for split in source.split_sizes for path in files(source, split) if re.search("copy|cat/0.png", path)
    ]
    assert len(holding) == 6 and len(set(holding)) == 1
    assert re.match(r"divided here, with equal shares of each class: \d+ for validation, \d+ for test", source.notes[0])
    assert ImageFolder(tmp_path).split_sizes == {"train": 65}, "nothing is divided unless it is asked for"

    moved = tmp_path / "elsewhere" / "train"
    moved.mkdir(parents=True)
    for name in ("cat", "dog"):
        (tmp_path / name).rename(moved / name)
    again = ImageFolder(moved.parent, SHARES)
    names = [{path.rpartition("/")[2] for path in files(found, "test")} for found in (source, again)]
    assert names[0] == names[1]


def test_given_splits_are_used_and_copies_in_two_of_them_are_named(tmp_path):
    paint(tmp_path, many(**{"train/a": 10, "train/b": 10, "val/a": 2, "val/b": 2}))
    (tmp_path / "val" / "a" / "0.png").write_bytes((tmp_path / "train" / "a" / "3.png").read_bytes())
    (tmp_path / "train" / "b" / "0.png").write_bytes((tmp_path / "train" / "a" / "5.png").read_bytes())
    source = ImageFolder(tmp_path, SHARES)
    assert source.split_sizes == {"train": 17, "validation": 4, "test": 3}
    notes = " ".join(source.notes)
    assert "1, such as train/a/3.png = val/a/0.png" in notes and "two classes: 1, such as train/a/5.png" in notes


def test_copies_join_the_patients_that_they_belong_to(tmp_path):
    names = [f"{c}/p{c}{i}/n/{k}.png" for c in "ab" for i in range(6) for k in range(2)]
    paint(tmp_path, names)
    for copy, original in (("pa1/n/0", "pa0/n/0"), ("pa2/n/0", "pa1/n/1"), ("pa3/n/0", "pa3/n/1")):
        (tmp_path / "a" / f"{copy}.png").write_bytes((tmp_path / "a" / f"{original}.png").read_bytes())
    source = ImageFolder(tmp_path, {"validation": 0.4, "test": 0.3})
    holding = {split for split in source.split_sizes for path in files(source, split) if re.search("pa[012]/", path)}
    assert len(holding) == 1 and len(source.split_sizes) == 3 and sum(source.split_sizes.values()) == 24


def test_patients_are_divided_as_a_whole(tmp_path):
    paint(tmp_path, [f"{c}/p{i}/n/{k}.png" for c in "ab" for i in range(8) for k in range(3)])
    splits = build(configure(None, **{"dataset.name": str(tmp_path)})).splits
    patients = [set(split.targets()["patient"].tolist()) for split in splits.values()]
    assert list(splits) == ["train", "validation", "test"] and sum(map(len, patients)) == 8


@pytest.fixture(scope="module")
def divided_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("divided")
    paint(root / "pets", many(cat=12, dog=12))
    config = configure(None, **{"dataset.name": str(root / "pets"), "train.batch_size": 4})
    config.update_from_flattened_dict({"train.duration": "2 steps", "schedule.warmup": "0 %", "run.log_every": "50 %"})
    train_and_evaluate(config, root / "run")
    return root, config


def test_a_run_and_its_evaluation_use_the_same_division(divided_run):
    root, config = divided_run
    log = (root / "run" / "log.txt").read_text()
    assert "dataset: divided here, with equal shares of each class: 4 for validation, 4 for test of its 24" in log
    network = load(root / "run")
    of_the_run = find_split(open_config_dataset(config), config, "test")
    assert [network.split("test").describe(i) for i in range(4)] == [of_the_run.describe(i) for i in range(4)]
    assert network.split("test", dataset=str(root / "pets")).name.endswith("/test")
    paint(root / "others", many(cat=4, dog=4))
    with pytest.raises(DataError, match="others has no split 'test'; it has train. Name one of these with --split"):
        network.split("test", dataset=str(root / "others"))
    assert len(network.split("train", dataset=str(root / "others"))) == 8


def test_percentages_are_of_the_run():
    assert duration_in_steps("5 %", 32, 1000, total=300) == 15 and duration_in_steps("12.5%", 32, 10, total=8) == 1
    config = base_config()
    config.train.duration = "200 steps"
    config.run.log_every, config.run.evaluate_every, config.schedule.warmup = "5 %", "20 %", "10 %"
    config.pruning.density, config.pruning.end = 0.5, "50 %"
    plan = Plan.of(config, 100)
    assert (plan.log_every, plan.evaluate_every, plan.warmup, plan.pruning.end) == (10, 40, 20, 100)
    config.run.log_every = "0.1 %"
    assert Plan.of(config, 100).log_every == 1


def test_a_share_is_held_out_and_missing_splits_say_what_to_do(tmp_path):
    paint(tmp_path, many(**{"train/a": 20, "train/b": 20}))

    def splits(**changes):
        return build(configure(None, **{"dataset.name": str(tmp_path)}, **changes)).splits

    sizes = collections.Counter({name: len(split) for name, split in splits(**{"dataset.held_out": 0.25}).items()})
    assert sizes == {"train": 26, "validation": 8, "test": 6}
    off = {"dataset.validation_share": 0.0, "dataset.test_share": 0.0}
    with pytest.raises(DataError, match="no split 'validation'; it has train. .* config.dataset.held_out=0.1 to hold"):
        splits(**off)
    with pytest.raises(
        DataError, match="no split 'test'; it has train. Set config.dataset.test_split to .* '' for none"
    ):
        splits(**off, **{"dataset.held_out": 0.1})
    with pytest.raises(DataError, match="has no split 'Train'; it has train. Set config.dataset.train_split"):
        splits(**{"dataset.train_split": "Train"})


def test_held_out_beside_a_validation_split_is_named(data_dir):
    with pytest.raises(ConfigError, match="has a split 'validation'; set config.dataset.held_out=0 to use it"):
        build(configure(data_dir, **{"dataset.held_out": 0.1}))
    assert open_dataset("digits", data_dir).split("train")
