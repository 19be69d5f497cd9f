"""The supervisor: what it does when nobody attacks it."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import supervisor_targets as targets
import support
from log_collector import Collector
from supervisor_support import all_events, brief, next_event
from support import TIMEOUT, Announcements

import creche
from creche import (
    Backoff,
    ChildEnded,
    ChildExited,
    ChildReady,
    ChildRestarting,
    ChildStarted,
    ChildState,
    StopPolicy,
    SupervisedChild,
    Supervisor,
    SupervisorGaveUp,
    create_channel,
    open_supervisor,
)

pytestmark = pytest.mark.anyio

AT_ONCE = Backoff(initial=0)


def kill(child: SupervisedChild) -> int:
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    return child.pid


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


# --- starting and stopping ----------------------------------------------------------------------


async def test_start(start_method: str) -> None:
    async with open_supervisor(start_method=start_method) as supervisor:
        plain = await supervisor.start(targets.serve, 1)
        other = await supervisor.start(targets.serve_async, 2, name="other")
        assert list(supervisor.children.items()) == [("serve-1", plain), ("other", other)]
        assert (plain.ready_value, other.ready_value) == (1, 2)
        assert plain.state is other.state is ChildState.READY
        assert plain.process is not None
        assert plain.process.pid == plain.pid
        assert plain.uptime > 0
        assert plain.restart == "permanent"
        assert plain.supervisor is None
    assert plain.state is ChildState.ENDED
    assert plain.uptime == 0
    assert plain.process.exitcode == -signal.SIGTERM
    with pytest.raises(creche.ProcessStateError, match="child 'serve-1' is not ready: it is ended"):
        plain.ready_value  # noqa: B018


async def test_child_is_started_again(start_method: str) -> None:
    async with open_supervisor(start_method=start_method) as supervisor:
        child = await supervisor.start(targets.serve, "here")
        events = supervisor.events()
        pid = kill(child)
        exited = await next_event(events, ChildExited)
        assert (exited.pid, exited.exitcode, exited.stopped) == (pid, -signal.SIGKILL, False)
        assert isinstance(exited.exception, creche.ProcessDied)
        restarting = await next_event(events, ChildRestarting)
        assert (restarting.delay, restarting.attempt) == (0, 1)
        assert restarting.exception is exited.exception
        started = await next_event(events, ChildStarted)
        ready = await next_event(events, ChildReady)
        assert started.pid == ready.pid == child.pid != pid
        assert child.ready_value == "here"
        assert child.restarts == 1
        assert supervisor.children == {child.name: child}


async def test_order(tmp_path: Path) -> None:
    """Started in order, stopped in the reverse one, whatever started them."""
    log = tmp_path / "log"
    async with open_supervisor() as supervisor, anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(lambda name=name: start_noting(supervisor, log, name))
            await anyio.wait_all_tasks_blocked()
    assert lines(log) == ["+a", "+b", "+c", "-c", "-b", "-a"]


async def start_noting(supervisor: Supervisor, log: Path, name: str) -> SupervisedChild:
    return await supervisor.start(targets.serve_and_note, str(log), name, name=name)


@pytest.mark.parametrize("why", ["block", "cancelled", "gives up", "restart"])
async def test_stopping_together(why: str, tmp_path: Path) -> None:
    """All are asked before the first one is gone, those of a nested supervisor as well."""
    gates = [str(tmp_path / name) for name in ("a", "b", "c", "d")]
    for gate in gates:
        os.mkfifo(gate)

    async def set_up(nested: Supervisor) -> None:
        for gate in gates[2:]:
            await nested.start(targets.clean_up_slowly, gate)

    async def open_all() -> None:
        descriptors = [  # each when its child has begun to clean up
            await anyio.to_thread.run_sync(os.open, gate, os.O_WRONLY) for gate in gates
        ]
        for descriptor in descriptors:
            os.close(descriptor)

    strategy: Any = "one_for_all" if why == "restart" else "one_for_one"
    options: Any = {"stop": StopPolicy(grace=TIMEOUT), "stop_order": "together"}
    async with anyio.create_task_group() as tasks:
        with contextlib.suppress(ExceptionGroup):
            async with open_supervisor(
                strategy=strategy, intensity=int(why == "restart"), **options
            ) as supervisor:
                victim = await supervisor.start(targets.serve)
                for gate in gates[:2]:
                    await supervisor.start(targets.clean_up_slowly, gate)
                await supervisor.start_supervisor(set_up, name="inner", stop_order="together")
                tasks.start_soon(open_all)
                if why == "cancelled":
                    supervisor.cancel_scope.cancel()
                elif why == "gives up":
                    kill(victim)
                    await anyio.sleep_forever()
                elif why == "restart":
                    events = supervisor.events()
                    kill(victim)
                    await next_event(events, ChildReady, "inner")
                    tasks.start_soon(open_all)


async def test_each_is_stopped_by_its_own_policy() -> None:
    async with open_supervisor(stop=StopPolicy(grace=0.1)) as supervisor:
        events = supervisor.events()
        await supervisor.start(targets.serve_stubbornly, name="default")
        await supervisor.start(targets.serve, shutdown="kill", name="kill")
        await supervisor.start(targets.serve, shutdown="wait", name="wait")
        await supervisor.start(
            targets.serve_stubbornly, shutdown=StopPolicy(grace=0.05), name="own"
        )
    codes = {
        event.child: event.exitcode
        for event in await all_events(events)
        if isinstance(event, ChildExited)
    }
    assert codes == {
        "own": -signal.SIGKILL,
        "wait": -signal.SIGTERM,
        "kill": -signal.SIGKILL,
        "default": -signal.SIGKILL,
    }
    assert list(codes) == ["own", "wait", "kill", "default"]


async def test_waiting_without_limit(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with open_supervisor(stop=StopPolicy(grace=0.01)) as supervisor:
        child = await supervisor.start(targets.clean_up_slowly, str(gate), shutdown="wait")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervisor.remove, child.name)
            descriptor = await anyio.to_thread.run_sync(os.open, gate, os.O_WRONLY)
            assert child.state is ChildState.STOPPING
            os.close(descriptor)
    assert child.process is not None
    assert child.process.exitcode == -signal.SIGTERM


async def test_not_saying_ready(announcements: Announcements) -> None:
    async with open_supervisor() as supervisor:
        child = await supervisor.start(
            targets.serve_without_saying, announcements.path, ready=False
        )
        assert child.state is ChildState.READY
        assert child.ready_value is None
        assert await announcements.get_pid() == child.pid


@pytest.mark.parametrize(
    ("target", "options", "error", "message"),
    [
        (targets.fail_at_start, {}, LookupError, "cannot start"),
        (targets.return_at_once, {}, creche.ProcessStartError, "without calling creche.from_"),
        (targets.never_ready, {"start_timeout": 0.2}, creche.ProcessTimeout, "start_timeout of 0"),
        (targets.start_with_lambda, {}, creche.SerializationError, "given to started"),
        (support.segfault, {}, creche.ProcessDied, "SIGSEGV"),
        (lambda: None, {}, creche.SerializationError, "the function"),
        (3, {}, TypeError, "func must be callable"),
        (targets.serve, {"restart": "always"}, ValueError, "restart must be one of 'permanent'"),
        (targets.serve, {"shutdown": 3}, TypeError, "shutdown must be"),
        (targets.serve, {"health": 3}, TypeError, "health must be a Heartbeat or a HealthCheck"),
        (targets.serve, {"backoff": 3}, TypeError, "backoff must be a Backoff"),
        (targets.serve, {"start_timeout": -1}, ValueError, "timeout must be zero or more"),
        (targets.serve, {"name": ""}, ValueError, "name must not be empty"),
        (targets.serve, {"stdout": "stream"}, ValueError, "each restart makes a new process"),
        (targets.serve, {"name": "first"}, creche.ProcessStateError, "has a child 'first' already"),
    ],
)
async def test_start_fails(target: Any, options: Any, error: type[Exception], message: str) -> None:
    async with open_supervisor() as supervisor:
        first = await supervisor.start(targets.serve, name="first")
        events = supervisor.events()
        with pytest.raises(error, match=message):
            await supervisor.start(target, **options)
        assert dict(supervisor.children) == {"first": first}
        assert await supervisor.start(targets.serve, name="child")  # the supervisor is fine
        assert not any(isinstance(event, ChildRestarting) for event in events._events)


async def test_name_of_who_failed_to_start_is_free() -> None:
    async with open_supervisor() as supervisor:
        with pytest.raises(LookupError):
            await supervisor.start(targets.fail_at_start, name="child")
        assert await supervisor.start(targets.serve, name="child")


async def test_names() -> None:
    async with open_supervisor() as supervisor:
        names = [(await supervisor.start(targets.serve)).name for _ in range(2)]
        await supervisor.start(targets.serve, name="serve-3")
        names.append((await supervisor.start(targets.serve)).name)
        assert names == ["serve-1", "serve-2", "serve-4"]


# --- restart types ------------------------------------------------------------------------------

ENDS = ["returns", "exits", "exits with 3", "is killed", "raises"]


@pytest.mark.parametrize("how", ENDS)
async def test_permanent(how: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(ExceptionGroup) as caught:
        async with open_supervisor(intensity=1, period=60, backoff=AT_ONCE) as supervisor:
            await supervisor.start(targets.end_in_order, str(log), how)
            await supervisor.wait()
    assert lines(log) == [how] * 2
    expected = {"exits with 3": creche.ProcessDied, "is killed": creche.ProcessDied}
    error = LookupError if how == "raises" else expected.get(how, ChildEnded)
    assert [type(failure) for failure in caught.value.exceptions] == [error] * 2


@pytest.mark.parametrize("how", ENDS)
async def test_transient(how: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    failures: list[BaseException] = []
    try:
        async with open_supervisor(intensity=1, period=60, backoff=AT_ONCE) as supervisor:
            child = await supervisor.start(targets.end_in_order, str(log), how, restart="transient")
            await supervisor.wait()
            assert child.state is ChildState.ENDED
            assert supervisor.children[child.name] is child
    except* (LookupError, creche.ProcessDied) as group:
        failures += group.exceptions
    in_order = how in ("returns", "exits")
    assert len(failures) == (0 if in_order else 2)
    assert lines(log) == [how] * (1 if in_order else 2)


@pytest.mark.parametrize("how", ENDS)
async def test_temporary(how: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with open_supervisor(intensity=0) as supervisor:
        child = await supervisor.start(targets.end_in_order, str(log), how, restart="temporary")
        await supervisor.wait()
        assert child.state is ChildState.REMOVED
        assert not supervisor.children
    assert lines(log) == [how]


async def test_transient_that_has_ended_is_started_on_demand(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with open_supervisor() as supervisor:
        child = await supervisor.start(
            targets.end_in_order, str(log), "returns", restart="transient"
        )
        await supervisor.wait()
        await supervisor.restart(child.name)
        await supervisor.wait()
        await supervisor.remove(child.name)
    assert lines(log) == ["returns"] * 2
    assert child.state is ChildState.REMOVED


# --- strategies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("one_for_one", ["+b"]),
        ("one_for_all", ["-c", "-a", "+a", "+b", "+c"]),
        ("rest_for_one", ["-c", "+b", "+c"]),
    ],
)
async def test_strategy(strategy: Any, expected: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with open_supervisor(strategy=strategy) as supervisor:
        children = {name: await start_noting(supervisor, log, name) for name in "abc"}
        pids = {name: child.pid for name, child in children.items()}
        log.unlink()
        events = supervisor.events()
        kill(children["b"])
        last = expected[-1][1:]
        await next_event(events, ChildReady, last)
        assert lines(log) == expected
        for name, child in children.items():
            assert child.state is ChildState.READY
            restarted = f"+{name}" in expected
            assert (child.pid != pids[name]) is restarted
            assert child.restarts == int(restarted)
        assert supervisor.statistics().restarts == 1  # however many were concerned


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
async def test_temporary_child_goes_with_its_siblings(strategy: Any) -> None:
    """As in OTP: nobody would start it again if it had ended by itself."""
    async with open_supervisor(strategy=strategy) as supervisor:
        first = await supervisor.start(targets.serve, name="first")
        brief_one = await supervisor.start(targets.serve, name="brief", restart="temporary")
        await supervisor.start(targets.serve, name="last")
        events = supervisor.events()
        kill(first)
        await next_event(events, ChildReady, "last")
        assert list(supervisor.children) == ["first", "last"]
        assert brief_one.state is ChildState.REMOVED


async def test_temporary_child_that_fails_takes_nobody_with_it() -> None:
    async with open_supervisor(strategy="one_for_all") as supervisor:
        first = await supervisor.start(targets.serve, name="first")
        other = await supervisor.start(targets.serve, restart="temporary")
        events = supervisor.events()
        kill(other)
        await next_event(events, ChildExited)
        assert first.state is ChildState.READY
        assert list(supervisor.children) == ["first"]
    assert [brief(event) for event in await all_events(events)] == ["Exited first"]


async def test_transient_that_has_ended_comes_back_with_its_siblings(tmp_path: Path) -> None:
    """As in OTP."""
    log = tmp_path / "log"
    async with open_supervisor(strategy="one_for_all") as supervisor:
        first = await supervisor.start(targets.serve)
        events = supervisor.events()
        await supervisor.start(
            targets.end_in_order, str(log), "returns", restart="transient", name="once"
        )
        await next_event(events, ChildExited, "once")
        kill(first)
        await next_event(events, ChildExited, "once")
    assert lines(log) == ["returns"] * 2


# --- giving up ----------------------------------------------------------------------------------


async def test_giving_up(tmp_path: Path) -> None:
    log = tmp_path / "log"
    reached = False
    with pytest.raises(ExceptionGroup, match="gave up: more than 2 restarts within 60") as caught:
        async with open_supervisor(intensity=2, period=60, backoff=AT_ONCE) as supervisor:
            events = supervisor.events()
            await start_noting(supervisor, log, "a")
            crashing = await supervisor.start(targets.serve, name="crashing")
            await start_noting(supervisor, log, "c")
            log.unlink()
            watching = supervisor.events()
            while True:
                kill(crashing)
                await next_event(watching, ChildReady)
            reached = True
    assert not reached
    assert [type(failure) for failure in caught.value.exceptions] == [creche.ProcessDied] * 3
    assert caught.value.exceptions[0].__notes__ == [
        "That was child 'crashing' of supervisor 'supervisor'."
    ]
    assert lines(log) == ["-c", "-a"]
    gave_up = await next_event(events, SupervisorGaveUp)
    assert gave_up.failures == caught.value.exceptions
    with pytest.raises(creche.ProcessStateError, match="is not open"):
        await supervisor.start(targets.serve)


async def test_giving_up_beside_an_exception_of_the_block() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_supervisor(intensity=0) as supervisor:
            child = await supervisor.start(targets.serve)
            kill(child)
            try:
                await anyio.sleep_forever()
            finally:
                raise ZeroDivisionError
    assert {type(failure) for failure in caught.value.exceptions} == {
        creche.ProcessDied,
        ZeroDivisionError,
    }


async def test_giving_up_does_not_wait_for_the_block() -> None:
    with pytest.raises(ExceptionGroup):
        async with open_supervisor(intensity=0) as supervisor:
            events = supervisor.events()
            await supervisor.start(targets.serve, name="first")
            kill(await supervisor.start(targets.serve))
            with anyio.CancelScope(shield=True):
                await next_event(events, ChildExited, "first")


async def test_restarts_that_lie_far_enough_apart(tmp_path: Path) -> None:
    async with open_supervisor(intensity=1, period=0) as supervisor:
        child = await supervisor.start(targets.serve)
        events = supervisor.events()
        for _ in range(4):
            kill(child)
            await next_event(events, ChildReady)
        assert child.restarts == 4


async def test_child_that_fails_at_each_restart(tmp_path: Path) -> None:
    """A start that fails counts as one more restart."""
    log = tmp_path / "log"
    with pytest.raises(ExceptionGroup) as caught:
        async with open_supervisor(intensity=2, period=60, backoff=AT_ONCE) as supervisor:
            kill(await supervisor.start(targets.start_once, str(log)))
            await supervisor.wait()
    types = [type(failure) for failure in caught.value.exceptions]
    assert types == [creche.ProcessDied, LookupError, LookupError]
    assert len(lines(log)) == 3


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
async def test_restart_that_fails_is_tried_again(strategy: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with open_supervisor(strategy=strategy, period=60, backoff=AT_ONCE) as supervisor:
        first = await supervisor.start(targets.serve, name="first")
        child = await supervisor.start(
            targets.start_from_the_second_time_on, str(log), name="second"
        )
        await supervisor.start(targets.serve, name="third")
        events = supervisor.events()
        kill(child)
        await next_event(events, ChildReady, "second")
        if strategy != "one_for_one":
            await next_event(events, ChildReady, "third")
        assert [child.state for child in supervisor.children.values()] == [ChildState.READY] * 3
        assert supervisor.statistics().restarts_in_period == 2
        assert first.restarts == (2 if strategy == "one_for_all" else 0)


async def test_backoff_grows_and_is_reset() -> None:
    backoff = Backoff(initial=0.01, factor=3, jitter=0, reset_after=0.2)
    async with open_supervisor(intensity=10) as supervisor:
        child = await supervisor.start(targets.serve, backoff=backoff)
        events = supervisor.events()
        delays = []
        for number in range(5):
            if number == 4:
                await anyio.sleep(0.3)
            kill(child)
            delays.append((await next_event(events, ChildRestarting)).delay)
            await next_event(events, ChildReady)
    if delays[:4] == [0, 0.01, 0.03, 0.09]:  # or else the machine was so slow that it stayed up
        assert delays[4] == 0


# --- adding, removing, restarting ---------------------------------------------------------------


async def test_remove() -> None:
    async with open_supervisor(strategy="one_for_all") as supervisor:
        first = await supervisor.start(targets.serve, name="first")
        other = await supervisor.start(targets.serve, name="other")
        await supervisor.remove("first")
        assert first.state is ChildState.REMOVED
        assert first.process is not None
        assert first.process.exitcode == -signal.SIGTERM
        assert dict(supervisor.children) == {"other": other}
        assert other.state is ChildState.READY
        again = await supervisor.start(targets.serve, name="first")
        assert list(supervisor.children.values()) == [other, again]


@pytest.mark.parametrize("method", ["restart", "remove", "roll"])
async def test_no_such_child(method: str) -> None:
    async with open_supervisor() as supervisor:
        await supervisor.start(targets.serve, name="here")
        with pytest.raises(creche.ProcessStateError, match="no child 'there'; its children: 'her"):
            await getattr(supervisor, method)("there")
    with pytest.raises(creche.ProcessStateError, match="is not open"):
        await getattr(supervisor, method)("here")


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all"])
async def test_restart_on_demand(strategy: Any) -> None:
    async with open_supervisor(strategy=strategy, intensity=0) as supervisor:
        child = await supervisor.start(targets.serve, 1)
        other = await supervisor.start(targets.serve, 2)
        pids = child.pid, other.pid
        for _ in range(3):
            await supervisor.restart(child.name)
        assert child.state is ChildState.READY
        assert child.pid != pids[0]
        assert other.pid == pids[1]
        assert child.restarts == 3
        assert supervisor.statistics().restarts == 0


async def test_restart_on_demand_fails(tmp_path: Path) -> None:
    """Its caller hears of it, and the supervisor goes on trying."""
    async with open_supervisor() as supervisor:
        child = await supervisor.start(targets.start_from_the_second_time_on, str(tmp_path / "log"))
        events = supervisor.events()
        with pytest.raises(LookupError, match="not the second time"):
            await supervisor.restart(child.name)
        await next_event(events, ChildReady)
        assert child.restarts == 2


async def test_restart_on_demand_ends_a_backoff() -> None:
    backoff = Backoff(initial=10 * TIMEOUT, maximum=math.inf, jitter=0, immediate=0)
    async with open_supervisor(backoff=backoff) as supervisor:
        child = await supervisor.start(targets.serve)
        events = supervisor.events()
        pid = kill(child)
        assert (await next_event(events, ChildRestarting)).delay == 10 * TIMEOUT
        assert child.state is ChildState.WAITING
        with anyio.fail_after(TIMEOUT):
            await supervisor.restart(child.name)
        assert child.state is ChildState.READY
        assert child.pid != pid


async def test_from_several_tasks() -> None:
    """Whatever they do to it at once, a child comes out of it whole."""
    async with open_supervisor(intensity=0) as supervisor:
        children = [await supervisor.start(targets.serve) for _ in range(3)]
        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                for child in children:
                    tasks.start_soon(supervisor.restart, child.name)
                    tasks.start_soon(supervisor.restart, child.name)
                    tasks.start_soon(supervisor.start, targets.serve)
        assert len(supervisor.children) == 6
        assert all(child.state is ChildState.READY for child in supervisor.children.values())
        async with anyio.create_task_group() as tasks:
            for name in list(supervisor.children):
                tasks.start_soon(supervisor.remove, name)
        assert not supervisor.children


async def test_same_name_at_once() -> None:
    async with open_supervisor() as supervisor, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: supervisor.start(targets.serve, name="one"))
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(creche.ProcessStateError, match="has a child 'one' already"):
            await supervisor.start(targets.serve, name="one")


# --- rolling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all"])
async def test_roll(strategy: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with open_supervisor(strategy=strategy, intensity=0) as supervisor:
        child = await start_noting(supervisor, log, "child")
        other = await supervisor.start(targets.serve)
        pid, other_pid = child.pid, other.pid
        for _ in range(2):
            await supervisor.roll("child")
        assert lines(log) == ["+child", "+child", "-child", "+child", "-child"]
        assert child.pid != pid
        assert other.pid == other_pid
        assert child.restarts == 2
        assert child.state is ChildState.READY


async def test_roll_that_fails(tmp_path: Path) -> None:
    async with open_supervisor(intensity=0) as supervisor:
        child = await supervisor.start(targets.start_once, str(tmp_path / "log"))
        pid = child.pid
        with pytest.raises(LookupError, match="only once"):
            await supervisor.roll(child.name)
        assert child.pid == pid
        assert child.state is ChildState.READY
        assert child.restarts == 0


async def test_roll_that_never_gets_ready(tmp_path: Path) -> None:
    path = tmp_path / "exists"
    path.touch()
    async with open_supervisor(intensity=0) as supervisor:
        child = await supervisor.start(targets.start_while_exists, str(path), start_timeout=TIMEOUT)
        pid = child.pid
        path.unlink()
        async with anyio.create_task_group() as tasks:
            events = supervisor.events()
            tasks.start_soon(supervisor.roll, child.name)
            await next_event(events, ChildStarted)
            tasks.cancel_scope.cancel()
        assert child.pid == pid
        assert child.state is ChildState.READY


async def test_only_who_is_ready_is_rolled(tmp_path: Path) -> None:
    async with open_supervisor() as supervisor:
        child = await supervisor.start(
            targets.end_in_order, str(tmp_path / "log"), "returns", restart="transient"
        )
        await supervisor.wait()
        with pytest.raises(creche.ProcessStateError, match="it is ended, not ready"):
            await supervisor.roll(child.name)


# --- the block ----------------------------------------------------------------------------------


async def test_empty() -> None:
    async with open_supervisor() as supervisor:
        await supervisor.wait()
        assert not supervisor.children
    assert not supervisor.children


async def test_exception_in_the_block(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(ExceptionGroup) as caught:
        async with open_supervisor() as supervisor:
            for name in "ab":
                await start_noting(supervisor, log, name)
            raise ZeroDivisionError
    assert caught.group_contains(ZeroDivisionError, depth=1)
    assert lines(log) == ["+a", "+b", "-b", "-a"]


async def test_cancel_scope(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with open_supervisor() as supervisor:
        for name in "ab":
            await start_noting(supervisor, log, name)
        supervisor.cancel_scope.cancel()
        await anyio.sleep_forever()
    assert lines(log) == ["+a", "+b", "-b", "-a"]


async def test_deadline_around_it() -> None:
    with anyio.CancelScope() as scope:
        async with open_supervisor() as supervisor:
            child = await supervisor.start(targets.serve)
            scope.deadline = anyio.current_time() + 0.05
            await supervisor.wait()
    assert scope.cancelled_caught
    assert child.state is ChildState.ENDED


async def test_wait_is_for_those_that_may_end(tmp_path: Path) -> None:
    async with open_supervisor() as supervisor:
        await supervisor.start(targets.serve, name="for ever")
        with anyio.move_on_after(0.1) as scope:
            await supervisor.wait()
        assert scope.cancelled_caught
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervisor.wait)
            await anyio.wait_all_tasks_blocked()
            await supervisor.remove("for ever")


async def test_opened_twice() -> None:
    supervisor = open_supervisor()
    with pytest.raises(creche.ProcessStateError, match="is not open: use it in `async with`"):
        await supervisor.start(targets.serve)
    with pytest.raises(creche.ProcessStateError, match="was not opened"):
        supervisor.cancel_scope  # noqa: B018
    async with supervisor:
        with pytest.raises(creche.ProcessStateError, match="was opened before"):
            await supervisor.__aenter__()
    with pytest.raises(creche.ProcessStateError, match="was opened before"):
        await supervisor.__aenter__()


async def test_from_another_event_loop() -> None:
    async with open_supervisor() as supervisor:
        await supervisor.start(targets.serve, name="child")

        def use() -> None:
            anyio.run(supervisor.restart, "child")

        with pytest.raises(creche.ProcessStateError, match="belongs to another event loop"):
            await anyio.to_thread.run_sync(use)


# --- what children are given --------------------------------------------------------------------


async def test_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restarts find the context of the task that has called start()."""
    seen: list[str] = []

    async def note() -> None:
        seen.append(variable.get())

    variable.set("of start()")
    monkeypatch.setitem(globals(), "note_context", note)
    async with open_supervisor() as supervisor:
        child = await supervisor.start(call_parent)
        variable.set("of later")
        await supervisor.restart(child.name)
    assert seen == ["of start()"] * 2


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


async def note_context() -> None: ...


def call_parent() -> None:
    creche.from_process.run(_note_context)
    targets.serve()


async def _note_context() -> None:
    await note_context()


async def test_channels() -> None:
    """Each process of a child gets ends of its own."""
    send, receive = create_channel()
    say, hear = create_channel()
    async with open_supervisor() as supervisor, send, hear:
        child = await supervisor.start(targets.say_what_arrives, receive, say)
        with anyio.fail_after(TIMEOUT):
            await send.send(1)
            assert await hear.receive() == (child.pid, 1)
            events = supervisor.events()
            kill(child)
            await next_event(events, ChildReady)
            await send.send(2)
            assert await hear.receive() == (child.pid, 2)
            await supervisor.remove(child.name)
            with pytest.raises(anyio.BrokenResourceError):
                await send.send(3)


async def test_logs_and_output(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tests.of.output")
    with caplog.at_level(logging.INFO):
        async with open_supervisor(stdout=logger, logs=True) as supervisor:
            child = await supervisor.start(print_and_log)
            await supervisor.restart(child.name)
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count("printed") == messages.count("logged") == 2


def print_and_log() -> None:
    print("printed", flush=True)
    logging.getLogger("tests.of.logs").info("logged")
    targets.serve()


# --- events and records -------------------------------------------------------------------------


async def test_events() -> None:
    async with open_supervisor(name="root") as supervisor:
        first, second = supervisor.events(), supervisor.events(buffer=2)
        child = await supervisor.start(targets.serve, name="child")
        kill(child)
        watching = supervisor.events()
        await next_event(watching, ChildReady)
        await supervisor.remove("child")
    expected = ["Started", "Ready", "Exited", "Restarting", "Started", "Ready", "Exited"]
    events = await all_events(first)
    assert [brief(event) for event in events] == [f"{kind} child" for kind in expected]
    assert {event.supervisor for event in events} == {"root"}
    assert [event.time for event in events] == sorted(event.time for event in events)
    assert await all_events(second) == events[-2:]
    assert second.dropped == 5
    assert await all_events(supervisor.events()) == []  # it is over


async def test_reader_that_is_cancelled_loses_nothing() -> None:
    async with open_supervisor() as supervisor:
        events = supervisor.events()
        with anyio.move_on_after(0.01):
            await next_event(events, ChildStarted)
        await supervisor.start(targets.serve)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await next_event(events, ChildStarted)
        assert await next_event(events, ChildStarted)


async def test_records(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "creche.supervisor"), pytest.raises(ExceptionGroup):
        async with open_supervisor(name="root", intensity=0) as supervisor:
            child = await supervisor.start(fail_when_told, name="child")
            await supervisor.wait()
    records = {record.event: record for record in caplog.records}  # type: ignore[attr-defined]
    assert list(records) == ["ChildStarted", "ChildReady", "ChildExited", "SupervisorGaveUp"]
    ready: Any = records["ChildReady"]
    assert (ready.supervisor, ready.child, ready.pid) == ("root", "child", child.pid)
    exited = records["ChildExited"]
    assert exited.levelno == logging.WARNING
    assert "child 'child'" in exited.getMessage()
    assert exited.exc_info is not None
    text = logging.Formatter().format(exited)
    assert "in fail_when_told" in text  # the child's own traceback
    assert records["SupervisorGaveUp"].levelno == logging.ERROR


async def test_records_that_cannot_be_handled() -> None:
    """What a handler raises is not the failure of a child, nor of the supervisor."""
    with Collector().failing_on("creche.supervisor"):
        async with open_supervisor(backoff=AT_ONCE) as supervisor:
            events = supervisor.events()
            child = await supervisor.start(targets.serve)
            kill(child)
            await next_event(events, ChildRestarting)
            await next_event(events, ChildReady)
            await supervisor.remove(child.name)


def fail_when_told() -> None:
    creche.from_process.started()
    raise LookupError("oh")


async def test_statistics() -> None:
    async with open_supervisor(name="root", period=60) as supervisor:
        child = await supervisor.start(targets.serve, name="child")
        events = supervisor.events()
        kill(child)
        await next_event(events, ChildReady)
        statistics = supervisor.statistics()
        assert (statistics.name, statistics.ready, statistics.restarts) == ("root", 1, 1)
        assert statistics.restarts_in_period == 1
        (of_child,) = statistics.children
        assert (of_child.name, of_child.pid, of_child.state, of_child.restarts) == (
            "child",
            child.pid,
            ChildState.READY,
            1,
        )
    assert supervisor.statistics().ready == 0
    assert open_supervisor().statistics().children == ()


async def test_representations() -> None:
    async with open_supervisor(name="root") as supervisor:
        child = await supervisor.start(targets.serve, name="child")
        assert repr(supervisor) == "<Supervisor 'root' children=1>"
        assert repr(child) == f"<SupervisedChild 'child' pid={child.pid} ready>"
    assert creche.Supervisor.__module__ == creche.ChildExited.__module__ == "creche"


# --- nested supervisors -------------------------------------------------------------------------


async def test_nested() -> None:
    async with open_supervisor(name="outer") as supervisor:
        events = supervisor.events()
        nested = await supervisor.start_supervisor(targets.set_up_two, name="inner")
        assert nested.name == "outer/inner"
        assert list(nested.children) == ["left", "right"]
        assert supervisor.children["inner"].supervisor is nested
        assert supervisor.children["inner"].pid is None
        left = nested.children["left"]
        watching = nested.events()
        kill(left)
        await next_event(watching, ChildReady)
        assert (nested.statistics().restarts, supervisor.statistics().restarts) == (1, 0)
        third = await nested.start(targets.serve, name="third")
    assert left.state is third.state is ChildState.ENDED
    last = [brief(event) for event in await all_events(events)][-4:]
    assert last == ["Exited third", "Exited right", "Exited left", "Exited inner"]
    assert [brief(event) for event in await all_events(nested.events())] == []


async def test_nested_gives_up() -> None:
    """That is a failure of a child: it is started again, with all that it consists of."""
    async with open_supervisor(strategy="rest_for_one") as supervisor:
        first = await supervisor.start(targets.serve, name="first")
        nested = await supervisor.start_supervisor(targets.set_up_two, name="inner", intensity=0)
        last = await supervisor.start(targets.serve, name="last")
        before = nested.children["left"], nested.children["right"]
        events = supervisor.events()
        kill(nested.children["left"])
        gave_up = await next_event(events, SupervisorGaveUp)
        assert gave_up.supervisor == nested.name
        exited = await next_event(events, ChildExited, "inner")
        assert isinstance(exited.exception, ExceptionGroup)
        await next_event(events, ChildReady, "last")
        assert [child.state for child in before] == [ChildState.ENDED] * 2
        assert [child.state for child in nested.children.values()] == [ChildState.READY] * 2
        assert (first.restarts, last.restarts, supervisor.statistics().restarts) == (0, 1, 1)
        await supervisor.restart("inner")
        assert [child.state for child in nested.children.values()] == [ChildState.READY] * 2
        await supervisor.remove("inner")
        with pytest.raises(creche.ProcessStateError, match="is not open"):
            await nested.start(targets.serve)


async def test_both_give_up() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_supervisor(intensity=0) as supervisor:
            nested = await supervisor.start_supervisor(
                targets.set_up_two, name="inner", intensity=0
            )
            kill(nested.children["left"])
            await supervisor.wait()
    assert caught.group_contains(creche.ProcessDied, depth=2)


async def fail_to_set_up(supervisor: Supervisor) -> None:
    await supervisor.start(targets.serve)
    raise LookupError("not today")


async def set_up_for_ever(supervisor: Supervisor) -> None:
    await supervisor.start(targets.serve)
    await anyio.sleep_forever()


async def set_up_who_crashes(supervisor: Supervisor) -> None:
    await supervisor.start(fail_when_told)
    await anyio.sleep_forever()


@pytest.mark.parametrize(
    ("set_up", "options", "error", "message"),
    [
        (fail_to_set_up, {}, LookupError, "not today"),
        (set_up_for_ever, {"start_timeout": 0.5}, creche.ProcessTimeout, "were not started within"),
        (set_up_who_crashes, {"intensity": 0}, ExceptionGroup, "gave up"),
        (3, {}, TypeError, "setup must be an async function"),
        (fail_to_set_up, {"strategy": "x"}, ValueError, "strategy must be"),
        (fail_to_set_up, {"name": "first"}, creche.ProcessStateError, "has a child 'first'"),
    ],
)
async def test_nested_fails_to_start(
    set_up: Callable[..., Any], options: Any, error: type[Exception], message: str
) -> None:
    async with open_supervisor(intensity=0) as supervisor:
        first = await supervisor.start(targets.serve, name="first")
        with pytest.raises(error, match=message):
            await supervisor.start_supervisor(set_up, **{"name": "inner", **options})
        assert dict(supervisor.children) == {"first": first}


async def test_nested_is_not_rolled() -> None:
    async with open_supervisor() as supervisor:
        await supervisor.start_supervisor(targets.set_up_two, name="inner")
        with pytest.raises(creche.ProcessStateError, match="it is a supervisor; roll its children"):
            await supervisor.roll("inner")


async def test_in_a_supervised_process(announcements: Announcements) -> None:
    async with open_supervisor() as supervisor:
        child = await supervisor.start(targets.supervise, announcements.path, 2)
        pids = [await announcements.get_pid() for _ in range(2)]
        events = supervisor.events()
        kill(child)
        await next_event(events, ChildReady)
        for pid in pids:
            assert support.wait_until_gone(pid)
        pids = [await announcements.get_pid() for _ in range(2)]
    for pid in pids:
        assert support.wait_until_gone(pid, 0)
