"""The `.sqz` format: a network in one file, entropy-coded without loss.

Any network that `squeeze_jax.load` opens can be stored. The layout, in little endian:

- the magic bytes "sqz" and the version, one byte;
- the first 16 bytes of the SHA-256 of everything that follows;
- the length of the description, uint32, and the description, deflated JSON;
- the length of the numbers, uint32, and the numbers, deflated;
- the rANS stream, up to the end of the file.

The description contains the config, the class names (or the name of a known list), the image shape, the training step,
the number of lanes and a description of each array, see `squeeze_jax.compression.arrays`.
"""

import hashlib
import json
import pathlib
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from squeeze_jax import config as config_lib
from squeeze_jax.compression import arrays
from squeeze_jax.errors import WeightError
from squeeze_jax.experiment import make_model, make_task
from squeeze_jax.pretrained.imagenet import imagenet_class_names
from squeeze_jax.pretrained.weights import (
    IMAGENET,
    WRONG_VALUES,
    Weights,
    check_shapes,
    read_bytes,
    read_header,
    write_verified,
)

SUFFIX = ".sqz"
MAGIC = b"sqz"
VERSION = 1
LANES = 256  # decodes the paper's network in 1/30 s; 1,024 lanes take 2 kB more, 64 lanes a few hundred bytes less
DIGEST = 16  # bytes
LARGEST_DESCRIPTION = 2**20  # bytes, inflated


def save(
    network: Any, path: str | pathlib.Path, *, steps: Mapping[str, float] | None = None, lanes: int = LANES
) -> None:
    """Writes a network to a `.sqz` file without loss.

    The file is read back and compared with the network before it replaces an existing one. Arrays with few distinct
    values, or with integer multiples of a step, take the fewest bytes; `squeeze_jax.compression` produces such arrays.

    Args:
      network: the network, as returned by `squeeze_jax.load`, in float32.
      path: the file, ending in ".sqz".
      steps: the quantization steps by array name, for arrays whose values are integer multiples of a float32, such as
        {"params/conv1/kernel": 0.01}.
      lanes: the number of lanes of the entropy coder, 1 to 1024.

    Raises:
      WeightError: an array cannot be stored, or the file cannot be written.
    """
    write_verified(pathlib.Path(path), serialize(network, steps=steps, lanes=lanes), read, network)


def serialize(network: Any, *, steps: Mapping[str, float] | None = None, lanes: int = LANES) -> bytes:
    """Returns the contents of the file that `save` writes.

    Args:
      network: the network, see `save`.
      steps: the quantization steps by array name, see `save`.
      lanes: the number of lanes of the entropy coder, 1 to 1024.

    Raises:
      WeightError: an array cannot be stored.
    """
    leaves = flax.traverse_util.flatten_dict(network.variables, sep="/")
    ordered = {name: np.asarray(leaves[name]) for name in sorted(leaves)}
    descriptions, numbers, codes = arrays.pack(ordered, steps or {}, lanes)
    is_imagenet = len(network.class_names) == 1000 and network.class_names == imagenet_class_names()
    description = {
        "config": network.config.to_dict(),
        "config_version": config_lib.VERSION,
        "class_names": IMAGENET if is_imagenet else network.class_names,
        "image_shape": network.image_shape,
        "step": network.step,
        "lanes": lanes,
        "arrays": [description.to_json() for description in descriptions],
    }
    text = json.dumps(description, separators=(",", ":")).encode()
    if len(text) > LARGEST_DESCRIPTION:
        raise WeightError(f"config and class names take {len(text)} bytes; expected at most {LARGEST_DESCRIPTION}.")
    parts = [_with_length(zlib.compress(text, 9)), _with_length(numbers), codes]
    body = b"".join(parts)
    return MAGIC + bytes([VERSION]) + hashlib.sha256(body).digest()[:DIGEST] + body


def read(path: pathlib.Path) -> Weights:
    """Reads a `.sqz` file.

    Args:
      path: the file, which may be untrusted.

    Raises:
      WeightError: the file has another format or version, is damaged, or is malicious.
    """
    data = read_bytes(path)
    if data[: len(MAGIC)] != MAGIC or len(data) < len(MAGIC) + 1 + DIGEST:
        raise WeightError(f"{path} is not a .sqz file of squeeze_jax: its first bytes differ.")
    version, digest, body = data[len(MAGIC)], data[len(MAGIC) + 1 :][:DIGEST], data[len(MAGIC) + 1 + DIGEST :]
    if version != VERSION:
        raise WeightError(f"{path} has version {version}; this squeeze_jax reads version {VERSION}. Update it.")
    if hashlib.sha256(body).digest()[:DIGEST] != digest:
        raise WeightError(f"{path} has changed since it was written (wrong checksum); create or download it again.")
    try:
        return _weights(path, memoryview(body))
    except WRONG_VALUES as error:  # among them our own errors
        raise WeightError(f"{path} is not an intact .sqz file: {error}") from error


def _weights(path: pathlib.Path, body: memoryview) -> Weights:
    deflated, rest = _split(body)
    numbers, codes = _split(rest)
    description = json.loads(arrays.inflate(deflated, LARGEST_DESCRIPTION))
    stored = [arrays.Description.from_json(values) for values in description["arrays"]]
    config, class_names, image_shape, step = read_header(path, description, description["config_version"])
    # The arrays are checked against the network before any of them is allocated.
    task = make_task(config, class_names)
    shapes = {entry.name: entry.shape for entry in stored}
    if len(shapes) < len(stored):
        raise WeightError("it describes the same array twice.")
    check_shapes(path, make_model(config, task), shapes, task.preprocessing.input_shape(image_shape))
    if type(description["lanes"]) is not int:
        raise WeightError("its number of lanes is not a whole number")
    leaves = arrays.unpack(stored, numbers, codes, description["lanes"])
    variables = flax.traverse_util.unflatten_dict(leaves, sep="/")
    return Weights(config, variables, class_names, image_shape, step)


def _with_length(part: bytes) -> bytes:
    return struct.pack("<I", len(part)) + part


def _split(data: memoryview) -> tuple[memoryview, memoryview]:
    """Returns the first part, as written by `_with_length`, and the remaining data."""
    length = int.from_bytes(data[:4], "little")
    if len(data) < 4 + length:
        raise WeightError(f"a part of {length} bytes starts {len(data)} bytes before the end.")
    return data[4 : 4 + length], data[4 + length :]
