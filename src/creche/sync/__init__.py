"""Locks, events, queues and the like across processes.

Whatever is made here can be passed to other processes, as an argument of any call of creche's or
inside one, and further on from there; all of them then use the same one. Its state is kept by the
process that made it, in which it exists as long as the object does. If that process ends, or lets
go of the object, whoever uses it elsewhere gets an :exc:`anyio.BrokenResourceError`.

Names are those of anyio. What has to wait, for its turn or for an answer from another process, is
``async``, and has a twin whose name ends in ``_sync`` for code without an event loop: that one
blocks its thread, and takes a ``timeout``. What does not wait (``release``, ``set``) is a plain
method for both. ``async with`` and ``with`` work alike.

A process that dies has released what it held, and waits for nothing any more.
"""

from __future__ import annotations

from ._queue import Queue
from ._signals import Barrier, Event
from ._statistics import (
    BarrierStatistics,
    CapacityLimiterStatistics,
    EventStatistics,
    LockStatistics,
    QueueStatistics,
    SemaphoreStatistics,
)
from ._tokens import CapacityLimiter, Lock, Semaphore

__all__ = [
    "Barrier",
    "BarrierStatistics",
    "CapacityLimiter",
    "CapacityLimiterStatistics",
    "Event",
    "EventStatistics",
    "Lock",
    "LockStatistics",
    "Queue",
    "QueueStatistics",
    "Semaphore",
    "SemaphoreStatistics",
]

# Tracebacks, pickles and the documentation show the public names.
for _name in __all__:
    globals()[_name].__module__ = __name__
