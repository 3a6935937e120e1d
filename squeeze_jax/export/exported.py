"""An exported file that is open in its own runtime."""

import dataclasses
import functools
import importlib
import json
import pathlib
from collections.abc import Callable, Mapping
from types import ModuleType

import jax
import numpy as np
from ml_collections import ConfigDict

from squeeze_jax import config as config_lib
from squeeze_jax.errors import ExportError, InputError, SqueezeJaxError, WeightError
from squeeze_jax.experiment import make_task
from squeeze_jax.export import PIXELS
from squeeze_jax.export.description import KEYS
from squeeze_jax.network import read_image
from squeeze_jax.tasks import Task
from squeeze_jax.validation import is_image_shape

# Errors that reading a config from untrusted values may raise.
WRONG_VALUES = (SqueezeJaxError, KeyError, TypeError, ValueError, AttributeError, RecursionError)


def require(package: str, purpose: object) -> ModuleType:
    """Imports a package of the extra `export`.

    Raises:
      ExportError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.partition(".")[0].replace("_", "-")
        raise ExportError(f"{purpose} needs the package {name}: pip install 'squeeze_jax[export]'") from error


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported file in its own runtime.

    Attributes:
      description: the description in the file, see `squeeze_jax.export.description`.
      class_names: the class names, in the order of the logits.
      image_shape: (*spatial, channels) of one image.
      config: the config of the run.
      run: a function from images (batch, *image_shape), in the dtype that the description names, to logits, float32
        (batch, classes).
    """

    description: Mapping[str, str]
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    config: ConfigDict
    run: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def create(
        cls, path: object, description: Mapping[str, str], run: Callable[[np.ndarray], np.ndarray]
    ) -> "Exported":
        """Checks a description, which may be untrusted.

        Args:
          path: the file, for messages.
          description: the description in the file.
          run: see the attribute.

        Raises:
          WeightError: a key is missing, or a value is not valid.
        """
        missing = [key for key in KEYS if key not in description]
        if missing:
            raise WeightError(
                f"{path} was not written by `python -m squeeze_jax.export`: its description lacks {', '.join(missing)}."
            )
        try:
            class_names = json.loads(description["class_names"])
            image_shape = json.loads(description["image_shape"])
            config = config_lib.from_values(json.loads(description["config"]), path, int(description["config_version"]))
        except WRONG_VALUES as error:
            raise WeightError(f"{path} has a description that cannot be read: {error}") from error
        if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
            raise WeightError(f"{path} has class names that are not strings.")
        if not is_image_shape(image_shape):
            raise WeightError(f"{path} has images of shape {image_shape}.")
        if description["pixels"] not in PIXELS:
            raise WeightError(f"{path} takes pixels of the dtype {description['pixels']}; expected {PIXELS}.")
        return cls(dict(description), tuple(class_names), tuple(image_shape), config, run)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Runs the file on raw images.

        Args:
          images: (batch, *image_shape), uint8 or float32 in 0..255, not normalized.

        Returns:
          The logits, float32 (batch, classes).

        Raises:
          InputError: the images have another shape, or are not uint8 although the file takes uint8.
          WeightError: the program in the file, which may be untrusted, cannot be run.
        """
        if images.shape[1:] != self.image_shape:
            raise InputError(f"images have shape {images.shape}; expected (batch, {str(self.image_shape)[1:-1]}).")
        if self.description["pixels"] == "uint8" and images.dtype != np.uint8:
            raise InputError(f"the file takes pixels in uint8; these have the dtype {images.dtype}.")
        try:
            logits = self.run(images.astype(self.description["pixels"], copy=False))
        except Exception as error:  # of any runtime
            reason = " ".join(str(error).split())[:200]
            raise WeightError(f"the exported file cannot be run ({type(error).__name__}: {reason}).") from error
        if logits.shape != (len(images), len(self.class_names)):
            raise WeightError(f"the exported file returns logits of shape {logits.shape} for {len(images)} image(s).")
        return logits

    @functools.cached_property
    def task(self) -> Task:
        """The task that the network was trained for."""
        return make_task(self.config, self.class_names)

    def read_image(self, path: str | pathlib.Path) -> np.ndarray:
        """Reads an image file as `Network.read_image` does."""
        return read_image(path, self.config, self.image_shape)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Returns the predictions of the task, as `Network.predict` does; errors are those of `logits`."""
        return jax.device_get(self.task.predict(self.logits(images)))
