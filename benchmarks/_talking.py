"""A worker that calls its parent, beside the parent that calls a worker."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable

import anyio

from creche import from_process, open_pool

from ._measuring import Row, Table
from ._work import noop

LIMIT = 2.0

# How long a round of one way takes.
SECONDS = 0.2


async def noop_async() -> None:
    pass


def ask_sync(seconds: float) -> float:
    return median_seconds(lambda: from_process.run_sync(noop), seconds)


def ask(seconds: float) -> float:
    return median_seconds(lambda: from_process.run(noop_async), seconds)


def median_seconds(call: Callable[[], object], seconds: float) -> float:
    samples = []
    give_up = time.perf_counter() + seconds
    while time.perf_counter() < give_up:
        began = time.perf_counter()
        call()
        samples.append(time.perf_counter() - began)
    return statistics.median(samples)


async def median_seconds_async(call: Callable[[], Awaitable[object]], seconds: float) -> float:
    samples = []
    give_up = time.perf_counter() + seconds
    while time.perf_counter() < give_up:
        began = time.perf_counter()
        await call()
        samples.append(time.perf_counter() - began)
    return statistics.median(samples)


async def measure_round() -> tuple[float, float, float]:
    async with open_pool(1) as pool:
        await pool.run(ask_sync, 0.01)
        return (
            await median_seconds_async(lambda: pool.run(noop), SECONDS),
            await pool.run(ask_sync, SECONDS),
            await pool.run(ask, SECONDS),
        )


def measure(rounds: int) -> Table:
    table = Table(
        "A worker that calls its parent",
        "A function that does nothing, called one at a time: by the parent in a warm worker, and by"
        " that worker in its parent. The ratio is to the first.",
    )
    backends = ("asyncio", "trio")
    samples: dict[str, list[tuple[float, float, float]]] = {backend: [] for backend in backends}
    for _ in range(rounds):
        for backend in backends:
            samples[backend].append(anyio.run(measure_round, backend=backend))
    for backend in backends:
        call, ask_sync_, ask_ = (
            1e6 * statistics.median(values) for values in zip(*samples[backend], strict=True)
        )
        table.rows += [
            Row(f"ProcessPool.run ({backend})", call, "us", 1.0),
            Row(
                f"from_process.run_sync ({backend})",
                ask_sync_,
                "us",
                ask_sync_ / call,
                f"at most {LIMIT:g} calls of a warm worker",
                ask_sync_ <= LIMIT * call,
            ),
            Row(f"from_process.run ({backend})", ask_, "us", ask_ / call),
        ]
    return table
