"""The nursery: a task group for processes."""

from __future__ import annotations

import os
import signal
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
import support
import targets
from backends import in_trio
from support import Announcements

import creche
from creche import AsyncProcess, ProcessState, StopPolicy, open_nursery

pytestmark = pytest.mark.anyio


async def test_values(start_method: str) -> None:
    async with open_nursery(start_method=start_method) as nursery:
        left = nursery.start_soon(targets.add, 1, 2)
        right = nursery.start_soon(targets.add_async, 3, 4)
        assert nursery.processes == {left, right}
        assert await left == 3
        assert left.name.startswith("add-")
    assert (left.return_value, right.return_value) == (3, 7)
    assert nursery.processes == frozenset()


async def test_empty() -> None:
    async with open_nursery():
        pass


async def test_failure_stops_the_others(start_method: str, announcements: Announcements) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_nursery(start_method=start_method) as nursery:
            survivor = nursery.start_soon(targets.wait_for_ever, announcements.path)
            await announcements.get()
            nursery.start_soon(targets.fail, "oh")
    (failure,) = caught.value.exceptions
    assert isinstance(failure, LookupError)
    assert survivor.exitcode == -signal.SIGTERM


async def test_all_failures_come_out() -> None:
    """Both have failed before either is heard of, as the block holds up the event loop."""
    with pytest.raises(ExceptionGroup) as caught:
        async with open_nursery() as nursery:
            children = [nursery.start_soon(targets.fail, text) for text in ("one", "two")]
            await anyio.wait_all_tasks_blocked()
            for child in children:
                assert child._handle.gone.wait_in_thread(support.TIMEOUT)
    assert {str(failure) for failure in caught.value.exceptions} == {"one", "two"}


async def test_failure_heard_of_twice_comes_out_once() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_nursery() as nursery:
            await nursery.start_soon(targets.fail, "oh")
    assert [str(failure) for failure in caught.value.exceptions] == ["oh"]


async def test_failure_while_the_others_ignore_sigterm(announcements: Announcements) -> None:
    with pytest.raises(ExceptionGroup):
        async with open_nursery(stop=StopPolicy(grace=0.1)) as nursery:
            stubborn = [
                nursery.start_soon(support.ignore_sigterm, announcements.path) for _ in range(3)
            ]
            for _ in stubborn:
                await announcements.get()
            nursery.start_soon(targets.fail, "oh")
    assert [process.exitcode for process in stubborn] == [-signal.SIGKILL] * 3


async def test_exception_in_the_block(announcements: Announcements) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_nursery() as nursery:
            process = nursery.start_soon(targets.wait_for_ever, announcements.path)
            await announcements.get()
            raise ZeroDivisionError
    assert caught.group_contains(ZeroDivisionError, depth=1)
    assert process.exitcode == -signal.SIGTERM


async def test_cancel_scope(start_method: str, announcements: Announcements) -> None:
    async with open_nursery(start_method=start_method) as nursery:
        children = [nursery.start_soon(targets.wait_for_ever, announcements.path) for _ in range(3)]
        for _ in children:
            await announcements.get()
        nursery.cancel_scope.cancel()
    assert [child.exitcode for child in children] == [-signal.SIGTERM] * 3


async def test_cancelled_at_once() -> None:
    async with open_nursery() as nursery:
        child = nursery.start_soon(support.wait_for_ever)  # what ends might have an outcome
        nursery.cancel_scope.cancel()
    assert child.state is ProcessState.TERMINATED
    assert isinstance(child.exception, creche.ProcessError)


async def test_deadline_around_it(announcements: Announcements) -> None:
    with anyio.move_on_after(0.5) as scope:
        async with open_nursery() as nursery:
            process = nursery.start_soon(targets.wait_for_ever, announcements.path)
    assert scope.cancelled_caught
    assert not process.is_alive()


async def test_limiter(announcements: Announcements) -> None:
    async with open_nursery(limiter=anyio.CapacityLimiter(1)) as nursery:
        first = nursery.start_soon(targets.wait_for_ever, announcements.path)
        await announcements.get()
        second = nursery.start_soon(targets.add, 1)
        await anyio.wait_all_tasks_blocked()
        assert second.state is ProcessState.CREATED
        assert nursery.processes == {first, second}
        await first.terminate()
        assert await second == 1


@pytest.mark.parametrize("how", ["terminate", "kill"])
async def test_stopping_a_child_is_no_failure(how: str, announcements: Announcements) -> None:
    async with open_nursery(limiter=anyio.CapacityLimiter(1)) as nursery:
        child = nursery.start_soon(targets.wait_for_ever, announcements.path)
        await announcements.get()
        waiting = nursery.start_soon(targets.add, 1)
        await getattr(waiting, how)()  # it was not even started
        await getattr(child, how)()
    assert isinstance(child.exception, creche.ProcessDied)
    assert isinstance(waiting.exception, creche.ProcessStartError)


async def test_death_is_a_failure() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_nursery() as nursery:
            nursery.start_soon(support.segfault)
    assert caught.group_contains(creche.ProcessDied, match="SIGSEGV", depth=1)


async def test_timeout_is_a_failure(announcements: Announcements) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_nursery() as nursery:
            nursery.start_soon(targets.wait_for_ever, announcements.path, timeout=0.1)
    assert caught.group_contains(creche.ProcessTimeout, depth=1)


async def test_failures_of_what_is_being_stopped(announcements: Announcements) -> None:
    """They may be why the block failed: it has lost the other end of a channel, say."""
    with pytest.raises(ExceptionGroup) as caught:
        async with open_nursery() as nursery:
            nursery.start_soon(targets.wait_for_ever, announcements.path)
            await announcements.get()
            nursery.start_soon(targets.fail_to_clean_up, announcements.path)
            await announcements.get()
            nursery.start_soon(targets.wait_for_ever, announcements.path)
            os.kill(await announcements.get_pid(), signal.SIGKILL)
            raise ZeroDivisionError
    assert sorted(type(error).__name__ for error in caught.value.exceptions) == [
        "LookupError",
        "ProcessDied",
        "ZeroDivisionError",
    ]
    assert caught.group_contains(creche.ProcessDied, match="SIGKILL", depth=1)


async def test_killed_as_it_does_not_stop(announcements: Announcements) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_nursery(stop=StopPolicy(grace=0.01)) as nursery:
            stubborn = nursery.start_soon(support.ignore_sigterm, announcements.path)
            await announcements.get()
            raise ZeroDivisionError
    assert stubborn.exitcode == -signal.SIGKILL
    assert len(caught.value.exceptions) == 1


async def test_failed_clean_up_where_all_is_cancelled(announcements: Announcements) -> None:
    async with open_nursery() as nursery:
        process = nursery.start_soon(targets.fail_to_clean_up, announcements.path)
        await announcements.get()
        nursery.cancel_scope.cancel()
    assert isinstance(process.exception, LookupError)


async def test_options_of_a_child(announcements: Announcements) -> None:
    async with open_nursery(stop=StopPolicy(grace=support.TIMEOUT)) as nursery:
        stubborn = nursery.start_soon(
            support.ignore_sigterm, announcements.path, name="mule", stop=StopPolicy(grace=0.01)
        )
        await announcements.get()
        assert stubborn.name == "mule"
        await stubborn.terminate()
    assert stubborn.exitcode == -signal.SIGKILL


async def test_nested(announcements: Announcements) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_nursery() as outer:
            lasting = outer.start_soon(targets.wait_for_ever, announcements.path)
            await announcements.get()
            async with open_nursery() as inner:
                inner.start_soon(targets.fail, "inner")
    assert caught.group_contains(LookupError, match="inner", depth=2)
    assert lasting.exitcode == -signal.SIGTERM


async def test_within_a_task_group(announcements: Announcements) -> None:
    async def run() -> None:
        async with open_nursery() as nursery:
            nursery.start_soon(targets.wait_for_ever, announcements.path)

    with pytest.raises(ExceptionGroup):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            pid = await announcements.get_pid()
            raise ZeroDivisionError
    assert support.wait_until_gone(pid, 0)


async def test_around_a_task_group(announcements: Announcements) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_nursery() as nursery, anyio.create_task_group() as tasks:
            nursery.start_soon(targets.fail, "oh")
            tasks.start_soon(anyio.sleep_forever)
    assert caught.group_contains(LookupError)


# --- start() ------------------------------------------------------------------------------------


async def test_start(start_method: str) -> None:
    async with open_nursery(start_method=start_method) as nursery:
        assert await nursery.start(targets.start_server, 8080) == 8080
        assert await nursery.start(targets.start_nothing) is None


async def test_started_child_goes_on() -> None:
    async with open_nursery() as nursery:
        assert await nursery.start(targets.start_server_async, 8080) == 8080
        (server,) = nursery.processes
        assert server.is_alive()
        nursery.cancel_scope.cancel()
    assert server.exitcode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("target", "args", "error", "message"),
    [
        (targets.add, (1,), creche.ProcessStartError, "without calling creche.from_process"),
        (targets.fail, ("early",), LookupError, "early"),
        (support.segfault, (), creche.ProcessDied, "SIGSEGV"),
        (targets.start_with_lambda, (), creche.SerializationError, "given to started"),
        (lambda: None, (), creche.SerializationError, "the function"),
    ],
)
async def test_start_fails(target: Any, args: Any, error: type[Exception], message: str) -> None:
    async with open_nursery() as nursery:
        with pytest.raises(error, match=message):
            await nursery.start(target, *args)
        assert nursery.processes == frozenset()


async def test_start_is_cancelled(announcements: Announcements) -> None:
    async with open_nursery() as nursery:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(nursery.start, targets.wait_for_ever, announcements.path)
            pid = await announcements.get_pid()
            tasks.cancel_scope.cancel()
        assert support.wait_until_gone(pid, 0)
        assert nursery.processes == frozenset()


async def test_start_times_out(announcements: Announcements) -> None:
    async with open_nursery() as nursery:
        with pytest.raises(creche.ProcessTimeout):
            await nursery.start(targets.wait_for_ever, announcements.path, timeout=0.1)


async def test_started_twice() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_nursery() as nursery:
            assert await nursery.start(targets.start_twice) == 1
    assert caught.group_contains(creche.ProcessStateError, match="called before", depth=1)


async def test_failure_after_the_start() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_nursery() as nursery:
            assert await nursery.start(support.started_then, targets.fail, "late") == "ready"
    assert caught.group_contains(LookupError, match="late", depth=1)


async def test_started_without_a_nursery() -> None:
    assert await creche.run_in_process(targets.start_server, 1) == "served"


def test_started_outside_of_a_child() -> None:
    with pytest.raises(creche.ProcessStateError, match="outside of a process that creche started"):
        creche.from_process.started()


# --- misuse -------------------------------------------------------------------------------------


async def test_not_open() -> None:
    nursery = open_nursery()
    with pytest.raises(creche.ProcessStateError, match="is not open"):
        nursery.start_soon(targets.add, 1)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(nursery)
    with pytest.raises(creche.ProcessStateError, match="is not open"):
        await nursery.start(targets.start_nothing)


async def test_child_is_started_by_its_nursery() -> None:
    async with open_nursery() as nursery:
        child: AsyncProcess[int] = nursery.start_soon(targets.add, 1)
        with pytest.raises(creche.ProcessStateError, match="is started by its nursery"):
            await child.start()
        assert await child.join() == 0


async def test_bad_options() -> None:
    with pytest.raises(TypeError, match="stop must be a StopPolicy"):
        open_nursery(stop=5)  # type: ignore[arg-type]
    async with open_nursery(start_method="sporn") as nursery:
        with pytest.raises(ValueError, match="no start method 'sporn'"):
            nursery.start_soon(targets.add, 1)


# asyncio raises KeyboardInterrupt in its main task alone.
@in_trio
async def test_interrupted_in_a_task(
    monkeypatch: pytest.MonkeyPatch, announcements: Announcements, anyio_backend: str
) -> None:
    interrupt = anyio.Event()

    async def interrupted(process: creche.AsyncProcess[Any]) -> None:
        await interrupt.wait()
        raise KeyboardInterrupt

    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_nursery() as nursery, anyio.create_task_group() as tasks:
            monkeypatch.setattr(nursery, "_result", interrupted)
            process = nursery.start_soon(targets.wait_for_ever, announcements.path)
            tasks.start_soon(process.result)
            await announcements.get()
            interrupt.set()
    # And not that the process was killed, which whoever waits for it would hear else.
    others = caught.value.split(KeyboardInterrupt)[1]
    assert others is None
    assert not process.is_alive()
