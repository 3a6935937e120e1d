"""What a run writes beside its checkpoints: read back with checks, written whole, and one error on a full disk."""

import json
import logging
import re
import struct

import pytest
from tensorboardX.proto import event_pb2

from squeeze_jax import console, load
from squeeze_jax.errors import FileError, ModelError, WeightError, WorkdirError
from squeeze_jax.workdir import folder as folder_lib
from squeeze_jax.workdir import records


def snapshot(path):
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(path.rglob("*"))}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            lambda lines: [*lines[:5], "\0" * 20, *lines[6:]],
            "line 6 of .*metrics.jsonl is damaged; restore",
        ),
        (lambda lines: [*lines[:5], '{"step": "1"}', *lines[6:]], "line 6 of .*metrics.jsonl is damaged"),
        (lambda lines: None, "metrics.jsonl is missing, but the run has a checkpoint of step 40; restore the file"),
    ],
)
def test_measurements_are_not_lost_in_silence(reference, tmp_path, lines, message):
    content = (reference / "metrics.jsonl").read_text().splitlines()
    changed = lines(content)
    if changed is not None:
        (tmp_path / "metrics.jsonl").write_text("\n".join(changed) + "\n")
    before = snapshot(tmp_path)
    with pytest.raises(WorkdirError, match=message):
        records.MetricsWriter(tmp_path, 40)
    assert snapshot(tmp_path) == before
    (tmp_path / "metrics.jsonl").write_text("\n".join(content) + "\n" + content[0][:20])  # killed while it wrote
    assert records.read_metrics(tmp_path) == records.read_metrics(reference)


@pytest.mark.parametrize("content", ["", "[]", '{"versions": 1}', "[" * 10_000, b"\xff"])
def test_damaged_versions_are_named(tmp_path, content):
    path = tmp_path / "versions.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = snapshot(tmp_path)
    with pytest.raises(WorkdirError, match="versions.json cannot be read .*; restore it, or delete it to continue"):
        folder_lib.write_versions(tmp_path)
    assert snapshot(tmp_path) == before
    path.unlink()
    folder_lib.write_versions(tmp_path)
    folder_lib.write_versions(tmp_path)


def test_a_full_disk_is_one_error_for_each_file_of_a_workdir(tmp_path):
    """/dev/full takes no byte, like a full disk."""
    for name in ("log.txt", "lock", "metrics"):
        (tmp_path / name).symlink_to("/dev/full")
    logger = logging.getLogger("squeeze_jax.test")
    with pytest.raises(FileError, match="log.txt cannot be written .No space left"), console.logging_to(tmp_path):
        logger.info("a line")
    with pytest.raises(WorkdirError, match="lock cannot be written"), folder_lib.Lock(tmp_path):
        pass
    writer = records.MetricsWriter(tmp_path, 0)
    writer._file = (tmp_path / "metrics").open("w")
    with pytest.raises(FileError, match="metrics.jsonl cannot be written .No space left"):
        writer.write(1, "train", {"loss": 1.0})
    writer.close()
    writer = records.MetricsWriter(tmp_path, 0)
    writer.write(1, "train", {"loss": 1.0})
    (events,) = (tmp_path / "tensorboard").iterdir()
    writer._events._file._py_recordio_writer._writer = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(FileError, match="tensorboard cannot be written .No space left"):
        writer.write(2, "train", {"loss": 1.0})
    writer.close()
    assert events.stat().st_size > 0


def test_tensorboard_events_are_those_of_the_run(reference):
    (path,) = (reference / "tensorboard").iterdir()
    data, events = path.read_bytes(), []
    while data:  # records of TFRecord: length, checksum, event, checksum
        (length,) = struct.unpack("<Q", data[:8])
        events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    found = {(event.step, value.tag): value.simple_value for event in events for value in event.summary.value}
    assert events[1].session_log.status == event_pb2.SessionLog.START and events[1].step == 1
    for record in records.read_metrics(reference):
        for name, value in record["values"].items():
            assert found[record["step"], f"{record['split']}/{name}"] == pytest.approx(value, rel=1e-6)


def test_a_config_of_another_network_than_the_checkpoint_is_named(reference, tmp_path):
    (tmp_path / "checkpoints").symlink_to(reference / "checkpoints")
    stored = json.loads((reference / "config.json").read_text())
    for change, message in (
        ({"base_filters": 16}, "does not fit the network .- expected, . found"),
        ({"stem": "7x7/2", "base_filters": 2**40}, "WeightError|ModelError"),
    ):
        config = {**stored["config"], "model": {**stored["config"]["model"], **change}}
        (tmp_path / "config.json").write_text(json.dumps({**stored, "config": config}))
        with pytest.raises((WeightError, ModelError)) as raised:
            load(tmp_path)
        assert re.search(message, f"{type(raised.value).__name__}: {raised.value}")
    renamed = {**stored["resolved"], "class_names": stored["resolved"]["class_names"][:-1], "num_classes": 9}
    (tmp_path / "config.json").write_text(json.dumps({**stored, "resolved": renamed}))
    with pytest.raises(WeightError, match="does not fit the network"):
        load(tmp_path)
