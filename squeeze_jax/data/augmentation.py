"""Preprocessing on the device, inside the compiled step: resize, augment, normalize.

Every random choice uses the key of its example, so it depends neither on the devices nor on the rest of the batch.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from squeeze_jax.errors import ConfigError
from squeeze_jax.extensions import Registry, function_name

SCALE, INTENSITY_SHIFT = 2**20, 2**20 + 1  # folded into an example's key, which is split for the other augmentations
OWN = 2**20 + 2  # of the first augmentation in `own`; the next ones follow
AXES = {2: ("height", "width"), 3: ("depth", "height", "width")}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A registered augmentation; see `register`."""

    function: Callable[[jax.Array, jax.Array], jax.Array]
    moves: bool


AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation")


def register(name: str, function: Callable[[jax.Array, jax.Array], jax.Array], *, moves: bool) -> None:
    """Registers an augmentation under a name for `config.augment.own`.

    Args:
      name: the new name.
      function: maps images, float (batch, *spatial, channels) in 0..255, and one random key per example to images of
        the same shape. It is compiled, and what becomes of an example must depend on its own image and key only.
      moves: whether it moves what is in an image, which targets with positions would have to follow.

    Raises:
      ConfigError: another augmentation has this name.
    """
    AUGMENTATIONS.add(name, Augmentation(function, moves), (function_name(function), moves))


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Maps raw images (batch, *spatial, channels), uint8 or float in 0..255, to the network's float input.

    Augmentations apply in training only, except `intensity`.

    Attributes:
      image_size: the spatial size that images are resized to (bilinear); empty to keep their size.
      mean: the mean of the pixels in 0..255; one value per channel, or one for all channels.
      std: the standard deviation, likewise.
      flip: axes ("depth", "height", "width"), each mirrored with probability 1/2.
      quarter_turns: rotate by a random multiple of 90 degrees, a volume by one of the cube's 24 rotations; needs equal
        sides.
      rotate: largest angle in degrees of a random rotation of 2-D images (nearest pixel, black outside).
      pad_and_crop: width in pixels of the black border that is added before a random crop of the original size.
      scale: (low, high) of a factor on the size of what is shown, which stays in the middle (bilinear, black outside);
        empty for none.
      intensity_shift: largest value that is added to all pixels, in either direction.
      cutout: side in pixels of a square (cube) at a random place that is set to `mean`.
      intensity: (low, high) of a factor on the pixels; random in training, the midpoint in evaluation; empty for none.
      own: names of registered augmentations, applied in this order after all others.
      dtype: dtype of the result.
    """

    image_size: tuple[int, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (255.0,)
    flip: tuple[str, ...] = ()
    quarter_turns: bool = False
    rotate: float = 0.0
    pad_and_crop: int = 0
    scale: tuple[float, ...] = ()
    intensity_shift: float = 0.0
    cutout: int = 0
    intensity: tuple[float, ...] = ()
    own: tuple[str, ...] = ()
    dtype: str = "float32"

    def evaluate(self, images: jax.Array) -> jax.Array:
        """Resizes and normalizes raw images for evaluation, without augmentation."""
        images = self.resize(images)
        if self.intensity:
            images = images * (sum(self.intensity) / 2)
        return self.normalize(images)

    def augment(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        """Resizes and augments raw images; the result is not normalized.

        Args:
          images: (batch, *spatial, channels), uint8 or float in 0..255.
          keys: one random key per example.

        Raises:
          ConfigError: an augmentation does not support images of this rank or shape.
        """
        images = self.resize(images)
        self._check(images.shape[1:-1])
        crop, flip, turn, rotate, cut, factor = jax.vmap(lambda key: jax.random.split(key, 6), out_axes=1)(keys)
        if self.pad_and_crop:
            images = random_crop(images, crop, self.pad_and_crop)
        if self.flip:
            images = random_flip(images, flip, _axes("config.augment.flip", self.flip, images.ndim - 2))
        if self.quarter_turns:
            images = random_quarter_turns(images, turn)
        if self.rotate:
            images = random_rotation(images, rotate, self.rotate)
        if self.scale:
            images = random_scale(images, _folded(keys, SCALE), self.scale)
        if self.intensity_shift:
            images = shift_intensity(images, _folded(keys, INTENSITY_SHIFT), self.intensity_shift)
        if self.intensity:
            factors = jax.vmap(lambda key: jax.random.uniform(key, (), images.dtype, *self.intensity))(factor)
            images = images * factors.reshape(-1, *(1,) * (images.ndim - 1))
        if self.cutout:
            images = random_cutout(images, cut, self.cutout, jnp.array(self.mean, images.dtype))
        for i, name in enumerate(self.own):
            changed = AUGMENTATIONS[name].function(images, _folded(keys, OWN + i))
            if changed.shape != images.shape:
                raise ConfigError(f"the augmentation {name!r} maps {images.shape} to {changed.shape}; keep the shape.")
            images = changed.astype(images.dtype)
        return images

    def resize(self, images: jax.Array) -> jax.Array:
        """Converts to `dtype` and, if `image_size` is set, resizes; pixels stay in 0..255."""
        images = images.astype(self.dtype)
        if self.image_size and self.image_size != images.shape[1:-1]:
            shape = (images.shape[0], *self.image_size, images.shape[-1])
            images = jax.image.resize(images, shape, "linear", antialias=True)
        return images

    def normalize(self, images: jax.Array) -> jax.Array:
        """Subtracts the mean and divides by the standard deviation."""
        return (images - jnp.array(self.mean, self.dtype)) / jnp.array(self.std, self.dtype)

    normalise = normalize  # the former spelling

    def input_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns (*spatial, channels) of the network's input for raw images of shape `image_shape`.

        Raises:
          ConfigError: the mean, the standard deviation or the size is of images with other channels or axes.
        """
        *spatial, channels = image_shape
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise ConfigError(
                    f"config.dataset.{key}={values} has {len(values)} values, but the images have {channels} "
                    f"channel(s); expected one value per channel, or one for all."
                )
        if self.image_size and len(self.image_size) != len(spatial):
            raise ConfigError(
                f"config.dataset.image_size={self.image_size} has {len(self.image_size)} sizes, but the images have "
                f"{len(spatial)} spatial axes."
            )
        return (*(self.image_size or image_shape[:-1]), image_shape[-1])

    def _check(self, spatial: tuple[int, ...]) -> None:
        if self.quarter_turns and len(set(spatial)) > 1:
            raise ConfigError(f"config.augment.quarter_turns needs images with equal sides; these have {spatial}.")
        if self.rotate and len(spatial) != 2:
            raise ConfigError("config.augment.rotate is for 2-D images; use config.augment.quarter_turns for volumes.")
        if self.cutout > min(spatial):
            raise ConfigError(f"config.augment.cutout={self.cutout} is larger than the images, {spatial}.")


def _axes(key: str, names: tuple[str, ...], rank: int) -> tuple[int, ...]:
    """Returns the indices of the named spatial axes, where 0 is the first; errors name `key`, the config key."""
    known = AXES.get(rank, ())
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ConfigError(f"{key} names {', '.join(unknown)}; images of {rank} spatial axes have {', '.join(known)}.")
    return tuple(known.index(name) for name in names)


def mirror_images(images: jax.Array, axes: tuple[str, ...]) -> list[jax.Array]:
    """Returns the images mirrored along every subset of the named axes: 2 ** len(axes) arrays, the first unchanged.

    Args:
      images: (batch, *spatial, channels).
      axes: names of spatial axes: "depth", "height", "width".

    Raises:
      ConfigError: images of this rank do not have one of the axes.
    """
    views = [images]
    for axis in _axes("config.task.mirror", axes, images.ndim - 2):
        views += [jnp.flip(view, axis + 1) for view in views]
    return views


def random_flip(images: jax.Array, keys: jax.Array, axes: tuple[int, ...] = (-1,)) -> jax.Array:
    """Mirrors each image along each of the spatial axes (0 is the first) with probability 1/2."""
    rank = images.ndim - 2
    chosen = jax.vmap(lambda key: jax.random.bernoulli(key, shape=(len(axes),)))(keys)
    for i, axis in enumerate(axes):
        mirrored = jnp.flip(images, axis % rank + 1)
        images = jnp.where(chosen[:, i].reshape(-1, *(1,) * (rank + 1)), mirrored, images)
    return images


def random_crop(images: jax.Array, keys: jax.Array, padding: int) -> jax.Array:
    """Pads every spatial axis with `padding` zeros on both sides and crops to the original size at a random place."""
    rank = images.ndim - 2
    padded = jnp.pad(images, [(0, 0), *[(padding, padding)] * rank, (0, 0)])

    def crop(image: jax.Array, key: jax.Array) -> jax.Array:
        corner = jax.random.randint(key, (rank,), 0, 2 * padding + 1)
        return jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

    return jax.vmap(crop)(padded, keys)


def random_quarter_turns(images: jax.Array, keys: jax.Array) -> jax.Array:
    """Rotates each image by 0, 90, 180 or 270 degrees at random, a volume by one of the 24 rotations of a cube."""
    rank = images.ndim - 2
    if rank == 2:
        turns = jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(keys)
        return _choose([jnp.rot90(images, i, (1, 2)) for i in range(4)], turns)
    # A rotation permutes the axes and reverses an even number of them if the permutation is even, else an odd number.
    permutations = list(itertools.permutations(range(rank)))
    odd = jnp.array([round(np.linalg.det(np.eye(rank)[list(order)])) < 0 for order in permutations])
    order, bits = jax.vmap(
        lambda key: (
            jax.random.randint(key, (), 0, len(permutations)),
            jax.random.bernoulli(jax.random.fold_in(key, 1), shape=(rank - 1,)),
        )
    )(keys)
    last = odd[order] ^ (jnp.sum(bits, axis=1) % 2 == 1)
    turned = [images.transpose(0, *(axis + 1 for axis in axes), rank + 1) for axes in permutations]
    images = _choose(turned, order)
    for axis, reverse in enumerate([*bits.T, last]):
        images = _choose([images, jnp.flip(images, axis + 1)], reverse.astype(jnp.int32))
    return images


def _choose(views: list[jax.Array], index: jax.Array) -> jax.Array:
    """Returns for each example the view with this index."""
    chosen = views[0]
    for i, view in enumerate(views[1:], start=1):
        chosen = jnp.where((index == i).reshape(-1, *(1,) * (chosen.ndim - 1)), view, chosen)
    return chosen


def _folded(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def random_scale(images: jax.Array, keys: jax.Array, limits: tuple[float, float]) -> jax.Array:
    """Enlarges each image by a random factor between two limits about its center; outside it is black."""
    spatial = images.shape[1:-1]
    sizes, axes = jnp.array(spatial, images.dtype), tuple(range(len(spatial)))

    def scale(image: jax.Array, key: jax.Array) -> jax.Array:
        factors = jnp.full(len(spatial), jax.random.uniform(key, (), images.dtype, *limits))
        shift = (1 - factors) * sizes / 2
        return jax.image.scale_and_translate(image, image.shape, axes, factors, shift, "linear", antialias=False)

    return jax.vmap(scale)(images, keys)


def shift_intensity(images: jax.Array, keys: jax.Array, largest: float) -> jax.Array:
    """Adds a random value in +-`largest` to all pixels of each image, and keeps them in 0..255."""
    values = jax.vmap(lambda key: jax.random.uniform(key, (), images.dtype, -largest, largest))(keys)
    return jnp.clip(images + values.reshape(-1, *(1,) * (images.ndim - 1)), 0, 255)


def random_rotation(images: jax.Array, keys: jax.Array, degrees: float) -> jax.Array:
    """Rotates each 2-D image about its center by a random angle in +-`degrees` (nearest pixel, black outside)."""
    height, width = images.shape[1:3]
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    center = (height - 1) / 2, (width - 1) / 2

    def rotate(image: jax.Array, key: jax.Array) -> jax.Array:
        angle = jax.random.uniform(key, (), minval=-degrees, maxval=degrees) * (math.pi / 180)
        y, x = rows - center[0], columns - center[1]
        source_y = jnp.round(y * jnp.cos(angle) - x * jnp.sin(angle) + center[0]).astype(jnp.int32)
        source_x = jnp.round(y * jnp.sin(angle) + x * jnp.cos(angle) + center[1]).astype(jnp.int32)
        return image.at[source_y, source_x].get(mode="fill", fill_value=0, wrap_negative_indices=False)

    return jax.vmap(rotate)(images, keys)


def random_cutout(images: jax.Array, keys: jax.Array, side: int, fill: jax.Array) -> jax.Array:
    """Sets a square (cube) of `side` pixels at a random place to `fill` (DeVries and Taylor 2017, arXiv 1708.04552).

    Its center is any pixel, so part of it may lie outside.
    """
    spatial = images.shape[1:-1]

    def mask(key: jax.Array) -> jax.Array:
        centers = jax.random.randint(key, (len(spatial),), 0, jnp.array(spatial))
        inside = jnp.ones((), bool)
        for axis, size in enumerate(spatial):
            offset = jnp.arange(size) - (centers[axis] - side // 2)
            line = (offset >= 0) & (offset < side)
            inside = inside & line.reshape([-1 if a == axis else 1 for a in range(len(spatial))])
        return inside

    return jnp.where(jax.vmap(mask)(keys)[..., None], fill, images)


def mixup(images: jax.Array, targets: jax.Array, keys: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Mixes each image and its target with those of its neighbor, by a share drawn from Beta(alpha, alpha).

    The neighbors are examples 0 and 1, 2 and 3, and so on, so that no image leaves its device (Zhang et al. 2018,
    arXiv 1710.09412, mix random pairs). The share of an example itself is at least 1/2.

    Args:
      images: float (batch, *spatial, channels); `batch` is even.
      targets: float (batch, num_classes).
      keys: one random key per example.
      alpha: larger than 0; 1 draws the share from a uniform distribution.
    """
    shares = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha, dtype=targets.dtype))(keys)
    shares = jnp.maximum(shares, 1 - shares)

    def mix(x: jax.Array) -> jax.Array:
        neighbors = jnp.flip(x.reshape(-1, 2, *x.shape[1:]), 1).reshape(x.shape)
        share = shares.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
        return share * x + (1 - share) * neighbors

    return mix(images), mix(targets)
