"""Locks across processes."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread

from creche import open_nursery, run_in_process
from creche.sync import Event, Lock, Queue

from ._measuring import Row, Table, in_turn

SECONDS = 0.1
ITEMS = 500

OWNER = "creche Lock, in the process that made it"
OWNER_SYNC = "creche Lock, there, in a plain function"
OTHER = "creche Lock, in another process"
OTHER_SYNC = "creche Lock, there, in a plain function of another process"
KERNEL = "multiprocessing.Lock (blocking; a holder that dies keeps it)"
IN_THREAD = "multiprocessing.Lock in a thread of anyio's (cannot be cancelled)"
AIOPROCESSING = "aioprocessing.AioLock (cannot be cancelled)"


async def _per_turn(use: Callable[[], Any]) -> float:
    """Seconds of one acquire and release, of many in a row."""
    await use()
    samples = []
    give_up = time.perf_counter() + SECONDS
    while time.perf_counter() < give_up:
        began = time.perf_counter()
        for _ in range(20):
            await use()
        samples.append((time.perf_counter() - began) / 20)
    return statistics.median(samples)


def _per_turn_sync(lock: Any) -> float:
    samples = []
    give_up = time.perf_counter() + SECONDS
    while time.perf_counter() < give_up:
        began = time.perf_counter()
        for _ in range(20):
            with lock:
                pass
        samples.append((time.perf_counter() - began) / 20)
    return statistics.median(samples)


async def _use_lock(lock: Lock) -> float:
    async def use() -> None:
        async with lock:
            pass

    return await _per_turn(use)


async def _use_in_thread(lock: Any) -> float:
    async def use() -> None:
        await anyio.to_thread.run_sync(lock.acquire)
        lock.release()

    return await _per_turn(use)


async def _use_aioprocessing(lock: Any) -> float:
    async def use() -> None:
        await lock.coro_acquire()
        lock.release()

    return await _per_turn(use)


def _aioprocessing_lock() -> Any:
    import aioprocessing

    return aioprocessing.AioLock()


def measure_lock(rounds: int) -> Table:
    lock = Lock()
    kernel = multiprocessing.get_context("forkserver").Lock()

    def in_child(func: Any, *args: Any) -> float:
        async def run() -> float:
            found: float = await run_in_process(func, *args)
            return found

        return anyio.run(run)

    contenders: dict[str, Callable[[], float]] = {
        KERNEL: lambda: _per_turn_sync(kernel),
        IN_THREAD: lambda: anyio.run(_use_in_thread, kernel),
        OWNER: lambda: anyio.run(_use_lock, lock),
        OWNER_SYNC: lambda: _per_turn_sync(lock),
        OTHER: lambda: in_child(_use_lock, lock),
        OTHER_SYNC: lambda: in_child(_per_turn_sync, lock),
    }
    try:
        aio_lock = _aioprocessing_lock()
    except ImportError:
        pass
    else:
        contenders[AIOPROCESSING] = lambda: anyio.run(_use_aioprocessing, aio_lock)
    medians = {name: 1e6 * value for name, value in in_turn(contenders, rounds, warm_up=1).items()}
    return Table(
        "A lock that is free",
        "Acquiring and releasing a lock that nobody else wants. Creche's is kept by the process"
        " that made it, so that a holder that dies releases it and a waiter can be cancelled; in"
        " another process it takes a round trip.",
        [Row(name, value, "us") for name, value in medians.items()],
    )


# --- from one process to the other ----------------------------------------------------------------


async def _take_turns(lock: Lock, ready: Event, seconds: float) -> float:
    """Compete for a lock; return how long it took to get it, in the middle."""
    ready.set()
    samples = []
    give_up = time.perf_counter() + seconds
    while time.perf_counter() < give_up:
        began = time.perf_counter()
        async with lock:
            samples.append(time.perf_counter() - began)
    return statistics.median(samples)


async def _handover() -> float:
    lock, ready = Lock(), Event()
    async with open_nursery() as nursery:
        process = nursery.start_soon(_take_turns, lock, ready, 2 * SECONDS)
        await ready.wait()
        mine = await _take_turns(lock, ready, SECONDS)
    return statistics.mean([mine, process.return_value])


def _echo(requests: Queue[int], replies: Queue[int]) -> None:
    for item in requests:
        replies.put_sync(item)


async def _echo_async(requests: Queue[int], replies: Queue[int]) -> None:
    async for item in requests:
        await replies.put(item)


async def _round_trip(echo: Any) -> float:
    requests, replies = Queue[int](), Queue[int]()
    samples = []
    async with open_nursery() as nursery:
        nursery.start_soon(echo, requests, replies)
        for number in range(ITEMS):
            began = time.perf_counter()
            await requests.put(number)
            await replies.get()
            samples.append(time.perf_counter() - began)
        requests.close()
    return statistics.median(samples)


def measure_handover(rounds: int) -> Table:
    contenders: dict[str, Callable[[], float]] = {
        "creche Lock, two processes that compete": lambda: anyio.run(_handover),
        "creche Queue, an item there and back": lambda: anyio.run(_round_trip, _echo),
        "creche Queue, there and back, async": lambda: anyio.run(_round_trip, _echo_async),
    }
    medians = {name: 1e6 * value for name, value in in_turn(contenders, rounds, warm_up=1).items()}
    return Table(
        "From one process to another",
        "How long it takes to get a lock that the owner and another process want all the time; and"
        " an item put by the owner, got by another process, and sent back by it.",
        [Row(name, value, "us") for name, value in medians.items()],
    )


def measure(rounds: int) -> list[Table]:
    return [measure_lock(rounds), measure_handover(rounds)]
