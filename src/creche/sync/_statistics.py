"""What the objects tell of themselves: how it is at the moment, in the process that made them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EventStatistics:
    """What :meth:`Event.statistics` gives."""

    is_set: bool
    """Whether it is set."""
    tasks_waiting: int
    """How many tasks and threads wait for it, in all processes."""


@dataclass(frozen=True)
class LockStatistics:
    """What :meth:`Lock.statistics` gives."""

    locked: bool
    """Whether anybody holds it."""
    holder: int | None
    """The id of the process that does."""
    tasks_waiting: int
    """How many tasks and threads wait for it, in all processes."""
    abandoned_by: int | None
    """The id of the process that died with it, until the next holder has released it."""


@dataclass(frozen=True)
class SemaphoreStatistics:
    """What :meth:`Semaphore.statistics` gives."""

    value: int
    """How many tokens can be acquired at once."""
    acquired: int
    """How many tokens processes have, and give back when they die."""
    tasks_waiting: int
    """How many tasks and threads wait for one, in all processes."""


@dataclass(frozen=True)
class CapacityLimiterStatistics:
    """What :meth:`CapacityLimiter.statistics` gives."""

    borrowed_tokens: int
    """How many tokens are in use."""
    total_tokens: float
    """How many there are."""
    borrowers: dict[int, int]
    """How many tokens each process has, by its id."""
    tasks_waiting: int
    """How many tasks and threads wait for one, in all processes."""


@dataclass(frozen=True)
class BarrierStatistics:
    """What :meth:`Barrier.statistics` gives."""

    parties: int
    """How many tasks and threads open it."""
    broken: bool
    """Whether it is broken."""
    tasks_waiting: int
    """How many wait at it, in all processes."""


@dataclass(frozen=True)
class QueueStatistics:
    """What :meth:`Queue.statistics` gives."""

    maxsize: int
    """How many items it takes; 0 for no limit."""
    qsize: int
    """How many items are in it."""
    closed: bool
    """Whether it takes no more."""
    tasks_waiting_put: int
    """How many tasks and threads wait for room, in all processes."""
    tasks_waiting_get: int
    """How many wait for an item."""
