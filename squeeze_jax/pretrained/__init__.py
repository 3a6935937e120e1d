"""Published weights, one importer a format, and this project's own single file."""

import pathlib

from squeeze_jax.pretrained import caffe, deep_compression, onnx_zoo, own_file, torchvision
from squeeze_jax.pretrained.weights import WeightError
from squeeze_jax.run import Run


def _read_safetensors(path: pathlib.Path) -> Run:
    return own_file.read(path) if own_file.is_own(path) else torchvision.read(path)


READERS = {
    ".net": deep_compression.read,
    ".caffemodel": caffe.read,
    ".safetensors": _read_safetensors,
    ".pth": torchvision.read,
    ".onnx": onnx_zoo.read,
}


def read(path: str | pathlib.Path) -> Run:
    """Opens a weight file, by its suffix: a network with its preprocessing, ready for `predict`.

    Args:
      path: a `.net` file of Deep Compression, a `.caffemodel`, a state dict of torchvision (`.pth`, `.safetensors`), an
        `.onnx` file, or a `.safetensors` file that `save` wrote.

    Raises:
      WeightError: no such file, an unknown suffix, or a file that is damaged or of another network.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise WeightError(f"{path} is no file; expected a weight file ({', '.join(READERS)}) or the workdir of a run.")
    reader = READERS.get(path.suffix)
    if reader is None:
        raise WeightError(f"{path} ends in {path.suffix or 'nothing'}; expected one of {', '.join(READERS)}.")
    return reader(path)


save = own_file.save
