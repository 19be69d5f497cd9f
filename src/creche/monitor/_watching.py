"""The instrument that keeps the state of things as they are now."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Literal, final

from .._instruments import Instrument, ObservedCall, ObservedProcess

_clock = time.monotonic

ENDED_KEPT = 20
"""Processes that have ended, of each group, which are still known."""

State = Literal["starting", "running", "ready", "idle", "busy", "stopping", "ended"]


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process: a row of the table."""

    name: str
    pid: int | None
    """``None`` before the process exists."""
    state: State
    """A process of its own is ``"starting"``, ``"running"``, ``"ready"`` when it has said so,
    ``"stopping"`` and ``"ended"``; a worker ``"idle"`` or ``"busy"`` in place of the second."""
    func: str | None
    """What it runs: the full name of the function."""
    tasks: int
    """Calls that it has served; a chunk of a map counts as one."""
    failed: int
    """How many of them did not go well."""
    restarts: int
    """How many processes of the same name there were before it."""
    uptime: float
    """For how many seconds it has existed, or had."""
    exitcode: int | None
    cpu: float | None = None
    """Per cent of a CPU, since the last look; ``None`` where it is not known."""
    memory: int | None = None
    """Bytes that it has in memory, those included that it shares; when it has ended, the most that
    it was seen with. ``None`` if not known."""


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """The workers of a pool, or all processes that are none."""

    pool: str | None
    """The name of the pool; ``None`` for the processes that are no workers."""
    processes: tuple[ProcessStatus, ...]
    """Those that live, in the order of their creation."""
    ended: tuple[ProcessStatus, ...]
    """The last ones that have ended."""
    started: int
    """How many processes there have been in all."""
    waiting: int
    """Calls that no worker has begun."""
    tasks: int
    """Calls that are over, or processes; chunks of maps count as one."""
    failed: int
    """Those of them that failed or were killed. (Not those that were cancelled.)"""
    restarts: int
    """Processes that replaced one that had died, or that had the same name as one before."""


@final
class Watching(Instrument):
    """Knows all processes of the application."""

    def __init__(self) -> None:
        # Changed by single operations, as the hooks are called in several threads.
        self._groups: dict[str | None, _Group] = {}
        self._alive: dict[int, _Process] = {}

    def groups(self) -> tuple[GroupStatus, ...]:
        """Describe everything as it is now, from any thread: processes first, then pools."""
        now = _clock()
        alive = list(self._alive.copy().values())
        order = sorted(self._groups.copy().items(), key=lambda item: item[0] or "")
        return tuple(
            group.status(name, [known for known in alive if known.group is group], now)
            for name, group in order
        )

    def process_created(self, process: ObservedProcess) -> None:
        self._known(process)

    def process_started(self, process: ObservedProcess) -> None:
        known = self._known(process)
        known.started = _clock()
        known.state = "running"

    def process_ready(self, process: ObservedProcess) -> None:
        known = self._known(process)
        if known.state != "stopping":
            known.state = "idle" if process.kind == "worker" else "ready"

    def process_stop_requested(self, process: ObservedProcess) -> None:
        self._known(process).state = "stopping"

    def process_exited(self, process: ObservedProcess) -> None:
        known = self._known(process)
        now = _clock()
        group = known.group
        group.ended.append(replace(known.status(now), state="ended", exitcode=process.exitcode))
        self._alive.pop(process.id, None)
        went_wrong = process.exitcode != 0 or process.exception is not None
        if process.kind == "process":
            group.tasks += 1
            group.failed += went_wrong and not process.stop_requested
        else:
            group.deaths += went_wrong

    def call_queued(self, call: ObservedCall) -> None:
        self._group(call.pool).waiting[call.id] = None

    def call_started(self, call: ObservedCall) -> None:
        self._group(call.pool).waiting.pop(call.id, None)
        process = call.process
        known = None if process is None else self._alive.get(process.id)
        if known is not None:
            known.call = call

    def call_finished(self, call: ObservedCall) -> None:
        group = self._group(call.pool)
        group.waiting.pop(call.id, None)
        group.tasks += 1
        failed = call.status in ("error", "killed")
        group.failed += failed
        process = call.process
        known = None if process is None else self._alive.get(process.id)
        if known is not None:
            known.tasks += 1
            known.failed += failed
            if known.call is call:  # it may have the next one already
                known.call = None

    def _group(self, pool: str | None) -> _Group:
        group = self._groups.get(pool)
        return self._groups.setdefault(pool, _Group()) if group is None else group

    def _known(self, process: ObservedProcess) -> _Process:
        known = self._alive.get(process.id)
        if known is None:
            group = self._group(process.pool if process.kind == "worker" else None)
            known = self._alive[process.id] = _Process(process, group)
        return known


class _Group:
    def __init__(self) -> None:
        self.ended: deque[ProcessStatus] = deque(maxlen=ENDED_KEPT)
        self.waiting: dict[int, None] = {}
        self.started = 0
        self.tasks = 0
        self.failed = 0
        self.deaths = 0
        self.namesakes = 0
        self.names: dict[str, int] = {}

    def status(self, pool: str | None, alive: list[_Process], now: float) -> GroupStatus:
        return GroupStatus(
            pool=pool,
            processes=tuple(known.status(now) for known in alive),
            ended=tuple(self.ended.copy()),
            started=self.started,
            waiting=len(self.waiting),
            tasks=self.tasks,
            failed=self.failed,
            restarts=self.namesakes if pool is None else self.deaths,
        )


_NAMES_KEPT = 10_000
"""Of so many names is known that there was a process before: memory is bounded."""


class _Process:
    """A process that has not ended."""

    def __init__(self, process: ObservedProcess, group: _Group) -> None:
        self.process = process
        self.group = group
        self.state: State = "starting"
        self.started: float | None = None
        self.call: ObservedCall | None = None
        self.tasks = 0
        self.failed = 0
        self.restarts = group.names.get(process.name, -1) + 1
        group.started += 1
        group.namesakes += self.restarts > 0
        if self.restarts or len(group.names) < _NAMES_KEPT:
            group.names[process.name] = self.restarts

    def status(self, now: float) -> ProcessStatus:
        call = self.call
        return ProcessStatus(
            name=self.process.name,
            pid=self.process.pid,
            state="busy" if self.state == "idle" and call is not None else self.state,
            func=self.process.func if call is None else call.func,
            tasks=self.tasks,
            failed=self.failed,
            restarts=self.restarts,
            uptime=0.0 if self.started is None else now - self.started,
            exitcode=None,
        )
