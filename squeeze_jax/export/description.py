"""The description inside an exported file: what somebody without this project needs to run it.

A description is a dictionary of strings with the same keys in every format:

- "class_names": the class names in the order of the logits, JSON;
- "image_shape": (*spatial, channels) of one image, JSON;
- "layout": the order of the axes of the input, "channels_first" or "channels_last";
- "pixels": the dtype of the input, "float32" or "uint8";
- "input" and "output": the input and the output in words;
- "crop": how a photograph of any size becomes an image, JSON; null if images have to have the shape already;
- "preprocessing": the same in words;
- "config" and "config_version": the config of the run, JSON;
- "step": the training step of the weights;
- "version": the version of squeeze_jax;
- "checksum": "sha256:" and the SHA-256 of the whole file with 64 zeros in the place of the hexadecimal digits.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from squeeze_jax import config as config_lib
from squeeze_jax.errors import ExportError, WeightError
from squeeze_jax.experiment import make_crop
from squeeze_jax.network import Network
from squeeze_jax.version import __version__

KEYS = (
    "class_names",
    "image_shape",
    "layout",
    "pixels",
    "input",
    "output",
    "crop",
    "preprocessing",
    "config",
    "config_version",
    "step",
    "version",
    "checksum",
)
UNSEALED = b"sha256:" + b"0" * 64
SEALED = re.compile(rb"sha256:[0-9a-f]{64}")


def describe(
    network: Network, *, channels_first: bool = False, pixels: str = "float32", batch: str = "batch"
) -> dict[str, str]:
    """Describes an exported network; the checksum is added by `seal`.

    Args:
      network: the network.
      channels_first: the order of the axes of the file's input.
      pixels: the dtype of the file's input, "float32" or "uint8".
      batch: the size of a batch; "batch" for any.

    Raises:
      ExportError: the network does not classify into one of unordered classes.
    """
    if (labels := network.config.task.get("labels", "multiclass")) != "multiclass":
        raise ExportError(f"networks with config.task.labels={labels!r} cannot be exported; use 'multiclass'.")
    *spatial, channels = network.image_shape
    names = [str(channels), *map(str, spatial)] if channels_first else [*map(str, spatial), str(channels)]
    colors = {1: "gray", 3: "RGB"}.get(channels, f"{channels} channels")
    crop = _crop(network)
    return {
        "class_names": json.dumps(network.class_names),
        "image_shape": json.dumps(network.image_shape),
        "layout": "channels_first" if channels_first else "channels_last",
        "pixels": pixels,
        "input": f"{pixels} ({batch}, {', '.join(names)}): {colors}, pixels in 0..255, not normalized",
        "output": f"logits, float32 ({batch}, {len(network.class_names)}); softmax gives probabilities",
        "crop": json.dumps(crop),
        "preprocessing": _in_words(crop, network.image_shape),
        "config": json.dumps(network.config.to_dict()),
        "config_version": str(config_lib.VERSION),
        "step": str(network.step),
        "version": __version__,
        "checksum": UNSEALED.decode(),
    }


def _crop(network: Network) -> dict[str, Any] | None:
    crop = make_crop(network.config)
    if crop is None:
        return None
    return {"resize": crop.resize, "keep_aspect": crop.keep_aspect, "filter": "bilinear", "size": crop.size}


def _in_words(crop: Mapping[str, Any] | None, image_shape: tuple[int, ...]) -> str:
    inside = "Mean and standard deviation are applied inside the network."
    if crop is None:
        return f"Images have the shape {image_shape}. {inside}"
    resize, (height, width) = crop["resize"], crop["size"]
    if isinstance(resize, tuple):
        resized = f"to a height of {resize[0]} and a width of {resize[1]} pixels"
    elif crop["keep_aspect"]:
        resized = f"so that the shorter side has {resize} pixels and the other one int({resize} * longer / shorter)"
    else:
        resized = f"to {resize} x {resize} pixels, whatever the aspect ratio"
    return (
        f"Resize the image {resized}, with a bilinear filter that averages over the covered pixels (Pillow's "
        f"Image.resize with BILINEAR), and round to whole pixel values. Cut out the central {height} x {width} pixels: "
        f"left = round((width - {width}) / 2), top = round((height - {height}) / 2), halves to even. {inside}"
    )


def seal(data: bytes) -> bytes:
    """Writes the checksum into the contents of a file that contains a description of `describe` once.

    Raises:
      ExportError: there is not exactly one place for the checksum.
    """
    if data.count(UNSEALED) != 1:
        raise ExportError(f"the file has {data.count(UNSEALED)} places for its checksum; expected one.")
    return data.replace(UNSEALED, b"sha256:" + hashlib.sha256(data).hexdigest().encode())


def check_seal(path: object, data: bytes) -> None:
    """Raises WeightError unless the contents of a file are those that `seal` returned."""
    found = SEALED.findall(data)
    if len(found) != 1:
        raise WeightError(f"{path} was not written by `python -m squeeze_jax.export`: it has no checksum.")
    if b"sha256:" + hashlib.sha256(data.replace(found[0], UNSEALED)).hexdigest().encode() != found[0]:
        raise WeightError(f"{path} has changed since it was written (its checksum differs); export it again.")
