"""Memory for large payloads on Linux, which costs little to touch for the first time.

The kernel zeroes and maps fresh memory page by page, when each is touched: for a large payload that
takes three times as long as the copy. With huge pages it takes less than the copy. Most systems
have them for whoever asks (``/sys/kernel/mm/transparent_hugepage/enabled`` says ``madvise``); NumPy
asks, too.
"""

from __future__ import annotations

import functools
import mmap
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

assert sys.platform == "linux" or not TYPE_CHECKING

# Wherever so much memory begins, there is a huge page of 2 MiB in it.
_HUGE_BYTES = 4 * 1024 * 1024


def fresh_memory(size: int) -> memoryview:
    """Return writable memory, which lives as long as its users.

    :raises MemoryError: if there is none left
    """
    if size < _HUGE_BYTES:
        return memoryview(bytearray(size))
    # Not written once more than needed, and under the GIL, as bytearray's zeroed memory is.
    try:
        return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    except OSError as error:
        raise MemoryError(f"cannot allocate {size} bytes") from error


def ask_for_huge_pages(memory: memoryview) -> None:
    """Have memory that is about to be written for the first time made of huge pages.

    Nothing but advice, to a kernel that may not know of it: whatever becomes of it is all right.
    """
    if memory.nbytes < _HUGE_BYTES or memory.readonly:
        return
    advise = _adviser()
    if advise is not None:
        advise(memory)


@functools.cache
def _adviser() -> Callable[[memoryview], object] | None:
    try:
        import ctypes  # here, as it takes milliseconds that few applications need to spend

        madvise = ctypes.CDLL(None).madvise
    except (ImportError, OSError, AttributeError):  # an interpreter or a C library without it
        return None
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def advise(memory: memoryview) -> None:
        # Whole pages alone: their neighbours belong to others.
        begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (begin + memory.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        madvise(first, end - first, mmap.MADV_HUGEPAGE)

    return advise
