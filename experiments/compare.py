"""Compares runs: their results, the differences between their configs, and their curves in one plot.

    python -m experiments.compare runs/* --plot comparison.png

The arguments are workdirs, or folders of them such as that of a sweep. A line of the differences has the values of a
config key, each with the numbers of its runs in the table.
"""

import os
import pathlib
import sys
from collections.abc import Sequence

from experiments.trials import NO_WORKDIR, find_workdirs, read_json
from squeeze_jax import commands, plotting
from squeeze_jax import config as config_lib
from squeeze_jax.errors import InputError, SqueezeJaxError
from squeeze_jax.files import user_path
from squeeze_jax.tables import markdown
from squeeze_jax.workdir.records import RESULT_FILE, read_metrics

NAMED = 3  # arguments that are not runs; the others are counted


def differences(workdirs: Sequence[pathlib.Path]) -> list[str]:
    """Returns a line for each config key whose values are not all equal: each value with the numbers of its runs."""
    configs = [config_lib.flatten(config_lib.read(workdir)[0]) for workdir in workdirs]
    lines = []
    for key in dict.fromkeys(key for config in configs for key in config):
        runs: dict[str, list[str]] = {}
        for number, config in enumerate(configs, 1):
            runs.setdefault(str(config.get(key)), []).append(str(number))
        if len(runs) > 1:
            lines.append(f"{key}: " + "; ".join(f"{value} ({', '.join(numbers)})" for value, numbers in runs.items()))
    return lines


def results(workdirs: Sequence[pathlib.Path], names: Sequence[str]) -> str:
    """Returns a table with a row for each run: its size, and the metrics that select the checkpoints.

    For an unfinished run, its last measurements are used.

    Args:
      workdirs: of the runs.
      names: how the table calls them.
    """
    found = []
    for workdir in workdirs:
        path = workdir / RESULT_FILE
        if path.exists():
            found.append({"state": "finished"} | read_json(path))
        else:
            records = read_metrics(workdir)
            found.append({"state": "not finished", "step": records[-1]["step"] if records else 0})
            found[-1] |= {record["split"]: record["values"] for record in records}
    metrics = list(dict.fromkeys(config_lib.read(workdir)[0].evaluation.best_metric for workdir in workdirs))
    measured = [(split, metric) for split in ("validation", "test") for metric in metrics]
    measured = [(split, metric) for split, metric in measured if any(metric in run.get(split, {}) for run in found)]
    rows = []
    for number, (name, run) in enumerate(zip(names, found, strict=True), 1):
        counts = [f"{run[key]:,}" if key in run else "" for key in ("step", "parameters")]
        values = [run.get(split, {}).get(metric, "") for split, metric in measured]
        cells = [f"{value:.4f}" if value != "" else "" for value in values]
        rows.append([str(number), name, run["state"], *counts, *cells])
    header = ["", "run", "state", "step", "parameters", *(" ".join(column) for column in measured)]
    return markdown(header, rows)


def plot(workdirs: Sequence[pathlib.Path], path: pathlib.Path) -> None:
    """Draws the training loss, and the validation metric that selects the checkpoint; one color per run."""
    metric = config_lib.read(workdirs[0])[0].evaluation.best_metric
    names = short_names(workdirs)
    with plotting.figure(path, 1, 2, width=9, height=3.6) as (_, axes):
        for axis, split, quantity in zip(axes.flat, ("train", "validation"), ("loss", metric), strict=True):
            for index, (workdir, name) in enumerate(zip(workdirs, names, strict=True)):
                measured = [record for record in read_metrics(workdir) if record["split"] == split]
                points = [(record["step"], record["values"].get(quantity)) for record in measured]
                points = [point for point in points if point[1] is not None]
                if points:
                    style = plotting.line(index) if len(points) > 20 else plotting.points(index)
                    axis.plot(*zip(*points, strict=True), label=plotting.plain(name), **style)
            axis.set(xlabel="step", ylabel=f"{split} {plotting.quantity(quantity)}")
            plotting.count_ticks(axis)


def short_names(workdirs: Sequence[pathlib.Path]) -> list[str]:
    """Returns the paths without the folders that all have in common."""
    if len(workdirs) == 1:
        return [workdirs[0].name]
    common = os.path.commonpath([path.absolute().parent for path in workdirs])
    return [str(path.absolute().relative_to(common)) for path in workdirs]


def main() -> None:
    """Runs the command."""
    parser = commands.parser(__doc__)
    parser.add_argument("workdirs", nargs="+", type=user_path, help="workdirs, or folders of them such as a sweep's")
    parser.add_argument("--plot", type=user_path, help="file for a plot of the curves")
    args = parser.parse_args()
    workdirs, others = [], []
    for path in args.workdirs:
        found = find_workdirs(path)
        others += [] if found else [path.name]
        for workdir in found:
            try:
                results([workdir], [""])
            except SqueezeJaxError as error:
                print(f"{workdir} is skipped: {error}", file=sys.stderr)
            else:
                workdirs.append(workdir)
    if not workdirs:
        raise InputError(NO_WORKDIR)
    if others:
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        print(f"skipped, because they are not runs: {', '.join(others[:NAMED])}{more}", file=sys.stderr)
    print(results(workdirs, short_names(workdirs)))
    print()
    print("\n".join(differences(workdirs)) or "The configs are equal.")
    if args.plot:
        plot(workdirs, args.plot)


if __name__ == "__main__":
    sys.exit(commands.run(main))
