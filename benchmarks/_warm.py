"""One call at a time in a worker that is warm."""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

from ._measuring import Row, Table, in_turn, rows_with_ratios
from ._pools import (
    Call,
    as_async,
    blocking_peers,
    creche_pools,
    measuring,
    peers,
    slow_peers,
)
from ._work import noop

FLOOR = "multiprocessing.Pipe, send and recv (blocking)"
LIMIT = 1.7

# How long a round of a contender takes, without the start of its pool.
SECONDS = 0.15


def answer_calls(connection: Any) -> None:
    with contextlib.suppress(EOFError):
        while True:
            func, args = connection.recv()
            connection.send(func(*args))


def ping_pong() -> float:
    """Measure what it takes to send a function through a pipe and its value back."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=answer_calls, args=(theirs,))
    process.start()
    theirs.close()

    def ask() -> None:
        ours.send((noop, ()))
        ours.recv()

    ask()
    samples = []
    give_up = time.perf_counter() + SECONDS
    while time.perf_counter() < give_up:
        began = time.perf_counter()
        ask()
        samples.append(time.perf_counter() - began)
    ours.close()
    process.join()
    return statistics.median(samples)


async def one_at_a_time(call: Call) -> float:
    samples: list[float] = []
    give_up = time.perf_counter() + SECONDS
    while len(samples) < 5 or time.perf_counter() < give_up:
        began = time.perf_counter()
        await call(noop)
        samples.append(time.perf_counter() - began)
    return statistics.median(samples)


def measure(rounds: int) -> Table:
    ours = [pool.name for pool in creche_pools()]
    theirs = [*peers(), *map(as_async, blocking_peers()), *slow_peers()]
    contenders: dict[str, Callable[[], float]] = {FLOOR: ping_pong}
    for pool in (*creche_pools(), *theirs):
        contenders[pool.name] = measuring(pool, 1, one_at_a_time)
    medians = {name: 1e6 * value for name, value in in_turn(contenders, rounds, warm_up=0).items()}
    target = f"at most {LIMIT:g} times the floor"
    table = Table(
        "A call in a warm worker",
        "A function that does nothing, one call at a time, one worker that has served calls before."
        " The ratio is to a function and its value sent through a `multiprocessing.Pipe`, which"
        " blocks.",
        rows_with_ratios(
            medians,
            FLOOR,
            "us",
            {name: (target, medians[name] <= LIMIT * medians[FLOOR]) for name in ours},
        ),
        plot="warm",
    )
    fastest = min((pool.name for pool in theirs), key=lambda name: medians[name])
    for name in ours:
        ratio = medians[fastest] / medians[name]
        table.rows.append(
            Row(
                f"fastest peer ({fastest}) / {name}", ratio, "times", None, "more than 1", ratio > 1
            )
        )
    return table
