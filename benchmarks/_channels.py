"""Items from one process to another."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import anyio

from creche import create_channel, open_nursery

from ._measuring import Row, Table, in_turn

SMALL, SMALL_COUNT = 1, 100_000
LARGE, LARGE_COUNT = 1024 * 1024, 600

SMALL_LIMIT = 200_000  # items a second
LARGE_LIMIT = 1000.0  # megabytes a second

BUFFER = 64

# An item, and how many of them. Times are those of the consumer, from the first item to the last.
Load = tuple[Any, int]
LOADS: dict[str, Load] = {
    "small items": (SMALL, SMALL_COUNT),
    "items of 1 MiB": (bytes(LARGE), LARGE_COUNT),
}


# --- creche ---------------------------------------------------------------------------------------


def send_sync(send: Any, load: str) -> None:
    item, count = LOADS[load]
    with send:
        for _ in range(count):
            send.send_sync(item)


async def send_async(send: Any, load: str) -> None:
    item, count = LOADS[load]
    async with send:
        for _ in range(count):
            await send.send(item)


def receive_sync(receive: Any, load: str) -> float:
    with receive:
        receive.receive_sync()
        began = time.perf_counter()
        for _ in receive:
            pass
        return time.perf_counter() - began


async def receive_async(receive: Any, load: str) -> float:
    async with receive:
        await receive.receive()
        began = time.perf_counter()
        async for _ in receive:
            pass
        return time.perf_counter() - began


async def child_to_child(producer: Any, consumer: Any, load: str) -> float:
    send, receive = create_channel[Any](BUFFER)
    async with open_nursery() as nursery:
        taken = nursery.start_soon(consumer, receive, load)
        nursery.start_soon(producer, send, load)
    seconds: float = taken.return_value
    return seconds


async def child_to_parent(load: str) -> float:
    send, receive = create_channel[Any](BUFFER)
    async with open_nursery() as nursery:
        nursery.start_soon(send_sync, send, load)
        return await receive_async(receive, load)


async def parent_to_child(load: str) -> float:
    send, receive = create_channel[Any](BUFFER)
    async with open_nursery() as nursery:
        taken = nursery.start_soon(receive_sync, receive, load)
        await send_async(send, load)
    seconds: float = taken.return_value
    return seconds


def ours(load: str) -> dict[str, Callable[[], Coroutine[Any, Any, float]]]:
    return {
        "creche, child to child, sync": partial(child_to_child, send_sync, receive_sync, load),
        "creche, child to child, async": partial(child_to_child, send_async, receive_async, load),
        "creche, child to parent": partial(child_to_parent, load),
        "creche, parent to child": partial(parent_to_child, load),
    }


# --- queues ---------------------------------------------------------------------------------------


def put_all(queue: Any, load: str) -> None:
    item, count = LOADS[load]
    for _ in range(count):
        queue.put(item)


def queue_to_parent(make: Callable[[Any], Any], load: str) -> float:
    context = multiprocessing.get_context("spawn")
    queue = make(context)
    process = context.Process(target=put_all, args=(queue, load))
    process.start()
    queue.get()
    began = time.perf_counter()
    for _ in range(LOADS[load][1] - 1):
        queue.get()
    seconds = time.perf_counter() - began
    process.join()
    return seconds


async def aio_queue_to_parent(load: str) -> float:
    import aioprocessing  # type: ignore[import-not-found]

    queue: Any = aioprocessing.AioQueue(BUFFER)
    process: Any = aioprocessing.AioProcess(target=put_all, args=(queue, load))
    process.start()
    await queue.coro_get()
    began = time.perf_counter()
    for _ in range(LOADS[load][1] - 1):
        await queue.coro_get()
    seconds = time.perf_counter() - began
    await process.coro_join()
    return seconds


def peers(load: str) -> dict[str, Callable[[], float]]:
    return {
        "multiprocessing.Queue": partial(queue_to_parent, lambda ctx: ctx.Queue(BUFFER), load),
        "multiprocessing.SimpleQueue": partial(
            queue_to_parent, lambda ctx: ctx.SimpleQueue(), load
        ),
        "aioprocessing.AioQueue": lambda: anyio.run(aio_queue_to_parent, load),
    }


def compare(load: str, rounds: int) -> Table:
    item, count = LOADS[load]
    small = item is SMALL
    scale = count if small else count * LARGE / 1e6

    def rate(measure: Callable[[], float]) -> Callable[[], float]:
        return lambda: scale / measure()

    contenders = {
        name: rate(partial(anyio.run, measure)) for name, measure in ours(load).items()
    } | {name: rate(measure) for name, measure in peers(load).items()}
    medians = in_turn(contenders, rounds, warm_up=1)
    best = max(medians[name] for name in peers(load))
    limit = SMALL_LIMIT if small else LARGE_LIMIT
    unit = "items/s" if small else "MB/s"
    return Table(
        f"Channels: {load}",
        "From a process to another one, from the first item to the last. The ratio is to the best"
        " peer.",
        [
            Row(
                name,
                value,
                unit,
                value / best,
                f"at least {limit:,g}, and as fast as any peer" if name in ours(load) else "",
                value >= max(limit, best) if name in ours(load) else None,
            )
            for name, value in medians.items()
        ],
    )


def measure(rounds: int) -> Iterator[Table]:
    for load in LOADS:
        yield compare(load, rounds)
