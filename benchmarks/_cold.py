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
        "multiprocessing, creche (blocking)": blocking("creche"),
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


MAIN = """
import {imports}
import json, sys
import creche
from benchmarks import _cold

{ballast}

if __name__ == "__main__":
    creche.preload(*sys.argv[3:])
    json.dump(_cold.measure_here(sys.argv[2], int(sys.argv[1])), sys.stdout)
"""

AT_MOST = 0.8
TIMES_FORK_SERVER = 8


def measure_here(which: str, rounds: int) -> dict[str, float]:
    """Run in a program of its own, as users' programs are: with a main module that is a file."""
    found = contenders()
    if which == "few":
        found = {name: found[name] for name in FEW}
    return {name: 1e3 * value for name, value in in_turn(found, rounds).items()}


FEW = (
    FLOOR,
    "multiprocessing, forkserver (blocking)",
    "multiprocessing, spawn (blocking)",
    "multiprocessing, creche (blocking)",
    "creche.run_in_process, asyncio",
    "creche.run_in_process, Trio",
)


def measure_in_program(
    title: str,
    about: str,
    rounds: int,
    *,
    which: str = "few",
    imports: str = "os",
    ballast: str = "",
    preload: tuple[str, ...] = (),
    plot: str = "",
) -> Table:
    with tempfile.TemporaryDirectory() as folder:
        main = Path(folder, "main.py")
        main.write_text(MAIN.format(imports=imports, ballast=ballast))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(main), str(rounds), which, *preload],
            env={**os.environ, "PYTHONPATH": os.getcwd()},
            stdout=subprocess.PIPE,
            check=True,
        )
    medians: dict[str, float] = json.loads(done.stdout)
    floor, stock = medians[FLOOR], medians["multiprocessing, forkserver (blocking)"]
    ours = [name for name in medians if name.startswith("creche")]
    table = Table(
        title,
        about,
        rows_with_ratios(
            medians,
            FLOOR,
            "ms",
            {
                name: (f"at most {AT_MOST} times the fork", medians[name] <= AT_MOST * floor)
                for name in ours
            },
        ),
        plot=plot,
    )
    times = stock / max(medians[name] for name in ours)
    table.rows.append(
        Row(
            "blocking fork server of multiprocessing / creche",
            times,
            "times",
            None,
            f"at least {TIMES_FORK_SERVER}",
            times >= TIMES_FORK_SERVER,
        )
    )
    return table


def measure(rounds: int) -> list[Table]:
    more = 2 * rounds  # of fewer contenders
    return [
        measure_in_program(
            "A call in a fresh process",
            "From the call of a function that does nothing until its process is reaped, in steady"
            " state (a fork server, where there is one, runs already). The ratio is to a bare"
            " blocking fork by `multiprocessing` of the same parent.",
            rounds,
            which="all",
            plot="benchmarks",
        ),
        measure_in_program(
            "The same with a main module that imports a lot",
            "The main module imports fifteen large modules of the standard library. creche's fork"
            " server imports it once; elsewhere each child does.",
            more,
            imports=", ".join(HEAVY_IMPORTS.split()),
        ),
        measure_in_program(
            "The same in a parent of 2 GiB",
            "What is copied when a process forks grows with its memory; a fork server stays small.",
            more,
            ballast=BALLAST,
        ),
        measure_in_program(
            "The same with NumPy",
            "The parent has imported it, and so has the fork server: `creche.preload('numpy')`.",
            more,
            imports="numpy",
            preload=("numpy",),
        ),
    ]


BALLAST = """
if __name__ == "__main__":
    ballast = bytearray(2 * 1024**3)
    ballast[::4096] = b"x" * (len(ballast) // 4096)  # touched, so that it is there
"""
