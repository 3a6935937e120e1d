"""The layers of Caffe's `.caffemodel` files, read without Caffe.

They are protocol buffers (BVLC/caffe, src/caffe/proto/caffe.proto). A NetParameter holds its layers in the old form
(V1LayerParameter, field 2) or in the new one (LayerParameter, field 100).
"""

import dataclasses
import math
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from squeeze_jax.errors import WeightError, shown
from squeeze_jax.pretrained.weights import read_bytes

# Field numbers of caffe.proto. The old form gives a layer's type as a number.
V1_LAYER, LAYER = 2, 100
MOST_LAYERS = 10_000
FIELDS = {
    V1_LAYER: {
        "name": 4,
        "type": 5,
        "bottom": 2,
        "top": 3,
        "blobs": 6,
        "concat": 9,
        "convolution": 10,
        "inner_product": 17,
        "pooling": 19,
        "eltwise": 24,
        "relu": 30,
        "transform": 36,
        "softmax": 39,
    },
    LAYER: {
        "name": 1,
        "type": 2,
        "bottom": 3,
        "top": 4,
        "blobs": 7,
        "transform": 100,
        "concat": 104,
        "convolution": 106,
        "eltwise": 110,
        "inner_product": 117,
        "pooling": 121,
        "relu": 123,
        "softmax": 125,
        "batch_norm": 139,
    },
}
V1_TYPES = {
    1: "Accuracy",
    3: "Concat",
    4: "Convolution",
    5: "Data",
    6: "Dropout",
    8: "Flatten",
    9: "HDF5Data",
    12: "ImageData",
    14: "InnerProduct",
    17: "Pooling",
    18: "ReLU",
    20: "Softmax",
    21: "SoftmaxWithLoss",
    22: "Split",
    24: "WindowData",
    25: "Eltwise",
    29: "MemoryData",
    32: "DummyData",
    36: "Silence",
}
LEGACY_SHAPE, DATA, SHAPE, DOUBLE_DATA = (1, 2, 3, 4), 5, 7, 8
VARINT, FIXED_64, LENGTH, FIXED_32 = 0, 1, 2, 5


@dataclasses.dataclass
class Layer:
    """A layer; files that hold weights only leave out all but name and blobs.

    Attributes:
      name, type: as in the prototxt; the type is "" if the file does not state it.
      bottoms, tops: the names of what it takes and computes.
      blobs: its weights, float32.
      settings: the fields of its parameters by the name of the message, such as "pooling": {2: [3]}.
    """

    name: str = ""
    type: str = ""
    bottoms: list[str] = dataclasses.field(default_factory=list)
    tops: list[str] = dataclasses.field(default_factory=list)
    blobs: list[np.ndarray] = dataclasses.field(default_factory=list)
    settings: dict[str, dict[int, list]] = dataclasses.field(default_factory=dict)

    def numbers(self, message: str, field: int) -> list[int]:
        """Returns the whole numbers of a field, which may be repeated or packed."""
        found = []
        for value in self.settings.get(message, {}).get(field, []):
            found += [value] if isinstance(value, int) else _varints(value)
        return found

    def floats(self, message: str, field: int) -> list[float]:
        """Returns the float values of a field, likewise."""
        found = []
        for value in self.settings.get(message, {}).get(field, []):
            if isinstance(value, int) or len(value) % 4:
                raise WeightError(f"the layer {shown(self.name)!r} has a setting that is not a float")
            found += struct.unpack(f"<{len(value) // 4}f", value)
        return found


def parse(path: pathlib.Path) -> list[Layer]:
    """Returns the layers of a file, in order.

    Raises:
      WeightError: the file is damaged, or two layers with weights have one name.
    """
    try:
        layers = []
        for number, message in _fields(memoryview(read_bytes(path))):
            if number in FIELDS:
                layers.append(_layer(_bytes(message), FIELDS[number]))
            if len(layers) > MOST_LAYERS:
                raise WeightError(f"it has more than {MOST_LAYERS} layers")
        seen = set()
        for layer in layers:
            if layer.blobs and layer.name in seen:
                raise WeightError(f"two layers are called {shown(layer.name)!r}")
            seen |= {layer.name} if layer.blobs else set()
    except (WeightError, UnicodeDecodeError) as error:
        raise WeightError(f"{path} is not an intact .caffemodel: {error}") from error
    return layers


def _layer(message: memoryview, fields: dict[str, int]) -> Layer:
    layer = Layer()
    names = {number: name for name, number in fields.items()}
    for number, value in _fields(message):
        field = names.get(number)
        if field == "name":
            layer.name = str(_bytes(value), "utf-8")
        elif field == "type":
            # A number of the old form that is not listed is of no layer that a network here has.
            layer.type = V1_TYPES.get(value, f"V1 type {value}") if isinstance(value, int) else str(value, "utf-8")
        elif field == "bottom":
            layer.bottoms.append(str(_bytes(value), "utf-8"))
        elif field == "top":
            layer.tops.append(str(_bytes(value), "utf-8"))
        elif field == "blobs":
            layer.blobs.append(_blob(_bytes(value)))
        elif field:
            settings = layer.settings.setdefault(field, {})
            for setting, stored in _fields(_bytes(value)):
                settings.setdefault(setting, []).append(stored)
    return layer


def _blob(message: memoryview) -> np.ndarray:
    """Returns the values of a BlobProto, float32, in its shape."""
    legacy, shape, chunks = dict.fromkeys(LEGACY_SHAPE, 1), None, []
    for number, value in _fields(message):
        if number in legacy:
            legacy[number] = _whole(value)
        elif number == SHAPE:
            shape = [
                dim
                for field, dims in _fields(_bytes(value))
                if field == 1
                for dim in ([_whole(dims)] if isinstance(dims, int) else _varints(_bytes(dims)))
            ]
        elif number in (DATA, DOUBLE_DATA):
            dtype = np.dtype("<f4" if number == DATA else "<f8")
            data = _bytes(value)
            if len(data) % dtype.itemsize:
                raise WeightError(f"{len(data)} bytes are not a whole number of {dtype.name} values")
            chunks.append(np.frombuffer(data, dtype).astype(np.float32))
    values = np.concatenate(chunks) if chunks else np.zeros(0, np.float32)
    shape = list(legacy.values()) if shape is None else shape
    if len(shape) > 4 or math.prod(shape) != values.size:
        raise WeightError(f"a blob of shape {shape} holds {values.size} values")
    return values.reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Yields (field number, value) of a message; the value is an int for varints, else bytes."""
    offset = 0
    while offset < len(message):
        key, offset = _varint(message, offset)
        wire_type, number = key & 7, key >> 3
        if wire_type == VARINT:
            value, offset = _varint(message, offset)
            yield number, value
            continue
        if wire_type == LENGTH:
            length, offset = _varint(message, offset)
        elif wire_type in (FIXED_32, FIXED_64):
            length = 4 if wire_type == FIXED_32 else 8
        else:
            raise WeightError(f"a field of wire type {wire_type} at byte {offset}")
        if length > len(message) - offset:
            raise WeightError(f"a field of {length} bytes at byte {offset} of {len(message)}")
        yield number, message[offset : offset + length]
        offset += length


def _varint(message: memoryview, offset: int) -> tuple[int, int]:
    """Returns an integer stored in 7-bit groups, and the offset after it."""
    value = 0
    for shift in range(0, 70, 7):
        if offset >= len(message):
            break
        byte = message[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
    raise WeightError(f"an unterminated number at byte {offset}")


def _varints(message: memoryview) -> list[int]:
    values, offset = [], 0
    while offset < len(message):
        value, offset = _varint(message, offset)
        values.append(value)
    return values


def _bytes(value: Any) -> memoryview:
    if isinstance(value, int):
        raise WeightError("a number where a message is expected")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise WeightError("a message where a number is expected")
    return value
