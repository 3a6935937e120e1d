"""The TFDS builders of this project; their datasets are prepared on first use."""

import difflib
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
    made = _class(builder)
    return functools.partial(made, config=config) if config else made


def _class(builder: str):
    module, attribute = BUILDERS[builder]
    return getattr(importlib.import_module(module), attribute)


def unknown(name: str) -> str:
    """Returns a message about a dataset that is unknown, with the nearest names of this project and of TFDS."""
    import tensorflow_datasets as tfds

    builder, _, config = name.partition("/")
    known = [*BUILDERS, *tfds.list_builders(with_community_datasets=False)]
    if config and builder in known:
        made = _class(builder) if builder in BUILDERS else tfds.builder_cls(builder)
        close = [f"{builder}/{one}" for one in difflib.get_close_matches(config, made.builder_configs, n=3)]
    else:
        close = difflib.get_close_matches(builder, known, n=3)
    hint = f"; did you mean {', '.join(close)}?" if close else "."
    return (
        f"the dataset {name!r} is unknown{hint} It may be one of this project ({', '.join(sorted(BUILDERS))}), a name "
        f"of TFDS (https://www.tensorflow.org/datasets/catalog/overview), 'fake/32x32x3/10', the folder of a prepared "
        f"dataset, or a folder of images in class/ or split/class/."
    )
