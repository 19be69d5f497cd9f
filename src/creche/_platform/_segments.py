"""Anonymous shared memory that travels between two processes: large payloads on Linux.

A segment is a ``memfd``: it has no name, so nothing of it is left, whoever is killed. Its
descriptor goes over a socket of its own, because reading one that lies in the way costs each small
message something. It is written and read by system calls, which let go of the GIL, and whose copy
into fresh pages takes half as long as that through a mapping, which has them zeroed first.

What need not wait for its receiver travels like that. See :mod:`._kept_segments` for what is small,
and :mod:`._streams` for what is received as fast as it is sent.
Elsewhere payloads go through the wire: see :mod:`._no_segments`.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

assert sys.platform == "linux" or not TYPE_CHECKING

from .._wire._framing import Buffer
from .._wire._handing_over import MAX_DESCRIPTORS, close_in_forks
from ._fresh_memory import ask_for_huge_pages
from ._posix import DescriptorForChild
from ._streams import StreamReader, StreamWriter, open_stream

# writev(2) takes no more pieces at once.
_MAX_PIECES = 1024


class Segment:
    """Owns the descriptor of a segment that is written once, and read once.

    A fork of this process closes its copy: it would keep all of the memory.
    """

    descriptor = -1

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        close_in_forks(self)

    def close(self) -> None:
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)

    __del__ = close_in_fork = close


def write_segment(sections: Sequence[Sequence[Buffer]], offsets: Sequence[int]) -> Segment:
    """Write sections into a new segment, each at its offset.

    :raises OSError: if there is no memory, or no descriptor, left
    """
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
        ask_for_huge_pages(target)
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


_NONE = b"n"


class SegmentSocket:
    """One end of the socket over which descriptors of segments and streams travel."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def __reduce__(self) -> tuple[Any, ...]:
        # While a process is being started.
        return _of_child, (DescriptorForChild(self._socket.fileno()),)

    def send(self, descriptor: int) -> None:
        """Send a descriptor, which stays open here."""
        socket.send_fds(self._socket, [b"s"], [descriptor])

    def receive(self) -> int:
        """Receive a descriptor.

        :raises EOFError: if there is none
        """
        _, descriptors, _, _ = socket.recv_fds(self._socket, 1, 1)
        if not descriptors:
            raise EOFError("no descriptor came with the message that announced it")
        os.set_inheritable(descriptors[0], False)
        return descriptors[0]

    def send_all(self, descriptors: Sequence[int]) -> None:
        """Send some descriptors together, which stay open here.

        :raises OSError: if nobody is there to receive them, or they are too many
        """
        if descriptors:
            socket.send_fds(self._socket, [b"h"], descriptors)
        else:
            self._socket.send(_NONE)

    def receive_all(self) -> list[int]:
        """Receive descriptors that were sent together.

        :raises EOFError: if there are none, but should be
        """
        data, descriptors, _, _ = socket.recv_fds(self._socket, 1, MAX_DESCRIPTORS)
        if not descriptors and data != _NONE:
            raise EOFError("no descriptors came with the message that announced them")
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        return list(descriptors)

    def open_stream(self, pieces: Sequence[Buffer], *, patient: bool) -> StreamWriter:
        """Open a stream for a payload, and send the other end of it.

        :param patient: whether to wait as long as the other process takes nothing
        :raises OSError: if there are no descriptors left, or nobody is there to receive it
        """
        writer, theirs = open_stream(pieces, patient=patient)
        try:
            self.send(theirs.fileno())
        except BaseException:
            writer.close()
            raise
        finally:
            theirs.close()
        return writer

    def receive_stream(self, on_stall: Callable[[], object] | None) -> StreamReader:
        """Receive the end of a stream.

        :param on_stall: called when nothing has come for a while
        :raises EOFError: if there is none
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, self.receive())
        return StreamReader(sock, on_stall)

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
