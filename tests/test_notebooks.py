"""Every notebook runs from top to bottom, on small settings."""

import sys

import nbformat
import pytest
from conftest import ROOT, SHARED, Child, main_command, make_once
from nbclient import NotebookClient

NOTEBOOKS = ROOT / "notebooks"
NET = SHARED / "deep_compression" / "compressed_SqueezeNet.net"
needs_net = pytest.mark.skipif(not NET.exists(), reason=f"{NET} is not there; set SQUEEZE_JAX_SHARED")


def execute(name, monkeypatch, **settings):
    for key, value in settings.items():
        monkeypatch.setenv(f"SQUEEZE_JAX_{key}", str(value))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_every_notebook_is_tested_and_keeps_its_pictures():
    names = {"classify_photographs", "design_space", "fine_tune", "look_inside_a_run"}
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == names
    for name in names:
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        assert any("image/png" in output.get("data", {}) for output in outputs), name
        assert not any(output.output_type == "error" for output in outputs), name


def test_design_space(monkeypatch):
    execute("design_space", monkeypatch)


def test_look_inside_a_run(monkeypatch, shared, data_dir):
    def train(workdir):
        Child(main_command(data_dir, workdir), f"{workdir}.log").succeed()

    execute("look_inside_a_run", monkeypatch, WORKDIR=make_once(shared, "reference", train))


@needs_net
def test_classify_photographs(monkeypatch):
    execute("classify_photographs", monkeypatch, WEIGHTS=NET, PHOTOGRAPHS=SHARED / "imagenet_sample")


@needs_net
def test_fine_tune(monkeypatch, tmp_path):
    release = ["medmnist/pneumoniamnist_early", "--file", SHARED / "medmnist" / "pneumoniamnist.npz"]
    command = [sys.executable, "-m", "squeeze_jax.data.prepare", *map(str, release), "--data_dir", str(tmp_path)]
    Child(command, tmp_path / "prepare.log").succeed()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", "")  # optimised, for the network is large
    execute("fine_tune", monkeypatch, WEIGHTS=NET, WORKDIR=tmp_path / "w", DURATION="7 steps")
