"""Decoding on the host: stored bytes to uint8 images, and photographs of any size to squares of one size.

Pillow decodes whatever is evaluated, for its pixels are what published accuracies were measured with. Random crops for
training take the faster way: libjpeg-turbo's quick settings (simplejpeg) and OpenCV's bilinear resize.
"""

import dataclasses
import io
import math

import cv2
import numpy as np
import simplejpeg
from PIL import Image

cv2.setNumThreads(1)  # images are decoded in parallel already

ASPECT_RATIOS = (3 / 4, 4 / 3)  # of a random resized crop (Szegedy et al. 2015, "Going deeper with convolutions")
CROP_TRIALS = 10
GREY_MODES = ("L", "LA", "1")


def open_image(stored: bytes, channels: int) -> Image.Image:
    """Opens an encoded image, not decoded yet, that `to_array` can make `channels` channels of.

    Raises:
      ValueError: a colour image where a grey one is expected, or more than 8 bits a pixel.
      OSError: no image.
    """
    image = Image.open(io.BytesIO(stored))
    if image.mode in ("F", "I") or ";16" in image.mode:
        raise ValueError(f"its pixels have more than 8 bits (mode {image.mode}); convert it to 8 bits first.")
    if channels == 1 and image.mode not in GREY_MODES:
        raise ValueError(f"it is in colour (mode {image.mode}); expected a grey one. Set config.dataset.channels=3.")
    return image


def to_array(image: Image.Image, channels: int) -> np.ndarray:
    """uint8 (height, width, channels). A grey image becomes a colour one by repeating it, CMYK and palettes RGB."""
    array = np.asarray(_convert(image, channels))
    return array[..., None] if channels == 1 else array


def _convert(image: Image.Image, channels: int) -> Image.Image:
    """In the mode of so many channels, which Pillow can interpolate."""
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def decode(stored: bytes, channels: int) -> np.ndarray:
    """The whole image, uint8 (height, width, channels)."""
    return to_array(open_image(stored, channels), channels)


@dataclasses.dataclass(frozen=True)
class Crop:
    """Cuts photographs of any size to squares, as ImageNet networks are trained and tested.

    Attributes:
      size: pixels of the square.
      train: "random_resized" (a random part of the area, stretched by up to 4/3, as in torchvision) or "random" (a
        random square out of the resized image, as in Caffe).
      resize: what an image is resized to in evaluation, before the central square is cut out, and for "random".
      keep_aspect: `resize` is the shorter side; else both sides, as Caffe's ImageNet LMDBs were made.
      smallest_area: share of the image that a random resized crop covers at least.
    """

    size: int
    train: str
    resize: int
    keep_aspect: bool
    smallest_area: float

    def for_training(self, stored: bytes, channels: int, rng: np.random.Generator) -> np.ndarray:
        """A random crop, uint8 (size, size, channels)."""
        image = open_image(stored, channels)
        if self.train == "random":
            return self._cut(image, channels, lambda margin: int(rng.integers(margin + 1)))
        full_width, full_height = image.size
        left, top, width, height = self.random_box(full_width, full_height, rng)
        # A JPEG decodes faster at 1/2, 1/4 or 1/8 of its size, which is enough where the crop stays larger than the
        # square. What is left to reduce is less than 2, so that bilinear interpolation skips no pixel.
        smallest = math.ceil(full_width * self.size / width), math.ceil(full_height * self.size / height)
        pixels = _decode_at_least(image, stored, channels, smallest)
        across, down = pixels.shape[1] / full_width, pixels.shape[0] / full_height
        rows = slice(round(top * down), max(round((top + height) * down), round(top * down) + 1))
        columns = slice(round(left * across), max(round((left + width) * across), round(left * across) + 1))
        cut = cv2.resize(pixels[rows, columns], (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        return cut[..., None] if channels == 1 else cut

    def for_evaluation(self, stored: bytes, channels: int) -> np.ndarray:
        """The central crop of the resized image, uint8 (size, size, channels)."""
        return self._cut(open_image(stored, channels), channels, lambda margin: round(margin / 2))

    def _cut(self, image: Image.Image, channels: int, offset) -> np.ndarray:
        width, height = self.resized(*image.size)
        image = _convert(image, channels).resize((width, height), Image.Resampling.BILINEAR)
        left, top = offset(width - self.size), offset(height - self.size)
        return to_array(image.crop((left, top, left + self.size, top + self.size)), channels)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing, before the square is cut out."""
        if not self.keep_aspect:
            return self.resize, self.resize
        short = min(width, height)
        return int(self.resize * width / short), int(self.resize * height / short)

    def random_box(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Left, top, width and height of a random part, by the rule of torchvision's RandomResizedCrop."""
        area = width * height
        for _ in range(CROP_TRIALS):
            target = area * rng.uniform(self.smallest_area, 1)
            ratio = math.exp(rng.uniform(*map(math.log, ASPECT_RATIOS)))
            w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
        # No luck: the largest central part of a legal shape.
        low, high = ASPECT_RATIOS
        w, h = min(width, round(height * high)), min(height, round(width / low))
        return (width - w) // 2, (height - h) // 2, w, h


def _decode_at_least(image: Image.Image, stored: bytes, channels: int, smallest: tuple[int, int]) -> np.ndarray:
    """All of the image, reduced while decoding to no less than this width and height."""
    if image.format == "JPEG" and image.mode in ("L", "RGB"):
        try:
            return simplejpeg.decode_jpeg(
                stored,
                "GRAY" if channels == 1 else "RGB",
                fastupsample=True,
                min_width=smallest[0],
                min_height=smallest[1],
                min_factor=2,
            )
        except ValueError:
            pass  # it is strict; Pillow bears with harmless faults and names the others
    return to_array(image, channels)
