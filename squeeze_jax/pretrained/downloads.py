"""Published weights by name, such as "torchvision/resnet18": downloaded once, into the user's cache folder."""

import hashlib
import http.client
import logging
import pathlib
import re
import tempfile
import time
import urllib.request

from squeeze_jax.errors import WeightError, shown
from squeeze_jax.pretrained.weights import LARGEST_FILE
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
SECONDS = 30  # without an answer
LONGEST = 3600  # seconds for one file
PIECE = 2**16  # bytes


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
            _download(address, temporary)
            if wrong := _wrong_checksum(temporary):
                raise WeightError(f"{address} was received damaged: {wrong}; try again.")
            temporary.replace(path)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise WeightError(
            f"{name} could not be downloaded ({_reason(error)}). Get {address} on a machine with a connection, and put "
            f"it at {path}."
        ) from error
    return path


def _download(address: str, path: pathlib.Path) -> None:
    """Writes what an http or https address, or the one that it redirects to, answers.

    Raises:
      WeightError: the answer is larger than any weight file, takes longer than an hour, or breaks off.
      OSError, HTTPException: the connection failed.
    """
    end = time.monotonic() + LONGEST
    with _opener().open(address, timeout=SECONDS) as response, path.open("wb") as file:
        received = 0
        while piece := response.read1(PIECE):
            received += len(piece)
            if received > LARGEST_FILE:
                raise WeightError(f"{address} answers with more than {LARGEST_FILE} bytes, which is no weight file.")
            if time.monotonic() > end:
                raise WeightError(f"{address} sent {received} bytes in {LONGEST} seconds, and no end; try again.")
            file.write(piece)
        missing = response.length  # what is left of the announced bytes
    if missing:
        raise WeightError(f"{address} broke off {missing} bytes before its end; try again.")


def _opener() -> urllib.request.OpenerDirector:
    """Returns an opener that knows http and https, and neither files nor ftp, to which a server may redirect."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _reason(error: Exception) -> str:
    """Returns why a download failed, in one line and without the password that an address may have."""
    if isinstance(error, http.client.InvalidURL):
        return "it leads to an address that is not valid"
    return shown(re.sub(r"//[^/\s]*@", "//", str(getattr(error, "reason", error))), most=200)


def _wrong_checksum(path: pathlib.Path) -> str:
    """Returns what is wrong if the SHA-256 of a file does not begin with the digits in its name, else nothing."""
    expected = re.search(r"-([0-9a-f]+)\.", path.name)[1]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if found.startswith(expected) else f"its SHA-256 begins with {found[: len(expected)]}, not {expected}"
