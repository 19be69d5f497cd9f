"""run_in_process and in_process: one call in a process of its own."""

from __future__ import annotations

import inspect
import math
import os
import pickle
import threading
from typing import Any

import anyio
import numpy as np
import pytest
import support
import targets
from support import TIMEOUT, Announcements

import creche
from creche import run_in_process
from creche._handle import ProcessHandle
from creche._lifecycle import Event

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024


async def test_value(start_method: str) -> None:
    assert await run_in_process(targets.add, 1, 2, start_method=start_method) == 3


async def test_error(start_method: str) -> None:
    with pytest.raises(LookupError, match="oh") as caught:
        await run_in_process(targets.fail, "oh", start_method=start_method)
    assert isinstance(caught.value.__cause__, creche.RemoteTraceback)


async def test_async_function_runs_under_the_backend_of_the_parent(
    anyio_backend_name: str, start_method: str
) -> None:
    used = await run_in_process(targets.backend_in_use, start_method=start_method)
    assert used == anyio_backend_name
    with pytest.raises(LookupError, match="oh"):
        await run_in_process(targets.fail_async, "oh", start_method=start_method)


async def test_fresh_process_each_time() -> None:
    pids = [await run_in_process(os.getpid) for _ in range(3)]
    assert len({os.getpid(), *pids}) == 4


async def test_names() -> None:
    assert (await run_in_process(targets.describe_self))["name"].startswith("describe_self-")
    assert (await run_in_process(targets.describe_self, name="K."))["name"] == "K."


@pytest.mark.parametrize("timeout", [None, 60, math.inf])
async def test_timeout_that_does_not_run_out(timeout: float | None) -> None:
    assert await run_in_process(targets.add, 1, timeout=timeout) == 1


async def test_timeout(start_method: str, announcements: Announcements) -> None:
    with pytest.raises(creche.ProcessTimeout, match=r"its timeout of 0\.5 seconds") as caught:
        await run_in_process(
            targets.wait_for_ever, announcements.path, timeout=0.5, start_method=start_method
        )
    assert isinstance(caught.value, TimeoutError)


async def test_timeout_of_zero(announcements: Announcements) -> None:
    with pytest.raises(creche.ProcessTimeout, match="timeout of 0 seconds"):
        await run_in_process(targets.wait_for_ever, announcements.path, timeout=0)


@pytest.mark.parametrize(
    ("timeout", "error"),
    [(-1, ValueError), (-math.inf, ValueError), (math.nan, ValueError), ("1", TypeError)],
)
async def test_bad_timeout(timeout: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="timeout must be"):
        await run_in_process(targets.add, 1, timeout=timeout)
    with pytest.raises(error, match="timeout must be"):
        creche.in_process(timeout=timeout)


async def test_cancelled_before(announcements: Announcements) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_in_process(targets.wait_for_ever, announcements.path)
    assert scope.cancelled_caught


@pytest.mark.parametrize("target", [targets.wait_for_ever, targets.wait_for_ever_async])
async def test_cancelled_while_running(
    target: Any, start_method: str, announcements: Announcements
) -> None:
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await run_in_process(target, announcements.path, start_method=start_method)

        tasks.start_soon(run)
        pid = await announcements.get_pid()
        tasks.cancel_scope.cancel()
    assert support.wait_until_gone(pid, 0)


# --- the limiter --------------------------------------------------------------------------------


async def test_default_limiter() -> None:
    limiter = creche.current_default_run_limiter()
    assert limiter is creche.current_default_run_limiter()
    assert limiter.total_tokens == len(os.sched_getaffinity(0))


def test_default_limiter_is_one_a_loop(anyio_backend_name: str) -> None:
    async def get() -> anyio.CapacityLimiter:
        return creche.current_default_run_limiter()

    first = anyio.run(get, backend=anyio_backend_name)
    assert first is not anyio.run(get, backend=anyio_backend_name)


async def test_limiter_bounds_processes(announcements: Announcements) -> None:
    limiter = anyio.CapacityLimiter(2)

    async def run() -> None:
        await run_in_process(targets.wait_for_ever, announcements.path, limiter=limiter)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(run)
        await announcements.get()
        await announcements.get()
        await anyio.wait_all_tasks_blocked()
        statistics = limiter.statistics()
        assert (statistics.borrowed_tokens, statistics.tasks_waiting) == (2, 18)
        tasks.cancel_scope.cancel()
    assert limiter.statistics().borrowed_tokens == 0


async def test_cancelled_while_waiting_for_the_limiter() -> None:
    limiter = anyio.CapacityLimiter(1)
    async with limiter:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: run_in_process(targets.add, 1, limiter=limiter))
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
    assert await run_in_process(targets.add, 1, limiter=limiter) == 1


# --- large data ---------------------------------------------------------------------------------


async def test_large_bytes_both_ways(start_method: str) -> None:
    data = os.urandom(MIB) * 32
    assert await run_in_process(targets.echo, data, start_method=start_method) == data


async def test_large_data_within_other_data() -> None:
    data = {"bytes": b"a" * 3 * MIB, "text": "ä" * MIB, "more": [bytearray(b"b" * 2 * MIB), 1]}
    assert await run_in_process(targets.echo, data) == data


@pytest.mark.parametrize("size", [0, 1, 100, MIB])
async def test_arrays(size: int) -> None:
    array = np.arange(size)
    result = await run_in_process(targets.double_array, array)
    assert np.array_equal(result, array * 2)
    if size:
        result[0] = 7  # writable here as well
        assert array[0] == 0


unpickling, loop_turned = threading.Event(), threading.Event()


def unpickle_while_the_loop_turns() -> None:
    """In the parent: what is unpickled after the large part of the result."""
    unpickling.set()
    assert loop_turned.wait(TIMEOUT)


def large_result(size: int) -> list[Any]:
    return [bytes(size), support.LeavesOnUnpickling(unpickle_while_the_loop_turns)]


async def test_loop_turns_while_a_large_result_arrives() -> None:
    """It arrives only when the loop has turned meanwhile."""
    unpickling.clear()
    loop_turned.clear()

    async def turn() -> None:
        await support.until(unpickling.is_set)
        for _ in range(10):
            await anyio.sleep(0)
        loop_turned.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(turn)
        data, _ = await run_in_process(large_result, 64 * MIB)
    assert len(data) == 64 * MIB


# --- the decorator ------------------------------------------------------------------------------


async def test_decorator() -> None:
    assert await targets.decorated(1) == 2
    assert await targets.decorated(1, right=5) == 6
    value, pid = await targets.decorated_async(3)
    assert value == 3
    assert pid != os.getpid()


def test_decorated_function_looks_like_the_original() -> None:
    assert targets.decorated.__name__ == "decorated"
    assert targets.decorated.__doc__ == "Add in a process."
    assert inspect.iscoroutinefunction(targets.decorated)
    assert targets.decorated.__wrapped__(1, right=1) == 2  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(targets.decorated)) is targets.decorated


async def test_decorated_function_within_a_child() -> None:
    assert await run_in_process(targets.decorated, 1) == 2


class Struck(BaseException):
    """As a KeyboardInterrupt, which Trio raises wherever the main thread is just then."""


async def test_interrupted_when_it_has_just_begun_to_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    advance = ProcessHandle._advance

    def advance_and_strike(handle: ProcessHandle, event: Event) -> None:
        advance(handle, event)
        if event is Event.START:
            raise Struck

    monkeypatch.setattr(ProcessHandle, "_advance", advance_and_strike)
    with pytest.raises(Struck):
        await run_in_process(support.double, 1)
