"""The registry of networks: the settings of each name, and the input images of its published weights."""

import dataclasses
import types
import typing
from typing import Any

from flax import linen as nn

from squeeze_jax.errors import ModelError
from squeeze_jax.extensions import Registry, nearest

# Fields that Linen adds to every module, and `axis_name`, which belongs to pmap, not to the network.
_NOT_OVERRIDES = ("parent", "name", "axis_name")


@dataclasses.dataclass(frozen=True)
class ImageInput:
    """The images that published weights were trained on.

    Attributes:
      size: the side of the central square that the network sees, in pixels.
      mean: the mean of the pixels in 0..255, in RGB order.
      std: the divisor after subtracting the mean, one number per channel or one for all channels.
      resize: the size that an image is resized to before cropping.
      keep_aspect: if True, `resize` is the shorter side; else both sides.
      interpolation: how an image is resized: "bilinear" or "bicubic".
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int = 256
    keep_aspect: bool = True
    interpolation: str = "bilinear"


# Images are warped to 256 x 256, and the mean color is subtracted (forresti/SqueezeNet, train_val.prototxt).
CAFFE_IMAGENET = ImageInput(227, (123.0, 117.0, 104.0), (1.0,), keep_aspect=False)
# pytorch/vision, references/classification, in 0..255.
TORCHVISION_IMAGENET = ImageInput(224, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@dataclasses.dataclass(frozen=True)
class Registered:
    """A named network.

    Attributes:
      network: a Linen module with the class attributes `head` and `ranks`, the property `head_margin`, and the methods
        `features`, `minimum_input_size` and `receptive_field`, all as in `SqueezeNet`.
      settings: the attributes that define this network.
      input: the input images of its published ImageNet weights.
    """

    network: type[nn.Module]
    settings: dict[str, Any]
    input: ImageInput

    def overrides(self) -> dict[str, type]:
        """Returns the attributes that may be overridden, and the types of their values."""
        try:
            hints = typing.get_type_hints(self.network)
        except NameError as error:
            raise ModelError(f"a type annotation of {self.network.__name__} cannot be resolved: {error}.") from error
        names = [field.name for field in dataclasses.fields(self.network) if field.name not in _NOT_OVERRIDES]
        return {name: object if isinstance(hints[name], types.UnionType) else _plain(hints[name]) for name in names}


MODELS: Registry[Registered] = Registry("model", ModelError)


def register(name: str, network: type[nn.Module], *, input: ImageInput = CAFFE_IMAGENET, **settings: Any) -> None:
    """Registers a network under a name, for `create`, configs and commands.

    Args:
      name: the new name.
      network: see `Registered`.
      input: the input images of published weights.
      **settings: attributes of the network that differ from its defaults.

    Raises:
      ModelError: another network is registered under this name, or an annotation of the network cannot be resolved.
    """
    made = Registered(network, settings, input)
    made.overrides()  # raises if its annotations cannot be read
    MODELS.add(name, made, (network.__qualname__, settings))


def list_models() -> list[str]:
    """Returns the names of all registered networks, sorted."""
    return sorted(MODELS)


def registered(name: str) -> Registered:
    """Returns the registry entry of a network.

    Raises:
      ModelError: the name is unknown; the nearest one is suggested.
    """
    return MODELS[name]


def override_types() -> dict[str, type]:
    """Returns the attributes that `create` and `config.model` may override in any network, and their types.

    The type is `object` where two networks have attributes of one name and different types.
    """
    found: dict[str, type] = {}
    for entry in MODELS.values():
        for name, kind in entry.overrides().items():
            found[name] = kind if found.get(name, kind) is kind else object
    return found


def create(name: str, **overrides: Any) -> nn.Module:
    """Creates a network by name.

    Args:
      name: one of `list_models()`.
      **overrides: attributes that differ from the named network's, such as `num_classes`; with `num_classes=0` the
        network is a backbone that returns pooled features.

    Raises:
      ModelError: a name or override is unknown (the nearest one is suggested), or a value is invalid.
    """
    entry = registered(name)
    known = entry.overrides()
    for override in overrides:
        if override not in known:
            raise ModelError(f"{name} has no option {override!r}{nearest(override, known)}")
    return entry.network(**{**entry.settings, **overrides})


def _plain(hint: Any) -> type:
    return typing.get_origin(hint) or hint
