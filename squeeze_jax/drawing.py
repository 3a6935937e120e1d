"""Drawing without a display: figures, sheets of examples, and maps over images."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from squeeze_jax.files import replaced

# In pixels: minimum size of an example, gap between examples, height of a caption, width of its letters.
TILE, TILE_MARGIN, TILE_TEXT, TILE_LETTER = 96, 8, 14, 6
SHEET = 32  # examples
SHEET_COLUMNS = 8
SLICES = 8  # of a volume with a heat map


def new_figure(rows: int, columns: int, *, width: float, height: float, layout: str | None = "tight") -> Any:
    """Returns a Matplotlib figure of `width` x `height` inches, and its array of axes (rows, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def colors(count: int) -> list[Any]:
    """Returns colors for `count` lines, from dark to light in the order of the lines."""
    import matplotlib

    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.95, count)))


def save(figure: Any, path: pathlib.Path) -> pathlib.Path:
    """Writes a figure in the format of the suffix, whole or not at all, and returns its path.

    Raises:
      FileError: the file cannot be written.
    """
    with replaced(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "png", dpi=120)
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
    with replaced(path) as temporary:
        sheet.save(temporary, "PNG")
    return path


def draw_overlay(path: pathlib.Path, image: np.ndarray, heat: np.ndarray) -> pathlib.Path:
    """Draws an image, and the same image overlaid with a heat map; returns the path of the PNG.

    Of a volume, up to 8 evenly spaced slices are drawn, with the overlaid ones below.

    Args:
      path: the file to write.
      image: (height, width, channels) or (depth, height, width, channels), pixels in 0..255.
      heat: (rows, columns) or (planes, rows, columns), of any size; it is stretched over the image.
    """
    is_volume = image.ndim == 4
    slices = _slices(image, heat) if is_volume else [("", image, heat)]
    height, width = image.shape[-3:-1]
    if is_volume:
        figure, axes = new_figure(2, len(slices), width=2 * len(slices), height=4.4 * height / width)
    else:
        figure, axes = new_figure(1, 2, width=8, height=4 * height / width)
    extent = (0, width, height, 0)
    for (title, plane, map_), plain, overlaid in zip(slices, *axes.reshape(2, -1), strict=True):
        gray = plane.shape[-1] == 1
        for axis in (plain, overlaid):
            axis.axis("off")
            pixels, limits = (
                (plane[..., 0], {"cmap": "gray", "vmin": image.min(), "vmax": image.max()}) if gray else (plane, {})
            )
            axis.imshow(pixels, extent=extent, **limits)
        # All slices of a volume have one scale.
        color = {"cmap": "inferno", "vmin": heat.min(), "vmax": heat.max()}
        overlaid.imshow(map_, alpha=0.6, interpolation="bilinear", extent=extent, **color)
        plain.set_title(title, fontsize=8)
    return save(figure, path)


def _slices(volume: np.ndarray, heat: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Returns title, pixels and interpolated heat of evenly spaced slices of a volume."""
    depth, planes = len(volume), len(heat)
    found = []
    for index in np.unique(np.linspace(0, depth - 1, SLICES).round().astype(int)):
        place = np.clip((index + 0.5) / depth * planes - 0.5, 0, planes - 1)
        below = int(place)
        above = min(below + 1, planes - 1)
        share = place - below
        found.append((f"slice {index}", volume[index], (1 - share) * heat[below] + share * heat[above]))
    return found
