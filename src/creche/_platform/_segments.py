"""Anonymous shared memory that travels between two processes: large payloads on Linux.

A segment is a ``memfd``: it has no name, so nothing of it is left, whoever is killed. Its
descriptor goes over a socket of its own, because reading one that lies in the way costs each small
message something. It is written and read by system calls, which let go of the GIL, and whose copy
into fresh pages takes half as long as that through a mapping, which has them zeroed first.

Elsewhere payloads go through the wire: see :mod:`._no_segments`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

assert sys.platform == "linux" or not TYPE_CHECKING

from .._wire._framing import Buffer
from ._mapping import map_descriptor
from ._posix import DescriptorForChild

# writev(2) takes no more pieces at once.
_MAX_PIECES = 1024

# Below that, a mapping costs more than the copy that it saves, and keeps a descriptor open before
# Python 3.13.
_MAPPED_BYTES = 256 * 1024


class Segment:
    """Owns a segment's descriptor. What is mapped of the segment lives on its own."""

    descriptor = -1

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def close(self) -> None:
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)

    __del__ = close


def write_segment(
    sections: Sequence[Sequence[Buffer]], offsets: Sequence[int], segment: Segment | None = None
) -> Segment:
    """Write sections into a segment, each at its offset; by default into a new one.

    :raises OSError: if there is no memory, or no descriptor, left
    """
    if segment is None:
        segment = Segment(os.memfd_create("creche", os.MFD_CLOEXEC))
    for section, offset in zip(sections, offsets, strict=False):
        _write(segment.descriptor, [memoryview(piece).cast("B") for piece in section], offset)
    return segment


def _write(descriptor: int, pieces: list[memoryview], offset: int) -> None:
    start = 0
    while start < len(pieces):
        written = os.pwritev(descriptor, pieces[start : start + _MAX_PIECES], offset)
        offset += written
        while start < len(pieces) and written >= len(pieces[start]):
            written -= len(pieces[start])
            start += 1
        if written:
            pieces[start] = pieces[start][written:]


class SegmentReader:
    """The file that an unpickler reads from: one section of a segment."""

    def __init__(self, segment: Segment, offset: int, size: int) -> None:
        self._descriptor = segment.descriptor
        self._offset = offset
        self._end = offset + size

    def readinto(self, target: memoryview) -> int:
        target = memoryview(target).cast("B")[: self._end - self._offset]
        filled = 0
        while filled < len(target):
            # Other threads run meanwhile.
            count = os.preadv(self._descriptor, [target[filled:]], self._offset)
            if not count:
                break
            self._offset += count
            filled += count
        return filled

    def read(self, size: int) -> bytes:
        data = os.pread(self._descriptor, min(size, self._end - self._offset), self._offset)
        self._offset += len(data)
        return data

    def readline(self) -> bytes:
        data = os.pread(self._descriptor, min(4096, self._end - self._offset), self._offset)
        line = data[: data.find(b"\n") + 1] or data
        self._offset += len(line)
        return line


def buffer_in_segment(segment: Segment, offset: int, size: int, *, copy: bool) -> memoryview:
    """Return a section as writable memory: the segment's own, which lives as long as its users.

    :param copy: return memory of its own instead
    """
    if size >= _MAPPED_BYTES and not copy:
        with contextlib.suppress(OSError):  # no descriptor left: a copy will do
            return memoryview(map_descriptor(segment.descriptor, offset + size))[offset:]
    target = memoryview(bytearray(size))
    SegmentReader(segment, offset, size).readinto(target)
    return target


class SegmentSocket:
    """One end of the socket over which descriptors of segments travel."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def __reduce__(self) -> tuple[Any, ...]:
        # While a process is being started.
        return _of_child, (DescriptorForChild(self._socket.fileno()),)

    def send(self, segment: Segment) -> None:
        """Send a segment, which stays open here."""
        socket.send_fds(self._socket, [b"s"], [segment.descriptor])

    def receive(self) -> Segment:
        """Receive a segment.

        :raises EOFError: if there is none
        """
        _, descriptors, _, _ = socket.recv_fds(self._socket, 1, 1)
        if not descriptors:
            raise EOFError("no shared memory came with the message that announced it")
        segment = Segment(descriptors[0])
        os.set_inheritable(segment.descriptor, False)
        return segment

    def close(self) -> None:
        self._socket.close()


def _of_child(handle: Any) -> SegmentSocket:
    return SegmentSocket(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, handle.detach()))


def segment_sockets() -> tuple[SegmentSocket, SegmentSocket] | None:
    """Make the parent's end, which never blocks, and the child's.

    :raises OSError: if there are no descriptors left
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return SegmentSocket(ours), SegmentSocket(theirs)
