"""The wire over ``multiprocessing``'s connections: how parent and child talk on Windows.

A Windows pipe has no non-blocking mode that a thread could wait for together with other things, so
the parent sends in threads: one for each child that something is on its way to, which is none most
of the time. A child that does not read keeps its thread until it dies, which breaks the pipe.

A pipe carries messages. Each is a piece of the stream of frames, of at most :data:`_MESSAGE_BYTES`.
Windows keeps messages whole, so a read after ``poll()`` never waits for the child. On POSIX, where
everything in here works too and is tested, it may wait for the second half of a message.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import Pipe
from queue import SimpleQueue
from typing import Any

from .._wire._framing import BadFrameError, Buffer, FrameKind, FrameReader, pack
from ._connection_poller import ConnectionPoller, PipeEnd

if sys.platform == "win32":
    from ._windows import DescriptorForChild, deliver_stop_request, nudge_main_thread
else:
    from ._posix import DescriptorForChild, deliver_stop_request, nudge_main_thread

# As large a copy as a thread that holds the GIL should make: a millisecond at worst.
_MESSAGE_BYTES = 1024 * 1024

# Pieces up to this size are joined, those beyond it sent from where they are.
_SMALL_BYTES = 64 * 1024

# One child's gigabyte must not keep the watcher from the other children.
_READS_IN_TURN = 4

# What a dead child has left in the pipe, with a wide margin. A descendant that escaped could go on
# writing for ever.
_DRAINED_MESSAGES = 64


class ParentWire:
    """The parent's end. All but the sending is done by whoever calls: the watcher."""

    def __init__(self, connection: PipeEnd) -> None:
        self._connection = connection
        self._poller: ConnectionPoller | None = None
        self._on_data: Callable[[bytes], None] | None = None
        self._lock = threading.Lock()  # guards what follows
        self._outbox: deque[Buffer] = deque()
        self._sending = False
        self._closed = False

    def send(self, pieces: Iterable[Buffer]) -> None:
        """Send in a thread of its own, after what is being sent already.

        :raises RuntimeError: if there can be no more threads
        """
        with self._lock:
            if self._closed:
                return
            self._outbox.extend(_messages(pieces))
            if self._sending:
                return
            self._sending = True
        try:
            threading.Thread(target=self._send_outbox, name="creche-sender", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._sending = False
            raise

    def send_at_once(self, data: bytes) -> None:
        """Send a small message."""
        self.send([data])

    def ask_to_stop(self) -> bool:
        """Ask the child to stop, or remind it; return whether that is the wire's business."""
        # No thread for it: the child is killed after its grace period.
        with contextlib.suppress(RuntimeError):
            self.send(pack(FrameKind.STOP))
        return True

    def attach(self, poller: ConnectionPoller, on_data: Callable[[bytes], None]) -> None:
        """Begin to receive: ``on_data`` gets what arrives, and ``b""`` once at the end."""
        self._poller = poller
        self._on_data = on_data
        poller.watch(self._connection, self._receive)

    def take_line(self) -> socket.socket | None:
        """Tell that children open no lines here."""
        return None

    def drain(self) -> None:
        """Take in what a dead child has left."""
        self._receive_at_most(_DRAINED_MESSAGES)

    def close(self) -> None:
        """Close the connection: now, or when the thread that sends has noticed that it is broken.

        The child is dead, or never lived.
        """
        self._detach()
        with self._lock:
            self._closed = True
            self._outbox.clear()
            if not self._sending:
                self._connection.close()

    def forget(self) -> None:
        """In a fork of this process: close our copy. The poller belongs to the parent."""
        self._connection.close()

    def _receive(self) -> None:
        self._receive_once()  # there is something, which need not be looked for again
        self._receive_at_most(_READS_IN_TURN - 1)

    def _receive_at_most(self, messages: int) -> None:
        for _ in range(messages):
            if self._poller is None or not self._is_readable():
                return
            self._receive_once()

    def _is_readable(self) -> bool:
        try:
            return self._connection.poll(0)
        except OSError:  # Windows: the pipe has ended
            return True

    def _receive_once(self) -> None:
        assert self._on_data is not None
        try:
            data = self._connection.recv_bytes(_MESSAGE_BYTES)
        except (EOFError, OSError):  # the end; or something that is no message of ours
            self._detach()
            self._on_data(b"")
        else:
            if data:  # nothing of creche's sends an empty message, which would look like the end
                self._on_data(data)

    def _detach(self) -> None:
        if self._poller is not None:
            self._poller.unwatch(self._connection)
            self._poller = None

    def _send_outbox(self) -> None:
        while (message := self._next_message()) is not None:
            try:
                self._connection.send_bytes(message)
            except OSError:  # nobody reads any more, which its exit code will explain
                with self._lock:
                    self._outbox.clear()

    def _next_message(self) -> Buffer | None:
        """The next message to send; where there is none the thread ends."""
        with self._lock:
            if self._outbox:
                return self._outbox.popleft()
            self._sending = False
            if self._closed:
                self._connection.close()
            return None


class ChildWire:
    """The child's end. It travels to the child with the process object.

    A thread of the child reads it, because a request to stop can come at any time.
    """

    def __init__(self, connection: PipeEnd) -> None:
        self._connection = connection
        self._received: SimpleQueue[bytes | None] = SimpleQueue()
        self._rest = b""

    def __getstate__(self) -> dict[str, Any]:
        # While a process is being started.
        handle = DescriptorForChild(self._connection.fileno())
        return {"type": type(self._connection), "handle": handle}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["type"](state["handle"].detach()))  # type: ignore[misc]

    def close(self) -> None:
        """In the parent, when the child has its own."""
        self._connection.close()

    def listen(self) -> None:
        """In the child, whose handler is in place: begin to hear of requests to stop."""
        threading.Thread(target=self._read, name="creche-wire", daemon=True).start()

    def send(self, pieces: Iterable[Buffer]) -> None:
        for message in _messages(pieces):
            self._connection.send_bytes(message)

    def write(self, data: Buffer) -> None:
        """Send what is in one piece."""
        self.send([data])

    def open_line(self, announcement: bytes) -> socket.socket | None:
        """Tell that event loops cannot wait for sockets of that kind here."""
        return None

    def receive_exactly(self, size: int) -> bytes:
        """Without :meth:`listen`: return ``size`` bytes, or ``b""`` at the end."""
        while len(self._rest) < size:
            try:
                self._rest += self._connection.recv_bytes(_MESSAGE_BYTES)
            except (EOFError, OSError):
                return b""
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def receive(self) -> bytes:
        """Return what has arrived, at least a byte; ``b""`` at the end."""
        while True:
            # On Windows nothing but its return ends this wait, so a request to stop ends it.
            data = self._received.get()
            if data is not None:
                return data

    def _read(self) -> None:
        reader = FrameReader()
        stop_is_here = False
        with contextlib.suppress(EOFError, OSError, BadFrameError):
            while True:
                data = self._connection.recv_bytes(_MESSAGE_BYTES)
                self._received.put(data)
                for frame in reader.feed(data):
                    if frame.kind is FrameKind.STOP and stop_is_here:
                        nudge_main_thread()
                    elif frame.kind is FrameKind.STOP:
                        stop_is_here = True
                        deliver_stop_request()
                        self._received.put(None)
                    del frame  # or its sections would stay for as long as nothing else comes
                del data
        self._received.put(b"")


def wire_pair(*, lines: bool = False) -> tuple[ParentWire, ChildWire]:
    """Make a wire: the parent's end, and the child's.

    :param lines: whether the child may open lines over it, which it cannot

    :raises OSError: if there are no handles left
    """
    ours, theirs = Pipe(duplex=True)
    return ParentWire(ours), ChildWire(theirs)


def _messages(pieces: Iterable[Buffer]) -> Iterator[Buffer]:
    """Cut and join the pieces of a frame into messages."""
    small = bytearray()
    for piece in pieces:
        view = memoryview(piece).cast("B")
        if len(view) <= _SMALL_BYTES:
            small += view
        if small and (len(small) >= _SMALL_BYTES or len(view) > _SMALL_BYTES):
            yield bytes(small)
            small = bytearray()
        if len(view) > _SMALL_BYTES:
            for start in range(0, len(view), _MESSAGE_BYTES):
                yield view[start : start + _MESSAGE_BYTES]
    if small:
        yield bytes(small)
