"""Windows: consoles and requests to stop, seen from the child.

There are no signals between processes. A request to stop comes over the wire, and is turned into
SIGINT by the thread that reads it. SIGINT, because it alone sets the event that CPython's main
thread waits for together with whatever else it waits for, in ``time.sleep()`` and in
``multiprocessing``'s locks and pipes: another signal would be seen when that wait is over. And the
console sends none to a child, which is started with ``CREATE_NEW_PROCESS_GROUP``.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing import connection
from typing import TYPE_CHECKING

from .._multiprocessing import context
from ._missed_signals import SignalThread

assert sys.platform == "win32" or not TYPE_CHECKING

from ._windows_job import lift_own_memory_limit, limit_own_memory

DEFAULT_START_METHOD = "spawn"

TERMINATED = 0x10000
"""The exit code with which ``multiprocessing`` terminates processes, and which it calls -15."""

_listening = False


def isolate_child() -> None:
    """In a new child: leave the console to the parent.

    In a process group of its own, Ctrl-C is disabled from birth, but Ctrl-Break is not.
    """
    signal.signal(signal.SIGBREAK, signal.SIG_IGN)


def on_stop_request(callback: Callable[[], None], on_nudge: Callable[[], None]) -> None:
    """In a child: have ``callback`` called in the main thread whenever the parent asks to stop.

    :param on_nudge: called there when the parent reminds the process of that
    """
    global _listening

    def handle(_signum: int, _frame: object) -> None:
        callback()
        on_nudge()

    signal.signal(signal.SIGINT, handle)
    _listening = True


def on_missed_stop_request(callback: Callable[[], None]) -> SignalThread | None:
    """``None``: there are no forks, which alone miss requests."""
    return None


def deliver_stop_request() -> None:
    """In any thread of a child: tell the main thread that the parent asks to stop."""
    if _listening:
        signal.raise_signal(signal.SIGINT)
    else:
        die_as_terminated()


def nudge_main_thread() -> None:
    """In any thread of a child: have a request noticed that arrived just before a wait began."""
    if _listening:
        signal.raise_signal(signal.SIGINT)


def default_stop_request() -> None:
    """In a child: from here on, being asked to stop ends the process at once."""
    global _listening
    _listening = False
    # For one that is just being delivered.
    signal.signal(signal.SIGINT, lambda _signum, _frame: die_as_terminated())


def die_as_terminated() -> None:
    """In a child: end as a process that was terminated does, with exit code -15."""
    os._exit(TERMINATED)


class DescriptorForChild:
    """A handle on its way to the child that is being started, which has it already.

    (``multiprocessing.reduction.DupHandle`` makes a duplicate in the parent, for the child to take
    from there; where the child dies before it does, the parent keeps it for ever.)
    """

    def __init__(self, handle: int) -> None:
        self._handle: int = context.get_spawning_popen().duplicate_for_child(handle)

    def detach(self) -> int:
        """In the child: the handle."""
        return self._handle


class Lifeline:
    """Nothing: what ends with this process is each child's job, see :mod:`._windows_job`."""

    def duplicate(self) -> int | None:
        """There is no descriptor for a child to inherit."""
        return None

    def close(self) -> None:
        pass


def wait_for_socket(sock: socket.socket) -> None:
    """Block the main thread of a child until there is something to receive, or a request to stop
    raises an exception."""
    # Unlike the socket's own methods, it waits for the event of SIGINT, too.
    connection.wait([sock])


def limit_memory(limit: int) -> None:
    """Have this process get no more than ``limit`` bytes of memory of its own."""
    limit_own_memory(limit)


def lift_memory_limit() -> None:
    """Undo :func:`limit_memory`."""
    lift_own_memory_limit()


def usable_cpus() -> int:
    """The number of CPUs."""
    return os.cpu_count() or 1
