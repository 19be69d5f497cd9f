"""Many calls at once of a function that does nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import anyio

from ._measuring import Row, Table, in_turn
from ._pools import (
    Call,
    Submit,
    blocking_peers,
    creche_pools,
    measuring,
    measuring_blocking,
    peers,
    slow_peers,
)
from ._work import noop

WORKERS = 2
CALLERS = 100
LIMIT = 60_000

# How long a round of a contender takes, without the start of its pool.
SECONDS = 0.3


async def calls_per_second(call: Call, callers: int = CALLERS) -> float:
    """Call from some tasks, each of which waits for its call before it makes the next."""
    done = 0
    began = time.perf_counter()
    give_up = began + SECONDS

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < give_up:
            await call(noop)
            done += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(callers):
            tasks.start_soon(caller)
    return done / (time.perf_counter() - began)


def blocking_calls_per_second(submit: Submit) -> float:
    """Keep as many calls on their way."""
    began = time.perf_counter()
    give_up = began + SECONDS
    waiting = deque(submit(noop) for _ in range(CALLERS))
    done = 0
    while time.perf_counter() < give_up:
        waiting.popleft().get()
        waiting.append(submit(noop))
        done += 1
    for call in waiting:
        call.get()
        done += 1
    return done / (time.perf_counter() - began)


def measure(rounds: int) -> Table:
    ours = [pool.name for pool in creche_pools()]
    contenders: dict[str, Callable[[], float]] = {
        pool.name: measuring(pool, WORKERS, calls_per_second)
        for pool in (*creche_pools(), *peers(), *slow_peers())
    }
    for blocking in blocking_peers():
        contenders[blocking.name] = measuring_blocking(blocking, WORKERS, blocking_calls_per_second)
    medians = in_turn(contenders, rounds, warm_up=0)
    best = max(value for name, value in medians.items() if name not in ours)
    target = f"at least {LIMIT:,}, and more than any peer"
    return Table(
        f"Calls from {CALLERS} tasks at once",
        f"A function that does nothing, {WORKERS} workers, {CALLERS} tasks each of which makes one"
        f" call after another; where a peer blocks, {CALLERS} calls on their way. The ratio is to"
        " the best peer.",
        [
            Row(
                name,
                value,
                "calls/s",
                value / best,
                target if name in ours else "",
                value >= max(LIMIT, best) if name in ours else None,
            )
            for name, value in medians.items()
        ],
    )
