"""The supervisor under attack."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
import supervisor_targets as targets
import support
from backends import in_asyncio
from scripts import Program
from supervisor_support import all_events, next_event
from support import TIMEOUT, Announcements

import creche
from creche import (
    Backoff,
    ChildExited,
    ChildReady,
    ChildRestarting,
    ChildStarted,
    ChildState,
    ChildUnhealthy,
    HealthCheck,
    Heartbeat,
    StopPolicy,
    SupervisedChild,
    Supervisor,
    open_supervisor,
)
from creche._life import ProcessLife
from creche._progress_feed import ProgressFeed
from creche._supervisor._lives import ProcessRun

pytestmark = pytest.mark.anyio

AT_ONCE = Backoff(initial=0)
NEVER = Backoff(initial=10 * TIMEOUT, maximum=math.inf, jitter=0, immediate=0)
STRATEGIES = ["one_for_one", "one_for_all", "rest_for_one"]


def send(child: SupervisedChild, number: int) -> None:
    assert child.pid is not None
    os.kill(child.pid, number)


def kill(child: SupervisedChild) -> None:
    send(child, signal.SIGKILL)


async def kill_later(child: SupervisedChild, delay: float) -> None:
    await anyio.sleep(delay)
    kill(child)


async def until_ready(supervisor: Supervisor) -> None:
    """Wait until all children are ready, and nothing is about to change that."""
    engine: Any = supervisor._engine
    with anyio.fail_after(TIMEOUT):
        await engine.changes.wait_until(
            lambda: (
                # The old process of one that was rolled may still be on its way out.
                all(
                    child._is_ready() and len(child._lives) == 1
                    for child in engine.children.values()
                )
                and not any(mender.at_work for mender in engine._menders.values())
            )
        )


# --- a child that hangs -------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["waits", "holds the GIL"])
async def test_heartbeat_stops(then: str) -> None:
    async with open_supervisor(stop=StopPolicy(grace=0.1), intensity=100) as supervisor:
        child = await supervisor.start(targets.beat, 5, then, health=Heartbeat(0.3))
        events = supervisor.events()
        exited = await next_event(events, ChildExited)
        assert isinstance(exited.exception, ChildUnhealthy)
        assert "gave no sign of life by creche.from_process.report() for 0.3" in str(
            exited.exception
        )
        assert not exited.stopped
        await next_event(events, ChildReady)
        assert child.restarts == 1


async def test_heartbeat_of_a_stopped_process(monkeypatch: pytest.MonkeyPatch) -> None:
    within = 0.5
    signs: list[float] = []
    report = ProgressFeed._report

    def report_and_note(feed: ProgressFeed, progress: creche.Progress) -> None:
        report(feed, progress)
        signs.append(feed._latest_at)

    monkeypatch.setattr(ProgressFeed, "_report", report_and_note)
    async with open_supervisor(stop=StopPolicy(grace=0.1), intensity=100) as supervisor:
        events = supervisor.events()
        child = await supervisor.start(targets.beat_for_ever, health=Heartbeat(within))
        with anyio.move_on_after(1.2):
            while True:
                ready = await next_event(events, ChildReady)
                exited = await next_event(events, ChildExited)
                # On a machine that had no time for it. Whoever is blamed has been silent.
                between = [time for time in signs if ready.time < time < exited.time]
                times = [ready.time, *between, exited.time]
                assert max(end - begin for begin, end in pairwise(times)) > within
        await until_ready(supervisor)
        events = supervisor.events()
        send(child, signal.SIGSTOP)
        exited = await next_event(events, ChildExited)
        assert isinstance(exited.exception, ChildUnhealthy)
        await next_event(events, ChildReady)


async def test_blocked_event_loop_blames_nobody() -> None:
    async with open_supervisor() as supervisor:
        child = await supervisor.start(targets.beat_for_ever, health=Heartbeat(0.5))
        for _ in range(2):
            time.sleep(1.2)
            await anyio.sleep(0.02)  # as long as it takes to look; no time for another silence
            assert child.state is ChildState.READY


async def test_who_hangs_is_not_waited_for_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("creche._supervisor._shutdown.DEFAULT_STOP_POLICY", StopPolicy(grace=0.1))
    async with open_supervisor() as supervisor:
        await supervisor.start(
            targets.serve_stubbornly,
            health=Heartbeat(0.1),
            shutdown="wait",
            restart="temporary",
        )
        exited = await next_event(supervisor.events(), ChildExited)
        assert exited.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("false", "failed its health check 2 times in a row: the check returned False"),
        ("raises", "2 times in a row: no answer"),
        ("hangs", "2 times in a row: it took more than 0.05 seconds"),
        ("times out", "2 times in a row: TimeoutError"),
    ],
)
async def test_health_check(failure: str, message: str) -> None:
    checked: list[SupervisedChild] = []

    async def check(child: SupervisedChild) -> bool:
        checked.append(child)
        if len(checked) in (2, 4, 5):  # one that is alone does not count
            if failure == "raises":
                raise LookupError("no answer")
            if failure == "hangs":
                await anyio.sleep_forever()
            return failure != "false"
        return True

    if failure == "times out":

        async def check(child: SupervisedChild) -> bool:
            raise TimeoutError

    async with open_supervisor() as supervisor:
        events = supervisor.events()
        health = HealthCheck(check, interval=0.01, timeout=0.05, failures=2)
        child = await supervisor.start(targets.serve, health=health)
        exited = await next_event(events, ChildExited)
        assert message in str(exited.exception)
        assert exited.exitcode == -signal.SIGTERM
        if failure != "times out":
            assert checked == [child] * 5
            await next_event(events, ChildReady)
            while len(checked) < 8:
                await anyio.sleep(0.01)


@in_asyncio
async def test_health_check_waits_for_what_is_cancelled(anyio_backend: str) -> None:
    cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    checked = anyio.Event()
    checks = 0

    async def check(child: SupervisedChild) -> None:
        nonlocal checks
        checks += 1
        if checks == 1:  # one that is alone does not count
            await cancelled
        elif checks == 2:
            checked.set()
        elif checks > 4:
            await cancelled

    with anyio.fail_after(TIMEOUT):
        async with open_supervisor() as supervisor:
            events = supervisor.events()
            health = HealthCheck(check, interval=0.01, failures=2)
            child = await supervisor.start(targets.serve, health=health)
            await checked.wait()
            assert child.state is ChildState.READY
            exited = await next_event(events, ChildExited)
            assert checks == 6
            assert "failed its health check 2 times in a row: CancelledError" in str(
                exited.exception
            )
            await next_event(events, ChildReady)


@pytest.mark.parametrize("how", ["ends", "is removed"])
async def test_child_goes_while_it_is_checked(how: str) -> None:
    """The check is cancelled, and has not failed."""
    checking = anyio.Event()

    async def check(child: SupervisedChild) -> None:
        checking.set()
        await anyio.sleep_forever()

    with anyio.fail_after(TIMEOUT):
        async with open_supervisor() as supervisor:
            events = supervisor.events()
            health = HealthCheck(check, interval=0, timeout=2 * TIMEOUT, failures=1)
            child = await supervisor.start(targets.serve, health=health, restart="temporary")
            await checking.wait()
            if how == "ends":
                kill(child)
            else:
                await supervisor.remove(child.name)
            exited = await next_event(events, ChildExited)
            expected = creche.ProcessDied if how == "ends" else type(None)
            assert isinstance(exited.exception, expected)


async def test_unhealthy_child_is_not_ready_while_it_is_stopped(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    async def check(child: SupervisedChild) -> bool:
        return False

    async with open_supervisor(intensity=0) as supervisor:
        child = await supervisor.start(
            targets.clean_up_slowly,
            str(gate),
            health=HealthCheck(check, interval=0, failures=1),
            restart="temporary",
            shutdown=StopPolicy(grace=TIMEOUT),
        )
        descriptor = await anyio.to_thread.run_sync(os.open, gate, os.O_WRONLY)
        assert child.state is ChildState.STOPPING
        assert supervisor.statistics().ready == 0
        with pytest.raises(creche.ProcessStateError, match="it is stopping, not ready"):
            await supervisor.roll(child.name)
        os.close(descriptor)
        await supervisor.wait()


async def test_start_timeout_at_a_restart(tmp_path: Path) -> None:
    """A child that does not say that it is ready counts as one that fails."""
    path = tmp_path / "exists"
    path.touch()
    with pytest.raises(ExceptionGroup) as caught:
        async with open_supervisor(intensity=2, period=60, backoff=AT_ONCE) as supervisor:
            child = await supervisor.start(
                targets.start_while_exists, str(path), start_timeout=TIMEOUT
            )
            path.unlink()
            engine: Any = supervisor._engine
            object.__setattr__(engine._specs[child], "start_timeout", 0.1)
            kill(child)
            await supervisor.wait()
    types = [type(failure) for failure in caught.value.exceptions]
    assert types == [creche.ProcessDied, creche.ProcessTimeout, creche.ProcessTimeout]


@pytest.mark.parametrize("start_timeout", [TIMEOUT, None])
async def test_start_fails_between_two_latches(
    start_timeout: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop may hear that there is no process before the watcher has said all of it."""
    heard = threading.Event()
    get_ready, set_all_latches = ProcessRun._get_ready, ProcessLife._set_all_latches

    async def get_ready_and_tell(self: ProcessRun) -> None:
        try:
            await get_ready(self)
        finally:
            heard.set()

    def set_latches_slowly(self: ProcessLife) -> None:
        self.launched.set()
        assert heard.wait(TIMEOUT)
        set_all_latches(self)

    monkeypatch.setattr(ProcessRun, "_get_ready", get_ready_and_tell)
    monkeypatch.setattr(ProcessLife, "_set_all_latches", set_latches_slowly)
    with anyio.fail_after(TIMEOUT):
        async with open_supervisor() as supervisor:
            with pytest.raises(creche.SerializationError, match="the function"):
                await supervisor.start(lambda: None, ready=False, start_timeout=start_timeout)


# --- removed, cancelled, killed at any moment ---------------------------------------------------


async def test_removed_in_its_backoff() -> None:
    async with open_supervisor(backoff=NEVER) as supervisor:
        child = await supervisor.start(targets.serve)
        events = supervisor.events()
        kill(child)
        await next_event(events, ChildRestarting)
        with anyio.fail_after(TIMEOUT):
            await supervisor.remove(child.name)
            await supervisor.wait()
        assert child.state is ChildState.REMOVED
        assert not supervisor.children


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
async def test_siblings_of_who_is_removed_in_its_backoff_come_back(strategy: Any) -> None:
    async with open_supervisor(strategy=strategy) as supervisor:
        first = await supervisor.start(targets.serve, backoff=NEVER, name="first")
        second = await supervisor.start(targets.serve, name="second")
        events = supervisor.events()
        kill(first)
        await next_event(events, ChildRestarting, "second")
        assert second.state is ChildState.WAITING
        await supervisor.remove("first")  # and with it what the other one waits for
        await next_event(events, ChildReady, "second")
        assert list(supervisor.children) == ["second"]


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
async def test_restart_on_demand_ends_the_backoff_of_a_sibling(strategy: Any) -> None:
    async with open_supervisor(strategy=strategy) as supervisor:
        first = await supervisor.start(targets.serve, backoff=NEVER, name="first")
        await supervisor.start(targets.serve, name="second")
        events = supervisor.events()
        kill(first)
        await next_event(events, ChildRestarting, "second")
        with anyio.fail_after(TIMEOUT):
            await supervisor.restart("second")
        await until_ready(supervisor)


async def test_removed_while_it_starts(announcements: Announcements) -> None:
    async with open_supervisor() as supervisor:
        with pytest.raises(creche.ProcessStateError, match="is not started: it was removed"):
            async with _own_task_group() as tasks:
                tasks.start_soon(
                    lambda: supervisor.start(
                        targets.never_ready, announcements.path, name="x", start_timeout=None
                    )
                )
                pid = await announcements.get_pid()
                with anyio.CancelScope(shield=True):
                    await supervisor.remove("x")
                assert support.wait_until_gone(pid, 0)
        assert not supervisor.children


class _own_task_group:
    """A task group that raises the one exception that is in its group."""

    async def __aenter__(self) -> anyio.abc.TaskGroup:
        self._tasks = anyio.create_task_group()
        return await self._tasks.__aenter__()

    async def __aexit__(self, *error: Any) -> Any:
        try:
            return await self._tasks.__aexit__(*error)
        except BaseExceptionGroup as group:
            (only,) = group.exceptions
            raise only from None


@pytest.mark.parametrize("how", ["fails", "cancelled"])
async def test_waiting_for_all_while_a_start_comes_to_nothing(
    how: str, announcements: Announcements
) -> None:
    async with open_supervisor() as supervisor, anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def start() -> None:
            with scope, contextlib.suppress(LookupError):
                if how == "fails":
                    await supervisor.start(targets.fail_at_start)
                await supervisor.start(targets.never_ready, announcements.path)

        tasks.start_soon(start)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(supervisor.wait)  # while there is a child that may become one
        if how == "cancelled":
            await announcements.get()
            scope.cancel()


async def test_restart_of_who_ends_as_soon_as_it_is_ready(tmp_path: Path) -> None:
    """Whoever waits for that hears that it was ready, although it is not any more."""
    for _ in range(8):  # Trio wakes tasks in any order
        async with open_supervisor() as supervisor:
            child = await supervisor.start(
                targets.end_in_order, str(tmp_path / "log"), "returns", restart="transient"
            )
            await supervisor.wait()
            before = child._life
            with anyio.fail_after(TIMEOUT):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(supervisor.restart, child.name)
                    while child._life is before:
                        await anyio.lowlevel.checkpoint()
                    assert child.process is not None
                    # Both events come at once to an event loop that is blocked meanwhile.
                    assert child.process._handle.gone.wait_in_thread(TIMEOUT)


@pytest.mark.parametrize("restart", ["transient", "temporary"])
@pytest.mark.parametrize("new", ["serves", "fails"])
async def test_old_process_ends_in_order_while_it_is_rolled(
    restart: Any, new: str, announcements: Announcements, tmp_path: Path
) -> None:
    """The new one takes its place all the same."""
    gate, old_gate = tmp_path / "gate", tmp_path / "old gate"
    os.mkfifo(gate)
    os.mkfifo(old_gate)
    async with open_supervisor() as supervisor:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, gate.write_text, "go")
            await supervisor.start(
                _serve_between, str(gate), str(old_gate), restart=restart, name="child"
            )
        child = supervisor.children["child"]
        events = supervisor.events()
        errors: list[BaseException] = []

        async def roll() -> None:
            try:
                await supervisor.roll("child")
            except LookupError as error:
                errors.append(error)

        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(roll)
                started = await next_event(events, ChildStarted)
                await anyio.to_thread.run_sync(old_gate.write_text, "end")
                await next_event(events, ChildExited)
                await anyio.to_thread.run_sync(gate.write_text, "go" if new == "serves" else "fail")
        if new == "serves":
            assert (child.state, child.pid, child.restarts) == (ChildState.READY, started.pid, 1)
        else:
            assert len(errors) == 1
            expected = ChildState.REMOVED if restart == "temporary" else ChildState.ENDED
            assert child.state is expected
        assert (child.name in supervisor.children) is (child.state is not ChildState.REMOVED)


def _serve_between(gate: str, old_gate: str) -> None:
    """Be ready when something is written to one FIFO, and end when it is to the other."""
    if Path(gate).read_text() == "fail":
        raise LookupError("told to")
    creche.from_process.started()
    Path(old_gate).read_text()


async def test_new_process_dies_while_the_old_one_drains(tmp_path: Path) -> None:
    """Nobody else serves: it is replaced at once, however long the old one takes to its end."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with open_supervisor() as supervisor:
        child = await supervisor.start(targets.clean_up_slowly, str(gate), shutdown="wait")
        async with anyio.create_task_group() as tasks:
            events = supervisor.events()
            tasks.start_soon(supervisor.roll, child.name)
            new = await next_event(events, ChildReady)
            # It has the other end open until it may end.
            descriptor = await anyio.to_thread.run_sync(os.open, gate, os.O_WRONLY)
            kill(child)
            exited = await next_event(events, ChildExited)
            assert exited.pid == new.pid
            replaced = await next_event(events, ChildReady)
            assert child.pid == replaced.pid
            os.close(descriptor)
        gate.unlink()
        gate.touch()  # nothing holds up the next one


@pytest.mark.parametrize("method", ["restart", "roll"])
async def test_removed_while_it_is_replaced(method: str, tmp_path: Path) -> None:
    path = tmp_path / "exists"
    path.touch()
    async with open_supervisor() as supervisor:
        child = await supervisor.start(targets.start_while_exists, str(path))
        path.unlink()
        events = supervisor.events()
        with pytest.raises(creche.ProcessStateError):
            async with _own_task_group() as tasks:
                tasks.start_soon(getattr(supervisor, method), child.name)
                await next_event(events, ChildStarted)
                with anyio.CancelScope(shield=True):
                    await supervisor.remove(child.name)
        assert not child._lives
        assert child.state is ChildState.REMOVED


@pytest.mark.parametrize("method", ["start", "restart", "roll"])
async def test_closed_meanwhile(method: str, announcements: Announcements, tmp_path: Path) -> None:
    """Who waits in another task hears of it."""
    path = tmp_path / "exists"
    path.touch()
    with pytest.raises(creche.ProcessStateError):
        async with _own_task_group() as tasks, open_supervisor() as supervisor:
            child = await supervisor.start(targets.start_while_exists, str(path))
            path.unlink()
            if method == "start":
                tasks.start_soon(supervisor.start, targets.never_ready, announcements.path)
                await announcements.get()
            else:
                events = supervisor.events()
                tasks.start_soon(getattr(supervisor, method), child.name)
                await next_event(events, ChildStarted)


async def test_sibling_fails_while_one_starts(announcements: Announcements) -> None:
    """The one that starts is started again after it, and whoever waits for it goes on waiting."""
    async with open_supervisor(strategy="one_for_all") as supervisor:
        first = await supervisor.start(targets.serve, name="first")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                lambda: supervisor.start(targets.never_ready, announcements.path, name="second")
            )
            await announcements.get()
            events = supervisor.events()
            kill(first)
            await next_event(events, ChildReady, "first")
            started = await next_event(events, ChildStarted, "second")
            pid = await announcements.get_pid()
            assert supervisor.children["second"].pid == started.pid == pid
            tasks.cancel_scope.cancel()
        assert support.wait_until_gone(pid, 0)
        assert dict(supervisor.children) == {"first": first}


async def test_old_process_dies_while_it_is_rolled(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with open_supervisor(backoff=NEVER) as supervisor:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, gate.write_text, "go")
            child = await supervisor.start(_ready_when_told, str(gate), name="child")
        events = supervisor.events()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervisor.roll, "child")
            started = await next_event(events, ChildStarted)
            kill(child)
            await next_event(events, ChildExited)
            await anyio.to_thread.run_sync(gate.write_text, "go")
        await until_ready(supervisor)
        assert child.pid == started.pid
        assert child.restarts == 1


def _ready_when_told(gate: str) -> None:
    Path(gate).read_text()
    targets.serve()


OPERATIONS: dict[str, Callable[[Supervisor, SupervisedChild], Awaitable[object]]] = {
    "start": lambda supervisor, child: supervisor.start(targets.serve, name="another"),
    "start_supervisor": lambda supervisor, child: supervisor.start_supervisor(
        targets.set_up_two, name="nested"
    ),
    "restart": lambda supervisor, child: supervisor.restart(child.name),
    "roll": lambda supervisor, child: supervisor.roll(child.name),
    "remove": lambda supervisor, child: supervisor.remove(child.name),
    "a death": lambda supervisor, child: _kill_and_wait(supervisor, child),
}


async def _kill_and_wait(supervisor: Supervisor, child: SupervisedChild) -> None:
    kill(child)
    await anyio.sleep_forever()


def moments() -> Iterator[float]:
    """Delays after which to strike: dense at first, and up to when everything is done."""
    yield from (0.0, 0.0005, 0.001, 0.002, 0.004, 0.007, 0.012, 0.02)


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "a death"])
async def test_operation_is_cancelled_at_any_moment(operation: str) -> None:
    """The supervisor is whole afterwards, and the children are as they were, or as they were to
    be."""
    async with open_supervisor(strategy="rest_for_one", intensity=0) as supervisor:
        other = await supervisor.start(targets.serve, name="other")
        for delay in moments():
            if "child" not in supervisor.children:
                await supervisor.start(targets.serve, name="child")
            child = supervisor.children["child"]
            with anyio.move_on_after(delay) as scope:
                await OPERATIONS[operation](supervisor, child)
            if operation.startswith("start") and scope.cancelled_caught:
                assert list(supervisor.children) == ["other", "child"]
            for name in ("another", "nested"):
                if name in supervisor.children:
                    await supervisor.remove(name)
            if operation == "remove":
                while "child" in supervisor.children:  # that was not called off
                    await anyio.sleep(0.001)
            else:
                await until_ready(supervisor)
            assert other.state is ChildState.READY
            assert other.restarts == 0


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_block_is_left_at_any_moment(operation: str) -> None:
    for number, delay in enumerate(moments()):
        how = ["cancelled", "left"][number % 2]
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:
                async with open_supervisor() as supervisor:
                    events = supervisor.events()
                    child = await supervisor.start(targets.serve)
                    await supervisor.start(targets.serve)

                    async def operate(supervisor: Supervisor, child: SupervisedChild) -> None:
                        try:
                            await OPERATIONS[operation](supervisor, child)
                        except creche.ProcessStateError:
                            assert supervisor._engine is not None
                            assert supervisor._engine.closing

                    tasks.start_soon(operate, supervisor, child)
                    await anyio.sleep(delay)
                    if how == "cancelled":
                        scope.cancel()
            for event in await all_events(events):
                pid = getattr(event, "pid", None)
                assert pid is None or support.wait_until_gone(pid, 0)
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
async def test_block_is_left_between_two_restarts(strategy: Any) -> None:
    """In the moment in which the first one is ready, and the next one would be started."""
    for _ in range(4):  # Trio wakes tasks in any order
        async with open_supervisor(strategy=strategy) as supervisor:
            children = [await supervisor.start(targets.serve, name=name) for name in "ab"]
            events = supervisor.events()
            kill(children[0])
            await next_event(events, ChildReady, "a")
        assert not any(child._lives for child in children)


async def test_giving_up_at_any_moment() -> None:
    for delay in moments():
        with pytest.raises(ExceptionGroup) as caught:
            async with open_supervisor(intensity=0) as supervisor:
                events = supervisor.events()
                child = await supervisor.start(targets.serve)

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(kill_later, child, delay)
                    while True:
                        await supervisor.start(targets.serve)
        assert caught.group_contains(creche.ProcessDied, depth=1)
        for event in await all_events(events):
            pid = getattr(event, "pid", None)
            assert pid is None or support.wait_until_gone(pid, 0)


@in_asyncio
async def test_task_is_cancelled_twice(anyio_backend: str, announcements: Announcements) -> None:
    """asyncio's own cancellation, which no scope shields from: all are stopped at once then."""
    children: list[SupervisedChild] = []

    async def run() -> None:
        async with open_supervisor(stop=StopPolicy(grace=0.3)) as supervisor:
            children.append(await supervisor.start(targets.serve_stubbornly))
            children.append(await supervisor.start(targets.serve_stubbornly))
            support.announce(announcements.path)
            await anyio.sleep_forever()

    task = asyncio.create_task(run())
    await announcements.get()
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0.05)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [child.state for child in children] == [ChildState.ENDED] * 2


# --- failures that nobody waits for ---------------------------------------------------------------


class OfItsOwn(BaseException):
    """No Exception, and nothing that would stop an event loop."""


def _fail_with_base_exception() -> None:
    creche.from_process.started()
    raise OfItsOwn


async def test_failure_that_has_no_text() -> None:
    """It is logged all the same, and the supervisor does not fail of that."""
    async with open_supervisor() as supervisor:
        events = supervisor.events()
        await supervisor.start(
            support.started_then, support.raise_type, support.Unprintable, restart="temporary"
        )
        exited = await next_event(events, ChildExited)
        assert isinstance(exited.exception, support.Unprintable)
        await supervisor.wait()


async def _set_up_who_fails(supervisor: Supervisor) -> None:
    await supervisor.start(_fail_with_base_exception)


async def test_nested_gives_up_because_of_a_base_exception() -> None:
    """That is a failure of one child, and not the end of all that it is nested in."""
    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_supervisor(intensity=1, backoff=AT_ONCE) as supervisor:
            events = supervisor.events()
            await supervisor.start_supervisor(_set_up_who_fails, name="inner", intensity=0)
            await supervisor.wait()
    assert len(caught.value.exceptions) == 2
    assert caught.group_contains(OfItsOwn, depth=2)
    exited = await next_event(events, ChildExited, "inner")
    assert isinstance(exited.exception, BaseExceptionGroup)


async def _set_up_and_cancel(supervisor: Supervisor) -> None:
    await supervisor.start(targets.serve, name="child")
    supervisor.cancel_scope.cancel()
    await anyio.sleep_forever()


async def test_nested_is_cancelled_before_it_is_set_up() -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_supervisor() as supervisor:
            events = supervisor.events()
            with pytest.raises(creche.ProcessStartError, match="'inner' was cancelled before"):
                await supervisor.start_supervisor(_set_up_and_cancel, name="inner")
            exited = await next_event(events, ChildExited, "inner")
            assert isinstance(exited.exception, creche.ProcessStartError)
            assert not supervisor.children
            assert await supervisor.start(targets.serve)  # nobody is in its way


async def test_nested_is_cancelled_before_it_is_set_up_again() -> None:
    set_ups = 0

    async def set_up(supervisor: Supervisor) -> None:
        nonlocal set_ups
        set_ups += 1
        if set_ups == 2:
            await _set_up_and_cancel(supervisor)

    with anyio.fail_after(TIMEOUT):
        async with open_supervisor(backoff=AT_ONCE) as supervisor:
            await supervisor.start_supervisor(set_up, name="inner")
            events = supervisor.events()
            with pytest.raises(creche.ProcessStartError, match="'inner' was cancelled before"):
                await supervisor.restart("inner")
            await next_event(events, ChildReady, "inner")  # that was a failure, as any other
            assert supervisor.statistics().restarts == 1


def _fail_when_stopped() -> None:
    try:
        targets.serve()
    finally:
        raise LookupError("while it cleaned up")


async def test_clean_up_fails(caplog: pytest.LogCaptureFixture) -> None:
    async with open_supervisor(intensity=0) as supervisor:
        events = supervisor.events()
        child = await supervisor.start(_fail_when_stopped, name="child")
        await supervisor.remove("child")
    exited = await next_event(events, ChildExited)
    assert exited.stopped
    assert isinstance(exited.exception, LookupError)
    (record,) = caplog.records
    assert f"child 'child' (pid {child.pid}) was stopped, and failed at that" in record.message
    assert record.exc_info is not None


async def test_stuck() -> None:
    """A process in uninterruptible sleep, as far as its parent can tell."""
    policy = StopPolicy(grace=0.01, kill_timeout=0.01)
    async with open_supervisor(stop=policy) as supervisor:
        events = supervisor.events()
        child = await supervisor.start(targets.serve_stubbornly, name="child")
        process = child.process
        assert process is not None
        with support.killed_in_vain(process):
            await supervisor.remove("child")
            exited = await next_event(events, ChildExited)
        assert process.is_alive()
        assert isinstance(exited.exception, creche.ProcessStuckError)
        kill(child)
        await process.join()


async def test_stuck_while_it_starts(announcements: Announcements) -> None:
    policy = StopPolicy(grace=0.01, kill_timeout=0.01)
    async with open_supervisor(stop=policy) as supervisor, anyio.create_task_group() as tasks:
        events = supervisor.events()

        async def start() -> None:
            with pytest.raises(creche.ProcessStateError, match="it was removed"):
                await supervisor.start(
                    targets.never_ready, announcements.path, name="child", start_timeout=None
                )

        tasks.start_soon(start)
        await next_event(events, ChildStarted)
        await announcements.get()
        child = supervisor.children["child"]
        process = child.process
        assert process is not None
        try:
            with support.killed_in_vain(process), anyio.fail_after(TIMEOUT):
                await supervisor.remove("child")
            exited = await next_event(events, ChildExited)
            assert process.is_alive()
            assert isinstance(exited.exception, creche.ProcessStuckError)
        finally:
            kill(child)
        await process.join()


# --- chaos --------------------------------------------------------------------------------------


async def cause_chaos(strategy: Any, seconds: float) -> None:
    """Do anything to anybody at random; in the end all is as it should be."""
    chance = random.Random(4711)
    options: Any = {"intensity": 10**6, "backoff": Backoff(initial=0.001, maximum=0.01)}
    async with open_supervisor(
        strategy=strategy, stop=StopPolicy(grace=0.2), **options
    ) as supervisor:
        names = [f"child-{number}" for number in range(5)]
        for name in names:
            await supervisor.start(targets.serve, name, name=name)

        async def strike() -> None:
            name = chance.choice(names)
            child = supervisor.children.get(name)
            what = chance.choice(["kill"] * 4 + ["stop", "restart", "roll", "replace", "cancel"])
            try:
                if what == "kill" and child is not None and child.state is ChildState.READY:
                    kill(child)
                elif what == "stop" and child is not None and child.state is ChildState.READY:
                    send(child, signal.SIGSTOP)
                    await supervisor.restart(name)
                elif what in ("restart", "roll"):
                    await getattr(supervisor, what)(name)
                elif what == "replace":
                    await supervisor.remove(name)
                    await supervisor.start(targets.serve, name, name=name)
                elif what == "cancel":
                    with anyio.move_on_after(chance.random() / 100):
                        await supervisor.roll(name)
            except (creche.ProcessError, ProcessLookupError):
                pass  # somebody else was at it, too

        async with anyio.create_task_group() as tasks:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                tasks.start_soon(strike)
                await anyio.sleep(chance.random() / 50)
        for name in names:
            if name not in supervisor.children:
                await supervisor.start(targets.serve, name, name=name)
        await until_ready(supervisor)
        assert {child.ready_value for child in supervisor.children.values()} == set(names)
        assert all(len(child._lives) == 1 for child in supervisor.children.values())
        pids = [child.pid for child in supervisor.children.values()]
    assert all(pid is not None and support.wait_until_gone(pid, 0) for pid in pids)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_chaos(strategy: Any) -> None:
    await cause_chaos(strategy, 1.0)


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_long_chaos(strategy: Any) -> None:
    await cause_chaos(strategy, 60.0)


async def test_many_restarts_leave_nothing() -> None:
    """What is left of threads, descriptors and zombies is counted after each test."""
    async with open_supervisor(intensity=10**6, backoff=AT_ONCE) as supervisor:
        child = await supervisor.start(targets.serve)
        events = supervisor.events()
        before = len(list(support.open_descriptors()))
        for _ in range(50):
            kill(child)
            await next_event(events, ChildReady)
        await support.until(lambda: len(list(support.open_descriptors())) <= before + 2)
        assert child.restarts == 50


@pytest.mark.parametrize("number", [30, pytest.param(500, marks=pytest.mark.chaos)])
async def test_many_children(number: int) -> None:
    threads = threading.active_count()
    async with open_supervisor(start_method="creche") as supervisor:
        for _ in range(number):
            await supervisor.start(targets.serve, shutdown="kill")
        assert threading.active_count() <= threads + 5
        events = supervisor.events()
        victims = random.sample(list(supervisor.children.values()), 3)
        for child in victims:
            kill(child)
        for _ in victims:
            await next_event(events, ChildReady)
        assert supervisor.statistics().ready == number


# --- the end of the parent ----------------------------------------------------------------------

MAIN = """
    import sys
    import anyio
    import supervisor_targets as targets
    import support
    from creche import open_supervisor

    async def main(path, number):
        try:
            async with open_supervisor() as supervisor:
                for _ in range(number):
                    await supervisor.start(targets.serve)
                support.announce(path)
                await supervisor.wait()
        finally:
            support.announce(path, "left")

    if __name__ == "__main__":
        anyio.run(main, sys.argv[1], int(sys.argv[2]), backend=sys.argv[3])
"""


@pytest.fixture
def program_announcements(program: Program) -> Iterator[Announcements]:
    fifo = Announcements(program.folder / "announcements")
    yield fifo
    fifo.close()


def test_parent_is_killed(
    program: Program, program_announcements: Announcements, anyio_backend: str
) -> None:
    main = program.write(MAIN)
    with program.running(main, program_announcements.path, 50, anyio_backend) as parent:
        assert program_announcements.get_blocking() == str(parent.pid)
        assert len(program.processes()) > 50
        parent.kill()
        assert program.wait_until_gone(10) == set()


def test_parent_is_interrupted(
    program: Program, program_announcements: Announcements, anyio_backend: str
) -> None:
    """Ctrl-C."""
    main = program.write(MAIN)
    with program.running(main, program_announcements.path, 3, anyio_backend) as parent:
        assert program_announcements.get_blocking() == str(parent.pid)
        parent.send_signal(signal.SIGINT)
        assert program_announcements.get_blocking() == "left"
        assert parent.wait(TIMEOUT) != 0
        assert program.wait_until_gone(10) == set()
    assert "KeyboardInterrupt\n" in program.output()
