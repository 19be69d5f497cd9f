"""Mapping a descriptor's memory."""

from __future__ import annotations

import mmap
import sys


def map_descriptor(descriptor: int, size: int) -> mmap.mmap:
    """Map memory that can be read and written, and that others see.

    Before Python 3.13 the mapping keeps a duplicate of the descriptor open.
    """
    if sys.version_info >= (3, 13):
        return mmap.mmap(descriptor, size, trackfd=False)
    return mmap.mmap(descriptor, size)
