"""Downloads by http and https, with limits of size and time."""

import contextlib
import http.client
import pathlib
import re
import time
import urllib.request

from squeeze_jax.console import doing

SILENCE = 8  # seconds without an answer
LONGEST = 3600  # seconds for one file
PIECE = 2**16  # bytes


def receive(address: str, path: pathlib.Path, *, largest: int) -> None:
    """Writes what an address, or the one that it redirects to, answers.

    Args:
      address: an address of http or https.
      path: the file to write.
      largest: bytes that the answer may have.

    Raises:
      OSError: the download failed, or the file cannot be written; the message holds no password.
    """
    try:
        with doing(f"downloading {path.name}"):
            _receive(address, path, largest)
    except http.client.InvalidURL:  # whose message may be a password
        raise OSError("the address, or the one that it redirects to, is not valid") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = without_password(" ".join(str(getattr(error, "reason", error)).split()))
        raise OSError(reason[:200] or type(error).__name__) from error


def without_password(text: str) -> str:
    """Returns a text without the user names and passwords of its addresses."""
    return re.sub(r"//[^/\s]*@", "//", text)


def _receive(address: str, path: pathlib.Path, largest: int) -> None:
    end, received = time.monotonic() + LONGEST, 0
    with contextlib.closing(_opener().open(address, timeout=SILENCE)) as response, path.open("wb") as file:
        while piece := response.read1(PIECE):
            received += len(piece)
            if received > largest:
                raise OSError(f"the answer has more than {largest:,} bytes")
            if time.monotonic() > end:
                raise OSError(f"the answer did not end in {LONGEST} seconds")
            file.write(piece)
        if response.length:
            raise OSError(f"the answer broke off {response.length:,} bytes before its end")


def _opener() -> urllib.request.OpenerDirector:
    """Returns an opener of http and https alone, because a server may redirect to ftp or a file."""
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
