"""What a config makes, and what a workdir gives back: `load` opens a trained network in a notebook."""

import dataclasses
import functools
import pathlib
import warnings
from typing import Any

import jax
import numpy as np

from squeeze_jax import config as config_lib
from squeeze_jax import models
from squeeze_jax.checkpoints import Checkpoints, eval_variables
from squeeze_jax.data.augment import Preprocessing
from squeeze_jax.data.decode import Crop
from squeeze_jax.data.sources import Dataset, Split, hold_out, open_dataset
from squeeze_jax.parallel import compile_often


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained network, as `load` returns it.

    Attributes:
      model: the linen module.
      variables: "params" and "batch_stats", the averaged ones where the run averages.
      config: of the run.
      step: of the checkpoint.
      class_names: in the order of the logits.
      image_shape: (*spatial, channels) of the images that `predict` takes.
    """

    model: models.SqueezeNet
    variables: dict[str, Any]
    config: Any
    step: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]

    def predict(self, images: Any) -> np.ndarray:
        """Classifies raw images.

        Args:
          images: (batch, *spatial, channels), uint8, or float in 0..255, not normalised.

        Returns:
          Probabilities, float32 (batch, num_classes).

        Raises:
          ValueError: another shape, or values that are not finite numbers in 0..255.
        """
        images = np.asarray(images)
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images have shape {images.shape}; expected (batch, {str(self.image_shape)[1:-1]}).")
        if images.dtype != np.uint8:
            if not np.issubdtype(images.dtype, np.number) or not np.isfinite(images).all():
                raise ValueError("images hold values that are not finite numbers; expected uint8, or float in 0..255.")
            if images.size and (images.min() < 0 or images.max() > 255):
                raise ValueError(
                    f"images lie in {images.min():g}..{images.max():g}; expected 0..255, as the run normalises them."
                )
            if images.size and 0 < images.max() <= 1:
                warnings.warn("no pixel is above 1; `predict` takes pixels in 0..255.", stacklevel=2)
        return np.asarray(self._predict(self.variables, images), np.float32)

    @functools.cached_property
    def _predict(self):
        preprocessing = preprocessing_of(self.config)

        def probabilities(variables, images):
            return jax.nn.softmax(self.model.apply(variables, preprocessing.evaluate(images)))

        return compile_often(probabilities)


def preprocessing_of(config: Any) -> Preprocessing:
    """What the device does to the images of a run."""
    return Preprocessing(
        image_size=tuple(config.dataset.image_size),
        mean=tuple(config.dataset.mean),
        std=tuple(config.dataset.std),
        flip=tuple(config.augment.flip),
        quarter_turns=config.augment.quarter_turns,
        rotate=config.augment.rotate,
        pad_and_crop=config.augment.pad_and_crop,
        cutout=config.augment.cutout,
        intensity=tuple(config.augment.intensity),
        dtype="float64" if config.model.dtype == "float64" else "float32",
    )


def crop_of(config: Any) -> Crop | None:
    """What the host cuts photographs to; None where images have one size."""
    crop = config.crop
    return Crop(crop.size, crop.train, crop.resize, crop.keep_aspect, crop.smallest_area) if crop.size else None


def dataset_of(config: Any) -> Dataset:
    """The dataset of a config.

    Raises:
      DataError: see `open_dataset`.
    """
    return open_dataset(
        config.dataset.name,
        config.run.data_dir,
        channels=config.dataset.channels,
        crop=crop_of(config),
        skip_unreadable=config.dataset.skip_unreadable,
    )


def split_of(dataset: Dataset, config: Any, split: str) -> Split | None:
    """The examples that the config calls "train", "validation" or "test"; None where it has no such split.

    Raises:
      ConfigError: another name.
    """
    if split not in config_lib.SPLITS:
        raise config_lib.ConfigError(f"no split is called {split!r}; expected one of {', '.join(config_lib.SPLITS)}.")
    if config.dataset.held_out and split != "test":
        train, held_out = hold_out(dataset.split(config.dataset.train_split), config.dataset.held_out)
        return train if split == "train" else held_out
    name = config.dataset[f"{split}_split"]
    return dataset.split(name) if name else None


def model_of(config: Any, num_classes: int) -> models.SqueezeNet:
    """The network of a config; None in `config.model` means the named network's own value."""
    if config.model.num_classes not in (None, num_classes):
        raise config_lib.ConfigError(
            f"config.model.num_classes={config.model.num_classes}, but the dataset has {num_classes} classes; "
            f"leave the key out."
        )
    overrides = {name: config.model[name] for name in models.OVERRIDES if config.model[name] is not None}
    return models.create(config.model.name, **{**overrides, "num_classes": num_classes})


def load(workdir: str | pathlib.Path, checkpoint: str | int = "best") -> Run:
    """Opens a trained network from its workdir, on any machine and any number of devices; writes nothing there.

    Args:
      workdir: of a run of `python -m squeeze_jax.main`.
      checkpoint: "best" (on the validation split; the latest where none was tracked), "latest", or a step.

    Raises:
      ConfigError: no config there.
      CheckpointError: no such checkpoint, or none intact.
    """
    workdir = pathlib.Path(workdir)
    config, resolved = config_lib.read(workdir)
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        step, leaves = checkpoints.read(checkpoint)
    finally:
        checkpoints.close()
    return Run(
        model=model_of(config, len(resolved["class_names"])),
        variables=eval_variables(leaves),
        config=config,
        step=step,
        class_names=tuple(resolved["class_names"]),
        image_shape=tuple(resolved["image_shape"]),
    )
