"""Large data of a pool that is received while it is sent: whatever happens in the middle of it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import psutil
import pytest
import support
import targets
from support import TIMEOUT, Announcements, Timeouts, until

import creche
from creche import ProcessDied, ProcessPool, ProcessTimeout, StopPolicy, open_pool
from creche._platform import SegmentSocket
from creche._runtime import runtime

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="there are no streams"),
]

MIB = 1024 * 1024
SIZE = 8 * MIB
"""More than fits between the two processes."""

PATIENT = StopPolicy(grace=TIMEOUT, exit_timeout=TIMEOUT)
"""Who waits for a force that is not needed times out."""

FORCEFUL = StopPolicy(grace=0.05, exit_timeout=0.05)
"""For what nothing but force ends."""


def wait_for_threads() -> None:
    """Wait until the threads that send and receive have nothing left to do for other tests.

    One that is at what was given up has another in its place meanwhile.
    """
    threads = runtime().picklers
    deadline = time.monotonic() + TIMEOUT
    while threads._idle < threads._threads or threads._threads > threads._limit:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@contextlib.contextmanager
def busy_threads() -> Iterator[Callable[[], None]]:
    """Have the threads that send and receive do nothing until the function is called."""
    wait_for_threads()
    threads = runtime().picklers
    release = threading.Event()
    running = [threading.Event() for _ in range(threads._limit)]

    def wait(begun: threading.Event) -> None:
        begun.set()
        release.wait(TIMEOUT)

    for begun in running:
        threads.submit(lambda begun=begun: wait(begun))  # type: ignore[misc]
    try:
        assert all(begun.wait(TIMEOUT) for begun in running)
        yield release.set
    finally:
        release.set()


def receiving(pool: ProcessPool) -> int:
    """How many answers are being sent by workers just now."""
    assert pool._engine is not None
    return sum(len(worker._streamed._streams) for worker in pool._engine.scheduler.workforce.all)


def being_read(pool: ProcessPool) -> int:
    """How many of these answers a thread waits for."""
    assert pool._engine is not None
    workers = pool._engine.scheduler.workforce.all
    streams = [stream for worker in workers for stream in worker._streamed._streams]
    return sum(stream._reader._in_use for stream in streams)


def waiting_to_send(pool: ProcessPool) -> int:
    """How many calls are on their way to workers that do not take them."""
    assert pool._engine is not None
    workers = pool._engine.scheduler.workforce.all
    return sum(worker._large_calls._waits_for_worker for worker in workers)


# --- results --------------------------------------------------------------------------------------


async def test_worker_dies_while_it_sends() -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            pid = await pool.run(os.getpid)
            with busy_threads() as release:
                async with anyio.create_task_group() as group:

                    async def run() -> None:
                        with pytest.raises(ProcessDied, match=r"SIGKILL.*while sending its result"):
                            await pool.run(support.payload, SIZE)

                    group.start_soon(run)
                    await until(lambda: receiving(pool))
                    os.kill(pid, signal.SIGKILL)
                    await until(lambda: pool.statistics().restarts)
                    release()
            assert await pool.run(targets.add, 1) == 1


async def test_worker_dies_while_it_sends_items_of_a_map() -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            pid = await pool.run(os.getpid)
            with busy_threads() as release:
                outcomes = []
                async with anyio.create_task_group() as group:

                    async def run() -> None:
                        sizes = [1, SIZE, 2]
                        values = pool.map(support.payload, sizes, chunksize=3, on_error="yield")
                        outcomes.extend([outcome async for outcome in values])

                    group.start_soon(run)
                    await until(lambda: receiving(pool))
                    os.kill(pid, signal.SIGKILL)
                    await until(lambda: pool.statistics().restarts)
                    release()
            assert [outcome.index for outcome in outcomes] == [0, 1, 2]
            for outcome in outcomes:
                if outcome.exception is None:
                    assert len(outcome.value) == [1, SIZE, 2][outcome.index]
                else:
                    assert isinstance(outcome.exception, ProcessDied)
            assert isinstance(outcomes[1].exception, ProcessDied)
            assert await pool.run(targets.add, 1) == 1


@pytest.mark.parametrize("released_first", [False, True])
async def test_call_is_cancelled_while_its_result_is_sent(released_first: bool) -> None:
    """The worker lives on."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            pid = await pool.run(os.getpid)
            with busy_threads() as release:
                async with anyio.create_task_group() as group:
                    group.start_soon(pool.run, support.payload, SIZE)
                    await until(lambda: receiving(pool))
                    if released_first:
                        release()
                    group.cancel_scope.cancel()
                assert not receiving(pool)
                assert await pool.run(os.getpid) == pid
            assert await pool.run(support.payload, SIZE) == bytes(SIZE)
            assert pool.statistics().restarts == 0


def is_stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


async def test_workers_are_stopped_while_they_send() -> None:
    """Neither do others wait for that, nor is anything lost."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(4, min_workers=4, stop=FORCEFUL) as pool:
            threads = threading.active_count()
            values: list[bytes] = []
            with busy_threads() as release:
                async with anyio.create_task_group() as group:

                    async def run() -> None:
                        values.append(await pool.run(support.payload, SIZE))

                    for _ in range(3):
                        group.start_soon(run)
                    await until(lambda: receiving(pool) == 3)
                    assert pool._engine is not None
                    workers = pool._engine.scheduler.workforce.all
                    pids = [worker.handle.pid for worker in workers if worker._streamed._streams]
                    for pid in pids:
                        os.kill(pid, signal.SIGSTOP)
                    # A process that is sending is stopped when it comes back from the kernel.
                    await until(lambda: all(map(is_stopped, pids)))
                    release()
                    async with open_pool(1) as other:
                        assert await other.run(targets.echo, bytes(SIZE)) == bytes(SIZE)
                    assert not values
                    for pid in pids:
                        os.kill(pid, signal.SIGCONT)
            assert values == [bytes(SIZE)] * 3
            await until(lambda: threading.active_count() <= threads + 2)


async def test_timeout_while_a_stopped_worker_sends(timeouts: Timeouts) -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=FORCEFUL) as pool:
            pid = await pool.run(os.getpid)
            with busy_threads() as release:
                async with anyio.create_task_group() as group:

                    async def run() -> None:
                        with pytest.raises(ProcessTimeout):
                            await pool.run(support.payload, SIZE, timeout=2 * TIMEOUT)

                    group.start_soon(run)
                    await until(lambda: receiving(pool))
                    os.kill(pid, signal.SIGSTOP)
                    await until(lambda: is_stopped(pid))
                    release()
                    await until(lambda: being_read(pool))
                    timeouts.strike()
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("size", [2 * MIB, SIZE])
async def test_worker_has_to_end_when_it_has_sent(size: int) -> None:
    """It is given the time that it takes to receive its last result, however long that is."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, max_tasks_per_worker=1, stop=FORCEFUL) as pool:
            with busy_threads() as release:
                async with anyio.create_task_group() as group:

                    async def run() -> None:
                        assert await pool.run(support.payload, size) == bytes(size)

                    group.start_soon(run)
                    await until(lambda: receiving(pool))
                    await anyio.sleep(0.3)  # much more than it would have otherwise
                    release()


async def test_pool_is_left_while_a_result_is_sent() -> None:
    with anyio.fail_after(TIMEOUT), anyio.CancelScope() as scope:
        async with open_pool(1, stop=PATIENT) as pool:
            with busy_threads():
                async with anyio.create_task_group() as group:
                    group.start_soon(pool.run, support.payload, SIZE)
                    await until(lambda: receiving(pool))
                    scope.cancel()
    assert not pool.statistics().workers


def send_less_than_said() -> bytes:
    from creche._platform import StreamWriter

    StreamWriter.write = StreamWriter.close  # type: ignore[assignment, method-assign]
    return bytes(SIZE)


async def test_worker_sends_less_than_it_said() -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            with pytest.raises(ProcessDied, match="while sending its result"):
                await pool.run(send_less_than_said)
            assert await pool.run(support.payload, SIZE) == bytes(SIZE)


async def test_result_that_cannot_be_unpickled() -> None:
    """What follows is not received."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            with pytest.raises(creche.SerializationError, match="not in here"):
                await pool.run(make_bad_and_large)
            assert await pool.run(support.payload, SIZE) == bytes(SIZE)
            assert pool.statistics().restarts == 0


def make_bad_and_large() -> list[Any]:
    return [support.RefusesUnpickling(), bytes(SIZE)]


# --- arguments ------------------------------------------------------------------------------------


async def test_argument_that_cannot_be_unpickled() -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            with pytest.raises(creche.SerializationError, match="not in here"):
                await pool.run(len, make_bad_and_large())
            assert await pool.run(len, bytes(SIZE)) == SIZE
            assert pool.statistics().restarts == 0


@pytest.mark.parametrize("way", ["kill", "cancel", "timeout"])
async def test_worker_does_not_take_its_argument(
    way: str, announcements: Announcements, timeouts: Timeouts
) -> None:
    argument = [support.WaitsOnUnpickling(announcements.path), bytes(SIZE)]
    expected = {"kill": ProcessDied, "timeout": ProcessTimeout}.get(way, Exception)
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            async with anyio.create_task_group() as group:

                async def run() -> None:
                    with pytest.raises(expected):
                        seconds = 2 * TIMEOUT if way == "timeout" else None
                        await pool.run(len, argument, timeout=seconds)

                group.start_soon(run)
                pid = await announcements.get_pid()
                await until(lambda: waiting_to_send(pool))
                if way == "kill":
                    os.kill(pid, signal.SIGKILL)
                elif way == "cancel":
                    group.cancel_scope.cancel()
                else:
                    timeouts.strike()
            assert not psutil.pid_exists(pid)
            assert await pool.run(len, bytes(SIZE)) == SIZE


async def test_argument_is_larger_than_the_memory_limit() -> None:
    np = pytest.importorskip("numpy")
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, memory_limit=200 * MIB, stop=PATIENT) as pool:
            for argument in (bytes(260 * MIB), np.ones(33 * MIB)):
                with pytest.raises(creche.WorkerMemoryError):
                    await pool.run(len, argument)
            assert await pool.run(len, np.ones(MIB)) == MIB


async def test_no_thread_waits_for_workers_that_take_nothing() -> None:
    """However many they are; and they go on when they are ready."""
    lengths: list[int] = []
    wait_for_threads()
    with anyio.fail_after(TIMEOUT):
        async with open_pool(4, min_workers=4, stop=PATIENT) as pool, open_pool(1) as other:
            assert await other.run(targets.add, 1) == 1
            pids = [worker.pid for worker in pool.statistics().workers if worker.pid is not None]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            async with anyio.create_task_group() as group:

                async def run() -> None:
                    lengths.append(await pool.run(len, bytes(SIZE)))

                for _ in pids:
                    group.start_soon(run)
                await until(lambda: waiting_to_send(pool) == len(pids))
                assert sum("creche-pickler" in thread.name for thread in threading.enumerate()) <= 2
                assert await other.run(targets.echo, bytes(SIZE)) == bytes(SIZE)
                assert not lengths
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            assert lengths == [SIZE] * len(pids)
            assert pool.statistics().restarts == 0


# --- no descriptors -------------------------------------------------------------------------------


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise OSError("no descriptors left")


def refuse_then(func: Callable[..., Any], *args: Any) -> Any:
    SegmentSocket.open_stream = refuse  # type: ignore[method-assign]
    return func(*args)


async def test_no_descriptors_to_send_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the wire has to do."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            assert await pool.run(refuse_then, support.payload, SIZE) == bytes(SIZE)
            monkeypatch.setattr(SegmentSocket, "open_stream", refuse)
            assert await pool.run(len, bytes(SIZE)) == SIZE
            assert pool.statistics().restarts == 0


async def test_no_descriptors_to_receive_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(socket: SegmentSocket) -> int:
        os.close(receive(socket))
        raise EOFError("no descriptor came")

    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, stop=PATIENT) as pool:
            assert await pool.run(targets.add, 1) == 1
            with monkeypatch.context() as patched:
                receive = SegmentSocket.receive
                patched.setattr(SegmentSocket, "receive", lose)
                with pytest.raises(creche.SerializationError, match="no descriptor came"):
                    await pool.run(support.payload, SIZE)
            assert await pool.run(support.payload, SIZE) == bytes(SIZE)
            assert pool.statistics().restarts == 0
