"""What a pool tells about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """One worker of a :class:`creche.ProcessPool`."""

    name: str
    """The name of its process."""
    pid: int | None
    """Its process id; ``None`` before the process exists."""
    state: str
    """``"starting"``, ``"idle"``, ``"busy"`` or ``"ending"``."""
    tasks: int
    """How many calls it has served; a chunk of a map counts as one."""
    seconds_busy: float
    """How many seconds these took in all."""


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """What :meth:`creche.ProcessPool.statistics` returns: how things are just now."""

    workers_alive: int
    """Processes that serve calls, or are about to."""
    workers_starting: int
    """Those of them that are not ready yet."""
    workers_idle: int
    """Those that have nothing to do."""
    workers_busy: int
    """Those that have a call."""
    calls_queued: int
    """Calls, and chunks of maps, that no worker has begun."""
    calls_running: int
    """Calls, and chunks of maps, that a worker has begun."""
    calls_done: int
    """Calls, and items of maps, that gave a value."""
    calls_failed: int
    """Calls, and items of maps, that gave an error."""
    calls_cancelled: int
    """Calls, and chunks of maps, that were cancelled or ran out of time."""
    restarts: int
    """Workers that died or were stopped before their time."""
    workers: tuple[WorkerStatistics, ...]
    """Each worker."""
