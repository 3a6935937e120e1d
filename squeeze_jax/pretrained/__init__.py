"""Published weights, one importer a format, and this project's own single file."""

import pathlib

from squeeze_jax.pretrained import deep_compression, own_file
from squeeze_jax.pretrained.weights import WeightError
from squeeze_jax.run import Run

READERS = {".net": deep_compression.read, ".safetensors": own_file.read}


def read(path: str | pathlib.Path) -> Run:
    """Opens a weight file, by its suffix: a network with its preprocessing, ready for `predict`.

    Args:
      path: a .net file of Deep Compression, or a .safetensors file that `save` wrote.

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
