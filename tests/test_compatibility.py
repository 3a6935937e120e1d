"""What commit 50514be wrote, before there were tasks, stays readable: a workdir in the middle of a log window, and a
weight file (tests/data/version_1.zip, made by that commit's own commands)."""

import json
import sys
import zipfile

import numpy as np
import pytest
from conftest import ROOT, Child

from squeeze_jax import load
from squeeze_jax.tasks import Classification
from squeeze_jax.workdir.checkpoints import Checkpoints
from squeeze_jax.workdir.records import read_metrics


@pytest.fixture
def old(tmp_path):
    with zipfile.ZipFile(ROOT / "tests" / "data" / "version_1.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path


def test_old_keys_are_found_where_they_are_now(old):
    config = load(old / "w", "latest").config
    assert "version" not in json.loads((old / "w" / "config.json").read_text())
    assert config.task.to_dict() == {
        **Classification.OPTIONS,  # of what came later
        "name": "classification",
        "label_smoothing": 0.1,
        "class_weights": "balanced",
        "mixup": 0.2,
        "auc": True,
        "mirror": ("width",),
    }
    assert config.optimizer.learning_rate_multipliers == (("conv1/", 0.5),)


@pytest.mark.parametrize("source", ["w", "network.safetensors"])
def test_an_old_network_predicts_the_same(old, source):
    network = load(old / source, "latest")
    assert network.step == 13 and network.class_names == tuple("0123456789")
    images = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8, 1)
    expected = json.loads((old / "expected.json").read_text())["probabilities"]
    np.testing.assert_allclose(network.predict(images), expected, atol=1e-5)


def test_an_old_run_resumes_inside_its_log_window(old, data_dir, tmp_path):
    workdir = old / "w"
    _, leaves = Checkpoints(workdir, read_only=True).read("latest")
    assert int(leaves["window/steps"]) == 3 and int(leaves["window/sums/examples"]) == 3 * 32
    assert float(leaves["window/norms/update_norm"]) > 0
    config = json.loads((workdir / "config.json").read_text())
    config["config"]["run"]["data_dir"] = data_dir
    (workdir / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "squeeze_jax.main", "--workdir", str(workdir)]
    text = Child(command, tmp_path / "log").succeed()
    assert "resumed at step 13" in text
    assert [r["step"] for r in read_metrics(workdir) if r["split"] == "train"] == [5, 10, 15, 20]
    validated = {r["step"]: r["values"]["top1"] for r in read_metrics(workdir) if r["split"] == "validation"}
    assert json.loads((workdir / "result.json").read_text())["validation"]["top1"] == max(validated.values())
