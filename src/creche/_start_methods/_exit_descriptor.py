"""Descriptors that tell of the end of a process."""

from __future__ import annotations

import os
import select
import sys
from typing import TYPE_CHECKING

assert sys.platform != "win32" or not TYPE_CHECKING


def open_exit_descriptor(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process ends, whatever it left behind.

    ``None`` where the platform has none.

    :raises ProcessLookupError: if there is no such process
    """
    if sys.platform == "linux" and hasattr(os, "pidfd_open"):  # not in every build
        return os.pidfd_open(pid)
    # macOS, BSD: a kernel queue can itself be waited for.
    if sys.platform != "linux" and hasattr(select, "kqueue"):
        queue = select.kqueue()
        event = select.kevent(
            pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD | select.KQ_EV_ONESHOT, select.KQ_NOTE_EXIT
        )
        try:
            queue.control([event], 0)
            return os.dup(queue.fileno())
        finally:
            queue.close()
    return None


def has_ended(pid: int) -> bool:
    """Whether a child of this process has ended. It stays to be reaped.

    :raises ChildProcessError: if it was reaped
    """
    if hasattr(os, "waitid"):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    # macOS, before Python 3.13
    try:
        descriptor = open_exit_descriptor(pid)
    except ProcessLookupError:  # a zombie, or reaped: waitpid() will tell
        return True
    assert descriptor is not None, "neither waitid() nor kqueue()"
    try:
        return is_readable(descriptor)
    finally:
        os.close(descriptor)


def exit_descriptor_or(pipe: int, pid: int) -> int:
    """An exit descriptor for a child; a pipe that it holds open where there is none."""
    try:
        descriptor = open_exit_descriptor(pid)
    except OSError:  # no more descriptors, when the child exists already
        return pipe
    return pipe if descriptor is None else descriptor


def is_readable(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))
