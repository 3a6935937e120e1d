"""Reads published weights, with one importer per format, and this project's own single-file formats.

Networks have names: those in the folder `networks`, which come with this package and have a model card each, and
published ones, which are downloaded.
"""

import pathlib
from collections.abc import Callable

from squeeze_jax.errors import WeightError
from squeeze_jax.pretrained import caffe, deep_compression, downloads, onnx_zoo, own_file, pth, sqz, torchvision
from squeeze_jax.pretrained.weights import Weights


def _read_safetensors(path: pathlib.Path) -> Weights:
    return own_file.read(path) if own_file.is_own(path) else torchvision.read_safetensors(path)


# By suffix; a file is what its first bytes say, see `_reader`, and only those that say nothing need the suffix.
READERS = {
    ".net": deep_compression.read,
    ".caffemodel": caffe.read,
    ".safetensors": _read_safetensors,
    ".pth": torchvision.read_pth,
    ".onnx": onnx_zoo.read,
    sqz.SUFFIX: sqz.read,
}
OF_TORCH = (".pt", ".bin", ".ckpt", ".tar", ".pth")  # suffixes that people give to the files of torch.save
# What other files begin with, which people take for weights.
OTHERS = {
    b"\x89HDF\r\n": "an HDF5 file, such as Keras writes; only Caffe, PyTorch, safetensors and ONNX are read",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; run `git lfs pull`",
    b"<!doctype": "a web page, not weights; download the file itself",
    b"<html": "a web page, not weights; download the file itself",
}
TAR_MAGIC = slice(257, 262), b"ustar"

NETWORKS = pathlib.Path(__file__).with_name("networks")


def names() -> tuple[str, ...]:
    """Returns the names of networks: those in the folder `networks`, and those that `downloads` fetches."""
    return (*(path.stem for path in sorted(NETWORKS.glob(f"*{sqz.SUFFIX}"))), *downloads.FILES)


def find(name: str) -> pathlib.Path:
    """Returns the file of a network, and downloads it if it is not on this machine yet.

    Args:
      name: one of `names()`.

    Raises:
      WeightError: the file cannot be downloaded, or is damaged.
    """
    return downloads.fetch(name) if name in downloads.FILES else NETWORKS / f"{name}{sqz.SUFFIX}"


def read(path: str | pathlib.Path) -> Weights:
    """Reads a weight file of any format here. `squeeze_jax.load` turns the result into a network.

    Args:
      path: a `.net` file of Deep Compression, a `.caffemodel`, a torchvision state dict (`.safetensors`, or a file of
        torch.save with any suffix), an `.onnx` file, a `.safetensors` file written by `save`, a compressed `.sqz` file,
        or, if no such file exists, a name, such as "digits" or "torchvision/resnet18" (`names`).

    Raises:
      WeightError: the file does not exist, its suffix is unknown, it is damaged or of another network, or it cannot be
        downloaded.
    """
    path = pathlib.Path(path)
    if not path.exists() and path.as_posix() in names():
        path = find(path.as_posix())
    if not path.is_file():
        raise WeightError(
            f"{path} is not a file; expected a weight file ({', '.join(READERS)}), the workdir of a run, or a name "
            f"({', '.join(names())})."
        )
    return _reader(path)(path)


def _reader(path: pathlib.Path) -> Callable[[pathlib.Path], Weights]:
    """Returns the function that reads a file, by its first bytes or, if they say nothing, by its suffix."""
    with path.open("rb") as file:
        first = file.read(512)
    suffix = path.suffix.lower()
    if first.startswith(sqz.MAGIC):
        return sqz.read
    if first.startswith((pth.ZIP_MAGIC, pth.LEGACY_MAGIC)) and suffix != ".npz":
        return torchvision.read_pth
    if first[8:9] == b"{" and int.from_bytes(first[:8], "little") <= path.stat().st_size:
        return _read_safetensors
    for magic, what in OTHERS.items():
        if first.lower().startswith(magic.lower()):
            raise WeightError(f"{path} is {what}.")
    place, magic = TAR_MAGIC
    if first[place] == magic:
        raise WeightError(f"{path} is a tar archive; unpack it, or load and save it again with torch.save.")
    if suffix not in READERS and suffix not in OF_TORCH:
        raise WeightError(f"{path} ends in {path.suffix or 'nothing'}; expected one of {', '.join(READERS)}.")
    return READERS[".pth" if suffix in OF_TORCH else suffix]


save = own_file.save
