"""Sheets of examples, and class activation maps over images."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from squeeze_jax import plotting
from squeeze_jax.files import replaced

# In pixels: minimum size of an example, gap between examples, size of the letters of a caption, height of its lines.
TILE, TILE_MARGIN, LETTER, LINE = 128, 8, 11, 14
SHEET = 32  # examples
SHEET_COLUMNS = 8
CAPTION_LINES = 2
SLICES = 8  # of a volume
SLICE_COLUMNS = 4
CELL = 2.1  # width of a slice, in inches


def draw_sheet(path: pathlib.Path, images: np.ndarray, captions: Sequence[str]) -> pathlib.Path:
    """Draws a sheet of up to 32 images as a PNG and returns its path.

    Args:
      path: the file to write.
      images: (batch, *spatial, channels) with 1 or 3 channels, pixels in 0..255; the middle slice of a volume is drawn.
      captions: one per image; at most two lines are drawn, without the middle of what is longer.
    """
    images = np.asarray(images)[:SHEET]
    if images.ndim == 5:
        images = images[:, images.shape[1] // 2]
    # With Pillow, because thirty Matplotlib axes take seconds, and training waits for this.
    height, width = images.shape[1:3]
    scale = max(1, -(-TILE // max(height, width)))
    tile = width * scale, height * scale
    cell_width = max(tile[0], TILE) + TILE_MARGIN
    written = [_caption(caption, cell_width - TILE_MARGIN) for caption in captions[: len(images)]]
    text_height = LINE * max((len(lines) for lines, _ in written), default=1)
    cell_height = tile[1] + TILE_MARGIN + text_height
    columns = min(SHEET_COLUMNS, len(images))
    sheet = Image.new("RGB", (columns * cell_width, -(-len(images) // columns) * cell_height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (image, (lines, font)) in enumerate(zip(images, written, strict=True)):
        left, top = i % columns * cell_width, i // columns * cell_height
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        drawn = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
        sheet.paste(drawn.resize(tile, Image.Resampling.NEAREST), (left, top + text_height))
        for number, line in enumerate(lines):
            pen.text((left, top + number * LINE), line, fill="black", font=font)
    with replaced(path) as temporary:
        sheet.save(temporary, "PNG")
    return path


@functools.cache
def _font(path: pathlib.Path) -> Any:
    return ImageFont.truetype(str(path), LETTER)


def _caption(text: str, width: int) -> tuple[list[str], Any]:
    """Returns the lines of a caption of at most `width` pixels, and their font."""
    text = plotting.plain(text)
    font = _font(plotting.font_file(text))
    for longest in range(len(text), 1, -1):
        lines, rest = [], plotting.plain(text, longest)
        while rest:
            fitting = next((n for n in range(len(rest), 1, -1) if font.getlength(rest[:n]) <= width), 1)
            space = rest.rfind(" ", 1, fitting) if fitting < len(rest) else -1
            fitting = space if space > 0 else fitting
            lines.append(rest[:fitting].strip())
            rest = rest[fitting:].strip()
        if len(lines) <= CAPTION_LINES:
            return lines, font
    return [text[:1]], font


def draw_overlay(
    path: pathlib.Path,
    image: np.ndarray,
    heat: np.ndarray | None,
    *,
    title: str = "",
    label: str = "",
    note: str = "",
) -> pathlib.Path:
    """Draws an image, and the same image overlaid with a heat map and its color bar; returns the path of the PNG.

    Of a volume, up to 8 evenly spaced slices are drawn, with the overlaid ones below.

    Args:
      path: the file to write.
      image: (height, width, channels) or (depth, height, width, channels), pixels in 0..255.
      heat: (rows, columns) or (planes, rows, columns), of any size; it is stretched over the image. None for the image
        alone.
      title: above the picture.
      label: of the color bar.
      note: a sentence below the picture.
    """
    slices = _slices(image, heat) if image.ndim == 4 else [("", image, heat)]
    height, width = image.shape[-3:-1]
    maps = 1 if heat is None else 2
    if image.ndim == 4:
        columns = min(SLICE_COLUMNS, len(slices))
        rows = -(-len(slices) // columns) * maps
        cell = CELL
    else:
        columns, rows, cell = maps, 1, 2 * CELL * min(1, width / height)
    size = {"width": max(columns * cell + 0.8, 2 * CELL), "height": rows * (cell * height / width + 0.25) + 0.6}
    with plotting.figure(path, rows, columns, **size) as (figure, axes):
        for axis in axes.flat:
            axis.axis("off")
        # All slices of a volume have one scale.
        limits = {"cmap": "gray", "vmin": image.min(), "vmax": image.max()} if image.shape[-1] == 1 else {}
        extent = (0, width, height, 0)
        overlay = None
        for i, (name, plane, map_) in enumerate(slices):
            pixels = plane[..., 0] if image.shape[-1] == 1 else plane
            row, column = i // columns * maps, i % columns
            pair = axes[row : row + maps, column] if image.ndim == 4 else axes.flat
            for axis in pair:
                axis.imshow(pixels, extent=extent, **limits)
            pair[0].set_title(plotting.plain(name))
            if map_ is not None:
                color = {"cmap": "inferno", "vmin": heat.min(), "vmax": heat.max()}
                overlay = pair[1].imshow(map_, alpha=0.6, interpolation="bilinear", extent=extent, **color)
        if overlay is not None:
            figure.colorbar(overlay, ax=axes, shrink=0.8, label=plotting.plain(label, 2 * plotting.LONGEST))
        if title:
            figure.suptitle(title)
        if note:
            figure.supxlabel(note, fontsize=8)
    return path


def _slices(volume: np.ndarray, heat: np.ndarray | None) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
    """Returns title, pixels and interpolated heat of evenly spaced slices of a volume."""
    depth = len(volume)
    found = []
    for index in np.unique(np.linspace(0, depth - 1, SLICES).round().astype(int)):
        map_ = None
        if heat is not None:
            planes = len(heat)
            place = np.clip((index + 0.5) / depth * planes - 0.5, 0, planes - 1)
            below = int(place)
            share = place - below
            map_ = (1 - share) * heat[below] + share * heat[min(below + 1, planes - 1)]
        found.append((f"slice {index + 1} of {depth}", volume[index], map_))
    return found
