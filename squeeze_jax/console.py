"""What a person sees: log lines, also in a run's log.txt, and in a terminal bars and what a silent step does.

`track`, `doing` and `Bar` write to stderr, and nothing if it is not a terminal. rich is imported when it is needed,
because it takes longer than `--help`.
"""

import contextlib
import functools
import logging
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from squeeze_jax.errors import FileError, SqueezeJaxError
from squeeze_jax.files import writing

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Item = TypeVar("Item")

LOG_FILE = "log.txt"
WIDE = 100  # columns of a terminal with room for a longer bar

_shown: list["Progress"] = []  # innermost last


def is_terminal() -> bool:
    """Returns whether stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


@functools.cache
def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True)


@contextlib.contextmanager
def logging_to(workdir: pathlib.Path | None) -> Iterator[None]:
    """A context in which this project's log lines go to the console and, with a workdir, to its log.txt.

    A terminal shows the time of day and no level for what is normal; log.txt has the date and the level of each line. A
    record with `parts`, a sequence of texts, is shown in a terminal as the first of them that fit in one line.

    An error that ends the context is also written to log.txt, with its traceback unless it is a `SqueezeJaxError`.

    Args:
      workdir: the folder of log.txt; None for the console only.
    """
    logger = logging.getLogger("squeeze_jax")
    plain = logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%Y-%m-%d %H:%M:%S")
    if is_terminal():
        handlers: list[logging.Handler] = [_Terminal()]
    else:
        handlers = [logging.StreamHandler(sys.stderr)]
        handlers[0].setFormatter(plain)
    log_file = None
    if workdir is not None:
        log_file = _LogFile(workdir / LOG_FILE)
        log_file.setFormatter(plain)
        handlers.append(log_file)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    except Exception as error:
        if log_file is not None:
            traceback = None if isinstance(error, SqueezeJaxError) else sys.exc_info()
            message = f"{type(error).__name__}: {error}"
            with contextlib.suppress(FileError):  # the error that ended the run is the one to print
                log_file.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, message, (), traceback))
        raise
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            with contextlib.suppress(OSError):  # lines that a full disk did not take, which was an error already
                handler.close()
        logger.setLevel(level)
        logger.propagate = propagate


class _LogFile(logging.FileHandler):
    """A log file. A line that cannot be written is an error, where `logging` prints a traceback for each line."""

    def __init__(self, path: pathlib.Path):
        with writing(path):
            super().__init__(path, encoding="utf-8", errors="backslashreplace")

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        with writing(self.baseFilename):
            raise error


class _Terminal(logging.Handler):
    """Log lines in a terminal; a long message continues below its own beginning."""

    def emit(self, record: logging.LogRecord) -> None:
        from rich.table import Table
        from rich.text import Text

        try:
            clock = time.strftime("%H:%M:%S", time.localtime(record.created))
            message, style = self.format(record), ""
            if record.levelno > logging.INFO:
                style = "red" if record.levelno >= logging.ERROR else "yellow"
                message = f"{record.levelname.lower()}: {message}"
            elif hasattr(record, "parts"):
                message = fitting(record.parts, _console().width - len(clock) - 1)
            line = Table.grid(padding=(0, 1))
            line.add_column(style="dim", no_wrap=True)
            line.add_column(overflow="fold")
            line.add_row(clock, Text(message, style))
            _console().print(line)
        except Exception:
            self.handleError(record)


def shortened(text: str, longest: int) -> str:
    """Returns a text without its middle if it has more than `longest` characters."""
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[len(text) - (longest - 1) // 2 :]}"


def fitting(parts: Sequence[str], width: int) -> str:
    """Returns the first parts, and at least one, that fit in a width when joined by commas."""
    count = len(parts)
    while count > 1 and len(", ".join(parts[:count])) > width:
        count -= 1
    return ", ".join(parts[:count])


@contextlib.contextmanager
def _progress(*columns: Any) -> Iterator["Progress"]:
    from rich.progress import Progress

    progress = Progress(*columns, console=_console(), transient=True, redirect_stdout=sys.stdout.isatty())
    _shown.append(progress)
    try:
        with progress:
            yield progress
    finally:
        if progress in _shown:
            _shown.remove(progress)


def clear() -> None:
    """Removes all bars from the terminal, for an error that ends the command."""
    while _shown:
        _shown.pop().stop()


def _text(form: str) -> Any:
    from rich.progress import TextColumn
    from rich.table import Column

    return TextColumn(form, markup=False, table_column=Column(no_wrap=True))


@contextlib.contextmanager
def doing(text: str) -> Iterator[None]:
    """A context that says in a terminal what a step does that is silent for long; the line disappears at its end."""
    if not is_terminal():
        yield
        return
    from rich.progress import SpinnerColumn, TimeElapsedColumn

    with _progress(SpinnerColumn(), _text("{task.description} ..."), TimeElapsedColumn()) as progress:
        progress.add_task(text, total=None)
        yield


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yields items, and shows in a terminal how many are done and the time left.

    Args:
      items: the items.
      description: what is done with them, such as "classifying".
      total: their number; by default their length, if they have one.
    """
    if not is_terminal():
        yield from items
        return
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    total = len(items) if total is None and hasattr(items, "__len__") else total
    columns = _text("{task.description}"), _bar_column(), MofNCompleteColumn(), TimeRemainingColumn()
    with _progress(*columns, _text("left")) as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task)


def _bar_column() -> Any:
    from rich.progress import BarColumn

    return BarColumn(bar_width=10 if _console().width < WIDE else 20)


class Bar:
    """A bar with a text of one's own, for a loop that counts for itself; shown in a terminal only.

    Args:
      description: what is done.
      completed: the number of steps that are done.
      total: the number of all steps.
      text: the text at its end.
    """

    def __init__(self, description: str, completed: int, total: int, text: str = ""):
        self._description, self._completed, self._total, self._text = description, completed, total, text
        self._stack = contextlib.ExitStack()
        self._progress: Progress | None = None

    def __enter__(self) -> "Bar":
        if is_terminal():
            columns = _text("{task.description}"), _bar_column(), _text("{task.completed}/{task.total}")
            self._progress = self._stack.enter_context(_progress(*columns, _text("{task.fields[text]}")))
            self._progress.add_task(self._description, completed=self._completed, total=self._total, text=self._text)
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def update(self, completed: int, parts: Sequence[str] = ()) -> None:
        """Moves the bar.

        Args:
          completed: the number of steps that are done.
          parts: the new text, as parts of which those that fit are shown, the first ones first; none to keep the text.
        """
        if self._progress is None:
            return
        (task,) = self._progress.tasks
        bar = self._progress.columns[1].bar_width
        room = _console().width - len(self._description) - bar - 2 * len(str(self._total)) - 4
        text = {"text": fitting(parts, room)} if parts else {}
        self._progress.update(task.id, completed=completed, **text)
