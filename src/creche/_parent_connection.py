"""The child's connection to its parent."""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from ._errors import ProcessStateError
from ._platform import ChildWire
from ._stop_request import StopListener
from ._wire._framing import Frame, FrameKind, FrameReader, Section, pack
from ._wire._outcomes import Message


@dataclass(frozen=True, slots=True)
class CurrentProcess:
    """The process that runs the caller: what :func:`creche.from_process.current_process` gives."""

    name: str
    """Its name, in errors and log records too."""
    pid: int
    """Its process id."""
    parent_pid: int
    """The process id of the application that started it (with some start methods another process
    forks it)."""
    start_method: str
    """How it came into being: ``"creche"``, ``"forkserver"``, ``"spawn"`` or ``"fork"``."""
    backend: str
    """anyio's name of the event loop that its async functions run in."""


class ParentConnection:
    """The child's connection to its parent. Any thread of the child may use it."""

    def __init__(self, wire: ChildWire, stop: StopListener) -> None:
        self.pid = os.getpid()
        self.stop = stop
        self.facts: CurrentProcess
        self.serves_calls = False
        """Whether this is a worker: nobody waits for its ``started()``."""
        self.send_progress: Callable[[Section], object] = self._send_progress
        self._wire = wire
        self._frames = FrameReader()
        # Reentrant: a finalizer or a signal handler that logs interrupts whatever a thread does.
        self._sending = threading.RLock()
        self._in_frame = False
        self._postponed: deque[Message] = deque()
        self._said_started = False
        self._cut_off = False
        self._listeners: list[Callable[[Frame | None], object]] = []
        self._reading = threading.Lock()
        self._reader: threading.Thread | None = None

    def send(self, message: Message) -> bool:
        """Send a message; return whether there was a connection to send it over.

        One that comes while this thread is in the middle of another is sent after that.
        """
        # A request to stop must not strike in the middle of a frame.
        with self.stop.deferring(), self._sending:
            if self._in_frame:
                self._postponed.append(message)
                return not self._cut_off
            sent = self._send_frame(message)
            self._send_postponed()
        return sent

    def _send_frame(self, message: Message) -> bool:
        if self._cut_off:
            return False
        try:
            self._in_frame = True
            self._wire.send(pack(*message))
        except OSError:  # the parent is gone, or the function closed every descriptor
            return False
        except BaseException:
            self._cut_off = True
            raise
        finally:
            self._in_frame = False
        return True

    def _send_postponed(self) -> None:
        while self._postponed:
            try:
                message = self._postponed.popleft()
            except IndexError:  # interrupted by one that was not postponed, and sent the others
                return
            self._send_frame(message)

    def _send_progress(self, section: Section) -> None:
        self.send((FrameKind.PROGRESS, [section]))

    def send_started(self, message: Message) -> None:
        """Send what ``started()`` was given.

        :raises ProcessStateError: if it was called before
        """
        if self.serves_calls:
            return
        if self._said_started:
            raise ProcessStateError("started() was called before in this process")
        self._said_started = True
        self.send(message)

    def receive_call(self) -> list[Section]:
        """Block until the function and its arguments are here."""
        while data := self._wire.receive():
            for frame in list(self._frames.feed(data)):
                if frame.kind is FrameKind.CALL:
                    return frame.sections
        raise EOFError("the parent closed the connection")

    def open_line(self) -> socket.socket | None:
        """Open a socket to the parent's event loop; ``None`` where there is no such thing.

        :raises ProcessStateError: if this thread is in the middle of sending something
        """
        with self.stop.deferring(), self._sending:
            if self._in_frame:
                raise ProcessStateError(
                    "a finalizer cannot ask the parent while something is being sent to it"
                )
            try:
                self._in_frame = True
                line = self._wire.open_line(b"".join(pack(FrameKind.LINE)))
            finally:
                self._in_frame = False
            self._send_postponed()
        return line

    def listen(self, on_frame: Callable[[Frame | None], object]) -> None:
        """Have ``on_frame`` called, in a thread, with what the parent says; ``None`` at the end.

        :raises RuntimeError: if the system has no threads left
        """
        self._listeners.append(on_frame)
        if not self._reading.acquire(
            blocking=False
        ):  # there is one, or this has interrupted itself
            return
        self._reader = threading.Thread(target=self._read, name="creche-replies", daemon=True)
        try:
            self._reader.start()
        except RuntimeError:
            self._listeners.remove(on_frame)
            self._reading.release()
            raise

    @property
    def sends_here(self) -> bool:
        """Whether the caller has interrupted its thread in the middle of sending something."""
        with self.stop.deferring(), self._sending:
            return self._in_frame

    @property
    def listens_here(self) -> bool:
        """Whether the caller is the thread that calls those who listen."""
        return self._reader is not None and self._reader.ident == threading.get_ident()

    def _read(self) -> None:
        try:
            while data := self._wire.receive():
                for frame in self._frames.feed(data):
                    self._tell(frame)
        except OSError:  # the function closed every descriptor
            pass
        self._tell(None)

    def _tell(self, frame: Frame | None) -> None:
        for listener in list(self._listeners):
            listener(frame)


_current: ParentConnection | None = None


def set_parent_connection(connection: ParentConnection) -> None:
    """In a child: this is the connection to the parent from here on."""
    global _current
    _current = connection


def parent_connection() -> ParentConnection | None:
    """The connection to the parent, or ``None`` where this is not a child of creche's."""
    if _current is None or _current.pid != os.getpid():
        return None
    return _current


def deferring_stop() -> AbstractContextManager[None]:
    """Have a request to stop take effect at the end of the block, where this is a child."""
    connection = parent_connection()
    return _NOT_A_CHILD if connection is None else connection.stop.deferring()


_NOT_A_CHILD = nullcontext()
