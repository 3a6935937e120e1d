"""Arrays that are kept on disk instead of in memory, so that memory does not limit the number of images."""

import contextlib
import logging
import math
import pathlib
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator

import numpy as np

from squeeze_jax.errors import FileError, InputError

logger = logging.getLogger(__name__)


class DiskArray:
    """An array on disk that grows along its first axis and is read by slices of it.

    Its file has no name: the system deletes it when the array is not used any more, also if the process is killed.

    Attributes:
      shape: (rows, ...), where the rows are those appended so far.
      dtype: the dtype.
    """

    def __init__(self, row: tuple[int, ...], dtype: np.dtype | type, folder: pathlib.Path | None = None) -> None:
        """Creates an array without rows.

        Args:
          row: the shape of a row.
          dtype: the dtype.
          folder: the folder whose disk is used; the system's temporary folder by default.

        Raises:
          FileError: the folder cannot be written to.
        """
        self.shape, self.dtype = (0, *row), np.dtype(dtype)
        self._row_bytes = math.prod(row) * self.dtype.itemsize
        self._folder = _place(folder)
        with self._disk():
            self._file = tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115 - as long as self
        weakref.finalize(self, self._file.close)

    @classmethod
    def of(cls, parts: Iterable[np.ndarray], folder: pathlib.Path | None = None) -> "DiskArray":
        """Stores arrays of the same dtype and row shape, such as batches of images, one after another.

        Raises:
          InputError: there are none.
          FileError: they cannot be written.
        """
        found = None
        for part in parts:
            found = cls(part.shape[1:], part.dtype, folder) if found is None else found
            found.append(part)
        if found is None:
            raise InputError("there are no images.")
        return found

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> np.ndarray:
        """Reads consecutive rows into memory."""
        first, last, step = part.indices(len(self))
        if step != 1:
            raise ValueError("only consecutive rows can be read.")
        rows = np.empty((max(last - first, 0), *self.shape[1:]), self.dtype)
        with self._disk():
            self._file.seek(first * self._row_bytes)
            left = _bytes_of(rows)
            while left:
                left = left[self._file.readinto(left) :]
        return rows

    def append(self, rows: np.ndarray) -> None:
        """Adds rows of the same dtype and shape.

        Raises:
          FileError: they cannot be written, for example because the disk is full.
        """
        with self._disk():
            self._file.seek(len(self) * self._row_bytes)
            left = _bytes_of(np.ascontiguousarray(rows))
            while left:
                left = left[self._file.write(left) :]
        self.shape = (len(self) + len(rows), *self.shape[1:])

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FileError(
                f"{self._folder} cannot hold temporary files ({error.strerror or error}); make room or use "
                "fewer images."
            ) from error


def check_room(what: str, needed: int, folder: pathlib.Path | None = None) -> None:
    """Logs how much of a disk a computation needs while it runs.

    Args:
      what: what will be kept, such as "feature maps".
      needed: its bytes.
      folder: the folder that it will be kept in; the system's temporary folder by default.

    Raises:
      FileError: there is less room.
    """
    place = _place(folder)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise FileError(
            f"{what} need {needed / 1e9:.1f} GB in {place} for the time of the computation, and {free / 1e9:.1f} GB "
            "are free; make room or use fewer images."
        )
    logger.info("keeps up to %.2f GB of %s in %s until it ends", needed / 1e9, what, place)


def _place(folder: pathlib.Path | None) -> pathlib.Path:
    return pathlib.Path(tempfile.gettempdir()) if folder is None else folder


def _bytes_of(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))
