"""A pool on a Dask cluster, beside Dask itself: two one-thread workers on loopback."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import distributed
import psutil

import creche
import creche.cluster

from ._measuring import Row, Table, in_turn
from ._work import noop

LATENCY_LIMIT, MAP_FACTOR, CANCEL_LIMIT = 1.5, 5.0, 100.0

CALLS = 30
ITEMS = 100_000
DASK_TASKS = 1_000  # of Dask's, to reckon with
CPU_ITEMS = 64


def spin(_: int) -> None:
    """Some 20 milliseconds of pure Python."""
    sum(range(1_000_000))


def sleep(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[distributed.LocalCluster]:
    with distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    ) as found:
        yield found


def dask_latency(client: distributed.Client) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        client.submit(noop, pure=False).result()
    return (time.perf_counter() - began) / CALLS


def dask_map(client: distributed.Client) -> float:
    began = time.perf_counter()
    client.gather(client.map(abs, range(DASK_TASKS), pure=False))
    return (time.perf_counter() - began) / DASK_TASKS * ITEMS


def with_pool(where: Any, backend: str, measure: Callable[[Any], Any]) -> Callable[[], float]:
    async def main() -> float:
        stop = creche.StopPolicy(grace=1)
        async with creche.cluster.open_pool(where, stop=stop) as pool:
            await pool.map(abs, range(200))
            return await measure(pool)  # type: ignore[no-any-return]

    return lambda: anyio.run(main, backend=backend)


async def latency(pool: creche.cluster.ClusterPool) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        await pool.run(noop)
    return (time.perf_counter() - began) / CALLS


async def map_items(pool: creche.cluster.ClusterPool) -> float:
    began = time.perf_counter()
    await pool.map(abs, range(ITEMS))
    return time.perf_counter() - began


async def spin_all(pool: creche.cluster.ClusterPool) -> float:
    began = time.perf_counter()
    await pool.map(spin, range(CPU_ITEMS))
    return time.perf_counter() - began


async def cancel(pool: creche.cluster.ClusterPool) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pid")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run, sleep, str(path))
            while not path.exists() or not path.read_text():
                await anyio.sleep(0.005)
            pid = int(path.read_text())
            began = time.perf_counter()
            tasks.cancel_scope.cancel()
        while psutil.pid_exists(pid):
            await anyio.sleep(0.0005)
        return time.perf_counter() - began


def measure(rounds: int) -> Iterator[Table]:
    with cluster(2) as here, distributed.Client(here, set_as_default=False) as client:
        client.submit(noop).result()
        contenders: dict[str, Callable[[], float]] = {"Dask": lambda: dask_latency(client)}
        for name, backend in (("creche, asyncio", "asyncio"), ("creche, Trio", "trio")):
            contenders[name] = with_pool(here, backend, latency)
        yield compared(
            "One call on a cluster after the other",
            "A function that does nothing: submitted, and its value awaited. Two one-thread"
            " workers on the loopback interface.",
            {n: 1e3 * s for n, s in in_turn(contenders, rounds, warm_up=1).items()},
            "ms",
            lambda ratio: ratio <= LATENCY_LIMIT,
            f"at most {LATENCY_LIMIT:g} times Dask's",
        )
        contenders = {"Dask": lambda: dask_map(client)}
        for name, backend in (("creche, asyncio", "asyncio"), ("creche, Trio", "trio")):
            contenders[name] = with_pool(here, backend, map_items)
        yield compared(
            "100,000 tiny items on a cluster",
            f"`abs` of each. A Dask task is for one; {DASK_TASKS:,} were measured.",
            {n: ITEMS / s for n, s in in_turn(contenders, max(2, rounds // 2), 1).items()},
            "1/s",
            lambda ratio: ratio >= MAP_FACTOR,
            f"at least {MAP_FACTOR:g} times as fast as Dask",
        )
        medians = in_turn(
            {
                "creche, asyncio": with_pool(here, "asyncio", cancel),
                "creche, Trio": with_pool(here, "trio", cancel),
            },
            rounds,
            warm_up=1,
        )
        yield Table(
            "Cancelling a call on a cluster",
            "From the cancellation of the `await` until the process on the far side is gone. Dask"
            " itself lets a task that runs run on.",
            [
                Row(
                    name,
                    1e3 * value,
                    "ms",
                    target=f"at most {CANCEL_LIMIT:g} ms",
                    met=1e3 * value <= CANCEL_LIMIT,
                )
                for name, value in medians.items()
            ],
        )
    yield growth()


def growth() -> Table:
    rows: list[Row] = []
    for workers in (1, 2, 4):
        with cluster(workers) as here:
            seconds = with_pool(here, "asyncio", spin_all)()
        first = rows[0].value if rows else 1e3 * seconds
        rows.append(
            Row(
                f"{workers} worker" + "s" * (workers > 1),
                1e3 * seconds,
                "ms",
                first / (1e3 * seconds),
            )
        )
    return Table(
        "Growth with the workers of a cluster",
        f"{CPU_ITEMS} items that each take some 20 ms of a CPU; how many times as fast as with one"
        f" worker. {os.cpu_count()} CPUs, which the scheduler and the caller share.",
        rows,
    )


def compared(
    title: str,
    about: str,
    medians: dict[str, float],
    unit: str,
    is_met: Callable[[float], bool],
    target: str,
) -> Table:
    rows: list[Row] = []
    for name, value in medians.items():
        ratio = value / medians["Dask"]
        ours = name.startswith("creche")
        met = is_met(ratio) if ours else None
        rows.append(Row(name, value, unit, ratio, target if ours else "", met))
    return Table(title, about, rows)
