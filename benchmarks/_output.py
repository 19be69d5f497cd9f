"""Lines that a child prints, received one by one in its parent."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Callable

import anyio

import creche

from ._measuring import Row, Table, in_turn

LINES = 50_000
LINE = "x" * 60
PROGRAM = f"for _ in range({LINES}): print({LINE!r}, flush=True)"

logger = logging.getLogger("benchmarks.output")
logger.propagate = False
logger.setLevel(logging.INFO)
logger.addHandler(logging.NullHandler())


def print_lines() -> None:
    for _ in range(LINES):
        print(LINE)


async def from_stream() -> float:
    """Lines a second, counted from the first one."""
    async with creche.AsyncProcess(target=print_lines, stdout="stream") as process:
        assert process.stdout is not None
        await process.stdout.receive()
        began = time.perf_counter()
        count = 0
        async for _ in process.stdout:
            count += 1
        return count / (time.perf_counter() - began)


async def to_logger() -> float:
    """Lines a second, from the start of the process to its outcome."""
    began = time.perf_counter()
    await creche.run_in_process(print_lines, stdout=logger)
    return LINES / (time.perf_counter() - began)


async def from_asyncio_subprocess() -> float:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    began = time.perf_counter()
    count = 0
    async for line in process.stdout:
        line.decode().rstrip("\n")
        count += 1
    rate = count / (time.perf_counter() - began)
    await process.wait()
    return rate


def from_subprocess() -> float:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        began = time.perf_counter()
        count = 0
        for line in process.stdout:
            line.rstrip("\n")
            count += 1
        return count / (time.perf_counter() - began)


def measure(rounds: int) -> Table:
    contenders: dict[str, Callable[[], float]] = {
        "creche, stream, asyncio": lambda: anyio.run(from_stream, backend="asyncio"),
        "creche, stream, trio": lambda: anyio.run(from_stream, backend="trio"),
        "creche, logger": lambda: anyio.run(to_logger, backend="asyncio"),
        "asyncio.subprocess, readline": lambda: asyncio.run(from_asyncio_subprocess()),
        "subprocess, readline (blocking)": from_subprocess,
    }
    medians = in_turn(contenders, rounds, warm_up=1)
    floor = medians["asyncio.subprocess, readline"]
    return Table(
        "Lines of output",
        f"A child prints {LINES:,} lines of {len(LINE)} characters, and writes each at once."
        " The ratio is to `asyncio.subprocess`. A logger without handlers gets its lines with the"
        " start and the end of the process.",
        [Row(name, value, "lines/s", value / floor) for name, value in medians.items()],
    )
