"""What goes wrong in a pool: its workers die, hang or never come, and its calls are cancelled.

What a function may do to its own call is in the columns of :mod:`test_faults`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import channel_targets
import psutil
import pytest
import support
from support import TIMEOUT, Announcements, Timeouts, until

from creche import (
    ProcessDied,
    ProcessError,
    ProcessPool,
    ProcessStartError,
    ProcessTimeout,
    SerializationError,
    StopPolicy,
    WorkerMemoryError,
    create_channel,
    open_pool,
    run_in_process,
)
from creche._pool._calls import what_runs
from creche._pool._channel import WorkerChannel
from creche._pool._scheduler import _DEAF_SECONDS
from creche._pool._worker import Worker

pytestmark = pytest.mark.anyio

MEBIBYTE = 1024 * 1024

PATIENT = StopPolicy(grace=TIMEOUT, exit_timeout=TIMEOUT)
"""Who waits for a force that is not needed times out."""

FORCEFUL = StopPolicy(grace=0.05, exit_timeout=0.05)
"""For what nothing but force ends."""


@pytest.fixture
def lines(tmp_path: Path) -> str:
    """A file to which calls append lines."""
    path = tmp_path / "lines"
    path.touch()
    return str(path)


@pytest.fixture
def gate(tmp_path: Path) -> str:
    """A FIFO: whoever reads it waits until somebody has written to it."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return str(path)


def read_lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


async def open_gate(path: str) -> None:
    await anyio.to_thread.run_sync(Path(path).write_text, "go", abandon_on_cancel=True)


async def wait_gone(pid: int) -> None:
    assert await anyio.to_thread.run_sync(support.wait_until_gone, pid)


async def check_serves(pool: ProcessPool, calls: int = 5) -> None:
    for number in range(calls):
        assert await pool.run(support.double, number) == 2 * number
    assert [value async for value in pool.map(support.double, range(5))] == [0, 2, 4, 6, 8]


def check_nothing_runs(pool: ProcessPool) -> None:
    statistics = pool.statistics()
    assert statistics.calls_queued == 0
    assert statistics.calls_running == 0


# --- death while idle -----------------------------------------------------------------------------


@pytest.mark.parametrize("noticed", [False, True], ids=["unnoticed", "noticed"])
@pytest.mark.parametrize("size", [0, 100_000, 8 * MEBIBYTE])
async def test_death_while_idle(size: int, noticed: bool) -> None:
    """Nobody hears of it, not even where the next call was sent to the dead worker."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            pid = await pool.run(os.getpid)
            os.kill(pid, signal.SIGKILL)
            assert support.wait_until_gone(pid)  # and the event loop stands still
            if noticed:
                await until(lambda: pool.statistics().restarts == 1)
            assert await pool.run(len, bytes(size)) == size
            assert await pool.run(os.getpid) != pid
            assert pool.statistics().restarts == 1
            assert pool.statistics().calls_failed == 0


async def test_death_while_idle_of_those_kept_ready() -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(3, min_workers=3, stop=PATIENT) as pool:
            pids = {worker.pid for worker in pool.statistics().workers}
            assert len(pids) == 3
            for pid in pids:
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
            await until(lambda: pool.statistics().restarts == 3)
            await until(lambda: pool.statistics().workers_idle == 3)
            assert not pids & {worker.pid for worker in pool.statistics().workers}
            await check_serves(pool)


async def test_map_finds_all_workers_dead() -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, min_workers=2, stop=PATIENT) as pool:
            for worker in pool.statistics().workers:
                assert worker.pid is not None
                os.kill(worker.pid, signal.SIGKILL)
                assert support.wait_until_gone(worker.pid)
            values = [value async for value in pool.map(support.double, range(1000))]
            assert values == [2 * number for number in range(1000)]


# --- death on the way -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 100_000, 64 * MEBIBYTE])
async def test_death_before_the_arguments_are_received(size: int) -> None:
    """The worker never came to begin the call: another one runs it."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            pid = await pool.run(os.getpid)
            os.kill(pid, signal.SIGSTOP)
            # Until it is told, a worker that waits in a system call may still receive.
            await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
            async with anyio.create_task_group() as group:

                async def run() -> None:
                    assert await pool.run(len, bytes(size)) == size

                group.start_soon(run)
                await until(lambda: pool.statistics().calls_running == 1)
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
                os.kill(pid, signal.SIGKILL)
            await check_serves(pool)


@pytest.fixture
def killed_on_receipt(tmp_path: Path) -> dict[str, Any]:
    """Options of a pool of which the first worker is killed with a call in its hands.

    As the kernel does it now and then: to a process that waits for a message and is killed, it
    still gives one that comes before it has ended.
    """
    mark = str(tmp_path / "killed")
    return {"initializer": support.die_on_receipt, "initargs": (mark,), "stop": PATIENT}


@pytest.mark.parametrize("size", [0, 100_000, 8 * MEBIBYTE])
async def test_death_before_the_call_begins(killed_on_receipt: dict[str, Any], size: int) -> None:
    """A call that was received, and no more, is not lost with its worker: another one runs it."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, **killed_on_receipt) as pool:
            assert await pool.run(len, bytes(size)) == size
            assert pool.statistics().restarts == 1
            assert pool.statistics().calls_failed == 0
            await check_serves(pool)


async def test_death_before_the_call_begins_that_has_a_channel(
    killed_on_receipt: dict[str, Any],
) -> None:
    """The end is not lost with the worker, either."""
    send, receive = create_channel[int](1)
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, **killed_on_receipt) as pool, receive:
            await pool.run(channel_targets.produce, send, 1, 7)
            assert await receive.receive() == 7
            with pytest.raises(anyio.EndOfStream):
                await receive.receive()
            assert pool.statistics().restarts == 1


@pytest.mark.parametrize("chunksize", [1, 50, "auto"])
async def test_death_before_the_chunk_begins(
    killed_on_receipt: dict[str, Any], lines: str, chunksize: Any
) -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, **killed_on_receipt) as pool:
            note = functools.partial(support.note, lines)
            assert await pool.map(note, range(200), chunksize=chunksize) == list(range(200))
            assert pool.statistics().restarts == 1
    assert Counter(map(int, read_lines(lines))) == Counter(range(200))


async def test_call_is_cancelled_as_its_worker_dies_before_it_begins(
    killed_on_receipt: dict[str, Any], lines: str
) -> None:
    """It is not run elsewhere, as nobody wants it."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, min_workers=1, **killed_on_receipt) as pool:
            (worker,) = pool.statistics().workers
            assert worker.pid is not None
            async with anyio.create_task_group() as group:
                group.start_soon(pool.run, support.note, lines, 1)
                while not pool.statistics().calls_running:
                    await anyio.lowlevel.checkpoint()
                assert support.wait_until_gone(worker.pid)  # and the event loop stands still
                group.cancel_scope.cancel()
            await check_serves(pool)
    assert read_lines(lines) == []


@pytest.mark.parametrize("workers", [1, 2])
async def test_idle_workers_are_killed_as_calls_come(workers: int) -> None:
    """Nothing ran, so nothing fails."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(workers, min_workers=workers, stop=PATIENT) as pool:
            for number in range(100):
                for worker in pool.statistics().workers:
                    if worker.pid is not None:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(worker.pid, signal.SIGKILL)
                assert await pool.run(support.double, number) == 2 * number
            assert pool.statistics().calls_failed == 0


async def test_too_many_descriptors_for_one_call() -> None:
    """They cannot travel together: that is an error, and no reason to try other workers."""
    ends = [create_channel[int](1) for _ in range(254)]
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            with pytest.raises(SerializationError, match="no more than 253 descriptors"):
                await pool.run(support.ignore, [send for send, _ in ends])
            assert pool.statistics().workers == ()
    for end in [end for pair in ends for end in pair]:
        end.close()


async def test_garbage_before_the_worker_is_ready() -> None:
    """As other failures to start: three in a row are an error."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=FORCEFUL, initializer=support.write_garbage) as pool:
            with pytest.raises(ProcessStartError):
                await pool.run(support.double, 1)


async def test_death_while_arguments_are_unpickled(announcements: Announcements) -> None:
    argument = [bytes(4 * MEBIBYTE), support.WaitsOnUnpickling(announcements.path)]
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool, anyio.create_task_group() as group:

            async def run() -> None:
                with pytest.raises(ProcessDied, match="SIGKILL"):
                    await pool.run(support.ignore, argument)

            group.start_soon(run)
            os.kill(await announcements.get_pid(), signal.SIGKILL)
            await check_serves(pool)


async def test_death_while_the_result_is_pickled(announcements: Announcements) -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool, anyio.create_task_group() as group:

            async def run() -> None:
                with pytest.raises(ProcessDied, match="SIGKILL"):
                    await pool.run(support.make, support.WaitsOnPickling, announcements.path)

            group.start_soon(run)
            os.kill(await announcements.get_pid(), signal.SIGKILL)
            await check_serves(pool)


@pytest.mark.parametrize("delay", [0, 0.001, 0.003, 0.01, 0.03, 0.1])
async def test_death_while_a_large_result_is_sent(
    announcements: Announcements, delay: float
) -> None:
    size = 64 * MEBIBYTE
    outcome: list[int | None] = []
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool, anyio.create_task_group() as group:

            async def run() -> None:
                try:
                    value = await pool.run(
                        support.announce_then, announcements.path, support.payload, size
                    )
                except ProcessDied as error:
                    outcome.append(error.signal)
                else:
                    outcome.append(len(value))

            group.start_soon(run)
            pid = await announcements.get_pid()
            await anyio.sleep(delay)  # spreads the moments; nothing depends on them
            os.kill(pid, signal.SIGKILL)
            await wait_gone(pid)
            await check_serves(pool)
    assert outcome in ([signal.SIGKILL], [size])


# --- calls sent ahead -----------------------------------------------------------------------------


async def learn(pool: ProcessPool, func: Callable[..., Any], *args: Any) -> None:
    """Have the pool take a function for a short one, even where it has to wait for a CPU."""
    await pool.run(func, *args)
    pool._engine.scheduler._seconds[what_runs(func)] = 1e-6


async def test_death_with_calls_sent_ahead(lines: str, tmp_path: Path) -> None:
    """Only the call that ran fails; those behind it run elsewhere, once."""
    other = str(tmp_path / "other lines")
    outcomes: dict[int, object] = {}
    most_ahead = 0
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            await learn(pool, support.note_or_die, other, (), 0)
            async with anyio.create_task_group() as group:

                async def run(number: int) -> None:
                    nonlocal most_ahead
                    try:
                        outcomes[number] = await pool.run(
                            support.note_or_die, lines, (0, 7, 8, 29), number
                        )
                    except ProcessDied as error:
                        outcomes[number] = error.exitcode

                for number in range(30):
                    group.start_soon(run, number)
                while len(outcomes) < 30:
                    workers = pool._engine.scheduler.workforce.all
                    most_ahead = max(most_ahead, *(len(worker.calls) for worker in workers), 0)
                    await anyio.lowlevel.checkpoint()
            check_nothing_runs(pool)
    expected = {number: 3 if number in (0, 7, 8, 29) else number for number in range(30)}
    assert outcomes == expected
    assert sorted(map(int, read_lines(lines))) == list(range(30))
    assert most_ahead > 2  # or this test is of something else


async def test_calls_sent_ahead_are_cancelled_behind_one_that_runs(
    lines: str, announcements: Announcements, gate: str
) -> None:
    """They leave, and the one that runs notices nothing."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            await learn(pool, support.call, support.ignore)
            async with anyio.create_task_group() as group:

                async def run() -> None:
                    # The same function: the pool takes it for a short one.
                    value = await pool.run(
                        support.call, support.wait_for_gate, announcements.path, gate
                    )
                    assert value == "went through"

                async def run_behind(number: int) -> None:
                    await pool.run(support.call, support.note, lines, number)

                group.start_soon(run)
                while not pool.statistics().calls_running:  # and not a millisecond longer
                    await anyio.lowlevel.checkpoint()
                async with anyio.create_task_group() as behind:
                    for number in range(20):
                        behind.start_soon(run_behind, number)
                    pid = await announcements.get_pid()
                    behind.cancel_scope.cancel()
                await open_gate(gate)
            assert await pool.run(os.getpid) == pid
            check_nothing_runs(pool)
            assert pool.statistics().calls_cancelled == 20
            assert pool.statistics().restarts == 0
    assert read_lines(lines) == []


async def test_many_deaths_under_load(lines: str) -> None:
    """Killed from outside at any moment: each death fails one call at most, and none runs twice."""
    calls = 3000
    outcomes: dict[int, str] = {}
    numbers = iter(range(calls))
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, stop=PATIENT) as pool, anyio.create_task_group() as group:

            async def run_some() -> None:
                for number in numbers:
                    try:
                        assert await pool.run(support.note, lines, number) == number
                    except ProcessDied:
                        outcomes[number] = "died"
                    else:
                        outcomes[number] = "done"

            for _ in range(20):
                group.start_soon(run_some)
            killed: set[int] = set()
            while len(outcomes) < calls:
                seen = len(outcomes)
                for worker in pool.statistics().workers:
                    if worker.pid is None or worker.pid in killed:
                        continue
                    killed.add(worker.pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker.pid, signal.SIGKILL)
                    break
                while len(outcomes) < min(seen + 15, calls):
                    await anyio.lowlevel.checkpoint()
    assert len(outcomes) == calls
    ran = Counter(map(int, read_lines(lines)))
    assert set(ran.values()) == {1}
    assert all(ran[number] == 1 for number, outcome in outcomes.items() if outcome == "done")
    assert len(killed) > 10
    assert Counter(outcomes.values())["died"] <= len(killed)


async def test_many_crashes(lines: str) -> None:
    deadly = tuple(range(0, 400, 2))
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, stop=PATIENT) as pool:
            outcomes = [
                outcome
                async for outcome in pool.map(
                    functools.partial(support.note_or_die, lines, deadly),
                    range(400),
                    chunksize=1,
                    on_error="yield",
                )
            ]
            for outcome in outcomes:
                if outcome.index in deadly:
                    assert isinstance(outcome.exception, ProcessDied)
                else:
                    assert outcome.value == outcome.index
            await check_serves(pool)
    assert sorted(map(int, read_lines(lines))) == list(range(400))


# --- stopped workers ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["timeout", "cancel"])
async def test_worker_is_stopped_in_a_call(
    way: str, announcements: Announcements, timeouts: Timeouts
) -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=FORCEFUL) as pool:
            pid = await pool.run(os.getpid)
            call = functools.partial(
                pool.run, support.announce_then, announcements.path, support.busy_loop
            )
            if way == "timeout":
                async with anyio.create_task_group() as group:

                    async def run() -> None:
                        with pytest.raises(ProcessTimeout):
                            await call(timeout=2 * TIMEOUT)

                    group.start_soon(run)
                    assert await announcements.get_pid() == pid
                    os.kill(pid, signal.SIGSTOP)
                    timeouts.strike()
            else:
                async with anyio.create_task_group() as group:
                    group.start_soon(call)
                    assert await announcements.get_pid() == pid
                    os.kill(pid, signal.SIGSTOP)
                    group.cancel_scope.cancel()
            assert not psutil.pid_exists(pid)
            await check_serves(pool)


@pytest.mark.parametrize("way", ["timeout", "cancel"])
@pytest.mark.parametrize("size", [0, 100_000, 8 * MEBIBYTE])
async def test_worker_is_stopped_while_idle(way: str, size: int, timeouts: Timeouts) -> None:
    """The call that finds it so does not end; those after it are served."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=FORCEFUL) as pool:
            pid = await pool.run(os.getpid)
            (worker,) = pool._engine.scheduler.workforce.all
            os.kill(pid, signal.SIGSTOP)
            async with anyio.create_task_group() as group:

                async def run() -> None:
                    if way == "timeout":
                        with pytest.raises(ProcessTimeout):
                            await pool.run(len, bytes(size), timeout=2 * TIMEOUT)
                    else:
                        await pool.run(len, bytes(size))

                group.start_soon(run)
                await until(lambda: worker.calls)
                # Since it was sent the call, not since that was made: pickling takes its time.
                await until(lambda: time.monotonic() - worker.begun > 1.2 * _DEAF_SECONDS)
                if way == "timeout":
                    timeouts.strike()
                else:
                    group.cancel_scope.cancel()
            await check_serves(pool)


async def test_cancelled_call_ends_when_the_pool_knows_of_its_worker(
    announcements: Announcements, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the process has ended, which the event loop may hear of a moment later."""
    stop, drain_dead = Worker.stop, WorkerChannel.drain_dead
    go_on = threading.Event()

    def stop_and_hold_up_the_loop(worker: Worker, *args: Any) -> None:
        stop(worker, *args)
        while not worker.handle.gone.is_set():
            time.sleep(0.001)

    def drain_late(channel: WorkerChannel, then: Callable[[], object]) -> None:
        assert go_on.wait(TIMEOUT)  # the watcher
        drain_dead(channel, then)

    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            with monkeypatch.context() as patched:
                patched.setattr(Worker, "stop", stop_and_hold_up_the_loop)
                patched.setattr(WorkerChannel, "drain_dead", drain_late)
                async with anyio.create_task_group() as group:

                    async def run() -> None:
                        await pool.run(
                            support.announce_then, announcements.path, support.wait_for_ever
                        )

                    group.start_soon(run)
                    await announcements.get_pid()
                    group.cancel_scope.cancel()
                    with anyio.CancelScope(shield=True):
                        for _ in range(20):
                            await anyio.lowlevel.checkpoint()
                    go_on.set()
                check_nothing_runs(pool)
                assert pool.statistics().restarts == 1


@pytest.mark.parametrize("calls", [0, 1, 3])
async def test_pool_is_left_with_a_stopped_worker(calls: int) -> None:
    with anyio.fail_after(TIMEOUT):
        with anyio.CancelScope() as scope:
            async with open_pool(2, min_workers=2, stop=FORCEFUL) as pool:
                for worker in pool.statistics().workers:
                    assert worker.pid is not None
                    os.kill(worker.pid, signal.SIGSTOP)
                if calls:
                    async with anyio.create_task_group() as group:
                        for _ in range(calls):
                            group.start_soon(pool.run, support.double, 1)
                        await until(lambda: pool.statistics().calls_running > 0)
                        scope.cancel()
    assert not pool.statistics().workers


# --- cancelled at any moment ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [100_000, 4 * MEBIBYTE, 128 * MEBIBYTE])
async def test_cancel_while_large_arguments_are_sent(size: int) -> None:
    argument = bytes(size)
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            for turns in [0, 1, 2, 3, 5, 8, 13, 40, 100, 300]:
                async with anyio.create_task_group() as group:
                    group.start_soon(pool.run, len, argument)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
                check_nothing_runs(pool)
                assert await pool.run(support.double, turns) == 2 * turns
            assert await pool.run(len, argument) == size


async def test_cancel_while_arguments_are_unpickled(announcements: Announcements) -> None:
    argument = [bytes(4 * MEBIBYTE), support.WaitsOnUnpickling(announcements.path)]
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            async with anyio.create_task_group() as group:
                group.start_soon(pool.run, support.ignore, argument)
                pid = await announcements.get_pid()
                group.cancel_scope.cancel()
            assert not psutil.pid_exists(pid)
            await check_serves(pool)


async def test_cancel_while_the_result_is_pickled(announcements: Announcements) -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            async with anyio.create_task_group() as group:
                group.start_soon(
                    pool.run, support.make, support.WaitsOnPickling, announcements.path
                )
                pid = await announcements.get_pid()
                group.cancel_scope.cancel()
            assert not psutil.pid_exists(pid)
            await check_serves(pool)


@pytest.mark.parametrize("size", [100_000, 4 * MEBIBYTE, 128 * MEBIBYTE])
async def test_cancel_while_a_large_result_arrives(size: int, announcements: Announcements) -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            for turns in [0, 1, 2, 3, 5, 8, 13, 40, 100, 300]:
                async with anyio.create_task_group() as group:
                    group.start_soon(
                        pool.run, support.announce_then, announcements.path, support.payload, size
                    )
                    await announcements.get()
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
                check_nothing_runs(pool)
                assert await pool.run(support.double, turns) == 2 * turns
            assert len(await pool.run(support.payload, size)) == size


async def call_double(pool: ProcessPool) -> None:
    assert await pool.run(support.double, 3) == 6


async def call_wait(pool: ProcessPool) -> None:
    await pool.run(support.wait_for_ever)


async def call_wait_async(pool: ProcessPool) -> None:
    await pool.run(support.wait_for_ever_async)


async def call_in_time(pool: ProcessPool) -> None:
    assert await pool.run(support.double, 3, timeout=TIMEOUT) == 6


async def call_failing(pool: ProcessPool) -> None:
    with pytest.raises(ValueError, match="wrong"):
        await pool.run(support.raise_it, ValueError("wrong"))


async def call_deadly(pool: ProcessPool) -> None:
    with pytest.raises(ProcessDied):
        await pool.run(support.exit_at_once, 3)


async def call_several(pool: ProcessPool) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(call_double, pool)


async def iterate(pool: ProcessPool) -> None:
    numbers = [number async for number in pool.map(support.double, range(50), chunksize=7)]
    assert numbers == [2 * number for number in range(50)]


async def iterate_over_async(pool: ProcessPool) -> None:
    async def count() -> AsyncIterator[int]:
        for number in range(20):
            await anyio.lowlevel.checkpoint()
            yield number

    numbers = set()
    async for number in pool.map(support.double, count(), ordered=False):
        numbers.add(number)
    assert numbers == {2 * number for number in range(20)}


async def iterate_and_wait(pool: ProcessPool) -> None:
    async for _ in pool.map(support.call, [support.wait_for_ever] * 3, chunksize=1):
        pass


@pytest.mark.parametrize(
    ("use", "rounds"),
    [
        (call_double, 400),
        (call_in_time, 200),
        (call_failing, 200),
        (call_several, 200),
        (call_wait, 60),
        (call_wait_async, 40),
        (call_deadly, 60),
        (iterate, 200),
        (iterate_over_async, 100),
        (iterate_and_wait, 40),
    ],
)
async def test_cancel_at_every_await(use: Callable[[ProcessPool], Any], rounds: int) -> None:
    """After none, one, two ... turns of the event loop."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, stop=PATIENT) as pool:
            assert await pool.run(support.double, 1) == 2
            for turns in range(rounds):
                async with anyio.create_task_group() as group:
                    group.start_soon(use, pool)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
                check_nothing_runs(pool)
                if turns % 10 == 0:
                    await check_serves(pool)
            await check_serves(pool, 20)
            statistics = pool.statistics()
            assert statistics.workers_alive <= 2
            assert statistics.calls_queued == 0


@pytest.mark.parametrize("use", [call_double, call_several, iterate])
async def test_first_use_is_cancelled_at_every_await(use: Callable[[ProcessPool], Any]) -> None:
    """And the pool with it, while its workers start."""
    with anyio.fail_after(TIMEOUT):
        for turns in range(60):
            with anyio.CancelScope() as scope:
                async with open_pool(3, stop=PATIENT) as pool, anyio.create_task_group() as group:
                    group.start_soon(use, pool)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    await anyio.sleep(0.0005 * (turns % 20))  # spreads the moments
                    scope.cancel()
            assert not pool.statistics().workers


async def test_pool_is_cancelled_while_it_grows() -> None:
    with anyio.fail_after(TIMEOUT):
        for turns in range(50):
            pool = open_pool(6, min_workers=6, stop=PATIENT)
            with anyio.move_on_after(0.001 * turns):  # spreads the moments
                async with pool:
                    await anyio.sleep_forever()
            assert not pool.statistics().workers


async def test_many_queued_calls_cancelled_at_once(announcements: Announcements) -> None:
    calls = 20_000
    ended = 0
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            async with anyio.create_task_group() as group:

                async def run(number: int) -> None:
                    nonlocal ended
                    try:
                        await pool.run(support.double, number)
                    finally:
                        ended += 1

                group.start_soon(
                    pool.run, support.announce_then, announcements.path, support.wait_for_ever
                )
                pid = await announcements.get_pid()
                for number in range(calls):
                    group.start_soon(run, number)
                while pool.statistics().calls_queued < calls:
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
            assert ended == calls
            assert not psutil.pid_exists(pid)
            check_nothing_runs(pool)
            assert pool.statistics().calls_cancelled == calls + 1
            assert not pool._engine.scheduler._queue
            assert not pool._engine._calls
            await check_serves(pool)


async def test_many_cancelled_calls() -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, stop=PATIENT) as pool:
            for number in range(500):
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as group:
                        group.start_soon(pool.run, support.wait_for_ever)
                        for _ in range(number % 7):
                            await anyio.lowlevel.checkpoint()
                        scope.cancel()
            check_nothing_runs(pool)
            await check_serves(pool)


# --- initializers and starts ----------------------------------------------------------------------


async def test_cancelled_while_initializers_hang(announcements: Announcements) -> None:
    initializer = functools.partial(
        support.announce_then, announcements.path, support.wait_for_ever
    )
    pool = open_pool(3, min_workers=3, initializer=initializer, stop=PATIENT)
    with anyio.fail_after(TIMEOUT / 2):
        async with anyio.create_task_group() as group:

            async def use() -> None:
                async with pool:
                    pytest.fail("the pool is not ready")

            group.start_soon(use)
            pids = [await announcements.get_pid() for _ in range(3)]
            group.cancel_scope.cancel()
    for pid in pids:
        assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("way", ["run", "map"])
async def test_timeout_while_the_initializer_hangs(way: str, announcements: Announcements) -> None:
    """Only the pool ends the worker, which might be ready one day."""
    initializer = functools.partial(
        support.announce_then, announcements.path, support.wait_for_ever
    )
    with anyio.fail_after(TIMEOUT / 2):
        async with open_pool(
            1, initializer=initializer, stop=StopPolicy(grace=TIMEOUT, exit_timeout=0.1)
        ) as pool:
            if way == "run":
                with pytest.raises(ProcessTimeout):
                    await pool.run(support.double, 1, timeout=0.3)
            else:
                with anyio.move_on_after(0.3) as scope:
                    async for _ in pool.map(support.double, range(10)):
                        pytest.fail("there is a value")
                assert scope.cancelled_caught
            pid = await announcements.get_pid()
            check_nothing_runs(pool)
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("min_workers", [0, 1])
async def test_initializer_crashes(lines: str, min_workers: int) -> None:
    """That is an error, and no endless loop."""
    pool = open_pool(
        2, min_workers=min_workers, initializer=support.note_and_exit, initargs=(lines,)
    )
    with anyio.fail_after(TIMEOUT):
        if min_workers:
            with pytest.raises(ProcessStartError, match="exit code 3"):
                async with pool:
                    pytest.fail("the pool is ready")
        else:
            async with pool:
                with pytest.raises(ProcessStartError, match="exit code 3"):
                    await pool.run(support.double, 1)
                with pytest.raises(ProcessStartError, match="exit code 3"):
                    async for _ in pool.map(support.double, range(10)):
                        pytest.fail("there is a value")
    assert 1 <= len(read_lines(lines)) <= 20


async def test_initializer_fails_at_first(lines: str) -> None:
    """Who comes too early hears of it; the pool is there for those after."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(
            1, initializer=support.fail_at_first, initargs=(lines, 2), stop=PATIENT
        ) as pool:
            for _ in range(2):
                with pytest.raises(ProcessStartError, match="not yet") as caught:
                    await pool.run(support.double, 1)
                assert isinstance(caught.value.__cause__, ValueError)
            await check_serves(pool)
    assert len(read_lines(lines)) == 3


async def test_initializer_fails_in_all_workers_but_one(tmp_path: Path) -> None:
    """That one serves all calls."""
    path = str(tmp_path / "the first")
    results: list[int] = []
    with anyio.fail_after(TIMEOUT):
        async with open_pool(
            3, initializer=support.fail_but_once, initargs=(path,), stop=PATIENT
        ) as pool:
            await pool.run(support.double, 1)
            async with anyio.create_task_group() as group:

                async def run(number: int) -> None:
                    results.append(await pool.run(support.double, number))

                for number in range(50):
                    group.start_soon(run, number)
            assert sorted(results) == [2 * number for number in range(50)]
            assert [v async for v in pool.map(support.double, range(50))] == sorted(results)


async def test_workers_die_when_they_are_ready(lines: str) -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(
            1, initializer=support.die_when_ready, initargs=(lines,), stop=PATIENT
        ) as pool:
            with pytest.raises(ProcessError):
                await pool.run(support.double, 1)
            with pytest.raises(ProcessError):
                async for _ in pool.map(support.double, range(10)):
                    pytest.fail("there is a value")
            check_nothing_runs(pool)
    assert 2 <= len(read_lines(lines)) <= 30


async def test_workers_kept_ready_die_when_they_are_ready(lines: str) -> None:
    """The pool does not start others without end, with nothing to do for them."""
    with anyio.fail_after(TIMEOUT):
        pool = open_pool(
            1,
            min_workers=1,
            initializer=support.die_when_ready,
            initargs=(lines,),
            stop=PATIENT,
        )
        try:
            async with pool:
                await anyio.sleep(1)
        except ProcessStartError:
            pass
    assert 1 <= len(read_lines(lines)) <= 30


async def test_max_tasks_per_worker_and_crashes(lines: str) -> None:
    outcomes: dict[int, object] = {}
    with anyio.fail_after(TIMEOUT):
        async with (
            open_pool(2, max_tasks_per_worker=3, stop=PATIENT) as pool,
            anyio.create_task_group() as group,
        ):

            async def run(number: int) -> None:
                try:
                    outcomes[number] = await pool.run(support.note_pid, lines, number)
                except ProcessDied as error:
                    outcomes[number] = error.exitcode

            for number in range(60):
                group.start_soon(run, number)
    assert outcomes == {number: 3 if number % 5 == 4 else number for number in range(60)}
    ran = Counter(read_lines(lines))
    assert sum(ran.values()) == 60
    assert max(ran.values()) <= 3


async def test_fresh_workers_and_crashes(lines: str) -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, max_tasks_per_worker=1, spares=2, stop=PATIENT) as pool:
            for number in range(40):
                if number % 5 == 4:
                    with pytest.raises(ProcessDied):
                        await pool.run(support.note_pid, lines, number)
                else:
                    assert await pool.run(support.note_pid, lines, number) == number
    ran = Counter(read_lines(lines))
    assert len(ran) == 40


# --- memory ---------------------------------------------------------------------------------------

LIMIT = 200 * MEBIBYTE


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (support.allocate, (1024 * MEBIBYTE,)),
        (support.allocate_array, (1024 * MEBIBYTE,)),
        (support.ignore, (support.GrowsOnUnpickling(1024 * MEBIBYTE),)),
        (len, (bytes(260 * MEBIBYTE),)),
        (support.make, (support.GrowsOnPickling, 1024 * MEBIBYTE)),
        (support.payload, (160 * MEBIBYTE,)),
    ],
    ids=["python", "numpy", "unpickling", "argument", "pickling", "result"],
)
@pytest.mark.parametrize("way", ["run", "map"])
async def test_memory_limit(
    way: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    announcements: Announcements,
    gate: str,
) -> None:
    """The call fails alone, and says why; its worker is replaced."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, memory_limit=LIMIT, stop=PATIENT) as pool:
            async with anyio.create_task_group() as group:

                async def run_beside() -> None:
                    value = await pool.run(support.wait_for_gate, announcements.path, gate)
                    assert value == "went through"

                group.start_soon(run_beside)
                await announcements.get()
                pid = await pool.run(os.getpid)
                if function is support.payload:  # may just fit, where pickling takes no copy
                    with contextlib.suppress(WorkerMemoryError):
                        assert len(await pool.run(function, *args)) == args[0]
                else:
                    with pytest.raises(WorkerMemoryError, match=str(LIMIT)) as caught:
                        if way == "run":
                            await pool.run(function, *args)
                        else:
                            async for _ in pool.map(function, *([arg] for arg in args)):
                                pytest.fail("there is a value")
                    assert caught.value.limit == LIMIT
                    assert isinstance(caught.value, MemoryError)
                    assert await pool.run(os.getpid) != pid
                await check_serves(pool)
                await open_gate(gate)
            await check_serves(pool)


async def test_memory_limit_in_a_map(lines: str) -> None:
    """Those items that need too much fail, and no other."""
    sizes = [1, 1024 * MEBIBYTE, 2, 3, 1024 * MEBIBYTE, 4] * 5
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, memory_limit=LIMIT, stop=PATIENT) as pool:
            outcomes = [
                outcome async for outcome in pool.map(support.allocate, sizes, on_error="yield")
            ]
            await check_serves(pool)
    assert [outcome.item for outcome in outcomes] == sizes
    for outcome in outcomes:
        if outcome.item == 1024 * MEBIBYTE:
            assert isinstance(outcome.exception, WorkerMemoryError)
        else:
            assert outcome.value == outcome.item


# --- map ------------------------------------------------------------------------------------------


def check_deaths(outcomes: list[Any], deadly: tuple[int, ...], lines: str, number: int) -> None:
    """Check that the right items are blamed, and that each ran once."""
    lost = re.compile(r"this item was done, but its value was lost when item (\d+) ended")
    assert sorted(outcome.index for outcome in outcomes) == list(range(number))
    for outcome in outcomes:
        if outcome.exception is None:
            assert outcome.value == outcome.index == outcome.item
            assert outcome.index not in deadly
            continue
        assert isinstance(outcome.exception, ProcessDied)
        assert outcome.exception.exitcode == 3
        match = lost.search(str(outcome.exception))
        if outcome.index in deadly:
            assert match is None
        else:
            assert match is not None, str(outcome.exception)
            assert int(match[1]) in deadly
            assert int(match[1]) > outcome.index
    assert sorted(map(int, read_lines(lines))) == list(range(number))


@pytest.mark.parametrize("chunksize", ["auto", 1, 10, 100])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("deadly", [(37,), (0,), (199,), (10, 11, 12, 150), (9, 10)], ids=str)
@pytest.mark.parametrize("items", [range(200), list(range(200))], ids=["range", "list"])
async def test_map_kills_its_workers(
    chunksize: Any, ordered: bool, deadly: tuple[int, ...], items: Sequence[int], lines: str
) -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, stop=PATIENT) as pool:
            outcomes = [
                outcome
                async for outcome in pool.map(
                    functools.partial(support.note_or_die, lines, deadly),
                    items,
                    chunksize=chunksize,
                    ordered=ordered,
                    on_error="yield",
                )
            ]
            await check_serves(pool)
    if ordered:
        assert [outcome.index for outcome in outcomes] == list(range(200))
    check_deaths(outcomes, deadly, lines, 200)


@pytest.mark.parametrize("chunksize", ["auto", 10])
async def test_item_kills_the_worker_while_it_is_unpickled(chunksize: Any, lines: str) -> None:
    """It alone is to blame, although nobody could tell at first."""
    items: list[Any] = list(range(40))
    deadly = (0, 13, 14, 39)
    for index in deadly:
        items[index] = support.DiesInWorkers(index)
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, stop=PATIENT) as pool:
            outcomes = [
                outcome
                async for outcome in pool.map(
                    functools.partial(support.note, lines),
                    items,
                    chunksize=chunksize,
                    on_error="yield",
                )
            ]
            await check_serves(pool)
    assert [outcome.index for outcome in outcomes] == list(range(40))
    for outcome in outcomes:
        if outcome.index in deadly:
            assert isinstance(outcome.exception, ProcessDied)
            assert outcome.exception.exitcode == 4
        else:
            assert outcome.value == outcome.index
    assert sorted(map(int, read_lines(lines))) == sorted(set(range(40)) - set(deadly))


async def test_map_raises_at_the_death_of_its_worker(lines: str) -> None:
    numbers = []
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, stop=PATIENT) as pool:
            with pytest.raises(ProcessDied, match="exit code 3") as caught:
                async for number in pool.map(
                    functools.partial(support.note_or_die, lines, (50,)), range(10_000), chunksize=1
                ):
                    numbers.append(number)  # noqa: PERF401  # those before the error count
            assert caught.value.__notes__[-1].startswith("This was item 50 of the map")
            check_nothing_runs(pool)
            await check_serves(pool)
    assert numbers == list(range(50))


async def test_workers_of_a_map_are_killed_at_any_moment(lines: str) -> None:
    """No item is lost without a word, and none runs twice."""
    outcomes: list[Any] = []
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, stop=PATIENT) as pool:
            async for outcome in pool.map(
                functools.partial(support.note, lines), range(20_000), on_error="yield"
            ):
                outcomes.append(outcome)
                if outcome.index % 1000 == 500:
                    for worker in pool.statistics().workers[:1]:
                        if worker.pid is not None:
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(worker.pid, signal.SIGKILL)
            await check_serves(pool)
    assert [outcome.index for outcome in outcomes] == list(range(20_000))
    ran = Counter(map(int, read_lines(lines)))
    assert set(ran.values()) == {1}
    for outcome in outcomes:
        if outcome.exception is None:
            assert outcome.value == outcome.index
            assert ran[outcome.index] == 1
        else:
            assert isinstance(outcome.exception, ProcessDied)


def raise_after(number: int) -> Iterator[int]:
    yield from range(number)
    raise LookupError("the input is broken")


async def raise_after_async(number: int) -> AsyncIterator[int]:
    for value in range(number):
        yield value
    raise LookupError("the input is broken")


@pytest.mark.parametrize("make", [raise_after, raise_after_async])
@pytest.mark.parametrize("number", [0, 1, 100])
async def test_input_of_a_map_raises(make: Callable[[int], Any], number: int) -> None:
    """After the values of the items before."""
    values = []
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, stop=PATIENT) as pool:
            with pytest.raises(LookupError, match="the input is broken"):
                async for value in pool.map(support.double, make(number)):
                    values.append(value)  # noqa: PERF401  # those before the error count
            await check_serves(pool)
    assert values == [2 * value for value in range(number)]


async def test_input_of_a_map_is_exhausted() -> None:
    exhausted = iter([1])
    next(exhausted)
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            for iterables in ([exhausted], [exhausted, range(3)], [[]]):
                assert [v async for v in pool.map(support.ignore, *iterables)] == []


# --- around it ------------------------------------------------------------------------------------


async def test_grandchild_goes_with_its_worker(announcements: Announcements) -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            async with anyio.create_task_group() as group:
                group.start_soon(pool.run, support.spawn_grandchild_and_wait, announcements.path)
                grandchild = await announcements.get_pid()
                group.cancel_scope.cancel()
            await wait_gone(grandchild)
            grandchild = await pool.run(support.spawn_grandchild)
            assert psutil.pid_exists(grandchild)
        await wait_gone(grandchild)


async def use_pool() -> int:
    async with open_pool(1) as pool:
        return await pool.run(support.double, 21)


async def test_pool_in_a_child() -> None:
    with anyio.fail_after(TIMEOUT):
        assert await run_in_process(use_pool) == 42


async def test_pool_in_a_daemonic_process() -> None:
    from creche import AsyncProcess

    process: AsyncProcess[int] = AsyncProcess(target=use_pool, daemon=True)
    with anyio.fail_after(TIMEOUT), pytest.raises((ProcessStartError, AssertionError)) as caught:
        await process.result()
    assert "daemonic" in str(caught.value)


async def test_pools_opened_and_closed() -> None:
    """Five hundred times; the check after each test looks for what they leave."""
    with anyio.fail_after(TIMEOUT):
        for number in range(500):
            async with open_pool(2, stop=PATIENT) as pool:
                if number % 5 == 0:
                    assert await pool.run(support.double, number) == 2 * number


async def test_cancelling_harms_no_other_call() -> None:
    """Calls that are done in some ten microseconds, and are cancelled at any moment of these."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, stop=PATIENT) as pool:

            async def cancel() -> None:
                for _ in range(100):
                    with anyio.move_on_after(random.uniform(0, 0.001)):
                        await pool.run(support.busy_for, 3e-5, 0)

            async def run() -> None:
                for number in range(1000):
                    assert await pool.run(support.busy_for, 3e-5, number) == number

            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(cancel)
                    tasks.start_soon(run)
            check_nothing_runs(pool)
