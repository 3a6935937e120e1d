"""Checkpoints on their own: what is kept, what is verified, what a damaged one does."""

import json
import logging
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from squeeze_jax.config import base_config
from squeeze_jax.errors import CheckpointError
from squeeze_jax.training.optimizers import OPTIMIZERS, make_optimizer
from squeeze_jax.training.state import TrainState, empty_window
from squeeze_jax.workdir import checkpoints as checkpoints_lib
from squeeze_jax.workdir.checkpoints import Checkpoints

SUMS = {"examples": jax.ShapeDtypeStruct((), jnp.int32), "loss": jax.ShapeDtypeStruct((), jnp.float32)}


def state(value, width=64, optimizer=None, sums=SUMS):
    params = {"conv1": {"kernel": jnp.full((width, 3), float(value)), "bias": jnp.zeros(3)}}
    return TrainState(
        step=jnp.array(value, jnp.int32),
        params=params,
        batch_stats={},
        opt_state=(optimizer or optax.sgd(0.1, momentum=0.9)).init(params),
        ema={"params": params, "batch_stats": {}},
        window=empty_window(sums),
    )


def saved(path, steps=(1, 2, 3), best=None, keep=5):
    checkpoints = Checkpoints(path, keep=keep)
    for step in steps:
        checkpoints.save(step, state(step), {"best_step": best, "best_value": None})
    checkpoints.close()


def snapshot(path):
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(path.rglob("*"))}


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_state_comes_back_bit_by_bit(tmp_path, name):
    config = base_config().optimizer
    config.name = name
    optimizer = make_optimizer(config, optax.constant_schedule(0.1))
    rng = np.random.default_rng(0)
    blank = state(0, optimizer=optimizer)
    original = jax.tree.map(lambda leaf: jnp.array(rng.normal(size=leaf.shape), leaf.dtype), blank)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, original, {"best_step": 5, "best_value": 0.25})
    restored, info = checkpoints.restore_latest(jax.eval_shape(lambda: state(0, optimizer=optimizer)))
    assert info == {"best_step": 5, "best_value": 0.25}
    assert jax.tree.structure(restored) == jax.tree.structure(original)
    for a, b in zip(jax.tree.leaves(original), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def test_the_latest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 7):
        checkpoints.save(step, state(step), {"best_step": min(step, 3), "best_value": 0.5})
    assert checkpoints.steps() == [3, 5, 6]
    reader = Checkpoints(tmp_path, read_only=True)
    assert [reader.read(name)[0] for name in ("best", "latest", 5, "5")] == [3, 6, 5, 5]
    assert float(reader.read("best")[1]["params/conv1/kernel"][0, 0]) == 3.0
    with pytest.raises(CheckpointError, match="contains no checkpoint 4; expected 'best', 'latest' or one of 3, 5, 6"):
        reader.read(4)


def test_the_best_is_kept_after_a_resumption(tmp_path):
    saved(tmp_path, steps=(1, 2), best=1, keep=1)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.restore_latest(state(0))
    checkpoints.save(3, state(3), {"best_step": 1, "best_value": None})
    assert checkpoints.steps() == [1, 3]


def flip_a_bit(folder):
    path = largest_file(folder / "state")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder):
    path = largest_file(folder / "state")
    os.truncate(path, path.stat().st_size // 2)


def remove_state(folder):
    (folder / "state").rename(folder.parent.parent / "elsewhere")


def remove_info(folder):
    (folder / "info").rename(folder.parent.parent / "elsewhere")


def change_info(folder):
    path = largest_file(folder / "info")
    path.write_text(path.read_text().replace('"best_step": null', '"best_step": 1   '))


DAMAGES = [flip_a_bit, truncate, remove_state, remove_info, change_info]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, caplog, damage):
    saved(tmp_path)
    damage(tmp_path / "checkpoints" / "3")
    before = snapshot(tmp_path)
    with caplog.at_level(logging.WARNING):
        step, leaves = Checkpoints(tmp_path, read_only=True).read("latest")
    assert step == 2 and float(leaves["params/conv1/kernel"][0, 0]) == 2.0
    assert "checkpoint 3 of" in caplog.text and "is damaged" in caplog.text
    assert snapshot(tmp_path) == before  # read-only is read-only

    checkpoints = Checkpoints(tmp_path, keep=5)
    restored, _ = checkpoints.restore_latest(state(0))
    assert int(restored.step) == 2
    assert (tmp_path / "damaged_checkpoints" / "3").is_dir()
    checkpoints.save(3, state(3), {"best_step": None, "best_value": None})
    assert checkpoints.steps() == [1, 2, 3]
    assert int(checkpoints.restore_latest(state(0))[0].step) == 3


LEAF = "params/conv1/kernel"
HOSTILE = {
    "no object": lambda content: [],
    "version": lambda content: {**content, "version": "2"},
    "best step": lambda content: {**content, "run": {**content["run"], "best_step": "x"}},
    "no run": lambda content: {**content, "run": {}},
    "terabytes": lambda content: with_leaf(content, shape=[10**6, 10**6]),
    "negative": lambda content: with_leaf(content, shape=[-1, 3]),
    "text": lambda content: with_leaf(content, shape="64"),
    "dtype": lambda content: with_leaf(content, dtype="nonsense"),
    "objects": lambda content: with_leaf(content, dtype="object"),
    "leaf in a leaf": lambda content: {
        **content,
        "leaves": {**content["leaves"], f"{LEAF}/a": content["leaves"][LEAF]},
    },
}


def with_leaf(content, **changes):
    return {**content, "leaves": {**content["leaves"], LEAF: {**content["leaves"][LEAF], **changes}}}


def test_an_info_with_a_computed_checksum_is_damaged_like_others(tmp_path, caplog):
    saved(tmp_path, steps=(1, 2))
    path = largest_file(tmp_path / "checkpoints" / "2" / "info")
    content = json.loads(path.read_text())["content"]
    for name, change in HOSTILE.items():
        hostile = change(content)
        path.write_text(json.dumps({"content": hostile, "sha256": checkpoints_lib._hash_json(hostile)}))
        caplog.clear()
        assert Checkpoints(tmp_path, read_only=True).read("latest")[0] == 1, name
        assert "checkpoint 2 of" in caplog.text and "is damaged" in caplog.text


def test_without_room_nothing_is_written(tmp_path, monkeypatch, capfd):
    saved(tmp_path, steps=(1,))
    before = snapshot(tmp_path)
    checkpoints = Checkpoints(tmp_path, keep=5)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=10**6, free=5000))
    with pytest.raises(CheckpointError, match="step 2 .* it needs up to [0-9,]+ bytes, and the disk has 5,000.*: 1"):
        checkpoints.save(2, state(2), {"best_step": None, "best_value": None})
    assert snapshot(tmp_path) == before and capfd.readouterr().err == ""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=0, free=0))  # of some network disks
    checkpoints.save(2, state(2), {"best_step": None, "best_value": None})
    assert checkpoints.steps() == [1, 2]


def test_every_bit_of_the_largest_file_matters_or_is_harmless(tmp_path):
    """Random flips: either the very same values, or a report."""
    saved(tmp_path, steps=(1, 2))
    path = largest_file(tmp_path / "checkpoints" / "2" / "state")
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    reported = 0
    for _ in range(12):
        flipped = bytearray(content)
        flipped[rng.integers(len(flipped))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        step, leaves = Checkpoints(tmp_path, read_only=True).read("latest")
        assert (leaves["params/conv1/kernel"] == step).all()
        reported += step == 1
    assert reported > 0


def test_all_damaged_is_an_error_and_nothing_is_moved(tmp_path):
    saved(tmp_path)
    for step in (1, 2, 3):
        truncate(tmp_path / "checkpoints" / str(step))
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged \(steps \[3, 2, 1\]\)"):
        Checkpoints(tmp_path).restore_latest(state(0))
    assert snapshot(tmp_path) == before
    with pytest.raises(CheckpointError, match="no checkpoint .* is intact"):
        Checkpoints(tmp_path, read_only=True).read("best")


def test_another_models_checkpoint_is_not_called_damaged(tmp_path):
    saved(tmp_path)
    with pytest.raises(CheckpointError, match=r"- expected, \+ found") as error:
        Checkpoints(tmp_path).restore_latest(state(0, width=32))
    assert "- params/conv1/kernel (32, 3) float32" in str(error.value)
    assert "+ params/conv1/kernel (64, 3) float32" in str(error.value)


def test_a_folder_without_checkpoints_is_named(tmp_path):
    assert Checkpoints(tmp_path / "new").restore_latest(state(0)) is None
    with pytest.raises(CheckpointError, match="contains no checkpoint yet"):
        Checkpoints(tmp_path / "new", read_only=True).read("best")
    with pytest.raises(CheckpointError, match="is it the workdir of a run"):
        Checkpoints(tmp_path / "nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists()


def test_another_metric_begins_the_window_again_and_keeps_the_rest(tmp_path, caplog):
    window = {"steps": jnp.array(3), "sums": {"examples": jnp.array(24), "loss": jnp.array(9.0)}}
    old = state(5)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, old.replace(window={**old.window, **window}), {"best_step": None, "best_value": None})
    restored, _ = checkpoints.restore_latest(old)
    assert int(restored.window["steps"]) == 3 and float(restored.window["sums"]["loss"]) == 9.0
    new_sums = SUMS | {"top1": jax.ShapeDtypeStruct((), jnp.int32)}
    with caplog.at_level(logging.WARNING):
        restored, _ = checkpoints.restore_latest(state(0, sums=new_sums))
    assert "has other metrics than this version" in caplog.text
    assert set(restored.window["sums"]) == set(new_sums) and not any(map(int, jax.tree.leaves(restored.window)))
    assert int(restored.step) == 5 and float(restored.params["conv1"]["kernel"][0, 0]) == 5.0
