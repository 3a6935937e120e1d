"""Reads published weights, with one importer per format, and this project's own single-file format."""

import pathlib

from squeeze_jax.errors import WeightError
from squeeze_jax.pretrained import caffe, deep_compression, downloads, onnx_zoo, own_file, sqz, torchvision
from squeeze_jax.pretrained.weights import Weights


def _read_safetensors(path: pathlib.Path) -> Weights:
    return own_file.read(path) if own_file.is_own(path) else torchvision.read(path)


READERS = {
    ".net": deep_compression.read,
    ".caffemodel": caffe.read,
    ".safetensors": _read_safetensors,
    ".pth": torchvision.read,
    ".onnx": onnx_zoo.read,
    sqz.SUFFIX: sqz.read,
}


def read(path: str | pathlib.Path) -> Weights:
    """Reads a weight file; the suffix determines the format. `squeeze_jax.load` turns the result into a network.

    Args:
      path: a `.net` file of Deep Compression, a `.caffemodel`, a torchvision state dict (`.pth`, `.safetensors`), an
        `.onnx` file, a `.safetensors` file written by `save`, or a compressed `.sqz` file; or, if there is no such
        file, the name of published weights, such as "torchvision/resnet18" (`downloads.FILES`).

    Raises:
      WeightError: the file does not exist, its suffix is unknown, it is damaged or of another network, or it cannot be
        downloaded.
    """
    path = pathlib.Path(path)
    if not path.exists() and path.as_posix() in downloads.FILES:
        path = downloads.fetch(path.as_posix())
    if not path.is_file():
        raise WeightError(
            f"{path} is not a file; expected a weight file ({', '.join(READERS)}), the workdir of a run, or one of "
            f"{', '.join(downloads.FILES)}."
        )
    reader = READERS.get(path.suffix)
    if reader is None:
        raise WeightError(f"{path} ends in {path.suffix or 'nothing'}; expected one of {', '.join(READERS)}.")
    return reader(path)


save = own_file.save
