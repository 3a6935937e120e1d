"""Files that are written whole or not at all, JSON read with every failure as one error, and folders made."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from squeeze_jax.errors import FileError

CONFIG_FILE = "config.json"  # of a workdir


@contextlib.contextmanager
def replaced(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path` to write to; it replaces `path` on success and is deleted on failure.

    Raises:
      FileError: the file cannot be written, for example because the disk is full; what was there is unchanged.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.tmp")  # a name may be as long as is allowed
    with writing(path, " What was there is unchanged."):
        try:
            yield temporary
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike, remark: str = "") -> Iterator[None]:
    """A context in which an OSError becomes a FileError about `path`, with a remark at the end of the message."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise FileError(f"{path} cannot be written ({reason}); make room or name another place.{remark}") from error


def user_path(text: str | os.PathLike) -> pathlib.Path:
    """Returns a path with "~" expanded, which no shell does after "="; for arguments of commands."""
    return pathlib.Path(os.path.expanduser(text))


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes JSON with line breaks; errors are those of `replaced`."""
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Returns the contents of a JSON file, which may be anybody's.

    Raises:
      ValueError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text("utf-8"))
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise ValueError("it is not text in UTF-8") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def make_folder(path: str | os.PathLike) -> pathlib.Path:
    """Makes a folder and those above it, unless it is there, and returns its path.

    Raises:
      FileError: the folder cannot be made, or is a file.
    """
    path = pathlib.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise FileError(f"{path} is a file or inside a file; expected a folder, name another one.") from error
    except OSError as error:
        raise FileError(f"the folder {path} cannot be made ({error.strerror}); name another one.") from error
    return path
