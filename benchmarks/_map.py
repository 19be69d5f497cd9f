"""A function applied to very many items."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

import anyio
import psutil

import creche

from ._measuring import Row, Table, in_fresh_process, in_turn
from ._pools import warm_up
from ._work import nap, same

WORKERS = 2
ITEMS = 1_000_000
CHUNK_SIZES = (100, 1_000, 10_000)

TASKS = 20
NAP = 0.1
NO_NAPS = 100_000

MIB = 1024 * 1024
FEW_ITEMS, MANY_ITEMS = 1_000_000, 10_000_000


async def one_by_one(values: creche.ProcessMap[Any]) -> None:
    async for _ in values:
        pass


async def in_batches(values: creche.ProcessMap[Any]) -> None:
    async for batch in values.batches():
        for _ in batch:
            pass


async def as_a_list(values: creche.ProcessMap[Any]) -> None:
    for _ in await values:
        pass


class AlreadyThere:
    """The least that an async iterator takes."""

    def __init__(self, values: Iterable[Any]) -> None:
        self._values = iter(values)

    def __aiter__(self) -> AlreadyThere:
        return self

    async def __anext__(self) -> Any:
        for value in self._values:
            return value
        raise StopAsyncIteration


def async_for_alone(items: Sequence[Any]) -> Callable[[], float]:
    async def main() -> float:
        values = AlreadyThere(list(items))
        began = time.perf_counter()
        async for _ in values:
            pass
        return time.perf_counter() - began

    return lambda: anyio.run(main)


def by_creche(
    backend: str,
    func: Callable[[Any], Any],
    items: Sequence[Any],
    ordered: bool,
    consume: Callable[[creche.ProcessMap[Any]], Awaitable[None]] = one_by_one,
) -> Callable[[], float]:
    """Return what measures how many seconds a map takes, in workers that are warm."""

    async def main() -> float:
        async with creche.open_pool(WORKERS, min_workers=WORKERS) as pool:
            await warm_up(pool.run, WORKERS)
            began = time.perf_counter()
            await consume(pool.map(func, items, ordered=ordered))
            return time.perf_counter() - began

    return lambda: anyio.run(main, backend=backend)


def by_multiprocessing(
    func: Callable[[Any], Any], items: Sequence[Any], chunk_size: int
) -> Callable[[], float]:
    def main() -> float:
        with multiprocessing.get_context("forkserver").Pool(WORKERS) as pool:
            pool.map(nap, [0.2] * WORKERS, chunksize=1)  # until all of them have started
            began = time.perf_counter()
            for _ in pool.imap_unordered(func, items, chunksize=chunk_size):
                pass
            return time.perf_counter() - began

    return main


def by_executor(
    func: Callable[[Any], Any], items: Sequence[Any], chunk_size: int
) -> Callable[[], float]:
    def main() -> float:
        context = multiprocessing.get_context("forkserver")
        with concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
            list(pool.map(nap, [0.2] * WORKERS))
            began = time.perf_counter()
            for _ in pool.map(func, items, chunksize=chunk_size):
                pass
            return time.perf_counter() - began

    return main


def by_mpire(
    func: Callable[[Any], Any], items: Sequence[Any], chunk_size: int
) -> Callable[[], float]:
    mpire: Any = importlib.import_module("mpire")

    def main() -> float:
        with mpire.WorkerPool(WORKERS, start_method="forkserver", keep_alive=True) as pool:
            pool.map(nap, [0.2] * WORKERS, chunk_size=1)
            began = time.perf_counter()
            for _ in pool.imap_unordered(func, items, chunk_size=chunk_size):
                pass
            return time.perf_counter() - began

    return main


def apart(expression: str) -> Callable[[], float]:
    """Return what measures in an interpreter of its own, the second time.

    Some contenders import what the others would feel: NumPy's threads, for one.
    """
    return lambda: float(in_fresh_process("_map", f"second({expression})"))


def second(measure: Callable[[], float]) -> float:
    measure()
    return measure()


def no_ops(rounds: int) -> Table:
    backends = (("asyncio", "asyncio"), ("Trio", "trio"))
    at_once = {
        f"creche, {name}, {how}": f"by_creche({backend!r}, same, range(ITEMS), True, {consume})"
        for how, consume in (("as a list", "as_a_list"), ("in batches", "in_batches"))
        for name, backend in backends
    }
    one_at_a_time = {
        f"creche, {name}, one by one, {how}": f"by_creche({backend!r}, same, {items}, {ordered})"
        for name, backend in backends
        for how, items, ordered in (
            ("ordered", "range(ITEMS)", True),
            ("unordered", "range(ITEMS)", False),
            ("from a list", "list(range(ITEMS))", True),
        )
    }
    one_at_a_time["`async for` alone, over values that are there"] = "async_for_alone(range(ITEMS))"
    floors = {
        f"multiprocessing.Pool.imap_unordered, chunks of {size:,}": (
            f"by_multiprocessing(same, range(ITEMS), {size})"
        )
        for size in CHUNK_SIZES
    }
    others = {
        "ProcessPoolExecutor.map, chunks of 10,000": "by_executor(same, range(ITEMS), 10_000)"
    }
    expressions = {**at_once, **one_at_a_time, **floors, **others}
    contenders = {name: apart(expression) for name, expression in expressions.items()}
    if importlib.util.find_spec("mpire"):
        tenth = apart("by_mpire(same, range(ITEMS // 10), 10_000)")  # all take it five seconds
        contenders["mpire.imap_unordered, chunks of 10,000"] = lambda: 10 * tenth()
    seconds = in_turn(contenders, rounds, warm_up=0)
    best = max(ITEMS / seconds[name] for name in floors)
    return Table(
        "A map over a million numbers",
        f"A function that returns its argument, {WORKERS} warm workers, the input a `range` where"
        " it does not say otherwise. creche chooses its chunks itself. The ratio is to"
        " `imap_unordered` at its best. A list of all values (`await pool.map(...)`) and batches of"
        " them are for values as small as these. `async for` makes a coroutine for each value; what"
        " that takes alone is below.",
        [
            Row(
                name,
                ITEMS / value / 1e6,
                "million/s",
                ITEMS / value / best,
                "at least 1 times the best imap_unordered" if name in at_once else "",
                ITEMS / value >= best if name in at_once else None,
            )
            for name, value in seconds.items()
        ],
    )


def naps() -> Table:
    """Whether slow items are spread one by one, also where the items before them were fast."""
    slow = [NAP] * TASKS
    mixed = [0.0] * NO_NAPS + slow
    contenders = {
        "creche, asyncio": by_creche("asyncio", nap, slow, True),
        "creche, Trio": by_creche("trio", nap, slow, True),
        "imap_unordered, chunks of 1": by_multiprocessing(nap, slow, 1),
        f"creche, asyncio, after {NO_NAPS:,} no-ops": by_creche("asyncio", nap, mixed, True),
        f"creche, Trio, after {NO_NAPS:,} no-ops": by_creche("trio", nap, mixed, True),
        f"imap_unordered, chunks of 1,000, after {NO_NAPS:,} no-ops": by_multiprocessing(
            nap, mixed, 1_000
        ),
    }
    seconds = in_turn(contenders, rounds=3, warm_up=0)
    ideal = TASKS / WORKERS * NAP
    return Table(
        f"A map over {TASKS} tasks of 100 ms",
        f"{WORKERS} warm workers. The ratio is to {ideal:g} s, which it takes if they are spread"
        " one by one.",
        [
            Row(
                name,
                value,
                "s",
                value / ideal,
                f"at most {limit:g} times" if name.startswith("creche") else "",
                value <= limit * ideal if name.startswith("creche") else None,
            )
            for name, value in seconds.items()
            for limit in [1.5 if "after" in name else 1.2]
        ],
    )


async def memory_of_map(count: int) -> int:
    """Return by how many bytes this process grows at most while it maps over so many items."""
    async with creche.open_pool(WORKERS, min_workers=WORKERS) as pool:
        await warm_up(pool.run, WORKERS)
        me = psutil.Process()
        before = most = me.memory_info().rss
        number = 0
        async for _ in pool.map(same, range(count)):
            number += 1
            if number % 50_000 == 0:
                most = max(most, me.memory_info().rss)
    return int(most - before)


def memory_in_fresh_process(backend: str, count: int) -> float:
    expression = f"anyio.run(memory_of_map, {count}, backend={backend!r})"
    return float(in_fresh_process("_map", expression)) / MIB


def memory() -> Table:
    rows = []
    for name, backend in (("asyncio", "asyncio"), ("Trio", "trio")):
        few, many = (memory_in_fresh_process(backend, count) for count in (FEW_ITEMS, MANY_ITEMS))
        rows += [
            Row(f"{name}, over {FEW_ITEMS:,} numbers", few, "MiB"),
            Row(f"{name}, over {MANY_ITEMS:,} numbers", many, "MiB"),
            Row(f"{name}, more", many - few, "MiB", None, "at most 8 MiB", many - few <= 8),
        ]
    return Table(
        "The parent's memory during a map",
        "By how much its resident memory grows at most.",
        rows,
    )


def measure(rounds: int) -> Iterator[Table]:
    yield no_ops(rounds)
    yield naps()
    yield memory()
