"""Every notebook runs from top to bottom, on small settings."""

import os

import nbformat
import pytest
from conftest import ROOT, SHARED
from nbclient import NotebookClient

from squeeze_jax import load, pretrained

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
        assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs), name


def test_design_space(monkeypatch):
    execute("design_space", monkeypatch)


def test_look_inside_a_run(monkeypatch, reference):
    execute("look_inside_a_run", monkeypatch, WORKDIR=reference)


def test_fine_tune(monkeypatch, reference, tmp_path, data_dir):
    """With a config and weights that are small."""
    weights = tmp_path / "weights.safetensors"
    pretrained.save(load(reference), weights)
    (tmp_path / "tiny_config.py").write_text(
        f"import sys\n\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nfrom conftest import configure\n\n\n"
        f"def get_config(release):\n    return configure({data_dir!r}, init_new_head=True)\n"
    )
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    execute("fine_tune", monkeypatch, CONFIG="tiny_config", WEIGHTS=weights, WORKDIR=tmp_path / "w")


@needs_net
def test_classify_photographs(monkeypatch):
    execute("classify_photographs", monkeypatch, WEIGHTS=NET, PHOTOGRAPHS=SHARED / "imagenet_sample")
