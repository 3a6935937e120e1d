"""Reads the paper's Deep-Compressed SqueezeNet 1.0: `.net` files of songhan/SqueezeNet-Deep-Compression.

The format is little endian. It begins with the number of stored entries of each of the 26 convolutions, uint32. Then
follow, for each convolution, a codebook of 256 float32, the biases, float32, an 8-bit code per entry, and a 4-bit gap
per entry, low half first. An entry is gap + 1 places after the previous entry, in (out, in, height, width) order. Code
0 is the weight 0; it is also used as filler where a gap is longer than 15. There is no checksum.
"""

import pathlib

import numpy as np

from squeeze_jax import models
from squeeze_jax.errors import WeightError
from squeeze_jax.models.squeezenet import FIRST_FIRE, STEMS
from squeeze_jax.pretrained.caffe import caffe_config
from squeeze_jax.pretrained.weights import Leaves, Weights, imagenet_class_names, make_weights, read_bytes

MODEL = "squeezenet_v1_0"
CODEBOOK = 256


def read(path: pathlib.Path) -> Weights:
    """Reads a `.net` file.

    Raises:
      WeightError: the length of the file does not match its counts, an entry is outside its layer, or a value is not
        finite.
    """
    return make_weights(path, caffe_config(MODEL), decode(path), imagenet_class_names())


def decode(path: pathlib.Path) -> Leaves:
    """Returns the kernels (height, width, in, out) and biases, float32; errors are those of `read`."""
    data = read_bytes(path)
    shapes = _kernel_shapes()
    header = 4 * len(shapes)
    if len(data) < header:
        raise WeightError(
            f"{path} has {len(data)} bytes, but the counts of its {len(shapes)} layers alone need {header}. "
            f"Download it again."
        )
    counts = np.frombuffer(data, "<u4", len(shapes)).astype(np.int64)
    for (name, shape), count in zip(shapes.items(), counts, strict=True):
        if not 0 < count <= np.prod(shape):
            raise WeightError(f"{path} stores {count} entries of {name}; expected 1 to {np.prod(shape)}.")
    expected = header + sum(
        4 * (CODEBOOK + shape[0]) + int(count) + _gap_bytes(int(count))
        for shape, count in zip(shapes.values(), counts, strict=True)
    )
    if len(data) != expected:
        raise WeightError(f"{path} has {len(data)} bytes; its counts require {expected}. Download it again.")
    leaves, offset = {}, header

    def take(dtype: str, count: int) -> np.ndarray:
        nonlocal offset
        values = np.frombuffer(data, dtype, count, offset)
        offset += values.nbytes
        return values

    for (name, shape), count in zip(shapes.items(), counts.tolist(), strict=True):
        codebook, bias, codes = take("<f4", CODEBOOK), take("<f4", shape[0]), take("u1", count)
        if not (np.isfinite(codebook).all() and np.isfinite(bias).all()):
            raise WeightError(f"{path} contains values in {name} that are not finite. Download it again.")
        packed = take("u1", _gap_bytes(count))
        gaps = np.stack([packed & 15, packed >> 4], axis=1).ravel()[:count]
        positions = np.cumsum(gaps.astype(np.int64) + 1) - 1
        if positions[-1] >= np.prod(shape):
            raise WeightError(
                f"{path} has an entry of {name} at position {positions[-1]}, but {name} has only {np.prod(shape)} "
                f"weights. Download it again."
            )
        kernel = np.full(np.prod(shape), codebook[0], np.float32)
        kernel[positions] = codebook[codes]
        leaves[f"params/{name}/kernel"] = kernel.reshape(shape).transpose(2, 3, 1, 0)
        leaves[f"params/{name}/bias"] = bias.astype(np.float32)
    # Caffe's channel order is BGR.
    leaves["params/conv1/kernel"] = leaves["params/conv1/kernel"][:, :, ::-1]
    return leaves


def _gap_bytes(count: int) -> int:
    return (count + 1) // 2


def _kernel_shapes() -> dict[str, tuple[int, int, int, int]]:
    """Returns (out, in, height, width) of each convolution, in the order of the network."""
    model = models.create(MODEL)
    size, _ = STEMS[model.stem]
    shapes = {"conv1": (model.stem_filters, 3, size, size)}
    channels = model.stem_filters
    for layer, widths in enumerate(model.fire_widths(), start=FIRST_FIRE):
        shapes[f"fire{layer}/squeeze1x1"] = (widths.squeeze, channels, 1, 1)
        shapes[f"fire{layer}/expand1x1"] = (widths.expand1x1, widths.squeeze, 1, 1)
        shapes[f"fire{layer}/expand3x3"] = (widths.expand3x3, widths.squeeze, 3, 3)
        channels = widths.expand1x1 + widths.expand3x3
    return shapes | {model.head: (model.num_classes, channels, 1, 1)}
