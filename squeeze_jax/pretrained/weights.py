"""Code shared by all importers: matching named arrays to a network, and the config of published ImageNet weights."""

import dataclasses
import pathlib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from squeeze_jax import config as config_lib
from squeeze_jax.config import base_config, use_images
from squeeze_jax.errors import WeightError
from squeeze_jax.experiment import make_crop, make_model, make_preprocessing, make_task
from squeeze_jax.files import replaced
from squeeze_jax.models.registry import ImageInput
from squeeze_jax.models.variables import differences
from squeeze_jax.pretrained.imagenet import imagenet_class_names
from squeeze_jax.validation import is_image_shape

Leaves = dict[str, np.ndarray]  # "params/fire2/squeeze1x1/kernel" -> array

# (pattern, replacement) pairs of `re.sub` that turn a publisher's layer name into ours, one after the other.
Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]

MODEL_OF_STEM = {7: "squeezenet_v1_0", 3: "squeezenet_v1_1"}  # by the size of conv1's kernel
LARGEST_FILE = 256 * 2**20  # bytes; AlexNet, the largest network here, takes 233 MiB
IMAGENET = "imagenet2012"  # stored instead of its 1000 class names, which would take 4 kB
# Limits of what the header of a file may ask for.
MOST_CLASSES = 2**16
LAST_STEP = 2**53
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # characters that change what a terminal shows

# Errors that building a config, a task and a model from untrusted values may raise.
WRONG_VALUES = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The contents of a weight file; `network.load` turns them into a network.

    Attributes:
      config: the config of the network and its preprocessing.
      variables: "params" and, with batch norm, "batch_stats".
      class_names: the class names, in the order of the logits.
      image_shape: (*spatial, channels) of the images before they are resized on the device.
      step: the step of the training run; 0 if unknown.
    """

    config: ConfigDict
    variables: dict[str, Any]
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    step: int = 0


def imagenet_config(model_name: str, images: ImageInput) -> ConfigDict:
    """Returns the config of published ImageNet weights: the network and its preprocessing.

    Caffe's networks take BGR images; the importers reverse the input channels of conv1, so that the networks take RGB
    like all networks here.

    Args:
      model_name: the name of a registered network.
      images: the input images of the weights.
    """
    config = base_config()
    config.model.name = model_name
    config.dataset.name = "imagenet2012"
    use_images(config, images)
    config.augment.flip = ("width",)  # a mirror image is as good a photograph; compression calibrates on both
    return config


def rename(layer: str, rules: Rules) -> str:
    """Returns our name of a publisher's layer; an unknown name comes back as it is, to be reported later."""
    for pattern, replacement in rules:
        layer = re.sub(pattern, replacement, layer)
    return layer


def model_of_stem(path: object, leaves: Leaves) -> str:
    """Returns the name of SqueezeNet 1.0 or 1.1, according to the kernel size of conv1.

    Raises:
      WeightError: conv1 is missing, or its kernel has another size.
    """
    stem = leaves.get("params/conv1/kernel")
    if stem is None or stem.shape[0] not in MODEL_OF_STEM:
        found = "no kernel" if stem is None else f"a kernel of shape {stem.shape}"
        raise WeightError(
            f"{path} holds none of the networks that this format supports (docs/weights.md): conv1 has {found}; "
            f"layers: {sorted(leaves)[:8]}"
        )
    return MODEL_OF_STEM[stem.shape[0]]


def class_names_for(leaves: Leaves, head: str) -> tuple[str, ...]:
    """Returns ImageNet's class names if the layer `head` has 1000 outputs, else "0", "1" and so on: a file of weights
    that were trained further does not name its classes."""
    names, kernel = imagenet_class_names(), leaves.get(f"params/{head}/kernel")
    is_imagenet = kernel is None or kernel.shape[-1:] == (len(names),)
    return names if is_imagenet else tuple(map(str, range(kernel.shape[-1] if kernel.ndim else 1)))


def read_header(
    path: pathlib.Path, header: Mapping[str, Any], version: Any
) -> tuple[ConfigDict, tuple[str, ...], tuple[int, ...], int]:
    """Returns the config, class names, image shape and step in the header of a file of ours, after checking them.

    Args:
      path: the file, for messages about the config.
      header: the JSON values "config", "class_names" (or the name of a known list), "image_shape" and "step".
      version: the version of the config's format.

    Raises:
      WeightError: a value is missing, of another type, beyond the limits above, or does not suit the others.
    """
    try:
        names, shape, step = header["class_names"], tuple(header["image_shape"]), header["step"]
        names = imagenet_class_names() if names == IMAGENET else names
        if (
            not isinstance(names, (list, tuple))
            or not 1 <= len(names) <= MOST_CLASSES
            or not all(isinstance(name, str) for name in names)
        ):
            raise WeightError(f"its class names are not 1 to {MOST_CLASSES} strings")
        if any(CONTROL.search(name) for name in names):
            raise WeightError("its class names contain control characters")
        if not all(type(whole) is int for whole in (step, version)) or not 0 <= step < LAST_STEP:
            raise WeightError("its step or version are not whole numbers, or out of range")
        if not is_image_shape(shape):
            raise WeightError(f"its images have the shape {shape}; expected (*spatial, channels)")
        config = config_lib.from_values(header["config"], path, version)
        config_lib.validate(config)
        _check_images(config, shape)
    except WRONG_VALUES as error:  # among them our own errors
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise WeightError(f"no run writes such a header: {reason}") from error
    return config, tuple(names), shape, step


def _check_images(config: ConfigDict, shape: tuple[int, ...]) -> None:
    """Raises WeightError unless what a config does to images suits their shape."""
    *sides, channels = shape
    crop = make_crop(config)
    if crop is not None and list(crop.size) != sides:
        raise WeightError(f"its images have the shape {shape}, but config.crop.size={config.crop.size}")
    if config.dataset.channels not in (None, channels):
        raise WeightError(f"its images have {channels} channels, but config.dataset.channels={config.dataset.channels}")
    make_preprocessing(config).input_shape(shape)


def make_weights(path: object, config: ConfigDict, leaves: Leaves, class_names: tuple[str, ...]) -> Weights:
    """Matches arrays to the network of a config, with RGB or gray images of `config.crop.size`.

    Args:
      path: the file, for messages.
      config: the config of the network, see `imagenet_config`.
      leaves: the arrays.
      class_names: the class names, in the order of the logits.

    Raises:
      WeightError: arrays are missing, unexpected, of another shape (one line per array) or not finite.
    """
    model = make_model(config, make_task(config, class_names))
    image_shape = (*make_crop(config).size, config.dataset.channels)
    return Weights(config, fit(path, model, leaves, image_shape), class_names, image_shape)


def fit(path: object, model: nn.Module, leaves: Leaves, input_shape: tuple[int, ...]) -> dict:
    """Returns the arrays as the variables of a network, after checking them; errors are those of `make_weights`."""
    check_shapes(path, model, {name: tuple(leaf.shape) for name, leaf in leaves.items()}, input_shape)
    for name, leaf in leaves.items():
        if leaf.dtype.kind != "f":
            raise WeightError(f"{path} contains {leaf.dtype} values in {name}; expected float values.")
        if not np.isfinite(leaf).all():
            raise WeightError(f"{path} contains values in {name} that are not finite; download or create it again.")
    return flax.traverse_util.unflatten_dict(leaves, sep="/")


def check_shapes(
    path: object, model: nn.Module, found: dict[str, tuple[int, ...]], input_shape: tuple[int, ...]
) -> None:
    """Raises WeightError, with one line per array, unless a network's arrays have these names and shapes."""
    dummy = jax.ShapeDtypeStruct((1, *input_shape), np.float32)
    try:
        with warnings.catch_warnings(action="ignore"):  # of float64, which only shapes are asked of here
            variables = jax.eval_shape(model.init, jax.random.key(0), dummy)
    except WRONG_VALUES as error:
        raise WeightError(f"{path} describes no network: {error}") from error
    wanted = flax.traverse_util.flatten_dict(variables, sep="/")
    expected = {name: tuple(leaf.shape) for name, leaf in wanted.items()}
    if expected != found:
        lines = differences(expected, found)
        raise WeightError(f"{path} does not fit the network (- expected, + found):\n{lines}")


def write_verified(path: pathlib.Path, data: bytes, read: Callable[[pathlib.Path], Weights], network: Any) -> None:
    """Writes a weight file, and reads it back for verification before it replaces an existing one.

    Args:
      path: the file; its folder must exist.
      data: the contents of the file.
      read: the function that reads files of this format.
      network: the network that the file must contain, as returned by `squeeze_jax.load`.

    Raises:
      FileError: the file cannot be written; an existing file is kept.
      WeightError: a different network was read back; an existing file is kept.
    """
    with replaced(path) as temporary:
        temporary.write_bytes(data)
        found = read(temporary)
        pairs = [flax.traverse_util.flatten_dict(tree, sep="/") for tree in (network.variables, found.variables)]
        differing = sorted(
            name
            for name in pairs[0].keys() | pairs[1].keys()
            if not all(name in pair for pair in pairs) or not np.array_equal(pairs[0][name], pairs[1][name])
        )
        if differing or found.class_names != network.class_names or found.image_shape != network.image_shape:
            raise WeightError(
                f"{path} was not written, because a different network was read back; these differ: "
                f"{', '.join(differing[:5]) or 'class names or image shape'}. This is a bug; please report it."
            )


def read_bytes(path: pathlib.Path) -> bytes:
    """Returns the contents of a file.

    Raises:
      WeightError: the file cannot be read, or is larger than any network here.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise WeightError(f"{path} has {size} bytes; expected at most {LARGEST_FILE}.")
        return path.read_bytes()
    except OSError as error:
        raise WeightError(f"{path} cannot be read: {error.strerror}.") from error
