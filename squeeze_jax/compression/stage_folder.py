"""Results of stages in a folder, so that a repeated command continues after the last one."""

import hashlib
import io
import json
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from squeeze_jax import files
from squeeze_jax.compression.on_disk import DiskArray
from squeeze_jax.errors import InputError

logger = logging.getLogger(__name__)

DIGEST = hashlib.sha256().digest_size
STEP = "step of "
READ_ROWS = 64  # of an array on disk, at a time

Result = tuple[dict, dict[str, float]]


class StageFolder:
    """Keeps the result of each stage: variables, and quantization steps by array name.

    A result is found by a hash of everything that it depends on. Its file begins with a checksum of that hash and of
    the contents; a damaged file, or one of another result, is computed again.
    """

    def __init__(self, folder: pathlib.Path | None) -> None:
        """Creates the folder; with None, nothing is kept.

        Raises:
          InputError: it cannot be created.
        """
        self._folder = folder
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{folder} cannot be the folder ({error.strerror}); use another one.") from error

    def result(self, inputs: list[Any], compute: Callable[[], Result]) -> Result:
        """Returns variables and steps, computed or as kept by an earlier call with the same inputs.

        Args:
          inputs: what the result depends on. The first mapping is the variables of a network, of the same names and
            shapes as the result; others are trees of arrays, arrays, and values that JSON can express.
          compute: computes the result.

        Raises:
          FileError: the result cannot be written.
        """
        if self._folder is None:
            return compute()
        key = _digest(inputs)
        path = self._folder / f"{key}.stage"
        kept = self._read(path, key, next(value for value in inputs if isinstance(value, Mapping)))
        if kept is not None:
            return kept
        variables, steps = compute()
        contents = io.BytesIO()
        leaves = flax.traverse_util.flatten_dict(variables, sep="/")
        np.savez(contents, **leaves, **{STEP + name: step for name, step in steps.items()})
        with files.replaced(path) as temporary:
            temporary.write_bytes(_checksum(key, contents.getvalue()) + contents.getvalue())
        return variables, steps

    @staticmethod
    def _read(path: pathlib.Path, key: str, like: Mapping[str, Any]) -> Result | None:
        """Returns what a file keeps; None, with a line in the log if there is a file, where it must be computed."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("%s cannot be read (%s); it is computed again", path, error.strerror)
            return None
        body = data[DIGEST:]
        if data[:DIGEST] != _checksum(key, body):
            logger.warning("%s is damaged, or of another computation; it is computed again", path)
            return None
        with np.load(io.BytesIO(body), allow_pickle=False) as stored:
            arrays = dict(stored)
        steps = {name.removeprefix(STEP): float(arrays.pop(name)) for name in list(arrays) if name.startswith(STEP)}
        if _shapes(arrays) != _shapes(flax.traverse_util.flatten_dict(like, sep="/")):
            logger.warning("%s has other arrays than the network; it is computed again", path)
            return None
        return flax.traverse_util.unflatten_dict(arrays, sep="/"), steps


def _shapes(leaves: Mapping[str, Any]) -> dict[str, tuple]:
    return {name: (np.shape(leaf), np.asarray(leaf).dtype) for name, leaf in leaves.items()}


def _checksum(key: str, body: bytes) -> bytes:
    return hashlib.sha256(key.encode() + body).digest()


def _digest(inputs: list[Any]) -> str:
    total = hashlib.sha256()

    def add(name: str, array: np.ndarray | DiskArray) -> None:
        total.update(f"{name} {array.shape} {array.dtype}\n".encode())
        for first in range(0, len(array), READ_ROWS):
            total.update(np.ascontiguousarray(array[first : first + READ_ROWS]).data)

    for value in inputs:
        if isinstance(value, Mapping):
            leaves = flax.traverse_util.flatten_dict(value, sep="/")
            for name in sorted(leaves):
                add(name, np.atleast_1d(np.asarray(leaves[name])))
        elif isinstance(value, np.ndarray | DiskArray):
            add("", value)
        else:
            total.update(json.dumps(value).encode() + b"\n")
    return total.hexdigest()[:32]
