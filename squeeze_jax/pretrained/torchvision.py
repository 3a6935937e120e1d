"""Reads torchvision's state dicts of squeezenet1_0 and squeezenet1_1 (`.safetensors`, `.pth`) without PyTorch.

A `.pth` file is a zip of a pickle, which describes how to build the state dict, and of the raw values of each tensor. A
pickle is a program, so this module interprets only what a state dict needs: an opcode or global that a state dict does
not use is an error, and the globals that it does use are mapped to plain records of this module.
"""

import collections
import io
import math
import pathlib
import pickle
import pickletools
import zipfile
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from squeeze_jax.errors import WeightError
from squeeze_jax.models.registry import TORCHVISION_IMAGENET
from squeeze_jax.models.squeezenet import SqueezeNet
from squeeze_jax.pretrained.weights import (
    LARGEST_FILE,
    MODEL_OF_STEM,
    Leaves,
    Weights,
    imagenet_class_names,
    imagenet_config,
    make_weights,
    read_bytes,
)

# The indices of Fire modules in torchvision's `features` (pytorch/vision, torchvision/models/squeezenet.py).
FIRE_MODULES = {"squeezenet_v1_0": (3, 4, 5, 7, 8, 9, 10, 12), "squeezenet_v1_1": (3, 4, 6, 7, 9, 10, 11, 12)}
STEM = "features.0.weight"

_OPCODES = (
    "PROTO GLOBAL EMPTY_TUPLE EMPTY_DICT EMPTY_LIST MARK BINUNICODE SHORT_BINUNICODE BININT BININT1 BININT2 LONG1 NONE "
    "TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT BINGET LONG_BINGET BINPERSID REDUCE NEWFALSE NEWTRUE SETITEM "
    "SETITEMS BUILD STOP"
)
OPCODES = frozenset(_OPCODES.split())


def read(path: pathlib.Path) -> Weights:
    """Reads a state dict; the suffix determines the format.

    Raises:
      WeightError: the file is damaged or of another network, or its pickle uses more than a state dict needs.
    """
    state = from_safetensors(path) if path.suffix == ".safetensors" else from_pth(path)
    if STEM not in state or state[STEM].ndim != 4 or state[STEM].shape[-1] not in MODEL_OF_STEM:
        raise WeightError(f"{path} is not a state dict of squeezenet1_0 or squeezenet1_1: it has no matching {STEM!r}.")
    name = MODEL_OF_STEM[state[STEM].shape[-1]]
    return make_weights(
        path, imagenet_config(name, TORCHVISION_IMAGENET), to_leaves(state, name), imagenet_class_names()
    )


def to_leaves(state: dict[str, np.ndarray], model_name: str) -> Leaves:
    """Converts tensors to this project's names and layout; unknown names are kept, to be reported later.

    Args:
      state: name -> tensor; kernels are (out, in, height, width).
      model_name: "squeezenet_v1_0" or "squeezenet_v1_1".

    Returns:
      float32 arrays; kernels are (height, width, in, out).
    """
    layers = {"features.0": "conv1", "classifier.1": SqueezeNet.head}
    for fire, place in enumerate(FIRE_MODULES[model_name], start=2):
        for branch in ("squeeze", "expand1x1", "expand3x3"):
            layers[f"features.{place}.{branch}"] = f"fire{fire}/{'squeeze1x1' if branch == 'squeeze' else branch}"
    leaves = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        kind = {"weight": "kernel", "bias": "bias"}.get(kind, kind)
        value = value.astype(np.float32)
        leaves[f"params/{layers.get(layer, layer)}/{kind}"] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    return leaves


def from_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a safetensors file.

    Raises:
      WeightError: the file is damaged.
    """
    try:
        return safetensors.numpy.load(read_bytes(path))
    except WeightError:
        raise
    except Exception as error:  # the library raises errors of many kinds
        raise WeightError(f"{path} is not an intact safetensors file: {error}") from error


def from_pth(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict that was written by torch.save (PyTorch 1.6 or later).

    Raises:
      WeightError: the file is damaged, not a state dict, or uses more than a state dict needs.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(read_bytes(path))) as archive:
            members = {}
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > LARGEST_FILE:
                    raise WeightError(f"{info.filename} is compressed or too large; torch.save does not compress")
                members[info.filename.partition("/")[2]] = info
            if "data.pkl" not in members:
                raise WeightError("it contains no data.pkl; save the state dict again with PyTorch 1.6 or later")
            state = _unpickle(archive.read(members["data.pkl"]))
            if not isinstance(state, dict):
                raise WeightError("it does not contain a state dict")
            return {
                str(name): tensor.values(archive.read(members[f"data/{tensor.storage.key}"]))
                for name, tensor in state.items()
                if isinstance(tensor, _Tensor)
            }
    except WeightError as error:
        raise WeightError(f"{path} is not a readable state dict: {error}") from error
    except Exception as error:  # zipfile and pickle raise errors of many kinds for damaged files
        raise WeightError(f"{path} is not an intact .pth file: {type(error).__name__}: {error}") from error


class _Storage(NamedTuple):
    dtype: str
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def values(self, stored: bytes) -> np.ndarray:
        dtype = np.dtype(self.storage.dtype)
        contiguous = tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))
        if not all(isinstance(n, int) and n >= 0 for n in (self.offset, *self.shape)) or len(self.shape) > 4:
            raise WeightError(f"a tensor has an invalid shape {self.shape} or offset {self.offset}")
        if tuple(self.strides) != contiguous:
            raise WeightError(f"a tensor of shape {self.shape} has the strides {self.strides}; expected {contiguous}")
        last = (self.offset + math.prod(self.shape)) * dtype.itemsize
        if last > len(stored):
            raise WeightError(f"a tensor of shape {self.shape} needs {last} bytes; {len(stored)} are stored")
        return np.frombuffer(stored, dtype, math.prod(self.shape), self.offset * dtype.itemsize).reshape(self.shape)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise WeightError("a tensor without a storage or a shape")
    return _Tensor(storage, offset, shape, strides)


ALLOWED = {
    "collections OrderedDict": collections.OrderedDict,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    "torch FloatStorage": "<f4",
    "torch DoubleStorage": "<f8",
    "torch HalfStorage": "<f2",
    "torch LongStorage": "<i8",
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module} {name}" not in ALLOWED:
            raise WeightError(f"its pickle uses {module}.{name}, which no state dict needs; nothing was executed")
        return ALLOWED[f"{module} {name}"]

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and pid[1] in ALLOWED.values()):
            raise WeightError("a storage of an unknown kind")
        return _Storage(str(pid[1]), str(pid[2]))


def _unpickle(data: bytes) -> Any:
    """Unpickles data after checking that it uses only opcodes of a state dict and no oversized memo index."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in OPCODES:
            raise WeightError(f"its pickle uses {opcode.name}, which no state dict needs; nothing was executed")
        if opcode.name == "LONG_BINPUT" and argument > len(data):
            raise WeightError(f"its pickle has the memo index {argument} in only {len(data)} bytes")
    return _Unpickler(io.BytesIO(data)).load()
