"""Shared memory that two processes keep for what is copied in no time, on Linux.

Both have it mapped, as memory that was used before is copied to and from in a third of the time
that system calls take for it, and those take a quarter of what fresh memory does.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

assert sys.platform == "linux" or not TYPE_CHECKING

from .._wire._framing import Buffer
from ._mapping import map_descriptor


class KeptSegment:
    """A segment that is mapped here, and that nobody can make smaller.

    :param descriptor: of a segment that was made by :func:`keep_segment`, in this process or
        another; belongs to this object
    :raises OSError: if there is no memory, or no descriptor, left; or if it is no such segment
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        try:
            # If it could shrink, whoever touches what was cut off would be killed by SIGBUS.
            sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
            if not sealed or os.fstat(descriptor).st_size < size:
                raise OSError("the shared memory is not what it should be")
            self.memory: memoryview = memoryview(map_descriptor(descriptor, size))
        except BaseException:
            self.release_descriptor()
            raise

    def fileno(self) -> int:
        return self._descriptor

    def release_descriptor(self) -> None:
        """The other process has its own: the memory stays."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def write(self, sections: Sequence[Sequence[Buffer]], offsets: Sequence[int]) -> None:
        """Write sections, each at its offset, with the GIL held."""
        for section, offset in zip(sections, offsets, strict=False):
            for piece in section:
                view = memoryview(piece).cast("B")
                self.memory[offset : offset + len(view)] = view
                offset += len(view)

    def close(self) -> None:
        self.release_descriptor()
        self.memory.release()


def keep_segment(size: int) -> KeptSegment:
    """Make a segment to be kept, of which only what is used takes memory.

    :raises OSError: if there is no memory, or no descriptor, left
    """
    descriptor = os.memfd_create("creche", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except BaseException:
        os.close(descriptor)
        raise
    return KeptSegment(descriptor, size)
