"""The TFDS builders of this project; each prepares itself on first use."""

import functools
import importlib

BUILDERS = {
    "digits": ("squeeze_jax.data.builders.digits", "Digits"),
    "medmnist": ("squeeze_jax.data.builders.medmnist", "MedMNIST"),
}


def builder_class(name: str):
    """What makes the builder called "digits" or, with a TFDS config, "medmnist/adrenalmnist3d".

    Raises:
      KeyError: it is no builder of this project.
    """
    builder, _, config = name.partition("/")
    module, attribute = BUILDERS[builder]
    made = getattr(importlib.import_module(module), attribute)
    return functools.partial(made, config=config) if config else made
