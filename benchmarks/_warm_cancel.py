"""From the cancellation of a call in a warm worker until the worker is gone, and replaced."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import anyio
import psutil

import creche

from ._measuring import Row, Table, in_turn
from ._pools import Call, Pool, cancellable_peers, creche_pools, measuring
from ._work import busy, noop, sleep_for_ever

GONE_LIMIT, REPLACED_LIMIT = 5.0, 15.0

WORK: dict[str, Callable[[], None]] = {"a busy loop": busy, "time.sleep": sleep_for_ever}


async def cancel(call: Call, func: Callable[[], None]) -> float:
    """Cancel a call that runs; return when that began."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, func)
        await anyio.sleep(0.1)  # it runs by now
        began = time.perf_counter()
        tasks.cancel_scope.cancel()
    return began


async def time_to_gone(func: Callable[[], None], call: Call) -> float:
    worker = await call(os.getpid)
    began = await cancel(call, func)
    # Where the await ends before the process does, whoever has to reap it may take a while.
    while psutil.pid_exists(worker):
        await anyio.sleep(0.0005)
    return time.perf_counter() - began


async def time_to_next_call(func: Callable[[], None], call: Call) -> float:
    began = await cancel(call, func)
    await call(noop)
    return time.perf_counter() - began


def time_to_replaced(backend: str, func: Callable[[], None]) -> Callable[[], float]:
    """Return what measures how long it takes until the pool has an idle worker again."""

    async def main() -> float:
        async with creche.open_pool(1, min_workers=1) as pool:
            await pool.run(noop)
            began = await cancel(pool.run, func)
            while not is_ready(pool.statistics()):
                await anyio.sleep(0.0005)
            return time.perf_counter() - began

    return lambda: anyio.run(main, backend=backend)


def is_ready(now: creche.PoolStatistics) -> bool:
    return now.workers_alive == now.workers_idle == 1 and not now.workers_starting


def with_peers(
    measure: Callable[[Callable[[], None], Call], Awaitable[float]],
) -> dict[str, Callable[[], float]]:
    found: dict[str, Callable[[], float]] = {}
    for pool in (*creche_pools(), *cancellable_peers()):
        for what, func in WORK.items():
            found[f"{name_of(pool)}, {what}"] = measuring(pool, 1, partial(measure, func))
    return found


def name_of(pool: Pool) -> str:
    return pool.name if pool in creche_pools() else f"{pool.name}, cancellable"


def rows(medians: dict[str, float], limit: float) -> list[Row]:
    return [
        Row(
            name,
            1e3 * value,
            "ms",
            None,
            f"at most {limit:g} ms" if name.startswith("creche") else "",
            1e3 * value <= limit if name.startswith("creche") else None,
        )
        for name, value in medians.items()
    ]


def measure(rounds: int) -> Iterator[Table]:
    gone = in_turn(with_peers(time_to_gone), rounds, warm_up=0)
    yield Table(
        "Cancelling a call in a warm worker",
        "From the cancellation of the `await` until the worker is reaped.",
        rows(gone, GONE_LIMIT),
    )
    idle = {
        f"creche, {name}, {what}, idle again": time_to_replaced(backend, func)
        for name, backend in (("asyncio", "asyncio"), ("Trio", "trio"))
        for what, func in WORK.items()
    }
    replaced = in_turn({**idle, **with_peers(time_to_next_call)}, rounds, warm_up=0)
    yield Table(
        "Replacing the worker of a cancelled call",
        "From the cancellation until an idle worker is there again, as `statistics()` tells; and"
        " until a call that is made right after it has given its value.",
        rows(replaced, REPLACED_LIMIT),
    )
