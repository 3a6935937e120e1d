"""The tables, pictures and pages of a classifier: confusion matrix, class activation map, the page of a case."""

import base64
import html
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from squeeze_jax import drawing, plotting, tables
from squeeze_jax.files import replaced

COUNTED_CLASSES = 30  # maximum number of classes for a confusion matrix with a number in each cell
NAMED_CLASSES = 200  # and with the names of the classes
NO_MAP = (
    "No class activation map is shown, because the last feature map of this network has a single cell: it does not "
    "tell places apart."
)
MAP = "The class activation map shows where the evidence for {name} is. It is not a segmentation."
CASE_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.4 sans-serif; margin: 2em auto; max-width: 68em; padding: 0 1em }}
td {{ padding-right: 1em }} img {{ max-width: 100% }} h2 {{ overflow-wrap: anywhere }}
</style></head><body>
<h1>{title}</h1>
{mean}<p>For research only.</p>
{images}</body></html>
"""


def per_class(confusion: np.ndarray, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns one row per class: examples, correct predictions, recall and precision (NaN if undefined)."""
    rows = []
    for i, name in enumerate(class_names):
        examples, predicted, correct = int(confusion[i].sum()), int(confusion[:, i].sum()), int(confusion[i, i])
        rows.append(
            {
                "class": i,
                "name": name,
                "examples": examples,
                "correct": correct,
                "recall": correct / examples if examples else float("nan"),
                "precision": correct / predicted if predicted else float("nan"),
            }
        )
    return rows


def write_confusion(folder: pathlib.Path, confusion: np.ndarray, class_names: tuple[str, ...]) -> None:
    """Writes confusion.csv and confusion.png, see `draw_confusion`."""
    rows = [
        {"label": name, **dict(zip(class_names, map(int, counts), strict=True))}
        for name, counts in zip(class_names, confusion, strict=True)
    ]
    tables.write_csv(folder / "confusion.csv", rows)
    draw_confusion(folder / "confusion.png", confusion, class_names)


def draw_confusion(path: pathlib.Path, confusion: np.ndarray, class_names: tuple[str, ...]) -> pathlib.Path:
    """Draws a confusion matrix with one row per true class, shaded by the share of the row.

    Up to 30 classes have count and share in each cell, up to 200 have names.

    Args:
      path: the file to write.
      confusion: counts, int (true class, predicted class).
      class_names: one per class.
    """
    size = len(class_names)
    counted, named = size <= COUNTED_CLASSES, size <= NAMED_CLASSES
    cell = 0.5 if counted else 0.14 if named else 10 / size  # inches
    names = list(map(plotting.plain, class_names)) if named else []
    letters = {"fontsize": 9 if counted else 6}
    beside = 0.075 * letters["fontsize"] / 9 * max(map(len, names), default=6)  # inches that the names take
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = max(size * cell, 1.5) + beside
    with plotting.figure(path, width=side + 1.8, height=side + 1) as (figure, ((axis,),)):
        shaded = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.grid(visible=False)
        axis.set(xlabel="predicted class", ylabel="true class")
        if named:
            upright = 0 if beside < 0.9 * max(cell, 1.5 / size) else 90
            axis.set_xticks(range(size), names, rotation=upright, **letters)
            axis.set_yticks(range(size), names, **letters)
        if counted:
            for i, j in zip(*np.nonzero(confusion), strict=True):
                text = f"{confusion[i, j]}\n{100 * shares[i, j]:.0f} %"
                axis.text(j, i, text, ha="center", va="center", fontsize=7, color="k" if shares[i, j] < 0.6 else "w")
        figure.colorbar(shaded, ax=axis, label="share of the true class", fraction=0.05, aspect=15)
        total, right = int(confusion.sum()), int(np.trace(confusion))
        figure.suptitle(f"Confusion matrix: {right} of {total} right ({right / max(total, 1):.1%})")
    return path


def draw_map(
    path: pathlib.Path, image: np.ndarray, heat: np.ndarray, name: str, probability: float, evidence: str
) -> str:
    """Draws the class activation map (Zhou et al. 2016, arXiv 1512.04150) of a class, and returns what it shows.

    If the map has a single cell, the image is drawn without it, and the sentence says so.

    Args:
      path: the file to write.
      image: the raw image, (*spatial, channels).
      heat: the map, (*spatial).
      name: of the class.
      probability: of the class.
      evidence: what the map is the evidence for.
    """
    note = NO_MAP if heat.size == 1 else MAP.format(name=evidence)
    drawing.draw_overlay(
        path,
        image,
        None if heat.size == 1 else heat,
        title=f"{plotting.plain(name)}, probability {probability:.1%}",
        label="evidence (logit at each place)",
        note=plotting.plain(note, len(note)),
    )
    return note


def write_case(
    path: pathlib.Path,
    names: Sequence[str],
    pictures: Sequence[bytes],
    notes: Sequence[str],
    probabilities: Sequence[Sequence[tuple[str, float]]],
    mean: Sequence[tuple[str, float]] | None,
    title: str = "",
) -> None:
    """Writes an HTML page about a case, or about images that do not belong together.

    Args:
      path: the file to write.
      names: of its images, such as the names of their files.
      pictures: of each image, as the bytes of a PNG.
      notes: a sentence about each picture.
      probabilities: the names and probabilities of the best classes of each image.
      mean: those of the case; None if the images do not belong together.
      title: the heading if `mean` is None.
    """

    def table(rows: Sequence[tuple[str, float]]) -> str:
        cells = (f"<tr><td>{html.escape(label)}</td><td>{share:.1%}</td></tr>" for label, share in rows)
        return f"<table>{''.join(cells)}</table>"

    images = "".join(
        f"<h2>{html.escape(name)}</h2>{table(rows)}<p>{html.escape(note)}</p>"
        f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">\n'
        for name, picture, note, rows in zip(names, pictures, notes, probabilities, strict=True)
    )
    over = ""
    if mean is not None:
        (label, share), count = mean[0], "1 image" if len(names) == 1 else f"{len(names)} images"
        title = f"Most probable class: {label}, with a probability of {share:.1%}"
        over = f"<p>The mean probability over {count} of the case:</p>{table(mean)}\n"
    page = CASE_PAGE.format(title=html.escape(title), mean=over, images=images)
    with replaced(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")  # of file names that are not UTF-8
