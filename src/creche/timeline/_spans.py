"""What is known of a process or a call that was recorded, as plain values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

Status = Literal["ok", "error", "cancelled", "killed", "running"]


@dataclass(frozen=True, slots=True)
class ProcessSpan:
    """The life of a process. Times are seconds since the recording began; ``None`` for what has
    not happened, or had happened before the recording began."""

    id: int
    """No other process of the recording has the same, unlike a pid."""
    name: str
    pid: int | None
    """``None`` where it could not be started."""
    kind: Literal["process", "worker"]
    """``"worker"`` for that of a pool."""
    pool: str | None
    """The name of the pool of a worker."""
    start_method: str
    func: str | None
    """The full name of its function, where that is known."""
    created: float
    started: float | None
    """When the process existed."""
    ready: float | None
    """When a worker could take calls, or the child called :func:`creche.from_process.started`."""
    stop_requested: float | None
    """When it began to be stopped."""
    exited: float | None
    exitcode: int | None
    status: Status
    """How it ended: ``"ok"``, ``"error"`` (its function failed), ``"cancelled"`` (it was stopped),
    ``"killed"`` (by a signal: it crashed, or did not stop in time), or ``"running"``."""
    error: str | None
    """What it failed with, in words."""


@dataclass(frozen=True, slots=True)
class CallSpan:
    """A call of a pool, or a chunk of a map. Times are seconds since the recording began."""

    id: int
    """No other call of the recording has the same."""
    func: str
    """The full name of the function."""
    pool: str
    """The name of the pool."""
    items: int
    """How many items of a map it has; 1 for a call."""
    process: int | None
    """The :attr:`ProcessSpan.id` of the worker that ran it; ``None`` where none did."""
    queued: float
    """When it was made. From here to ``started`` it waited."""
    started: float | None
    """When its worker had nothing to do before it; ``None`` where it never ran."""
    finished: float | None
    seconds: float | None
    """For how long the worker ran it, by the worker's own clock, where it has said so."""
    status: Status
    """How it ended; ``"running"`` if it has not, also while it waits."""
    error: str | None
    """What it failed with, in words."""


@dataclass(frozen=True, slots=True)
class Recording:
    """All that was recorded up to some time."""

    began: float
    """In seconds since the epoch."""
    pid: int
    seconds: float
    processes: tuple[ProcessSpan, ...]
    calls: tuple[CallSpan, ...]
    dropped: int


def calls_of_each(
    recording: Recording,
) -> Iterator[tuple[int, list[tuple[CallSpan, float]]]]:
    """Yield the id of each worker with its calls, in order, and the time at which each ended there.

    That is not always when the call was over: a large result may be on its way while the worker
    runs the next call already. A worker runs one at a time, and none when it is dead. One that runs
    still is taken to have ended with the recording.
    """
    exits = {process.id: process.exited for process in recording.processes}
    ran = [
        call for call in recording.calls if call.process is not None and call.started is not None
    ]
    ran.sort(key=lambda call: (call.process, call.started))
    for id, group in groupby(ran, key=lambda call: call.process):
        assert id is not None
        of_one = list(group)
        exited = exits.get(id)
        bounds = [call.started for call in of_one[1:]] + [None]
        ends: list[tuple[CallSpan, float]] = []
        for call, bound in zip(of_one, bounds, strict=True):
            assert call.started is not None
            times = (call.finished, bound, exited, recording.seconds)
            last = min(time for time in times if time is not None)
            ends.append((call, max(last, call.started)))
        yield id, ends
