"""Descriptors that tell of the end of a process."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import sys
from typing import TYPE_CHECKING

assert sys.platform != "win32" or not TYPE_CHECKING

# From <linux/pidfd.h>: struct pidfd_info up to its exit_code, and what asks for that.
_PIDFD_INFO = struct.Struct("=QQ11Ii")
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = 0xC000FF0B | _PIDFD_INFO.size << 16

# Seconds. A dead process that has lost its parent is reaped by the system at once.
_TIME_TO_REAP_ORPHANS = 0.05


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


def is_readable(descriptor: int, timeout: float = 0.0) -> bool:
    """Whether a descriptor can be read, or is within ``timeout`` seconds."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(1000 * timeout))


def is_reaped(pidfd: int, timeout: float = 0.0) -> bool:
    """Whether a process was reaped, or is within ``timeout`` seconds. On Linux, from 6.9 on.

    One that has ended is about to be, and may have to wait for a CPU first; or for a debugger.
    """
    poller = select.poll()
    poller.register(pidfd, 0)  # POLLHUP, which always counts
    return bool(poller.poll(1000 * timeout))


def open_reaped_descriptor(pidfd: int) -> int:
    """Return a descriptor that becomes readable when the process has not only ended: see
    :func:`is_reaped`.

    :raises OSError: if there are no descriptors left
    """
    if sys.platform != "linux":
        raise NotImplementedError("pidfds are Linux's")
    with select.epoll() as poller:
        poller.register(pidfd, 0)
        return os.dup(poller.fileno())


def let_kernel_reap() -> bool:
    """Have the children of this process reaped as soon as they end; return whether that is done.

    It is done where the kernel then tells their exit codes to whoever has a pidfd: that takes one
    process less to wake up.
    """
    handler = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        go_on, wait = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(wait)
            os.read(go_on, 1)  # until there is a pidfd
            os._exit(7)
        try:
            pidfd = open_exit_descriptor(pid)
        finally:
            os.close(go_on)
            os.close(wait)
        if pidfd is not None:
            try:
                if is_readable(pidfd, 1.0) and exit_code_of(pidfd) == 7:
                    return True
            finally:
                os.close(pidfd)
    signal.signal(signal.SIGCHLD, handler)
    return False


def exit_code_of(pidfd: int) -> int | None:
    """The exit code of a process that has ended and was reaped by somebody else.

    ``None`` where the kernel does not tell, which it does from Linux 6.15 on.
    """
    if sys.platform != "linux":
        return None
    import fcntl

    question = _PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, question)  # fails at once where there is no such thing
        is_reaped(pidfd, _TIME_TO_REAP_ORPHANS)
        answer = fcntl.ioctl(pidfd, _PIDFD_GET_INFO, question)
    except OSError:
        return None
    mask, *_, status = _PIDFD_INFO.unpack(answer)
    return os.waitstatus_to_exitcode(status) if mask & _PIDFD_INFO_EXIT else None
