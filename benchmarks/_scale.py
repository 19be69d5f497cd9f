"""What many processes cost the parent that waits for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio
import anyio.to_process
import psutil

import creche

from ._measuring import Row, Table, in_fresh_process
from ._work import noop, sleep_for_ever

COUNTS = (1, 50, 100, 200)


async def until_running(children: Sequence[creche.AsyncProcess[Any]]) -> None:
    while any(child.state is not creche.ProcessState.RUNNING for child in children):
        await anyio.sleep(0.01)


async def creche_sleepers(count: int, tasks: Any, stack: list[Any]) -> None:
    nursery = creche.open_nursery(stop=creche.StopPolicy(grace=0))
    await nursery.__aenter__()
    stack.append(nursery)
    children = [nursery.start_soon(sleep_for_ever) for _ in range(count)]
    await until_running(children)


async def anyio_sleepers(count: int, tasks: Any, stack: list[Any]) -> None:
    limiter = anyio.CapacityLimiter(count)
    call = partial(anyio.to_process.run_sync, sleep_for_ever, cancellable=True, limiter=limiter)
    before = len(psutil.Process().children())
    for _ in range(count):
        tasks.start_soon(call)
    while len(psutil.Process().children()) < before + count:
        await anyio.sleep(0.05)
    await anyio.sleep(1)


SLEEPERS = {"creche": creche_sleepers, "anyio.to_process": anyio_sleepers}


async def cost(contender: str, count: int) -> dict[str, float]:
    """What ``count`` sleeping processes add to this one."""
    if contender == "creche":
        await creche.run_in_process(noop)  # the machinery that is there whatever their number
    me = psutil.Process()
    descriptors, memory = me.num_fds(), me.memory_info().rss
    cpu = time.process_time()
    stack: list[Any] = []
    async with anyio.create_task_group() as tasks:
        await SLEEPERS[contender](count, tasks, stack)
        result = {
            "threads": float(threading.active_count()),
            "descriptors": (me.num_fds() - descriptors) / count,
            "memory": (me.memory_info().rss - memory) / 1024 / count,
            "cpu": 1e3 * (time.process_time() - cpu) / count,
        }
        for nursery in stack:
            nursery.cancel_scope.cancel()
            await nursery.__aexit__(None, None, None)
        tasks.cancel_scope.cancel()
    return result


def cost_in_fresh_process(contender: str, backend: str, count: int) -> dict[str, float]:
    return in_fresh_process(
        "_scale", f"anyio.run(cost, {contender!r}, {count}, backend={backend!r})"
    )


def measure() -> list[Table]:
    tables = []
    for backend in ("asyncio", "trio"):
        costs = {count: cost_in_fresh_process("creche", backend, count) for count in COUNTS}
        most = costs[max(COUNTS)]
        extra_threads = most["threads"] - costs[1]["threads"]
        rows = [
            Row(
                "threads more than with one",
                extra_threads,
                "",
                None,
                "at most 2",
                extra_threads <= 2,
            ),
            Row(
                "descriptors each",
                most["descriptors"],
                "",
                None,
                "at most 3",
                most["descriptors"] <= 3,
            ),
            Row(
                "parent memory each",
                most["memory"],
                "KiB",
                None,
                "at most 64",
                most["memory"] <= 64,
            ),
            *(
                Row(
                    f"parent CPU each, of {count}",
                    each["cpu"],
                    "ms",
                    None,
                    "at most 4",
                    each["cpu"] <= 4,
                )
                for count, each in costs.items()
            ),
        ]
        theirs = cost_in_fresh_process("anyio.to_process", backend, 50)
        alone = cost_in_fresh_process("anyio.to_process", backend, 1)
        rows += [
            Row("anyio.to_process, 50: threads more", theirs["threads"] - alone["threads"], ""),
            Row("anyio.to_process, 50: descriptors each", theirs["descriptors"], ""),
            Row("anyio.to_process, 50: parent memory each", theirs["memory"], "KiB"),
            Row("anyio.to_process, 50: parent CPU each", theirs["cpu"], "ms"),
        ]
        tables.append(
            Table(
                f"200 sleeping processes, {backend}",
                "What they cost the parent. CPU includes starting them.",
                rows,
            )
        )
    return tables
