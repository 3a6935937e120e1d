"""Datasets that TFDS prepared, from elsewhere: no code of theirs runs, and damage is one line."""

import contextlib
import json
import pathlib
import shutil
import sys

import pytest
from fuzz import mutants

from squeeze_jax.data.prepare import prepare
from squeeze_jax.data.prepared import FEATURES, INFO
from squeeze_jax.data.sources import open_dataset
from squeeze_jax.errors import DataError

PAYLOAD = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
from tensorflow_datasets.core.features import ClassLabel as X
"""


@pytest.fixture
def copy(data_dir, tmp_path, monkeypatch):
    """A copy of the digits under another name, beside a module that leaves a trace when it is imported."""
    folder = tmp_path / "from_elsewhere" / "1.0.0"
    shutil.copytree(pathlib.Path(data_dir) / "digits" / "1.0.0", folder)
    (tmp_path / "downloaded").mkdir()
    (tmp_path / "downloaded" / "payload.py").write_text(PAYLOAD)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    assert not (tmp_path / "downloaded" / "ran").exists() and "downloaded.payload" not in sys.modules


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


EVIL = "downloaded.payload.X"


def test_an_intact_copy_is_read(copy, tmp_path):
    assert open_dataset(str(copy)).num_classes == 10
    assert open_dataset("from_elsewhere", str(tmp_path)).num_classes == 10


@pytest.mark.parametrize(
    "change",
    [
        lambda features: features["featuresDict"]["features"]["label"].update(pythonClassName=EVIL),
        lambda features: features.update(pythonClassName=EVIL),
        lambda features: features["featuresDict"]["features"].update(
            more={
                "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
                "sequence": {"feature": {"python_class_name": EVIL}},
            }
        ),
        lambda features: features["featuresDict"]["features"].update(
            more={
                "pythonClassName": "tensorflow_datasets.core.features.x.Y",
                "jsonFeature": {"json": json.dumps({"feature": {"type": EVIL, "content": {}}})},
            }
        ),
        lambda features: (features.clear(), features.update(type=EVIL, content={}, proto_cls="")),
        lambda features: features.update(pythonClassName="tensorflow_datasets.core.features/../../x.Y"),
    ],
)
def test_a_dataset_that_names_code_is_refused(copy, tmp_path, change):
    edit(copy / FEATURES, change)
    for name, data_dir in ((str(copy), None), ("from_elsewhere", str(tmp_path)), ("FromElsewhere", str(tmp_path))):
        with pytest.raises(DataError, match=r"names the class '.*', whose code would run; expected only classes of"):
            open_dataset(name, data_dir)


def test_a_key_that_is_there_twice_hides_nothing(copy):
    text = (copy / FEATURES).read_text()
    evil = text.replace('"pythonClassName"', f'"pythonClassName": "{EVIL}", "pythonClassName"', 1)
    (copy / FEATURES).write_text(evil)
    with pytest.raises(DataError, match="names the class 'downloaded.payload.X'"):
        open_dataset(str(copy))


@pytest.mark.parametrize("name", ["huggingface:x", "kaggle:x/y", "someone:data"])
def test_datasets_outside_of_tfds_are_refused(name, tmp_path):
    with pytest.raises(DataError, match="names a dataset outside of TFDS, whose code would run"):
        open_dataset(name, str(tmp_path))


@pytest.mark.parametrize("file", [FEATURES, INFO])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"a": 1}', "\udcff\udcfe", '["' + "[" * 5000])
def test_damage_is_one_line(copy, file, content):
    (copy / file).write_text(content, errors="surrogateescape")
    with pytest.raises(DataError, match=r"is damaged|is not an intact TFDS dataset") as caught:
        open_dataset(str(copy))
    assert "\n" not in str(caught.value) and str(copy) in str(caught.value)


def test_missing_files_and_files_elsewhere_are_named(copy):
    edit(copy / INFO, lambda info: info["splits"][0].update(filepathTemplate="../../other/x-train.array_record"))
    with pytest.raises(DataError, match="names files in another folder"):
        open_dataset(str(copy))
    (copy / FEATURES).unlink()
    with pytest.raises(DataError, match=r"features.json is missing; delete its folder and prepare it again"):
        open_dataset(str(copy))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"a": 1}'])
def test_a_damaged_dataset_of_this_project_is_named(data_dir, tmp_path, content):
    shutil.copytree(pathlib.Path(data_dir) / "digits", tmp_path / "digits")
    (tmp_path / "digits" / "1.0.0" / INFO).write_text(content)
    for read in (open_dataset, prepare):
        with pytest.raises(DataError, match="is damaged .*; delete its folder and prepare it again"):
            read("digits", str(tmp_path))


@pytest.mark.parametrize("file", [FEATURES, INFO])
def test_a_hundred_mutants_are_read_or_refused(copy, file):
    intact = (copy / file).read_bytes()
    for mutant in mutants(intact, 100, seed=37):
        (copy / file).write_bytes(mutant)
        with contextlib.suppress(DataError):
            assert len(open_dataset(str(copy)).split("test").batch([0, 1])["label"]) == 2
