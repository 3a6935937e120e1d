"""Files that are written whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from squeeze_jax.errors import FileError


@contextlib.contextmanager
def replaced(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path` to write to; it replaces `path` on success and is deleted on failure.

    Raises:
      FileError: the file cannot be written, for example because the disk is full; what was there is unchanged.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            yield temporary
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"{path} cannot be written ({error.strerror or error}); make room or name another place. What was there is "
            "unchanged."
        ) from error
