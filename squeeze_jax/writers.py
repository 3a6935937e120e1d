"""Where a run's numbers go: metrics.jsonl, TensorBoard events, log lines, a progress bar, and pictures at the end."""

import contextlib
import csv
import json
import logging
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich import progress as rich_progress
from rich.console import Console
from rich.logging import RichHandler

METRICS_FILE = "metrics.jsonl"
LOG_FILE = "log.txt"
RESULT_FILE = "result.json"
# Pixels: the smallest side of an example, between examples, the height of a label and the width of its letters.
TILE, TILE_MARGIN, TILE_TEXT, TILE_LETTER = 96, 8, 14, 6
SPLIT_COLOURS = {"train": "tab:blue", "validation": "tab:orange", "test": "tab:red"}


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that a kill cut short is left out."""
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

    Lines after `resume_step`, and the test results of an earlier end, are cut: the run measures them again.
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
        """One line: {"step", "split", "values", "speed"}; `speed` holds what no two runs share."""
        record = {"step": step, "split": split, "values": values}
        if speed is not None:
            record["speed"] = speed
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._events is None:
            import tensorboardX  # not at start-up: it imports torch where that is installed

            self._events = tensorboardX.SummaryWriter(**self._events_options)
        for name, value in {**values, **(speed or {})}.items():
            self._events.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


@contextlib.contextmanager
def logging_to(workdir: pathlib.Path | None) -> Iterator[Console]:
    """Log lines of this project go to the console and, with a workdir, to its log.txt."""
    console = Console(stderr=True)
    logger = logging.getLogger("squeeze_jax")
    plain = logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%Y-%m-%d %H:%M:%S")
    if console.is_terminal:
        handlers: list[logging.Handler] = [RichHandler(console=console, show_path=False, rich_tracebacks=False)]
    else:
        handlers = [logging.StreamHandler(sys.stderr)]
        handlers[0].setFormatter(plain)
    if workdir is not None:
        handlers.append(logging.FileHandler(workdir / LOG_FILE))
        handlers[-1].setFormatter(plain)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield console
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(level)
        logger.propagate = propagate


class ProgressBar:
    """A bar on a terminal, nothing elsewhere: log lines serve there."""

    def __init__(self, console: Console, first_step: int, total_steps: int):
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total_steps, completed=first_step, text="compiling ...")

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def update(self, step: int, text: str | None = None) -> None:
        self._bar.update(self._task, completed=step, **({} if text is None else {"text": text}))


def write_result(workdir: pathlib.Path, best_step: int | None, size: dict[str, int]) -> None:
    """Writes result.json, which only a finished run has: the chosen step, its metrics, the network's size."""
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


def draw_curves(workdir: pathlib.Path) -> pathlib.Path | None:
    """Draws curves.png from metrics.jsonl: loss, accuracy and learning rate against the step."""
    records = read_metrics(workdir)
    if not records:
        return None
    names = [name for name in ("loss", "top1", "learning_rate") if any(name in r["values"] for r in records)]
    figure, axes = new_figure(1, len(names), width=4.5 * len(names), height=3.5, layout=None)
    for axis, name in zip(axes.flat, names, strict=True):
        for split, colour in SPLIT_COLOURS.items():
            points = [(r["step"], r["values"][name]) for r in records if r["split"] == split and name in r["values"]]
            if points:
                style = {"marker": "o", "markersize": 3} if split != "train" else {}
                axis.plot(*zip(*points, strict=True), label=split, color=colour, **style)
        axis.set(xlabel="step", title=name.replace("_", " "))
        axis.grid(alpha=0.3)
        axis.legend()
    # Fixed, for every run waits for it, and a layout that looks for its margins draws everything twice.
    figure.subplots_adjust(left=0.05, right=0.98, bottom=0.16, top=0.9)
    return _save(figure, workdir / "curves.png")


def draw_batch(
    path: pathlib.Path, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]
) -> pathlib.Path:
    """Draws up to 32 images (batch, *spatial, channels), pixels in 0..255; of a volume, its middle slice."""
    images = np.asarray(images)[:32]
    if images.ndim == 5:
        images = images[:, images.shape[1] // 2]
    # Pillow, for thirty axes of matplotlib take seconds, and training waits for them.
    height, width = images.shape[1:3]
    scale = max(1, -(-TILE // max(height, width)))
    cell = width * scale + TILE_MARGIN, height * scale + TILE_MARGIN + TILE_TEXT
    columns = 8
    sheet = Image.new("RGB", (columns * cell[0], -(-len(images) // columns) * cell[1]), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (image, label) in enumerate(zip(images, labels, strict=False)):
        left, top = i % columns * cell[0], i // columns * cell[1]
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        tile = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
        sheet.paste(tile.resize((width * scale, height * scale), Image.Resampling.NEAREST), (left, top + TILE_TEXT))
        pen.text((left, top), class_names[int(label)][: cell[0] // TILE_LETTER], fill="black")
    sheet.save(path)
    return path


def draw_overlay(path: pathlib.Path, image: np.ndarray, heat: np.ndarray) -> pathlib.Path:
    """Draws an image (height, width, channels), 0..255, and beside it the same under a map of any smaller size."""
    height, width = image.shape[:2]
    figure, axes = new_figure(1, 2, width=8, height=4 * height / width)
    grey = image.shape[-1] == 1
    for axis in axes.flat:
        axis.axis("off")
        axis.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, extent=(0, width, height, 0))
    axes.flat[1].imshow(heat, cmap="inferno", alpha=0.6, interpolation="bilinear", extent=(0, width, height, 0))
    return _save(figure, path)


def write_csv(path: pathlib.Path, rows: list[dict[str, Any]]) -> pathlib.Path:
    """Writes rows with the keys of the first as the header."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_confusion(folder: pathlib.Path, confusion: np.ndarray, class_names: tuple[str, ...]) -> None:
    """confusion.csv and confusion.png: a row a true class, a column a predicted one, counts of examples."""
    rows = [
        {"label": name, **dict(zip(class_names, map(int, counts), strict=True))}
        for name, counts in zip(class_names, confusion, strict=True)
    ]
    write_csv(folder / "confusion.csv", rows)
    size = len(class_names)
    side = min(12.0, 2.5 + 0.4 * size)
    figure, axes = new_figure(1, 1, width=side, height=side)
    axis = axes.flat[0]
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="predicted", ylabel="true")
    if size <= 30:
        axis.set_xticks(range(size), class_names, rotation=90)
        axis.set_yticks(range(size), class_names)
        for i, j in zip(*np.nonzero(confusion), strict=True):
            axis.text(
                j,
                i,
                int(confusion[i, j]),
                ha="center",
                va="center",
                fontsize=7,
                color="k" if shares[i, j] < 0.6 else "w",
            )
    _save(figure, folder / "confusion.png")


def new_figure(rows: int, columns: int, *, width: float, height: float, layout: str | None = "tight"):
    """A figure of so many inches that needs no display, and its axes (rows, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure, path: pathlib.Path) -> pathlib.Path:
    figure.savefig(path, dpi=120)
    return path
