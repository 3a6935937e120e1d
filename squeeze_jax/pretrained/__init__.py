"""Reads published weights, with one importer per format, and this project's own single-file formats.

Networks have names: those in the folder `networks`, which come with this package and have a model card each, and
published ones, which are downloaded.
"""

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
    """Reads a weight file; the suffix determines the format. `squeeze_jax.load` turns the result into a network.

    Args:
      path: a `.net` file of Deep Compression, a `.caffemodel`, a torchvision state dict (`.pth`, `.safetensors`), an
        `.onnx` file, a `.safetensors` file written by `save`, a compressed `.sqz` file, or, if no such file exists,
        a name, such as "digits" or "torchvision/resnet18" (`names`).

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
    reader = READERS.get(path.suffix)
    if reader is None:
        raise WeightError(f"{path} ends in {path.suffix or 'nothing'}; expected one of {', '.join(READERS)}.")
    return reader(path)


save = own_file.save
