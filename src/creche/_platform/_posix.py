"""POSIX: process groups and signals, seen from both sides."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._multiprocessing import reduction
from ._missed_signals import MISSES_SIGNALS, SignalThread

assert sys.platform != "win32" or not TYPE_CHECKING


def has_pidfds() -> bool:
    """Whether there are descriptors for processes: on Linux from 5.3 on."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):  # not in every build
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


DEFAULT_START_METHOD = "creche" if has_pidfds() else "forkserver"

DescriptorForChild: Any = reduction.DupFd
"""A descriptor on its way to the child that is being started, which calls its ``detach()``."""


def isolate_child() -> None:
    """In a new child: leave the parent's process group.

    A terminal's Ctrl-C goes to the foreground process group. The parent alone is to get it, and to
    stop its children in order.
    """
    # EPERM: we lead a session already, and with it a group of our own.
    with contextlib.suppress(PermissionError):
        os.setpgid(0, 0)
    # It was blocked since before we were born. Ignoring it drops one that came meanwhile.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler if handler is None else handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def reset_signals() -> None:
    """In a fork: drop the handlers, and the descriptor that wakes the parent's event loop."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)


def on_stop_request(callback: Callable[[], None], on_nudge: Callable[[], None]) -> None:
    """In a child: have ``callback`` called in the main thread whenever the parent asks to stop.

    :param on_nudge: called there when the parent reminds the process of that
    """
    signal.signal(signal.SIGTERM, lambda _signum, _frame: callback())
    # It interrupts system calls, as it has a handler: see creche._stopping for its use.
    signal.signal(signal.SIGCONT, lambda _signum, _frame: on_nudge())


def on_missed_stop_request(callback: Callable[[], None]) -> SignalThread | None:
    """In a fork: have ``callback`` called in a thread for requests that the main one may miss.

    ``None`` where it misses none.
    """
    return SignalThread(signal.SIGTERM, callback) if MISSES_SIGNALS else None


def deliver_stop_request() -> None:
    """In any thread of a child: tell the main thread that the parent asks to stop."""
    os.kill(os.getpid(), signal.SIGTERM)  # the main thread gets it, and wakes up


def nudge_main_thread() -> None:
    """In any thread of a child: have a request noticed that arrived just before a wait began."""
    os.kill(os.getpid(), signal.SIGCONT)


def default_stop_request() -> None:
    """In a child: from here on, being asked to stop ends the process at once."""
    # For one that comes in the middle of this, the interpreter would find no handler any more, and
    # complain of that.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCONT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def die_as_terminated() -> None:
    """In a child: end as a process that SIGTERM ended does, with exit code -15."""
    default_stop_request()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGTERM)


def wait_for_socket(sock: socket.socket) -> None:
    """Block the main thread of a child until there is something to receive, or a request to stop
    raises an exception."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    poller.poll()


def limit_memory(limit: int) -> None:
    """Have this process get no more than ``limit`` bytes of memory of its own.

    Asking for more fails, which Python turns into a :exc:`MemoryError`. What counts is private
    memory that can be written to (``RLIMIT_DATA``): neither code, nor files and segments that are
    mapped. macOS accepts the limit, and does not keep it.
    """
    _, highest = resource.getrlimit(resource.RLIMIT_DATA)
    if highest != resource.RLIM_INFINITY:
        limit = min(limit, highest)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, highest))


def lift_memory_limit() -> None:
    """Undo :func:`limit_memory`."""
    _, highest = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (highest, highest))


def usable_cpus() -> int:
    """The number of CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
