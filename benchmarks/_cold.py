"""A call in a fresh process, from the call until the process is reaped."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_process

import creche

from ._measuring import Row, Table, in_turn, rows_with_ratios
from ._work import noop

FLOOR = "multiprocessing, fork: start, pipe, join (blocking)"

HEAVY_IMPORTS = (
    "asyncio concurrent.futures ctypes decimal email.message http.client json logging.config"
    " sqlite3 ssl tarfile unittest.mock urllib.request xml.etree.ElementTree zipfile"
)


def raw_fork() -> float:
    began = time.perf_counter()
    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(sender, b"x")
        os._exit(0)
    os.close(sender)
    os.read(receiver, 1)
    os.waitpid(pid, 0)
    os.close(receiver)
    return time.perf_counter() - began


def send_none(connection: Any) -> None:
    connection.send(noop())


def blocking(method: str) -> Callable[[], float]:
    context = multiprocessing.get_context(method)

    def measure() -> float:
        began = time.perf_counter()
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=send_none, args=(sender,))  # type: ignore[attr-defined]
        process.start()
        sender.close()
        receiver.recv()
        process.join()
        elapsed = time.perf_counter() - began
        receiver.close()
        process.close()
        return elapsed

    return measure


def in_loop(backend: str, func: Callable[[], Awaitable[object]]) -> Callable[[], float]:
    """Measure ``func`` in a loop of its own, the start of which does not count."""

    async def main() -> float:
        began = time.perf_counter()
        await func()
        return time.perf_counter() - began

    return lambda: anyio.run(main, backend=backend)


def executor() -> float:
    began = time.perf_counter()
    context = multiprocessing.get_context("forkserver")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(noop).result()
    return time.perf_counter() - began


async def anyio_to_process() -> None:
    await anyio.to_process.run_sync(noop)


def contenders() -> dict[str, Callable[[], float]]:
    async def creche_call() -> None:
        await creche.run_in_process(noop)

    found: dict[str, Callable[[], float]] = {
        "os.fork, pipe, waitpid (blocking)": raw_fork,
        FLOOR: blocking("fork"),
        "multiprocessing, forkserver (blocking)": blocking("forkserver"),
        "multiprocessing, spawn (blocking)": blocking("spawn"),
        "creche.run_in_process, asyncio": in_loop("asyncio", creche_call),
        "creche.run_in_process, Trio": in_loop("trio", creche_call),
        "ProcessPoolExecutor(1), forkserver": executor,
        "anyio.to_process, first call": in_loop("asyncio", anyio_to_process),
    }
    with contextlib.suppress(ImportError):
        trio_parallel: Any = importlib.import_module("trio_parallel")

        async def trio_parallel_call() -> None:
            async with trio_parallel.open_worker_context(
                worker_type=trio_parallel.WorkerType.FORKSERVER
            ) as workers:
                await workers.run_sync(noop)

        found["trio-parallel, forkserver, new context"] = in_loop("trio", trio_parallel_call)
    with contextlib.suppress(ImportError):
        pebble: Any = importlib.import_module("pebble")

        def pebble_call() -> float:
            began = time.perf_counter()
            context = multiprocessing.get_context("forkserver")
            with pebble.ProcessPool(max_workers=1, context=context) as pool:
                pool.schedule(noop).result()
                pool.close()
                pool.join()
            return time.perf_counter() - began

        found["Pebble pool of 1, forkserver"] = pebble_call
    with contextlib.suppress(ImportError):
        aiomultiprocess: Any = importlib.import_module("aiomultiprocess")
        aiomultiprocess.set_start_method("forkserver")
        from ._work import noop_async

        def aiomultiprocess_call() -> float:
            async def main() -> float:
                began = time.perf_counter()
                process = aiomultiprocess.Process(target=noop_async)
                process.start()
                await process.join()
                return time.perf_counter() - began

            return asyncio.run(main())

        found["aiomultiprocess.Process, forkserver"] = aiomultiprocess_call
    return found


def measure(rounds: int) -> Table:
    medians = {name: 1e3 * value for name, value in in_turn(contenders(), rounds).items()}
    ours = medians["creche.run_in_process, asyncio"]
    spawn = medians["multiprocessing, spawn (blocking)"]
    at_most = ("at most 2.2 times the floor", ours <= 2.2 * medians[FLOOR])
    table = Table(
        "A call in a fresh process",
        "From the call of a function that does nothing until its process is reaped, in steady"
        " state (a fork server, where there is one, runs already). The ratio is to a bare blocking"
        " fork by `multiprocessing` of the same parent.",
        rows_with_ratios(
            medians,
            FLOOR,
            "ms",
            {
                "creche.run_in_process, asyncio": at_most,
                "creche.run_in_process, Trio": (
                    at_most[0],
                    medians["creche.run_in_process, Trio"] <= 2.2 * medians[FLOOR],
                ),
            },
        ),
        plot="benchmarks",
    )
    table.rows.append(
        Row(
            "blocking spawn / creche",
            spawn / ours,
            "times",
            None,
            "at least 10",
            spawn >= 10 * ours,
        )
    )
    return table


HEAVY_MAIN = """
import {imports}
import json, sys
from benchmarks._cold import measure_heavy

if __name__ == "__main__":
    json.dump(measure_heavy(int(sys.argv[1])), sys.stdout)
"""


def measure_heavy(rounds: int) -> dict[str, float]:
    """Run in a program whose main module imports a lot."""

    async def creche_call() -> None:
        await creche.run_in_process(noop)

    measured: dict[str, Callable[[], float]] = {
        FLOOR: blocking("fork"),
        "multiprocessing, forkserver (blocking)": blocking("forkserver"),
        "multiprocessing, spawn (blocking)": blocking("spawn"),
        "creche.run_in_process, asyncio": in_loop("asyncio", creche_call),
        "creche.run_in_process, Trio": in_loop("trio", creche_call),
    }
    return {name: 1e3 * value for name, value in in_turn(measured, rounds).items()}


def measure_with_heavy_main(rounds: int) -> Table:
    with tempfile.TemporaryDirectory() as folder:
        main = Path(folder, "main.py")
        main.write_text(HEAVY_MAIN.format(imports=", ".join(HEAVY_IMPORTS.split())))
        done = subprocess.run(
            [sys.executable, str(main), str(rounds)],
            env={**os.environ, "PYTHONPATH": os.getcwd()},
            stdout=subprocess.PIPE,
            check=True,
        )
    medians: dict[str, float] = json.loads(done.stdout)
    ours = medians["creche.run_in_process, asyncio"]
    return Table(
        "The same with a main module that imports a lot",
        "The main module imports fifteen large modules of the standard library. creche's fork"
        " server imports it once; elsewhere each child does.",
        rows_with_ratios(
            medians,
            FLOOR,
            "ms",
            {
                "creche.run_in_process, asyncio": (
                    "at most 2.2 times the floor",
                    ours <= 2.2 * medians[FLOOR],
                )
            },
        ),
    )
