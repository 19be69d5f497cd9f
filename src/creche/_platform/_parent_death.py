"""Children die with their parent, even when it is killed by SIGKILL.

On Linux the kernel does it. A child asks for a signal on the read end of a pipe whose write end
only the parent holds, with SIGKILL as that signal (``F_SETSIG``) and its own process group as the
receiver (``F_SETOWN`` with a negative number), see fcntl(2). The parent's end closes the write end,
and the whole group is gone, even where it sits in C code that holds the GIL. ``PR_SET_PDEATHSIG``
would not do: it fires when the *thread* that forked ends.

Elsewhere a thread in the child waits for the parent, which needs the GIL now and then.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

assert sys.platform != "win32" or not TYPE_CHECKING

_F_SETSIG = 10  # not in the fcntl module; the same number on every Linux architecture


class Lifeline:
    """The pipe that ends with this process: one for all of its children."""

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe()

    def duplicate(self) -> int:
        """Return a descriptor for a child to inherit, which the caller closes."""
        return os.dup(self._read_end)

    @property
    def path(self) -> str:
        """Where a process that did not inherit the read end can open it, on Linux."""
        return f"/proc/{os.getpid()}/fd/{self._read_end}"

    def close(self) -> None:
        """In a fork of this process: do not keep alive what this process's end should end."""
        os.close(self._read_end)
        os.close(self._write_end)


def die_with_parent(lifeline: int) -> None:
    """In a child that leads a process group: end the group when the parent ends.

    :param lifeline: the read end of the parent's :class:`Lifeline`, which this takes over
    """
    # F_SETOWN belongs to the open file, which all children share until they reopen it.
    if die_with_lifeline(f"/proc/self/fd/{lifeline}", signal.SIGKILL) is not None:
        os.close(lifeline)
        return
    threading.Thread(
        target=_wait_for_parent, args=(lifeline,), name="creche-parent-watch", daemon=True
    ).start()


def die_with_lifeline(path: str, number: int) -> int | None:
    """Have the kernel signal this process's group at the end of the pipe's last writer.

    :param path: where to open the read end of a :class:`Lifeline`
    :param number: the signal
    :return: a descriptor to keep open, or ``None`` where this cannot be: not on Linux, no ``/proc``
    """
    if sys.platform != "linux":
        return None
    try:
        pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    fcntl.fcntl(pipe, _F_SETSIG, number)
    fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_RDONLY | os.O_NONBLOCK | os.O_ASYNC)
    # A parent that ended before this was in place gives no signal any more.
    with contextlib.suppress(BlockingIOError):
        if not os.read(pipe, 1):
            os.killpg(os.getpgrp(), number)
    return pipe


def _wait_for_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # nobody writes to it
    _die()


def _die() -> None:
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
