"""The folder of a run: that it can be written, that one run at a time uses it, and which versions made it."""

import fcntl
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import socket
import subprocess
import sys

import jax

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


class WorkdirError(RuntimeError):
    """A workdir that cannot be used; the message says why and how to mend it."""


def create(workdir: str | pathlib.Path) -> pathlib.Path:
    """Makes the folder where it is missing, and checks that files can be written there.

    Raises:
      WorkdirError: it is a file, or not writable.
    """
    path = pathlib.Path(workdir).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        raise WorkdirError(f"the workdir {path} is, or lies below, a file; name a folder with --workdir.") from error
    except OSError as error:
        raise WorkdirError(
            f"the workdir {path} cannot be written ({error.strerror}); name another with --workdir."
        ) from error
    return path


class Lock:
    """Keeps a second run out of a workdir. The kernel releases it when the process dies, however it dies."""

    def __init__(self, workdir: pathlib.Path):
        self._path = workdir / LOCK_FILE

    def __enter__(self) -> "Lock":
        self._file = self._path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown process"
            self._file.close()
            raise WorkdirError(
                f"another run ({holder}) is writing to {self._path.parent}; stop it first, or use another --workdir."
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


def write_versions(workdir: pathlib.Path) -> None:
    """Writes versions.json; in a run that other versions began, warns that equal bits are not promised."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    path = workdir / VERSIONS_FILE
    if path.exists():
        before = json.loads(path.read_text())["versions"]
        changed = [f"{name} {before[name]} -> {now}" for name, now in versions.items() if before.get(name, now) != now]
        if changed:
            logger.warning(
                "this run was begun with other versions; it goes on, but bits may differ: %s", ", ".join(changed)
            )
        return
    content = {
        "versions": versions,
        "commit": _commit(),
        "command": sys.argv,
        "devices": [str(device) for device in jax.devices()],
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def _commit() -> str | None:
    """The git commit of this source tree, with "-dirty" where it was changed; None outside a checkout."""
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
