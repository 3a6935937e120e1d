"""How this process keeps its memory; needs nothing but Python, so that it can be imported before everything else."""

import ctypes
import platform

# glibc's tunables, the numbers that mallopt has for them (malloc.h), and what keeps freed memory.
OPTIONS = {
    "arena_max": (-8, 1),
    "mmap_max": (-4, 0),
    "mxfast": (1, 0),  # else a step's buffer seldom fits where the last one was, and the heap grows
    "top_pad": (-2, 2**28),
    "trim_threshold": (-1, 2**31 - 1),  # mallopt's largest; "never" (-1) lets the heap grow
}


def environment() -> dict[str, str]:
    """The variable with which a child process keeps freed memory, whatever it imports first."""
    return {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, (_, value) in OPTIONS.items())}


def keep_freed_memory() -> None:
    """Makes glibc keep the memory of one step for the next, for this process; without effect elsewhere.

    By default every large buffer goes back to the kernel, and is mapped and cleared again a step later, which can cost
    more than half of the speed ("memory given back" of benchmarks/networks.py). Call it before NumPy and JAX are
    imported: what their first threads allocate from would stay beside the one arena that is meant here.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for number, value in OPTIONS.values():
            mallopt(number, value)
