"""Output of a child on POSIX: a pipe whose write end becomes its standard output.

C code and the child's own children write there, too.
"""

from __future__ import annotations

import fcntl
import os
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

assert sys.platform != "win32" or not TYPE_CHECKING

from ._posix import DescriptorForChild
from ._selector_poller import DescriptorPoller

# As much as a pipe holds by default.
_READ_BYTES = 64 * 1024

_NUMBERS = {"stdout": 1, "stderr": 2}


class OutputReceiver:
    """The parent's end; the watcher uses it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def watch(self, poller: DescriptorPoller, callback: Callable[[], None]) -> None:
        if self._descriptor is not None:
            poller.watch(self._descriptor, callback)

    def unwatch(self, poller: DescriptorPoller) -> None:
        if self._descriptor is not None:
            poller.unwatch(self._descriptor)

    def receive(self) -> bytes | None:
        """Return what there is: ``b""`` at the end, and ``None`` where there is nothing now."""
        assert self._descriptor is not None
        try:
            return os.read(self._descriptor, _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return None

    def left(self) -> int:
        """How many bytes are there. Whoever still writes adds to them later."""
        assert self._descriptor is not None
        count = fcntl.ioctl(self._descriptor, termios.FIONREAD, b"\0" * 4)
        return int.from_bytes(count, sys.byteorder)

    def close(self) -> None:
        # A fork that another thread makes meanwhile must not close what has the number by then.
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class OutputSender:
    """The child's end. It travels to the child with the process object."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __getstate__(self) -> Any:
        return DescriptorForChild(self._descriptor)

    def __setstate__(self, descriptor: Any) -> None:
        self._descriptor = _above_standard(descriptor.detach())

    def replace(self, *names: str) -> None:
        """In the child: from here on, what is written to ``sys.stdout``, or ``sys.stderr``, and to
        its descriptor, comes here."""
        for name in names:
            flush(name)
            os.dup2(self._descriptor, _NUMBERS[name])
            _set_up_text(name)
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)


def output_pipe() -> tuple[OutputReceiver, OutputSender]:
    """Make a pipe for output: the parent's end, and the child's.

    :raises OSError: if there are no descriptors left
    """
    receiver, sender = os.pipe()
    os.set_blocking(receiver, False)
    return OutputReceiver(receiver), OutputSender(_above_standard(sender))


def merge_output() -> None:
    """In the child: have ``sys.stderr`` go where ``sys.stdout`` goes."""
    flush("stderr")
    with suppress(OSError):  # there is no standard output
        os.dup2(_NUMBERS["stdout"], _NUMBERS["stderr"])


def flush(name: str) -> None:
    with suppress(Exception):  # there may be none, or something of the application's
        getattr(sys, name).flush()


def _above_standard(descriptor: int) -> int:
    """Move a descriptor out of the way of those that are about to be replaced."""
    if descriptor > 2:
        return descriptor
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(descriptor)
    return moved


def _set_up_text(name: str) -> None:
    """Have Python write whole lines, which the parent can decode, to the descriptor."""
    number = _NUMBERS[name]
    options: Any = {"encoding": "utf-8", "errors": "backslashreplace"}
    for attribute in (f"__{name}__", name):
        # There may be none; in a fork, it may be an object that captures the parent's output.
        with suppress(Exception):
            stream = getattr(sys, attribute)
            if stream.fileno() == number:
                stream.reconfigure(**options, line_buffering=True)
                continue
        if attribute == name:
            text = open(number, "w", buffering=1, closefd=False, **options)  # noqa: SIM115
            setattr(sys, name, text)
