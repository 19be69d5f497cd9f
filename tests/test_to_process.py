"""``creche.to_process`` in place of ``anyio.to_process``."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_process
import pytest
import support
import targets
from support import TIMEOUT, Announcements, until

import creche
from creche import ProcessDied, SerializationError, open_pool, to_process

MEBIBYTE = 1024 * 1024


@pytest.fixture
def gate(tmp_path: Path) -> str:
    """A FIFO: whoever reads it waits until somebody has written to it."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return str(path)


async def open_gate(path: str) -> None:
    await anyio.to_thread.run_sync(Path(path).write_text, "go", abandon_on_cancel=True)


def is_gone(pid: int) -> bool:
    """Whether a process has ended and was reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# --- the interface --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run_sync", "current_default_process_limiter"])
def test_signature(name: str) -> None:
    """The very parameters of anyio, but for how their types are spelled."""
    ours, theirs = (getattr(module, name) for module in (to_process, anyio.to_process))
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)
    assert parameters_of(ours) == parameters_of(theirs)


def parameters_of(func: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = inspect.signature(func).parameters.values()
    return [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]


def test_names() -> None:
    """All that anyio has for applications."""
    assert set(anyio.to_process.__all__) - {"process_worker"} <= set(to_process.__all__)


def test_without_an_event_loop() -> None:
    """Fails as anyio does."""
    with pytest.raises(Exception) as expected:
        anyio.to_process.current_default_process_limiter()
    with pytest.raises(type(expected.value)):
        to_process.current_default_process_limiter()


# --- values and errors ----------------------------------------------------------------------------


@pytest.mark.anyio
async def test_values() -> None:
    with anyio.fail_after(TIMEOUT):
        assert await to_process.run_sync(os.getpid) != os.getpid()
        assert await to_process.run_sync(targets.add, 1, 2) == 3
        assert await to_process.run_sync(targets.Adder(3).add, 4) == 7
        assert await to_process.run_sync(targets.add_three, 4) == 107
        data = os.urandom(8 * MEBIBYTE)
        assert await to_process.run_sync(targets.echo, data) == data


@pytest.mark.anyio
async def test_errors() -> None:
    with anyio.fail_after(TIMEOUT):
        pid = await to_process.run_sync(os.getpid)
        with pytest.raises(LookupError, match="wrong") as caught:
            await to_process.run_sync(targets.fail, "wrong")
        assert "targets.py" in str(caught.value.__cause__)
        with pytest.raises(support.CustomBaseException):
            await to_process.run_sync(support.raise_it, support.CustomBaseException())
        with pytest.raises(SerializationError):
            await to_process.run_sync(lambda: 1)
        with pytest.raises(SerializationError):
            await to_process.run_sync(support.make_lambda)
        assert await to_process.run_sync(os.getpid) == pid


@pytest.mark.anyio
async def test_broken_worker() -> None:
    """It can be caught as what anyio raises, and tells more."""
    with anyio.fail_after(TIMEOUT):
        for cancellable in (False, True):
            with pytest.raises(anyio.BrokenWorkerProcess) as caught:
                await to_process.run_sync(os._exit, 3, cancellable=cancellable)
            assert isinstance(caught.value, ProcessDied)
            assert caught.value.exitcode == 3
            with pytest.raises(anyio.BrokenWorkerProcess) as caught:
                await to_process.run_sync(
                    support.send_signal, signal.SIGKILL, cancellable=cancellable
                )
            assert isinstance(caught.value, ProcessDied)
            assert caught.value.signal == signal.SIGKILL
            assert "SIGKILL" in str(caught.value)
        assert to_process.current_default_process_limiter().borrowed_tokens == 0
        assert await to_process.run_sync(support.double, 21) == 42


@pytest.mark.anyio
async def test_death_that_the_function_tells_of() -> None:
    """A worker that has seen another process die has not died itself."""
    with anyio.fail_after(TIMEOUT):
        with pytest.raises(ProcessDied, match="inner") as caught:
            await to_process.run_sync(support.raise_process_died)
        assert not isinstance(caught.value, anyio.BrokenWorkerProcess)


@pytest.mark.anyio
async def test_worker_is_reused() -> None:
    with anyio.fail_after(TIMEOUT):
        pids = {await to_process.run_sync(os.getpid) for _ in range(20)}
        assert len(pids) == 1
        with pytest.raises(anyio.BrokenWorkerProcess):
            await to_process.run_sync(os._exit, 3)
        assert await to_process.run_sync(os.getpid) not in pids


# --- cancellation ---------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("cancellable", [False, True])
async def test_cancelled_before(cancellable: bool, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    with anyio.fail_after(TIMEOUT):
        await to_process.run_sync(support.double, 1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await to_process.run_sync(support.note, str(lines), 1, cancellable=cancellable)
        assert scope.cancelled_caught
        await to_process.run_sync(support.double, 1)
    assert not lines.exists()


@pytest.mark.anyio
async def test_cancelled_while_it_runs_without_being_cancellable(
    announcements: Announcements, gate: str
) -> None:
    """It runs to its end, and its value is there; the next thing that waits is cancelled."""
    values = []
    ended = False

    async def run() -> None:
        nonlocal ended
        values.append(await to_process.run_sync(support.wait_for_gate, announcements.path, gate))
        await anyio.sleep(0)
        ended = True

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            pid = await announcements.get_pid()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
                assert not values
                assert not is_gone(pid)
                await open_gate(gate)
        assert values == ["went through"]
        assert not ended
        assert await to_process.run_sync(os.getpid) == pid
    assert to_process.current_default_process_limiter().borrowed_tokens == 0


@pytest.mark.anyio
async def test_failing_while_it_is_cancelled_without_being_cancellable(
    announcements: Announcements, gate: str
) -> None:
    """A death, too, is told and not lost."""
    errors = []

    async def run() -> None:
        try:
            await to_process.run_sync(
                support.note_and_die_when_told, os.devnull, announcements.path, gate
            )
        except anyio.BrokenWorkerProcess as error:
            errors.append(error)

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await announcements.get_pid()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await open_gate(gate)
        assert len(errors) == 1


@pytest.mark.anyio
async def test_cancelled_while_it_runs(announcements: Announcements) -> None:
    """The worker has cleaned up and is gone; another takes its place."""

    async def run() -> None:
        await to_process.run_sync(support.clean_up, announcements.path, cancellable=True)
        pytest.fail("it came back")

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            pid = await announcements.get_pid()
            group.cancel_scope.cancel()
        assert is_gone(pid)
        assert await announcements.get() == "cleaned up"
        assert to_process.current_default_process_limiter().borrowed_tokens == 0
        assert await to_process.run_sync(os.getpid) != pid


@pytest.mark.anyio
async def test_timed_out_while_it_runs(announcements: Announcements) -> None:
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await to_process.run_sync(
                support.announce_then, announcements.path, support.busy_loop, cancellable=True
            )

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            pid = await announcements.get_pid()
            scope.deadline = anyio.current_time()  # when it runs, however long that took
        assert scope.cancelled_caught
        assert is_gone(pid)
        assert await to_process.run_sync(support.double, 21) == 42


@pytest.mark.anyio
async def test_cancelled_while_it_waits_for_the_limiter(
    announcements: Announcements, gate: str, tmp_path: Path
) -> None:
    """Where it does not run yet it can always be cancelled."""
    lines = tmp_path / "lines"
    limiter = anyio.CapacityLimiter(1)

    async def run() -> None:
        await to_process.run_sync(support.wait_for_gate, announcements.path, gate, limiter=limiter)

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            pid = await announcements.get_pid()
            async with anyio.create_task_group() as waiting:

                async def wait() -> None:
                    await to_process.run_sync(support.note, str(lines), 1, limiter=limiter)

                waiting.start_soon(wait)
                await until(lambda: limiter.statistics().tasks_waiting == 1)
                waiting.cancel_scope.cancel()
            assert limiter.statistics().tasks_waiting == 0
            await open_gate(gate)
        assert await to_process.run_sync(os.getpid) == pid
    assert not lines.exists()


# --- limiters -------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_default_limiter() -> None:
    limiter = to_process.current_default_process_limiter()
    assert isinstance(limiter, anyio.CapacityLimiter)
    assert limiter.total_tokens == (os.cpu_count() or 2)
    assert limiter is to_process.current_default_process_limiter()
    assert limiter is not anyio.to_process.current_default_process_limiter()


def test_default_limiter_of_each_event_loop(anyio_backend: str) -> None:
    async def get() -> anyio.CapacityLimiter:
        limiter = to_process.current_default_process_limiter()
        limiter.total_tokens = 7
        await anyio.lowlevel.checkpoint()
        assert to_process.current_default_process_limiter().total_tokens == 7
        return limiter

    first = anyio.run(get, backend=anyio_backend)
    second = anyio.run(get, backend=anyio_backend)
    assert first is not second


@pytest.mark.anyio
@pytest.mark.parametrize("default", [True, False])
async def test_limiter_is_kept(
    default: bool, announcements: Announcements, gate: str, tmp_path: Path
) -> None:
    """No more calls run than it has tokens, and as many workers as that takes are started."""
    lines = tmp_path / "lines"
    lines.touch()
    limiter: anyio.CapacityLimiter | None = None
    if default:
        to_process.current_default_process_limiter().total_tokens = 2
    else:
        limiter = anyio.CapacityLimiter(2)
    used = limiter or to_process.current_default_process_limiter()

    async def block(path: str) -> None:
        await to_process.run_sync(support.wait_for_gate, announcements.path, path, limiter=limiter)

    async def run() -> None:
        await to_process.run_sync(support.note, str(lines), 1, limiter=limiter)

    other_gate = str(tmp_path / "other gate")
    os.mkfifo(other_gate)
    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as group:
            group.start_soon(block, gate)
            group.start_soon(block, other_gate)
            pids = {await announcements.get_pid() for _ in range(2)}
            assert len(pids) == 2
            for _ in range(3):
                group.start_soon(run)
            await until(lambda: used.statistics().tasks_waiting == 3)
            assert used.borrowed_tokens == 2
            assert lines.read_text() == ""
            await open_gate(gate)
            await until(lambda: used.statistics().tasks_waiting == 0)
            await open_gate(other_gate)
        assert used.borrowed_tokens == 0
        assert lines.read_text() == "1\n" * 3
        # No other worker has come into being.
        assert await to_process.run_sync(os.getpid, limiter=limiter) in pids


@pytest.mark.anyio
async def test_default_limiter_does_not_hold_up_others(
    announcements: Announcements, gate: str
) -> None:
    to_process.current_default_process_limiter().total_tokens = 1

    async def block() -> None:
        await to_process.run_sync(support.wait_for_gate, announcements.path, gate)

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as group:
            group.start_soon(block)
            pid = await announcements.get_pid()
            limiter = anyio.CapacityLimiter(1)
            assert await to_process.run_sync(os.getpid, limiter=limiter) != pid
            await open_gate(gate)


@pytest.mark.anyio
@pytest.mark.usefixtures("no_worker_is_deaf")
async def test_many_calls_at_once() -> None:
    values: list[int] = []
    pids = set()

    async def run(number: int) -> None:
        values.append(await to_process.run_sync(support.double, number))
        pids.add(await to_process.run_sync(os.getpid))

    with anyio.fail_after(TIMEOUT):
        to_process.current_default_process_limiter().total_tokens = 3
        async with anyio.create_task_group() as group:
            for number in range(200):
                group.start_soon(run, number)
    assert sorted(values) == [2 * number for number in range(200)]
    assert 1 <= len(pids) <= 3


# --- the end of the event loop --------------------------------------------------------------------


def test_workers_end_with_the_event_loop(anyio_backend: str) -> None:
    async def use() -> int:
        return await to_process.run_sync(os.getpid)

    pids = {anyio.run(use, backend=anyio_backend) for _ in range(3)}
    assert len(pids) == 3
    assert all(is_gone(pid) for pid in pids)


def test_workers_end_with_an_event_loop_that_fails(anyio_backend: str) -> None:
    pids = []

    async def use() -> None:
        pids.append(await to_process.run_sync(os.getpid))
        raise LookupError("the end")

    with pytest.raises(LookupError, match="the end"):
        anyio.run(use, backend=anyio_backend)
    assert all(is_gone(pid) for pid in pids)


def test_event_loop_ends_while_calls_run(anyio_backend: str, announcements: Announcements) -> None:
    """What is cancelled with the event loop is stopped; nothing of it is left."""
    pids = []

    async def use() -> None:
        async with anyio.create_task_group() as group:

            async def run() -> None:
                await to_process.run_sync(support.clean_up, announcements.path, cancellable=True)

            group.start_soon(run)
            pids.append(await announcements.get_pid())
            raise LookupError("the end")

    with pytest.raises(ExceptionGroup) as caught:
        anyio.run(use, backend=anyio_backend)
    assert caught.group_contains(LookupError, match="the end")
    assert announcements.get_blocking() == "cleaned up"
    assert all(is_gone(pid) for pid in pids)


def test_asyncio_task_is_left_behind(announcements: Announcements) -> None:
    """asyncio.run() cancels it: at the same time as the task that keeps the workers."""
    pids = []

    async def use() -> None:
        async def run() -> None:
            await to_process.run_sync(support.clean_up, announcements.path, cancellable=True)

        tasks.append(asyncio.create_task(run()))
        pids.append(await announcements.get_pid())

    tasks: list[asyncio.Task[None]] = []
    asyncio.run(use())
    assert announcements.get_blocking() == "cleaned up"
    assert tasks[0].done()
    assert all(is_gone(pid) for pid in pids)


@pytest.mark.parametrize("other", ["asyncio", "trio"])
def test_two_event_loops_at_once(anyio_backend: str, other: str) -> None:
    """Each has workers of its own, which end with it and not with the other."""
    barrier = threading.Barrier(2, timeout=TIMEOUT)
    seen: dict[int, set[int]] = {}

    async def use(number: int) -> None:
        with anyio.fail_after(TIMEOUT):
            pids = {await to_process.run_sync(os.getpid)}
            limiter = to_process.current_default_process_limiter()
            await anyio.to_thread.run_sync(barrier.wait)
            for i in range(100):
                assert await to_process.run_sync(support.double, i + number) == 2 * (i + number)
            pids.add(await to_process.run_sync(os.getpid))
            await anyio.to_thread.run_sync(barrier.wait)
            if number:
                await anyio.to_thread.run_sync(first_ended.wait, TIMEOUT)
                assert all(is_gone(pid) for pid in seen[0])
            pids.add(await to_process.run_sync(os.getpid))
            assert to_process.current_default_process_limiter() is limiter
        seen[number] = pids

    def run(number: int, backend: str) -> None:
        try:
            anyio.run(use, number, backend=backend)
        except BaseException as error:
            errors.append(error)
        finally:
            if not number:
                first_ended.set()

    errors: list[BaseException] = []
    first_ended = threading.Event()
    threads = [threading.Thread(target=run, args=args) for args in ((0, anyio_backend), (1, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert not errors
    assert len(seen[0]) == len(seen[1]) == 1
    assert not seen[0] & seen[1]
    assert all(is_gone(pid) for pid in seen[0] | seen[1])


# --- in other places ------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_in_a_worker_of_a_pool(start_method: str) -> None:
    """The event loop of a worker has a default pool of its own, which ends with the worker."""
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1, start_method=start_method) as pool:
            outer, inner, value = await pool.run(support.run_sync_some, 21)
            assert value == 42
            assert len({outer, inner, os.getpid()}) == 3
            assert await pool.run(support.run_sync_some, 4) == [outer, inner, 8]
        assert is_gone(outer)
        assert await anyio.to_thread.run_sync(support.wait_until_gone, inner, 10)


@pytest.mark.anyio
async def test_in_a_process(start_method: str) -> None:
    with anyio.fail_after(TIMEOUT):
        outer, inner, value = await creche.run_in_process(
            support.run_sync_some, 21, start_method=start_method
        )
        assert value == 42
        assert is_gone(outer)
        assert await anyio.to_thread.run_sync(support.wait_until_gone, inner, 10)


@pytest.mark.anyio
async def test_in_a_worker_of_its_own(anyio_backend_name: str) -> None:
    with anyio.fail_after(TIMEOUT):
        outer, inner, value = await to_process.run_sync(
            functools.partial(anyio.run, backend=anyio_backend_name), support.run_sync_some, 21
        )
        assert value == 42
        assert len({outer, inner, os.getpid()}) == 3
        assert await anyio.to_thread.run_sync(support.wait_until_gone, inner, 10)


@pytest.mark.anyio
async def test_beside_anyio() -> None:
    """Both at once, as while an application migrates."""
    with anyio.fail_after(TIMEOUT):
        assert await anyio.to_process.run_sync(support.double, 21) == 42
        assert await to_process.run_sync(support.double, 21) == 42
