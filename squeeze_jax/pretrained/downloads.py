"""Published weights by name, such as "torchvision/resnet18": downloaded once, into the user's cache folder."""

import hashlib
import logging
import pathlib
import re
import tempfile

from squeeze_jax.errors import WeightError
from squeeze_jax.pretrained.weights import LARGEST_FILE
from squeeze_jax.runtime import download
from squeeze_jax.runtime.compilation_cache import cache_folder

logger = logging.getLogger(__name__)

ADDRESS = "https://download.pytorch.org/models"
# The file names of torchvision 0.29.1 (`url` of each `IMAGENET1K_V1`). They end in the first digits of their SHA-256.
FILES = {
    "torchvision/alexnet": "alexnet-owt-7be5be79.pth",
    "torchvision/efficientnet_b0": "efficientnet_b0_rwightman-7f5810bc.pth",
    "torchvision/mobilenet_v2": "mobilenet_v2-b0353104.pth",
    "torchvision/resnet18": "resnet18-f37072fd.pth",
    "torchvision/shufflenet_v2_x0_5": "shufflenetv2_x0.5-f707e7126e.pth",
    "torchvision/shufflenet_v2_x1_0": "shufflenetv2_x1-5666bf0f80.pth",
    "torchvision/squeezenet1_0": "squeezenet1_0-b66bff10.pth",
    "torchvision/squeezenet1_1": "squeezenet1_1-b8a52dc0.pth",
}


def fetch(name: str) -> pathlib.Path:
    """Returns the file of published weights, and downloads it if it is not in the cache folder yet.

    The checksum of the file is verified at every call.

    Args:
      name: a key of `FILES`.

    Raises:
      WeightError: the download failed, or the file has another checksum; the message says where to get the file and
        where to put it.
    """
    file_name = FILES[name]
    path = cache_folder() / "weights" / "torchvision" / file_name
    address = f"{ADDRESS}/{file_name}"
    if path.is_file():
        if wrong := _wrong_checksum(path):
            raise WeightError(f"{path} is damaged: {wrong}. Delete it, or get {address} again.")
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        logger.info("downloading %s", address)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # two processes may download the same file
            temporary = pathlib.Path(folder) / file_name
            download.receive(address, temporary, largest=LARGEST_FILE)
            if wrong := _wrong_checksum(temporary):
                raise WeightError(f"{address} was received damaged: {wrong}; try again.")
            temporary.replace(path)
    except OSError as error:
        raise WeightError(
            f"{name} could not be downloaded ({error.strerror or error}). Get {address} on a machine with a "
            f"connection, put it at {path}, and repeat the command."
        ) from error
    return path


def _wrong_checksum(path: pathlib.Path) -> str:
    """Returns what is wrong if the SHA-256 of a file does not begin with the digits in its name, else nothing."""
    expected = re.search(r"-([0-9a-f]+)\.", path.name)[1]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if found.startswith(expected) else f"its SHA-256 begins with {found[: len(expected)]}, not {expected}"
