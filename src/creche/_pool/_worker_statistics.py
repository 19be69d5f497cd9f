"""Counting what the workers of a pool are at."""

from __future__ import annotations

from collections.abc import Iterable

from ._statistics import PoolStatistics, WorkerStatistics
from ._worker import Worker, WorkerState


def statistics_of(
    workers: Iterable[Worker], *, queued: int, done: int, failed: int, cancelled: int, restarts: int
) -> PoolStatistics:
    """Describe a pool.

    :param queued: calls that were not given to a worker
    """
    workers = sorted(workers, key=lambda worker: worker.number)
    each = tuple(
        WorkerStatistics(
            name=worker.process.name,
            pid=worker.handle.pid,
            state=_state_of(worker),
            tasks=worker.tasks,
            seconds_busy=worker.seconds_busy,
        )
        for worker in workers
    )
    states = [worker.state for worker in each]
    return PoolStatistics(
        workers_alive=len(states) - states.count("ending"),
        workers_starting=states.count("starting"),
        workers_idle=states.count("idle"),
        workers_busy=states.count("busy"),
        calls_queued=queued + sum(max(0, len(worker.calls) - 1) for worker in workers),
        calls_running=sum(bool(worker.calls) for worker in workers),
        calls_done=done,
        calls_failed=failed,
        calls_cancelled=cancelled,
        restarts=restarts,
        workers=each,
    )


def _state_of(worker: Worker) -> str:
    if worker.state is WorkerState.READY:
        return "busy" if worker.calls else "idle"
    return "starting" if worker.state is WorkerState.STARTING else "ending"
