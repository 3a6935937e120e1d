"""Order, hosts, padding, resumption; the embedded dataset; errors that name the example."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from squeeze_jax.data import pipeline, sources, splits
from squeeze_jax.data.splits import Split
from squeeze_jax.errors import DataError


def numbered(size, image_shape=(2, 2, 1)):
    """A split whose image i is filled with i, and whose label is i modulo 10."""
    examples = [{"image": np.full(image_shape, i % 256, np.uint8), "label": i % 10} for i in range(size)]
    return Split("numbered/train", examples, image_shape, 10)


def indices(batches, count):
    return [next(batches)["image"][:, 0, 0, 0].tolist() for _ in range(count)]


def test_every_epoch_holds_every_example_once_in_another_order():
    batches = indices(pipeline.train_batches(numbered(100), batch_size=30, seed=0), 10)
    order = [index for batch in batches for index in batch]
    epochs = [order[i : i + 100] for i in (0, 100, 200)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert batches != indices(pipeline.train_batches(numbered(100), batch_size=30, seed=1), 10)


def test_a_resumed_run_goes_on_with_the_next_example():
    whole = indices(pipeline.train_batches(numbered(50), batch_size=7, seed=3), 20)
    rest = indices(pipeline.train_batches(numbered(50), batch_size=7, seed=3, first_step=13, num_threads=1), 7)
    assert rest == whole[13:]


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_order_does_not_depend_on_the_hosts(hosts):
    whole = indices(pipeline.train_batches(numbered(50), batch_size=8, seed=3), 12)
    parts = [
        indices(pipeline.train_batches(numbered(50), batch_size=8, seed=3, process_index=i, process_count=hosts), 12)
        for i in range(hosts)
    ]
    assert [[index for part in parts for index in part[step]] for step in range(12)] == whole
    with pytest.raises(ValueError, match="cannot be divided among 3 processes"):
        pipeline.train_batches(numbered(50), batch_size=8, seed=3, process_index=0, process_count=3)


@pytest.mark.parametrize(("size", "batch_size"), [(1, 4), (4, 4), (10, 4), (97, 8), (3, 100)])
def test_evaluation_counts_every_example_once(size, batch_size):
    for hosts in (1, 2):
        seen = []
        for host in range(hosts):
            for batch in pipeline.eval_batches(
                numbered(size), batch_size=batch_size, process_index=host, process_count=hosts
            ):
                assert batch["image"].shape[0] == batch_size // hosts
                seen += batch["image"][batch["valid"], 0, 0, 0].tolist()
        assert sorted(seen) == list(range(size))


def test_a_split_too_large_for_memory_reads_the_same(monkeypatch):
    cached = numbered(20).batch(np.array([3, 1, 3]))
    monkeypatch.setattr(splits, "CACHE_BYTES", 0)
    read = numbered(20).batch(np.array([3, 1, 3]))
    for name in cached:
        np.testing.assert_array_equal(cached[name], read[name])
        assert cached[name].dtype == read[name].dtype


def test_relabeling_keeps_what_is_wrong_an_error():
    split = numbered(20).relabeled([12, 11, 10, *range(7)], 13)
    assert split.batch(range(3))["label"].tolist() == [12, 11, 10] and split.num_classes == 13
    split.examples.examples[5] = {"image": np.zeros((2, 2, 1), np.uint8), "label": -1}
    with pytest.raises(DataError, match="example 5 .* its label is -1; expected 0 to 9"):
        split.batch([5])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"valid": 1}, "a target is called 'valid'"),
        ({"id": 2**40}, "its id holds integers that int32 cannot hold"),
        ({"name": "cat"}, "its name is of <U3; expected numbers"),
    ],
)
def test_targets_that_a_device_cannot_take_are_named(target, message):
    split = Split("odd", [{"image": np.zeros((2, 2, 1), np.uint8), **target}], (2, 2, 1), 1)
    with pytest.raises(DataError, match=f"example 0 of odd cannot be read: {message}"):
        split.batch([0])


@pytest.mark.parametrize("cache_bytes", [2**30, 0])
def test_a_split_holds_whatever_its_examples_hold(monkeypatch, cache_bytes):
    """Boxes with a mask, label maps, volumes of float: with the example as first axis, cached or not."""
    monkeypatch.setattr(splits, "CACHE_BYTES", cache_bytes)
    rng = np.random.default_rng(0)
    examples = [
        {
            "image": rng.normal(size=(4, 5, 1)).astype(np.float32),
            "boxes": rng.random((3, 4)),
            "is_box": np.array([True, i % 2 == 0, False]),
            "map": rng.integers(0, 9, (4, 5)),
        }
        for i in range(7)
    ]
    split = Split("boxes", examples, (4, 5, 1), 9)
    for _ in range(2):
        batch = split.batch([2, 5, 2])
        assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
            "image": ((3, 4, 5, 1), "float32"),
            "boxes": ((3, 3, 4), "float32"),
            "is_box": ((3, 3), "bool"),
            "map": ((3, 4, 5), "int32"),
        }
        for row, index in enumerate([2, 5, 2]):
            for name, value in examples[index].items():
                np.testing.assert_array_equal(batch[name][row], value.astype(batch[name].dtype))
    assert split.targets().keys() == {"boxes", "is_box", "map"} and len(split.subset([1]).targets()["map"]) == 1
    (evaluated,) = pipeline.eval_batches(split, batch_size=8)
    assert evaluated["boxes"].shape == (8, 3, 4) and evaluated["valid"].sum() == 7


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"image": np.zeros((3, 2, 1), np.uint8), "label": 0}, r"example 1 of numbered/train has shape \(3, 2, 1\)"),
        ({"image": np.zeros((2, 2, 1), np.uint8), "label": 10}, "example 1 .* has the label 10; expected 0 to 9"),
        ({"image": np.zeros((2, 2, 1), np.uint8), "label": -1}, "has the label -1"),
        ({"image": np.full((2, 2, 1), np.nan, np.float32), "label": 0}, "example 1 .* contains NaN or infinite pixels"),
        ({"label": 0}, "example 1 .* cannot be read: 'image'"),
    ],
)
def test_a_wrong_example_is_named(example, message):
    split = numbered(3)
    split.examples[1] = example
    with pytest.raises(DataError, match=message):
        list(pipeline.eval_batches(split, batch_size=3))


def test_digits_are_scikit_learns_and_split_without_overlap(data_dir):
    from sklearn.datasets import load_digits

    dataset = sources.open_dataset("digits", data_dir)
    assert dataset.class_names == tuple("0123456789") and dataset.image_shape == (8, 8, 1)
    images, labels = [], []
    for name, size in (("train", 1197), ("validation", 300), ("test", 300)):
        split = dataset.split(name)
        assert len(split) == size
        whole = split.batch(np.arange(size))
        images.append(whole["image"])
        labels.append(whole["label"])
        shares = np.bincount(whole["label"], minlength=10) / size
        np.testing.assert_allclose(shares, 0.1, atol=0.005)  # stratified
    original = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    found = np.concatenate(images)[..., 0]
    order = np.lexsort(found.reshape(1797, -1).T)
    expected_order = np.lexsort(original.reshape(1797, -1).T)
    np.testing.assert_array_equal(found[order], original[expected_order])
    np.testing.assert_array_equal(np.concatenate(labels)[order], load_digits().target[expected_order])


def test_slices_of_splits(data_dir):
    dataset = sources.open_dataset("digits", data_dir)
    assert len(dataset.split("train[:10%]")) == 120


def test_a_prepared_folder_is_a_dataset(data_dir):
    dataset = sources.open_dataset(f"{data_dir}/digits/1.0.0")
    assert dataset.num_classes == 10 and len(dataset.split("test")) == 300


def test_prepare_is_a_command_and_leaves_what_is_there(data_dir):
    command = [sys.executable, "-m", "squeeze_jax.data.prepare", "digits", "--data_dir", data_dir]
    before = sorted(os.listdir(f"{data_dir}/digits/1.0.0"))
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.stdout.strip() == f"{data_dir}/digits/1.0.0", done.stderr
    assert sorted(os.listdir(f"{data_dir}/digits/1.0.0")) == before


def test_an_unwritable_data_folder_is_named_also_with_a_blank(tmp_path):
    (tmp_path / "a file").touch()
    message = "digits could not be prepared by .*squeeze_jax.data.prepare digits --data_dir '.*/a file'`: .*/a file"
    with pytest.raises(DataError, match=message):
        sources.open_dataset("digits", str(tmp_path / "a file"))
