"""Draws the picture of the README from committed tables: `python -m docs.make_pictures`."""

import csv
import pathlib
import statistics

from experiments import bypass, squeeze_ratio
from squeeze_jax import models, plotting

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


def draw(axis, ratios, bypasses) -> None:
    """A curve of squeeze ratios labeled below its points, and bypasses labeled on their left, with error bars."""
    places = {"ha": "left", "xytext": (7, -13)}, {"ha": "right", "xytext": (-9, -3)}
    names = "squeeze ratio", "bypass at squeeze ratio 0.125"
    for index, (points, name, place) in enumerate(zip((ratios, bypasses), names, places, strict=True)):
        labels, parameters, means, spreads = zip(*points, strict=True)
        style = plotting.points(index) | ({"linestyle": "none"} if index else {})
        bars = spreads if any(spreads) else None
        axis.errorbar(parameters, means, yerr=bars, capsize=4, markersize=6, label=name, **style)
        for label, x, y in zip(labels, parameters, means, strict=True):
            axis.annotate(label, (x, y), textcoords="offset points", fontsize=8, **place)


def paper() -> tuple[list, list]:
    """The points of Figure 3a and Table 3; those of the figure without a label are read from its pixels."""
    published = {**squeeze_ratio.SIZES, **squeeze_ratio.PUBLISHED}.values()
    ratios = [
        (str(ratio), int(parameters.replace(",", "")), float(str(top5).removeprefix("about ")), 0.0)
        for ratio, parameters, top5 in zip(squeeze_ratio.RATIOS, *published, strict=True)
    ]
    names = ("squeezenet_v1_0", "squeezenet_v1_0_simple_bypass", "squeezenet_v1_0_complex_bypass")
    sizes = [models.summarize(models.create(name), (224, 224, 3)).parameters for name in names]
    top5 = bypass.PUBLISHED["paper: top-5"][:3]
    return ratios, [(kind, size, float(value), 0.0) for kind, size, value in zip(BYPASSES, sizes, top5, strict=True)]


def main() -> None:
    """The command."""
    PICTURE.parent.mkdir(exist_ok=True)
    with plotting.figure(PICTURE, 1, 2, width=9, height=3.8) as (_, axes):
        here, there = axes.flat
        ratios = measured("squeeze_ratio.csv", "model.squeeze_ratio")
        bypasses = measured("bypass.csv", "model.bypass", **{"model.use_batch_norm": "True"})
        draw(here, ratios, bypasses)
        here.set(ylabel="test top-1 accuracy (%)")
        here.set_title("here: CIFAR-10, a quarter of the width, 10 epochs,\n3 seeds, SGD (ratios), AdamW (bypasses)")
        draw(there, *paper())
        there.set(title="the paper: ImageNet,\nFigure 3a and Table 3", ylabel="top-5 accuracy (%)")
        for axis, ticks in ((here, (50e3, 100e3, 200e3, 400e3)), (there, (1e6, 2e6, 4e6, 8e6))):
            plotting.log_scale(axis)
            axis.set_xticks(ticks)
            plotting.count_ticks(axis)
            axis.set_xlabel("parameters")
            axis.margins(x=0.22, y=0.08)
    print(PICTURE)


if __name__ == "__main__":
    main()
