"""Text output of a run: log lines on the console and in log.txt, and a progress bar on a terminal."""

import contextlib
import logging
import pathlib
import sys
from collections.abc import Iterator

from rich import progress as rich_progress
from rich.console import Console
from rich.logging import RichHandler

from squeeze_jax.errors import FileError, SqueezeJaxError
from squeeze_jax.files import writing

LOG_FILE = "log.txt"


@contextlib.contextmanager
def logging_to(workdir: pathlib.Path | None) -> Iterator[Console]:
    """A context in which this project's log lines go to the console and, with a workdir, to its log.txt.

    An error that ends the context is also written to log.txt, with its traceback unless it is a `SqueezeJaxError`.

    Args:
      workdir: the folder of log.txt; None for the console only.

    Yields:
      The console, for a progress bar.
    """
    console = Console(stderr=True)
    logger = logging.getLogger("squeeze_jax")
    plain = logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%Y-%m-%d %H:%M:%S")
    if console.is_terminal:
        handlers: list[logging.Handler] = [RichHandler(console=console, show_path=False, rich_tracebacks=False)]
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
        yield console
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


class ProgressBar:
    """A progress bar; shown only if the console is a terminal.

    Args:
      console: the console.
      first_step: the step that the run starts from.
      total_steps: the number of steps of the run.
    """

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
        """Moves the bar to a step and, if given, changes its text."""
        self._bar.update(self._task, completed=step, **({} if text is None else {"text": text}))
