"""The folder of a run: creating and locking it, and recording the software versions."""

import contextlib
import fcntl
import importlib.metadata
import logging
import os
import pathlib
import platform
import socket
import subprocess
import sys

from squeeze_jax.errors import WorkdirError
from squeeze_jax.files import read_json, write_json

logger = logging.getLogger(__name__)

VERSIONS_FILE = "versions.json"
LOCK_FILE = "lock"
PACKAGES = (
    "squeeze_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "numpy",
    "ml_collections",
)


def create(workdir: str | pathlib.Path) -> pathlib.Path:
    """Creates the folder if it is missing, checks that it is writable, and returns its absolute path.

    Raises:
      WorkdirError: the path is a file, or the folder is not writable.
    """
    path = pathlib.Path(workdir).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        raise WorkdirError(
            f"the workdir {path} is a file or inside a file; expected a folder, use another --workdir."
        ) from error
    except OSError as error:
        raise WorkdirError(f"the workdir {path} is not writable ({error.strerror}); use another --workdir.") from error
    return path


class Lock:
    """A context manager that locks a workdir against a second run.

    The kernel releases the lock when the process ends, even if it is killed.

    Args:
      workdir: the folder.

    Raises:
      WorkdirError: another run holds the lock; raised on entering the context.
    """

    def __init__(self, workdir: pathlib.Path):
        self._path = workdir / LOCK_FILE

    def __enter__(self) -> "Lock":
        try:
            self._file = self._path.open("a+")
        except OSError as error:
            raise WorkdirError(f"{self._path} cannot be opened ({error.strerror}); use another --workdir.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown process"
            self._file.close()
            raise WorkdirError(
                f"another run ({holder}) is writing to {self._path.parent}; stop it first, or use another --workdir."
            ) from None
        try:
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()
        except OSError as error:
            self.__exit__()
            raise WorkdirError(
                f"{self._path} cannot be written ({error.strerror}); make room or use another --workdir."
            ) from error
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError):  # text that a full disk did not take
            self._file.close()


def write_versions(workdir: pathlib.Path) -> None:
    """Writes versions.json; if it exists with other versions, logs a warning that results may differ instead.

    Raises:
      WorkdirError: it exists but cannot be read.
      FileError: it cannot be written.
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    path = workdir / VERSIONS_FILE
    if path.exists():
        before = _read_versions(path)
        changed = [f"{name} {before[name]} -> {now}" for name, now in versions.items() if before.get(name, now) != now]
        if changed:
            logger.warning(
                "this run was begun with other versions; it continues, but results may differ slightly: %s",
                ", ".join(changed),
            )
        return
    import jax

    content = {
        "versions": versions,
        "commit": _commit(),
        "command": sys.argv,
        "devices": [str(device) for device in jax.devices()],
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
    }
    write_json(path, content)


def _read_versions(path: pathlib.Path) -> dict[str, str]:
    try:
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("versions"), dict):
            raise ValueError('expected {"versions": {...}}')
    except ValueError as error:
        raise WorkdirError(f"{path} cannot be read ({error}); restore it, or delete it to continue.") from error
    return content["versions"]


def _commit() -> str | None:
    """Returns the git commit of this source tree, with "-dirty" if there are changes; None outside a checkout."""
    folder = pathlib.Path(__file__).parent
    try:
        description = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return description.stdout.strip() or None
