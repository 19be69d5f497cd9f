"""From the cancellation of a call until its process is reaped, and who leaves it running."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.to_process
import psutil

import creche

from ._measuring import Row, Table, in_turn
from ._work import busy, busy_and_deaf

GRACE = 0.05


def time_to_cancel(backend: str, func: Callable[[], Awaitable[object]]) -> Callable[[], float]:
    async def main() -> float:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(func)
            await anyio.sleep(0.15)  # it runs by now
            began = time.perf_counter()
            tasks.cancel_scope.cancel()
        return time.perf_counter() - began

    return lambda: anyio.run(main, backend=backend)


def left_alive(func: Callable[[], Awaitable[object]]) -> bool:
    """Whether a child of ours is still busy after the await of its call was cancelled."""

    async def main() -> bool:
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        with anyio.move_on_after(0.5):
            await func()
        await anyio.sleep(0.1)
        children = psutil.Process().children(recursive=True)
        ours = [child for child in children if child.pid not in before]
        for child in ours:
            child.cpu_percent()
        await anyio.sleep(0.3)
        working = [child for child in ours if child.cpu_percent() > 20]
        for child in working:
            child.kill()
        return bool(working)

    return anyio.run(main)


async def executor_call() -> None:
    context = multiprocessing.get_context("forkserver")
    pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=context)
    try:
        await asyncio.get_running_loop().run_in_executor(pool, busy)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def peers_that_may_leave_it() -> dict[str, Callable[[], Awaitable[object]]]:
    found: dict[str, Callable[[], Awaitable[object]]] = {
        "creche": partial(creche.run_in_process, busy),
        "anyio.to_process(cancellable=True)": partial(
            anyio.to_process.run_sync, busy, cancellable=True
        ),
        "ProcessPoolExecutor": executor_call,
    }
    with contextlib.suppress(ImportError):
        loky: Any = importlib.import_module("loky")

        async def loky_call() -> None:
            await asyncio.wrap_future(loky.get_reusable_executor(max_workers=1).submit(busy))

        found["loky"] = loky_call
    with contextlib.suppress(ImportError):
        aioprocessing: Any = importlib.import_module("aioprocessing")

        async def aioprocessing_call() -> None:
            process = aioprocessing.AioProcess(target=busy)
            process.start()
            await process.coro_join()

        found["aioprocessing"] = aioprocessing_call
    return found


def measure(rounds: int) -> list[Table]:
    polite = partial(creche.run_in_process, busy)
    force = partial(creche.run_in_process, busy, stop=creche.StopPolicy(grace=0))
    deaf = partial(creche.run_in_process, busy_and_deaf, stop=creche.StopPolicy(grace=GRACE))
    medians = in_turn(
        {
            "creche, politely, asyncio": time_to_cancel("asyncio", polite),
            "creche, politely, Trio": time_to_cancel("trio", polite),
            "creche, by force, asyncio": time_to_cancel("asyncio", force),
            "creche, by force, Trio": time_to_cancel("trio", force),
            "creche, SIGTERM ignored, less the grace period": lambda: (
                time_to_cancel("asyncio", deaf)() - GRACE
            ),
            "anyio.to_process (kills at once)": time_to_cancel(
                "asyncio", partial(anyio.to_process.run_sync, busy, cancellable=True)
            ),
        },
        rounds,
    )
    limits = {"politely": 5.0, "by force": 2.5, "ignored": 10.0}
    rows = []
    for name, value in medians.items():
        limit = next((limit for word, limit in limits.items() if word in name), None)
        rows.append(
            Row(
                name,
                1e3 * value,
                "ms",
                None,
                "" if limit is None else f"at most {limit:g} ms",
                None if limit is None else 1e3 * value <= limit,
            )
        )
    cancelling = Table(
        "Cancelling a busy loop",
        "From the cancellation of the `await` until its process is reaped.",
        rows,
    )
    left = Table(
        "Work that goes on after its `await` was cancelled",
        "1 where the process of a cancelled call was still busy 0.1 s later.",
        [
            Row(
                name,
                float(left_alive(func)),
                "",
                None,
                "0" if name == "creche" else "",
            )
            for name, func in peers_that_may_leave_it().items()
        ],
    )
    left.rows[0].met = left.rows[0].value == 0
    return [cancelling, left]
