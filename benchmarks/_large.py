"""Large values on their way to a warm worker and back."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

from ._measuring import Row, Table, in_turn
from ._pools import (
    Call,
    as_async,
    creche_pools,
    measuring,
    multiprocessing_pool,
    peers,
)
from ._work import same

MIB = 1024 * 1024
REFERENCE = "memcpy there and back"
TARGETS = {1: 3.0, 64: 3.5}


def some_bytes(size: int) -> Any:
    return generator().bytes(size)


def some_array(size: int) -> Any:
    return generator().random(size // 8)


def generator() -> Any:
    # Not imported with the module: children that import the main module would all import it.
    return importlib.import_module("numpy").random.default_rng(1)


KINDS: dict[str, Callable[[int], Any]] = {"bytes": some_bytes, "a NumPy array": some_array}


def there_and_back(data: Any, calls: int) -> Callable[[Call], Coroutine[Any, Any, float]]:
    async def measure(call: Call) -> float:
        result: Any = await call(same, data)
        assert type(result) is type(data)
        assert memoryview(result).cast("B") == memoryview(data).cast("B")
        samples = []
        for _ in range(calls):
            result = None  # its release is no part of the next call
            began = time.perf_counter()
            result = await call(same, data)
            samples.append(time.perf_counter() - began)
        del result
        return statistics.median(samples)

    return measure


def copies(data: Any) -> float:
    """Copy the data into fresh memory, and what came out once more."""
    began = time.perf_counter()
    there = bytearray(data)
    bytearray(there)
    return time.perf_counter() - began


def compare(size: int, kind: str, calls: int, rounds: int) -> Table:
    data = KINDS[kind](size * MIB)
    ours = [pool.name for pool in creche_pools()]
    measure = there_and_back(data, calls)
    contenders: dict[str, Callable[[], float]] = {REFERENCE: partial(copies, data)}
    for pool in (*creche_pools(), *peers(), as_async(multiprocessing_pool())):
        contenders[pool.name] = measuring(pool, 1, measure)
    medians = in_turn(contenders, rounds, warm_up=0)
    best = min(medians[name] for name in medians if name not in (*ours, REFERENCE))
    target = TARGETS[size]
    return Table(
        f"{size} MiB there and back, {kind}",
        "An argument that a function in a warm worker returns. The ratio is the time of the best"
        " peer to that of this one.",
        [
            Row(
                name,
                1e3 * value,
                "ms",
                best / value,
                f"at least {target:g} times as fast as the best peer" if name in ours else "",
                best / value >= target if name in ours else None,
            )
            for name, value in medians.items()
        ],
    )


def measure(rounds: int) -> Iterator[Table]:
    few = max(3, rounds // 2)  # 64 MiB take the peers half a second
    for size, calls, times in ((64, 1, few), (1, 20, rounds)):
        for kind in KINDS:
            yield compare(size, kind, calls, times)
