"""Decoding on the host: encoded bytes to uint8 images, and photographs of any size to crops of one size.

Images for evaluation are decoded with Pillow, because published accuracies were measured with its pixels. Random crops
for training use a faster path: libjpeg-turbo's fast settings (simplejpeg) and OpenCV's bilinear resize.

An image may come from anybody. It is `Undecodable` if it is damaged or no image at all, whatever Pillow raises, and
`Unsuitable` if it is intact but cannot be used as the config asks for.
"""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import stat
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image

cv2.setNumThreads(1)  # images are already decoded in parallel

# Pillow chooses a reader by the contents, whatever the name, and some of its readers start other programs (EPS).
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
LARGEST_IMAGE = 100_000_000  # pixels of a stored image, and of an image that is resized as a whole before a crop
LARGEST_FILE = 2**30  # bytes of an encoded image
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # LARGEST_IMAGE is checked instead

ASPECT_RATIOS = (3 / 4, 4 / 3)  # of a random resized crop (Szegedy et al. 2015, "Going deeper with convolutions")
CROP_TRIALS = 10
ORIENTATION_TAG = 0x0112  # of EXIF
# How to read the rows and columns of pixels, after exchanging both where the camera lay on its side.
TURNS = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
SIDEWAYS = (5, 6, 7, 8)
GRAY_MODES = ("L", "LA", "1")


class Undecodable(ValueError):
    """Bytes that are not an intact image of one of the FORMATS."""


class Unsuitable(ValueError):
    """An image that is too large, or has other pixels than a network takes."""


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Converts whatever Pillow raises for untrusted bytes; for damaged ones that may be any exception."""
    try:
        yield
    except Image.DecompressionBombError:
        raise Unsuitable(f"it has more than {LARGEST_IMAGE:,} pixels; make it smaller first.") from None
    except Image.UnidentifiedImageError as error:
        raise Undecodable(
            f"it is not an image of a format that is read; expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Undecodable(f"it is damaged: {reason}") from error


def read_file(path: str | os.PathLike) -> bytes:
    """Returns the bytes of the file of an image.

    Raises:
      OSError: the file cannot be read.
      Undecodable: it is a folder, a pipe or a device, which might never end.
      Unsuitable: it is larger than LARGEST_FILE.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise Undecodable("it is not a file.")
    if status.st_size > LARGEST_FILE:
        raise Unsuitable(f"it has {status.st_size:,} bytes; expected at most {LARGEST_FILE:,}.")
    return pathlib.Path(path).read_bytes()


def open_image(stored: bytes, channels: int) -> Image.Image:
    """Opens an encoded image without decoding it, and checks that `to_array` can convert it.

    Args:
      stored: the encoded bytes.
      channels: 1 or 3, the channels that the image will be converted to.

    Raises:
      Undecodable: the bytes are not an image of one of the FORMATS.
      Unsuitable: the image is in color but `channels` is 1, it has more than 8 bits per channel, or more than
        LARGEST_IMAGE pixels.
    """
    if not stored:
        raise Undecodable("it is empty.")
    with _decoding():
        image = Image.open(io.BytesIO(stored), formats=FORMATS)
    if image.width * image.height > LARGEST_IMAGE:
        size = f"{image.width:,} x {image.height:,} pixels"
        raise Unsuitable(f"it has {size}; expected at most {LARGEST_IMAGE:,} pixels. Make it smaller first.")
    if image.mode in ("F", "I") or ";16" in image.mode:
        raise Unsuitable(f"its pixels have more than 8 bits (mode {image.mode}); convert it to 8 bits first.")
    if channels == 1 and image.mode not in GRAY_MODES:
        raise Unsuitable(f"it is in color (mode {image.mode}); expected a gray image. Set config.dataset.channels=3.")
    return image


def orientation(image: Image.Image, exif: bool = True) -> int:
    """Returns the EXIF orientation of an opened image, 1 (upright) to 8; 1 if it has none.

    Pillow turns TIFF itself.

    Args:
      image: an opened image.
      exif: False takes every image as upright.
    """
    if not exif or image.format == "TIFF":
        return 1
    try:
        found = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # of damaged EXIF data, which say nothing of the pixels
        return 1
    return found if found in TURNS else 1


def oriented_size(image: Image.Image, exif: bool = True) -> tuple[int, int]:
    """Returns (width, height) of an opened image after turning it upright; arguments are those of `orientation`."""
    return image.size[::-1] if orientation(image, exif) in SIDEWAYS else image.size


def _upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Turns pixels (height, width, channels) of an EXIF orientation upright."""
    if turn in SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    rows, columns = TURNS[turn]
    return pixels[::rows, ::columns]


def to_array(image: Image.Image, channels: int) -> np.ndarray:
    """Decodes to uint8 (height, width, channels); with 3 channels, gray, palette and CMYK images become RGB.

    Raises:
      Undecodable: the image is damaged.
    """
    array = np.asarray(_convert(image, channels))
    return array[..., None] if channels == 1 else array


def _convert(image: Image.Image, channels: int) -> Image.Image:
    """Decodes and converts to the mode with this number of channels, which Pillow can interpolate."""
    mode = "L" if channels == 1 else "RGB"
    with _decoding():
        image.load()
        return image if image.mode == mode else image.convert(mode)


def decode(stored: bytes, channels: int, exif: bool = True) -> np.ndarray:
    """Decodes the whole image to uint8 (height, width, channels).

    Args:
      stored: the encoded bytes.
      channels: 1 or 3.
      exif: turn the image as its EXIF data say.

    Raises:
      Undecodable, Unsuitable: see `open_image`.
    """
    image = open_image(stored, channels)
    return np.ascontiguousarray(_upright(to_array(image, channels), orientation(image, exif)))


class Box(NamedTuple):
    """The part of a stored image that a crop shows, in pixels of the stored image, after turning it upright.

    Targets with positions, such as bounding boxes and segmentation maps, must be cropped alike.
    """

    left: float
    top: float
    width: float
    height: float


@dataclasses.dataclass(frozen=True)
class Crop:
    """Crops photographs of any size to one size, as ImageNet networks are trained and tested.

    Attributes:
      size: height and width of the crop in pixels.
      train: "random_resized" (a random part of the image, with an aspect ratio of 3/4 to 4/3, as in torchvision) or
        "random" (a random crop of that size from the resized image, as in Caffe).
      resize: the size that an image is resized to before the central crop of evaluation, and before "random".
        One number, or (height, width).
      keep_aspect: if True, a `resize` of one number is the shorter side; else both sides, as in Caffe's ImageNet LMDBs.
      smallest_area: the smallest fraction of the image area covered by a random resized crop.
      interpolation: how Pillow resizes an image before the central crop, and before "random": "bilinear" or "bicubic".
      exif: turn an image as its EXIF data say, before anything else.
    """

    size: tuple[int, int]
    train: str
    resize: int | tuple[int, int]
    keep_aspect: bool
    smallest_area: float
    interpolation: str = "bilinear"
    exif: bool = True

    def for_training(self, stored: bytes, channels: int, rng: np.random.Generator) -> tuple[np.ndarray, Box]:
        """Returns a random crop, uint8 (height, width, channels), and the part of the stored image that it shows.

        Args:
          stored: the encoded bytes.
          channels: 1 or 3.
          rng: the random generator of this crop.

        Raises:
          Undecodable, Unsuitable: see `open_image`.
        """
        image = open_image(stored, channels)
        if self.train == "random":
            return self._cut(image, channels, lambda margin: int(rng.integers(margin + 1)))
        turn, (full_width, full_height) = orientation(image, self.exif), oriented_size(image, self.exif)
        box = left, top, width, height = self.random_box(full_width, full_height, rng)
        # A JPEG decodes faster at 1/2, 1/4 or 1/8 of its size, which is enough if the crop is still larger than the
        # output. The remaining reduction is less than 2, so bilinear interpolation skips no pixel.
        out_height, out_width = self.size
        smallest = math.ceil(full_width * out_width / width), math.ceil(full_height * out_height / height)
        smallest = smallest[::-1] if turn in SIDEWAYS else smallest
        pixels = _upright(_decode_at_least(image, stored, channels, smallest), turn)
        across, down = pixels.shape[1] / full_width, pixels.shape[0] / full_height
        rows = slice(round(top * down), max(round((top + height) * down), round(top * down) + 1))
        columns = slice(round(left * across), max(round((left + width) * across), round(left * across) + 1))
        cut = cv2.resize(
            np.ascontiguousarray(pixels[rows, columns]), (out_width, out_height), interpolation=cv2.INTER_LINEAR
        )
        return cut[..., None] if channels == 1 else cut, box

    def for_evaluation(self, stored: bytes, channels: int) -> tuple[np.ndarray, Box]:
        """Returns the central crop of the resized image, like `for_training`."""
        return self._cut(open_image(stored, channels), channels, lambda margin: round(margin / 2))

    def _cut(self, image: Image.Image, channels: int, offset: Callable[[int], int]) -> tuple[np.ndarray, Box]:
        turn = orientation(image, self.exif)
        image = _convert(image, channels)
        if turn != 1:
            image = Image.fromarray(_upright(np.asarray(image), turn))
        width, height = self.resized(*image.size)
        across, down = image.width / width, image.height / height
        out_height, out_width = self.size
        left, top = offset(width - out_width), offset(height - out_height)
        box = Box(left * across, top * down, out_width * across, out_height * down)
        filter_ = Image.Resampling[self.interpolation.upper()]
        if width * height > LARGEST_IMAGE:  # of a thin image: only what the crop shows; pixels may differ by rounding
            right, bottom = min(box.left + box.width, image.width), min(box.top + box.height, image.height)
            image = image.resize((out_width, out_height), filter_, (box.left, box.top, right, bottom))
        else:
            image = image.resize((width, height), filter_)
            image = image.crop((left, top, left + out_width, top + out_height))
        return to_array(image, channels), box

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Returns width and height after resizing, before the crop."""
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        if not self.keep_aspect:
            return self.resize, self.resize
        short = min(width, height)
        return int(self.resize * width / short), int(self.resize * height / short)

    def random_box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """Draws a random part of an image, in whole pixels, by the algorithm of torchvision's RandomResizedCrop."""
        area = width * height
        for _ in range(CROP_TRIALS):
            target = area * rng.uniform(self.smallest_area, 1)
            ratio = math.exp(rng.uniform(*map(math.log, ASPECT_RATIOS)))
            w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if 0 < w <= width and 0 < h <= height:
                return Box(int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h)
        # No trial fitted: use the largest central part with a valid aspect ratio.
        low, high = ASPECT_RATIOS
        w, h = min(width, round(height * high)), min(height, round(width / low))
        return Box((width - w) // 2, (height - h) // 2, w, h)


def _decode_at_least(image: Image.Image, stored: bytes, channels: int, smallest: tuple[int, int]) -> np.ndarray:
    """Decodes the whole image, possibly at a reduced size, but not below this (width, height)."""
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
            pass  # simplejpeg is strict; Pillow tolerates harmless errors and reports the others
    return to_array(image, channels)
