"""Draws the picture of the README from committed tables: `python -m docs.make_pictures`."""

import csv
import pathlib
import statistics

from matplotlib.ticker import EngFormatter, NullFormatter

from experiments import bypass, squeeze_ratio
from squeeze_jax import models
from squeeze_jax.drawing import new_figure

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
PICTURE = ROOT / "docs" / "images" / "accuracy_against_size.png"
BYPASSES = ("none", "simple", "complex")


def measured(table: str, key: str, **wanted: str) -> list[tuple[str, int, float, float]]:
    """(value of the key, parameters, mean and standard deviation of the test accuracy in percent) of each point."""
    points: dict[str, list[dict[str, str]]] = {}
    with (RESULTS / table).open() as file:
        for row in csv.DictReader(file):
            if all(row[name] == value for name, value in wanted.items()):
                points.setdefault(row[key], []).append(row)
    return [
        (value, int(rows[0]["parameters"]), 100 * statistics.mean(accuracies), 100 * statistics.stdev(accuracies))
        for value, rows in points.items()
        for accuracies in [[float(row["test_top1"]) for row in rows]]
    ]


def draw_ratios(axis, points, title: str) -> None:
    """A curve with error bars, labeled below its points."""
    labels, parameters, means, spreads = zip(*points, strict=True)
    axis.errorbar(parameters, means, yerr=spreads if any(spreads) else None, fmt="o-", capsize=4, label=title)
    for label, x, y in zip(labels, parameters, means, strict=True):
        axis.annotate(label, (x, y), textcoords="offset points", xytext=(7, -13), fontsize=9)


def draw_bypasses(axis, points, title: str) -> None:
    """Points with error bars, labeled on their left."""
    labels, parameters, means, spreads = zip(*points, strict=True)
    axis.errorbar(parameters, means, yerr=spreads if any(spreads) else None, fmt="s", capsize=4, label=title)
    for label, x, y in zip(labels, parameters, means, strict=True):
        axis.annotate(label, (x, y), textcoords="offset points", xytext=(-9, -3), fontsize=9, ha="right")


def paper() -> tuple[list, list]:
    """The points of Figure 3a and Table 3; those of the figure without a label are read from its pixels."""
    ratios = [
        (str(ratio), int(parameters.replace(",", "")), float(str(top5).removeprefix("about ")), 0.0)
        for ratio, parameters, top5 in zip(squeeze_ratio.RATIOS, *squeeze_ratio.PUBLISHED.values(), strict=True)
    ]
    names = ("squeezenet_v1_0", "squeezenet_v1_0_simple_bypass", "squeezenet_v1_0_complex_bypass")
    sizes = [models.summarize(models.create(name), (224, 224, 3)).parameters for name in names]
    top5 = bypass.PUBLISHED["paper: top-5"][:3]
    return ratios, [(kind, size, float(value), 0.0) for kind, size, value in zip(BYPASSES, sizes, top5, strict=True)]


def main() -> None:
    """The command."""
    figure, axes = new_figure(1, 2, width=11, height=4.2, layout="constrained")
    here, there = axes.flat
    here.set_title("here: CIFAR-10, a quarter of the width, 10 epochs", fontsize=11)
    draw_ratios(here, measured("squeeze_ratio.csv", "model.squeeze_ratio"), "squeeze ratio (SGD)")
    bypasses = measured("bypass.csv", "model.bypass", **{"model.use_batch_norm": "True"})
    draw_bypasses(here, bypasses, "bypass at squeeze ratio 0.125 (AdamW)")
    here.set(xlabel="parameters", ylabel="test top-1 (%)")

    there.set_title("the paper: ImageNet, Figure 3a and Table 3", fontsize=11)
    ratios, bypasses = paper()
    draw_ratios(there, ratios, "squeeze ratio")
    draw_bypasses(there, bypasses, "bypass at squeeze ratio 0.125")
    there.set(xlabel="parameters", ylabel="top-5 (%)")
    for axis, ticks in ((here, (50e3, 100e3, 200e3, 400e3)), (there, (1e6, 2e6, 4e6, 8e6))):
        axis.set_xscale("log")
        axis.set_xticks(ticks)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.18)
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right", fontsize=9)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    print(PICTURE)


if __name__ == "__main__":
    main()
