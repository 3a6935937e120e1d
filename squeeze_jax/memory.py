"""How this process keeps its memory; needs nothing but Python, so that it can be imported before everything else."""

import ctypes
import platform

# glibc's environment variables, the numbers that mallopt has for them (malloc.h), and what keeps freed memory.
OPTIONS = {
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),  # never
    "MALLOC_TOP_PAD_": (-2, 2**28),
    "MALLOC_ARENA_MAX": (-8, 1),
}


def environment() -> dict[str, str]:
    """Variables with which a child process keeps freed memory, whatever it imports first."""
    return {name: str(value) for name, (_, value) in OPTIONS.items()}


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
