"""Reads the files of torch.save without PyTorch.

Such a file is a zip of a pickle, which describes how to build the value, and of the raw values of each storage; before
PyTorch 1.6 it was a sequence of pickles, followed by the values. `pickles` interprets the pickles.
"""

import io
import logging
import math
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from squeeze_jax.errors import WeightError, shown
from squeeze_jax.pretrained import pickles
from squeeze_jax.pretrained.pickles import Storage, Tensor
from squeeze_jax.pretrained.weights import LARGEST_FILE, read_bytes

logger = logging.getLogger(__name__)

ZIP_MAGIC = b"PK\x03\x04"
# The first pickle of a file written before PyTorch 1.6 is a number: torch.serialization.MAGIC_NUMBER.
LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
MOST_MEMBERS = 100_000
# The keys that state dicts lie under in a checkpoint. Of several, the first one here: raw weights before averaged ones.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
)
DEEPEST = 3  # wrappers around a state dict


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict, which may lie in a checkpoint (`WRAPPERS`), by name.

    They may be of float16, bfloat16, float32, float64 or whole numbers, and have any strides.

    Raises:
      WeightError: the file is damaged, not a state dict, or uses more than a state dict needs.
    """
    data = read_bytes(path)
    try:
        value, stored = _sequence(data) if data.startswith(LEGACY_MAGIC) else _archive(data)
        state = _state_dict(path, value)
        tensors = {name: entry for name, entry in state.items() if isinstance(entry, Tensor) and type(name) is str}
        if not tensors:
            raise WeightError(f"it has {_keys(state)} and no tensors; save model.state_dict()")
        needed = sum(math.prod(tensor.shape) * _dtype(tensor.storage).itemsize for tensor in tensors.values())
        if needed > len(data):
            raise WeightError(f"its tensors take {needed} bytes, but the file has {len(data)}")
        return {name: _values(tensor, stored(tensor.storage)) for name, tensor in tensors.items()}
    except WeightError as error:
        raise WeightError(f"{path} is not a readable state dict: {error}") from error


def _state_dict(path: pathlib.Path, value: Any) -> dict[Any, Any]:
    """Returns the state dict in a value that was saved."""
    for _ in range(DEEPEST):
        if not isinstance(value, dict):
            raise WeightError("it does not contain a state dict; save model.state_dict()")
        inside = [key for key in WRAPPERS if isinstance(value.get(key), dict) and value[key]]
        if not inside:
            break
        logger.info("%s: the weights under %r are used%s", path, inside[0], _others(inside[1:]))
        value = value[inside[0]]
    return value


def _others(keys: list[str]) -> str:
    return f", not those under {', '.join(map(repr, keys))}" if keys else ""


def _keys(state: Any) -> str:
    names = [shown(name) for name in state if isinstance(name, str)] if isinstance(state, dict) else []
    return f"the keys {', '.join(names[:5])}" if names else "no keys"


def _archive(data: bytes) -> tuple[Any, Callable[[Storage], bytes]]:
    """Returns the value in a zip file, and a function that returns the bytes of a storage."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        infos = archive.infolist()[:MOST_MEMBERS]
        members = {info.filename.partition("/")[2]: info for info in infos}
    except Exception as error:  # of zipfile, for damaged bytes, errors of many kinds
        raise WeightError(f"it is not an intact zip file: {shown(str(error))}") from error
    if len(members) < len(infos) or len({info.filename.partition("/")[0] for info in infos}) > 1:
        raise WeightError("it has two members of one name, or more than one folder, which torch.save does not write")
    cached: dict[str, bytes] = {}

    def member(name: str) -> bytes:
        if name not in cached:
            info = members.get(name)
            if info is None:
                raise WeightError(f"it has no {shown(name)}")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > LARGEST_FILE:
                raise WeightError(f"{shown(name)} is compressed or too large; torch.save does not compress")
            if sum(map(len, cached.values())) + info.file_size > len(data):
                raise WeightError("its parts take more bytes than the file has")
            try:
                cached[name] = archive.read(info)
            except Exception as error:  # likewise
                raise WeightError(f"{shown(name)} is damaged: {shown(str(error))}") from error
        return cached[name]

    if "constants.pkl" in members or any(name.startswith("code/") for name in members):
        raise WeightError("it is a TorchScript program; save torch.jit.load(FILE).state_dict() with torch.save")
    if "data.pkl" not in members:
        raise WeightError("it is a zip file without a data.pkl, so torch.save did not write it")
    if "byteorder" in members and member("byteorder") != b"little":
        raise WeightError("it was written on a big-endian machine")
    return pickles.load(io.BytesIO(member("data.pkl"))), lambda storage: member(f"data/{storage.key}")


def _sequence(data: bytes) -> tuple[Any, Callable[[Storage], bytes]]:
    """Returns the same of a sequence of pickles: magic, version, system, value, storage keys; then the storages."""
    file = io.BytesIO(data)
    storages: dict[str, Storage] = {}
    _, _, system, value, keys = (pickles.load(file, storages) for _ in range(5))
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise WeightError("it was written on a big-endian machine")
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise WeightError("it has no list of storages")
    stored = {}
    for key in keys:
        if key not in storages:
            raise WeightError(f"its storage {shown(key)!r} belongs to no tensor")
        size = int.from_bytes(file.read(8), "little") * _dtype(storages[key]).itemsize
        stored[key] = file.read(min(size, len(data)))
        if len(stored[key]) != size:
            raise WeightError(f"its storage {shown(key)!r} is cut off")

    def of(storage: Storage) -> bytes:
        if storage.key not in stored:
            raise WeightError(f"it has no storage {shown(storage.key)!r}")
        return stored[storage.key]

    return value, of


def _dtype(storage: Storage) -> np.dtype:
    return np.dtype(jnp.bfloat16 if storage.dtype == "bfloat16" else storage.dtype).newbyteorder("<")


def _values(tensor: Tensor, stored: bytes) -> np.ndarray:
    """Returns a view of the stored bytes with the shape and strides of a tensor."""
    dtype, shape = _dtype(tensor.storage), tensor.shape
    if not all(shape):
        raise WeightError(f"a tensor of shape {shape} is empty")
    last = tensor.offset + sum((side - 1) * stride for side, stride in zip(shape, tensor.strides, strict=True))
    values = np.frombuffer(stored, dtype, len(stored) // dtype.itemsize)
    if last >= len(values):
        raise WeightError(f"a tensor of shape {shape} needs {last + 1} values; {len(values)} are stored")
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], shape, strides, writeable=False)
