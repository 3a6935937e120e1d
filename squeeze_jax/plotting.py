"""Figures without a display, in one style: fonts, colors, ticks and legends, written whole or not at all.

    with plotting.figure(path, 1, 2, width=9, height=3.5) as (figure, axes):
        axes[0, 0].plot(steps, losses, label=plotting.plain(name), **plotting.line(0))
        axes[0, 0].set(xlabel="step", ylabel="loss")

Where the block ends, long titles are wrapped, ticks that would collide are thinned, one legend for all axes is put
below them, and the file is written. Matplotlib is imported on use, and its global settings are as before afterward.
"""

import contextlib
import functools
import itertools
import logging
import pathlib
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from squeeze_jax.console import shortened
from squeeze_jax.files import replaced

logger = logging.getLogger(__name__)

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color), which color-blind readers can tell apart, without yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", ":", "-.")
MARKERS = "osD^vPX"
# Fonts with Chinese, Japanese and Korean characters, which DejaVu Sans lacks; the first one that is found is used.
CJK_FONTS = (
    *(f"Noto Sans CJK {language}" for language in ("SC", "TC", "JP", "KR")),
    *(f"Noto Sans {language}" for language in ("SC", "TC", "JP", "KR")),
    *("Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "IPAexGothic"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "Meiryo", "Malgun Gothic"),
)
WORDS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "auc": "AUC",
    "macs": "multiply-accumulates (MACs)",
    "mae": "mean absolute error (classes)",
    "mebibytes": "size (MiB)",
    "bytes": "size (bytes)",
}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-6, 7),
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.markersize": 4,
    "svg.hashsalt": "squeeze_jax",  # equal figures are equal files
}
LONGEST = 60  # characters of a name
DPI = 150


@contextlib.contextmanager
def figure(
    path: pathlib.Path | Sequence[pathlib.Path],
    rows: int = 1,
    columns: int = 1,
    *,
    width: float,
    height: float,
    legend_title: str = "",
) -> Iterator[tuple[Any, Any]]:
    """Yields a Matplotlib figure and its array of axes (rows, columns), and writes it where the block ends.

    Labels of lines appear in one legend below the axes, for which the figure grows.

    Args:
      path: the file to write, in the format of its suffix, or several files.
      rows: of axes.
      columns: of axes.
      width: of the figure, in inches.
      height: of the figure without its legend, in inches.
      legend_title: above the names of the lines.

    Raises:
      FileError: a file cannot be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "font.family": [name for name, _ in _fonts()]}):
        made = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        made.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # inches
        FigureCanvasAgg(made)
        yield made, made.subplots(rows, columns, squeeze=False)
        _fit(made, legend_title)
        for file in [path] if isinstance(path, pathlib.Path) else path:
            save(made, file)


def save(figure: Any, path: pathlib.Path) -> None:
    """Writes a figure in the format of the suffix, whole or not at all.

    Raises:
      FileError: the file cannot be written.
    """
    with replaced(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "png")


def line(index: int) -> dict[str, str]:
    """Returns color and dashes of the line with this index, as arguments of `plot`; the first 28 lines all differ."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": DASHES[index // len(COLORS) % len(DASHES)]}


def points(index: int) -> dict[str, str]:
    """Returns color, dashes and marker of a line of few points with this index."""
    return {**line(index), "marker": MARKERS[(index + index // len(COLORS)) % len(MARKERS)]}


def plain(text: Any, longest: int = LONGEST) -> str:
    """Returns a name as the fonts can draw it.

    A character that no font has is written as its escape, such as \\u6c49, and logged once. A name with more than
    `longest` characters loses those in its middle.
    """
    text = unicodedata.normalize("NFC", str(text))
    if absent := sorted({character for character in text if not _has(character)}):
        _log_absent("".join(absent).encode("unicode_escape").decode())
        text = "".join(c.encode("unicode_escape").decode() if c in absent else c for c in text)
    return shortened(text, longest)


def quantity(name: str) -> str:
    """Returns the name of a metric or config key as the label of an axis, such as "test top-1 accuracy"."""
    words = name.rsplit(".", 1)[-1].split("_")
    return " ".join(WORDS.get(word, word) for word in words)


def font_file(text: str) -> pathlib.Path:
    """Returns the file of the font that has most of the characters of a text, for Pillow."""
    files = [path for _, path in _fonts()]
    return pathlib.Path(max(files, key=lambda file: sum(ord(character) in _characters(file) for character in text)))


def count_ticks(axes: Any, which: str = "x") -> None:
    """Writes the ticks of an axis, "x" or "y", as counts with a prefix: 500k, 1.25M."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter(EngFormatter(sep=""))
    if isinstance(locator := axis.get_major_locator(), MaxNLocator):
        locator.set_params(integer=True)


def log_scale(axes: Any, which: str = "x") -> None:
    """Makes an axis with data, "x" or "y", logarithmic, with ticks that are written as numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    low, high = sorted(axis.get_data_interval())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


@functools.cache
def _fonts() -> tuple[tuple[str, str], ...]:
    """Returns the names and files of DejaVu Sans and, where there is one, a font with Chinese characters."""
    from matplotlib import font_manager

    here = {font.name: font.fname for font in font_manager.fontManager.ttflist}
    wanted = ["DejaVu Sans", *[name for name in CJK_FONTS if name in here][:1]]
    return tuple((name, font_manager.findfont(name)) for name in wanted)


@functools.cache
def _characters(path: str) -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(path).get_charmap())


def _has(character: str) -> bool:
    return character.isprintable() and any(ord(character) in _characters(path) for _, path in _fonts())


@functools.cache
def _log_absent(escapes: str) -> None:
    logger.warning(
        "no font here has the characters %s, so pictures show these codes; install a font such as Noto Sans CJK",
        escapes,
    )


def _fit(figure: Any, legend_title: str) -> None:
    """Makes titles, ticks and the legend fit."""
    renderer = figure.canvas.get_renderer()
    _add_legend(figure, legend_title, renderer)
    for text in figure.texts:  # titles of the whole figure
        _wrap(text, 0.96 * figure.bbox.width, renderer)
    figure.draw_without_rendering()  # lays out, so that the axes have their places
    for axis in figure.axes:
        for text in (axis.title, axis.xaxis.label):
            _wrap(text, axis.bbox.width, renderer)
        _wrap(axis.yaxis.label, axis.bbox.height, renderer, vertical=True)
        for side in (axis.xaxis, axis.yaxis):
            _thin(side, renderer)
    figure.draw_without_rendering()  # a layout starts from the one before
    figure.set_layout_engine("none")


def _add_legend(figure: Any, title: str, renderer: Any) -> None:
    """Adds one legend below all axes, in as many columns as fit, and enlarges the figure by it."""
    found: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    found.pop("", None)
    if not found:
        return
    labels, handles = list(found), list(found.values())

    def legend(columns: int) -> Any:
        return figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title or None)

    single = legend(1)
    needed = single.get_window_extent(renderer).width
    single.remove()
    columns = max(1, min(len(labels), int(0.96 * figure.bbox.width / needed)))
    size = legend(columns).get_window_extent(renderer)
    width, height = figure.get_size_inches()
    figure.set_size_inches(max(width, 1.04 * size.width / figure.dpi), height + size.height / figure.dpi)


def _wrap(text: Any, limit: float, renderer: Any, *, vertical: bool = False) -> None:
    """Breaks a text into lines of at most `limit` pixels."""
    content = text.get_text()

    def extent() -> float:
        box = text.get_window_extent(renderer)
        return box.height if vertical else box.width

    letters = len(content)
    while content and letters > 8 and extent() > limit:
        letters = min(letters - 1, int(letters * limit / extent()))
        text.set_text(textwrap.fill(content, max(8, letters)))


def _thin(side: Any, renderer: Any) -> None:
    """Leaves out ticks of a numeric axis until no two labels touch."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    for count in (6, 5, 4, 3, 2):
        labels = [label for label in side.get_ticklabels() if label.get_text()]
        boxes = [label.get_window_extent(renderer).padded(2) for label in labels]
        if not any(a.overlaps(b) for a, b in itertools.pairwise(boxes)):
            return
        locator = side.get_major_locator()
        if isinstance(locator, LogLocator):
            locator.set_params(subs=(1,), numticks=count)
        elif isinstance(locator, MaxNLocator):
            locator.set_params(nbins=count - 1)
        else:
            return
        side.axes.figure.draw_without_rendering()
