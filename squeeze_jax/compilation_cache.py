"""Compiled steps are kept in the user's cache folder, so that the next start of the same network need not wait."""

import hashlib
import logging
import os
import pathlib
import platform

import jax

logger = logging.getLogger(__name__)

MAX_BYTES = 2 * 2**30


def enable() -> None:
    """Switches JAX's persistent compilation cache on; before JAX compiles for the first time.

    The folder is ~/.cache/squeeze_jax (or below $XDG_CACHE_HOME), with a part for each kind of processor, for compiled
    code need not run on another. It may be deleted at any time, and the oldest files go when it exceeds 2 GiB.
    $JAX_COMPILATION_CACHE_DIR names another folder, $JAX_ENABLE_COMPILATION_CACHE=false switches the cache off. Where
    the folder cannot be written there is no cache.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "squeeze_jax"
    folder = root / _processor()
    try:
        # JAX runs what it finds there, so nobody else may write to it.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _delete_oldest(root, MAX_BYTES)
    except OSError as error:
        logger.debug("no compilation cache in %s: %s", root, error)
        return
    if not os.access(folder, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # The many small functions of a start take as long together as a large one.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _processor() -> str:
    """A short name of this processor's kind and features."""
    lines = [platform.machine(), platform.processor()]
    try:
        information = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        pass
    else:
        lines += [line for line in information.splitlines() if line.startswith(("model name", "flags", "Features"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _delete_oldest(root: pathlib.Path, max_bytes: int) -> None:
    """Deletes the files that were written first until the rest fits."""
    files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in root.glob("*/*") if path.is_file())
    excess = sum(size for _, size, _ in files) - max_bytes
    for _, size, path in files:
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size
