"""Pools with warm workers, creche's and its peers', behind one interface."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib
import multiprocessing
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import anyio.to_process

import creche

from ._work import call_in_coroutine, noop, pid_after

Call = Callable[..., Coroutine[Any, Any, Any]]
"""``await call(func, *args)`` gives the value of ``func`` in a worker."""

Submit = Callable[..., Any]
"""``submit(func, *args).get()`` gives the value of ``func`` in a worker."""


@dataclass(frozen=True)
class Pool:
    """A contender: ``open(workers)`` is a pool with so many workers."""

    name: str
    backend: str
    open: Callable[[int], AbstractAsyncContextManager[Call]]


@dataclass(frozen=True)
class BlockingPool:
    """A contender without an event loop."""

    name: str
    open: Callable[[int], AbstractContextManager[Submit]]


def measuring(
    pool: Pool, workers: int, measure: Callable[[Call], Awaitable[float]]
) -> Callable[[], float]:
    """Measure in an event loop of its own, with workers that are warm."""

    async def main() -> float:
        async with pool.open(workers) as call:
            await warm_up(call, workers)
            return await measure(call)

    return lambda: anyio.run(main, backend=pool.backend)


def measuring_blocking(
    pool: BlockingPool, workers: int, measure: Callable[[Submit], float]
) -> Callable[[], float]:
    """Measure with workers that are warm."""

    def main() -> float:
        with pool.open(workers) as submit:
            pids: set[int] = set()
            give_up = time.monotonic() + 5
            while len(pids) < workers and time.monotonic() < give_up:
                answers = [submit(pid_after, 0.02) for _ in range(workers)]
                pids.update(answer.get() for answer in answers)
            return measure(submit)

    return main


def as_async(pool: BlockingPool) -> Pool:
    """Take a blocking pool for one that blocks the event loop; for one call at a time."""

    @contextlib.asynccontextmanager
    async def open_blocking(workers: int) -> AsyncIterator[Call]:
        with pool.open(workers) as submit:

            async def call(func: Callable[..., Any], *args: Any) -> Any:
                return submit(func, *args).get()

            yield call

    return Pool(pool.name, "asyncio", open_blocking)


async def warm_up(call: Call, workers: int) -> None:
    """Wait until every worker has served a call."""
    pids: set[int] = set()

    async def ask() -> None:
        pids.add(await call(pid_after, 0.02))

    with anyio.move_on_after(5):
        while len(pids) < workers:
            async with anyio.create_task_group() as tasks:
                for _ in range(workers):
                    tasks.start_soon(ask)
    await call(noop)


def creche_pools() -> list[Pool]:
    return [
        Pool("creche, asyncio", "asyncio", open_creche),
        Pool("creche, Trio", "trio", open_creche),
    ]


@contextlib.asynccontextmanager
async def open_creche(workers: int) -> AsyncIterator[Call]:
    async with creche.open_pool(workers, min_workers=workers) as pool:
        yield pool.run


def peers() -> list[Pool]:
    """Return the peers that an event loop can await, as far as they are installed."""
    found = [ANYIO, EXECUTOR]
    with contextlib.suppress(ImportError):
        importlib.import_module("trio_parallel")
        found.append(TRIO_PARALLEL)
    with contextlib.suppress(ImportError):
        importlib.import_module("pebble")
        found.append(PEBBLE)
    with contextlib.suppress(ImportError):
        importlib.import_module("loky")
        found.append(Pool("loky", "asyncio", open_loky))
    return found


def cancellable_peers() -> list[Pool]:
    """Return those that stop a call whose await is cancelled."""
    return [pool for pool in peers() if pool in (ANYIO, TRIO_PARALLEL, PEBBLE)]


def slow_peers() -> list[Pool]:
    """Return those whose every call waits for the tick of a clock."""
    found = []
    with contextlib.suppress(ImportError):
        importlib.import_module("aiomultiprocess")
        found.append(Pool("aiomultiprocess.Pool", "asyncio", open_aiomultiprocess))
    return found


def multiprocessing_pool() -> BlockingPool:
    @contextlib.contextmanager
    def open_pool(workers: int) -> Iterator[Submit]:
        with multiprocessing.get_context("forkserver").Pool(workers) as pool:
            yield lambda func, *args: pool.apply_async(func, args)

    return BlockingPool("multiprocessing.Pool (blocking)", open_pool)


def blocking_peers() -> list[BlockingPool]:
    found = [multiprocessing_pool()]
    with contextlib.suppress(ImportError):
        mpire: Any = importlib.import_module("mpire")

        @contextlib.contextmanager
        def open_mpire(workers: int) -> Iterator[Submit]:
            with mpire.WorkerPool(workers, start_method="forkserver") as pool:
                yield lambda func, *args: pool.apply_async(func, args)

        found.append(BlockingPool("mpire (blocking)", open_mpire))
    return found


@contextlib.asynccontextmanager
async def open_anyio(workers: int) -> AsyncIterator[Call]:
    limiter = anyio.CapacityLimiter(workers)
    yield partial(anyio.to_process.run_sync, cancellable=True, limiter=limiter)


@contextlib.asynccontextmanager
async def open_executor(workers: int) -> AsyncIterator[Call]:
    context = multiprocessing.get_context("forkserver")
    loop = asyncio.get_running_loop()
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:

        async def call(func: Callable[..., Any], *args: Any) -> Any:
            return await loop.run_in_executor(pool, func, *args)

        yield call


@contextlib.asynccontextmanager
async def open_trio_parallel(workers: int) -> AsyncIterator[Call]:
    trio_parallel: Any = importlib.import_module("trio_parallel")
    limiter = importlib.import_module("trio").CapacityLimiter(workers)
    async with trio_parallel.open_worker_context(
        worker_type=trio_parallel.WorkerType.FORKSERVER
    ) as context:
        yield partial(context.run_sync, cancellable=True, limiter=limiter)


@contextlib.asynccontextmanager
async def open_pebble(workers: int) -> AsyncIterator[Call]:
    pebble: Any = importlib.import_module("pebble")
    context = multiprocessing.get_context("forkserver")
    with pebble.ProcessPool(max_workers=workers, context=context) as pool:

        async def call(func: Callable[..., Any], *args: Any) -> Any:
            # An asyncio future that is cancelled cancels the one that it wraps.
            return await asyncio.wrap_future(pool.schedule(func, args))

        yield call


@contextlib.asynccontextmanager
async def open_loky(workers: int) -> AsyncIterator[Call]:
    loky: Any = importlib.import_module("loky")
    with loky.ProcessPoolExecutor(workers) as pool:

        async def call(func: Callable[..., Any], *args: Any) -> Any:
            return await asyncio.wrap_future(pool.submit(func, *args))

        yield call


@contextlib.asynccontextmanager
async def open_aiomultiprocess(workers: int) -> AsyncIterator[Call]:
    aiomultiprocess: Any = importlib.import_module("aiomultiprocess")
    aiomultiprocess.set_start_method("forkserver")
    async with aiomultiprocess.Pool(workers) as pool:

        async def call(func: Callable[..., Any], *args: Any) -> Any:
            return await pool.apply(call_in_coroutine, (func, *args))

        yield call


ANYIO = Pool("anyio.to_process", "asyncio", open_anyio)
EXECUTOR = Pool("ProcessPoolExecutor", "asyncio", open_executor)
TRIO_PARALLEL = Pool("trio-parallel", "trio", open_trio_parallel)
PEBBLE = Pool("Pebble", "asyncio", open_pebble)
