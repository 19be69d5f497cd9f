"""Stopping: politely, by force, and what a child sees of it."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest
import support
import targets
from backends import in_asyncio
from support import TIMEOUT, Announcements, announce

import creche
from creche import AsyncProcess, StopPolicy, StopRequested
from creche._stopping import StoppableChild, Stopper
from creche._watcher import Timer

pytestmark = pytest.mark.anyio

PATIENT = StopPolicy(grace=TIMEOUT)


@pytest.mark.parametrize("duration", ["grace", "exit_timeout", "kill_timeout"])
@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, ValueError), (math.nan, ValueError), ("1", TypeError), (None, TypeError)],
)
def test_bad_policy(duration: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=duration):
        StopPolicy(**{duration: value})


def test_policy() -> None:
    assert StopPolicy(grace=math.inf).group
    with pytest.raises(ValueError, match="must be finite"):
        StopPolicy(kill_timeout=math.inf)
    assert StopPolicy(grace=1) == StopPolicy(grace=1)


# --- in the child -------------------------------------------------------------------------------


def note_what_stops(path: str) -> None:
    """A plain function: what stops it, and whether it can clean up."""
    try:
        announce(path)
        while True:
            pass
    except Exception:
        announce(path, "an Exception")
        raise
    except StopRequested:
        announce(path, "StopRequested")
        raise
    finally:
        time.sleep(0.01)  # cleaning up may wait
        announce(path, "cleaned up")


async def note_what_stops_async(path: str) -> None:
    try:
        announce(path)
        await anyio.sleep_forever()
    except anyio.get_cancelled_exc_class():
        announce(path, "cancelled")
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
        announce(path, "cleaned up")


def finish_nevertheless(path: str) -> str:
    try:
        announce(path)
        time.sleep(TIMEOUT)
    except StopRequested:
        pass
    return "finished"


def fail_in_clean_up(path: str) -> None:
    try:
        announce(path)
        time.sleep(TIMEOUT)
    finally:
        raise LookupError("in clean-up")


def clean_up_for_long(path: str, again: str) -> None:
    """A second request must not interrupt the clean-up."""
    try:
        announce(path)
        time.sleep(TIMEOUT)
    finally:
        announce(path, "cleaning up")
        while not os.path.exists(again):
            time.sleep(0.005)
        announce(path, "cleaned up")


@pytest.mark.parametrize(
    ("target", "reason"),
    [(note_what_stops, "StopRequested"), (note_what_stops_async, "cancelled")],
)
async def test_polite(
    target: Any, reason: str, start_method: str, announcements: Announcements
) -> None:
    process = AsyncProcess(
        target=target, args=(announcements.path,), start_method=start_method, stop=PATIENT
    )
    async with process:
        await announcements.get()
        assert await process.terminate() == -signal.SIGTERM
    assert await announcements.get() == reason
    assert await announcements.get() == "cleaned up"
    with pytest.raises(creche.ProcessDied, match="was killed by SIGTERM"):
        await process


async def test_function_that_finishes_nevertheless(
    start_method: str, announcements: Announcements
) -> None:
    process = AsyncProcess(
        target=finish_nevertheless, args=(announcements.path,), start_method=start_method
    )
    async with process:
        await announcements.get()
        assert await process.terminate() == 0
        assert await process == "finished"


async def test_error_in_clean_up(announcements: Announcements) -> None:
    process = AsyncProcess(target=fail_in_clean_up, args=(announcements.path,))
    async with process:
        await announcements.get()
        assert await process.terminate() == 1
    assert isinstance(process.exception, LookupError)


async def test_second_request(
    start_method: str, announcements: Announcements, tmp_path: Any
) -> None:
    again = tmp_path / "again"
    process = AsyncProcess(
        target=clean_up_for_long,
        args=(announcements.path, str(again)),
        start_method=start_method,
        stop=PATIENT,
    )
    async with process, anyio.create_task_group() as tasks:
        pid = await announcements.get_pid()
        tasks.start_soon(process.terminate)
        assert await announcements.get() == "cleaning up"
        os.kill(pid, signal.SIGTERM)
        again.touch()
        assert await announcements.get() == "cleaned up"
    assert process.exitcode == -signal.SIGTERM


@pytest.mark.parametrize("target", [support.ignore_sigterm, support.swallow_stop])
async def test_by_force(target: Any, start_method: str, announcements: Announcements) -> None:
    process = AsyncProcess(target=target, args=(announcements.path,), start_method=start_method)
    async with process:
        await announcements.get()
        assert await process.terminate(StopPolicy(grace=0.05)) == -signal.SIGKILL


async def test_no_grace(announcements: Announcements) -> None:
    async with AsyncProcess(target=note_what_stops, args=(announcements.path,)) as process:
        await announcements.get()
        assert await process.terminate(StopPolicy(grace=0)) == -signal.SIGKILL


async def test_kill_during_the_grace_period(announcements: Announcements) -> None:
    process = AsyncProcess(
        target=support.ignore_sigterm, args=(announcements.path,), stop=StopPolicy(grace=math.inf)
    )
    async with process, anyio.create_task_group() as tasks:
        await announcements.get()
        tasks.start_soon(process.terminate)
        await anyio.wait_all_tasks_blocked()
        assert await process.kill() == -signal.SIGKILL


async def test_stopped_child(start_method: str, announcements: Announcements) -> None:
    process = AsyncProcess(
        target=targets.wait_for_ever, args=(announcements.path,), start_method=start_method
    )
    async with process:
        os.kill(await announcements.get_pid(), signal.SIGSTOP)
        assert await process.terminate(PATIENT) == -signal.SIGTERM


async def test_cancelling_a_stop_does_not_call_it_off(announcements: Announcements) -> None:
    async with AsyncProcess(target=targets.wait_for_ever, args=(announcements.path,)) as process:
        await announcements.get()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await process.terminate()
        assert not process.is_alive()


async def _in_block(path: str, policy: StopPolicy) -> None:
    async with AsyncProcess(target=support.ignore_sigterm, args=(path,), stop=policy):
        await anyio.sleep_forever()


async def _in_nursery(path: str, policy: StopPolicy) -> None:
    async with creche.open_nursery(stop=policy) as nursery:
        nursery.start_soon(support.ignore_sigterm, path)


async def _in_pool(path: str, policy: StopPolicy) -> None:
    async with creche.open_pool(1, stop=policy) as pool:
        await pool.run(support.ignore_sigterm, path)


async def _in_map(path: str, policy: StopPolicy) -> None:
    async with (
        creche.open_pool(1, stop=policy) as pool,
        pool.map(support.ignore_sigterm, [path]) as values,
    ):
        async for _ in values:
            pass


@in_asyncio
@pytest.mark.parametrize("run", [_in_block, _in_nursery, _in_pool, _in_map])
@pytest.mark.parametrize("times", [2, 5])
async def test_task_that_is_cancelled_again(
    anyio_backend: str, announcements: Announcements, run: Any, times: int
) -> None:
    """asyncio's own cancellation, which no scope shields from."""
    task = asyncio.create_task(run(announcements.path, StopPolicy(grace=0.3)))
    pid = await announcements.get_pid()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0.01)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert support.wait_until_gone(pid, 0)


@pytest.mark.parametrize("group", [True, False])
async def test_process_group(group: bool, announcements: Announcements) -> None:
    process = AsyncProcess(
        target=support.spawn_grandchild_and_wait,
        args=(announcements.path,),
        stop=StopPolicy(group=group),
    )
    async with process:
        grandchild = await announcements.get_pid()
        await process.terminate()
    if group:
        assert support.wait_until_gone(grandchild)
    else:
        os.kill(grandchild, 0)
        os.kill(grandchild, signal.SIGKILL)
        assert support.wait_until_gone(grandchild)


async def test_grandchild_goes_with_a_child_that_ends_well(announcements: Announcements) -> None:
    grandchild = await creche.run_in_process(support.spawn_grandchild, announcements.path)
    assert support.wait_until_gone(grandchild)


async def test_grandchild_with_a_session_of_its_own_stays(announcements: Announcements) -> None:
    call = support.functools.partial(support.spawn_grandchild, new_session=True)
    grandchild = await creche.run_in_process(call, announcements.path)
    os.kill(grandchild, signal.SIGKILL)  # there to be killed
    assert support.wait_until_gone(grandchild)


# --- what SIGKILL does not end ------------------------------------------------------------------


async def test_stuck(announcements: Announcements) -> None:
    """A process in uninterruptible sleep, as far as its parent can tell."""
    process = AsyncProcess(
        target=targets.wait_for_ever,
        args=(announcements.path,),
        stop=StopPolicy(grace=0.01, kill_timeout=0.01),
    )
    await process.start()
    pid = await announcements.get_pid()
    with support.killed_in_vain(process):
        for stop in (process.terminate, process.kill):
            with pytest.raises(creche.ProcessStuckError, match=f"pid {pid}.* after it was sent"):
                await stop()
        assert process.is_alive()
        with anyio.fail_after(TIMEOUT):  # nobody goes on waiting for what it may yet report
            assert [progress async for progress in process.progress] == []
    os.kill(pid, signal.SIGKILL)
    assert await process.join() == -signal.SIGKILL  # reaped whenever it goes


class FakeTarget:
    def __init__(self) -> None:
        self.calls: list[object] = []

    def ask_to_stop(self) -> None:
        self.calls.append("asked")

    def nudge(self) -> None:
        self.calls.append("nudged")

    def kill(self, *, group: bool) -> None:
        self.calls.append(("killed", group))


class FakeWatcher:
    """Timers without time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Timer]] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        self.timers.append((self.now + delay, timer))
        return timer

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [entry for entry in self.timers if entry[0] <= end]:
            first = min(due, key=lambda entry: entry[0])
            self.timers.remove(first)
            self.now, callback = first[0], first[1].callback
            if callback is not None:
                callback()
        self.now = end

    def pending(self) -> list[float]:
        return [due for due, timer in self.timers if timer.callback is not None]


def test_stopper() -> None:
    target, watcher = FakeTarget(), FakeWatcher()
    stopper = Stopper(watcher, target, lambda: target.calls.append("stuck"))  # type: ignore[arg-type]
    stopper.stop(StopPolicy(grace=1000))
    stopper.stop(StopPolicy(grace=2000))  # cannot prolong it
    assert target.calls == ["asked"]
    stopper.stop(StopPolicy(grace=1))  # but shorten
    watcher.advance(0.99)
    assert target.calls == ["asked", "nudged", "nudged", "nudged"]
    watcher.advance(0.01)
    assert target.calls[4:] == [("killed", True)]
    stopper.kill(StopPolicy())
    stopper.stop(StopPolicy())
    watcher.advance(5)
    assert target.calls[4:] == [("killed", True), "stuck"]
    assert watcher.pending() == []


def test_stopper_without_grace() -> None:
    target, watcher = FakeTarget(), FakeWatcher()
    stopper = Stopper(watcher, target, lambda: None)  # type: ignore[arg-type]
    stopper.stop(StopPolicy(grace=0, group=False, kill_timeout=3))
    assert target.calls == [("killed", False)]
    assert watcher.pending() == [3]


def test_stopper_of_a_process_that_goes() -> None:
    target, watcher = FakeTarget(), FakeWatcher()
    stopper = Stopper(watcher, target, lambda: None)  # type: ignore[arg-type]
    stopper.stop(StopPolicy())
    stopper.close()
    watcher.advance(100)
    assert target.calls == ["asked"]


class FailingTarget(FakeTarget):
    """Cannot be signalled."""

    def ask_to_stop(self) -> None:
        super().ask_to_stop()
        raise PermissionError

    def nudge(self) -> None:
        super().nudge()
        raise PermissionError

    def kill(self, *, group: bool) -> None:
        super().kill(group=group)
        raise PermissionError


def test_stopper_goes_on_whatever_becomes_of_its_signals() -> None:
    target, watcher = FailingTarget(), FakeWatcher()
    stopper = Stopper(watcher, target, lambda: target.calls.append("stuck"))  # type: ignore[arg-type]
    with pytest.raises(PermissionError):
        stopper.stop(StopPolicy(grace=0.05, kill_timeout=3))
    with pytest.raises(PermissionError):
        watcher.advance(0.04)
    with pytest.raises(PermissionError):
        watcher.advance(0.04)
    assert target.calls == ["asked", "nudged", ("killed", True)]
    watcher.advance(3)
    assert target.calls[3:] == ["stuck"]
    assert watcher.pending() == []


def test_child_that_may_not_be_signalled() -> None:
    """It has become another user's, say."""
    target, watcher = FailingTarget(), FakeWatcher()
    child = StoppableChild(target, None)
    stopper = Stopper(watcher, child, lambda: target.calls.append("stuck"))  # type: ignore[arg-type]
    stopper.stop(StopPolicy(grace=0.05, kill_timeout=3))
    watcher.advance(5)
    assert target.calls == ["asked", "nudged", ("killed", True), "stuck"]


@pytest.mark.parametrize("how", ["terminate", "kill"])
async def test_no_descriptor_left(how: str, announcements: Announcements) -> None:
    process = AsyncProcess(
        target=targets.wait_for_ever,
        args=(announcements.path,),
        start_method="forkserver",
        stop=PATIENT,
    )
    async with process:
        await announcements.get()
        with anyio.fail_after(TIMEOUT), support.descriptors_left(0):
            exitcode = await getattr(process, how)()
        assert exitcode == -(signal.SIGTERM if how == "terminate" else signal.SIGKILL)


@pytest.mark.parametrize("method", ["creche", "forkserver", "spawn"])
async def test_request_that_strikes_in_a_finalizer(
    announcements: Announcements, method: str
) -> None:
    """The interpreter drops what is raised there; the function hears of the request all the same.

    (Not under ``fork``, where 3.13 takes no notice of the reminder.)
    """
    process = AsyncProcess(
        target=targets.wait_in_finalizer,
        args=(announcements.path,),
        start_method=method,
        stop=StopPolicy(grace=TIMEOUT),
    )
    await process.start()
    assert await announcements.get() == "begun"
    await process.terminate()
    assert await announcements.get() == "unwound"
    assert process.exitcode == -signal.SIGTERM
