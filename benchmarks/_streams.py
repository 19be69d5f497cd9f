"""Items that a process makes, one after the other, and its parent takes."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import anyio

from creche import open_pool, open_stream

from ._measuring import Row, Table, in_turn
from ._work import same

MIB = 1024 * 1024
SMALL = "numbers"
STREAM = "creche: open_stream"
STREAM_ASYNC = "creche: open_stream, an async generator"
CALL = "creche: a pool call an item"
MAP = "creche: pool.map"

ITEMS: dict[str, tuple[Any, int]] = {
    SMALL: (12345, 300_000),
    "1 KiB": (b"x" * 1024, 100_000),
    "1 MiB": (b"x" * MIB, 500),
}
"""An item, and how many of it."""


def generate(item: Any, number: int) -> Iterator[Any]:
    for _ in range(number):
        yield item


async def generate_async(item: Any, number: int) -> AsyncIterator[Any]:
    for _ in range(number):
        yield item


def put(queue: Any, item: Any, number: int) -> None:
    for _ in range(number):
        queue.put(item)


def stream(func: Callable[..., Any], backend: str, item: Any, number: int) -> float:
    """Items a second, from the first one on: starting the process is no part of it."""

    async def main() -> float:
        async with open_stream(func, item, number + 1) as items:
            await items.receive()
            began = time.perf_counter()
            received = 0
            async for _ in items:
                received += 1
                if received == number:
                    return number / (time.perf_counter() - began)
        raise AssertionError("items were lost")

    return anyio.run(main, backend=backend)


def pool_calls(item: Any, number: int) -> float:
    number = min(number, 3000)

    async def main() -> float:
        async with open_pool(workers=1, min_workers=1) as pool:
            await pool.run(same, item)
            began = time.perf_counter()
            for _ in range(number):
                await pool.run(same, item)
            return number / (time.perf_counter() - began)

    return anyio.run(main)


def pool_map(item: Any, number: int) -> float:
    async def main() -> float:
        async with open_pool(workers=1, min_workers=1) as pool:
            await pool.run(same, item)
            began = time.perf_counter()
            async for _ in pool.map(same, (item for _ in range(number))):
                pass
            return number / (time.perf_counter() - began)

    return anyio.run(main)


def queue(kind: str, item: Any, number: int) -> float:
    """In a thread that does nothing else: no event loop turns meanwhile."""
    context = multiprocessing.get_context("spawn")
    shared: Any = getattr(context, kind)()
    process = context.Process(target=put, args=(shared, item, number + 1))
    process.start()
    try:
        shared.get()
        began = time.perf_counter()
        for _ in range(number):
            shared.get()
        return number / (time.perf_counter() - began)
    finally:
        process.join()
        if kind == "Queue":
            shared.close()
            shared.join_thread()


def compare(name: str, rounds: int) -> Table:
    item, number = ITEMS[name]
    contenders: dict[str, Callable[[], float]] = {
        STREAM: partial(stream, generate, "asyncio", item, number),
        f"{STREAM}, Trio": partial(stream, generate, "trio", item, number),
        STREAM_ASYNC: partial(stream, generate_async, "asyncio", item, number),
        CALL: partial(pool_calls, item, number),
        MAP: partial(pool_map, item, number),
        "multiprocessing.Queue, blocking": partial(queue, "Queue", item, number),
        "multiprocessing.SimpleQueue, blocking": partial(queue, "SimpleQueue", item, number),
    }
    medians = in_turn(contenders, rounds, warm_up=1)
    targets: dict[str, tuple[str, bool]] = {}
    rate = medians[STREAM]
    if name == SMALL:
        met = rate >= 500_000 and rate >= 5 * medians[CALL]
        targets[STREAM] = ("at least 500,000/s, and 5 times a pool call an item", met)
    elif name == "1 MiB":
        targets[STREAM] = ("at least 1 GB/s", rate * MIB >= 1e9)
    return Table(
        f"A stream of items: {name}",
        "Thousands of items a second that one process makes and its parent takes. The ratio is to"
        " one pool call for each item.",
        [
            Row(
                contender,
                value / 1000,
                "k/s",
                value / medians[CALL],
                *targets.get(contender, ("", None)),
            )
            for contender, value in medians.items()
        ],
    )


def measure(rounds: int) -> Iterator[Table]:
    for name in ITEMS:
        yield compare(name, rounds)
