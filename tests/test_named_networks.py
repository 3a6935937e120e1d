"""The networks that come with the package: files, model cards, and a wheel that holds both."""

import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import ROOT

from squeeze_jax import load, pretrained
from squeeze_jax.errors import WeightError
from squeeze_jax.pretrained import downloads

LARGEST = 500_000  # bytes
PACKAGED = [name for name in pretrained.names() if name not in downloads.FILES]


@pytest.mark.parametrize("name", PACKAGED)
def test_a_named_network_opens_and_has_a_card(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network, path = load(name), pretrained.find(name)
    assert path.stat().st_size < LARGEST
    predicted = network.predict(np.zeros((1, *network.image_shape), np.uint8))
    assert predicted.shape == (1, len(network.class_names)) and predicted.sum() == pytest.approx(1, abs=1e-5)
    assert network.config.dataset.name == name
    assert not network.config.init_from and network.config.run.data_dir is None, "names a folder of a machine"
    card = path.with_suffix(".md").read_text()
    for part in (f"{path.stat().st_size:,} bytes", "## Data", "## Command", "## Accuracy", "python -m "):
        assert part in card, part


def test_digits_are_recognized():
    evaluation = load("digits").evaluate("test")
    card = pretrained.find("digits").with_suffix(".md").read_text()
    assert f"{evaluation.values['top1']:.3f}" in card


def test_a_file_or_folder_comes_first_and_unknown_names_are_answered_with_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightError, match="cifar11 is not a file; .* a name \\(.*digits.*torchvision/resnet18.*\\)"):
        load("cifar11")
    (tmp_path / "digits").write_text("not weights")
    with pytest.raises(WeightError, match="digits ends in nothing"):
        load("digits")


def test_a_wheel_holds_the_networks(tmp_path):
    import setuptools

    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip(f"setuptools {setuptools.__version__} is older than pyproject.toml asks for")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "squeeze_jax", source / "squeeze_jax", ignore=shutil.ignore_patterns("__pycache__"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    done = subprocess.run(build, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert PACKAGED
    for name in PACKAGED:
        assert {f"squeeze_jax/pretrained/networks/{name}.{suffix}" for suffix in ("sqz", "md")} <= names
