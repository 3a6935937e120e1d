"""Runs side by side: what their configs differ in, what they reached, and their curves in one plot.

python -m experiments.compare runs/a runs/b --plot comparison.png
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from squeeze_jax import config as config_lib
from squeeze_jax.writers import RESULT_FILE, new_figure, read_metrics


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def differences(workdirs: Sequence[pathlib.Path]) -> list[list[str]]:
    """A row for each key of the configs whose values are not all equal."""
    configs = [config_lib.flatten(config_lib.read(workdir)[0]) for workdir in workdirs]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = [[key, *(str(config.get(key)) for config in configs)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def results(workdirs: Sequence[pathlib.Path]) -> list[list[str]]:
    """A row for each number of the results; of a run that is not finished, of its last measurements."""
    columns = []
    for workdir in workdirs:
        path = workdir / RESULT_FILE
        if path.exists():
            found = {"state": "finished"} | json.loads(path.read_text())
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
    """Loss in training and accuracy on the validation split against the step, a colour a run."""
    figure, axes = new_figure(1, 2, width=10, height=4)
    for axis, split, name in zip(axes.flat, ("train", "validation"), ("loss", "top1"), strict=True):
        for workdir in workdirs:
            points = [(r["step"], r["values"][name]) for r in read_metrics(workdir) if r["split"] == split]
            if points:
                axis.plot(*zip(*points, strict=True), label=str(workdir), marker="." if split == "validation" else "")
        axis.set(xlabel="step", title=f"{split} {name}")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path, help="a picture of the curves")
    args = parser.parse_args()
    try:
        changed = differences(args.workdirs)
    except config_lib.ConfigError as error:
        print(f"ConfigError: {error}", file=sys.stderr)
        return 1
    names = [str(workdir) for workdir in args.workdirs]
    print(markdown(["config", *names], changed) if changed else "The configs are equal.")
    print()
    print(markdown(["result", *names], results(args.workdirs)))
    if args.plot:
        plot(args.workdirs, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
