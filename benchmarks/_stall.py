"""For how long an event loop is held up: the longest gap of a ticker of one millisecond."""

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

import creche

from ._measuring import Row, Table, in_turn
from ._pools import ANYIO, EXECUTOR, Call, creche_pools, measuring
from ._work import noop, payload

PERIOD = 0.001
LIMIT = 10.0
START_LIMIT = 5.0
MIB = 1024 * 1024


def longest_gap(backend: str, func: Callable[[], Awaitable[object]]) -> Callable[[], float]:
    """Return what measures by how many seconds a tick came late while ``func`` ran."""
    return lambda: anyio.run(longest_gap_during, func, backend=backend)


async def longest_gap_during(func: Callable[[], Awaitable[object]]) -> float:
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        before = time.perf_counter()
        while True:
            await anyio.sleep(PERIOD)
            now = time.perf_counter()
            longest = max(longest, now - before - PERIOD)
            before = now

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        await anyio.sleep(0.01)
        result = await func()
        # The ticker sees the end, but not the release of a large result.
        await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    del result
    return longest


async def creche_twenty() -> None:
    async with creche.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(noop)


async def anyio_twenty() -> None:
    limiter = anyio.CapacityLimiter(20)
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(partial(anyio.to_process.run_sync, noop, limiter=limiter))


async def executor_twenty() -> None:
    context = multiprocessing.get_context("forkserver")
    loop = asyncio.get_running_loop()
    with concurrent.futures.ProcessPoolExecutor(20, mp_context=context) as pool:
        await asyncio.gather(*(loop.run_in_executor(pool, noop) for _ in range(20)))


async def creche_large() -> bytes:
    return await creche.run_in_process(payload, 256 * MIB)


async def anyio_large() -> bytes:
    return await anyio.to_process.run_sync(payload, 256 * MIB)


async def executor_large() -> bytes:
    context = multiprocessing.get_context("forkserver")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return await asyncio.get_running_loop().run_in_executor(pool, payload, 256 * MIB)


def with_peers(
    ours: Callable[[], Awaitable[object]], **theirs: tuple[str, Callable[[], Awaitable[object]]]
) -> dict[str, Callable[[], float]]:
    found = {
        "creche, asyncio": longest_gap("asyncio", ours),
        "creche, Trio": longest_gap("trio", ours),
    }
    for name, (backend, func) in theirs.items():
        found[name.replace("_", " ")] = longest_gap(backend, func)
    return found


def trio_parallel_peers(large: bool) -> dict[str, tuple[str, Callable[[], Awaitable[object]]]]:
    with contextlib.suppress(ImportError):
        trio_parallel: Any = importlib.import_module("trio_parallel")

        async def twenty() -> None:
            async with trio_parallel.open_worker_context() as workers:
                limiter = importlib.import_module("trio").CapacityLimiter(20)
                async with anyio.create_task_group() as tasks:
                    for _ in range(20):
                        tasks.start_soon(partial(workers.run_sync, noop, limiter=limiter))

        async def one() -> object:
            async with trio_parallel.open_worker_context() as workers:
                return await workers.run_sync(payload, 256 * MIB)

        return {"trio-parallel": ("trio", one if large else twenty)}
    return {}


def table(
    title: str,
    about: str,
    found: dict[str, Callable[[], float]],
    rounds: int,
    warm_up: int = 1,
    limit: float = LIMIT,
) -> Table:
    medians = in_turn(found, rounds, warm_up)
    rows = []
    for name, value in medians.items():
        ours = name.startswith("creche")
        rows.append(
            Row(
                name,
                1e3 * value,
                "ms",
                None,
                f"at most {limit:g} ms" if ours else "",
                1e3 * value <= limit if ours else None,
            )
        )
    return Table(title, about, rows)


def measure(rounds: int) -> list[Table]:
    twenty = with_peers(
        creche_twenty,
        ProcessPoolExecutor=("asyncio", executor_twenty),
        anyio_to_process=("asyncio", anyio_twenty),
        **trio_parallel_peers(large=False),
    )
    large = with_peers(
        creche_large,
        ProcessPoolExecutor=("asyncio", executor_large),
        anyio_to_process=("asyncio", anyio_large),
        **trio_parallel_peers(large=True),
    )
    tables = [
        table(
            "Loop stall while 20 processes start and finish",
            "The longest delay of a ticker of 1 ms in the parent's event loop.",
            twenty,
            rounds,
            limit=START_LIMIT,
        ),
        table(
            "Loop stall while 256 MiB come back",
            "The same while one child returns a `bytes` object of 256 MiB.",
            large,
            max(2, rounds // 3),
        ),
    ]
    ballast = bytearray(2048 * MIB)
    ballast[::4096] = b"x" * (len(ballast) // 4096)  # touched, so that it is there
    tables.append(
        table(
            "Loop stall while 20 processes start, in a parent of 2 GiB",
            "What is copied when a process forks grows with its memory; a fork server stays small.",
            with_peers(creche_twenty),
            rounds,
            limit=START_LIMIT,
        )
    )
    del ballast
    return tables


async def longest_gap_of_large_result(call: Call) -> float:
    return await longest_gap_during(partial(call, payload, 256 * MIB))


def measure_warm(rounds: int) -> Table:
    return table(
        "Loop stall while 256 MiB come back from a warm worker",
        "The same from a worker that has served calls before.",
        {
            pool.name: measuring(pool, 1, longest_gap_of_large_result)
            for pool in (*creche_pools(), EXECUTOR, ANYIO)
        },
        rounds,
        warm_up=0,
    )
