"""open_pool, ProcessPool.run and statistics: what the workers of a pool do, and how they live."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import anyio
import anyio.to_thread
import cloudpickle
import pytest
import support
import targets
from support import TIMEOUT, Announcements, Timeouts, announce, until, until_statistics

import creche
from creche import PoolStatistics, ProcessPool, StopPolicy, open_pool

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_worker_is_deaf")]


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """What waits for this file goes on when it exists."""
    return tmp_path / "gate"


async def run_together(pool: ProcessPool, number: int, func: Callable[..., Any], *args: Any) -> Any:
    """Make calls in tasks of their own; return their values in the order in which they came."""
    values: list[Any] = []

    async def run() -> None:
        values.append(await pool.run(func, *args))

    async with anyio.create_task_group() as tasks:
        for _ in range(number):
            tasks.start_soon(run)
    return values


def pids(statistics: PoolStatistics) -> set[int | None]:
    return {worker.pid for worker in statistics.workers}


# --- what can be called -------------------------------------------------------------------------


async def test_kinds_of_functions(start_method: str) -> None:
    async with open_pool(1, start_method=start_method) as pool:
        assert await pool.run(targets.add, 1, 2) == 3
        assert await pool.run(targets.add_async, 1, 2) == 3
        assert await pool.run(targets.add_three, 1) == 104
        assert await pool.run(targets.add_three_async, 1) == 104
        assert await pool.run(targets.Adder(1).add, 2) == 3
        assert await pool.run(targets.Adder.add_one, 2) == 3
        assert await pool.run(targets.Adder(1), 2) == 3
        assert await pool.run(targets.AsyncAdder(1), 2) == 3
        assert await pool.run(targets.plain_wrapper_of_async, 1, 2) == 3
        assert await pool.run(sum, [1, 2]) == 3
        assert await pool.run(str.upper, "a") == "A"
        assert await pool.run(targets.echo, None) is None
        assert await pool.run(os.getpid) != os.getpid()


async def test_exceptions(start_method: str) -> None:
    async with open_pool(1, start_method=start_method) as pool:
        pid = await pool.run(os.getpid)
        for func in (targets.fail, targets.fail_async):
            with pytest.raises(LookupError, match="oh") as caught:
                await pool.run(func, "oh")
            assert isinstance(caught.value.__cause__, creche.RemoteTraceback)
            assert f"in {func.__name__}" in str(caught.value.__cause__)
        assert await pool.run(os.getpid) == pid


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (KeyboardInterrupt, creche.RemoteError),
        (GeneratorExit, creche.RemoteError),
        (StopIteration, creche.RemoteError),
        (support.HoldsALock, creche.RemoteError),
        (support.CustomBaseException, support.CustomBaseException),
        (creche.ProcessTimeout, creche.ProcessTimeout),
    ],
)
async def test_special_exceptions(kind: type[BaseException], expected: type[BaseException]) -> None:
    async with open_pool(1) as pool:
        pid = await pool.run(os.getpid)
        for func in (support.raise_type, functools.partial(support.raise_type)):
            with pytest.raises(expected, match="the message"):
                await pool.run(func, kind, "the message")
        assert await pool.run(os.getpid) == pid


async def test_event_loop_of_a_worker_outlives_what_ends_others() -> None:
    """Async functions share it, and what they have in it."""
    async with open_pool(1) as pool:
        assert await pool.run(targets.is_loop_of_first_call)
        with pytest.raises(support.CustomBaseException):
            await pool.run(support.raise_it_async, support.CustomBaseException())
        assert await pool.run(targets.is_loop_of_first_call)


async def test_what_cannot_be_pickled(start_method: str) -> None:
    async with open_pool(1, start_method=start_method) as pool:
        pid = await pool.run(os.getpid)
        with pytest.raises(creche.SerializationError, match="argument 2"):
            await pool.run(targets.echo, 1, lambda: None)
        with pytest.raises(creche.SerializationError, match="the function"):
            await pool.run(lambda: None)
        with pytest.raises(creche.SerializationError):
            await pool.run(targets.echo, support.RefusesUnpickling())
        with pytest.raises(creche.SerializationError, match="lock"):
            await pool.run(targets.lock_if, 1, 1)
        with pytest.raises(creche.SerializationError):
            await pool.run(support.make, support.RefusesUnpickling)
        assert await pool.run(os.getpid) == pid
        statistics = pool.statistics()
        assert statistics.restarts == 0


async def test_async_functions_share_the_event_loop_of_their_worker(
    anyio_backend_name: str, start_method: str
) -> None:
    async with open_pool(1, start_method=start_method) as pool:
        assert await pool.run(targets.backend_in_use) == anyio_backend_name
        for _ in range(3):
            assert await pool.run(targets.is_loop_of_first_call)
            assert await pool.run(targets.add, 1, 2) == 3


# --- which worker runs what ---------------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True])
async def test_calls_run_in_order_of_arrival(
    known: bool, announcements: Announcements, gate: Path
) -> None:
    """From whichever task, and whether or not the pool knows how long they take."""
    async with open_pool(1) as pool, anyio.create_task_group() as tasks:
        if known:
            for _ in range(20):
                await pool.run(announce, announcements.path, "first")
                assert await announcements.get() == "first"
        tasks.start_soon(pool.run, targets.wait_for_file, announcements.path, str(gate))
        await announcements.get_pid()
        for number in range(10):
            tasks.start_soon(pool.run, announce, announcements.path, number)
            await until_statistics(pool, lambda s, n=number: s.calls_queued == n + 1)  # type: ignore[misc]
        gate.touch()
        assert [await announcements.get() for _ in range(10)] == [str(n) for n in range(10)]


async def test_no_call_waits_behind_a_long_one_while_another_worker_is_idle(
    announcements: Announcements, gate: Path
) -> None:
    """Though it was sent to the long one's worker, as the function is known to take no time."""
    call = functools.partial(targets.wait_for_file_if, False, announcements.path, str(gate))
    long_call = functools.partial(targets.wait_for_file_if, True, announcements.path, str(gate))
    async with open_pool(2, min_workers=2) as pool:
        await run_together(pool, 100, call)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run, long_call)
            values = await run_together(pool, 200, call)
            held = await announcements.get_pid()
            values += await run_together(pool, 20, call)
            assert held not in values[-20:]
            assert len(values) == 220
            gate.touch()


async def test_call_that_was_sent_ahead_is_cancelled(
    announcements: Announcements, gate: Path
) -> None:
    call = functools.partial(targets.wait_for_file_if, False, announcements.path, str(gate))
    long_call = functools.partial(targets.wait_for_file_if, True, announcements.path, str(gate))
    async with open_pool(1) as pool:
        await run_together(pool, 100, call)
        before = pids(pool.statistics())
        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as short:
                tasks.start_soon(pool.run, long_call)
                for _ in range(20):
                    short.start_soon(pool.run, call)
                await announcements.get_pid()
                await until_statistics(pool, lambda s: s.calls_queued <= 20)
                short.cancel_scope.cancel()
            assert pool.statistics().calls_queued == 0
            assert pool.statistics().calls_running == 1
            gate.touch()
        assert pids(pool.statistics()) == before
        assert pool.statistics().restarts == 0
        assert await pool.run(call) in before


async def test_values_are_not_mixed_up() -> None:
    """Calls that are sent ahead, and taken back at any moment, give each caller its own value."""
    scopes: list[anyio.CancelScope] = []
    count = 0

    async def use(number: int) -> None:
        nonlocal count
        for i in range(100):
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                value = number, i
                assert await pool.run(targets.echo, value) == value
                count += 1
                if i % 10 == 9:
                    scopes[-1 - count % 7].cancel()  # of a call that waits, or of one that is over

    async with open_pool(2) as pool:
        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(use, number)
        assert count > 0
        assert pool.statistics().calls_queued == 0


async def test_each_call_runs_once(announcements: Announcements) -> None:
    """Taken back or not."""
    async with open_pool(2) as pool:
        async with anyio.create_task_group() as tasks:
            for number in range(600):
                tasks.start_soon(pool.run, announce, announcements.path, number)
            lines = [await announcements.get() for _ in range(600)]
        assert sorted(map(int, lines)) == list(range(600))


async def test_shared_by_tasks() -> None:
    results: dict[int, list[int]] = {1: [], 2: []}

    async def use(number: int) -> None:
        results[number] = [await pool.run(targets.add, number, i) for i in range(50)]

    async with open_pool(2) as pool, anyio.create_task_group() as tasks:
        for number in results:
            tasks.start_soon(use, number)
    assert results == {number: [number + i for i in range(50)] for number in results}


async def test_two_pools() -> None:
    async with open_pool(1, name="left") as left, open_pool(1, name="right") as right:
        values = [
            (await left.run(targets.describe_self))["name"],
            (await right.run(targets.describe_self))["name"],
        ]
        assert values == ["left-worker-1", "right-worker-1"]
        assert await left.run(os.getpid) != await right.run(os.getpid)
    async with open_pool(1) as first, open_pool(1) as second:
        names = [(await pool.run(targets.describe_self))["name"] for pool in (first, second)]
        assert len(set(names)) == 2


@pytest.mark.either_backend
@pytest.mark.parametrize("is_async", [False, True])
async def test_pool_in_a_worker(is_async: bool, anyio_backend_name: str, start_method: str) -> None:
    async with open_pool(1, start_method=start_method) as pool:
        if is_async:
            outer, inner = await pool.run(targets.use_pool_in_worker, start_method)
        else:
            outer, inner = await pool.run(
                targets.use_pool_in_worker_sync, anyio_backend_name, start_method
            )
        assert outer in pids(pool.statistics())
        assert inner not in {outer, os.getpid()}
        assert await pool.run(os.getpid) == outer


# --- how many workers there are -----------------------------------------------------------------


async def test_workers_are_started_on_demand(announcements: Announcements, gate: Path) -> None:
    async with open_pool(3) as pool:
        assert pool.statistics().workers == ()
        for _ in range(5):
            await pool.run(targets.add, 1)
        assert pool.statistics().workers_alive == 1
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(pool.run, targets.wait_for_file, announcements.path, str(gate))
            running = {await announcements.get_pid() for _ in range(3)}
            assert len(running) == 3
            statistics = await until_statistics(pool, lambda s: s.calls_running == 3)
            assert statistics.workers_alive == len(statistics.workers) == 3
            assert statistics.calls_queued == 2
            gate.touch()
        assert pids(pool.statistics()) == running


async def test_workers_are_kept_ready(start_method: str) -> None:
    async with open_pool(3, min_workers=2, start_method=start_method) as pool:
        statistics = pool.statistics()
        assert statistics.workers_idle == statistics.workers_alive == 2
        killed = statistics.workers[0].pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        statistics = await until_statistics(pool, lambda s: s.restarts == 1 and s.workers_idle == 2)
        assert killed not in pids(statistics)
        assert len(statistics.workers) == 2


@pytest.mark.parametrize("min_workers", [0, 1])
async def test_idle_workers_are_retired(
    min_workers: int, announcements: Announcements, gate: Path
) -> None:
    async with open_pool(3, min_workers=min_workers, max_idle=0.02) as pool:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(pool.run, targets.wait_for_file, announcements.path, str(gate))
            for _ in range(3):
                await announcements.get_pid()
            gate.touch()
        statistics = await until_statistics(pool, lambda s: len(s.workers) == min_workers)
        assert statistics.workers_idle == statistics.workers_alive == min_workers
        assert statistics.restarts == 0
        assert await pool.run(targets.add, 1) == 1
        statistics = await until_statistics(pool, lambda s: len(s.workers) == min_workers)
        assert statistics.restarts == 0


async def test_busy_workers_are_not_retired(announcements: Announcements, gate: Path) -> None:
    async with open_pool(2, max_idle=0.02) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run, targets.wait_for_file, announcements.path, str(gate))
        pid = await announcements.get_pid()
        # The other one comes and goes.
        assert await pool.run(targets.add, 1) == 1
        statistics = await until_statistics(pool, lambda s: len(s.workers) == 1)
        assert pids(statistics) == {pid}
        assert statistics.calls_running == 1
        gate.touch()


@pytest.mark.parametrize("workers", [1, 2])
async def test_max_tasks_per_worker(workers: int) -> None:
    async with open_pool(workers, max_tasks_per_worker=3) as pool:
        used = Counter([await pool.run(os.getpid) for _ in range(7)])
        used.update(await run_together(pool, 20, os.getpid))
        assert used.total() == 27
        assert max(used.values()) <= 3
        assert len(used) >= 9
        assert pool.statistics().restarts == 0
        assert pool.statistics().workers_alive <= workers


async def test_max_tasks_counts_errors_and_replaces_workers_in_order(
    announcements: Announcements,
) -> None:
    finalizer = functools.partial(announce, announcements.path, "finalized")
    async with open_pool(1, max_tasks_per_worker=2, finalizer=finalizer) as pool:
        first = await pool.run(os.getpid)
        with pytest.raises(LookupError):
            await pool.run(targets.fail, "oh")
        assert await announcements.get() == "finalized"
        assert await pool.run(os.getpid) != first


@pytest.mark.parametrize("spares", [None, 0, 1, 3])
async def test_fresh_process_for_each_call(spares: int | None) -> None:
    async with open_pool(2, max_tasks_per_worker=1, spares=spares) as pool:
        used = [await pool.run(os.getpid) for _ in range(3)]
        used += await run_together(pool, 6, os.getpid)
        assert len(set(used)) == 9
        assert pool.statistics().restarts == 0


async def test_spares_do_not_work_while_enough_others_do(
    announcements: Announcements, gate: Path
) -> None:
    async with open_pool(1, max_tasks_per_worker=1, spares=2) as pool:
        await until_statistics(pool, lambda s: s.workers_idle == 2)
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(pool.run, targets.wait_for_file, announcements.path, str(gate))
            first = await announcements.get_pid()
            statistics = await until_statistics(pool, lambda s: s.workers_idle == 2)
            assert (statistics.calls_running, statistics.calls_queued) == (1, 1)
            assert statistics.workers_alive == 3
            gate.touch()
            assert await announcements.get_pid() != first


# --- initializer and finalizer ------------------------------------------------------------------


@pytest.mark.parametrize("initializer", [targets.initialize, targets.initialize_async])
async def test_initializer(initializer: Any, start_method: str) -> None:
    async with open_pool(
        1, initializer=initializer, initargs=[{"a": 1}], start_method=start_method
    ) as pool:
        for _ in range(2):
            assert await pool.run(targets.recall) == ({"a": 1}, 1)
        assert await pool.run(targets.is_loop_of_first_call)


@pytest.mark.either_backend
@pytest.mark.parametrize("finalizer", [announce, targets.announce_async])
@pytest.mark.parametrize("min_workers", [0, 2])
async def test_finalizer_runs_when_the_pool_is_closed(
    finalizer: Any, min_workers: int, start_method: str, announcements: Announcements
) -> None:
    async with open_pool(
        2,
        min_workers=min_workers,
        initializer=targets.initialize_async,
        initargs=(1,),
        finalizer=functools.partial(finalizer, announcements.path),
        start_method=start_method,
    ) as pool:
        await pool.run(targets.is_loop_of_first_call)
        expected = pids(pool.statistics())
    assert {await announcements.get_pid() for _ in expected} == expected


@pytest.mark.parametrize("finalizer", [announce, targets.announce_async])
@pytest.mark.parametrize("function", [targets.add, targets.add_async])
async def test_finalizer_needs_no_initializer(
    finalizer: Any, function: Any, announcements: Announcements
) -> None:
    finalizer = functools.partial(finalizer, announcements.path, "finalized")
    async with open_pool(1, finalizer=finalizer) as pool:
        assert await pool.run(function, 1) == 1
    # The pool is closed: what was to be written has been.
    announce(announcements.path, "closed")
    assert await announcements.get() == "finalized"


@pytest.mark.parametrize("finalizer", [announce, targets.announce_async])
async def test_finalizer_runs_when_a_worker_is_retired(
    finalizer: Any, announcements: Announcements
) -> None:
    finalizer = functools.partial(finalizer, announcements.path)
    async with open_pool(1, max_idle=0.01, finalizer=finalizer) as pool:
        pid = await pool.run(os.getpid)
        assert await announcements.get_pid() == pid


@pytest.mark.parametrize("target", [targets.wait_for_ever, targets.wait_for_ever_async])
@pytest.mark.parametrize("finalizer", [announce, targets.announce_async])
async def test_finalizer_runs_when_a_worker_is_stopped(
    target: Any, finalizer: Any, announcements: Announcements
) -> None:
    finalizer = functools.partial(finalizer, announcements.path, "finalized")
    stop = StopPolicy(grace=TIMEOUT)
    async with open_pool(1, finalizer=finalizer, stop=stop) as pool:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run, target, announcements.path)
            pid = await announcements.get_pid()
            tasks.cancel_scope.cancel()
        assert support.wait_until_gone(pid, 0)
        announce(announcements.path, "stopped")
        assert await announcements.get() == "finalized"


@pytest.mark.either_backend
@pytest.mark.parametrize("initializer", [targets.fail, targets.fail_async])
async def test_initializer_fails_where_workers_are_kept_ready(
    initializer: Any, start_method: str
) -> None:
    pool = open_pool(
        2, min_workers=2, initializer=initializer, initargs=["oh"], start_method=start_method
    )
    with pytest.raises(creche.ProcessStartError, match="LookupError: oh") as caught:
        async with pool:
            pytest.fail("entered")
    assert isinstance(caught.value.__cause__, LookupError)


@pytest.mark.either_backend
@pytest.mark.parametrize("initializer", [targets.fail, targets.fail_async])
async def test_initializer_fails_on_demand(initializer: Any, start_method: str) -> None:
    async with open_pool(
        2, initializer=initializer, initargs=["oh"], start_method=start_method
    ) as pool:
        for _ in range(2):
            with pytest.raises(creche.ProcessStartError, match="LookupError: oh"):
                await pool.run(targets.add, 1)
        with pytest.raises(creche.ProcessStartError, match="LookupError: oh"):
            async for _ in pool.map(targets.add, [1, 2, 3]):
                pytest.fail("gave a value")


async def test_initializer_cannot_be_pickled() -> None:
    async with open_pool(1, initializer=lambda: None) as pool:
        with pytest.raises(creche.ProcessStartError, match="cannot be pickled"):
            await pool.run(targets.add, 1)


async def test_finalizer_fails(announcements: Announcements) -> None:
    """What it raises has nobody to tell; the pool closes all the same."""
    finalizer = functools.partial(
        support.announce_then, announcements.path, support.raise_type, LookupError
    )
    async with open_pool(1, finalizer=finalizer) as pool:
        pid = await pool.run(os.getpid)
    assert await announcements.get_pid() == pid


# --- timeouts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 60, math.inf])
async def test_timeout_that_does_not_run_out(timeout: float | None) -> None:
    async with open_pool(1) as pool:
        assert await pool.run(targets.add, 1, timeout=timeout) == 1


@pytest.mark.parametrize("target", [targets.wait_for_ever, targets.wait_for_ever_async])
async def test_timeout(
    target: Any, start_method: str, announcements: Announcements, timeouts: Timeouts
) -> None:
    async def run() -> None:
        with pytest.raises(creche.ProcessTimeout, match=r"its timeout of 99\.5 seconds") as caught:
            await pool.run(target, announcements.path, timeout=99.5)
        assert isinstance(caught.value, TimeoutError)
        assert target.__name__ in str(caught.value)

    async with open_pool(1, min_workers=1, start_method=start_method) as pool:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            pid = await announcements.get_pid()
            timeouts.strike()  # or else a worker that waits for a CPU would not have begun
        assert support.wait_until_gone(pid, 0)
        assert await pool.run(targets.add, 1) == 1
        statistics = pool.statistics()
        assert (statistics.restarts, statistics.calls_cancelled) == (1, 1)


async def test_timeout_of_zero() -> None:
    async with open_pool(1) as pool:
        with pytest.raises(creche.ProcessTimeout, match="timeout of 0 seconds"):
            await pool.run(targets.add, 1, timeout=0)
        assert await pool.run(targets.add, 1) == 1


async def test_timeout_while_queued(announcements: Announcements, gate: Path) -> None:
    async with open_pool(1) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run, targets.wait_for_file, announcements.path, str(gate))
        pid = await announcements.get_pid()
        with pytest.raises(creche.ProcessTimeout):
            await pool.run(targets.add, 1, timeout=0.05)
        statistics = pool.statistics()
        assert pids(statistics) == {pid}
        assert (statistics.calls_running, statistics.calls_queued) == (1, 0)
        assert (statistics.restarts, statistics.calls_cancelled) == (0, 1)
        gate.touch()


@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        (-1, ValueError),
        (-math.inf, ValueError),
        (math.nan, ValueError),
        ("1", TypeError),
        (True, TypeError),
    ],
)
async def test_bad_timeout(timeout: Any, error: type[Exception]) -> None:
    async with open_pool(1) as pool:
        with pytest.raises(error, match="timeout must be"):
            await pool.run(targets.add, 1, timeout=timeout)
        assert pool.statistics().workers == ()


# --- cancellation -------------------------------------------------------------------------------


async def test_cancelled_before() -> None:
    async with open_pool(1) as pool:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await pool.run(targets.wait_for_ever, "nobody reads this")
        assert scope.cancelled_caught
        assert await pool.run(targets.add, 1) == 1


@pytest.mark.either_backend
@pytest.mark.parametrize("target", [support.clean_up, support.clean_up_async])
async def test_cancelled_while_running(
    target: Any, start_method: str, announcements: Announcements, gate: Path
) -> None:
    async with open_pool(2, min_workers=2, start_method=start_method) as pool:
        async with anyio.create_task_group() as others:
            seen: list[str] = []

            async def hold() -> None:
                seen.append(await pool.run(targets.wait_for_file, announcements.path, str(gate)))

            others.start_soon(hold)
            held = await announcements.get_pid()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.run, target, announcements.path)
                pid = await announcements.get_pid()
                tasks.cancel_scope.cancel()
            assert support.wait_until_gone(pid, 0)
            assert await announcements.get() == "cleaned up"
            statistics = await until_statistics(pool, lambda s: s.workers_idle == 1)
            assert held in pids(statistics)
            assert pid not in pids(statistics)
            assert await pool.run(os.getpid) not in {pid, held}
            gate.touch()
        assert seen == ["seen"]
        statistics = pool.statistics()
        assert (statistics.restarts, statistics.calls_cancelled) == (1, 1)
        assert held in pids(statistics)


async def test_cancelled_while_queued(announcements: Announcements, gate: Path) -> None:
    async with open_pool(1) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run, targets.wait_for_file, announcements.path, str(gate))
        pid = await announcements.get_pid()
        async with anyio.create_task_group() as queued:
            for _ in range(300):
                queued.start_soon(pool.run, announce, announcements.path, "never")
            await until_statistics(pool, lambda s: s.calls_queued == 300)
            queued.cancel_scope.cancel()
        statistics = pool.statistics()
        assert (statistics.calls_running, statistics.calls_queued) == (1, 0)
        assert (statistics.restarts, statistics.calls_cancelled) == (0, 300)
        gate.touch()
        await pool.run(announce, announcements.path, "after")
        assert await announcements.get() == "after"
        assert pids(pool.statistics()) == {pid}


async def test_some_queued_calls_are_cancelled(announcements: Announcements, gate: Path) -> None:
    scopes: list[anyio.CancelScope] = []

    async def call(number: int) -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await pool.run(announce, announcements.path, number)

    async with open_pool(1) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run, targets.wait_for_file, announcements.path, str(gate))
        await announcements.get_pid()
        for number in range(10):
            tasks.start_soon(call, number)
            await until_statistics(pool, lambda s, n=number: s.calls_queued == n + 1)  # type: ignore[misc]
        for number in (0, 3, 4, 9):
            scopes[number].cancel()
        await until_statistics(pool, lambda s: s.calls_cancelled == 4)
        gate.touch()
        assert [await announcements.get() for _ in range(6)] == list("125678")


async def test_cancelled_while_the_first_worker_starts(
    announcements: Announcements, gate: Path
) -> None:
    setup = (announcements.path, str(gate))
    async with open_pool(1, initializer=targets.wait_for_file, initargs=setup) as pool:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run, targets.add, 1)
            await announcements.get_pid()
            assert pool.statistics().workers_starting == 1
            tasks.cancel_scope.cancel()
        assert pool.statistics().calls_queued == 0
        gate.touch()
        assert await pool.run(targets.add, 1) == 1
        assert pool.statistics().restarts == 0


# --- the life of the pool -----------------------------------------------------------------------


async def test_leaving_waits_for_the_calls_of_others(
    announcements: Announcements, gate: Path
) -> None:
    values: list[Any] = []

    async def call(func: Any, *args: Any) -> None:
        values.append(await pool.run(func, *args))

    async def release() -> None:
        gate.touch()

    async with anyio.create_task_group() as tasks:
        async with open_pool(1) as pool:
            tasks.start_soon(call, targets.wait_for_file, announcements.path, str(gate))
            await announcements.get_pid()
            tasks.start_soon(call, targets.add, 1)
            await until_statistics(pool, lambda s: s.calls_queued == 1)
            assert values == []
            tasks.start_soon(release)
        assert pool.statistics().calls_done == 2
        assert pool.statistics().workers == ()
    assert values == ["seen", 1]


async def test_leaving_with_an_error_stops_the_calls_of_others(
    announcements: Announcements,
) -> None:
    errors: list[BaseException] = []

    async def call(func: Any, *args: Any) -> None:
        try:
            await pool.run(func, *args)
        except creche.ProcessError as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        with pytest.raises(ZeroDivisionError):
            async with open_pool(1) as pool:
                tasks.start_soon(call, support.clean_up, announcements.path)
                pid = await announcements.get_pid()
                tasks.start_soon(call, targets.add, 1)
                await until_statistics(pool, lambda s: s.calls_queued == 1)
                raise ZeroDivisionError
        assert support.wait_until_gone(pid, 0)
        assert await announcements.get() == "cleaned up"
    assert [type(error) for error in errors] == [creche.ProcessClosedError] * 2


@pytest.mark.parametrize("fails", [False, True])
async def test_pool_left_while_a_call_is_pickled(fails: bool) -> None:
    """It is one of the calls for which leaving waits, and which a failure ends."""
    opened = threading.Event()
    argument = support.slow_to_pickle(opened)
    outcomes: list[Any] = []

    async def call() -> None:
        try:
            outcomes.append(await pool.run(len, argument))
        except creche.ProcessClosedError as error:
            outcomes.append(error)

    try:
        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                with contextlib.suppress(KeyError):
                    async with open_pool(1) as pool:
                        tasks.start_soon(call)
                        await until(argument[-1].begun.is_set)
                        if fails:
                            raise KeyError
                        tasks.start_soon(anyio.to_thread.run_sync, opened.set)
                opened.set()
    finally:
        opened.set()
    (outcome,) = outcomes
    assert isinstance(outcome, creche.ProcessClosedError) if fails else outcome == len(argument)


async def test_answers_that_come_while_one_is_handled() -> None:
    """What is told of one answer may call off another call: each goes to whom it belongs to."""

    def raise_at(most: int, done: int, _total: int | None) -> None:
        if done > most:
            time.sleep(0.002)  # and more answers come
            raise ZeroDivisionError

    async with open_pool(1) as pool:
        for _ in range(50):
            await pool.run(support.double, 1)  # so short that they are sent ahead
        over = False

        async def call() -> None:
            number = 0
            while not over:
                number += 1
                assert await pool.run(support.double, number) == 2 * number

        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                for _ in range(6):
                    tasks.start_soon(call)
                for most in range(200, 1000, 10):
                    on_progress = functools.partial(raise_at, most)
                    with pytest.raises(ZeroDivisionError):
                        await pool.map(
                            support.double, [*range(3000)], chunksize=20, on_progress=on_progress
                        )
                    async with pool.map(support.double, [*range(3000)], chunksize=20) as values:
                        async for value in values:
                            if value > most:
                                await pool.run(support.double, 1)
                                break
                over = True


async def test_calls_that_fail_at_once_let_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> NoReturn:
        raise OSError("there are no more")

    async with open_pool(1) as pool:
        assert pool._engine is not None
        monkeypatch.setattr(pool._engine.scheduler.workforce, "_make_worker", fail)
        over = False

        async def end() -> None:
            nonlocal over
            over = True

        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(end)
                while not over:
                    with pytest.raises(creche.ProcessStartError, match="there are no more"):
                        await pool.run(targets.add, 1)


@pytest.mark.parametrize("min_workers", [0, 2])
async def test_cancelled_pool(min_workers: int, announcements: Announcements) -> None:
    with anyio.CancelScope() as scope:
        async with (
            open_pool(2, min_workers=min_workers) as pool,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(5):
                tasks.start_soon(pool.run, targets.wait_for_ever, announcements.path)
            running = [await announcements.get_pid() for _ in range(2)]
            scope.cancel()
    assert scope.cancelled_caught
    assert all(support.wait_until_gone(pid, 0) for pid in running)
    assert pool.statistics().workers == ()


async def test_cancelled_while_it_waits_for_the_calls_of_others(
    announcements: Announcements,
) -> None:
    async with anyio.create_task_group() as tasks:

        async def call() -> None:
            with pytest.raises(creche.ProcessClosedError):
                await pool.run(targets.wait_for_ever, announcements.path)

        with anyio.CancelScope() as scope:
            async with open_pool(1) as pool:
                tasks.start_soon(call)
                pid = await announcements.get_pid()
                scope.cancel()
        assert scope.cancelled_caught
        assert support.wait_until_gone(pid, 0)


async def test_cancelled_while_it_opens(announcements: Announcements) -> None:
    async def enter() -> None:
        async with open_pool(
            1,
            min_workers=1,
            initializer=targets.wait_for_ever,
            initargs=[announcements.path],
        ):
            pytest.fail("entered")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(enter)
        pid = await announcements.get_pid()
        tasks.cancel_scope.cancel()
    assert support.wait_until_gone(pid, 0)


async def test_pool_that_nobody_uses() -> None:
    async with open_pool() as pool:
        pass
    assert pool.statistics().workers == ()


async def test_use_before_opening() -> None:
    pool = open_pool(1, name="K")
    for use in (
        lambda: pool.run(targets.add, 1),
        lambda: pool.run(targets.add, 1, timeout=0),
    ):
        with pytest.raises(creche.ProcessStateError, match="'K' was not opened"):
            await use()
    with pytest.raises(creche.ProcessStateError, match="'K' was not opened"):
        pool.map(targets.add, [1])
    with pytest.raises(creche.ProcessStateError, match="'K' was not opened"):
        pool.statistics()


async def test_use_after_closing() -> None:
    async with open_pool(1, name="K") as pool:
        await pool.run(targets.add, 1)
    for timeout in (None, 0, 1):
        with pytest.raises(creche.ProcessClosedError, match="'K' is closed"):
            await pool.run(targets.add, 1, timeout=timeout)
    with pytest.raises(creche.ProcessClosedError, match="'K' is closed"):
        pool.map(targets.add, [1])
    statistics = pool.statistics()
    assert (statistics.workers_alive, statistics.calls_done) == (0, 1)


async def test_opening_twice() -> None:
    pool = open_pool(1, name="K")
    async with pool:
        with pytest.raises(creche.ProcessStateError, match="'K' was opened before"):
            async with pool:
                pytest.fail("entered")
        assert await pool.run(targets.add, 1) == 1
    with pytest.raises(creche.ProcessStateError, match="'K' was opened before"):
        async with pool:
            pytest.fail("entered")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_use_from_another_event_loop(backend: str) -> None:
    async def use() -> None:
        for timeout in (None, 0, 1):
            with pytest.raises(creche.ProcessStateError, match="another event loop"):
                await pool.run(targets.add, 1, timeout=timeout)
        with pytest.raises(creche.ProcessStateError, match="another event loop"):
            pool.map(targets.add, [1])
        with pytest.raises(creche.ProcessStateError, match="another event loop"):
            await anext(values)

    async with open_pool(1) as pool:
        async with pool.map(targets.add, [1]) as values:
            await anyio.to_thread.run_sync(lambda: anyio.run(use, backend=backend))
            assert await anext(values) == 1
        assert await pool.run(targets.add, 1) == 1


async def test_use_without_an_event_loop() -> None:
    def use() -> None:
        with pytest.raises(creche.ProcessStateError, match="event loop"):
            pool.map(targets.add, [1])

    async with open_pool(1) as pool:
        await anyio.to_thread.run_sync(use)


async def test_use_from_a_fork() -> None:
    async with open_pool(1) as pool:
        pid = await pool.run(os.getpid)
        forked = os.fork()
        if not forked:
            code = 1
            try:
                with pytest.raises(creche.ProcessStateError, match="belongs to the process"):
                    pool.run(targets.add, 1).send(None)
                with pytest.raises(creche.ProcessStateError, match="belongs to the process"):
                    pool.map(targets.add, [1])
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 0
        assert await pool.run(os.getpid) == pid


# --- statistics ---------------------------------------------------------------------------------


async def test_statistics_while_a_worker_starts(announcements: Announcements, gate: Path) -> None:
    setup = (announcements.path, str(gate))
    async with open_pool(1, initializer=targets.wait_for_file, initargs=setup) as pool:
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(pool.run, targets.add, 1)
            pid = await announcements.get_pid()
            statistics = pool.statistics()
            assert (statistics.workers_alive, statistics.workers_starting) == (1, 1)
            assert (statistics.workers_idle, statistics.workers_busy) == (0, 0)
            assert (statistics.calls_queued, statistics.calls_running) == (2, 0)
            (worker,) = statistics.workers
            assert (worker.state, worker.tasks) == ("starting", 0)
            assert worker.pid in (pid, None)  # the child may be faster than who has started it
            gate.touch()
        assert pool.statistics().calls_done == 2


async def test_statistics(announcements: Announcements, gate: Path) -> None:
    def states(statistics: PoolStatistics) -> tuple[int, int, int, int]:
        return (
            statistics.workers_alive,
            statistics.workers_starting,
            statistics.workers_idle,
            statistics.workers_busy,
        )

    def calls(statistics: PoolStatistics) -> tuple[int, int, int, int, int]:
        return (
            statistics.calls_queued,
            statistics.calls_running,
            statistics.calls_done,
            statistics.calls_failed,
            statistics.calls_cancelled,
        )

    async with open_pool(1, name="K") as pool:
        statistics = pool.statistics()
        assert states(statistics) == (0, 0, 0, 0)
        assert calls(statistics) == (0, 0, 0, 0, 0)
        assert (statistics.restarts, statistics.workers) == (0, ())

        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(pool.run, targets.wait_for_file, announcements.path, str(gate))
            pid = await announcements.get_pid()
            statistics = pool.statistics()
            assert states(statistics) == (1, 0, 0, 1)
            assert calls(statistics) == (1, 1, 0, 0, 0)
            (worker,) = statistics.workers
            assert (worker.name, worker.pid, worker.state) == ("K-worker-1", pid, "busy")
            assert (worker.tasks, worker.seconds_busy) == (0, 0.0)
            gate.touch()
            assert await announcements.get_pid() == pid

        statistics = pool.statistics()
        assert states(statistics) == (1, 0, 1, 0)
        assert calls(statistics) == (0, 0, 2, 0, 0)
        (worker,) = statistics.workers
        assert (worker.pid, worker.state, worker.tasks) == (pid, "idle", 2)
        assert worker.seconds_busy > 0

        with pytest.raises(LookupError):
            await pool.run(targets.fail, "oh")
        statistics = pool.statistics()
        assert calls(statistics) == (0, 0, 2, 1, 0)
        assert statistics.workers[0].tasks == 3

        assert [value async for value in pool.map(targets.add, range(10))] == list(range(10))
        assert calls(pool.statistics()) == (0, 0, 12, 1, 0)

        with pytest.raises(creche.ProcessDied):
            await pool.run(os._exit, 3)
        statistics = await until_statistics(pool, lambda s: not s.workers)
        assert calls(statistics) == (0, 0, 12, 2, 0)
        assert statistics.restarts == 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run, targets.wait_for_ever, announcements.path)
            await announcements.get_pid()
            assert pool.statistics().calls_running == 1
            tasks.cancel_scope.cancel()
        statistics = await until_statistics(pool, lambda s: not s.workers)
        assert calls(statistics) == (0, 0, 12, 2, 1)
        assert statistics.restarts == 2
    assert calls(pool.statistics()) == (0, 0, 12, 2, 1)


async def test_statistics_of_a_chunk_that_is_answered_piece_by_piece() -> None:
    async with open_pool(1) as pool:
        async for _ in pool.map(time.sleep, [0.02] * 10, chunksize=10):
            pass
        (worker,) = pool.statistics().workers
        assert worker.seconds_busy >= 10 * 0.02


async def test_statistics_of_ending_workers(announcements: Announcements, gate: Path) -> None:
    finalizer = functools.partial(targets.wait_for_file, announcements.path, str(gate))
    async with open_pool(
        1,
        finalizer=finalizer,
        max_tasks_per_worker=1,
        spares=0,
        stop=StopPolicy(exit_timeout=TIMEOUT),
    ) as pool:
        pid = await pool.run(os.getpid)
        assert await announcements.get_pid() == pid
        statistics = pool.statistics()
        assert statistics.workers_alive == statistics.restarts == 0
        assert [(w.pid, w.state, w.tasks) for w in statistics.workers] == [(pid, "ending", 1)]
        gate.touch()
        await until_statistics(pool, lambda s: not s.workers)


async def test_statistics_of_calls_that_cannot_be_pickled() -> None:
    """They never were in the pool."""
    async with open_pool(1) as pool:
        with pytest.raises(creche.SerializationError):
            await pool.run(lambda: None)
        statistics = pool.statistics()
        assert (statistics.calls_queued, statistics.calls_running) == (0, 0)
        assert statistics.workers == ()


# --- serializers --------------------------------------------------------------------------------


class Reversing:
    """A serializer of the application's own; an object, not a module."""

    def dumps(self, obj: Any) -> bytes:
        return pickle.dumps(obj)[::-1]

    def loads(self, data: bytes) -> Any:
        assert type(data) is bytes
        return pickle.loads(data[::-1])


async def test_cloudpickle(start_method: str) -> None:
    factor = 3

    def multiply(value: int) -> int:
        return factor * value

    def make_adder(left: int) -> Callable[[int], int]:
        return lambda right: left + right

    async def multiply_async(value: int) -> int:
        await anyio.sleep(0)
        return factor * value

    async with open_pool(1, serializer=cloudpickle, start_method=start_method) as pool:
        assert await pool.run(lambda: 1) == 1
        assert await pool.run(multiply, 2) == 6
        assert await pool.run(multiply_async, 2) == 6
        assert (await pool.run(make_adder, 1))(2) == 3  # what comes back is a closure, too
        assert await pool.run(lambda func: func(5), multiply) == 15
        assert [value async for value in pool.map(multiply, range(20))] == list(range(0, 60, 3))
        with pytest.raises(ZeroDivisionError) as caught:
            await pool.run(lambda: 1 // 0)
        assert isinstance(caught.value.__cause__, creche.RemoteTraceback)
        with pytest.raises(creche.SerializationError):
            await pool.run(lambda: targets.lock_if(1, 1))


@pytest.mark.either_backend
@pytest.mark.parametrize("size", [0, 10, 100_000, 3_000_000])
async def test_serializer_of_ones_own(size: int, start_method: str) -> None:
    async with open_pool(1, serializer=Reversing(), start_method=start_method) as pool:
        data = os.urandom(size)
        assert await pool.run(targets.echo, data) == data
        assert [value async for value in pool.map(targets.echo, [data, 1])] == [data, 1]
        with pytest.raises(LookupError, match="oh"):
            await pool.run(targets.fail, "oh")


async def test_serializer_and_initializer() -> None:
    async with open_pool(
        1, serializer=Reversing(), initializer=targets.initialize, initargs=[1]
    ) as pool:
        assert await pool.run(targets.recall) == (1, 1)


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"workers": 0}, ValueError, "workers must be 1 or more, not 0"),
        ({"workers": -1}, ValueError, "workers must be 1 or more, not -1"),
        ({"workers": 1.5}, TypeError, "workers must be an integer, not float"),
        ({"workers": True}, TypeError, "workers must be an integer, not bool"),
        ({"workers": "2"}, TypeError, "workers must be an integer, not str"),
        ({"workers": math.nan}, TypeError, "workers must be an integer"),
        ({"min_workers": -1}, ValueError, "min_workers must be 0 or more"),
        ({"min_workers": 1.0}, TypeError, "min_workers must be an integer"),
        ({"min_workers": None}, TypeError, "min_workers must be an integer"),
        ({"workers": 2, "min_workers": 3}, ValueError, "min_workers is 3.* more than workers, 2"),
        ({"spares": -1}, ValueError, "spares must be 0 or more"),
        ({"spares": True}, TypeError, "spares must be an integer"),
        ({"max_tasks_per_worker": 0}, ValueError, "max_tasks_per_worker must be 1 or more"),
        ({"max_tasks_per_worker": 1.0}, TypeError, "max_tasks_per_worker must be an integer"),
        ({"max_idle": -1}, ValueError, "max_idle must be zero or more seconds"),
        ({"max_idle": math.nan}, ValueError, "max_idle must be zero or more seconds"),
        ({"max_idle": "1"}, TypeError, "max_idle must be a number of seconds"),
        ({"max_idle": None}, TypeError, "max_idle must be a number of seconds"),
        ({"memory_limit": 0}, ValueError, "memory_limit must be 1 or more"),
        ({"memory_limit": -1}, ValueError, "memory_limit must be 1 or more"),
        ({"memory_limit": 1e9}, TypeError, "memory_limit must be an integer"),
        ({"initializer": 1}, TypeError, "initializer must be callable, not int"),
        ({"finalizer": "f"}, TypeError, "finalizer must be callable, not str"),
        ({"initargs": 1}, TypeError, "initargs|iterable"),
        ({"serializer": "pickle"}, TypeError, r"serializer has no dumps\(\)"),
        ({"serializer": len}, TypeError, r"serializer has no dumps\(\)"),
        ({"preload": "numpy"}, TypeError, "preload must be a sequence of names"),
        ({"preload": [1]}, TypeError, "preload must be a sequence of names"),
        ({"preload": 1}, TypeError, "preload must be a sequence of names"),
        ({"stop": 5}, TypeError, "stop must be a StopPolicy"),
        ({"start_method": "teleport"}, ValueError, "teleport"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_bad_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        open_pool(**options)


async def test_options_at_their_edges() -> None:
    async with open_pool(1, min_workers=1, max_idle=math.inf, preload=()) as pool:
        assert await pool.run(targets.add, 1) == 1
    async with open_pool(1, max_idle=0) as pool:
        for _ in range(3):
            assert await pool.run(targets.add, 1) == 1
        await until_statistics(pool, lambda s: not s.workers)


async def test_stop_policy(announcements: Announcements, timeouts: Timeouts) -> None:
    """Without grace, nothing is asked."""

    async def run() -> None:
        with pytest.raises(creche.ProcessTimeout):
            await pool.run(support.clean_up, announcements.path, timeout=2 * TIMEOUT)

    async with open_pool(1, stop=StopPolicy(grace=0)) as pool:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run, support.swallow_stop, announcements.path)
            pid = await announcements.get_pid()
            tasks.cancel_scope.cancel()
        assert support.wait_until_gone(pid, 0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await announcements.get_pid()
            timeouts.strike()
        await pool.run(announce, announcements.path, "after")
        assert await announcements.get() == "after"  # and nothing was cleaned up
