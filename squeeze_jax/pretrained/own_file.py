"""A trained or imported network in one safetensors file: weights, config, class names, and a checksum of them all."""

import hashlib
import json
import pathlib
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors.numpy

from squeeze_jax import config as config_lib
from squeeze_jax import run
from squeeze_jax.pretrained.weights import LARGEST_FILE, WeightError, fit, read_bytes

KEY = "squeeze_jax"
DESCRIPTION = ("config", "class_names", "image_shape", "step")


def save(network: run.Run, path: str | pathlib.Path) -> None:
    """Writes a network, as `load` gives it, to one file; a file that is there is replaced only when all is written."""
    path = pathlib.Path(path)
    description = {
        "config": network.config.to_dict(),
        "class_names": network.class_names,
        "image_shape": network.image_shape,
        "step": network.step,
    }
    leaves = flax.traverse_util.flatten_dict(network.variables, sep="/")
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in leaves.items()}
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(_serialise(arrays, description))
    temporary.replace(path)


def read(path: pathlib.Path) -> run.Run:
    """Opens a file that `save` wrote.

    Raises:
      WeightError: another file, or one in which a single bit has changed.
    """
    data = read_bytes(path)
    try:
        length = int.from_bytes(data[:8], "little")
        description = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][KEY])
        arrays = safetensors.numpy.load(data)
        intact = _serialise(arrays, {key: description[key] for key in DESCRIPTION}) == data
    except Exception as error:
        raise WeightError(f"{path} is no file of squeeze_jax, or it is damaged: {error}") from error
    if not intact:
        raise WeightError(f"{path} has changed since it was written (its checksum differs); make or fetch it again.")
    config = config_lib.from_values(description["config"], path)
    class_names, image_shape = tuple(description["class_names"]), tuple(description["image_shape"])
    model = run.model_of(config, len(class_names))
    variables = fit(path, model, arrays, run.preprocessing_of(config).input_shape(image_shape))
    return run.Run(model, variables, config, description["step"], class_names, image_shape)


def is_own(path: pathlib.Path) -> bool:
    """Whether `save` may have written this safetensors file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return KEY.encode() in file.read(min(length, LARGEST_FILE))


def _serialise(arrays: dict[str, np.ndarray], description: dict[str, Any]) -> bytes:
    """The same bytes for the same contents, so that writing it again shows any change of the file."""
    digest = hashlib.sha256(json.dumps(description).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    ordered = {name: arrays[name] for name in sorted(arrays)}
    return safetensors.numpy.save(ordered, metadata={KEY: json.dumps({"sha256": digest.hexdigest(), **description})})
