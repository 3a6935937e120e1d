"""Compares runs: the differences between their configs, their results, and their curves in one plot.

python -m experiments.compare runs/a runs/b --plot comparison.png
"""

import os
import pathlib
import sys
from collections.abc import Sequence

from experiments.trials import read_json
from squeeze_jax import commands, plotting
from squeeze_jax import config as config_lib
from squeeze_jax.errors import InputError, SqueezeJaxError
from squeeze_jax.files import user_path
from squeeze_jax.tables import markdown
from squeeze_jax.workdir.records import RESULT_FILE, read_metrics


def differences(workdirs: Sequence[pathlib.Path]) -> list[list[str]]:
    """Returns one row for each config key whose values are not all equal: the key and the value in each run."""
    configs = [config_lib.flatten(config_lib.read(workdir)[0]) for workdir in workdirs]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = [[key, *(str(config.get(key)) for config in configs)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def results(workdirs: Sequence[pathlib.Path]) -> list[list[str]]:
    """Returns one row for each number in the results; for an unfinished run, its last measurements are used."""
    columns = []
    for workdir in workdirs:
        path = workdir / RESULT_FILE
        if path.exists():
            found = {"state": "finished"} | read_json(path)
        else:
            records = read_metrics(workdir)
            found = {"state": "not finished", "step": records[-1]["step"] if records else 0}
            found |= {record["split"]: record["values"] for record in records}
        column = {}
        for name, value in found.items():
            if isinstance(value, dict):
                column |= {f"{name} {metric}": f"{number:.4f}" for metric, number in value.items()}
            else:
                column[name] = f"{value:,}" if isinstance(value, int) else value
        columns.append(column)
    names = dict.fromkeys(name for column in columns for name in column)
    return [[name, *(column.get(name, "") for column in columns)] for name in names]


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
    parser.add_argument("workdirs", nargs="+", type=user_path, help="workdirs; other files and folders are skipped")
    parser.add_argument("--plot", type=user_path, help="file for a plot of the curves")
    args = parser.parse_args()
    workdirs = []
    for path in args.workdirs:
        try:
            results([path])
            config_lib.read(path)
        except SqueezeJaxError as error:
            print(f"{path} is skipped: {error}", file=sys.stderr)
        else:
            workdirs.append(path)
    if not workdirs:
        raise InputError("none of the arguments is the workdir of a run.")
    changed = differences(workdirs)
    names = [str(workdir) for workdir in workdirs]
    print(markdown(["config", *names], changed) if changed else "The configs are equal.")
    print()
    print(markdown(["result", *names], results(workdirs)))
    if args.plot:
        plot(workdirs, args.plot)


if __name__ == "__main__":
    sys.exit(commands.run(main))
