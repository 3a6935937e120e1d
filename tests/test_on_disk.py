"""Tests of what compression keeps on disk: images, feature maps, and the results of stages."""

import collections
import logging
import pathlib
import shutil
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from test_second_order import Mixed, mixed_inputs

from squeeze_jax.compression import on_disk
from squeeze_jax.compression import states as states_lib
from squeeze_jax.compression.on_disk import DiskArray, check_room
from squeeze_jax.compression.segments import SegmentedForward
from squeeze_jax.compression.stage_folder import StageFolder
from squeeze_jax.compression.states import BATCH, States
from squeeze_jax.errors import FileError, InputError


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, ml_dtypes.bfloat16])
def test_rows_come_back_and_nothing_is_left(tmp_path, dtype):
    rows = np.random.default_rng(0).integers(0, 200, (70, 5, 3)).astype(dtype)
    stored = DiskArray.of((rows[first : first + 32] for first in range(0, 70, 32)), tmp_path)
    assert (stored.shape, stored.dtype, len(stored)) == (rows.shape, rows.dtype, 70)
    for part in (slice(None), slice(30, 40), slice(64, 96), slice(70, 90), slice(-1, None)):
        np.testing.assert_array_equal(stored[part], rows[part])
    stored.append(rows[::-1][:2])  # after reading, and not contiguous
    np.testing.assert_array_equal(stored[68:], [*rows[68:], rows[69], rows[68]])
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="there are no images"):
        DiskArray.of([])


def test_a_disk_without_room_is_named(tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        check_room("images", 10**7, tmp_path)
    assert f"keeps up to 0.01 GB of images in {tmp_path}" in caplog.text
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 2 * 10**9))
    with pytest.raises(FileError, match=r"maps need 3\.2 GB in .* and 2\.0 GB are free"):
        check_room("maps", 32 * 10**8, tmp_path)
    with pytest.raises(FileError, match=r"missing cannot hold temporary files \(No such file"):
        DiskArray((2,), np.uint8, tmp_path / "missing")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(on_disk.tempfile, "TemporaryFile", lambda **_: pathlib.Path("/dev/full").open("r+b", 0))  # noqa: SIM115
    with pytest.raises(FileError, match=r"\(No space left on device\); make room or use fewer images"):
        DiskArray.of([np.zeros((4, 2), np.uint8)], tmp_path)


@pytest.fixture(scope="module")
def forward():
    x, variables = mixed_inputs()
    shape = jax.ShapeDtypeStruct((BATCH, *x.shape[1:]), x.dtype)
    return SegmentedForward(Mixed(), variables, shape), variables


@pytest.mark.parametrize("window", [1, 2, 3])
def test_states_are_those_of_a_forward_pass(forward, monkeypatch, window):
    """Whichever are kept; of two batches, the second one filled up, and at most one batch read at a time."""
    monkeypatch.setattr(states_lib, "WINDOW", window)
    read = []

    class Recorded(DiskArray):
        def __getitem__(self, part):
            read.append(part.stop - part.start)
            return super().__getitem__(part)

    monkeypatch.setattr(states_lib, "DiskArray", Recorded)
    forward, variables = forward
    changed = jax.tree.map(lambda leaf: leaf * np.float32(1.1), variables)
    images = np.random.default_rng(1).normal(size=(BATCH + 8, 13, 11, 3)).astype(np.float32)
    states = States(forward, np.asarray, Recorded.of([images]))
    batches = [images[:BATCH], np.resize(images[BATCH:], (BATCH, 13, 11, 3))]
    plain = [[(batch,) for batch in batches] for _ in range(2)]
    for index in range(len(forward.layers)):
        for values, each in zip((variables, changed), plain, strict=True):
            each[:] = [forward.run(index, values, state) for state in each]
        if index == 1:
            continue  # a layer that nobody asks for
        found = list(states.before(index, variables, changed))
        assert [count for count, *_ in found] == [BATCH, 8]
        for number, each in enumerate(plain, 1):
            for state, expected in zip(found, each, strict=True):
                jax.tree.map(np.testing.assert_array_equal, state[number], expected)
    assert read and max(read) == BATCH


def test_the_room_for_states_is_known_before(forward, monkeypatch):
    forward, variables = forward
    sizes = []
    monkeypatch.setattr(DiskArray, "append", lambda self, rows: sizes[-1].append(rows.nbytes))
    monkeypatch.setattr(DiskArray, "__getitem__", lambda self, _: np.zeros((BATCH, *self.shape[1:]), self.dtype))
    states = States(forward, np.asarray, np.zeros((BATCH + 1, 13, 11, 3), np.float32))
    for index in range(len(forward.layers)):
        sizes.append([])
        list(states.before(index, variables, variables))
    written = [sum(layer) for layer in sizes if layer]
    assert len(written) == 2
    assert States.disk_bytes(forward, BATCH + 1) == sum(written)


VARIABLES = {"params": {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.float32([1, 2, 3])}}}
STEPS = {"params/a/kernel": 0.5}
INPUTS = ["sequential", 1e-7, None, VARIABLES, np.zeros((2, 4), np.uint8), '{"mean": 1}']


def computed(factor=2):
    return jax.tree.map(lambda leaf: leaf * np.float32(factor), VARIABLES), STEPS


def refuse():
    raise AssertionError("computed again")


def test_a_stage_is_kept_and_found_by_all_that_it_depends_on(tmp_path):
    folder = StageFolder(tmp_path / "new" / "stages")
    folder.result(INPUTS, computed)
    variables, steps = folder.result(INPUTS, refuse)
    jax.tree.map(np.testing.assert_array_equal, variables, computed()[0])
    assert steps == STEPS
    on_disk_images = [DiskArray.of([x]) if isinstance(x, np.ndarray) else x for x in INPUTS]
    folder.result(on_disk_images, refuse)
    for place, other in ((1, 2e-7), (4, np.zeros((4, 2), np.uint8)), (4, np.zeros((2, 4), bool)), (5, '{"mean": 2}')):
        inputs = [*INPUTS[:place], other, *INPUTS[place + 1 :]]
        with pytest.raises(AssertionError, match="computed again"):
            folder.result(inputs, refuse)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file cannot be the folder"):
        StageFolder(tmp_path / "file")


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_a_damaged_stage_is_computed_again(tmp_path, caplog):
    folder = StageFolder(tmp_path)
    folder.result(INPUTS, computed)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    folder.result(["another", *INPUTS[1:]], lambda: computed(3))
    (other,) = set(tmp_path.iterdir()) - {path}
    cases = [b"", whole[:20], whole[:32], whole[:200], whole[:-1], whole + b"\0", b"PK\3\4" + whole[4:], b"x" * 500]
    cases += [flipped(whole, place) for place in (0, 40, len(whole) // 2, len(whole) - 1)]
    cases += [other.read_bytes()]  # intact, with the right names and shapes, but of another computation
    for data in cases:
        path.write_bytes(data)
        caplog.clear()
        variables, steps = folder.result(INPUTS, computed)
        jax.tree.map(np.testing.assert_array_equal, variables, computed()[0])
        assert steps == STEPS and f"{path} is damaged, or of another computation; it is computed again" in caplog.text
        assert path.read_bytes() == whole
    path.unlink()
    path.mkdir()
    with pytest.raises(FileError, match="cannot be written"):
        folder.result(INPUTS, computed)
    assert "cannot be read" in caplog.text


def test_arrays_of_other_shapes_are_computed_again(tmp_path, caplog):
    folder = StageFolder(tmp_path)
    folder.result(INPUTS, lambda: ({"params": {"a": {"kernel": np.zeros((3, 2), np.float32)}}}, {}))
    variables, _ = folder.result(INPUTS, computed)
    jax.tree.map(np.testing.assert_array_equal, variables, computed()[0])
    assert "has other arrays than the network" in caplog.text
