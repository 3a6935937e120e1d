"""Makes a process keep freed memory. Imports only the standard library, so that it can be imported first."""

import ctypes
import os
import platform
import sys

# By default glibc returns every large buffer to the kernel, which must map and clear it again one step later. This can
# cost more than half of the speed ("memory given back" in benchmarks/networks.py). These glibc tunables prevent it:
TUNABLES = {
    "arena_max": 1,
    "mmap_max": 0,
    # The few bytes before and after an aligned buffer are merged with the free memory around it, instead of going to
    # lists of small chunks. From there they would be reused, and the next step's buffer would not fit between them.
    "mxfast": 0,
    "tcache_count": 1,  # 0 makes compilation slower
    "top_pad": 2**28,
    "trim_threshold": 2**40,
}
SMALL_BYTES = 2**28


def environment() -> dict[str, str]:
    """Returns the environment variable that makes a new process keep freed memory."""
    return {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in TUNABLES.items())}


def keep_freed_memory() -> None:
    """Makes this process keep the memory of one step for the next; has no effect if the C library is not glibc.

    glibc reads its tunables when a process starts, so this restarts the program once, in the same process. Call it
    first in a program, under `if __name__ == "__main__"`. If GLIBC_TUNABLES is already set, it is not changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    if "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | environment())
    # Creates a free block that is smaller than any other, so that small allocations are placed in it. Placed above a
    # step's buffer, they would keep it from merging with the end of the heap. An unused block takes no physical memory.
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    small = libc.malloc(ctypes.c_size_t(SMALL_BYTES))
    libc.malloc(ctypes.c_size_t(2**20))  # separates the block from the end of the heap
    libc.free(ctypes.c_void_p(small))
