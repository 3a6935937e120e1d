"""Numerical output of a run: metrics.jsonl, TensorBoard events, result.json and curves.png."""

import contextlib
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from squeeze_jax import plotting
from squeeze_jax.data import SPLITS
from squeeze_jax.errors import WorkdirError
from squeeze_jax.files import replaced, write_json, writing

METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records in metrics.jsonl, in order.

    A last line that is incomplete, because the run was killed while it was written, is left out.

    Raises:
      WorkdirError: the file cannot be read, or another line is damaged; nothing is left out then.
    """
    path = pathlib.Path(workdir) / METRICS_FILE
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise WorkdirError(f"{path} cannot be read: {error.strerror}.") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            record = _parse(line)
            if record is not None:
                records.append(record)
            elif number < len(lines):
                raise WorkdirError(
                    f"line {number} of {path} is damaged; restore the file, or delete this line to continue without it."
                )
    return records


def _parse(line: bytes) -> dict[str, Any] | None:
    """Returns the record in a line of metrics.jsonl; None if it is not one."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(values := record.get("values"), dict):
        return None
    numbers = all(isinstance(value, (int, float)) for value in values.values())
    return record if numbers and type(record.get("step")) is int and isinstance(record.get("split"), str) else None


class MetricsWriter:
    """Appends to metrics.jsonl and to TensorBoard events.

    Existing records after `resume_step`, and all test results, are removed, because the run measures them again.

    Args:
      workdir: the folder.
      resume_step: the step that the run starts from.

    Raises:
      WorkdirError: the file is missing although the run is resumed, or damaged; it is left as it is.
      FileError: the disk is full; likewise of all methods.
    """

    def __init__(self, workdir: pathlib.Path, resume_step: int):
        self._path = path = workdir / METRICS_FILE
        if resume_step and not path.exists():
            raise WorkdirError(
                f"{path} is missing, but the run has a checkpoint of step {resume_step}; restore the file, or make an "
                f"empty one to continue without the earlier measurements."
            )
        kept = [r for r in read_metrics(workdir) if r["step"] <= resume_step and r["split"] != "test"]
        with replaced(path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        with writing(path):
            self._file = path.open("a")
        self._events = _Events(workdir / "tensorboard", resume_step)

    def write(self, step: int, split: str, values: dict[str, float], speed: dict[str, float] | None = None) -> None:
        """Writes one record: {"step", "split", "values", "speed"}.

        Args:
          step: the step of the weights.
          split: "train", "validation" or "test".
          values: the metrics.
          speed: timings, which differ between otherwise identical runs.
        """
        record = {"step": step, "split": split, "values": values}
        if speed is not None:
            record["speed"] = speed
        with writing(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        self._events.write(step, {f"{split}/{name}": value for name, value in {**values, **(speed or {})}.items()})

    def close(self) -> None:
        """Closes the files, in which everything is already."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._events.close()


class _Events:
    """TensorBoard events, written at once: the thread of tensorboardX's own writer hangs when the disk is full."""

    def __init__(self, folder: pathlib.Path, resume_step: int):
        self._folder, self._first_step = folder, resume_step + 1
        self._file = None

    def write(self, step: int, values: dict[str, float]) -> None:
        # Imported not at start-up, because tensorboardX imports torch if that is installed.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        with writing(self._folder):
            if self._file is None:
                self._folder.mkdir(exist_ok=True)
                self._file = EventsWriter(str(self._folder / "events"))
                # Hides the events of other files after this step, which are of a run that was interrupted.
                self._file.write_event(Event(step=self._first_step, session_log=SessionLog(status=SessionLog.START)))
            for name, value in values.items():
                self._file.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


def write_result(workdir: pathlib.Path, best_step: int | None, size: dict[str, int]) -> None:
    """Writes result.json, which only a finished run has: the selected step, its metrics and the size of the network.

    Args:
      workdir: the folder.
      best_step: the step of the best checkpoint; None for the last step.
      size: counts of the network, such as "parameters" and "macs".
    """
    records = read_metrics(workdir)
    step = records[-1]["step"] if best_step is None else best_step
    chosen = {r["split"]: r["values"] for r in records if r["split"] == "test" or r["step"] == step}
    result = {
        "step": step,
        **size,
        **{split: chosen[split] for split in ("validation", "test") if split in chosen},
    }
    write_json(workdir / RESULT_FILE, result)


def draw_curves(workdir: pathlib.Path, metrics: Sequence[str]) -> pathlib.Path | None:
    """Draws curves.png from metrics.jsonl and returns its path; None if no metric was measured twice.

    A metric that was measured once has no panel.

    Args:
      workdir: the folder.
      metrics: the names of the metrics to draw against the step.
    """
    records = read_metrics(workdir)
    panels = {
        name: {
            split: [(r["step"], r["values"][name]) for r in records if r["split"] == split and name in r["values"]]
            for split in SPLITS
        }
        for name in metrics
    }
    panels = {name: lines for name, lines in panels.items() if sum(map(len, lines.values())) > 1}
    if not panels:
        return None
    path = workdir / "curves.png"
    with plotting.figure(path, 1, len(panels), width=4 * len(panels), height=3.2) as (_, axes):
        for axis, (name, lines) in zip(axes.flat, panels.items(), strict=True):
            for index, (split, points) in enumerate(lines.items()):
                if points:
                    style = plotting.line(index) if split == "train" and len(points) > 1 else plotting.points(index)
                    axis.plot(*zip(*points, strict=True), label=split, **style)
            axis.set(xlabel="step", ylabel=plotting.quantity(name))
            plotting.count_ticks(axis)
    return path
