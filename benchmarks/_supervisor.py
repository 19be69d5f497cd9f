"""A process that is killed, and how soon there is another one in its place."""

from __future__ import annotations

import logging
import os
import signal
import statistics
import sys
import threading
import time
from multiprocessing import connection, get_context
from typing import Any

import anyio
import psutil

import creche

from ._measuring import Row, Table, in_fresh_process
from ._work import READY, serve, serve_and_tell

LIMIT_MS = 20.0
COUNT = 500
KILLS = 15

# A record for each process that is killed is not what is measured.
logging.getLogger("creche.supervisor").setLevel(logging.CRITICAL)


async def kill_under_supervisor(start_method: str) -> dict[str, float]:
    """Milliseconds from SIGKILL to when the next process exists, and to when it is ready."""
    starts, readies = [], []
    async with creche.open_supervisor(
        intensity=10**6, backoff=creche.Backoff(initial=0), start_method=start_method
    ) as supervisor:
        child = await supervisor.start(serve)
        for _ in range(KILLS):
            await anyio.sleep(0.05)
            events = supervisor.events()
            assert child.pid is not None
            began = time.monotonic()
            os.kill(child.pid, signal.SIGKILL)
            async for event in events:
                if isinstance(event, creche.ChildStarted):
                    starts.append(event.time - began)
                elif isinstance(event, creche.ChildReady):
                    readies.append(event.time - began)
                    break
    return {"start": 1e3 * statistics.median(starts), "ready": 1e3 * statistics.median(readies)}


def kill_multiprocessing(start_method: str) -> dict[str, float]:
    """The same with a loop that waits for the sentinel of a process, and starts another one."""
    context: Any = get_context(start_method)
    receive, send = context.Pipe(False)
    starts, readies = [], []

    def start() -> Any:
        process = context.Process(target=serve_and_tell, args=(send,), daemon=True)
        process.start()
        return process

    process = start()
    receive.recv_bytes()
    for _ in range(KILLS):
        time.sleep(0.05)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGKILL)
        connection.wait([process.sentinel])
        process.join()
        process = start()
        starts.append(time.monotonic() - began)
        receive.recv_bytes()
        readies.append(time.monotonic() - began)
    process.kill()
    process.join()
    return {"start": 1e3 * statistics.median(starts), "ready": 1e3 * statistics.median(readies)}


async def kill_asyncio_subprocess() -> dict[str, float]:
    """The same with asyncio's subprocesses: an interpreter that imports nothing."""
    import asyncio

    code = f"import os, signal; os.write(1, {READY!r})\nwhile True: signal.pause()"
    starts, readies = [], []

    async def start() -> Any:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
        )

    process = await start()
    await process.stdout.readline()
    for _ in range(KILLS):
        await asyncio.sleep(0.05)
        began = time.monotonic()
        process.kill()
        await process.wait()
        process = await start()
        starts.append(time.monotonic() - began)
        await process.stdout.readline()
        readies.append(time.monotonic() - began)
    process.kill()
    await process.wait()
    return {"start": 1e3 * statistics.median(starts), "ready": 1e3 * statistics.median(readies)}


async def cost_of_many(count: int) -> dict[str, float]:
    """What ``count`` children cost the process that supervises them."""
    me = psutil.Process()
    async with creche.open_supervisor(stop=creche.StopPolicy(grace=0)) as supervisor:
        await supervisor.start(serve)
        threads, memory = threading.active_count(), me.memory_info().rss
        descriptors = me.num_fds()
        began = time.perf_counter()
        for _ in range(count):
            await supervisor.start(serve)
        seconds = time.perf_counter() - began
        cpu = time.process_time()
        await anyio.sleep(1)
        return {
            "threads": float(threading.active_count() - threads),
            "memory": (me.memory_info().rss - memory) / 1024 / count,
            "descriptors": (me.num_fds() - descriptors) / count,
            "start": 1e3 * seconds / count,
            "idle": 1e3 * (time.process_time() - cpu),
        }


def _replacement(found: dict[str, dict[str, float]]) -> Table:
    table = Table(
        "A killed process is replaced",
        "From SIGKILL to when the next process exists, and to when it says that it is ready, beside"
        " loops written by hand: wait for the end, start the next one. Those of `multiprocessing`"
        " block a thread each; asyncio starts an interpreter that imports nothing.",
    )
    for name, medians in found.items():
        ours = name.startswith("creche")
        is_judged = name.startswith("creche (creche")
        table.rows += [
            Row(
                f"{name}: next process",
                medians["start"],
                "ms",
                None,
                f"at most {LIMIT_MS:g}" if is_judged else "",
                medians["start"] <= LIMIT_MS if is_judged else None,
            ),
            Row(f"{name}: ready" if ours else f"{name}: it has said so", medians["ready"], "ms"),
        ]
    return table


def measure(rounds: int) -> list[Table]:
    del rounds  # medians of so many kills each
    found = {
        f"creche ({method}, {backend})": in_fresh_process(
            "_supervisor", f"anyio.run(kill_under_supervisor, {method!r}, backend={backend!r})"
        )
        for method in ("creche", "spawn")
        for backend in ("asyncio", "trio")
    }
    for method in ("forkserver", "spawn"):
        found[f"multiprocessing ({method})"] = in_fresh_process(
            "_supervisor", f"kill_multiprocessing({method!r})"
        )
    found["asyncio subprocess"] = in_fresh_process(
        "_supervisor", "anyio.run(kill_asyncio_subprocess)"
    )
    many = Table(
        f"{COUNT} children of one supervisor",
        "What they cost the parent, one by one, beyond the first.",
    )
    for backend in ("asyncio", "trio"):
        cost = in_fresh_process(
            "_supervisor", f"anyio.run(cost_of_many, {COUNT}, backend={backend!r})"
        )
        many.rows += [
            Row(
                f"{backend}: threads more",
                cost["threads"],
                "",
                None,
                "at most 2",  # picklers come when there is something for them
                cost["threads"] <= 2,
            ),
            Row(f"{backend}: parent memory each", cost["memory"], "KiB"),
            Row(f"{backend}: descriptors each", cost["descriptors"], ""),
            Row(f"{backend}: until one is ready", cost["start"], "ms"),
            Row(f"{backend}: CPU of the parent in a second with nothing to do", cost["idle"], "ms"),
        ]
    return [_replacement(found), many]
