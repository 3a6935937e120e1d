"""The TFDS builders of this project; their datasets are prepared on first use."""

import functools
import importlib

BUILDERS = {
    "digits": ("squeeze_jax.data.builders.digits", "Digits"),
    "medmnist": ("squeeze_jax.data.builders.medmnist", "MedMNIST"),
    "pulmonary_nodules": ("squeeze_jax.data.builders.pulmonary_nodules", "PulmonaryNodules"),
    "synthetic_nodules": ("squeeze_jax.data.builders.scans", "SyntheticNodules"),
}


def builder_class(name: str):
    """Returns a callable that creates a builder.

    Args:
      name: the name of a builder such as "digits", or of a builder and its TFDS config, "medmnist/adrenalmnist3d".

    Raises:
      KeyError: it is not a builder of this project.
    """
    builder, _, config = name.partition("/")
    module, attribute = BUILDERS[builder]
    made = getattr(importlib.import_module(module), attribute)
    return functools.partial(made, config=config) if config else made
