"""The formats of exported files, by suffix."""

import pathlib
from types import ModuleType

from squeeze_jax.errors import WeightError
from squeeze_jax.export import SUFFIXES, litert, onnx_file, stablehlo
from squeeze_jax.export.exported import Exported
from squeeze_jax.pretrained.onnx_zoo import PRODUCER

FIRST_BYTES = 64  # of an .onnx file, where the producer is

# Each module has `serialize(network, pixels) -> bytes` and `read(path, threads=None) -> Exported`; those with int8
# files also have `serialize_int8(network, images, pixels) -> bytes`.
FORMATS: dict[str, ModuleType] = dict(zip(SUFFIXES, (onnx_file, litert, stablehlo), strict=True))


def is_exported(path: pathlib.Path) -> bool:
    """Returns whether a file may have been written by `python -m squeeze_jax.export`.

    An .onnx file may also be of the model zoo, see `squeeze_jax.pretrained.onnx_zoo`.
    """
    if not path.is_file() or path.suffix not in FORMATS:
        return False
    with path.open("rb") as file:
        return path.suffix != ".onnx" or PRODUCER.encode() in file.read(FIRST_BYTES)


def open_exported(path: str | pathlib.Path) -> Exported:
    """Opens an exported file in its own runtime; the suffix determines the format.

    Args:
      path: the file, which may be untrusted.

    Raises:
      WeightError: the file does not exist, its suffix is unknown, or it is damaged or of another origin.
      ExportError: the package of the runtime is not installed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise WeightError(f"{path} is not a file; expected an exported network ({', '.join(FORMATS)}).")
    if path.suffix not in FORMATS:
        raise WeightError(f"{path} ends in {path.suffix or 'nothing'}; expected one of {', '.join(FORMATS)}.")
    return FORMATS[path.suffix].read(path)
