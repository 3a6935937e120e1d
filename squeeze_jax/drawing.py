"""Drawing without a display: figures, sheets of examples, and maps over images."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

# In pixels: minimum size of an example, gap between examples, height of a caption, width of its letters.
TILE, TILE_MARGIN, TILE_TEXT, TILE_LETTER = 96, 8, 14, 6
SHEET = 32  # examples
SHEET_COLUMNS = 8


def new_figure(rows: int, columns: int, *, width: float, height: float, layout: str | None = "tight") -> Any:
    """Returns a Matplotlib figure of `width` x `height` inches, and its array of axes (rows, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def colours(count: int) -> list[Any]:
    """Returns colours for `count` lines, from dark to light in the order of the lines."""
    import matplotlib

    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.95, count)))


def save(figure: Any, path: pathlib.Path) -> pathlib.Path:
    """Writes a figure as a PNG and returns its path."""
    figure.savefig(path, dpi=120)
    return path


def draw_sheet(path: pathlib.Path, images: np.ndarray, captions: Sequence[str]) -> pathlib.Path:
    """Draws a sheet of up to 32 images as a PNG and returns its path.

    Args:
      path: the file to write.
      images: (batch, *spatial, channels) with 1 or 3 channels, pixels in 0..255; the middle slice of a volume is drawn.
      captions: one per image.
    """
    images = np.asarray(images)[:SHEET]
    if images.ndim == 5:
        images = images[:, images.shape[1] // 2]
    # With Pillow, because thirty Matplotlib axes take seconds, and training waits for this.
    height, width = images.shape[1:3]
    scale = max(1, -(-TILE // max(height, width)))
    cell = width * scale + TILE_MARGIN, height * scale + TILE_MARGIN + TILE_TEXT
    sheet = Image.new("RGB", (SHEET_COLUMNS * cell[0], -(-len(images) // SHEET_COLUMNS) * cell[1]), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions, strict=False)):
        left, top = i % SHEET_COLUMNS * cell[0], i // SHEET_COLUMNS * cell[1]
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        tile = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
        sheet.paste(tile.resize((width * scale, height * scale), Image.Resampling.NEAREST), (left, top + TILE_TEXT))
        pen.text((left, top), caption[: cell[0] // TILE_LETTER], fill="black")
    sheet.save(path)
    return path


def draw_overlay(path: pathlib.Path, image: np.ndarray, heat: np.ndarray) -> pathlib.Path:
    """Draws an image, and next to it the same image overlaid with a heat map; returns the path of the PNG.

    Args:
      path: the file to write.
      image: (height, width, channels), pixels in 0..255.
      heat: (rows, columns), of any size; it is stretched over the image.
    """
    height, width = image.shape[:2]
    figure, axes = new_figure(1, 2, width=8, height=4 * height / width)
    grey = image.shape[-1] == 1
    for axis in axes.flat:
        axis.axis("off")
        axis.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, extent=(0, width, height, 0))
    axes.flat[1].imshow(heat, cmap="inferno", alpha=0.6, interpolation="bilinear", extent=(0, width, height, 0))
    return save(figure, path)
