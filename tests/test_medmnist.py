"""MedMNIST builders: the official files' names and MD5s, preparation from a local file, refusal of a wrong one."""

import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SHARED, make_once

from squeeze_jax.data import prepared, sources
from squeeze_jax.data.builders.medmnist import ENTRIES, MedMNIST
from squeeze_jax.data.sources import open_dataset
from squeeze_jax.errors import DataError


def prepare(name, file, data_dir):
    command = [sys.executable, "-m", "squeeze_jax.data.prepare", name, "--file", str(file), "--data_dir", str(data_dir)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def local(name):
    path = SHARED / "medmnist" / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there; set SQUEEZE_JAX_SHARED")
    return path


@pytest.fixture(scope="module")
def adrenal(shared):
    path = local("adrenalmnist3d")
    return str(make_once(shared, "adrenal", lambda root: prepare("medmnist/adrenalmnist3d", path, root)))


def test_every_set_at_every_size():
    official = {name: entry for name, entry in ENTRIES.items() if not name.endswith("_early")}
    assert [e.spatial_axes for e in official.values()].count(2) == 12
    assert [e.spatial_axes for e in official.values()].count(3) == 6
    for entry in official.values():
        assert entry.sizes == ((28, 64, 128, 224) if entry.spatial_axes == 2 else (28, 64))
    sums = [md5 for entry in ENTRIES.values() for md5 in entry.md5]
    assert len(set(sums)) == len(sums) == 12 * 4 + 6 * 2 + 1
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in sums)
    assert len(MedMNIST.builder_configs) == len(sums) and "organsmnist_224" in MedMNIST.builder_configs


def test_adrenal_is_the_file(adrenal):
    dataset = open_dataset("medmnist/adrenalmnist3d", adrenal)
    assert dataset.class_names == ("normal", "hyperplasia") and dataset.image_shape == (28, 28, 28, 1)
    with np.load(local("adrenalmnist3d")) as file:
        for name, stored in (("train", "train"), ("validation", "val"), ("test", "test")):
            split = dataset.split(name)
            whole = split.batch(np.arange(len(split)))
            images, labels = file[f"{stored}_images"], file[f"{stored}_labels"][:, 0]
            assert len(images) == len(split)
            found, wanted = whole["image"].reshape(len(images), -1), images.reshape(len(images), -1)
            order, wanted_order = np.lexsort(found.T), np.lexsort(wanted.T)
            np.testing.assert_array_equal(found[order], wanted[wanted_order])
            np.testing.assert_array_equal(np.bincount(whole["label"]), np.bincount(labels))


def test_a_wrong_file_is_named_and_leaves_nothing(tmp_path):
    done = prepare("medmnist/pneumoniamnist", local("pneumoniamnist"), tmp_path)
    assert done.returncode == 1
    assert "has the MD5 f5b994ec7c2fe8bc81ae15cbab7c3df8; expected 28209eda62fecd6e6a2d98b1501bb15f" in done.stderr
    assert "It is pneumoniamnist_early at 28 pixels" in done.stderr
    assert not list(tmp_path.rglob("dataset_info.json"))


def test_other_wrong_requests(tmp_path, data_dir):
    done = prepare("digits", tmp_path / "x.npz", tmp_path)
    assert done.returncode == 1 and "digits is not made from one file" in done.stderr
    done = prepare("medmnist/nodulemnist3d", tmp_path / "absent.npz", tmp_path)
    assert done.returncode == 1 and "absent.npz" in done.stderr
    with pytest.raises(DataError, match="pneumoniamnist_early has no official download; give its file: --file"):
        open_dataset("medmnist/pneumoniamnist_early", str(tmp_path))
    with pytest.raises(DataError, match="medmnist/lungmnist"):
        open_dataset("medmnist/lungmnist", str(tmp_path))


def test_a_multi_label_set_has_labels_with_names(tmp_path):
    builder = MedMNIST(config="chestmnist", data_dir=tmp_path)
    assert builder.info.features["label"].feature.num_classes == 14 and str(builder.version) == "3.0.3"
    assert str(MedMNIST(config="retinamnist", data_dir=tmp_path).version) == "3.0.2"

    class Stored(prepared.Prepared):
        def examples(self, split):
            rows = [{"image": np.zeros((28, 28, 1), np.uint8), "label": label} for label in ([], [0, 13])]
            return prepared._Examples(rows, rows, self._image, self._label, (), self._num_labels)

    source = Stored("medmnist/chestmnist", builder)
    source.split_sizes = {"train": 2}
    dataset = sources.Dataset("medmnist/chestmnist", source, (28, 28, 1))
    assert dataset.class_names[13] == "hernia"
    labels = dataset.split("train").batch([0, 1])["label"]
    np.testing.assert_array_equal(dataset.split("train").targets()["label"], labels)
    assert labels.dtype == np.uint8 and labels.sum(1).tolist() == [0, 2] and labels[1, [0, 13]].all()
