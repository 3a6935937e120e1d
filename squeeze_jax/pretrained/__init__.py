"""Reads published weights, with one importer per format, and this project's own single-file formats.

The folder `networks` contains networks that come with this package, each with a model card.
"""

import pathlib

from squeeze_jax.errors import WeightError
from squeeze_jax.pretrained import caffe, deep_compression, onnx_zoo, own_file, sqz, torchvision
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


NETWORKS = pathlib.Path(__file__).with_name("networks")


def named() -> dict[str, pathlib.Path]:
    """Returns the files of the networks that come with this package, by name."""
    return {path.stem: path for path in sorted(NETWORKS.glob(f"*{sqz.SUFFIX}"))}


def read(path: str | pathlib.Path) -> Weights:
    """Reads a weight file; the suffix determines the format. `squeeze_jax.load` turns the result into a network.

    Args:
      path: a `.net` file of Deep Compression, a `.caffemodel`, a torchvision state dict (`.pth`, `.safetensors`), an
        `.onnx` file, a `.safetensors` file written by `save`, a compressed `.sqz` file, or, if there is no such file,
        the name of a network that comes with this package, such as "digits".

    Raises:
      WeightError: the file does not exist, its suffix is unknown, or it is damaged or of another network.
    """
    path = pathlib.Path(path)
    if not path.exists():
        path = named().get(str(path), path)
    if not path.is_file():
        raise WeightError(
            f"{path} is not a file; expected a weight file ({', '.join(READERS)}), the workdir of a run, or a name of "
            f"this package ({', '.join(named())})."
        )
    reader = READERS.get(path.suffix)
    if reader is None:
        raise WeightError(f"{path} ends in {path.suffix or 'nothing'}; expected one of {', '.join(READERS)}.")
    return reader(path)


save = own_file.save
