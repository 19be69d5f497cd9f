"""Recordings of what never ran, with a clock that is moved by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest

from creche._errors import ProcessDied
from creche._instruments import ObservedCall, ObservedProcess
from creche.timeline import Timeline, _recorder


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(_recorder, "_clock", lambda: self.now)


def process(name: str, pid: int | None = None, **attributes: Any) -> ObservedProcess:
    made = ObservedProcess(name, "creche")
    made.pid = pid
    for attribute, value in attributes.items():
        setattr(made, attribute, value)
    return made


def call(func: str = "module.func", pool: str = "pool", items: int = 1) -> ObservedCall:
    return ObservedCall(func, pool, items)


def worker(timeline: Timeline, name: str, pid: int, pool: str = "pool") -> ObservedProcess:
    """Record that a worker has come up."""
    made = process(name, kind="worker", pool=pool)
    timeline.process_created(made)
    made.pid = pid
    timeline.process_started(made)
    timeline.process_ready(made)
    return made


def many(timeline: Timeline, clock: Clock, calls: int, workers: int = 8, seed: int = 1) -> None:
    """Record a pool that had a lot to do: calls of all kinds, and workers that die at times."""
    dice = random.Random(seed)
    events: list[tuple[float, int, Any]] = []  # when, and what to do then
    pid = 5000

    def fresh(number: int, at: float) -> ObservedProcess:
        nonlocal pid
        pid += 1
        made = process(f"images-worker-{number}", kind="worker", pool="images")
        own = pid

        def start() -> None:
            made.pid = own
            timeline.process_started(made)

        events.append((at, len(events), lambda: timeline.process_created(made)))
        events.append((at + 0.004, len(events), start))
        events.append((at + 0.02, len(events), lambda: timeline.process_ready(made)))
        return made

    def ends(made: ObservedProcess, at: float, code: int, error: BaseException | None) -> None:
        def end() -> None:
            made.exitcode, made.exception = code, error
            timeline.process_exited(made)

        events.append((at, len(events), end))

    origin = clock.now
    number = workers
    free = [(origin + 0.02 + 0.001 * n, fresh(n + 1, origin + 0.001 * n)) for n in range(workers)]
    free = [(at + 0.02, made) for at, made in free]
    funcs = ["shop.images.thumbnail", "shop.images.perceptual_hash", "shop.search.Index.add_all"]
    weights = [6, 3, 1]
    arrives = origin + 0.01
    for _ in range(calls):
        arrives += dice.expovariate(workers / 0.0042)
        func = dice.choices(funcs, weights)[0]
        made = call(func, "images", dice.choice([16, 32]) if func.endswith("add_all") else 1)
        events.append((arrives, len(events), lambda made=made: timeline.call_queued(made)))
        free.sort(key=lambda pair: pair[0])
        at, by = free.pop(0)
        begin = max(arrives, at) + 0.00002
        status = dice.choices(["ok", "error", "cancelled", "killed"], [970, 15, 12, 3])[0]
        if status == "cancelled" and begin - arrives > 0.002:  # in the queue
            free.append((at, by))
            until = arrives + (begin - arrives) * dice.random()
            begin = None
        else:
            until = begin + dice.lognormvariate(-5.8, 0.7)
            events.append((begin, len(events), lambda m=made, b=by: _start(timeline, m, b)))
            if status == "killed" or status == "cancelled":
                number += 1
                code = -11 if status == "killed" else -15
                by.stop_requested = status == "cancelled"
                ends(
                    by,
                    until,
                    code,
                    ProcessDied("a worker died", exitcode=code, signal=None)
                    if False
                    else RuntimeError("the worker was killed by SIGSEGV"),
                )
                free.append((until + 0.025, fresh(number, until + 0.0005)))
            else:
                free.append((until, by))
        error = ValueError("image file is truncated") if status == "error" else None
        events.append(
            (until, len(events), lambda m=made, s=status, e=error: _finish(timeline, m, s, e))
        )
    last = max(event[0] for event in events)
    for _, made in free:
        ends(made, last + 0.01, 0, None)
    events.sort(key=lambda event: event[:2])
    for at, _, action in events:
        clock.now = at
        action()
    clock.now = last + 0.02
    timeline.stop()


def _start(timeline: Timeline, made: ObservedCall, by: ObservedProcess) -> None:
    made.process = by
    timeline.call_started(made)


def _finish(
    timeline: Timeline, made: ObservedCall, status: Any, error: BaseException | None
) -> None:
    made.status, made.exception = status, error
    timeline.call_finished(made)
