"""SqueezeNet 1.0 with Deep Compression (Han et al. 2016, arXiv 1510.00149): `.net` files in two layouts.

The released layout (songhan/SqueezeNet-Deep-Compression), in little endian, starts with the number of stored entries of
each of the 26 convolutions, uint32. For each convolution follow a codebook of 256 float32 values, the biases, float32,
an 8-bit code per entry and a 4-bit gap per entry, low half first. An entry is gap + 1 positions after the previous one,
in (out, in, height, width) order. Code 0 is the weight 0; it bridges gaps longer than 15. The layout has no checksum.

The compact layout corresponds to the 0.47 MB file of the paper, which was never released. It starts with "net" and the
number of bits per code, 2 to 7; no number of entries has the same bytes. The codebook has one entry per code. The codes
are bit-packed, most significant bit first. The gaps are Huffman-coded: the length of each gap's code, 4 bits, low half
first, followed by the codes. Each part starts at a byte boundary.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from squeeze_jax import config as config_lib
from squeeze_jax import models
from squeeze_jax.compression import huffman
from squeeze_jax.errors import WeightError
from squeeze_jax.experiment import make_model, make_task
from squeeze_jax.models.squeezenet import FIRST_FIRE, STEMS
from squeeze_jax.pretrained.caffe import caffe_config
from squeeze_jax.pretrained.imagenet import imagenet_class_names
from squeeze_jax.pretrained.weights import (
    Leaves,
    Weights,
    make_weights,
    read_bytes,
    write_verified,
)

SUFFIX = ".net"
MODEL = "squeezenet_v1_0"
MAGIC = b"net"
RELEASED_BITS = 8
COMPACT_BITS = range(2, RELEASED_BITS)
GAPS = 16
# Options that must equal those of the released network, because the file does not contain them.
PREPROCESSING = ("dataset.mean", "dataset.std", "dataset.image_size", "crop.size", "crop.resize", "crop.keep_aspect")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution as stored in a `.net` file.

    Attributes:
      codebook: the values of the codes, float32 (2 ** bits,); the first one is 0.
      bias: the biases, float32 (out,).
      codes: the codes of the weights, uint8 (out, in, height, width); 0 for weights that are not stored.
    """

    codebook: np.ndarray
    bias: np.ndarray
    codes: np.ndarray


def read(path: pathlib.Path) -> Weights:
    """Reads a `.net` file.

    Args:
      path: the file, in the released or in the compact layout.

    Raises:
      WeightError: the length of the file does not match its counts, an entry lies outside its layer, or code 0 is not
        the weight 0.
    """
    return make_weights(path, caffe_config(MODEL), decode(path), imagenet_class_names())


def save(network: Any, path: str | pathlib.Path, bits: int = RELEASED_BITS) -> None:
    """Writes a network to a `.net` file without loss.

    The file is read back and compared with the network before it replaces an existing one.

    Args:
      network: the network, as returned by `squeeze_jax.load`. It must be SqueezeNet 1.0 with the preprocessing and the
        classes of the released file.
      path: the file, ending in ".net".
      bits: the number of bits per code; 8 for the released layout, 2 to 7 for the compact one.

    Raises:
      WeightError: the network has another architecture, preprocessing or classes, a kernel has more than 2 ** bits - 1
        distinct values besides 0, or the file cannot be written.
    """
    write_verified(pathlib.Path(path), serialize(network, bits), read, network)


def serialize(network: Any, bits: int = RELEASED_BITS) -> bytes:
    """Returns the contents of the file that `save` writes.

    Args:
      network: the network, see `save`.
      bits: the number of bits per code, 2 to 8.

    Raises:
      WeightError: the network cannot be stored, see `save`.
    """
    config, class_names = caffe_config(MODEL), imagenet_class_names()
    is_other = network.class_names != class_names or network.model != make_model(config, make_task(config, class_names))
    differing = [
        f"config.{key}"
        for key in PREPROCESSING
        if config_lib.lookup(network.config, key) != config_lib.lookup(config, key)
    ]
    if is_other or differing:
        raise WeightError(
            f"a {SUFFIX} file can only hold SqueezeNet 1.0 as trained with Caffe; this network differs "
            f"in {', '.join(differing) or 'its layers or classes'}. Write a .sqz file instead."
        )
    layers = {}
    for name in _kernel_shapes():
        layer = _below(network.variables["params"], name)
        kernel = np.asarray(layer["kernel"])
        kernel = (kernel[:, :, ::-1] if name == "conv1" else kernel).transpose(3, 2, 0, 1)
        values, places = np.unique(kernel[kernel != 0], return_inverse=True)
        if len(values) >= 1 << bits:
            raise WeightError(
                f"{name} has {len(values)} different weights; {bits} bits hold {(1 << bits) - 1} besides 0. Apply "
                f"weight sharing first: `python -m squeeze_jax.compression --bits {bits}`."
            )
        codebook, codes = np.zeros(1 << bits, np.float32), np.zeros(kernel.shape, np.uint8)
        codebook[1 : len(values) + 1] = values
        codes[kernel != 0] = places + 1
        layers[name] = Layer(codebook, np.asarray(layer["bias"]), codes)
    return encode(layers)


def encode(layers: dict[str, Layer]) -> bytes:
    """Returns the contents of a `.net` file, in the compact layout if the codebooks have fewer than 256 entries.

    Args:
      layers: the layers by name, in the order of the network.
    """
    bits = len(next(iter(layers.values())).codebook).bit_length() - 1
    is_compact = bits < RELEASED_BITS
    counts, parts = [], []
    for layer in layers.values():
        codes, gaps = _entries(layer.codes.ravel())
        counts.append(len(codes))
        parts += [layer.codebook.astype("<f4").tobytes(), layer.bias.astype("<f4").tobytes()]
        if is_compact:
            lengths = huffman.code_lengths(np.bincount(gaps, minlength=GAPS))
            parts += [_pack_bits(codes, bits), _pack_nibbles(lengths), huffman.encode(gaps, lengths)]
        else:
            parts += [codes.tobytes(), _pack_nibbles(gaps)]
    magic = MAGIC + bytes([bits]) if is_compact else b""
    return b"".join([magic, np.array(counts, "<u4").tobytes(), *parts])


def decode(path: pathlib.Path) -> Leaves:
    """Reads the kernels and biases of a `.net` file.

    Args:
      path: the file.

    Returns:
      The arrays by name, float32; kernels have the shape (height, width, in, out).

    Raises:
      WeightError: the file is damaged, see `read`.
    """
    leaves = {}
    for name, layer in parse(path).items():
        kernel = layer.codebook[layer.codes].transpose(2, 3, 1, 0)
        # Caffe uses BGR images.
        leaves[f"params/{name}/kernel"] = kernel[:, :, ::-1] if name == "conv1" else kernel
        leaves[f"params/{name}/bias"] = layer.bias
    return leaves


def parse(path: pathlib.Path) -> dict[str, Layer]:
    """Parses a `.net` file.

    Args:
      path: the file.

    Returns:
      The layers by name, in the order of the file.

    Raises:
      WeightError: the file is damaged, see `read`.
    """
    data = read_bytes(path)
    is_compact = data[: len(MAGIC)] == MAGIC and len(data) > len(MAGIC)
    bits = data[len(MAGIC)] if is_compact else RELEASED_BITS
    if is_compact and bits not in COMPACT_BITS:
        raise WeightError(f"{path} has codes of {bits} bits; expected 2 to 7. Create or download it again.")
    shapes = _kernel_shapes()
    start = len(MAGIC) + 1 if is_compact else 0
    header = start + 4 * len(shapes)
    if len(data) < header:
        raise WeightError(f"{path} has {len(data)} bytes; the counts of its {len(shapes)} layers alone need {header}.")
    counts = np.frombuffer(data, "<u4", len(shapes), start).tolist()
    for (name, shape), count in zip(shapes.items(), counts, strict=True):
        if not 0 < count <= np.prod(shape):
            raise WeightError(f"{path} stores {count} entries of {name}; expected 1 to {np.prod(shape)}.")
    parts = _Parts(path, data, header)
    layers = {}
    for (name, shape), count in zip(shapes.items(), counts, strict=True):
        codebook, bias = parts.take("<f4", 1 << bits), parts.take("<f4", shape[0])
        if not (np.isfinite(codebook).all() and np.isfinite(bias).all()):
            raise WeightError(f"{path} contains values in {name} that are not finite. Download it again.")
        if codebook[0] != 0:  # code 0 stands for the weights that are not stored
            raise WeightError(f"{path} has the value {codebook[0]} for code 0 of {name}; expected 0.")
        codes = _unpack_bits(parts.take("u1", -(-count * bits // 8)), bits, count)
        gaps = parts.huffman(count) if is_compact else _unpack_nibbles(parts.take("u1", (count + 1) // 2), count)
        positions = np.cumsum(gaps.astype(np.int64) + 1) - 1
        if positions[-1] >= np.prod(shape):
            raise WeightError(
                f"{path} has an entry of {name} at position {positions[-1]}, but {name} has only "
                f"{np.prod(shape)} weights. Download it again."
            )
        flat = np.zeros(np.prod(shape), np.uint8)
        flat[positions] = codes
        layers[name] = Layer(codebook.astype(np.float32), bias.astype(np.float32), flat.reshape(shape))
    parts.end()
    return layers


class _Parts:
    """Reads the parts of the file and checks all counts against the remaining bytes."""

    def __init__(self, path: pathlib.Path, data: bytes, offset: int):
        self._path, self._data, self._offset = path, data, offset

    def take(self, dtype: str, count: int) -> np.ndarray:
        if count * np.dtype(dtype).itemsize > len(self._data) - self._offset:
            raise WeightError(f"{self._path} has {len(self._data)} bytes; its counts require more. Download it again.")
        values = np.frombuffer(self._data, dtype, count, self._offset)
        self._offset += values.nbytes
        return values

    def huffman(self, count: int) -> np.ndarray:
        lengths = _unpack_nibbles(self.take("u1", GAPS // 2), GAPS).astype(np.int64)
        try:
            gaps, length = huffman.decode(self._data[self._offset :], lengths, count)
        except WeightError as error:
            raise WeightError(f"{self._path} is damaged: {error}") from error
        self._offset += length
        return gaps

    def end(self) -> None:
        if self._offset != len(self._data):
            raise WeightError(
                f"{self._path} has {len(self._data)} bytes; its counts require {self._offset}. Download it again."
            )


def _entries(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the codes and gaps of the stored entries, uint8: the non-zero codes, and zeros that bridge long gaps."""
    positions = np.flatnonzero(flat)
    if not len(positions):
        return np.zeros(1, np.uint8), np.zeros(1, np.uint8)  # a layer needs at least one entry
    carries, gap = np.divmod(np.diff(positions, prepend=-1) - 1, GAPS)
    last = np.cumsum(carries + 1) - 1
    codes, gaps = np.zeros(last[-1] + 1, np.uint8), np.full(last[-1] + 1, GAPS - 1, np.uint8)
    codes[last], gaps[last] = flat[positions], gap
    return codes, gaps


def _pack_nibbles(values: np.ndarray) -> bytes:
    pairs = np.append(values, np.zeros(len(values) % 2, values.dtype)).astype(np.uint8).reshape(-1, 2)
    return (pairs[:, 0] | pairs[:, 1] << 4).tobytes()


def _unpack_nibbles(packed: np.ndarray, count: int) -> np.ndarray:
    return np.stack([packed & 15, packed >> 4], axis=1).ravel()[:count]


def _pack_bits(values: np.ndarray, bits: int) -> bytes:
    return np.packbits(values[:, None] >> np.arange(bits - 1, -1, -1, dtype=np.uint8) & 1).tobytes()


def _unpack_bits(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    if bits == 8:
        return packed
    each = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    return np.packbits(each, axis=1)[:, 0] >> np.uint8(8 - bits)


def _below(tree: dict[str, Any], name: str) -> dict[str, Any]:
    for part in name.split("/"):
        tree = tree[part]
    return tree


def _kernel_shapes() -> dict[str, tuple[int, int, int, int]]:
    """Returns the kernel shape (out, in, height, width) of each convolution, in the order of the network."""
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
