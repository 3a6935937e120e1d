"""Caffe's `.caffemodel` files of SqueezeNet 1.0 and 1.1, read without Caffe.

They are protocol buffers (BVLC/caffe, src/caffe/proto/caffe.proto). Of a NetParameter the importer reads the layers, in
the old form (V1LayerParameter, field 2) or the new (LayerParameter, field 100); of a layer its name and its blobs. Both
naming schemes are known: forresti/SqueezeNet's `fire2/squeeze1x1` and songhan's `fire2/conv1x1_1`.
"""

import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from squeeze_jax.pretrained.weights import (
    Leaves,
    WeightError,
    caffe_imagenet_config,
    imagenet_class_names,
    make_run,
    model_of_stem,
    read_bytes,
)
from squeeze_jax.run import Run

# Field numbers of caffe.proto: of layers in a net, and of name and blobs in a layer of either form.
V1_LAYER, LAYER = 2, 100
NAME_AND_BLOBS = {V1_LAYER: (4, 6), LAYER: (1, 7)}
LEGACY_SHAPE, DATA, SHAPE, DOUBLE_DATA = (1, 2, 3, 4), 5, 7, 8
VARINT, FIXED_64, LENGTH, FIXED_32 = 0, 1, 2, 5

NAMES = {"conv1x1_1": "squeeze1x1", "conv1x1_2": "expand1x1", "conv3x3_2": "expand3x3", "conv_final": "conv10"}


def read(path: pathlib.Path) -> Run:
    """Opens a `.caffemodel` file.

    Raises:
      WeightError: no such network, or a damaged file.
    """
    leaves = decode(path)
    return make_run(path, caffe_imagenet_config(model_of_stem(path, leaves)), leaves, imagenet_class_names())


def decode(path: pathlib.Path) -> Leaves:
    """The kernels (height, width, in, out) and biases of all layers that have blobs; raises as `read` does."""
    leaves: Leaves = {}
    try:
        for number, layer in _fields(memoryview(read_bytes(path))):
            if number not in NAME_AND_BLOBS:
                continue
            name, blobs = _layer(_bytes(layer), *NAME_AND_BLOBS[number])
            if not blobs:
                continue
            *parts, last = name.split("/")
            name = "/".join([*parts, NAMES.get(last, last)])
            kernel = blobs[0]
            if kernel.ndim != 4 or len(blobs) > 2:
                raise WeightError(f"the layer {name!r} has blobs of shapes {[blob.shape for blob in blobs]}")
            leaves[f"params/{name}/kernel"] = kernel.transpose(2, 3, 1, 0)
            if len(blobs) == 2:
                leaves[f"params/{name}/bias"] = blobs[1].ravel()
    except (WeightError, UnicodeDecodeError) as error:
        raise WeightError(f"{path} is no intact .caffemodel: {error}") from error
    stem = leaves.get("params/conv1/kernel")
    if stem is not None:  # blue comes first in Caffe
        leaves["params/conv1/kernel"] = stem[:, :, ::-1]
    return leaves


def _layer(message: memoryview, name_field: int, blobs_field: int) -> tuple[str, list[np.ndarray]]:
    name, blobs = "", []
    for number, value in _fields(message):
        if number == name_field:
            name = str(_bytes(value), "utf-8")
        elif number == blobs_field:
            blobs.append(_blob(_bytes(value)))
    return name, blobs


def _blob(message: memoryview) -> np.ndarray:
    """The values of a BlobProto in its shape, float32."""
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
                raise WeightError(f"{len(data)} bytes are no whole number of {dtype.name} values")
            chunks.append(np.frombuffer(data, dtype).astype(np.float32))
    values = np.concatenate(chunks) if chunks else np.zeros(0, np.float32)
    shape = list(legacy.values()) if shape is None else shape
    if len(shape) > 4 or math.prod(shape) != values.size:
        raise WeightError(f"a blob of shape {shape} holds {values.size} values")
    return values.reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a message: an int, or the bytes of anything with a length or of a fixed width."""
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
    """A whole number in 7-bit groups, and the offset behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if offset >= len(message):
            break
        byte = message[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
    raise WeightError(f"a number without an end at byte {offset}")


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
