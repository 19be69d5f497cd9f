"""A socket that any thread may send on, and that the watcher receives from; it blocks nobody."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable

from .._watcher import Watcher
from .._wire._framing import Buffer
from ._driver import socket_watcher

_READ_BYTES = 64 * 1024
_LARGE_READ_BYTES = 256 * 1024

# One connection's gigabyte must not keep the watcher from the others.
_READS_IN_TURN = 8

# Pieces up to here are joined, so that a message takes one system call.
_SMALL_BYTES = 16 * 1024

# Sent at once, so that a thread which sends much lets go of the GIL, and of the lock, in between.
_PIECE_BYTES = 256 * 1024


class Connection:
    """One end of a connection.

    :param sock: does not block
    :param on_data: called in the watcher with what arrives
    :param on_end: called in the watcher, once, when nothing more will
    """

    def __init__(
        self,
        sock: socket.socket,
        on_data: Callable[[bytes], object],
        on_end: Callable[[], object],
    ) -> None:
        self._sock = sock
        self._on_data = on_data
        self._on_end = on_end
        self._watcher: Watcher = socket_watcher()
        self._lock = threading.Lock()
        # What is to be sent, and with each piece how much of it was, in each go: a signal handler
        # may raise between any two bytecodes, and the next one to send goes on from there.
        self._outbox: deque[tuple[memoryview, list[int]]] = deque()
        self._held_back = False
        self._blocked = False
        self._closed = False
        self._read_bytes = _READ_BYTES
        self._watcher.call_soon(self._begin)

    @property
    def all_sent(self) -> bool:
        return not self._outbox

    def hold_back(self) -> None:
        """Send nothing that comes after what was sent until now, until :meth:`let_go`."""
        self._held_back = True

    def let_go(self) -> None:
        with self._lock:
            self._held_back = False
            self._flush()

    def send(self, pieces: Iterable[Buffer]) -> None:
        """Send what the socket takes now, and the rest when it takes more. From any thread.

        Nothing happens where nobody is at the other end: ``on_end`` tells.
        """
        views = [memoryview(piece).cast("B") for piece in pieces]
        if len(views) > 1 and sum(map(len, views)) <= _SMALL_BYTES:
            views = [memoryview(b"".join(views))]
        with self._lock:
            if not self._closed:
                self._outbox.extend([(view, []) for view in views])
                self._flush()

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call back in the watcher. From any thread, in the middle of anything."""
        self._watcher.call_soon(callback)

    def shut_down_sending(self) -> None:
        """Say that no more comes. From any thread; the other end is to end the connection then."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def forget(self) -> None:
        """In a fork of this process: close our copy."""
        self._closed = True
        self._sock.close()

    def _begin(self) -> None:
        if not self._closed:
            self._watcher.poller.watch(self._sock.fileno(), self._receive)

    def _flush(self) -> None:
        """Send; called with the lock held."""
        while self._outbox and not self._held_back:
            view, sent = self._outbox[0]
            offset = sum(sent)
            if offset < len(view):
                part = view[offset : offset + _PIECE_BYTES]
                try:
                    # In C from the system call to the list: nothing can come in between.
                    sent.extend(map(self._sock.send, (part,)))
                except (BlockingIOError, InterruptedError):
                    if not self._blocked:
                        self._blocked = True
                        self._watcher.call_soon(self._watch_writable)
                    return
                except OSError:  # EPIPE: the watcher is about to hear of it
                    self._outbox.clear()
                    return
            elif offset == len(view):
                self._outbox.popleft()

    def _watch_writable(self) -> None:
        with self._lock:
            if not self._closed and self._blocked:
                self._watcher.poller.watch_writable(self._sock.fileno(), self._go_on)

    def _go_on(self) -> None:
        """The socket takes more."""
        with self._lock:
            self._blocked = False
            self._flush()
            if not self._blocked:
                self._watcher.poller.unwatch_writable(self._sock.fileno())

    def _receive(self) -> None:
        for _ in range(_READS_IN_TURN):
            asked = self._read_bytes
            try:
                data = self._sock.recv(asked)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # ECONNRESET
                data = b""
            if not data:
                self.close()
                return
            self._read_bytes = _LARGE_READ_BYTES if len(data) == asked else _READ_BYTES
            self._on_data(data)
            if len(data) < asked or self._closed:
                return

    def close(self) -> None:
        """End the connection. In the watcher only."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._outbox.clear()
            self._watcher.poller.unwatch(self._sock.fileno())
            self._sock.close()
        self._on_end()
