"""The wire on POSIX: a socket pair, which the watcher reads and writes without ever blocking."""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from .._wire._framing import Buffer
from ._selector_poller import DescriptorPoller

assert sys.platform != "win32" or not TYPE_CHECKING

# Most messages are small. Large reads come from fresh memory each, and pay with big ones alone.
_SMALL_READ_BYTES = 64 * 1024
_READ_BYTES = 256 * 1024

# One child's gigabyte must not keep the watcher from the other children.
_READS_IN_TURN = 8

# A child opens one line at most; the others are closed together with the wire.
_LINES_AT_ONCE = 8

# What a dead child has left in the socket's buffer, with a wide margin. A descendant that escaped
# from the process group could go on writing for ever.
_DRAIN_BYTES = 64 * 1024 * 1024


class ParentWire:
    """The parent's end. Everything but :meth:`send` before :meth:`attach` runs in the watcher."""

    def __init__(self, sock: socket.socket, *, lines: bool = False) -> None:
        """:param lines: whether the child may open lines over it"""
        self._sock = sock
        self._take_lines = lines
        sock.setblocking(False)
        self._outbox: deque[memoryview] = deque()
        self._poller: DescriptorPoller | None = None
        self._on_data: Callable[[bytes], None] | None = None
        self._read_bytes = _SMALL_READ_BYTES
        self._lines: deque[int] = deque()

    def send(self, pieces: Iterable[Buffer]) -> None:
        """Send what the socket takes now, and the rest when it takes more."""
        self._outbox.extend(memoryview(piece).cast("B") for piece in pieces)
        self._flush()
        if self._outbox and self._poller is not None:
            self._poller.watch_writable(self._sock.fileno(), self._flush)

    def send_at_once(self, data: bytes) -> None:
        """Send a small message: in one system call, where nothing else is on its way."""
        if not self._outbox:
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:  # EPIPE, as below
                return
            if sent == len(data):
                return
            self.send([memoryview(data)[sent:]])
        else:
            self.send([data])

    def ask_to_stop(self) -> bool:
        """Return whether asking to stop is the wire's business: it is done by signals here."""
        return False

    def attach(self, poller: DescriptorPoller, on_data: Callable[[bytes], None]) -> None:
        """Begin to receive: ``on_data`` gets what arrives, and ``b""`` once at the end."""
        self._poller = poller
        self._on_data = on_data
        poller.watch(self._sock.fileno(), self._receive)
        if self._outbox:
            poller.watch_writable(self._sock.fileno(), self._flush)

    def take_line(self) -> socket.socket | None:
        """Return our end of a line that the child has announced, if there is one."""
        return socket.socket(fileno=self._lines.popleft()) if self._lines else None

    def drain(self) -> None:
        """Take in what a dead child has left."""
        for _ in range(_DRAIN_BYTES // _READ_BYTES):
            if self._poller is None or not self._receive_once():
                return

    def close(self) -> None:
        self._detach()
        self._outbox.clear()
        self._sock.close()
        while self._lines:
            os.close(self._lines.popleft())

    def forget(self) -> None:
        """In a fork of this process: close our copy. The poller belongs to the parent."""
        self._sock.close()

    def _receive(self) -> None:
        for _ in range(_READS_IN_TURN):
            asked = self._read_bytes
            # After a short read there is nothing more, or the poller will say so.
            if self._receive_once() < asked or self._poller is None:
                return

    def _receive_once(self) -> int:
        """Receive; return how many bytes came: none where there are none now, or at the end."""
        assert self._on_data is not None
        asked = self._read_bytes
        try:
            if self._take_lines:
                data, lines, _, _ = socket.recv_fds(self._sock, asked, _LINES_AT_ONCE)
                self._lines.extend(lines)
            else:
                data = self._sock.recv(asked)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:  # ECONNRESET: the child died with our data unread
            data = b""
        self._read_bytes = _READ_BYTES if len(data) == asked else _SMALL_READ_BYTES
        if not data:
            self._detach()
        self._on_data(data)
        return len(data)

    def _flush(self) -> None:
        while self._outbox:
            piece = self._outbox[0]
            try:
                sent = self._sock.send(piece)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # EPIPE: nobody reads any more, which its exit code will explain
                self._outbox.clear()
                break
            if sent == len(piece):
                self._outbox.popleft()
            else:
                self._outbox[0] = piece[sent:]
        if self._poller is not None:
            self._poller.unwatch_writable(self._sock.fileno())

    def _detach(self) -> None:
        if self._poller is not None:
            self._poller.unwatch(self._sock.fileno())
            self._poller = None


class ChildWire:
    """The child's end, which blocks. It travels to the child with the process object."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection  # owns the descriptor

    def close(self) -> None:
        """In the parent, when the child has its own."""
        self._connection.close()

    def listen(self) -> None:
        """Begin to hear of requests to stop: nothing is to be done for signals."""

    def send(self, pieces: Iterable[Buffer]) -> None:
        for piece in _joined_if_small(pieces):
            self.write(piece)

    def write(self, data: Buffer) -> None:
        """Send what is in one piece."""
        written = os.write(self._connection.fileno(), data)
        view = memoryview(data).cast("B")
        while written < len(view):
            view = view[written:]
            written = os.write(self._connection.fileno(), view)

    def open_line(self, announcement: bytes) -> socket.socket | None:
        """Open a socket to the parent, whose end goes there together with ``announcement``.

        :raises OSError: if there are no descriptors left, or the parent is gone
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs, socket.socket(fileno=os.dup(self._connection.fileno())) as wire:
                socket.send_fds(wire, [announcement], [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        return ours

    def receive(self) -> bytes:
        """Return what has arrived, at least a byte; ``b""`` at the end."""
        return os.read(self._connection.fileno(), _SMALL_READ_BYTES)

    def receive_exactly(self, size: int) -> bytes:
        """Return ``size`` bytes, or ``b""`` at the end."""
        data = os.read(self._connection.fileno(), size)
        while data and len(data) < size:
            more = os.read(self._connection.fileno(), size - len(data))
            if not more:
                return b""
            data += more
        return data


def wire_pair(*, lines: bool = False) -> tuple[ParentWire, ChildWire]:
    """Make a wire: the parent's end, and the child's.

    :param lines: whether the child may open lines over it

    :raises OSError: if there are no descriptors left
    """
    ours, theirs = socket.socketpair()
    return ParentWire(ours, lines=lines), ChildWire(Connection(theirs.detach()))


def _joined_if_small(pieces: Iterable[Buffer]) -> Iterable[Buffer]:
    """Join the small pieces of a frame, so that it arrives in one system call."""
    small: list[Buffer] = []
    size = 0
    for piece in pieces:
        length = memoryview(piece).nbytes
        if length > _READ_BYTES:
            yield b"".join(small)
            small, size = [], 0
            yield piece
        else:
            small.append(piece)
            size += length
            if size > _READ_BYTES:
                yield b"".join(small)
                small, size = [], 0
    yield b"".join(small)
