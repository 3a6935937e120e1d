"""Reads Caffe's `.caffemodel` files of SqueezeNet 1.0 and 1.1 and of SqueezeNext without Caffe.

They are protocol buffers (BVLC/caffe, src/caffe/proto/caffe.proto). The importer reads the layers of the NetParameter,
in the old form (V1LayerParameter, field 2) or the new one (LayerParameter, field 100), and the name and blobs of each
layer. It supports the names of forresti/SqueezeNet (`fire2/squeeze1x1`) and songhan (`fire2/conv1x1_1`), and the
numbers of amirgholami/SqueezeNext (`Convolution2`, `BatchNorm2`, `Scale2`).
"""

import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from squeeze_jax.errors import WeightError
from squeeze_jax.models import create, registered
from squeeze_jax.models.squeezenet import SqueezeNet
from squeeze_jax.pretrained.weights import (
    Leaves,
    Rules,
    Weights,
    imagenet_class_names,
    imagenet_config,
    make_weights,
    model_of_stem,
    read_bytes,
    rename,
)

# Field numbers of caffe.proto: the layers of a net, and the name and blobs of a layer in either form.
V1_LAYER, LAYER = 2, 100
NAME_AND_BLOBS = {V1_LAYER: (4, 6), LAYER: (1, 7)}
LEGACY_SHAPE, DATA, SHAPE, DOUBLE_DATA = (1, 2, 3, 4), 5, 7, 8
VARINT, FIXED_64, LENGTH, FIXED_32 = 0, 1, 2, 5

SONGHAN: Rules = (
    (r"\bconv1x1_1$", "squeeze1x1"),
    (r"\bconv1x1_2$", "expand1x1"),
    (r"\bconv3x3_2$", "expand3x3"),
    (r"^conv_final$", SqueezeNet.head),
)
# By the size of the first kernel, the outputs of the second and the inputs of the third.
SQUEEZENEXTS = {
    (7, 32, 64): "squeezenext_1_0_23",
    (7, 32, 32): "squeezenext_1_0_g_23",
    (5, 32, 32): "squeezenext_1_0_23v5",
    (7, 64, 64): "squeezenext_2_0_23",
    (5, 64, 64): "squeezenext_2_0_23v5",
}


def read(path: pathlib.Path) -> Weights:
    """Reads a `.caffemodel` file.

    Raises:
      WeightError: the file is damaged, or of another network.
    """
    layers = decode(path)
    name, rules = _squeezenext(layers)
    leaves = to_leaves(path, layers, rules or SONGHAN)
    return make_weights(path, caffe_config(name or model_of_stem(path, leaves)), leaves, imagenet_class_names())


def caffe_config(model_name: str) -> ConfigDict:
    """Returns the config of the authors' ImageNet weights; their version 1.0 pads conv10, although it is 1x1."""
    config = imagenet_config(model_name, registered(model_name).input)
    if registered(model_name).network is SqueezeNet:
        config.model.head_padding = model_name == "squeezenet_v1_0"
    return config


def _squeezenext(layers: dict[str, list[np.ndarray]]) -> tuple[str | None, Rules]:
    """Returns the model and the names of its numbered layers; None and no names for another network."""
    shapes = [layers[name][0].shape for name in ("Convolution1", "Convolution2", "Convolution3") if name in layers]
    if [len(shape) for shape in shapes] != [4, 4, 4]:
        return None, ()
    name = SQUEEZENEXTS.get((shapes[0][-1], shapes[1][0], shapes[2][1]))
    if name is None:
        return None, ()
    ours = ["conv1"]
    for block, settings in create(name).blocks():
        parts = ("reduce1", "reduce2", "first", "second", "expand")
        ours += [f"{block}/{part}" for part in (("shortcut", *parts) if settings.is_first else parts)]
    ours.append("conv_last")
    rules = [(rf"^Convolution{i}$", unit) for i, unit in enumerate(ours, start=1)]
    rules += [(rf"^(?:BatchNorm|Scale){i}$", f"{unit}_bn") for i, unit in enumerate(ours, start=1)]
    return name, [*rules, (r"^fc1000$", "fc")]


def decode(path: pathlib.Path) -> dict[str, list[np.ndarray]]:
    """Returns the blobs, float32, of all layers that have some.

    Raises:
      WeightError: the file is damaged.
    """
    layers = {}
    try:
        for number, layer in _fields(memoryview(read_bytes(path))):
            if number in NAME_AND_BLOBS:
                name, blobs = _layer(_bytes(layer), *NAME_AND_BLOBS[number])
                layers |= {name: blobs} if blobs else {}
    except (WeightError, UnicodeDecodeError) as error:
        raise WeightError(f"{path} is not an intact .caffemodel: {error}") from error
    return layers


def to_leaves(path: pathlib.Path, layers: dict[str, list[np.ndarray]], rules: Rules) -> Leaves:
    """Converts blobs to this project's names and layout; unknown names are kept, to be reported later.

    A batch norm in Caffe has a layer with the sums of the means and variances and their weight, and a layer with scale
    and bias.

    Args:
      path: the file, for messages.
      layers: the blobs of each layer.
      rules: how the layers are renamed.

    Raises:
      WeightError: a layer has blobs of other shapes than a convolution, a dense layer or batch norm.
    """
    leaves: Leaves = {}
    for theirs, blobs in layers.items():
        name = rename(theirs, rules)
        # Old files give every blob four axes.
        dense = (np.squeeze(blob) if name == "fc" or name.endswith("_bn") else blob for blob in blobs)
        blobs = [np.atleast_1d(blob) for blob in dense]
        ranks = [blob.ndim for blob in blobs]
        if ranks == [1, 1, 1] and blobs[2].size == 1:
            weight = 1 / blobs[2][0] if blobs[2][0] else 0
            leaves[f"batch_stats/{name}/mean"], leaves[f"batch_stats/{name}/var"] = (
                np.float32(blob * weight) for blob in blobs[:2]
            )
        elif ranks == [1, 1]:
            leaves[f"params/{name}/scale"], leaves[f"params/{name}/bias"] = blobs
        elif ranks[0] in (2, 4) and len(blobs) <= 2:
            leaves[f"params/{name}/kernel"] = blobs[0].transpose(*range(2, ranks[0]), 1, 0)
            if len(blobs) == 2:
                leaves[f"params/{name}/bias"] = blobs[1].ravel()
        else:
            raise WeightError(
                f"{path} is not an intact .caffemodel of a network here: the layer {theirs!r} has blobs of shapes "
                f"{[blob.shape for blob in blobs]}."
            )
    stem = leaves.get("params/conv1/kernel")
    if stem is not None and stem.ndim == 4:  # Caffe's channel order is BGR
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
