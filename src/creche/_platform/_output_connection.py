"""Output of a child on Windows: what Python code writes to ``sys.stdout`` and ``sys.stderr``.

Windows has no descriptors 1 and 2 that could be replaced for all the code of a process, so output
is taken where Python writes it, and goes over a connection of its own: a child that writes faster
than its parent reads waits, and nothing else has to wait with it. All of this works on POSIX, too,
where it is tested.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any

from ._connection_poller import ConnectionPoller, PipeEnd

if sys.platform == "win32":
    from ._windows import DescriptorForChild
else:
    from ._posix import DescriptorForChild

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_MESSAGE_BYTES = 64 * 1024

# What a dead child has left in the pipe, with a wide margin.
_LEFT_BYTES = 1024 * 1024


class OutputReceiver:
    """The parent's end; the watcher uses it."""

    def __init__(self, connection: PipeEnd) -> None:
        self._connection = connection

    def watch(self, poller: ConnectionPoller, callback: Callable[[], None]) -> None:
        poller.watch(self._connection, callback)

    def unwatch(self, poller: ConnectionPoller) -> None:
        poller.unwatch(self._connection)

    def receive(self) -> bytes | None:
        """Return what there is: ``b""`` at the end, and ``None`` where there is nothing now."""
        try:
            if not self._connection.poll(0):
                return None
            return self._connection.recv_bytes(_MESSAGE_BYTES)
        except (EOFError, OSError):  # the end; or something that is no message of ours
            return b""

    def left(self) -> int:
        """How many bytes there may be."""
        return _LEFT_BYTES

    def close(self) -> None:
        self._connection.close()


class OutputSender:
    """The child's end. It travels to the child with the process object."""

    def __init__(self, connection: PipeEnd) -> None:
        self._connection = connection

    def __getstate__(self) -> dict[str, Any]:
        handle = DescriptorForChild(self._connection.fileno())
        return {"type": type(self._connection), "handle": handle}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._connection = state["type"](state["handle"].detach(), readable=False)

    def replace(self, *names: str) -> None:
        """In the child: from here on, what is written to ``sys.stdout``, or ``sys.stderr``, comes
        here."""
        text = io.TextIOWrapper(
            io.BufferedWriter(_MessageWriter(self._connection), _MESSAGE_BYTES),
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=True,
        )
        for name in names:
            with contextlib.suppress(Exception):  # there may be none
                getattr(sys, name).flush()
            setattr(sys, name, text)

    def close(self) -> None:
        """In the parent, when the child has its own."""
        self._connection.close()


class _MessageWriter(io.RawIOBase):
    """A file that sends what is written to it."""

    def __init__(self, connection: PipeEnd) -> None:
        self._connection = connection

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data).cast("B")[:_MESSAGE_BYTES]
        if view:
            self._connection.send_bytes(view)
        return len(view)


def output_pipe() -> tuple[OutputReceiver, OutputSender]:
    """Make a pipe for output: the parent's end, and the child's.

    :raises OSError: if there are no handles left
    """
    ours, theirs = Pipe(duplex=False)
    return OutputReceiver(ours), OutputSender(theirs)


def merge_output() -> None:
    """In the child: have ``sys.stderr`` go where ``sys.stdout`` goes."""
    sys.stderr = sys.stdout
