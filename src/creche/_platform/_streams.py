"""Large payloads on their way from one process to another, on Linux: a socket pair for each.

Both processes copy at the same time, the one into the socket's buffer and the other out of it,
through the same few pages again and again: that is three times as fast as one writing all of it
into shared memory, where every page is fresh, before the other begins. On its way the payload
needs next to no memory. And ``shutdown`` ends it at once, from either side, whoever waits in it,
and whoever else has copies of the descriptors.

The receiving end travels to the other process over a :class:`._segments.SegmentSocket`. Each end is
used by one thread at a time; others may only close it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

assert sys.platform == "linux" or not TYPE_CHECKING

from .._wire._framing import Buffer
from ._fresh_memory import ask_for_huge_pages

T = TypeVar("T")

# Of the socket, if the system allows it. A larger one does not pay.
_BUFFER_BYTES = 1024 * 1024

# sendmsg(2) takes no more pieces at once.
_MAX_PIECES = 1024

# How long one process waits for the other before it says so: neither is expected to stop.
_PATIENCE = struct.pack("@ll", 0, 50_000)  # seconds and microseconds


class _StreamEnd:
    """One end of a stream.

    :param patience: the option of a socket that bounds its waiting
    :param patient: whether to wait for the other end as long as it takes
    """

    def __init__(self, sock: socket.socket, patience: int, *, patient: bool) -> None:
        self._socket = sock
        self._lock = threading.Lock()
        self._in_use = False
        self._done = False
        sock.settimeout(None)  # whatever the application's default is
        if not patient:
            # Some systems of 32 bits have other times. There a thread waits as long as it takes.
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, patience, _PATIENCE)

    def fileno(self) -> int:
        return self._socket.fileno()

    def hang_up(self) -> None:
        """Nothing more will come or be taken: a thread that waits goes on with what there is."""
        with self._lock:
            self._shut_down()

    def close(self) -> None:
        """Nobody wants more of the payload. To be called in any thread."""
        with self._lock:
            self._done = True
            if self._in_use:
                self._shut_down()  # the thread that uses it closes it
            else:
                self._socket.close()

    def forget(self) -> None:
        """In a fork of this process: close our copy."""
        self._socket.close()

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):  # closed
            self._socket.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        with self._lock:
            self._in_use = True
        try:
            yield
        finally:
            with self._lock:
                self._in_use = False
                if self._done:
                    self._socket.close()


class StreamWriter(_StreamEnd):
    """The sending end, of this process; see :func:`open_stream`."""

    def __init__(self, sock: socket.socket, pieces: Sequence[Buffer], *, patient: bool) -> None:
        super().__init__(sock, socket.SO_SNDTIMEO, patient=patient)
        self._pieces = [memoryview(piece).cast("B") for piece in pieces]

    def write(self) -> bool:
        """Send the payload; return whether that is done, or nobody wants it any more.

        If not, the other end takes nothing at the moment: to be called again when it does.
        """
        with self._using():
            try:
                while self._pieces and not self._done:
                    self._drop(self._socket.sendmsg(self._pieces[:_MAX_PIECES]))
            except BlockingIOError:
                return False
            except OSError:  # EPIPE: it was closed, or its process has ended
                pass
            self._done = True
            self._pieces.clear()
            return True

    def _drop(self, sent: int) -> None:
        done = 0
        while done < len(self._pieces) and sent >= len(self._pieces[done]):
            sent -= len(self._pieces[done])
            done += 1
        del self._pieces[:done]
        if sent:
            self._pieces[0] = self._pieces[0][sent:]


class StreamReader(_StreamEnd):
    """The receiving end, and the file that an unpickler reads from.

    :param on_stall: called when nothing has come for a while
    """

    def __init__(self, sock: socket.socket, on_stall: Callable[[], object] | None) -> None:
        super().__init__(sock, socket.SO_RCVTIMEO, patient=on_stall is None)
        self._on_stall = on_stall
        self.received = 0
        """How many bytes have come."""
        self.at_end = False
        """Whether no more will."""

    @contextlib.contextmanager
    def reading(self) -> Iterator[StreamReader]:
        """To be used by one thread, and closed then."""
        with self._using():
            try:
                yield self
            finally:
                self._done = True

    def readinto(self, target: memoryview) -> int:
        target = memoryview(target).cast("B")
        ask_for_huge_pages(target)
        filled = 0
        while filled < len(target):
            # All at once: each time that it comes back, a thread waits for the GIL.
            count = self._receive(self._socket.recv_into, target[filled:], 0, socket.MSG_WAITALL)
            if not count:
                self.at_end = True
                break
            filled += count
        self.received += filled
        return filled

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._receive(self._socket.recv, size - len(data), socket.MSG_WAITALL)
            if not piece:
                self.at_end = True
                break
            data = data + piece if data else piece
        self.received += len(data)
        return data

    def readline(self) -> bytes:
        # Protocols from 2 on use lines for nothing but GLOBAL, which is short.
        line = bytearray()
        while not line.endswith(b"\n") and (character := self.read(1)):
            line += character
        return bytes(line)

    def _receive(self, receive: Callable[..., T], *args: Any) -> T:
        while True:
            try:
                return receive(*args)
            except BlockingIOError:
                assert self._on_stall is not None
                self._on_stall()


def open_stream(pieces: Sequence[Buffer], *, patient: bool) -> tuple[StreamWriter, socket.socket]:
    """Make a stream for a payload: its sending end, and what the other process reads it from.

    :param patient: whether to wait as long as the other process takes nothing
    :raises OSError: if there are no descriptors left
    """
    ours, theirs = socket.socketpair()
    try:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        return StreamWriter(ours, pieces, patient=patient), theirs
    except BaseException:
        ours.close()
        theirs.close()
        raise
