"""What creche keeps in a process for all of its children: threads, the lifeline, who is alive.

There is one :class:`Runtime` a process. A fork of the process has none of the threads and must not
touch what belongs to its parent, so it forgets all of it and makes its own on demand.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol

from ._loops import Latch
from ._multiprocessing import util
from ._platform import Lifeline
from ._starter import Starter
from ._stop_policy import StopPolicy
from ._watcher import Watcher
from ._worker_threads import WorkerThreads


class LiveProcess(Protocol):
    """What the runtime has to know of a process."""

    policy: StopPolicy
    gone: Latch

    def stop(self, policy: StopPolicy) -> None: ...

    def forget(self) -> None: ...


class Runtime:
    """The machinery that the children of one process share."""

    def __init__(self) -> None:
        self.lifeline = Lifeline()
        try:
            self.starter = Starter()
            self.watcher = Watcher()
        except BaseException:
            self.lifeline.close()
            raise
        self.picklers = WorkerThreads("creche-pickler", limit=2)
        self.loggers = WorkerThreads("creche-logs", limit=1)  # which keeps records in order
        self.live: set[LiveProcess] = set()
        self.forgotten = False
        """Whether this process is a fork of the one that all this belongs to."""

    def stop_all(self) -> None:
        """At the end of the interpreter: leave no child behind. Blocks.

        ``multiprocessing`` would join them, and wait for ever for one that never ends.
        """
        handles = list(self.live)
        for handle in handles:
            handle.stop(handle.policy)
        for handle in handles:
            seconds = handle.policy.grace + 2 * handle.policy.kill_timeout
            handle.gone.wait_in_thread(min(seconds, threading.TIMEOUT_MAX))  # it may be infinite

    def forget(self) -> None:
        """In a fork of this process: close our copies of what the parent uses."""
        self.forgotten = True
        self.lifeline.close()
        self.watcher.forget()
        for handle in list(self.live):
            handle.forget()


_runtime: Runtime | None = None
_lock = threading.Lock()


def runtime() -> Runtime:
    """Return this process's runtime, made on first use.

    :raises OSError: if there are no descriptors left
    :raises RuntimeError: if there are no threads left
    """
    global _runtime
    with _lock:
        if _runtime is None:
            _runtime = Runtime()
            # multiprocessing runs finalizers at the end of the main process and of its children
            # alike, the highest priority first, and joins what is left of its processes after that.
            util.Finalize(None, _runtime.stop_all, exitpriority=1000)
        return _runtime


def picklers() -> WorkerThreads:
    """Return the threads that pickle and unpickle what is too heavy for an event loop."""
    return runtime().picklers


def has_runtime() -> bool:
    """Whether this process has made use of :func:`runtime`."""
    return _runtime is not None


def _forget_runtime() -> None:
    global _runtime, _lock
    _lock = threading.Lock()  # a thread of the parent may have held it
    if _runtime is not None:
        forgotten, _runtime = _runtime, None
        forgotten.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_runtime)
