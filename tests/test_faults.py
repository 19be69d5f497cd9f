"""The fault matrix: one row a fault, one column a way of running, on both event loops.

A new fault is a row in :data:`FAULTS`, a new way of running a function in :data:`WAYS`; each
inherits all of the others.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import output_targets
import psutil
import pytest
import support
from support import START_METHODS, TIMEOUT, Announcements

import creche.context
from creche import (
    AsyncProcess,
    ProcessDied,
    ProcessError,
    ProcessPool,
    ProcessStartError,
    ProcessState,
    ProcessTimeout,
    RemoteError,
    RemoteTraceback,
    SerializationError,
    StopPolicy,
    open_nursery,
    open_pool,
    run_in_process,
)
from creche._platform import DEFAULT_START_METHOD

pytestmark = pytest.mark.anyio

Check = Callable[[Any], None]

PATIENT = StopPolicy(grace=TIMEOUT, exit_timeout=TIMEOUT)
"""For faults that must be noticed at once: who waits for a force that is not needed times out."""

FORCEFUL = StopPolicy(grace=0.05, exit_timeout=0.05)
"""For faults that nothing but force ends."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong in a child, and what the parent is to hear of it.

    :param func: what the child runs, with ``args``
    :param error: the type of the error that comes out; ``None`` where a value does
    :param value: the value that comes out
    :param message: a regular expression that the text of the error contains
    :param exitcode: the exit code of the process, and of :exc:`ProcessDied`; ``None`` where there
        is none, or it depends on who is faster
    :param remote: whether the child's traceback must be shown
    :param check: looks closer at the error or value
    :param stop: the stop policy of the process
    :param timeout: the timeout of the process, where only that ends it
    """

    func: Callable[..., Any]
    args: tuple[Any, ...] = ()
    error: type[BaseException] | tuple[type[BaseException], ...] | None = None
    value: Any = None
    message: str = ""
    exitcode: int | None = None
    remote: bool = False
    check: Check | None = None
    stop: StopPolicy = PATIENT
    timeout: float | None = None


def died(func: Callable[..., Any], *args: Any, exitcode: int, message: str, **more: Any) -> Fault:
    """A function that ends its process without an outcome."""
    return Fault(
        func=func, args=args, error=ProcessDied, exitcode=exitcode, message=message, **more
    )


def raised(
    func: Callable[..., Any], *args: Any, error: type[BaseException], message: str, **more: Any
) -> Fault:
    """A function whose own exception comes out, with the child's traceback."""
    return Fault(
        func=func, args=args, error=error, message=message, exitcode=1, remote=True, **more
    )


def replaced(func: Callable[..., Any], *args: Any, type_name: str, **more: Any) -> Fault:
    """A function whose exception cannot be raised in the parent as it is."""

    def check(error: RemoteError) -> None:
        assert error.type_name == type_name
        assert type_name.rpartition(".")[2] in error.traceback
        assert "Traceback (most recent call last)" in error.traceback

    return Fault(
        func=func,
        args=args,
        error=RemoteError,
        message=re.escape(type_name),
        exitcode=1,
        remote=True,
        check=check,
        **more,
    )


def unserializable(
    func: Callable[..., Any], *args: Any, message: str, exitcode: int | None, **more: Any
) -> Fault:
    return Fault(
        func=func, args=args, error=SerializationError, message=message, exitcode=exitcode, **more
    )


def survived(func: Callable[..., Any], *args: Any, value: Any, **more: Any) -> Fault:
    """A function that gives its value in spite of everything."""
    return Fault(func=func, args=args, value=value, **{"exitcode": 0, **more})


def never_ends(func: Callable[..., Any], *args: Any) -> Fault:
    """A function that its timeout ends, unwound or by force."""
    return Fault(
        func=func,
        args=args,
        error=ProcessTimeout,
        # On a busy machine it may be over before the thread that starts processes has come to it.
        message=r"(stopped after|could not be started within) its timeout of [\d.]+ seconds",
        stop=FORCEFUL,
        timeout=0.1,
    )


def has(**attributes: Any) -> Check:
    """Check attributes of an error."""

    def check(error: BaseException) -> None:
        assert {name: getattr(error, name) for name in attributes} == attributes

    return check


def has_notes(error: BaseException) -> None:
    assert error.__notes__ == ["see the manual"]
    assert isinstance(error, support.HasDefaults)
    assert error.code == 7


def is_group_of_two(group: BaseException) -> None:
    assert isinstance(group, ExceptionGroup)
    first, more = group.exceptions
    assert isinstance(first, ValueError)
    assert isinstance(more, ExceptionGroup)
    assert isinstance(more.exceptions[0], KeyError)


def has_timeout_of_its_own(error: BaseException) -> None:
    assert not isinstance(error, ProcessError)


def ends_and_kills(pid: int) -> None:
    """The value is the pid of a descendant with a session of its own, which is not creche's."""
    assert psutil.pid_exists(pid)
    os.kill(pid, signal.SIGKILL)
    assert support.wait_until_gone(pid)


def was_killed(pid: int) -> None:
    assert support.wait_until_gone(pid)


UNPICKLABLE = r"cannot be pickled"

FAULTS: dict[str, Fault] = {
    # Ends without an outcome.
    "segfault": died(support.segfault, exitcode=-11, message="was killed by SIGSEGV"),
    "abort": died(support.abort, exitcode=-6, message="was killed by SIGABRT"),
    "os._exit(3)": died(support.exit_at_once, 3, exitcode=3, message="exit code 3"),
    "os._exit(0)": died(
        support.exit_at_once, 0, exitcode=0, message="exit code 0 and without a result"
    ),
    "os._exit-in-thread": died(support.exit_from_thread, exitcode=5, message="exit code 5"),
    "sys.exit()": died(support.exit_in_order, exitcode=0, message="exit code 0"),
    "sys.exit(3)": died(support.exit_in_order, 3, exitcode=3, message="exit code 3"),
    "sys.exit(message)": died(
        support.exit_in_order,
        "out of cheese",
        exitcode=1,
        message="out of cheese",
        check=has(detail="out of cheese"),
    ),
    "sys.exit(unprintable)": died(
        support.exit_with_unprintable_reason, exitcode=1, message="raised ValueError"
    ),
    "async-sys.exit(3)": died(support.exit_in_order_async, 3, exitcode=3, message="exit code 3"),
    "kill-9": died(
        support.send_signal, signal.SIGKILL, exitcode=-9, message="was killed by SIGKILL"
    ),
    "SIGTERM-by-itself": died(
        support.send_signal, signal.SIGTERM, exitcode=-15, message="was killed by SIGTERM"
    ),
    "SIGUSR1": died(
        support.send_signal, signal.SIGUSR1, exitcode=-10, message="was killed by SIGUSR1"
    ),
    "grandchild-and-crash": died(
        support.spawn_grandchild_and_crash, exitcode=-9, message="was killed by SIGKILL"
    ),
    "dies-while-sending": died(
        support.die_while_sending, exitcode=0, message="while sending its result"
    ),
    "descriptors-closed": died(support.close_descriptors, exitcode=1, message="exit code 1"),
    "descriptors-reused": died(support.steal_socket_pair, exitcode=1, message="exit code 1"),
    # Exceptions of the function.
    "exception": raised(support.raise_it, ValueError("wrong"), error=ValueError, message="^wrong$"),
    "async-exception": raised(
        support.raise_it_async, ValueError("wrong"), error=ValueError, message="^wrong$"
    ),
    "exception-with-note": raised(
        support.raise_with_note,
        error=support.HasDefaults,
        message="with a note",
        check=has_notes,
    ),
    "exception-with-cause": raised(support.raise_from, error=ValueError, message="the consequence"),
    "TimeoutError": raised(
        support.raise_type,
        TimeoutError,
        "its own",
        error=TimeoutError,
        message="its own",
        check=has_timeout_of_its_own,
    ),
    "ExceptionGroup": raised(
        support.raise_group, error=ExceptionGroup, message="two", check=is_group_of_two
    ),
    "BaseException": raised(
        support.raise_type,
        support.CustomBaseException,
        "odd",
        error=support.CustomBaseException,
        message="odd",
    ),
    "StopAsyncIteration": raised(
        support.raise_type, StopAsyncIteration, "odd", error=StopAsyncIteration, message="odd"
    ),
    "RecursionError": raised(support.recurse, error=RecursionError, message="recursion"),
    "MemoryError": raised(support.run_out_of_memory, error=MemoryError, message=""),
    "nested-ProcessDied": raised(
        support.raise_process_died,
        error=ProcessDied,
        message="process 'inner' \\(pid 4711\\)",
        check=has(signal=9, name="inner", pid=4711, detail="seen in a child"),
    ),
    "unprintable-exception": raised(
        support.raise_type, support.Unprintable, error=support.Unprintable, message=""
    ),
    # Without memory for an exception, CPython has a SystemError at times.
    "no-memory-for-the-report": Fault(
        func=support.fill_memory,
        error=(MemoryError, SystemError, RemoteError, ProcessDied),
        exitcode=1,
    ),
    # Exceptions that cannot be raised here.
    "two-argument-exception": replaced(
        support.raise_type, support.TwoArguments, "this", "that", type_name="support.TwoArguments"
    ),
    "unpicklable-exception": replaced(
        support.raise_type, support.HoldsALock, "locked", type_name="support.HoldsALock"
    ),
    "exception-refuses-pickling": replaced(
        support.raise_type, support.RefusesPickling, type_name="support.RefusesPickling"
    ),
    "exception-exits-on-pickling": replaced(
        support.raise_type, support.ExitsOnPickling, type_name="support.ExitsOnPickling"
    ),
    "exception-exits-on-unpickling": replaced(
        support.raise_type, support.ExitsOnUnpickling, type_name="support.ExitsOnUnpickling"
    ),
    "exception-becomes-a-number": replaced(
        support.raise_type, support.BecomesANumber, type_name="support.BecomesANumber"
    ),
    "local-exception": replaced(
        support.raise_local_type, type_name="support.raise_local_type.<locals>.Local"
    ),
    "KeyboardInterrupt": replaced(
        support.raise_type, KeyboardInterrupt, type_name="builtins.KeyboardInterrupt"
    ),
    "SIGINT-by-itself": replaced(
        support.send_signal, signal.SIGINT, type_name="builtins.KeyboardInterrupt"
    ),
    "GeneratorExit": replaced(
        support.raise_type, GeneratorExit, type_name="builtins.GeneratorExit"
    ),
    "StopIteration": replaced(
        # A coroutine cannot raise it: Python would turn it into a RuntimeError.
        support.raise_type,
        StopIteration,
        "odd",
        type_name="builtins.StopIteration",
    ),
    "CancelledError": replaced(
        support.raise_cancelled, type_name="asyncio.exceptions.CancelledError"
    ),
    # The function or its arguments do not travel.
    "lambda": unserializable(
        lambda: 1, message=f"(the function|argument 1), .*<lambda>.* {UNPICKLABLE}", exitcode=None
    ),
    "local-function": unserializable(
        (lambda: lambda: 1)(), message="top level of a module", exitcode=None
    ),
    "lock-as-argument": unserializable(
        support.ignore, 1, threading.Lock(), message=rf"argument \d, .*{UNPICKLABLE}", exitcode=None
    ),
    "file-as-argument": unserializable(
        support.ignore,
        support.open_file(),
        message=rf"argument \d, .*{UNPICKLABLE}",
        exitcode=None,
    ),
    "generator-as-argument": unserializable(
        support.ignore, (i for i in [1]), message=rf"argument \d, .*{UNPICKLABLE}", exitcode=None
    ),
    "argument-exits-on-pickling": unserializable(
        support.ignore,
        support.LeavesOnPickling(raise_exit := support.exit_in_order, 9),
        message=UNPICKLABLE,
        exitcode=None,
    ),
    "argument-raises-unprintable-on-pickling": unserializable(
        support.ignore,
        support.LeavesOnPickling(support.raise_type, support.Unprintable),
        message=UNPICKLABLE,
        exitcode=None,
    ),
    "argument-raises-on-unpickling": unserializable(
        support.ignore,
        support.RefusesUnpickling(),
        message="RuntimeError: not in here",
        exitcode=1,
        remote=True,
    ),
    "argument-crashes-on-unpickling": died(
        support.ignore, support.LeavesOnUnpickling(os._exit, 4), exitcode=4, message="exit code 4"
    ),
    "argument-exits-on-unpickling": Fault(
        func=support.ignore,
        args=(support.LeavesOnUnpickling(raise_exit, 4),),
        error=(SerializationError, ProcessDied),
        message="4",
    ),
    # The value does not travel.
    "unpicklable-value": unserializable(
        support.make,
        threading.Lock,
        message=f"_thread.lock, {UNPICKLABLE}",
        exitcode=1,
        remote=True,
    ),
    "lambda-as-value": unserializable(
        support.make_lambda, message=f"function, {UNPICKLABLE}", exitcode=1, remote=True
    ),
    "async-unpicklable-value": unserializable(
        support.make_async,
        threading.Lock,
        message=f"_thread.lock, {UNPICKLABLE}",
        exitcode=1,
        remote=True,
    ),
    "value-too-deep": unserializable(
        support.make_deep_list, message=f"RecursionError|MemoryError|{UNPICKLABLE}", exitcode=1
    ),
    "value-exits-on-pickling": unserializable(
        support.make, support.LeavesOnPickling, raise_exit, 9, message=UNPICKLABLE, exitcode=1
    ),
    "value-crashes-on-pickling": died(
        support.make, support.LeavesOnPickling, os._exit, 9, exitcode=9, message="exit code 9"
    ),
    "value-raises-on-unpickling": unserializable(
        support.make, support.RefusesUnpickling, message="RuntimeError: not in here", exitcode=0
    ),
    "value-raises-unprintable-on-unpickling": unserializable(
        support.make,
        support.LeavesOnUnpickling,
        support.raise_type,
        support.Unprintable,
        message="Unprintable",
        exitcode=0,
    ),
    "value-exits-on-unpickling": unserializable(
        support.make, support.LeavesOnUnpickling, raise_exit, 9, message="SystemExit", exitcode=0
    ),
    "value-interrupts-on-unpickling": unserializable(
        support.make,
        support.LeavesOnUnpickling,
        support.raise_type,
        KeyboardInterrupt,
        message="KeyboardInterrupt",
        exitcode=0,
    ),
    # Something else talks on the connection.
    "garbage": unserializable(
        support.write_garbage, message="wrote to creche's connection", exitcode=None
    ),
    "enormous-result": unserializable(
        support.announce_enormous_result, message="wrote to creche's connection", exitcode=None
    ),
    "forged-result": unserializable(
        support.forge_result, message="could not be unpickled", exitcode=0
    ),
    # Values in spite of everything.
    "big-value": survived(support.payload, 32 * 1024**2, value=bytes(32 * 1024**2)),
    "many-objects": survived(support.many_objects, 100_000, value=support.many_objects(100_000)),
    "big-argument": survived(len, bytes(32 * 1024**2), value=32 * 1024**2),
    "thread-left-behind": survived(
        support.leave_thread_behind, value="a thread is left", exitcode=-9, stop=FORCEFUL
    ),
    "hangs-at-exit": survived(support.hang_in_finalizer, value="hangs", exitcode=-9, stop=FORCEFUL),
    "stopped-at-exit": survived(
        support.stop_in_finalizer, value="stopped", exitcode=-9, stop=FORCEFUL
    ),
    "crashes-at-exit": survived(support.crash_in_finalizer, value="crashes", exitcode=7),
    "standard-streams-closed": survived(support.close_standard_streams, value="no streams"),
    "forks-and-returns": survived(support.fork_and_return, value="the child"),
    "grandchild": Fault(func=support.spawn_grandchild, exitcode=0, check=was_killed),
    "grandchild-in-new-session": Fault(
        func=support.spawn_grandchild_in_new_session, exitcode=0, check=ends_and_kills
    ),
    "raises-and-hangs": Fault(
        func=support.raise_and_hang, error=ValueError, exitcode=-9, stop=FORCEFUL, remote=True
    ),
    "exits-and-hangs": died(support.exit_and_hang, exitcode=-9, message="and hangs", stop=FORCEFUL),
    # Nothing but the timeout ends it.
    "waits": never_ends(support.wait_for_ever),
    "async-waits": never_ends(support.wait_for_ever_async),
    "busy-loop": never_ends(support.busy_loop),
    "holds-the-GIL": never_ends(support.hold_the_gil),
    "ignores-SIGTERM": never_ends(support.ignore_sigterm),
    "swallows-stop": never_ends(support.swallow_stop),
    "hangs-in-finally": never_ends(support.hang_in_finally),
    "stops-itself": never_ends(support.send_signal, signal.SIGSTOP),
}


# --- ways of running ------------------------------------------------------------------------------


@dataclass
class Run:
    """One run of a fault: what the way of running gets, and what it notes down."""

    fault: Fault
    start_method: str
    process: AsyncProcess[Any] | None = field(default=None)

    def make_process(self, **options: Any) -> AsyncProcess[Any]:
        self.process = AsyncProcess(
            target=self.fault.func,
            args=self.fault.args,
            stop=self.fault.stop,
            timeout=self.fault.timeout,
            start_method=self.start_method,
            **options,
        )
        return self.process


async def by_run_in_process(run: Run) -> Any:
    fault = run.fault
    return await run_in_process(
        fault.func,
        *fault.args,
        stop=fault.stop,
        timeout=fault.timeout,
        start_method=run.start_method,
    )


async def by_result(run: Run) -> Any:
    return await run.make_process().result()


async def by_captured_result(run: Run) -> Any:
    """With its output in a stream that nobody reads, and a context variable."""
    with creche.context.carry(output_targets.request_id):
        output_targets.request_id.set("r1")
        return await run.make_process(stdout="stream", stderr=logging.getLogger("faults")).result()


async def by_block(run: Run) -> Any:
    async with run.make_process() as process:
        pass
    return outcome_of(process)


async def by_join(run: Run) -> Any:
    async with run.make_process() as process:
        if run.fault.stop is PATIENT:  # joining does not end a process that hangs at exit
            await process.join()
            assert process.state is ProcessState.TERMINATED
    return outcome_of(process)


async def by_start_soon(run: Run) -> Any:
    fault = run.fault
    async with open_only_one(run) as nursery:
        run.process = nursery.start_soon(
            fault.func, *fault.args, stop=fault.stop, timeout=fault.timeout
        )
    return run.process.return_value


async def by_start(run: Run) -> Any:
    """Fails before it is ready."""
    fault = run.fault
    async with open_only_one(run) as nursery:
        await nursery.start(fault.func, *fault.args, stop=fault.stop, timeout=fault.timeout)


async def by_start_when_ready(run: Run) -> Any:
    """Fails after it was ready."""
    fault = run.fault

    async def note_process() -> None:  # while it starts: once it is ready, it may end
        (run.process,) = nursery.processes

    failure: Exception | None = None
    async with open_only_one(run) as nursery:
        async with anyio.create_task_group() as group:
            group.start_soon(note_process)
            try:
                ready = await nursery.start(
                    support.started_then,
                    fault.func,
                    *fault.args,
                    stop=fault.stop,
                    timeout=fault.timeout,
                )
                assert ready == "ready"
            except Exception as error:  # the task group would wrap it
                failure = error
        if failure is not None:
            raise failure
    assert run.process is not None
    return run.process.return_value


async def by_pool_run(run: Run) -> Any:
    """In a worker that has served a call before; the pool serves another one afterwards."""
    fault = run.fault
    async with open_warm_pool(run) as pool:
        try:
            return await pool.run(fault.func, *fault.args, timeout=fault.timeout)
        finally:
            await check_pool(pool)


async def by_pool_map(run: Run) -> Any:
    """As the only item of a map, whose error has a note that says so."""
    fault = run.fault
    func, args = (fault.func, fault.args) if fault.args else (support.call, (fault.func,))
    async with open_warm_pool(run) as pool:
        values: list[Any] = []
        try:
            mapped = pool.map(func, *([arg] for arg in args), timeout=fault.timeout)
            values.extend([value async for value in mapped])
        except BaseException as error:
            *notes, note = error.__notes__
            assert note.startswith("This was item 0 of the map")
            error.__notes__ = notes
            raise
        finally:
            await check_pool(pool)
    assert values, "the map ended as if there had been no item"
    return values[0]


@asynccontextmanager
async def open_warm_pool(run: Run) -> AsyncIterator[ProcessPool]:
    async with open_pool(1, stop=run.fault.stop, start_method=run.start_method) as pool:
        assert await pool.run(support.double, 1) == 2
        yield pool


async def check_pool(pool: ProcessPool) -> None:
    """Whatever has happened: it serves calls and maps, in a worker of which nothing is odd."""
    assert await pool.run(support.double, 21) == 42
    assert [value async for value in pool.map(support.double, range(5))] == [0, 2, 4, 6, 8]
    statistics = pool.statistics()
    assert statistics.workers_alive == statistics.workers_idle == 1
    assert statistics.calls_queued == statistics.calls_running == 0


Way = Callable[[Run], Awaitable[Any]]

WAYS: dict[str, Way] = {
    "run_in_process": by_run_in_process,
    "result": by_result,
    "captured": by_captured_result,
    "block": by_block,
    "join": by_join,
    "start_soon": by_start_soon,
    "start": by_start,
    "start_when_ready": by_start_when_ready,
    "pool_run": by_pool_run,
    "pool_map": by_pool_map,
}

POOL_WAYS = (by_pool_run, by_pool_map)

# What goes wrong in another way in a worker. (Nobody hears of the exit code of a worker that serves
# on, and what hangs at exit concerns but the end of the pool.)
FAULTS_IN_WORKERS: dict[str, Fault] = {
    # A worker answers over a wire of its own, in a format of its own.
    "dies-while-sending": died(
        support.die_while_answering, exitcode=0, message="while sending its result"
    ),
    # This is a result on the process's own wire alone, and whichever is read first makes the error.
    "forged-result": unserializable(
        support.forge_result,
        message="could not be unpickled|wrote to creche's connection",
        exitcode=None,
    ),
}


# What goes wrong in another way in a map.
FAULTS_IN_MAPS: dict[str, Fault] = {
    # Raised by an async iterator, it would be the end of the values.
    "StopAsyncIteration": replaced(
        support.raise_type, StopAsyncIteration, "odd", type_name="builtins.StopAsyncIteration"
    ),
}


def fault_for(name: str, way: Way) -> Fault:
    if way is by_pool_map and name in FAULTS_IN_MAPS:
        return FAULTS_IN_MAPS[name]
    if way in POOL_WAYS:
        return FAULTS_IN_WORKERS.get(name, FAULTS[name])
    return FAULTS[name]


def outcome_of(process: AsyncProcess[Any]) -> Any:
    if process.exception is not None:
        raise process.exception
    return process.return_value


class open_only_one:
    """A nursery with one process, whose failure comes out of the group it is in."""

    def __init__(self, run: Run) -> None:
        self._nursery = open_nursery(start_method=run.start_method)

    async def __aenter__(self) -> Any:
        return await self._nursery.__aenter__()

    async def __aexit__(self, *exc_info: Any) -> None:
        failure: BaseException | None = None
        try:
            await self._nursery.__aexit__(*exc_info)
        except BaseExceptionGroup as group:
            (failure,) = group.exceptions
        if failure is not None:
            raise failure


def expected_of(fault: Fault, way: Way) -> Fault:
    """What a way of running makes of a fault."""
    if way is by_start and fault.error is None:
        return Fault(
            func=fault.func,
            error=ProcessStartError,
            message=r"without calling creche\.from_process\.started\(\)",
        )
    return fault


async def check_fault(fault: Fault, way: Way, start_method: str) -> None:
    run = Run(fault, start_method)
    error: BaseException | None = None
    value: Any = None
    with anyio.fail_after(TIMEOUT):
        try:
            value = await way(run)
        except BaseException as caught:
            if isinstance(caught, anyio.get_cancelled_exc_class()):
                raise
            error = caught

    expected = expected_of(fault, way)
    if error is not None and expected.error is None:
        raise error
    if expected.error is None:
        assert expected.check is not None or value == expected.value
    else:
        check_error(error, expected)
    if expected.check is not None:
        expected.check(value if expected.error is None else error)
    if run.process is not None:
        check_process(run.process, fault)


def check_error(error: BaseException | None, expected: Fault) -> None:
    assert expected.error is not None
    assert isinstance(error, expected.error), repr(error)
    if expected.message:
        assert re.search(expected.message, str(error)), str(error)
    if expected.remote:
        assert isinstance(error.__cause__, RemoteTraceback)
        assert "Traceback (most recent call last)" in str(error.__cause__)
    if type(error) is ProcessDied and not expected.remote:
        assert expected.exitcode in (error.exitcode, None)
        code = error.exitcode
        assert error.signal == (-code if code is not None and code < 0 else None)
        assert error.pid is not None


def check_process(process: AsyncProcess[Any], fault: Fault) -> None:
    assert process.state is ProcessState.TERMINATED
    assert not process.is_alive()
    if fault.exitcode is not None:
        assert process.exitcode == fault.exitcode
    if process.pid is not None:
        assert not psutil.pid_exists(process.pid)


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
async def test_fault(name: str, way: Way) -> None:
    fault = fault_for(name, way)
    if way is by_start and fault.check is ends_and_kills:
        pytest.skip("nobody hears of the value, the pid of what must be killed")
    await check_fault(fault, way, DEFAULT_START_METHOD)


@pytest.mark.either_backend
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize(
    "start_method", [method for method in START_METHODS if method != DEFAULT_START_METHOD]
)
async def test_fault_with_other_start_methods(fault: Fault, start_method: str) -> None:
    if fault.timeout is not None and start_method == "spawn":  # takes longer to get to the fault
        fault = replace(fault, timeout=0.4)
    await check_fault(fault, by_run_in_process, start_method)


# --- stopping -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Stubborn:
    """What a process that is to be stopped does just then; it announces when it has got there.

    :param func: called with the path of the announcements, after ``args``
    :param exitcodes: how it may end when it is asked to
    """

    func: Callable[..., Any]
    args: tuple[Any, ...] = ()
    exitcodes: tuple[int, ...] = (-signal.SIGTERM,)

    @property
    def policy(self) -> StopPolicy:
        return FORCEFUL if -signal.SIGKILL in self.exitcodes else PATIENT


def announcing(func: Callable[..., Any], *args: Any, **more: Any) -> Stubborn:
    return Stubborn(func=announce_before, args=(func, *args), **more)


def announce_before(func: Callable[..., Any], *args: Any) -> Any:
    *args_of_func, ready = args
    return support.announce_then(ready, func, *args_of_func)


STUBBORN: dict[str, Stubborn] = {
    "waits": announcing(support.wait_for_ever),
    "busy-loop": announcing(support.busy_loop),
    "async": Stubborn(func=support.clean_up_async),
    "cleans-up": Stubborn(func=support.clean_up),
    "stopped": announcing(support.send_signal, signal.SIGSTOP),
    "hangs-at-exit": Stubborn(func=support.announce_at_exit_and_hang),
    "grandchild": Stubborn(func=support.spawn_grandchild_and_wait),
    "holds-the-GIL": announcing(  # or has only just announced that it will
        support.hold_the_gil, exitcodes=(-signal.SIGKILL, -signal.SIGTERM)
    ),
    "ignores-SIGTERM": Stubborn(func=support.ignore_sigterm, exitcodes=(-signal.SIGKILL,)),
    "swallows-stop": Stubborn(func=support.swallow_stop, exitcodes=(-signal.SIGKILL,)),
    "hangs-in-finally": Stubborn(func=support.hang_in_finally, exitcodes=(-signal.SIGKILL,)),
}


async def stop_by_terminate(process: AsyncProcess[Any], running: Awaitable[object]) -> None:
    await process.start()
    await running
    await process.terminate()


async def stop_by_kill(process: AsyncProcess[Any], running: Awaitable[object]) -> None:
    await process.start()
    await running
    assert await process.kill() == -signal.SIGKILL


async def stop_by_cancelling_result(process: AsyncProcess[Any], running: Awaitable[object]) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(process.result)
        await running
        group.cancel_scope.cancel()


async def stop_by_leaving_the_block(process: AsyncProcess[Any], running: Awaitable[object]) -> None:
    with pytest.raises(LookupError):
        async with process:
            await running
            raise LookupError("in the block")


async def stop_by_cancelling_the_block(
    process: AsyncProcess[Any], running: Awaitable[object]
) -> None:
    with anyio.CancelScope() as scope:
        async with process:
            await running
            scope.cancel()


STOPS = {
    "terminate": stop_by_terminate,
    "kill": stop_by_kill,
    "cancel-result": stop_by_cancelling_result,
    "leave-block": stop_by_leaving_the_block,
    "cancel-block": stop_by_cancelling_the_block,
}


@pytest.mark.parametrize("stubborn", STUBBORN.values(), ids=STUBBORN.keys())
@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS.keys())
async def test_stop(stubborn: Stubborn, stop: Any, announcements: Announcements) -> None:
    process: AsyncProcess[Any] = AsyncProcess(
        target=stubborn.func, args=(*stubborn.args, announcements.path), stop=stubborn.policy
    )
    pid = 0

    async def running() -> None:
        nonlocal pid
        pid = await announcements.get_pid()

    with anyio.fail_after(TIMEOUT):
        await stop(process, running())
        assert not process.is_alive()
        assert process.pid is not None
        assert not psutil.pid_exists(process.pid)
        if stop is not stop_by_kill:
            assert process.exitcode in stubborn.exitcodes
    # Of the process or of its grandchild, which is killed, but has another parent to reap it.
    assert support.wait_until_gone(pid)
    if stubborn.func in (support.clean_up, support.clean_up_async) and stop is not stop_by_kill:
        assert await announcements.get() == "cleaned up"


async def test_exception_while_being_stopped(announcements: Announcements) -> None:
    """What the function raises while it cleans up is its outcome."""
    with anyio.fail_after(TIMEOUT):
        async with AsyncProcess(
            target=support.raise_in_finally, args=(announcements.path,)
        ) as process:
            await announcements.get()
            await process.terminate()
    assert isinstance(process.exception, ValueError)
    assert process.exitcode == 1


async def test_exception_while_timing_out(announcements: Announcements) -> None:
    process = AsyncProcess[None](
        target=support.raise_in_finally,
        args=(announcements.path,),
        timeout=2 * TIMEOUT,
        stop=PATIENT,
    )
    with anyio.fail_after(TIMEOUT):
        async with process:
            await announcements.get()
            support.time_out(process)
    assert isinstance(process.exception, ProcessTimeout)
    assert isinstance(process.exception.__cause__, ValueError)


release_unpickling = threading.Event()


def unpickle_slowly(path: str) -> None:
    """In the parent: what a value that takes long to unpickle does."""
    support.announce(path)
    release_unpickling.wait(TIMEOUT)


async def test_cancel_while_unpickling(announcements: Announcements) -> None:
    """The process is gone; what is left is a thread that makes its value, for nobody."""
    release_unpickling.clear()
    process: AsyncProcess[Any] = AsyncProcess(
        target=support.make,
        args=(support.LeavesOnUnpickling, unpickle_slowly, announcements.path),
        stop=PATIENT,
    )
    try:
        with anyio.fail_after(TIMEOUT / 2):
            async with anyio.create_task_group() as group:
                group.start_soon(process.result)
                assert await announcements.get_pid() == os.getpid()
                group.cancel_scope.cancel()
    finally:
        release_unpickling.set()


async def test_cancel_while_a_big_result_arrives(announcements: Announcements) -> None:
    process: AsyncProcess[Any] = AsyncProcess(
        target=support.announce_then,
        args=(announcements.path, support.payload, 512 * 1024**2),
        stop=PATIENT,
    )
    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as group:
            group.start_soon(process.result)
            pid = await announcements.get_pid()
            group.cancel_scope.cancel()
    assert not psutil.pid_exists(pid)


async def test_cancel_while_a_big_argument_is_sent(start_method: str) -> None:
    """The child never takes it in."""
    argument = bytes(256 * 1024**2)
    with anyio.fail_after(TIMEOUT):
        process: AsyncProcess[Any] = AsyncProcess(
            target=len, args=(argument,), start_method=start_method
        )
        async with anyio.create_task_group() as group:
            group.start_soon(process.result)
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        assert not process.is_alive()
