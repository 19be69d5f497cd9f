"""Starting processes without a pause, and having a thousand of them."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable

import anyio
import psutil

import creche

from ._cold import blocking
from ._measuring import Row, Table, in_fresh_process
from ._scale import until_running
from ._work import noop, sleep_for_ever

TASKS = 4
MANY = 1000


def starts_per_second(contender: str, cores: int, seconds: float) -> float:
    """How many processes can be started, awaited and reaped in a second."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    # As what a main module imports would be.
    modules = ["benchmarks._cold", "benchmarks._work"]
    creche.preload(*modules)
    multiprocessing.set_forkserver_preload(modules)
    if contender.startswith("creche, "):
        return anyio.run(_creche_starts, seconds, backend=contender.partition(", ")[2].lower())
    start: Callable[[], object] = blocking(contender.partition(", ")[2].partition(" ")[0])
    start()
    began = time.perf_counter()
    count = 0
    while time.perf_counter() < began + seconds:
        start()
        count += 1
    return count / (time.perf_counter() - began)


async def _creche_starts(seconds: float) -> float:
    await creche.run_in_process(noop)
    began = time.perf_counter()
    count = 0

    async def start() -> None:
        nonlocal count
        while time.perf_counter() < began + seconds:
            await creche.run_in_process(noop)
            count += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(TASKS):
            tasks.start_soon(start)
    return count / (time.perf_counter() - began)


async def many_alive(count: int) -> dict[str, float]:
    """Start many processes that sleep, and see what they take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8 * count)), hard))
    await creche.run_in_process(noop)
    began = time.perf_counter()
    async with creche.open_nursery(stop=creche.StopPolicy(grace=0)) as nursery:
        children = [nursery.start_soon(sleep_for_ever) for _ in range(count)]
        await until_running(children)
        started = time.perf_counter() - began
        (server,) = creche.fork_server_statistics()
        sizes = [psutil.Process(child.pid).memory_full_info().pss for child in children[:20]]
        stopping = time.perf_counter()
        nursery.cancel_scope.cancel()
    return {
        "alive": float(len(children)),
        "started": started,
        "stopped": time.perf_counter() - stopping,
        "child": sum(sizes) / len(sizes),
        "server": float(server.memory or 0),
    }


async def one_alive() -> dict[str, float]:
    """The memory of an idle child, and of its server, where there is no other child."""
    async with creche.AsyncProcess(
        target=sleep_for_ever, stop=creche.StopPolicy(grace=0)
    ) as process:
        await until_running([process])
        (server,) = creche.fork_server_statistics()
        child = psutil.Process(process.pid).memory_full_info()
        await process.kill()
    return {"child": float(child.pss), "own": float(child.uss), "server": float(server.memory or 0)}


CONTENDERS = (
    "creche, asyncio",
    "creche, Trio",
    "multiprocessing, creche (blocking)",
    "multiprocessing, fork (blocking)",
    "multiprocessing, forkserver (blocking)",
    "multiprocessing, spawn (blocking)",
)


def measure(seconds: float) -> list[Table]:
    tables = []
    for cores in (1, 2):
        rates = {
            name: in_fresh_process(
                "_starts", f"{{'rate': starts_per_second({name!r}, {cores}, {seconds})}}"
            )
            for name in CONTENDERS
        }
        floor = rates["multiprocessing, fork (blocking)"]["rate"]
        tables.append(
            Table(
                f"Processes started and reaped in a second, {cores} core{'s' * (cores > 1)}",
                f"Without a pause: by creche from {TASKS} tasks, by the others one after the other."
                " The ratio is to `multiprocessing`'s fork of the same small parent.",
                [
                    Row(name, rate["rate"], "/s", ratio=rate["rate"] / floor)
                    for name, rate in rates.items()
                ],
            )
        )
    mib = 1024 * 1024
    many = in_fresh_process("_starts", f"anyio.run(many_alive, {MANY})")
    one = in_fresh_process("_starts", "anyio.run(one_alive)")
    over = (one["child"] - one["server"]) / mib
    tables.append(
        Table(
            f"{MANY:,} processes alive at once",
            "They sleep. Memory is the proportional set size (PSS): pages that several processes"
            " share count for a part in each.",
            [
                Row("alive", many["alive"], "", None, f"{MANY:,}", many["alive"] == MANY),
                Row("to start them", many["started"], "s"),
                Row("to kill and reap them", many["stopped"], "s"),
                Row("memory of each", many["child"] / mib, "MiB"),
                Row("memory of the server", many["server"] / mib, "MiB"),
                Row("memory of one that is alone", one["child"] / mib, "MiB"),
                Row("memory of its server", one["server"] / mib, "MiB"),
                Row("the one over its server", over, "MiB", None, "at most 3", over <= 3),
                Row("what the one has to itself", one["own"] / mib, "MiB"),
            ],
        )
    )
    return tables
