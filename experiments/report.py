"""What a sweep found: a CSV with a row a trial, a Markdown table with a row a point, plots with error bars."""

import itertools
import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import EngFormatter
from scipy import stats

from experiments.compare import markdown
from experiments.trials import Sweep, Trial, status
from squeeze_jax import config as config_lib
from squeeze_jax.workdir import VERSIONS_FILE
from squeeze_jax.writers import RESULT_FILE, new_figure, read_metrics, write_csv

MIB = 2**20
SIZES = ("parameters", "macs")


def write(sweep: Sweep, workdir: pathlib.Path, output: pathlib.Path) -> str:
    """Writes NAME.csv, NAME.md and, where there are several points, plots as SVG and PNG.

    Args:
      sweep: whose trials lie in `workdir`; those that are not finished are named, and left out of means and plots.
      workdir: of the sweep.
      output: a folder.

    Returns:
      The table, and what is missing, as Markdown.
    """
    output.mkdir(parents=True, exist_ok=True)
    rows = [_row(sweep, trial, workdir / trial.name) for trial in sweep.trials()]
    columns = dict.fromkeys(key for row in rows for key in row)
    write_csv(output / f"{sweep.name}.csv", [{key: row.get(key, "") for key in columns} for row in rows])
    missing = [f"- {row['trial']}: {row['status']}" for row in rows if row["status"] != "finished"]
    text = "\n".join([_table(sweep, rows), *(["", "Not in the table:", *missing] if missing else [])])
    (output / f"{sweep.name}.md").write_text(text + "\n")
    if len(sweep.points) > 1 and len(missing) < len(rows):
        _plot(sweep, rows, output)
    return text


def _row(sweep: Sweep, trial: Trial, folder: pathlib.Path) -> dict[str, Any]:
    """A trial's overrides and outcome; metrics are those of the checkpoint that the validation split chose, but for
    validation_loss_at_end, of the last step."""
    row: dict[str, Any] = {"trial": trial.name, "config": trial.config, **trial.overrides, "seed": trial.seed}
    row["status"] = status(folder)
    if row["status"] != "finished":
        return row
    result = json.loads((folder / RESULT_FILE).read_text())
    row |= {
        "parameters": result["parameters"],
        "mebibytes": round(result["parameters"] * 4 / MIB, 2),
        "macs": result["macs"],
        "step": result["step"],
    }
    for split in ("validation", "test"):
        row |= {f"{split}_{name}": value for name, value in result.get(split, {}).items()}
    records = read_metrics(folder)
    validated = [record["values"]["loss"] for record in records if record["split"] == "validation"]
    if validated:
        row["validation_loss_at_end"] = validated[-1]
    row |= sweep.derived(row)
    made = json.loads((folder / VERSIONS_FILE).read_text())
    return row | {
        "training_seconds": round(_training_seconds(folder, records)),
        "cpu_cores": made["cpu_cores"],
        "devices": " ".join(made["devices"]),
        "jax": made["versions"]["jax"],
        "flax": made["versions"]["flax"],
        "commit": made["commit"],
    }


def _training_seconds(folder: pathlib.Path, records: Sequence[dict[str, Any]]) -> float:
    """Of the training steps that the log lines timed: without compilation, evaluation and pauses."""
    batch = config_lib.read(folder)[0].train.batch_size
    seconds, before = 0.0, 0
    for record in records:
        if record["split"] == "train":
            images, before = (record["step"] - before) * batch, record["step"]
            if "images_per_second" in record["speed"]:
                seconds += images / record["speed"]["images_per_second"]
    return seconds


def _points(sweep: Sweep, rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The finished trials of each point, by seed."""
    per_point = [rows[i :: len(sweep.points)] for i in range(len(sweep.points))]
    return [[row for row in trials if row["status"] == "finished"] for trials in per_point]


def _metric_of(sweep: Sweep, rows: Sequence[dict[str, Any]]) -> str:
    """What the table compares; the validation split's values where no test split is read."""
    if sweep.metric:
        return sweep.metric
    for name in ("test_auc", "test_top1", "validation_auc", "validation_top1"):
        if any(name in row for row in rows):
            return name
    return "test_top1"


def _keys(sweep: Sweep) -> list[str]:
    """What the points vary."""
    return list(dict.fromkeys(key for point in sweep.points for key in point))


def _varies_one_number(sweep: Sweep) -> bool:
    """Whether the points are a curve, as in Figure 3 of the SqueezeNet paper."""
    return len(_keys(sweep)) == 1 and all(
        isinstance(value, int | float) for point in sweep.points for value in point.values()
    )


def _title(column: str) -> str:
    return "MACs" if column == "macs" else column.rsplit(".", 1)[-1].replace("_", " ")


def _table(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
    metric = _metric_of(sweep, rows)
    keys = _keys(sweep)
    points = _points(sweep, rows)
    header = [_title(key) for key in keys]
    header += ["parameters", "MiB", "M MACs", f"{_title(metric)} (mean ± s. d.)", "seeds"]
    header += ["to the first row", "to the row above"]
    lines = [header + list(sweep.published)]
    for i, (point, trials) in enumerate(zip(sweep.points, points, strict=True)):
        cells = [str(point.get(key, "")) for key in keys]
        if trials:
            size = [f"{trials[0]['parameters']:,}", f"{trials[0]['mebibytes']:.2f}", f"{trials[0]['macs'] / 1e6:,.1f}"]
            values = [row[metric] for row in trials]
            cells += [
                *size,
                _mean_and_spread(values),
                str(len(values)),
                _difference(points[0], trials, metric) if i else "",
                _difference(points[i - 1], trials, metric) if i > 1 else "",
            ]
        else:
            cells += [""] * 4 + ["0", "", ""]
        lines.append(cells + [str(column[i]) for column in sweep.published.values()])
    return markdown(lines[0], lines[1:])


def _mean_and_spread(values: Sequence[float]) -> str:
    """ "0.8123 ± 0.0045"; the standard deviation over seeds, where there are two."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def _difference(first: list[dict[str, Any]], trials: list[dict[str, Any]], metric: str) -> str:
    """The mean difference over the seeds that both have, and p of a paired, two-sided t-test where they differ."""
    baseline = {row["seed"]: row[metric] for row in first}
    pairs = [(row[metric], baseline[row["seed"]]) for row in trials if row["seed"] in baseline]
    if not pairs:
        return ""
    differences = [ours - theirs for ours, theirs in pairs]
    text = f"{statistics.mean(differences):+.4f}"
    if max(differences) - min(differences) > 1e-9:  # the test needs a spread, and rounding is none
        p = stats.ttest_rel(*zip(*pairs, strict=True)).pvalue
        text += ", p < 0.001" if p < 0.001 else f", p = {p:.3f}"
    return text


def _lines(sweep: Sweep, rows: list[dict[str, Any]], x: str) -> dict[str, list[list[dict[str, Any]]]]:
    """The finished trials, point by point; points that differ in nothing but x are one line."""
    lines: dict[str, list[list[dict[str, Any]]]] = {}
    for point, trials in zip(sweep.points, _points(sweep, rows), strict=True):
        if trials:
            label = ", ".join(str(value) for key, value in point.items() if key != x)
            lines.setdefault(label, []).append(trials)
    return lines


def _plot(sweep: Sweep, rows: list[dict[str, Any]], output: pathlib.Path) -> None:
    figure, axes = new_figure(1, len(sweep.plots), width=9, height=3.6, layout="constrained")
    for axis, (x, y) in zip(axes.flat, sweep.plots, strict=True):
        metric = y or _metric_of(sweep, rows)
        if x in SIZES and _varies_one_number(sweep):
            curve = [trials for trials in _points(sweep, rows) if trials]
            means = [statistics.mean(row[metric] for row in trials) for trials in curve]
            axis.plot([trials[0][x] for trials in curve], means, color="0.7", zorder=0)
        # Markers shrink so that one line on another still shows.
        styles = itertools.cycle(zip("osD^v", (9, 8, 7, 6, 5), strict=True))
        for (label, line), (marker, size) in zip(_lines(sweep, rows, x).items(), styles, strict=False):
            values = [[row[metric] for row in trials] for trials in line]
            axis.errorbar(
                [float(trials[0][x]) for trials in line],
                [statistics.mean(of_point) for of_point in values],
                yerr=[statistics.stdev(of_point) if len(of_point) > 1 else 0 for of_point in values],
                fmt=f"{marker}-",
                markersize=size,
                capsize=3,
                label=label,
            )
        axis.set_xlabel(_title(x))
        axis.set_ylabel(_title(metric))
        axis.grid(alpha=0.3)
        if x in SIZES:
            axis.xaxis.set_major_formatter(EngFormatter())
    legend_title = ", ".join(_title(key) for key in _keys(sweep) if key != x)
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title=legend_title)
    figure.suptitle(f"{sweep.name.replace('_', ' ')}: mean and standard deviation over seeds")
    for suffix in ("svg", "png"):
        figure.savefig(output / f"{sweep.name}.{suffix}", dpi=150)
