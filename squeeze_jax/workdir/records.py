"""Numerical output of a run: metrics.jsonl, TensorBoard events, result.json and curves.png."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from squeeze_jax import drawing

METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
SPLIT_COLOURS = {"train": "tab:blue", "validation": "tab:orange", "test": "tab:red"}


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records in metrics.jsonl, in order; an incomplete last line is ignored."""
    path = pathlib.Path(workdir) / METRICS_FILE
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class MetricsWriter:
    """Appends to metrics.jsonl and to TensorBoard events.

    Existing records after `resume_step`, and all test results, are removed, because the run measures them again.

    Args:
      workdir: the folder.
      resume_step: the step that the run starts from.
    """

    def __init__(self, workdir: pathlib.Path, resume_step: int):
        path = workdir / METRICS_FILE
        kept = [r for r in read_metrics(workdir) if r["step"] <= resume_step and r["split"] != "test"]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        temporary.replace(path)
        self._file = path.open("a")
        self._events = None
        self._events_options = {"logdir": str(workdir / "tensorboard"), "purge_step": resume_step + 1}

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
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._events is None:
            import tensorboardX  # not at start-up, because it imports torch if that is installed

            self._events = tensorboardX.SummaryWriter(**self._events_options)
        for name, value in {**values, **(speed or {})}.items():
            self._events.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()


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
    temporary = workdir / f"{RESULT_FILE}.tmp"
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.replace(workdir / RESULT_FILE)


def draw_curves(workdir: pathlib.Path, metrics: Sequence[str]) -> pathlib.Path | None:
    """Draws curves.png from metrics.jsonl and returns its path; None if none of the metrics was measured.

    Args:
      workdir: the folder.
      metrics: the names of the metrics to draw against the step.
    """
    records = read_metrics(workdir)
    names = [name for name in metrics if any(name in record["values"] for record in records)]
    if not names:
        return None
    figure, axes = drawing.new_figure(1, len(names), width=4.5 * len(names), height=3.5, layout=None)
    for axis, name in zip(axes.flat, names, strict=True):
        for split, colour in SPLIT_COLOURS.items():
            points = [(r["step"], r["values"][name]) for r in records if r["split"] == split and name in r["values"]]
            if points:
                style = {"marker": "o", "markersize": 3} if split != "train" else {}
                axis.plot(*zip(*points, strict=True), label=split, color=colour, **style)
        axis.set(xlabel="step", title=name.replace("_", " "))
        axis.grid(alpha=0.3)
        axis.legend()
    # The margins are fixed, because every run waits for this, and an automatic layout draws everything twice.
    figure.subplots_adjust(left=0.05, right=0.98, bottom=0.16, top=0.9)
    return drawing.save(figure, workdir / "curves.png")
