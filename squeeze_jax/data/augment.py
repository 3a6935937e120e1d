"""What the device does to raw images inside the compiled step: resize, random crop and flip, normalise.

Every random choice is keyed by its example, so it depends neither on the devices nor on the batch around it.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Maps raw images (batch, *spatial, channels), uint8 or float in 0..255, to the network's float input.

    Attributes:
      image_size: the spatial size that images are resized to (bilinear); empty to leave them.
      mean: of the pixels in 0..255, one a channel or one for all.
      std: likewise.
      flip: mirror left and right, one image in two; in training only.
      pad_and_crop: width of the black border that a random crop moves in; in training only.
      dtype: of the result.
    """

    image_size: tuple[int, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (255.0,)
    flip: bool = False
    pad_and_crop: int = 0
    dtype: str = "float32"

    def train(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        """With augmentation; `keys` holds one key an example."""
        return self.normalise(self.augment(images, keys))

    def evaluate(self, images: jax.Array) -> jax.Array:
        """Without augmentation."""
        return self.normalise(self.resize(images))

    def augment(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        """Resizes, crops and flips; pixels stay in 0..255."""
        images = self.resize(images)
        crop_keys, flip_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        if self.pad_and_crop:
            images = random_crop(images, crop_keys, self.pad_and_crop)
        if self.flip:
            images = random_flip(images, flip_keys)
        return images

    def resize(self, images: jax.Array) -> jax.Array:
        """Resizes where `image_size` asks for it; float of `dtype` in 0..255."""
        images = images.astype(self.dtype)
        if self.image_size and self.image_size != images.shape[1:-1]:
            shape = (images.shape[0], *self.image_size, images.shape[-1])
            images = jax.image.resize(images, shape, "linear", antialias=True)
        return images

    def normalise(self, images: jax.Array) -> jax.Array:
        return (images - jnp.array(self.mean, self.dtype)) / jnp.array(self.std, self.dtype)

    def input_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(*spatial, channels) of the network's input for raw images of `image_shape`."""
        return (*(self.image_size or image_shape[:-1]), image_shape[-1])


def random_flip(images: jax.Array, keys: jax.Array) -> jax.Array:
    """Mirrors the last spatial axis of every other image, at random."""

    def flip(image: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key), jnp.flip(image, -2), image)

    return jax.vmap(flip)(images, keys)


def random_crop(images: jax.Array, keys: jax.Array, padding: int) -> jax.Array:
    """Pads every spatial axis with `padding` zeros on both sides and cuts the old size out at a random place."""
    rank = images.ndim - 2
    padded = jnp.pad(images, [(0, 0), *[(padding, padding)] * rank, (0, 0)])

    def crop(image: jax.Array, key: jax.Array) -> jax.Array:
        corner = jax.random.randint(key, (rank,), 0, 2 * padding + 1)
        return jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

    return jax.vmap(crop)(padded, keys)
