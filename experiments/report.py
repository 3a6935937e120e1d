"""Reports a sweep: a CSV with one row per trial, a Markdown table with one row per point, plots with error bars."""

import dataclasses
import itertools
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.trials import Sweep, SweepError, Trial, measured, read_json, status
from squeeze_jax import config as config_lib
from squeeze_jax import plotting
from squeeze_jax.errors import InputError, SqueezeJaxError
from squeeze_jax.files import make_folder, replaced
from squeeze_jax.tables import markdown, read_csv, write_csv
from squeeze_jax.workdir.folder import VERSIONS_FILE
from squeeze_jax.workdir.records import METRICS_FILE, RESULT_FILE, read_metrics

SIZES = ("parameters", "macs")
FOLD = "dataset.fold"  # points that differ in it alone are one row of the table
ABOUT_FOLDS = (
    "Mean and standard deviation over the folds. Differences have no p, because folds share training images. "
    "`python -m experiments.judge` judges all folds of a classifier together, by case."
)
PLOT_COLUMNS = 3
LOG_RANGE = 30  # an axis is logarithmic if its largest value is more than so many times its smallest


def write(
    sweep: Sweep, workdir: pathlib.Path, output: pathlib.Path, reused: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """Writes NAME.csv, NAME.md and, if there are several points, plots as SVG and PNG.

    Args:
      sweep: the sweep; unfinished trials are listed, and left out of means and plots.
      workdir: the folder of the sweep, with its trials.
      output: the folder of the report.
      reused: finished trials of earlier reports, by name; see `read_rows`.

    Returns:
      The table, and the list of missing trials, as Markdown.
    """
    make_folder(output)
    reused = reused or {}
    rows = [
        {**reused[trial.name], **sweep.derived(reused[trial.name])}
        if trial.name in reused
        else _row(sweep, trial, workdir / trial.name)
        for trial in sweep.trials()
    ]
    metric = _metric_of(sweep, rows)
    for row in rows:
        if row["status"] == "finished" and not isinstance(row.get(metric), int | float):  # undefined on this split
            row["status"] = f"finished, but has no {metric}"
    columns = dict.fromkeys(key for row in rows for key in row)
    write_csv(output / f"{sweep.name}.csv", [{key: row.get(key, "") for key in columns} for row in rows])
    missing = [f"- {row['trial']}: {row['status']}" for row in rows if row["status"] != "finished"]
    text = "\n".join([_table(sweep, rows), *(["", "Not in the table:", *missing] if missing else [])])
    if _has_folds(sweep):
        text += f"\n\n{ABOUT_FOLDS}"
    with replaced(output / f"{sweep.name}.md") as temporary:
        temporary.write_text(text + "\n")
    if plots := _plots(sweep, rows):
        _plot(dataclasses.replace(sweep, plots=plots), rows, output)
    return text


def read_rows(path: pathlib.Path, trials: Sequence[Trial]) -> dict[str, dict[str, Any]]:
    """Returns the rows of an earlier report, by trial.

    Args:
      path: the CSV of a report of the same sweep, from this or another machine.
      trials: the trials of the sweep; rows of others are left out.

    Raises:
      SweepError: the file is not the whole CSV of a report, it has a trial twice, or a trial of this name had other
        overrides.
    """
    try:
        listed = read_csv(path, ("trial", "status"))
    except InputError as error:
        raise SweepError(f"this is not the CSV of a report: {error}") from error
    rows = {row["trial"]: row for row in listed}
    if len(rows) < len(listed):
        raise SweepError(f"{path} has {len(listed) - len(rows)} trial(s) twice; keep one row of each.")
    found = {}
    for trial in trials:
        if trial.name in rows:
            row = rows[trial.name]
            overrides = {"config": trial.config, **trial.overrides, "seed": str(trial.seed)}
            for key, value in overrides.items():
                if row.get(key) != value:
                    raise SweepError(f"{path}: {trial.name} has {key}={row.get(key)!r}; this sweep has {value!r}.")
            results = {key: _number(text) for key, text in row.items() if key not in overrides and text}
            found[trial.name] = {"trial": trial.name, **overrides, "seed": trial.seed, **results}
    return found


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _row(sweep: Sweep, trial: Trial, folder: pathlib.Path) -> dict[str, Any]:
    """Returns a trial's overrides and results.

    The metrics are those of the checkpoint that was selected on the validation split, except validation_loss_at_end,
    which is that of the last step.
    """
    row: dict[str, Any] = {"trial": trial.name, "config": trial.config, **trial.overrides, "seed": trial.seed}
    row["status"] = status(folder)
    if row["status"] == "finished":
        try:
            row |= _measured(sweep, row, folder)
        except SqueezeJaxError as error:  # a damaged file of this trial
            row["status"] = f"finished, but {error}"
        except (TypeError, ValueError, KeyError, AttributeError):  # values that no run writes
            row["status"] = f"finished, but {RESULT_FILE}, {METRICS_FILE} or {VERSIONS_FILE} in {folder} is damaged"
    return row


def _measured(sweep: Sweep, row: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    columns, metric = measured(folder)
    config = config_lib.read(folder)[0]
    row = row | columns
    records = read_metrics(folder)
    if not records:
        raise SweepError(f"{folder / METRICS_FILE} is missing or empty.")
    validated = [record["values"]["loss"] for record in records if record["split"] == "validation"]
    if validated:
        row["validation_loss_at_end"] = validated[-1]
    row |= sweep.derived(row)
    row["metric"] = metric
    made = read_json(folder / VERSIONS_FILE, "cpu_cores", "devices", "versions", "commit")
    return row | {
        "training_seconds": round(_training_seconds(config.train.batch_size, records)),
        "cpu_cores": made["cpu_cores"],
        "devices": " ".join(made["devices"]),
        "jax": made["versions"]["jax"],
        "flax": made["versions"]["flax"],
        "commit": made["commit"],
    }


def _training_seconds(batch: int, records: Sequence[dict[str, Any]]) -> float:
    """Returns the seconds of the training steps timed by the log lines: without compilation, evaluation and pauses."""
    seconds, before = 0.0, 0
    for record in records:
        if record["split"] == "train":
            images, before = (record["step"] - before) * batch, record["step"]
            if "images_per_second" in record["speed"]:
                seconds += images / record["speed"]["images_per_second"]
    return seconds


def _has_folds(sweep: Sweep) -> bool:
    return any(FOLD in point for point in sweep.points)


def _groups(sweep: Sweep) -> dict[int, list[int]]:
    """Returns the points by the first one that differs from them in the fold alone; each is its own without folds."""
    if not _has_folds(sweep):
        return {i: [i] for i in range(len(sweep.points))}
    groups: dict[int, list[int]] = {}
    first: dict[str, int] = {}
    for i, point in enumerate(sweep.points):
        others = repr({key: value for key, value in point.items() if key != FOLD})
        groups.setdefault(first.setdefault(others, i), []).append(i)
    return groups


def _distinct(sweep: Sweep) -> list[Mapping[str, Any]]:
    """Returns the points of the rows of the table, without their folds."""
    return [{key: value for key, value in sweep.points[i].items() if key != FOLD} for i in _groups(sweep)]


def _points(sweep: Sweep, rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Returns the finished trials of each row of the table, by seed and fold."""
    step = len(sweep.points)
    return [
        [row for i in members for row in rows[i::step] if row["status"] == "finished"]
        for members in _groups(sweep).values()
    ]


def _metric_of(sweep: Sweep, rows: Sequence[dict[str, Any]]) -> str:
    """Returns the column that the table compares.

    By default this is the metric that selects the checkpoints, on the test split if there is one, else on the
    validation split.
    """
    return sweep.metric or next((row["metric"] for row in rows if row.get("metric")), "")


def _keys(sweep: Sweep) -> list[str]:
    """Returns the config keys that differ between points, without the fold."""
    return list(dict.fromkeys(key for point in _distinct(sweep) for key in point))


def _varies_one_number(sweep: Sweep) -> bool:
    """Returns whether the points form a curve, as in Figure 3 of the SqueezeNet paper."""
    return len(_keys(sweep)) == 1 and all(
        isinstance(value, int | float) for point in _distinct(sweep) for value in point.values()
    )


def _title(column: str) -> str:
    return "MACs" if column == "macs" else column.rsplit(".", 1)[-1].replace("_", " ")


def _table(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
    metric = _metric_of(sweep, rows)
    keys = _keys(sweep)
    points = _points(sweep, rows)
    header = [_title(key) for key in keys]
    replicates = "runs" if _has_folds(sweep) else "seeds"
    header += ["parameters", "MiB", "M MACs", f"{_title(metric) or 'metric'} (mean ± s. d.)", replicates]
    header += ["to the first row", "to the row above"]
    lines = [header + [_title(column) for column in sweep.columns] + list(sweep.published)]
    for i, (place, point, trials) in enumerate(zip(_groups(sweep), _distinct(sweep), points, strict=True)):
        cells = [str(point.get(key, "")) for key in keys]
        if trials:
            size = [f"{trials[0]['parameters']:,}", f"{trials[0]['mebibytes']:.2f}", f"{trials[0]['macs'] / 1e6:,.1f}"]
            values = [row[metric] for row in trials]
            cells += [
                *size,
                mean_and_spread(values),
                str(len(values)),
                difference(points[0], trials, metric) if i else "",
                difference(points[i - 1], trials, metric) if i > 1 else "",
            ]
        else:
            cells += [""] * 4 + ["0", "", ""]
        cells += [_mean(_column(trials, column)) for column in sweep.columns]
        lines.append(cells + [str(column[place]) for column in sweep.published.values()])
    return markdown(lines[0], lines[1:])


def _column(trials: Sequence[Mapping[str, Any]], column: str) -> list[float]:
    """Returns the values of a column that a part of the trials may lack, such as one that was measured once."""
    return [float(row[column]) for row in trials if column in row]


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = statistics.mean(values)
    return f"{mean:,.0f}" if mean >= 1000 else f"{mean:.4g}"


def mean_and_spread(values: Sequence[float]) -> str:
    """Formats mean and standard deviation over runs, "0.8123 ± 0.0045"; of one run only the value."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def difference(first: list[dict[str, Any]], trials: list[dict[str, Any]], metric: str) -> str:
    """Formats the mean difference over common seeds and folds, and p of a paired, two-sided t-test over seeds.

    Without p, the text says why; folds share training images, which the test takes for independent.
    """

    def run(row: Mapping[str, Any]) -> tuple[Any, Any]:
        return row["seed"], row.get(FOLD)

    baseline = {run(row): row[metric] for row in first}
    pairs = [(row[metric], baseline[run(row)]) for row in trials if run(row) in baseline]
    if not pairs:
        return ""
    differences = [ours - theirs for ours, theirs in pairs]
    text = f"{statistics.mean(differences):+.4f}"
    if len({row.get(FOLD) for row in trials}) > 1:
        return f"{text}, no p: folds"
    if len(pairs) == 1:
        return f"{text}, no p: one seed"
    if max(differences) - min(differences) < 1e-9:  # but for rounding
        return f"{text}, no p: all seeds differ alike"
    from scipy import stats  # not at the top: it takes longer than --help

    p = stats.ttest_rel(*zip(*pairs, strict=True)).pvalue
    return text + (", p < 0.001" if p < 0.001 else f", p = {p:.3f}")


def _lines(sweep: Sweep, rows: list[dict[str, Any]], x: str) -> dict[tuple[str, ...], list[list[dict[str, Any]]]]:
    """Returns the finished trials point by point, grouped into lines of points that differ only in x.

    The key of a line has the other values of its points, without the last ones that no two lines need to differ.
    """
    lines: dict[tuple[str, ...], list[list[dict[str, Any]]]] = {}
    for point, trials in zip(_distinct(sweep), _points(sweep, rows), strict=True):
        if trials:
            lines.setdefault(tuple(str(value) for key, value in point.items() if key != x), []).append(trials)
    for length in range(1, max(map(len, lines), default=0)):
        if len({key[:length] for key in lines}) == len(lines):
            return {key[:length]: line for key, line in lines.items()}
    return lines


def _plots(sweep: Sweep, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Returns the plots that show something: those whose x differs between points, else over the key that does."""

    def differs(x: str) -> bool:
        try:
            places = [_column(trials, x) for trials in _points(sweep, rows) if trials]
        except ValueError:  # a word
            return False
        return len({statistics.mean(place) for place in places if place}) > 1

    plots = [(x, y) for x, y in sweep.plots if differs(x)]
    keys = _keys(sweep)
    return plots or ([(keys[0], "")] if len(keys) == 1 and differs(keys[0]) else [])


def _plot(sweep: Sweep, rows: list[dict[str, Any]], output: pathlib.Path) -> None:
    columns = min(PLOT_COLUMNS, len(sweep.plots))
    height = -(-len(sweep.plots) // columns)
    keys = [key for key in _keys(sweep) if key != sweep.plots[0][0]]
    titles = [plotting.quantity(key) for key in keys][: len(next(iter(_lines(sweep, rows, sweep.plots[0][0]))))]
    files = [output / f"{sweep.name}.{suffix}" for suffix in ("svg", "png")]
    size = {"width": max(5, 3.6 * columns), "height": 3.4 * height}
    with plotting.figure(files, height, columns, legend_title=", ".join(titles), **size) as (figure, axes):
        for axis in axes.flat[len(sweep.plots) :]:
            axis.remove()
        for axis, (x, y) in zip(axes.flat, sweep.plots, strict=False):
            _plot_one(axis, sweep, rows, x, y or _metric_of(sweep, rows))
        over = _over(_points(sweep, rows), "runs of the folds" if _has_folds(sweep) else "seeds")
        figure.suptitle(f"{sweep.name.replace('_', ' ')}: {over}")


def _over(points: Sequence[Sequence[Any]], replicates: str) -> str:
    """Says what a point of a plot is."""
    counts = sorted({len(trials) for trials in points if trials})
    if counts == [1]:
        return "one seed"
    return (
        f"mean and standard deviation over {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} {replicates}"
    )


def _plot_one(axis: Any, sweep: Sweep, rows: list[dict[str, Any]], x: str, metric: str) -> None:
    if x in SIZES and _varies_one_number(sweep):
        curve = [trials for trials in _points(sweep, rows) if trials]
        means = [statistics.mean(row[metric] for row in trials) for trials in curve]
        axis.plot([trials[0][x] for trials in curve], means, color="0.7", zorder=0)
    lines = _lines(sweep, rows, x)
    # Markers shrink so that overlapping lines remain visible.
    for index, ((key, line), size) in enumerate(zip(lines.items(), itertools.cycle((9, 8, 7, 6, 5)), strict=False)):
        values = [_column(trials, metric) for trials in line]
        spreads = [statistics.stdev(of_point) if len(of_point) > 1 else 0 for of_point in values]
        axis.errorbar(
            [statistics.mean(_column(trials, x)) for trials in line],
            [statistics.mean(of_point) for of_point in values],
            yerr=spreads if any(spreads) else None,
            markersize=size,
            capsize=3,
            label=plotting.plain(", ".join(key)),
            **plotting.points(index),
        )
    places = [statistics.mean(_column(trials, x)) for line in lines.values() for trials in line]
    if min(places) > 0 and max(places) > LOG_RANGE * min(places):
        plotting.log_scale(axis)
    if x in SIZES or x.endswith("bytes"):
        plotting.count_ticks(axis)
    axis.set(xlabel=plotting.quantity(x), ylabel=plotting.quantity(metric))
