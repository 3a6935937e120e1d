"""How this process keeps its memory; needs nothing but Python, so that it can be imported before everything else."""

import ctypes
import os
import platform
import sys

# By default glibc gives every large buffer back to the kernel, and has it mapped and cleared again a step later, which
# can cost more than half of the speed ("memory given back" of benchmarks/networks.py). Its tunables against that:
TUNABLES = {
    "arena_max": 1,
    "mmap_max": 0,
    # The few bytes in front of and behind an aligned buffer go to the free memory around it, not to lists of small
    # pieces: from there they would be used, and the next step's buffer would not fit between them.
    "mxfast": 0,
    "tcache_count": 1,  # 0 makes compilation slower
    "top_pad": 2**28,
    "trim_threshold": 2**40,
}
SMALL_BYTES = 2**28


def environment() -> dict[str, str]:
    """The variable with which a process keeps freed memory."""
    return {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in TUNABLES.items())}


def keep_freed_memory() -> None:
    """Makes this process keep the memory of one step for the next; without effect where the C library is not glibc.

    glibc reads its tunables when a process starts, so this starts the program again, once, in the same process: call it
    first in a program, under `if __name__ == "__main__"`. Where the environment has GLIBC_TUNABLES, these are left as
    they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    if "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | environment())
    # A free block that is smaller than any other, so that small allocations come from there. Above a step's buffer they
    # would keep it from joining the heap's end. The kernel gives it no memory before it is used.
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    small = libc.malloc(ctypes.c_size_t(SMALL_BYTES))
    libc.malloc(ctypes.c_size_t(2**20))  # keeps the block apart from the heap's end
    libc.free(ctypes.c_void_p(small))
