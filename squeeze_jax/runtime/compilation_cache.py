"""Keeps compiled programs in the user's cache folder, so that the next start of the same network is fast."""

import hashlib
import logging
import os
import pathlib
import platform

import jax

logger = logging.getLogger(__name__)

MAX_BYTES = 2 * 2**30


def cache_folder() -> pathlib.Path:
    """Returns the user's cache folder of this project, which need not exist."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "squeeze_jax"


def enable() -> None:
    """Enables JAX's persistent compilation cache; call it before JAX compiles for the first time.

    The folder is ~/.cache/squeeze_jax (or $XDG_CACHE_HOME/squeeze_jax). It has a subfolder per processor type, because
    compiled code may not run on another type. It may be deleted at any time; the oldest files are deleted when it
    exceeds 2 GiB. $JAX_COMPILATION_CACHE_DIR selects another folder, and $JAX_ENABLE_COMPILATION_CACHE=false disables
    the cache. If the folder is not writable, nothing is cached.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    root = cache_folder()
    folder = root / _processor()
    try:
        # JAX executes the files in it, so no other user may write to it.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _delete_oldest(root, MAX_BYTES)
    except OSError as error:
        logger.debug("no compilation cache in %s: %s", root, error)
        return
    if not os.access(folder, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Together, the many small functions of the start-up take as long to compile as a large one.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _processor() -> str:
    """Returns a short hash of the processor's type and features."""
    lines = [platform.machine(), platform.processor()]
    try:
        information = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        pass
    else:
        lines += [line for line in information.splitlines() if line.startswith(("model name", "flags", "Features"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _delete_oldest(root: pathlib.Path, max_bytes: int) -> None:
    """Deletes the oldest compiled programs until the rest has at most `max_bytes`.

    Published weights are also under `root`, but one folder deeper (`pretrained.downloads`).
    """
    files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in root.glob("*/*") if path.is_file())
    excess = sum(size for _, size, _ in files) - max_bytes
    for _, size, path in files:
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size
