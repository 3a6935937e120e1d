"""What all importers share: fitting named arrays to a network, and ImageNet's preprocessing as Caffe had it."""

import flax.traverse_util
import jax
import numpy as np
from ml_collections import ConfigDict

from squeeze_jax import run
from squeeze_jax.config import base_config
from squeeze_jax.leaves import differences

Leaves = dict[str, np.ndarray]  # "params/fire2/squeeze1x1/kernel" -> array

MODEL_OF_STEM = {7: "squeezenet_v1_0", 3: "squeezenet_v1_1"}  # by the size of conv1's kernel
LARGEST_FILE = 64 * 2**20  # bytes; ten times the largest network of the family


class WeightError(ValueError):
    """A weight file that cannot be used; the message names it and what was expected."""


def caffe_imagenet_config(model_name: str) -> ConfigDict:
    """The network and the preprocessing of the authors' ImageNet weights.

    Images are warped to 256 x 256, the central 227 x 227 are cut out, and the mean colour is subtracted
    (forresti/SqueezeNet, train_val.prototxt). Caffe's networks take blue first; importers reverse the input channels of
    conv1, so that these take RGB as every network here does.
    """
    config = base_config()
    config.model.name = model_name
    config.model.head_padding = model_name.startswith("squeezenet_v1_0")
    config.dataset.name = "imagenet2012"
    config.dataset.channels = 3
    config.dataset.mean = (123.0, 117.0, 104.0)
    config.dataset.std = (1.0,)
    config.crop.size = 227
    config.crop.resize = 256
    config.crop.keep_aspect = False
    return config


def model_of_stem(path: object, leaves: Leaves) -> str:
    """Version 1.0 or 1.1, by the kernel of conv1; raises WeightError where there is none that fits."""
    stem = leaves.get("params/conv1/kernel")
    if stem is None or stem.shape[0] not in MODEL_OF_STEM:
        found = "nothing" if stem is None else f"a kernel of shape {stem.shape}"
        raise WeightError(
            f"{path} is neither SqueezeNet 1.0 nor 1.1: conv1 holds {found}; layers: {sorted(leaves)[:8]}"
        )
    return MODEL_OF_STEM[stem.shape[0]]


def imagenet_class_names() -> tuple[str, ...]:
    """WordNet ids of the 1000 classes in the order of the logits, such as n01440764."""
    import tensorflow_datasets as tfds

    return tuple(tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split())


def make_run(path: object, config: ConfigDict, leaves: Leaves, class_names: tuple[str, ...], step: int = 0) -> run.Run:
    """A network with these weights.

    Raises:
      WeightError: leaves that are missing, left over, of another shape or not finite; one line each.
    """
    model = run.model_of(config, len(class_names))
    image_shape = (config.crop.size, config.crop.size, config.dataset.channels)
    return run.Run(model, fit(path, model, leaves, image_shape), config, step, class_names, image_shape)


def fit(path: object, model, leaves: Leaves, input_shape: tuple[int, ...]) -> dict:
    """The leaves as the variables of a network; raises as `make_run` does."""
    dummy = jax.ShapeDtypeStruct((1, *input_shape), np.float32)
    wanted = flax.traverse_util.flatten_dict(jax.eval_shape(model.init, jax.random.key(0), dummy), sep="/")
    expected = {name: tuple(leaf.shape) for name, leaf in wanted.items()}
    found = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    if expected != found:
        lines = differences(expected, found)
        raise WeightError(f"{path} does not fit the network (- expected, + found):\n{lines}")
    for name, leaf in leaves.items():
        if not np.isfinite(leaf).all():
            raise WeightError(f"{path} holds values in {name} that are not finite numbers.")
    return flax.traverse_util.unflatten_dict(leaves, sep="/")


def read_bytes(path) -> bytes:
    """The whole file, unless it is larger than any network here."""
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise WeightError(f"{path} has {size} bytes; no network of this family needs more than {LARGEST_FILE}.")
    return path.read_bytes()
