"""Look for leaks: very many calls, of which some fail, are cancelled or kill their worker.

python -m benchmarks soak [CALLS] [--seed SEED]
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import gc
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio
import psutil

import creche

from ._work import busy, same, sleep_for_ever

TASKS = 50
WORKERS = 4
INTERVAL = 5.0
MIB = 1024 * 1024

# Nothing may be left over. Of memory, what is in use may lie scattered.
MEMORY_LIMIT = 8 * MIB

SETTLE_SECONDS = 10.0
STALL_SECONDS = 30.0


@dataclass(frozen=True)
class Resources:
    """What there is of everything that could leak."""

    threads: int
    descriptors: int
    processes: int
    zombies: int
    shm_files: int
    mappings: int
    memory: int

    def grown_beyond(self, before: Resources) -> dict[str, int]:
        """Tell what there is more of, and how much."""
        growth = {name: value - getattr(before, name) for name, value in asdict(self).items()}
        allowed = {"memory": MEMORY_LIMIT}
        return {name: more for name, more in growth.items() if more > allowed.get(name, 0)}


def resources() -> Resources:
    me = psutil.Process()
    states = Counter(map(state_of, me.children(recursive=True)))
    return Resources(
        threads=threading.active_count(),
        descriptors=me.num_fds(),
        processes=states.total() - states[psutil.STATUS_ZOMBIE],
        zombies=states[psutil.STATUS_ZOMBIE],
        shm_files=len(files_in(Path("/dev/shm"))),
        mappings=shared_mappings(),
        memory=me.memory_info().rss,
    )


def state_of(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return "gone"


def files_in(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def shared_mappings() -> int:
    """Return how many shared memory segments are mapped, where that can be told."""
    with contextlib.suppress(OSError):
        return len(re.findall("memfd:|/dev/shm/", Path("/proc/self/maps").read_text()))
    return 0


# --- what the calls do --------------------------------------------------------------------------


class UnexpectedError(Exception):
    """A call had an outcome that is not its own."""


def fail(message: str) -> None:
    raise ValueError(message)


def leave(exitcode: int) -> None:
    os._exit(exitcode)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def some_bytes(size: int, value: int) -> bytes:
    return bytes([value]) * size


async def plain(pool: creche.ProcessPool, chance: random.Random) -> None:
    number = chance.getrandbits(30)
    expect(await pool.run(same, number) == number, "a number")


async def failing(pool: creche.ProcessPool, chance: random.Random) -> None:
    message = str(chance.getrandbits(30))
    try:
        await pool.run(fail, message)
    except ValueError as error:
        expect(error.args == (message,), "a ValueError")
    else:
        expect(False, "a ValueError")


async def large_result(pool: creche.ProcessPool, chance: random.Random) -> None:
    value = chance.randrange(256)
    result = await pool.run(some_bytes, MIB, value)
    expect(len(result) == MIB and result[0] == result[-1] == value, "a MiB")


async def large_argument(pool: creche.ProcessPool, chance: random.Random) -> None:
    data = some_bytes(MIB, chance.randrange(256))
    expect(await pool.run(same, data) == data, "the MiB that was sent")


async def cancelled(pool: creche.ProcessPool, chance: random.Random) -> None:
    """Cancel a call that waits, runs, or is just coming back."""
    if chance.random() < 0.5:
        with anyio.move_on_after(chance.uniform(0, 0.01)):
            await pool.run(chance.choice([sleep_for_ever, busy]))
            expect(False, "to be cancelled")
    else:
        with anyio.move_on_after(chance.uniform(0, 0.002)):
            await chance.choice([plain, large_result, large_argument])(pool, chance)


async def timed_out(pool: creche.ProcessPool, chance: random.Random) -> None:
    with contextlib.suppress(creche.ProcessTimeout):
        await pool.run(sleep_for_ever, timeout=chance.uniform(0, 0.01))
        expect(False, "ProcessTimeout")


async def crashing(pool: creche.ProcessPool, chance: random.Random) -> None:
    try:
        if chance.random() < 0.5:
            await pool.run(leave, 3)
        else:
            await pool.run(kill_itself)
    except creche.ProcessDied as error:
        expect(error.exitcode in (3, -signal.SIGKILL), "the exit code of a crash")
    else:
        expect(False, "ProcessDied")


def expect(right: bool, what: str) -> None:
    if not right:
        raise UnexpectedError(f"expected {what}")


# Every call that is cancelled, times out or crashes costs a worker.
KINDS: dict[Callable[[creche.ProcessPool, random.Random], Awaitable[None]], float] = {
    plain: 96.0,
    failing: 2.0,
    large_result: 0.5,
    large_argument: 0.5,
    cancelled: 0.5,
    timed_out: 0.25,
    crashing: 0.25,
}


# --- the soak -----------------------------------------------------------------------------------


class Soak:
    """Calls from many tasks, and somebody who watches them."""

    def __init__(self, name: str, seed: int) -> None:
        self.unexpected: Counter[str] = Counter()
        self._name = name
        self._chance = random.Random(seed)
        self._begun = 0
        self._done = 0
        self._open: Counter[str] = Counter()

    async def make_calls(self, count: int) -> None:
        """Make so many calls in a pool of their own."""
        self._begun = self._done = 0
        async with anyio.create_task_group() as watching:
            async with creche.open_pool(WORKERS, stop=creche.StopPolicy(grace=1)) as pool:
                watching.start_soon(self._watch, pool)
                async with anyio.create_task_group() as tasks:
                    for _ in range(TASKS):
                        tasks.start_soon(self._caller, pool, count)
            watching.cancel_scope.cancel()

    async def _caller(self, pool: creche.ProcessPool, count: int) -> None:
        kinds, weights = list(KINDS), list(KINDS.values())
        while self._begun < count:
            self._begun += 1
            (kind,) = self._chance.choices(kinds, weights)
            self._open[kind.__name__] += 1
            try:
                await kind(pool, self._chance)
            except Exception as error:
                self.unexpected[f"{kind.__name__}: {error!r}"[:200]] += 1
            self._open[kind.__name__] -= 1
            self._done += 1

    async def _watch(self, pool: creche.ProcessPool) -> None:
        before, when, stalled = 0, time.monotonic(), False
        end_after_stall()
        while True:
            await anyio.sleep(INTERVAL)
            now = time.monotonic()
            self._show((self._done - before) / (now - when))
            if self._done > before:
                stalled = False
                end_after_stall()
            elif not stalled:
                stalled = True
                print(f"nothing ends: {dict(+self._open)}, {pool.statistics()}", flush=True)
            before, when = self._done, now

    def _show(self, calls_per_second: float) -> None:
        now = resources()
        print(
            f"{self._name:<8}{self._done:>10,}{calls_per_second:>10,.0f}{now.threads:>9}"
            f"{now.descriptors:>13}{now.processes:>11}{now.zombies:>9}{now.shm_files:>10}"
            f"{now.mappings:>10}{now.memory / MIB:>12.1f}",
            flush=True,
        )


def end_after_stall() -> None:
    """If it goes on like that, end the process, and say where it hangs."""
    faulthandler.dump_traceback_later(STALL_SECONDS, exit=True)


HEADER = (
    f"{'':<8}{'calls':>10}{'calls/s':>10}{'threads':>9}{'descriptors':>13}{'processes':>11}"
    f"{'zombies':>9}{'/dev/shm':>10}{'mappings':>10}{'memory, MiB':>12}"
)


async def soak(name: str, calls: int, seed: int) -> bool:
    """Return whether all went well."""
    soaking = Soak(name, seed)
    await soaking.make_calls(min(max(2_000, calls // 20), 20_000))
    before = await settled()
    await soaking.make_calls(calls)
    after = await settled(before)
    leaked = after.grown_beyond(before)
    print(f"{name}, {calls:,} calls: {describe(before, after)}")
    for name_of_it, more in leaked.items():
        print(f"  LEAKED: {name_of_it}, {more} more")
    for what, times in soaking.unexpected.most_common(20):
        print(f"  UNEXPECTED, {times} times: {what}")
    return not leaked and not soaking.unexpected


async def settled(before: Resources | None = None) -> Resources:
    """Give everything that is about to end some time to do so."""
    faulthandler.cancel_dump_traceback_later()
    give_up = time.monotonic() + SETTLE_SECONDS
    await anyio.sleep(1)
    while before and resources().grown_beyond(before) and time.monotonic() < give_up:
        give_memory_back()
        await anyio.sleep(0.5)
    give_memory_back()
    return resources()


def give_memory_back() -> None:
    """Return what is free to the system: what is left is in use."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # other systems, other allocators
        ctypes.CDLL(None).malloc_trim(0)


def describe(before: Resources, after: Resources) -> str:
    parts = []
    for name, value in asdict(after).items():
        was = getattr(before, name)
        if name == "memory":
            parts.append(f"memory {was / MIB:.1f} -> {value / MIB:.1f} MiB")
        else:
            parts.append(f"{name} {was} -> {value}")
    return ", ".join(parts)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks soak", description="Look for leaks."
    )
    parser.add_argument("calls", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(30))
    options = parser.parse_args(arguments)
    print(f"{options.calls:,} calls, seed {options.seed}\n{HEADER}", flush=True)
    share = options.calls // 2
    fine = [
        anyio.run(soak, name, share, options.seed, backend=backend)
        for name, backend in (("asyncio", "asyncio"), ("Trio", "trio"))
    ]
    print("nothing leaked" if all(fine) else "FAILED")
    return 0 if all(fine) else 1
