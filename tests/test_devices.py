"""One step function on 1, 2 and 8 devices, under jit and pmap, in one process and in two; many in child processes."""

import shutil
import socket

import numpy as np
import pytest
from conftest import Child, configure, main_command, make_once

from squeeze_jax import load
from squeeze_jax.training import trainer
from squeeze_jax.workdir.checkpoints import Checkpoints
from squeeze_jax.workdir.records import read_metrics

# 20 steps with batch norm, dropout, augmentation and averaging. The learning rate is small enough for the training
# itself not to be chaotic: at 0.05 a difference of 1e-15 grows to 1e-2 in 20 steps of this network.
EXACT = {
    "model.dtype": "float64",
    "train.duration": "20 steps",
    "dataset.validation_split": "",
    "dataset.test_split": "",
    "optimizer.learning_rate": 0.001,
}


def train(data_dir, workdir, *flags, **overrides):
    child = Child(main_command(data_dir, workdir, *flags, **{**EXACT, **overrides}), f"{workdir}.log")
    child.succeed()
    return workdir


def leaves(workdir):
    return Checkpoints(workdir, read_only=True).read("latest")[1]


def values(workdir):
    return [record["values"] for record in read_metrics(workdir)]


def assert_agree(workdir, other, tolerance):
    ours, theirs = leaves(workdir), leaves(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=tolerance, rtol=tolerance, err_msg=name)
    for mine, yours in zip(values(workdir), values(other), strict=True):
        assert mine == pytest.approx(yours, abs=1e-9)


@pytest.fixture(scope="module")
def one_device(shared, data_dir):
    return make_once(shared, "one_device", lambda workdir: train(data_dir, workdir))


@pytest.mark.parametrize(("backend", "num_devices"), [("jit", 2), ("jit", 8), ("pmap", 2), ("pmap", 8)])
def test_devices_agree_in_float64(one_device, data_dir, tmp_path, backend, num_devices):
    """And a run moves from many devices to one: the last steps are made again there, from the checkpoint before."""
    workdir = tmp_path / "w"
    train(data_dir, workdir, **{"run.num_devices": num_devices, "run.backend": backend})
    assert_agree(one_device, workdir, 1e-10)
    if (backend, num_devices) == ("jit", 8):
        shutil.rmtree(workdir / "checkpoints" / "20")
        assert load(workdir, "latest").step == 10
        train(data_dir, workdir)
        assert_agree(one_device, workdir, 1e-10)


def test_two_processes_agree_with_one_in_float64(one_device, data_dir, tmp_path):
    workdir = tmp_path / "w"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [f"--coordinator_address=localhost:{port}", "--num_processes=2"]
    children = [
        Child(main_command(data_dir, workdir, *flags, f"--process_id={i}", **EXACT), tmp_path / f"process{i}.log")
        for i in range(2)
    ]
    for child in children:
        child.succeed()
    assert_agree(one_device, workdir, 1e-10)


def test_the_first_steps_agree_in_float32(data_dir, tmp_path):
    """Two steps: the warm-up gives the first a learning rate of zero."""
    trainer.train_and_evaluate(configure(data_dir, **{"run.stop_after_steps": 2}), tmp_path / "one")
    command = main_command(data_dir, tmp_path / "many", **{"run.stop_after_steps": 2, "run.num_devices": 2})
    Child(command, tmp_path / "many.log").succeed()
    one, many = leaves(tmp_path / "one"), leaves(tmp_path / "many")
    moved = max(np.abs(one[name] - one[name.removeprefix("ema/")]).max() for name in one if name.startswith("ema/"))
    assert moved > 1e-6
    for name in one:
        if name.startswith(("params/", "batch_stats/", "ema/")):
            np.testing.assert_allclose(one[name], many[name], atol=1e-6, rtol=1e-6, err_msg=name)


def test_evaluation_is_exact_on_every_device_count(data_dir, tmp_path):
    """All 1,797 digits at batch 100: every example counts once on 1 and on 8 devices."""
    everything = {"dataset.validation_split": "train+validation+test", "dataset.test_split": ""}
    options = {**everything, "run.stop_after_steps": 1, "evaluation.batch_size": 100}
    workdir = train(data_dir, tmp_path / "w", **options)
    rows = []
    for num_devices in (1, 8):
        overrides = {**EXACT, **options, "run.num_devices": num_devices}
        command = main_command(data_dir, workdir, "--mode=eval", "--split=validation", **overrides)
        assert "1797 examples" in Child(command, tmp_path / f"eval{num_devices}.log").succeed()
        rows.append((workdir / "evaluation" / "validation_step_1" / "metrics.csv").read_text())
    ours, theirs = ([float(x) for x in row.splitlines()[1].split(",")[1:]] for row in rows)
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_counts_that_do_not_fit_are_named(data_dir, tmp_path):
    command = main_command(data_dir, tmp_path / "w", **{"run.num_devices": 6})
    text = Child(command, tmp_path / "six.log").fail()
    assert (
        "config.train.batch_size=32 cannot be sharded over 6 devices; possible device counts: 1, 2, 4, 8, 16, 32"
        in text
    )
