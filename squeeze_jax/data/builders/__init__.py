"""The TFDS builders of this project; each prepares itself on first use."""

import importlib

BUILDERS = {"digits": ("squeeze_jax.data.builders.digits", "Digits")}


def builder_class(name: str):
    """The builder class of that name.

    Raises:
      KeyError: it is no builder of this project.
    """
    module, attribute = BUILDERS[name]
    return getattr(importlib.import_module(module), attribute)
