"""A task that lies in tests/brightness.py alone is trained, killed and resumed, evaluated, swept and predicted by the
commands of every other one."""

import csv
import json
import sys

import numpy as np
import pytest
from conftest import ROOT, TINY, Child, main_command, make_once
from PIL import Image

from squeeze_jax import load, tasks
from squeeze_jax.errors import ConfigError
from squeeze_jax.workdir.checkpoints import Checkpoints
from squeeze_jax.workdir.records import read_metrics

CONFIG = ROOT / "tests" / "brightness.py"


def command(data_dir, workdir, *arguments):
    _, *rest = main_command(data_dir, workdir, *arguments, **{"model.head_relu": False})
    return [sys.executable, *(str(CONFIG) if word.endswith("configs/digits.py") else word for word in rest)]


@pytest.fixture(scope="module")
def trained(shared, data_dir):
    return make_once(
        shared, "brightness", lambda workdir: Child(command(data_dir, workdir), f"{workdir}.log").succeed()
    )


def ending(workdir):
    step, leaves = Checkpoints(workdir, read_only=True).read("latest")
    records = [{key: value for key, value in record.items() if key != "speed"} for record in read_metrics(workdir)]
    return step, {name: leaf.tobytes() for name, leaf in leaves.items()}, records


def test_no_file_of_the_package_names_it():
    task = CONFIG.read_text().partition("class Brightness")[2].partition("tasks.register")[0]
    assert len([line for line in task.splitlines() if line.strip()]) <= 40
    assert not [path for path in (ROOT / "squeeze_jax").rglob("*.py") if "brightness" in path.read_text().lower()]


def test_it_learns(trained):
    records = read_metrics(trained)
    losses = [record["values"]["loss"] for record in records if record["split"] == "train"]
    assert losses[-1] < losses[0] / 2
    result = json.loads((trained / "result.json").read_text())
    assert result["validation"].keys() == result["test"].keys() == {"loss"}
    assert (trained / "curves.png").exists() and (trained / "first_batch.png").exists()


def test_killed_and_resumed_it_ends_with_the_same_bits(trained, data_dir, tmp_path):
    workdir = tmp_path / "w"
    child = Child(command(data_dir, workdir), tmp_path / "killed.log")
    assert child.wait_until(lambda: len(read_metrics(workdir)) >= 3)
    child.kill()
    text = Child(command(data_dir, workdir), tmp_path / "resumed.log").succeed()
    assert "resumed at step" in text
    assert ending(workdir) == ending(trained)


def test_it_is_evaluated(trained, data_dir, tmp_path):
    flags = ["--mode=eval", "--split=validation"]
    assert "300 examples" in Child(command(data_dir, trained, *flags), tmp_path / "eval.log").succeed()
    (folder,) = (trained / "evaluation").glob("validation_*")
    with (folder / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["loss"]) == pytest.approx(json.loads((trained / "result.json").read_text())["validation"]["loss"])
    assert len((folder / "brightness.csv").read_text().splitlines()) == 301


def test_it_is_swept_and_reported(trained, data_dir, tmp_path):
    flags = [f"--config.{key}={value}" for key, value in {**TINY, "run.data_dir": data_dir}.items()]
    sweep = [
        sys.executable,
        "-m",
        "experiments.sweep",
        f"--config={CONFIG}",
        "--seeds=0",
        f"--workdir={tmp_path / 'w'}",
    ]
    text = Child([*sweep, *flags, "--config.task.scale=1.0,2.0"], tmp_path / "sweep.log").succeed()
    assert "| scale | parameters | MiB | M MACs | test loss (mean ± s. d.) |" in text
    assert (tmp_path / "w" / "brightness.csv").exists() and (tmp_path / "w" / "brightness.png").exists()


def test_a_notebook_predicts_with_it_and_a_process_that_does_not_know_it_says_so(trained, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(CONFIG.parent))
    import brightness  # registers the task  # noqa: F401

    network = load(trained)
    image = np.full((8, 8, 1), 200, np.uint8)
    (value,) = network.predict(image[None])
    (rows,) = network.task.describe(value).values()
    assert network.task.line(rows[0]) == f"brightness {value:.3f}"
    Image.fromarray(image[..., 0]).save(tmp_path / "image.png")
    predict = [sys.executable, "-m", "squeeze_jax.predict", "--weights", str(trained), str(tmp_path / "image.png")]
    message = Child(predict, tmp_path / "predict.log").fail()
    assert f"{trained / 'config.json'} needs the module brightness: pass --import=" in message
    assert f"{CONFIG.name}, or in Python import brightness first.\n" in message and message.count("\n") == 1
    assert "brightness" in Child([*predict, f"--import={CONFIG}"], tmp_path / "predict.log").succeed()
    resume = [sys.executable, "-m", "squeeze_jax.main", "--workdir", str(trained)]
    assert "needs the module brightness: pass --import=" in Child(resume, tmp_path / "resume.log").fail()
    with pytest.raises(ConfigError, match="the task 'bright' is unknown; did you mean 'brightness'"):
        tasks.named("bright")
