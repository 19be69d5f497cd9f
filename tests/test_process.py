"""AsyncProcess: what a person who knows multiprocessing.Process expects of it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import threading
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

import anyio
import anyio.to_thread
import pytest
import support
import targets
from support import TIMEOUT, Announcements

import creche
from creche import AsyncProcess, ProcessState, StopPolicy
from creche._runtime import runtime

pytestmark = pytest.mark.anyio

adder = targets.Adder(3)


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "value"),
    [
        (targets.add, (1, 2), {"extra": 3}, 6),
        (targets.add_async, (1,), {"right": 2}, 3),
        (adder.add, (4,), {}, 7),
        (targets.Adder.add_one, (4,), {}, 5),
        (adder, (4,), {}, 7),
        (targets.AsyncAdder(3), (4,), {}, 7),
        (targets.add_three, (4,), {}, 107),
        (targets.add_three_async, (4,), {}, 107),
        (targets.plain_wrapper_of_async, (1, 2), {}, 3),
        (targets.Adder, (5,), {}, targets.Adder(5)),
        (sum, ([1, 2],), {}, 3),
        (None, (), {}, None),
    ],
    ids=[
        "function", "async function", "bound method", "class method", "callable object",
        "async callable object", "partial", "partial of async", "wrapper of async", "class",
        "builtin", "no target",
    ],
)  # fmt: skip
async def test_targets(
    target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], value: object
) -> None:
    process = AsyncProcess(target=target, args=args, kwargs=kwargs)
    assert await process == value
    assert process.return_value == value
    assert process.exception is None
    assert process.exitcode == 0


async def test_life(start_method: str, announcements: Announcements) -> None:
    process = AsyncProcess(
        target=targets.wait_for_ever, args=(announcements.path,), start_method=start_method
    )
    assert process.state is ProcessState.CREATED
    assert (process.is_alive(), process.pid, process.exitcode) == (False, None, None)
    await process.start()
    pid = process.pid
    assert process.state in (ProcessState.STARTED, ProcessState.RUNNING)
    assert process.is_alive()
    assert process.ident == pid
    assert await announcements.get_pid() == pid
    with anyio.fail_after(TIMEOUT):
        while process.state is ProcessState.STARTED:  # what the child said is on its way
            await anyio.sleep(0)
    assert process.state is ProcessState.RUNNING
    assert process.exitcode is None
    assert await process.join(timeout=0) is None
    assert await process.kill() == -signal.SIGKILL
    assert process.state is ProcessState.TERMINATED
    assert (process.is_alive(), process.pid, process.exitcode) == (False, pid, -signal.SIGKILL)
    assert await process.join() == -signal.SIGKILL
    with pytest.raises(creche.ProcessDied, match="was killed by SIGKILL"):
        await process


@pytest.mark.parametrize(
    ("target", "args", "code"),
    [(targets.add, (1,), 0), (targets.fail, ("x",), 1), (targets.exit_with, (7,), 7)],
)
async def test_exit_codes(target: Any, args: tuple[Any, ...], code: int, start_method: str) -> None:
    process = AsyncProcess(target=target, args=args, start_method=start_method)
    await process.start()
    assert await process.join() == process.exitcode == code


async def test_names() -> None:
    first, second = AsyncProcess(target=targets.add), AsyncProcess(target=targets.add)
    numbers = [int(process.name.removeprefix("Process-")) for process in (first, second)]
    assert numbers[1] == numbers[0] + 1
    named = AsyncProcess(target=targets.describe_self, name="Gregor")
    assert (await named)["name"] == "Gregor"
    first.name = "renamed"
    assert first.name == "renamed"
    assert "renamed" in repr(first)


@pytest.mark.parametrize("daemon", [True, False, None])
async def test_what_the_child_sees(daemon: bool | None, start_method: str) -> None:
    process = AsyncProcess(target=targets.describe_self, daemon=daemon, start_method=start_method)
    process.authkey = b"a secret"
    seen = await process
    assert seen == {
        "name": process.name,
        "pid": process.pid,
        "daemon": bool(daemon),
        "authkey": b"a secret",
        "parent": os.getpid(),
        "parent_alive": True,
        "group": process.pid,
    }
    assert process.daemon == bool(daemon)


async def test_attributes_are_set_before_the_start(announcements: Announcements) -> None:
    async with AsyncProcess(target=targets.wait_for_ever, args=(announcements.path,)) as process:
        for attribute, value in (("name", "x"), ("daemon", True), ("authkey", b"x")):
            with pytest.raises(creche.ProcessStateError, match=f"cannot set the {attribute}"):
                setattr(process, attribute, value)
        await process.terminate()


async def test_misuse(start_method: str) -> None:
    process = AsyncProcess(target=targets.add, args=(1,), start_method=start_method)
    with pytest.raises(creche.ProcessStateError, match="it was not started"):
        await process.join()
    with pytest.raises(creche.ProcessStateError, match="was not started"):
        await process.terminate()
    with pytest.raises(creche.ProcessStateError, match="no outcome yet"):
        process.return_value  # noqa: B018
    with pytest.raises(creche.ProcessStateError, match="no sentinel"):
        process.sentinel  # noqa: B018
    await process.start()
    with pytest.raises(creche.ProcessStateError, match=r"cannot start process .* already"):
        await process.start()
    assert await process == 1
    with pytest.raises(creche.ProcessStateError, match="it is terminated already"):
        await process.start()
    process.close()
    process.close()
    for use in (process.is_alive, lambda: process.pid, lambda: process.exitcode):
        with pytest.raises(creche.ProcessClosedError, match="is closed"):
            use()
    with pytest.raises(ValueError, match="is closed"):  # as in multiprocessing
        await process.join()
    assert "closed" in repr(process)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"group": 1}, ValueError),
        ({"target": 1}, TypeError),
        ({"name": 1}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"timeout": True}, TypeError),
        ({"stop": 5}, TypeError),
        ({"start_method": "sporn"}, ValueError),
    ],
)
async def test_bad_options(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        AsyncProcess(**options)


@pytest.mark.parametrize("timeout", [-1, float("nan")])
async def test_bad_join_timeout(timeout: float) -> None:
    async with AsyncProcess(target=targets.add, args=(1,)) as process:
        with pytest.raises(ValueError, match="must be zero or more seconds"):
            await process.join(timeout)


async def test_failure(start_method: str) -> None:
    process = AsyncProcess(target=targets.fail, args=("oh",), start_method=start_method)
    with pytest.raises(LookupError, match="oh") as caught:
        await process
    assert process.exception is caught.value
    cause = caught.value.__cause__
    assert isinstance(cause, creche.RemoteTraceback)
    assert "raise LookupError(message)\nLookupError: oh" in cause.text
    package = os.path.dirname(creche.__file__)
    assert package not in cause.text  # the frames of the function alone
    with pytest.raises(creche.ProcessStateError, match="no return value"):
        process.return_value  # noqa: B018


async def test_join_does_not_own(announcements: Announcements) -> None:
    async with AsyncProcess(target=targets.wait_for_ever, args=(announcements.path,)) as process:
        await announcements.get()
        with anyio.move_on_after(0.01):
            await process.join()
        assert process.is_alive()
        assert await process.join(timeout=0.01) is None
        assert process.is_alive()
        await process.terminate()


@pytest.mark.parametrize("target", [targets.wait_for_ever, targets.wait_for_ever_async])
async def test_result_owns(target: Any, start_method: str, announcements: Announcements) -> None:
    process = AsyncProcess(target=target, args=(announcements.path,), start_method=start_method)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(process.result)
        pid = await announcements.get_pid()
        tasks.cancel_scope.cancel()
    assert process.exitcode == -signal.SIGTERM
    assert support.wait_until_gone(pid, 0)


async def test_async_with(announcements: Announcements) -> None:
    async with AsyncProcess(target=targets.add, args=(1,)) as process:
        assert process.pid is not None
    assert process.return_value == 1

    async with AsyncProcess(target=targets.fail, args=("not raised here",)) as process:
        pass
    assert isinstance(process.exception, LookupError)

    with pytest.raises(ZeroDivisionError):
        async with AsyncProcess(
            target=targets.wait_for_ever, args=(announcements.path,)
        ) as process:
            await announcements.get()
            raise ZeroDivisionError
    assert process.exitcode == -signal.SIGTERM

    with anyio.CancelScope() as scope:
        async with AsyncProcess(
            target=targets.wait_for_ever, args=(announcements.path,)
        ) as process:
            await announcements.get()
            scope.cancel()
    assert process.exitcode == -signal.SIGTERM


async def test_unasked_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncProcess(target=targets.fail, args=("unheard",), name="poor") as process:
        pass
    with caplog.at_level(logging.ERROR, "creche"):
        del process
    assert "process 'poor'" in caplog.text
    assert "LookupError: unheard" in caplog.text


async def test_sentinel(start_method: str, announcements: Announcements) -> None:
    process = AsyncProcess(
        target=targets.wait_for_ever, args=(announcements.path,), start_method=start_method
    )
    async with process:
        await announcements.get()
        sentinel = process.sentinel
        assert not connection.wait([sentinel], 0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(support.wait_readable, sentinel)
            await process.terminate()
        assert await anyio.to_thread.run_sync(connection.wait, [sentinel], TIMEOUT) == [sentinel]
    process.close()


async def test_many_waiters(announcements: Announcements) -> None:
    process = AsyncProcess(target=targets.wait_for_ever, args=(announcements.path,))
    codes: list[int | None] = []
    joining = threading.Event()

    async def join() -> None:
        codes.append(await process.join())

    async def join_from_another_loop() -> None:
        joining.set()
        await join()

    async with process:
        await announcements.get()
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(join)
            for backend in ("asyncio", "trio"):
                tasks.start_soon(
                    anyio.to_thread.run_sync,
                    lambda backend=backend: anyio.run(join_from_another_loop, backend=backend),
                )
            assert await anyio.to_thread.run_sync(joining.wait, TIMEOUT)
            await process.kill()
    assert codes == [-signal.SIGKILL] * 12


async def test_other_loops_may_only_join(announcements: Announcements) -> None:
    async with AsyncProcess(target=targets.wait_for_ever, args=(announcements.path,)) as process:

        async def use(method: Callable[[], Any]) -> None:
            with pytest.raises(creche.ProcessStateError, match="belongs to another event loop"):
                await method()

        for method in (process.result, process.terminate, process.kill, process.__aenter__):
            await anyio.to_thread.run_sync(anyio.run, use, method)
        assert process.is_alive()
        await process.kill()


def test_ended_process_can_be_used_anywhere(anyio_backend_name: str) -> None:
    process = AsyncProcess(target=targets.add, args=(1,))
    assert anyio.run(process.result, backend=anyio_backend_name) == 1
    assert anyio.run(process.result, backend=anyio_backend_name) == 1
    assert anyio.run(process.kill, backend=anyio_backend_name) == 0


async def test_another_process_may_not_use_it(announcements: Announcements) -> None:
    async with AsyncProcess(target=targets.wait_for_ever, args=(announcements.path,)) as process:
        pid = os.fork()
        if pid == 0:
            try:
                process.is_alive()
            except creche.ProcessStateError as error:
                os._exit(42 if "belongs to the process" in str(error) else 1)
            os._exit(2)
        _, status = await anyio.to_thread.run_sync(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 42
        await process.kill()


async def test_cannot_be_pickled() -> None:
    process = AsyncProcess(target=targets.add)
    with pytest.raises(TypeError, match="belongs to the process and the event loop"):
        pickle.dumps(process)
    with pytest.raises(creche.SerializationError, match="argument 1"):
        await creche.run_in_process(targets.echo, process)


def context_of(start_method: str) -> Any:
    return multiprocessing.get_context(start_method)


async def test_pipe_as_argument(start_method: str) -> None:
    receiver, sender = context_of(start_method).Pipe(duplex=False)
    with receiver, sender:
        await creche.run_in_process(
            targets.send_through, sender, {"a": 1}, start_method=start_method
        )
        assert receiver.recv() == {"a": 1}


async def test_queue_as_argument(start_method: str) -> None:
    items = context_of(start_method).SimpleQueue()
    await creche.run_in_process(targets.put, items, "item", start_method=start_method)
    assert items.get() == "item"
    items.close()


async def test_lock_as_argument(start_method: str, announcements: Announcements) -> None:
    lock = context_of(start_method).Lock()
    process = AsyncProcess(
        target=targets.with_lock, args=(lock, announcements.path), start_method=start_method
    )
    with lock:
        await process.start()
        await announcements.get()
        assert process.is_alive()
    assert await process is True


async def test_socket_as_argument(start_method: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        await creche.run_in_process(targets.send_on_socket, theirs, start_method=start_method)
        assert ours.recv(100) == b"hello"


# --- next to multiprocessing itself -------------------------------------------------------------


async def test_multiprocessing_does_not_interfere(announcements: Announcements) -> None:
    """Starting and polling its own children, multiprocessing polls ours."""
    async with AsyncProcess(target=targets.wait_for_ever, args=(announcements.path,)) as process:
        await announcements.get()
        assert process.name in [child.name for child in multiprocessing.active_children()]
        stop = threading.Event()

        def poll() -> None:
            while not stop.is_set():
                multiprocessing.active_children()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, poll)
            tasks.start_soon(anyio.to_thread.run_sync, poll)
            for _ in range(10):
                assert await creche.run_in_process(targets.add, 1) == 1
            assert await process.kill() == -signal.SIGKILL
            stop.set()
    assert process.name not in [child.name for child in multiprocessing.active_children()]


@pytest.mark.parametrize("started", [False, True], ids=["new", "running"])
async def test_wrap(start_method: str, started: bool, announcements: Announcements) -> None:
    inner = context_of(start_method).Process(
        target=targets.wait_for_ever, args=(announcements.path,), name="inner"
    )
    if started:
        await anyio.to_thread.run_sync(inner.start)
    process = AsyncProcess.wrap(inner)
    assert process.is_alive() is started
    async with process:
        assert await announcements.get_pid() == process.pid == inner.pid
        assert process.name == "inner"
        assert await process.terminate() == -signal.SIGTERM
    assert inner.exitcode == -signal.SIGTERM
    assert not inner.is_alive()
    inner.join()
    inner.close()


@pytest.mark.parametrize("started", [False, True], ids=["new", "running"])
async def test_wrap_subclass(started: bool, announcements: Announcements) -> None:
    inner = targets.OwnRun(announcements.path)
    if started:
        await anyio.to_thread.run_sync(inner.start)
    process = AsyncProcess.wrap(inner)
    assert await process is None
    assert await announcements.get() == "own"
    assert process.exitcode == inner.exitcode == 0

    process = AsyncProcess.wrap(targets.OwnRun(announcements.path, 3))
    with pytest.raises(creche.ProcessDied, match="exit code 3"):
        await process

    process = AsyncProcess.wrap(targets.OwnRun(announcements.path, -1))
    with pytest.raises(LookupError, match="from run"):
        await process


async def test_wrap_what_has_ended(start_method: str) -> None:
    inner = context_of(start_method).Process(target=targets.exit_with, args=(5,))
    await anyio.to_thread.run_sync(inner.start)
    await anyio.to_thread.run_sync(inner.join)
    process = AsyncProcess.wrap(inner)
    assert await process.join() == 5
    with pytest.raises(creche.ProcessDied, match="exit code 5"):
        await process


async def test_bad_wrap() -> None:
    with pytest.raises(TypeError, match="expected a multiprocessing process"):
        AsyncProcess.wrap(threading.Thread())  # type: ignore[arg-type]
    closed = multiprocessing.Process()
    closed.close()
    with pytest.raises(creche.ProcessClosedError):
        AsyncProcess.wrap(closed)


# --- several loops ------------------------------------------------------------------------------


def test_two_loops_in_two_threads() -> None:
    results: queue.SimpleQueue[list[int]] = queue.SimpleQueue()

    def run(backend: str) -> None:
        async def main() -> None:
            async with creche.open_nursery() as nursery:
                children = [nursery.start_soon(targets.add, i, 1) for i in range(5)]
            results.put([child.return_value for child in children])

        anyio.run(main, backend=backend)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("asyncio", "trio") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert [results.get(timeout=0) for _ in threads] == [[1, 2, 3, 4, 5]] * 4


def test_loop_ends_while_a_process_runs(
    anyio_backend_name: str, announcements: Announcements
) -> None:
    process = AsyncProcess(
        target=targets.wait_for_ever,
        args=(announcements.path,),
        stop=StopPolicy(grace=TIMEOUT),
    )
    anyio.run(process.start, backend=anyio_backend_name)
    assert announcements.get_blocking() == str(process.pid)
    assert process.is_alive()
    os.kill(process.pid or 0, signal.SIGKILL)
    # Reaped although nobody waits, and joined from another loop.
    assert anyio.run(process.join, TIMEOUT, backend=anyio_backend_name) == -signal.SIGKILL


async def test_start_does_not_hold_up_the_loop(start_method: str) -> None:
    """However long a start takes, other tasks run meanwhile."""
    process = AsyncProcess(target=targets.add, args=(1,), start_method=start_method)
    blocked = threading.Event()
    runtime().starter.submit(lambda: blocked.wait(TIMEOUT))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(process.start)
        await anyio.wait_all_tasks_blocked()
        assert process.state is ProcessState.STARTED
        assert process.pid is None
        blocked.set()
    assert process.pid is not None
    assert await process == 1


async def test_threads_of_a_child_are_no_daemons(
    start_method: str, announcements: Announcements
) -> None:
    process = AsyncProcess(
        target=targets.end_in_thread, args=(announcements.path,), start_method=start_method
    )
    assert await process is False
    assert await announcements.get() == "thread ended"
    assert process.exitcode == 0
