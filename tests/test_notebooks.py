"""Every notebook runs from top to bottom, on small settings."""

import nbformat
import numpy as np
import pytest
from conftest import ROOT, SHARED, configure
from nbclient import NotebookClient
from PIL import Image

from squeeze_jax import load, pretrained
from squeeze_jax.network import Network
from squeeze_jax.training import trainer

NOTEBOOKS = ROOT / "notebooks"
NAMES = ("classify_photographs", "design_space", "fine_tune", "look_inside_a_run")
NET = SHARED / "deep_compression" / "compressed_SqueezeNet.net"
needs_net = pytest.mark.skipif(not NET.exists(), reason=f"{NET} is not there; set SQUEEZE_JAX_SHARED")


def read(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def execute(name, monkeypatch, **parameters):
    """Runs the code in this process, with other values of what the cell tagged "parameters" sets; returns its names."""
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("agg")
    monkeypatch.chdir(NOTEBOOKS)  # as Jupyter does
    names = {}
    for cell in read(name).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
            if "parameters" in cell.metadata.get("tags", ()):
                assert parameters.keys() <= names.keys()
                names |= parameters
    assert plt.get_fignums()
    plt.close("all")
    return names


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_keep_their_pictures_and_say_how_to_open_them(name):
    assert sorted(NAMES) == sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    cells = read(name).cells
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert f"pip install jupyterlab\njupyter lab notebooks/{name}.ipynb\n```" in cells[0].source


def test_design_space_in_a_kernel():
    """The one whose cells take no time runs as in Jupyter."""
    notebook = read("design_space")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_look_inside_a_run(monkeypatch, reference):
    execute("look_inside_a_run", monkeypatch, workdir=str(reference))


def test_look_inside_a_run_on_photographs_takes_little_memory(monkeypatch, data_dir, tmp_path):
    """It used to predict a copy of the image for each of its pixels, which 128 x 128 pixels took 13 GB for."""
    rng = np.random.default_rng(0)
    for split, count in ("train", 4), ("val", 3):
        for name in ("cat", "a long name of a class"):
            folder = tmp_path / "album" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (70, 80, 3), np.uint8)).save(folder / f"{i}.png")
    dataset = {"dataset.name": str(tmp_path / "album"), "dataset.image_size": (), "dataset.test_split": ""}
    run = {
        "crop.size": 64,
        "model.stem": "3x3/2",
        "train.batch_size": 4,
        "train.duration": "2 steps",
        "schedule.warmup": "0 steps",
    }
    trainer.train_and_evaluate(configure(data_dir, **dataset, **run), tmp_path / "w")

    taken, predict = [], Network.predict
    monkeypatch.setattr(Network, "predict", lambda self, images: taken.append(len(images)) or predict(self, images))
    execute("look_inside_a_run", monkeypatch, workdir=str(tmp_path / "w"))
    assert taken and max(taken) <= 14


def test_fine_tune(monkeypatch, reference, tmp_path, data_dir):
    """With a config and weights that are small."""
    weights = tmp_path / "weights.safetensors"
    pretrained.save(load(reference), weights)
    monkeypatch.setattr(
        "configs.finetune_pneumonia.get_config", lambda release: configure(data_dir, init_new_head=True)
    )
    execute("fine_tune", monkeypatch, weights=str(weights), workdir=str(tmp_path / "w"))


@needs_net
def test_classify_photographs(monkeypatch, tmp_path):
    for i, path in enumerate(sorted((SHARED / "imagenet_sample").glob("*.JPEG"))[:5]):
        (tmp_path / f"{i}{path.suffix if i else '.jpg'}").write_bytes(path.read_bytes())
    names = execute("classify_photographs", monkeypatch, weights=str(NET), photographs=str(tmp_path))
    assert len(names["images"]) == 5 and names["names"][names["probabilities"][0].argmax()] == "tench"


@needs_net
def test_classify_photographs_says_that_a_folder_has_none(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent has no photographs"):
        execute("classify_photographs", monkeypatch, weights=str(NET), photographs=str(tmp_path / "absent"))
