"""A network in one safetensors file: the weights, config and class names, with a checksum over all of them."""

import hashlib
import json
import pathlib
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors.numpy

from squeeze_jax import config as config_lib
from squeeze_jax.errors import WeightError
from squeeze_jax.experiment import make_model, make_task
from squeeze_jax.files import replaced
from squeeze_jax.pretrained.weights import LARGEST_FILE, WRONG_VALUES, Weights, fit, read_bytes, read_header

KEY = "squeeze_jax"
# The order matters, because the file is verified by writing it again. Without a "version", the config's version is 1.
DESCRIPTION = ("config", "class_names", "image_shape", "step", "version")


def save(network: Any, path: str | pathlib.Path) -> None:
    """Writes a network to one file; an existing file is replaced only after everything is written.

    Args:
      network: a `Network`, as returned by `squeeze_jax.load`.
      path: the file to write, ending in ".safetensors".

    Raises:
      FileError: the file cannot be written, for example because the disk is full.
    """
    path = pathlib.Path(path)
    description = {
        "config": network.config.to_dict(),
        "class_names": network.class_names,
        "image_shape": network.image_shape,
        "step": network.step,
        "version": config_lib.VERSION,
    }
    leaves = flax.traverse_util.flatten_dict(network.variables, sep="/")
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in leaves.items()}
    with replaced(path) as temporary:
        temporary.write_bytes(_serialize(arrays, description))


def read(path: pathlib.Path) -> Weights:
    """Reads a file written by `save`, and verifies its checksum.

    Raises:
      WeightError: the file was not written by `save`, or has changed since, even by a single bit.
    """
    data = read_bytes(path)
    try:
        length = int.from_bytes(data[:8], "little")
        description = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][KEY])
        arrays = safetensors.numpy.load(data)
        intact = _serialize(arrays, {key: description[key] for key in DESCRIPTION if key in description}) == data
    except Exception as error:
        raise WeightError(f"{path} is not a file written by squeeze_jax, or it is damaged: {error}") from error
    if not intact:
        raise WeightError(
            f"{path} has changed since it was written (its checksum differs); create or download it again."
        )
    try:
        config, class_names, image_shape, step = read_header(path, description, description.get("version", 1))
        task = make_task(config, class_names)
        model, input_shape = make_model(config, task), task.preprocessing.input_shape(image_shape)
    except WRONG_VALUES as error:  # among them our own errors
        raise WeightError(f"{path} describes no network: {error}") from error
    variables = fit(path, model, arrays, input_shape)
    return Weights(config, variables, class_names, image_shape, step)


def is_own(path: pathlib.Path) -> bool:
    """Returns whether this safetensors file may have been written by `save`."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return KEY.encode() in file.read(min(length, LARGEST_FILE))


def _serialize(arrays: dict[str, np.ndarray], description: dict[str, Any]) -> bytes:
    """Returns the file's bytes: the same for the same contents, so writing it again reveals any change."""
    digest = hashlib.sha256(json.dumps(description).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    ordered = {name: arrays[name] for name in sorted(arrays)}
    return safetensors.numpy.save(ordered, metadata={KEY: json.dumps({"sha256": digest.hexdigest(), **description})})
