"""Ordinary calls over each of the transports that a pool may have, exercised here on Linux.

What differs between them is who waits for the wires, what the wires are, and whether there are
sockets for calls and for shared memory. Everything else is expected to be the same.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
import support
import targets
from support import TIMEOUT, Announcements, Timeouts, until_statistics

from creche import (
    ProcessDied,
    ProcessPool,
    ProcessTimeout,
    RemoteError,
    SerializationError,
    StopPolicy,
    _launching,
    open_pool,
)
from creche._platform import _connection_wire, _posix_wire
from creche._platform._connection_poller import ConnectionPoller
from creche._pool import _channel, _engine
from creche._pool._channel import LoopDriver, WatcherDriver, WorkerChannel

MEBIBYTE = 1024 * 1024

PATIENT = StopPolicy(grace=TIMEOUT, exit_timeout=TIMEOUT)
"""Who waits for a force that is not needed times out."""


@dataclass(frozen=True)
class Transport:
    """How a pool talks to its workers.

    :param driver: who waits for the wires
    :param wire: the module that the wires come from
    :param calls: whether there are sockets for calls, from which these can be taken back
    :param segments: whether there is shared memory
    """

    driver: type
    wire: Any
    calls: bool
    segments: bool


TRANSPORTS = {
    "watcher": Transport(WatcherDriver, _posix_wire, calls=False, segments=True),
    "as-on-Windows": Transport(WatcherDriver, _connection_wire, calls=False, segments=False),
    "no-shared-memory": Transport(LoopDriver, _posix_wire, calls=True, segments=False),
    "as-on-macOS": Transport(LoopDriver, _posix_wire, calls=False, segments=False),
}


@pytest.fixture(params=TRANSPORTS)
def transport(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, machinery: None
) -> Iterator[Transport]:
    """Have all pools use one transport; check afterwards that they did, and left none open."""
    transport = TRANSPORTS[request.param]
    channels: list[WorkerChannel] = []

    class Recorded(WorkerChannel):
        def __init__(self, driver: Any) -> None:
            super().__init__(driver)
            channels.append(self)

    monkeypatch.setattr(_engine, "WorkerChannel", Recorded)
    monkeypatch.setattr(_channel, "wire_pair", transport.wire.wire_pair)
    if transport.driver is WatcherDriver:
        monkeypatch.setattr(_engine, "driver_for", WatcherDriver)
    elif not transport.calls:
        monkeypatch.setattr(_channel, "call_sockets", lambda: None)
    if not transport.segments:
        monkeypatch.setattr(_channel, "segment_sockets", lambda: None)
    poller = None
    if transport.wire is _connection_wire:
        monkeypatch.setattr(_launching, "wire_pair", _connection_wire.wire_pair)
        poller = support.use_poller(ConnectionPoller(batch_size=3))
    yield transport
    if poller is not None:
        support.use_poller(poller).close()
    assert channels
    for channel in channels:
        assert type(channel._driver) is transport.driver
        assert isinstance(channel.wire, transport.wire.ParentWire)
        assert channel.can_take_back == transport.calls
        assert (channel.segments is not None) == transport.segments
    deadline = time.monotonic() + TIMEOUT  # a wire is closed by the thread that uses it last
    while not (closed := all(map(is_closed, channels))) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert closed


pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("transport", "no_worker_is_deaf")]


def is_closed(channel: Any) -> bool:
    wire = channel.wire
    if isinstance(wire, _posix_wire.ParentWire):
        return wire._sock.fileno() == -1
    return bool(wire._connection.closed)


@pytest.fixture
def gate(tmp_path: Path) -> str:
    """A FIFO: whoever reads it waits until somebody has written to it."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return str(path)


async def open_gate(path: str) -> None:
    await anyio.to_thread.run_sync(Path(path).write_text, "go", abandon_on_cancel=True)


async def check_serves(pool: ProcessPool) -> None:
    for number in range(3):
        assert await pool.run(support.double, number) == 2 * number
    statistics = pool.statistics()
    assert statistics.calls_queued == 0
    assert statistics.calls_running == 0


# --- values and errors ----------------------------------------------------------------------------


async def test_values_and_errors(start_method: str) -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT, start_method=start_method) as pool:
            assert await pool.run(targets.add, 1, 2) == 3
            assert await pool.run(functools.partial(targets.add, 1, extra=4), 2) == 7
            assert await pool.run(targets.Adder(3).add, 4) == 7
            for value in (None, b"", "text", [1, {"two": (3.0, None)}], targets.Adder(5)):
                assert await pool.run(targets.echo, value) == value
            with pytest.raises(LookupError, match="wrong") as caught:
                await pool.run(targets.fail, "wrong")
            assert "targets.py" in str(caught.value.__cause__)
            with pytest.raises(RemoteError, match="nobody else knows this type"):
                await pool.run(support.raise_local_type)
            with pytest.raises(SerializationError):
                await pool.run(lambda: 1)
            with pytest.raises(SerializationError, match="not in here"):
                await pool.run(targets.echo, support.RefusesUnpickling())
            with pytest.raises(SerializationError):
                await pool.run(support.make_lambda)
            with pytest.raises(SerializationError, match="not in here"):
                await pool.run(support.make, support.RefusesUnpickling)
            await check_serves(pool)
            assert pool.statistics().restarts == 0


async def test_async_functions(anyio_backend_name: str) -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            assert await pool.run(targets.add_async, 1, 2) == 3
            assert await pool.run(targets.backend_in_use) == anyio_backend_name
            assert await pool.run(targets.is_loop_of_first_call)
            with pytest.raises(LookupError, match="wrong"):
                await pool.run(targets.fail_async, "wrong")
            assert await pool.run(targets.is_loop_of_first_call)


# --- sizes ----------------------------------------------------------------------------------------


async def test_sizes_at_the_edges() -> None:
    """Those at which a message changes its way, and some between."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            for middle in (65_536, 262_144, MEBIBYTE):
                for size in (middle - 100, middle - 1, middle, middle + 1, middle + 100):
                    data = os.urandom(size)
                    assert await pool.run(targets.echo, data) == data


async def test_large_bytes_both_ways() -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            data = os.urandom(8 * MEBIBYTE)
            for _ in range(2):
                assert await pool.run(targets.echo, data) == data
            await check_serves(pool)


async def test_large_arrays_both_ways() -> None:
    np = pytest.importorskip("numpy")
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            array = np.arange(MEBIBYTE, dtype=np.int64)
            doubled = await pool.run(targets.double_array, array)
            assert (doubled == 2 * np.arange(MEBIBYTE, dtype=np.int64)).all()
            assert (array == np.arange(MEBIBYTE, dtype=np.int64)).all()
            doubled[0] = 7  # what comes back is writable
            nested = {"arrays": [array, array[:1000], doubled], "text": "x" * 100_000}
            echoed = await pool.run(targets.echo, nested)
            assert echoed["text"] == nested["text"]
            for ours, theirs in zip(nested["arrays"], echoed["arrays"], strict=True):
                assert (ours == theirs).all()
            await check_serves(pool)


async def test_large_and_small_calls_at_once() -> None:
    async def run_large(pool: ProcessPool, number: int) -> None:
        data = number.to_bytes(1, "big") * (2 * MEBIBYTE + number)
        assert await pool.run(targets.echo, data) == data

    async def run_small(pool: ProcessPool, number: int) -> None:
        assert await pool.run(support.double, number) == 2 * number

    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, stop=PATIENT) as pool, anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(run_large, pool, number)
                for i in range(10):
                    group.start_soon(run_small, pool, 10 * number + i)


async def test_large_exception() -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            with pytest.raises(ValueError, match="xxxx") as caught:
                await pool.run(support.raise_type, ValueError, "x" * MEBIBYTE)
            assert len(str(caught.value)) == MEBIBYTE
            await check_serves(pool)


# --- many -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
async def test_map_with_errors(ordered: bool) -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, stop=PATIENT) as pool:
            values: dict[int, int] = {}
            failed = []
            indices = []
            func = functools.partial(support.fail_every, 7)
            async for outcome in pool.map(func, range(1, 5001), ordered=ordered, on_error="yield"):
                indices.append(outcome.index)
                if outcome.exception is None:
                    values[outcome.index + 1] = outcome.value
                else:
                    assert isinstance(outcome.exception, LookupError)
                    failed.append(outcome.index + 1)
            assert values == {n: 2 * n for n in range(1, 5001) if n % 7}
            assert sorted(failed) == list(range(7, 5001, 7))
            assert sorted(indices) == list(range(5000))
            if ordered:
                assert indices == list(range(5000))
            await check_serves(pool)


async def test_map_raises_at_the_first_error() -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, stop=PATIENT) as pool:
            values = []
            with pytest.raises(LookupError, match="1234 is a multiple"):
                async for value in pool.map(
                    functools.partial(support.fail_every, 1234), range(1, 5001)
                ):
                    values.append(value)  # noqa: PERF401 - what came before the error counts
            assert values == [2 * number for number in range(1, 1234)]
            await check_serves(pool)


async def test_map_over_large_items() -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, stop=PATIENT) as pool:
            items = [bytes([number]) * (300_000 * (number % 3) + number) for number in range(24)]
            assert [value async for value in pool.map(targets.echo, items)] == items


async def test_map_with_a_death() -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, stop=PATIENT) as pool:
            outcomes = [
                outcome
                async for outcome in pool.map(
                    support.call,
                    [support.double, os._exit, support.double],
                    [1, 3, 2],
                    chunksize=1,
                    on_error="yield",
                )
            ]
            assert [outcomes[0].value, outcomes[2].value] == [2, 4]
            died = outcomes[1].exception
            assert isinstance(died, ProcessDied)
            assert died.exitcode == 3
            await check_serves(pool)


async def test_many_calls_from_many_tasks() -> None:
    done = 0

    async def run(pool: ProcessPool, task: int) -> None:
        nonlocal done
        for number in range(task, 20 * 50, 50):
            match number % 5:
                case 0:
                    assert await pool.run(targets.add_async, number, 1) == number + 1
                case 1:
                    with pytest.raises(LookupError, match=f"^'{number}'$|^{number}$"):
                        await pool.run(targets.fail, str(number))
                case 2:
                    text = str(number) * 1000
                    assert await pool.run(targets.echo, text) == text
                case _:
                    assert await pool.run(support.double, number) == 2 * number
            done += 1

    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, stop=PATIENT) as pool:
            async with anyio.create_task_group() as group:
                for task in range(50):
                    group.start_soon(run, pool, task)
            statistics = pool.statistics()
            assert statistics.calls_done + statistics.calls_failed == 1000
            assert statistics.restarts == 0
    assert done == 1000


# --- stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [support.clean_up, support.clean_up_async])
async def test_cancel_while_running(
    target: Callable[..., Any], announcements: Announcements
) -> None:
    """The worker is asked, cleans up, is gone, and is replaced."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            async with anyio.create_task_group() as group:
                group.start_soon(pool.run, target, announcements.path)
                pid = await announcements.get_pid()
                group.cancel_scope.cancel()
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
            assert await announcements.get() == "cleaned up"
            await check_serves(pool)
            assert pool.statistics().restarts == 1
            assert pool.statistics().calls_cancelled == 1


async def test_cancel_of_what_does_not_stop(announcements: Announcements) -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=StopPolicy(grace=0.1)) as pool:
            async with anyio.create_task_group() as group:
                group.start_soon(
                    pool.run, support.announce_then, announcements.path, support.hold_the_gil
                )
                pid = await announcements.get_pid()
                group.cancel_scope.cancel()
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
            await check_serves(pool)


async def test_cancel_while_queued(announcements: Announcements, gate: str, tmp_path: Path) -> None:
    """Only that call leaves; it never runs, and those before and behind it do."""
    lines = tmp_path / "lines"
    lines.touch()
    values = []

    async def run() -> None:
        values.append(await pool.run(support.wait_for_gate, announcements.path, gate))

    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            async with anyio.create_task_group() as group:
                group.start_soon(run)
                pid = await announcements.get_pid()
                async with anyio.create_task_group() as queued:
                    queued.start_soon(pool.run, support.note, str(lines), 1)
                    queued.start_soon(pool.run, support.note, str(lines), 2)
                    await until_statistics(pool, lambda statistics: statistics.calls_queued == 2)
                    queued.cancel_scope.cancel()
                group.start_soon(pool.run, support.note, str(lines), 3)
                await until_statistics(pool, lambda statistics: statistics.calls_queued == 1)
                await open_gate(gate)
            assert await pool.run(os.getpid) == pid
            assert pool.statistics().restarts == 0
            assert pool.statistics().calls_cancelled == 2
    assert values == ["went through"]
    assert lines.read_text() == "3\n"


async def test_cancel_at_any_moment() -> None:
    """While it is sent, while it runs, while its result comes: the pool serves on."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(2, stop=PATIENT) as pool:
            await pool.run(support.double, 1)
            for number in range(24):
                size = (0, 100_000, 3 * MEBIBYTE)[number % 3]
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as group:
                        group.start_soon(pool.run, targets.echo, bytes(size))
                        for _ in range(number):
                            await anyio.lowlevel.checkpoint()
                        scope.cancel()
                assert await pool.run(support.double, number) == 2 * number


@pytest.mark.parametrize("target", [targets.wait_for_ever, targets.wait_for_ever_async])
async def test_timeout(
    target: Callable[..., Any], announcements: Announcements, timeouts: Timeouts
) -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            async with anyio.create_task_group() as group:

                async def run() -> None:
                    with pytest.raises(ProcessTimeout, match=r"its timeout of 99\.5 seconds"):
                        await pool.run(target, announcements.path, timeout=99.5)

                group.start_soon(run)
                pid = await announcements.get_pid()
                timeouts.strike()
            assert support.wait_until_gone(pid, 0)
            assert await pool.run(support.double, 21, timeout=TIMEOUT) == 42
            await check_serves(pool)


# --- deaths ---------------------------------------------------------------------------------------


async def test_crash_while_running() -> None:
    """Only that call fails; those that wait run in another worker."""
    outcomes: dict[int, object] = {}

    async def run(number: int) -> None:
        func = os._exit if number == 3 else support.double
        try:
            outcomes[number] = await pool.run(func, number)
        except ProcessDied as error:
            outcomes[number] = error

    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            async with anyio.create_task_group() as group:
                for number in range(8):
                    group.start_soon(run, number)
            await check_serves(pool)
            assert pool.statistics().restarts == 1
    died = outcomes.pop(3)
    assert isinstance(died, ProcessDied)
    assert died.exitcode == 3
    assert outcomes == {number: 2 * number for number in range(8) if number != 3}


async def test_crash_with_large_arguments_and_halfway_through_a_result() -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            with pytest.raises(ProcessDied) as caught:
                await pool.run(support.call, os._exit, 3, timeout=TIMEOUT)
            assert caught.value.exitcode == 3
            dies = [bytes(8 * MEBIBYTE), support.DiesInWorkers(1)]
            with pytest.raises(ProcessDied) as caught:
                await pool.run(support.ignore, dies)
            assert caught.value.exitcode == 4
            with pytest.raises(ProcessDied, match="while sending its result") as caught:
                await pool.run(support.die_while_answering)
            assert caught.value.exitcode == 0
            await check_serves(pool)


async def test_killed_while_running(announcements: Announcements) -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool, anyio.create_task_group() as group:

            async def run() -> None:
                with pytest.raises(ProcessDied, match="SIGKILL"):
                    await pool.run(support.announce_then, announcements.path, support.hold_the_gil)

            group.start_soon(run)
            os.kill(await announcements.get_pid(), signal.SIGKILL)
            await check_serves(pool)


@pytest.mark.parametrize("size", [0, 100_000, 8 * MEBIBYTE])
async def test_death_while_idle(size: int) -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            pid = await pool.run(os.getpid)
            os.kill(pid, signal.SIGKILL)
            await until_statistics(pool, lambda statistics: statistics.restarts == 1)
            assert await pool.run(len, bytes(size)) == size
            assert await pool.run(os.getpid) != pid
            assert pool.statistics().calls_failed == 0


@pytest.mark.parametrize("size", [0, 100_000, 8 * MEBIBYTE])
async def test_unnoticed_death_while_idle(size: int, transport: Transport) -> None:
    """Where a call cannot be taken back, nobody knows whether the dead worker had begun it."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            pid = await pool.run(os.getpid)
            os.kill(pid, signal.SIGKILL)
            assert support.wait_until_gone(pid)  # and the event loop stands still
            if transport.calls:
                assert await pool.run(len, bytes(size)) == size
            else:
                with contextlib.suppress(ProcessDied):
                    assert await pool.run(len, bytes(size)) == size
            assert await pool.run(os.getpid) != pid
            await check_serves(pool)


async def test_garbage_ends_the_worker() -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            with pytest.raises(SerializationError, match="wrote to creche's"):
                await pool.run(
                    support.call_and_wait, support.write_to_pool, b"\xff garbage \x00\n" * 100
                )
            await check_serves(pool)


# --- the beginning and the end --------------------------------------------------------------------


async def test_leaving_waits_for_calls_under_way(announcements: Announcements, gate: str) -> None:
    values = []

    async def run(pool: ProcessPool, func: Callable[..., Any], *args: Any) -> None:
        values.append(await pool.run(func, *args))

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as group:
            async with open_pool(1, stop=PATIENT) as pool:
                group.start_soon(run, pool, support.wait_for_gate, announcements.path, gate)
                await announcements.get()
                group.start_soon(run, pool, len, bytes(8 * MEBIBYTE))
                await until_statistics(pool, lambda statistics: statistics.calls_queued == 1)
                group.start_soon(run, pool, support.payload, 3)
                await until_statistics(pool, lambda statistics: statistics.calls_queued == 2)
                group.start_soon(open_gate, gate)
            assert values == ["went through", 8 * MEBIBYTE, bytes(3)]


async def test_cancelled_with_calls_under_way(announcements: Announcements) -> None:
    with anyio.fail_after(TIMEOUT):
        with anyio.CancelScope() as scope:
            async with open_pool(2, stop=PATIENT) as pool, anyio.create_task_group() as group:
                for _ in range(2):
                    group.start_soon(pool.run, support.clean_up, announcements.path)
                for _ in range(20):
                    group.start_soon(pool.run, targets.echo, bytes(MEBIBYTE))
                pids = [await announcements.get_pid() for _ in range(2)]
                scope.cancel()
        assert scope.cancelled_caught
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        assert [await announcements.get() for _ in range(2)] == ["cleaned up"] * 2


async def test_left_with_an_error_while_data_travel() -> None:
    outcomes: list[object] = []

    async def run(pool: ProcessPool) -> None:
        try:
            outcomes.append(len(await pool.run(targets.echo, bytes(16 * MEBIBYTE))))
        except Exception as error:
            outcomes.append(type(error).__name__)

    with anyio.fail_after(TIMEOUT):
        for turns in (1, 3, 10, 30):
            async with anyio.create_task_group() as group:
                with pytest.raises(LookupError, match="the end"):
                    async with open_pool(1, min_workers=1, stop=PATIENT) as pool:
                        group.start_soon(run, pool)
                        for _ in range(turns):
                            await anyio.lowlevel.checkpoint()
                        raise LookupError("the end")
    assert len(outcomes) == 4
    assert set(outcomes) <= {16 * MEBIBYTE, "ProcessClosedError"}


async def test_opened_and_closed() -> None:
    with anyio.fail_after(TIMEOUT):
        for number in range(50):
            async with open_pool(1, stop=PATIENT) as pool:
                if number % 5 < 4:
                    assert await pool.run(support.double, number) == 2 * number


async def test_workers_are_replaced_and_retired() -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, max_tasks_per_worker=2, stop=PATIENT) as pool:
            pids = [await pool.run(os.getpid) for _ in range(6)]
            assert len(set(pids)) == 3
        async with open_pool(2, max_idle=0.05, stop=PATIENT) as pool:
            pid = await pool.run(os.getpid)
            await until_statistics(pool, lambda statistics: not statistics.workers)
            assert support.wait_until_gone(pid, 0)
            await check_serves(pool)
