"""Reads torchvision's state dicts (`.safetensors`, `.pth`) without PyTorch.

A `.pth` file is a zip of a pickle, which describes how to build the state dict, and of the raw values of each tensor;
before PyTorch 1.6 it was a sequence of pickles, followed by the values. A pickle is a program, so this module
interprets only what a state dict needs: an opcode or global that a state dict does not use is an error, and the globals
that it does use are mapped to plain records of this module.
"""

import collections
import io
import math
import pathlib
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from squeeze_jax.errors import WeightError
from squeeze_jax.models.efficientnet import EfficientNetB0
from squeeze_jax.models.registry import TORCHVISION_IMAGENET, registered
from squeeze_jax.models.squeezenet import FIRST_FIRE, SqueezeNet
from squeeze_jax.pretrained.weights import (
    LARGEST_FILE,
    Leaves,
    Rules,
    Weights,
    imagenet_class_names,
    imagenet_config,
    make_weights,
    read_bytes,
    rename,
)

# In a torchvision `Sequential`, a convolution is followed by its normalisation.
PAIRS: Rules = ((r"\.0$", ""), (r"\.1$", "_bn"))


def _squeezenet(*places: int) -> Rules:
    """Returns the rules of SqueezeNet, whose Fire modules have these indices in `features`."""
    fires = [(rf"^features\.{place}\.", f"fire{i}/") for i, place in enumerate(places, start=FIRST_FIRE)]
    ends = [(r"^features\.0$", "conv1"), (r"^classifier\.1$", SqueezeNet.head), (r"/squeeze$", "/squeeze1x1")]
    return [*fires, *ends]


def _efficientnet() -> Rules:
    """Returns the rules of EfficientNet, whose blocks are numbered within their stage."""
    counts = [count for *_, count, _ in EfficientNetB0.table]
    places = [(stage, i) for stage, count in enumerate(counts, start=1) for i in range(count)]
    blocks = [(rf"^features\.{stage}\.{i}\.block\.", f"block{n}/") for n, (stage, i) in enumerate(places, start=1)]
    parts = [
        (r"^block1/(\d)", lambda found: f"block1/{int(found[1]) + 1}"),  # the only block without an expansion
        (r"/0\.", "/expand."),
        (r"/1\.", "/depthwise."),
        (r"/2\.fc1$", "/squeeze"),
        (r"/2\.fc2$", "/excite"),
        (r"/3\.", "/project."),
    ]
    ends = [(r"^features\.0\.", "conv1."), (r"^features\.8\.", "conv_last."), (r"^classifier\.1$", "fc")]
    return [*ends, *blocks, *parts, *PAIRS]


MOBILENET_V2: Rules = (
    (r"^features\.0\.", "conv1."),
    (r"^features\.18\.", "conv_last."),
    (r"^classifier\.1$", "fc"),
    (r"^features\.1\.conv\.0\.", "block1/depthwise."),  # the only block without an expansion
    (r"^features\.1\.conv\.1$", "block1/project.0"),
    (r"^features\.1\.conv\.2$", "block1/project.1"),
    (r"^features\.(\d+)\.conv\.0\.", r"block\1/expand."),
    (r"^features\.(\d+)\.conv\.1\.", r"block\1/depthwise."),
    (r"^features\.(\d+)\.conv\.2$", r"block\1/project.0"),
    (r"^features\.(\d+)\.conv\.3$", r"block\1/project.1"),
    *PAIRS,
)
SHUFFLENET_V2: Rules = (
    (r"^conv5\.", "conv_last."),
    (r"^(stage\d)\.(\d)\.", r"\1_\2/"),
    (r"branch1\.0$", "shortcut_depthwise"),
    (r"branch1\.1$", "shortcut_depthwise_bn"),
    (r"branch1\.2$", "shortcut"),
    (r"branch1\.3$", "shortcut_bn"),
    (r"branch2\.0$", "conv1"),
    (r"branch2\.1$", "conv1_bn"),
    (r"branch2\.3$", "depthwise"),
    (r"branch2\.4$", "depthwise_bn"),
    (r"branch2\.5$", "conv2"),
    (r"branch2\.6$", "conv2_bn"),
    *PAIRS,
)
RESNET: Rules = (
    (r"^layer(\d)\.(\d)\.", r"stage\1_\2/"),
    (r"downsample", "shortcut"),
    (r"\bbn(\d)$", r"conv\1_bn"),
    *PAIRS,
)
ALEXNET: Rules = tuple(
    (rf"^{theirs}$", ours)
    for theirs, ours in {
        **{rf"features\.{place}": f"conv{i}" for i, place in enumerate((0, 3, 6, 8, 10), start=1)},
        **{rf"classifier\.{place}": f"fc{i}" for i, place in enumerate((1, 4, 6), start=6)},
    }.items()
)


class Published(NamedTuple):
    """How to recognise a network's state dict, by one of its tensors, and to rename its layers."""

    model: str
    tensor: str
    shape: tuple[int, ...]
    rules: Rules


NETWORKS = (
    Published("squeezenet_v1_0", "features.0.weight", (96, 3, 7, 7), _squeezenet(3, 4, 5, 7, 8, 9, 10, 12)),
    Published("squeezenet_v1_1", "features.0.weight", (64, 3, 3, 3), _squeezenet(3, 4, 6, 7, 9, 10, 11, 12)),
    Published("alexnet", "features.0.weight", (64, 3, 11, 11), ALEXNET),
    Published("resnet18", "layer1.0.conv2.weight", (64, 64, 3, 3), RESNET),
    Published("mobilenet_v2", "features.1.conv.0.0.weight", (32, 1, 3, 3), MOBILENET_V2),
    Published("shufflenet_v2_x0_5", "stage2.0.branch1.2.weight", (24, 24, 1, 1), SHUFFLENET_V2),
    Published("shufflenet_v2_x1_0", "stage2.0.branch1.2.weight", (58, 24, 1, 1), SHUFFLENET_V2),
    Published("efficientnet_b0", "features.1.0.block.0.0.weight", (32, 1, 3, 3), _efficientnet()),
)
# The channels and sides of maps that torchvision flattens, by the layer that takes them.
FLATTENED = {"fc6": (256, 6, 6)}
COUNTER = "num_batches_tracked"  # of training steps; we need none

_OPCODES = (
    "PROTO GLOBAL EMPTY_TUPLE EMPTY_DICT EMPTY_LIST MARK BINUNICODE SHORT_BINUNICODE BININT BININT1 BININT2 LONG1 NONE "
    "TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT BINGET LONG_BINGET BINPERSID REDUCE NEWFALSE NEWTRUE SETITEM "
    "SETITEMS APPEND APPENDS BUILD STOP"
)
OPCODES = frozenset(_OPCODES.split())


def read(path: pathlib.Path) -> Weights:
    """Reads a state dict; the suffix determines the format.

    Raises:
      WeightError: the file is damaged or of another network, or its pickle uses more than a state dict needs.
    """
    state = from_safetensors(path) if path.suffix == ".safetensors" else from_pth(path)
    for network in NETWORKS:
        if network.tensor in state and state[network.tensor].shape == network.shape:
            images = registered(network.model).input
            if network.model.startswith("squeezenet"):  # the registry has the authors' own
                images = TORCHVISION_IMAGENET
            config = imagenet_config(network.model, images)
            return make_weights(path, config, to_leaves(state, network.rules), imagenet_class_names())
    raise WeightError(
        f"{path} is not a state dict of a network here ({', '.join(network.model for network in NETWORKS)}); it has "
        f"{', '.join(list(state)[:3])}, ..."
    )


def to_leaves(state: dict[str, np.ndarray], rules: Rules) -> Leaves:
    """Converts tensors to this project's names and layout; unknown names are kept, to be reported later.

    Args:
      state: name -> tensor; kernels are (out, in, height, width) or (out, in).
      rules: how the layers are renamed.

    Returns:
      float32 arrays; kernels are (height, width, in, out) or (in, out).
    """
    leaves = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if kind == COUNTER:
            continue
        layer, value = rename(layer, rules), value.astype(np.float32)
        if kind == "weight" and layer in FLATTENED and value.shape[1] == math.prod(FLATTENED[layer]):
            value = value.reshape(-1, *FLATTENED[layer])
        if kind == "weight" and value.ndim > 1:
            value = value.transpose(*range(2, value.ndim), 1, 0)
        stored = f"params/{layer}/{kind}"
        if kind == "weight":
            stored = f"params/{layer}/{'kernel' if value.ndim > 1 else 'scale'}"
        elif kind.startswith("running_"):
            stored = f"batch_stats/{layer}/{kind.removeprefix('running_')}"
        leaves[stored] = value
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
    """Returns the tensors of a state dict that was written by torch.save.

    Raises:
      WeightError: the file is damaged, not a state dict, or uses more than a state dict needs.
    """
    data = read_bytes(path)
    try:
        state, stored = _sequence(data) if data.startswith(LEGACY_MAGIC) else _archive(data)
        if not isinstance(state, dict):
            raise WeightError("it does not contain a state dict")
        tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, _Tensor)}
        return {name: tensor.values(stored(tensor.storage)) for name, tensor in tensors.items()}
    except WeightError as error:
        raise WeightError(f"{path} is not a readable state dict: {error}") from error
    except Exception as error:  # zipfile and pickle raise errors of many kinds for damaged files
        raise WeightError(f"{path} is not an intact .pth file: {type(error).__name__}: {error}") from error


def _archive(data: bytes) -> tuple[Any, Callable[["_Storage"], bytes]]:
    """Returns the state dict of a zip file, and a function that returns the bytes of a storage."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    members = {}
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > LARGEST_FILE:
            raise WeightError(f"{info.filename} is compressed or too large; torch.save does not compress")
        members[info.filename.partition("/")[2]] = info
    if "data.pkl" not in members:
        raise WeightError("it contains no data.pkl; save the state dict again with PyTorch 1.6 or later")
    state = _unpickle(io.BytesIO(archive.read(members["data.pkl"])))
    return state, lambda storage: archive.read(members[f"data/{storage.key}"])


# The first pickle of a file written before PyTorch 1.6 is a number: torch.serialization.MAGIC_NUMBER.
LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def _sequence(data: bytes) -> tuple[Any, Callable[["_Storage"], bytes]]:
    """Returns the same of a sequence of pickles: magic, version, system, state dict, storage keys; then the values."""
    file = io.BytesIO(data)
    _, _, system, state, keys = (_unpickle(file) for _ in range(5))
    if not isinstance(system, dict) or not system.get("little_endian") or not isinstance(keys, list):
        raise WeightError("it was written on a big-endian machine, or has no list of storages")
    storages = {tensor.storage.key: tensor.storage for tensor in state.values() if isinstance(tensor, _Tensor)}
    values = {}
    for key in map(str, keys):
        count = int.from_bytes(file.read(8), "little")
        values[key] = file.read(count * np.dtype(storages[key].dtype).itemsize)
    return state, lambda storage: values[storage.key]


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
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and pid[1] in ALLOWED.values()):
            raise WeightError("a storage of an unknown kind")
        return _Storage(str(pid[1]), str(pid[2]))


def _unpickle(file: io.BytesIO) -> Any:
    """Reads one pickle, after checking that it uses only opcodes of a state dict and no oversized memo index."""
    start, size = file.tell(), len(file.getbuffer())
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name not in OPCODES:
            raise WeightError(f"its pickle uses {opcode.name}, which no state dict needs; nothing was executed")
        if opcode.name == "LONG_BINPUT" and argument > size:
            raise WeightError(f"its pickle has the memo index {argument} in only {size} bytes")
    file.seek(start)
    return _Unpickler(file).load()
