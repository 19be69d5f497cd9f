"""What a running child asks of its parent, and tells it."""

from __future__ import annotations

import functools
import gc
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import talk_targets as targets
from log_collector import Collector
from support import (
    TIMEOUT,
    Announcements,
    LeavesOnUnpickling,
    RefusesPickling,
    RefusesUnpickling,
    Unprintable,
    double,
    make_lambda,
    open_descriptors,
    payload,
    raise_type,
    time_out,
    until,
    write_garbage,
)

import creche
from creche import (
    AsyncProcess,
    ProcessDied,
    ProcessPool,
    ProcessStateError,
    ProcessTimeout,
    Progress,
    RemoteError,
    RemoteTraceback,
    SerializationError,
    StopPolicy,
    from_process,
    open_nursery,
    open_pool,
    run_in_process,
)
from creche._platform._posix_wire import ChildWire
from creche._progress_feed import ProgressFeed
from creche._runtime import runtime
from creche._wire._framing import FrameKind, Section, pack

pytestmark = pytest.mark.anyio

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def nothing_noted() -> None:
    targets.noted.clear()


@pytest.fixture(params=["process", "pool"])
async def run(request: pytest.FixtureRequest) -> AsyncIterator[Run]:
    """Run a function in a process of its own, or in a worker."""
    if request.param == "process":
        yield run_in_process
    else:
        async with open_pool(1) as pool:
            yield pool.run


@pytest.fixture(params=["line", "wire"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """How requests travel: over lines, or over the wire, as on Windows."""
    if request.param == "wire":
        # Children are forks, so that what is patched here is so there.
        monkeypatch.setattr(ChildWire, "open_line", lambda *_: None)
    return str(request.param)


RUNNERS = [targets.run, targets.arun]
SYNC_RUNNERS = [targets.run_sync, targets.arun_sync]


# --- calling the parent ---------------------------------------------------------------------------


@pytest.mark.parametrize("runner", SYNC_RUNNERS)
async def test_sync_function_runs_in_the_event_loop(run: Run, runner: Run) -> None:
    here = os.getpid(), threading.current_thread().name
    assert await run(runner, targets.where, "x") == (*here, "x")


@pytest.mark.parametrize("runner", [*RUNNERS, targets.run_in_event_loop])
async def test_async_function_runs_in_the_event_loop(run: Run, runner: Run) -> None:
    here = os.getpid(), threading.current_thread().name
    assert await run(runner, targets.where_async, "x") == (*here, "x")


async def test_every_start_method(start_method: str) -> None:
    for runner, func in [(targets.run, targets.where_async), (targets.run_sync, targets.where)]:
        process = AsyncProcess(target=runner, args=(func,), start_method=start_method)
        assert (await process)[0] == os.getpid()


@pytest.mark.parametrize("runner", [*RUNNERS, *SYNC_RUNNERS])
async def test_over_the_wire(way: str, runner: Run) -> None:
    async with open_pool(1, start_method="fork") as pool:
        for func in (targets.fail, targets.fail_async):
            if (func is targets.fail_async) == (runner in RUNNERS):
                with pytest.raises(LookupError, match="oh"):
                    await pool.run(runner, func, "oh")
        give = targets.give_async if runner in RUNNERS else targets.give
        assert await pool.run(runner, give, payload, 2_000_000) == payload(2_000_000)
        assert await pool.run(targets.run_in_threads, 4, 20) == 80
        assert await pool.run(targets.mix_threads_and_tasks, 3, 10) == 2 * 3 * 10


@pytest.mark.parametrize("runner", [*RUNNERS, *SYNC_RUNNERS])
async def test_error_comes_back(run: Run, runner: Run) -> None:
    func = targets.fail_async if runner in RUNNERS else targets.fail
    with pytest.raises(LookupError, match="oh") as caught:
        await run(runner, func, "oh")
    # The traceback of the child shows where it called, and as its cause where that failed here.
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    text = str(caught.value.__cause__)
    assert text.index("raise LookupError(text)") < text.index("the direct cause")
    assert "talk_targets.py" in text


async def test_error_has_the_traceback_of_the_parent(run: Run) -> None:
    assert "in fail" in await run(_traceback_of_failure)


def _traceback_of_failure() -> str:
    try:
        from_process.run_sync(targets.fail, "oh")
    except LookupError as error:
        return str(error.__cause__)
    return ""


async def test_error_that_cannot_be_pickled(run: Run) -> None:
    with pytest.raises(RemoteError, match="RefusesPickling"):
        await run(targets.run_sync, _raise_refusing)


def _raise_refusing() -> None:
    raise RefusesPickling("oh")


async def test_large_arguments_and_results(run: Run) -> None:
    data = payload(3_000_000)
    assert await run(targets.run_sync, targets.give, bytes, data) == data
    assert await run(targets.run, targets.give_async, bytes, data) == data
    numbers = list(range(200_000))
    assert await run(targets.run_sync, targets.give, list, numbers) == numbers


async def test_large_arguments_and_results_hold_up_no_event_loop(run: Run) -> None:
    """They are pickled and unpickled elsewhere, in the child as in the parent."""
    pickled, unpickled, *back = await run(targets.send_there_and_back)
    assert "MainThread" not in {pickled, unpickled, *back}
    assert len(back) == 2


async def test_large_request_to_a_parent_that_does_not_read(tmp_path: Path) -> None:
    """It can be given up at once, and the event loop of the child goes on."""
    go = tmp_path / "go"
    os.mkfifo(go)
    with anyio.fail_after(TIMEOUT):
        results = await run_in_process(targets.give_up_a_large_request, str(go))
    assert set(results) == {None, 3}


async def test_what_cannot_be_pickled(run: Run) -> None:
    with pytest.raises(SerializationError, match=r"cannot call this in the parent.*argument 1"):
        await run(_request_with, make_lambda)
    with pytest.raises(SerializationError, match="result of the function that the parent called"):
        await run(targets.run_sync, make_lambda)


def _request_with(make: Callable[[], Any]) -> Any:
    return from_process.run_sync(targets.note, make())


async def test_what_cannot_be_unpickled(run: Run) -> None:
    with pytest.raises(SerializationError, match="parent could not unpickle"):
        await run(_request_with, RefusesUnpickling)
    with pytest.raises(SerializationError, match="could not be unpickled"):
        await run(targets.run_sync, targets.give, RefusesUnpickling)
    with pytest.raises(SerializationError, match="could not be unpickled"):
        await run(targets.run_sync, targets.give, LeavesOnUnpickling, raise_type, Unprintable)


async def test_context_variables_of_the_starter(run: Run) -> None:
    assert await run(targets.run_sync, targets.request_id) == "none"
    targets.REQUEST_ID.set("abc")
    assert await run_in_process(targets.run_sync, targets.request_id) == "abc"
    assert await run_in_process(targets.run, targets.request_id_async) == "abc"
    async with open_pool(1) as pool:
        assert await pool.run(targets.arun_sync, targets.request_id) == "abc"


async def test_anyio_knows_the_event_loop(run: Run) -> None:
    assert "Event" in await run(targets.run_sync, targets.make_event)


async def test_many_threads_and_tasks_at_once(run: Run) -> None:
    assert await run(targets.run_in_threads, 8, 50) == 400
    assert await run(targets.arun_in_tasks, 8, 25) == 200
    assert await run(targets.mix_threads_and_tasks, 4, 25) == 200


async def test_blocking_request_in_an_event_loop_that_reads(run: Run) -> None:
    assert await run(targets.block_while_another_task_waits) == [3, "first"]


async def test_request_in_a_signal_handler() -> None:
    """What it receives for the request that it interrupts is not lost."""
    process = AsyncProcess(target=targets.ask_when_alarmed)
    await process.start()
    await until(lambda: "outer begun" in targets.noted)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGALRM)
    with anyio.fail_after(TIMEOUT):
        assert await process == ["outer over", "outer"]


async def test_blocking_request_while_another_thread_reads(announcements: Announcements) -> None:
    """When the thread has its reply, the task cannot read: its event loop is blocked."""
    process = AsyncProcess(target=targets.block_over_waiting_task, args=(announcements.path,))
    await process.start()
    await until(lambda: "blocking begun" in targets.noted)
    targets.note("thread")
    assert await announcements.get() == "the thread has left"
    targets.note("blocking")
    await until(lambda: "blocking over" in targets.noted)
    targets.note("task")
    with anyio.fail_after(TIMEOUT):
        assert await process == ["thread", "blocking", "task"]


async def test_blocking_request_takes_what_the_event_loop_was_to_receive() -> None:
    with anyio.fail_after(TIMEOUT):
        values = await run_in_process(targets.take_replies_from_the_event_loop, 20)
    assert values == [2 * number for number in range(20)]


@pytest.mark.parametrize("where", ["opening", "_sock.sendall", "_messages.feed"])
async def test_request_in_the_middle_of_another(where: str) -> None:
    """In a finalizer, or a signal handler: it cannot wait for what waits for it."""
    with anyio.fail_after(TIMEOUT):
        (error,) = await run_in_process(targets.ask_while_asking, where)
    assert "cannot ask the parent" in error


async def test_request_in_the_middle_of_another_over_the_wire(way: str) -> None:
    where = "wire" if way == "wire" else "_sock.sendall"
    async with open_pool(1, start_method="fork") as pool:
        with anyio.fail_after(TIMEOUT):
            (error,) = await pool.run(targets.ask_while_asking, where)
    assert "cannot ask the parent" in error


async def test_system_exit_in_the_parent_is_the_childs() -> None:
    with pytest.raises(ProcessDied) as caught:
        await run_in_process(targets.run_sync, targets.leave)
    assert caught.value.exitcode == 3


@pytest.mark.parametrize(
    "name", ["started", "cancelled", "check_cancelled", "current_process", "deferred_cancellation"]
)
async def test_outside_of_a_child(name: str) -> None:
    with pytest.raises(ProcessStateError, match=rf"{name}\(\) was called outside of a process"):
        getattr(from_process, name)()
    assert await run_in_process(targets.call_outside, name) == "ProcessStateError"


async def test_requests_outside_of_a_child() -> None:
    with pytest.raises(ProcessStateError, match="run"):
        from_process.run(targets.where_async)
    with pytest.raises(ProcessStateError, match="run_sync"):
        from_process.run_sync(targets.where)
    with pytest.raises(ProcessStateError, match="arun"):
        await from_process.arun(targets.where_async)
    with pytest.raises(ProcessStateError, match="arun_sync"):
        await from_process.arun_sync(targets.where)
    with pytest.raises(ProcessStateError, match="report"):
        from_process.report(1)


async def test_current_process(start_method: str, anyio_backend: str) -> None:
    process: AsyncProcess[Any] = AsyncProcess(
        target=targets.facts, name="some", start_method=start_method
    )
    facts = await process
    assert facts == from_process.CurrentProcess(
        name="some",
        pid=process.pid or 0,
        parent_pid=os.getpid(),
        start_method=start_method,
        backend=anyio_backend,
    )
    async with open_pool(1, name="p", start_method=start_method) as pool:
        facts = await pool.run(targets.facts_async)
        assert (facts.name, facts.pid) == ("p-worker-1", pool.statistics().workers[0].pid)


# --- when something ends --------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [targets.wait_in_parent, targets.arun])
async def test_what_runs_in_the_parent_ends_with_the_process(
    announcements: Announcements, wait: Run
) -> None:
    args = (announcements.path,)
    if wait is targets.arun:
        args = (targets.wait_noting_the_end, *args)  # type: ignore[assignment]
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(run_in_process, wait, *args)
        assert await announcements.get() == "begun"
        task_group.cancel_scope.cancel()
    assert targets.noted == ["begun", "cancelled"]  # when the process is gone, that is over


async def test_a_killed_process_takes_its_requests_with_it(announcements: Announcements) -> None:
    process = AsyncProcess(target=targets.wait_in_parent, args=(announcements.path,))
    await process.start()
    await announcements.get()
    os.kill(process.pid or 0, signal.SIGKILL)
    with pytest.raises(ProcessDied):
        await process
    assert targets.noted == ["begun", "cancelled"]


async def test_timeout_while_the_parent_works(announcements: Announcements) -> None:
    process = AsyncProcess(
        target=targets.wait_in_parent, args=(announcements.path,), timeout=2 * TIMEOUT
    )
    await process.start()
    assert await announcements.get() == "begun"
    time_out(process)
    with pytest.raises(ProcessTimeout):
        await process
    assert targets.noted == ["begun", "cancelled"]


async def test_cancelled_pool_call(announcements: Announcements) -> None:
    async with open_pool(1) as pool:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(pool.run, targets.wait_in_parent, announcements.path)
            assert await announcements.get() == "begun"
            task_group.cancel_scope.cancel()
        assert targets.noted == ["begun", "cancelled"]
        assert await pool.run(targets.run_sync, targets.add, 1, 2) == 3


async def test_request_that_outlives_the_function(announcements: Announcements) -> None:
    assert await run_in_process(targets.leave_request_behind, announcements.path) == "returned"
    assert targets.noted == ["begun", "cancelled"]


async def test_cancellation_when_the_process_has_just_ended(tmp_path: Path) -> None:
    """What runs on its behalf is over all the same."""
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    process = AsyncProcess(target=targets.leave_slow_request_behind, args=(gate,))
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(process.result)
        await until(lambda: "begun" in targets.noted)
        with open(gate, "wb"):
            pass
        assert process._handle.finished.wait_in_thread(TIMEOUT)  # nobody has heard of that
        task_group.cancel_scope.cancel()
    assert targets.noted == ["begun", "over"]


async def test_withdrawn_request(announcements: Announcements, run: Run) -> None:
    assert await run(targets.give_up_waiting, announcements.path) == "still there"
    assert await announcements.get() == "begun"
    assert await announcements.get() == "cancelled"


async def test_request_that_is_withdrawn_while_it_is_unpickled(
    announcements: Announcements, tmp_path: Path
) -> None:
    gates = gate, give_up, end = [str(tmp_path / name) for name in ("gate", "give-up", "end")]
    for fifo in gates:
        os.mkfifo(fifo)
    target = targets.give_up_what_is_being_unpickled
    async with AsyncProcess(target=target, args=(announcements.path, *gates)) as process:
        assert await announcements.get() == "unpickling"
        await anyio.to_thread.run_sync(_open_gate, give_up)
        await until(lambda: "given up" in targets.noted)
        await anyio.to_thread.run_sync(_open_gate, gate)
        picklers = runtime().picklers
        await until(lambda: picklers._idle == picklers._threads and not picklers._jobs)
        await anyio.wait_all_tasks_blocked()
        assert targets.noted == ["given up"]
        await anyio.to_thread.run_sync(_open_gate, end)
        await process


def _open_gate(path: str) -> None:
    with open(path, "wb"):
        pass


async def test_withdrawn_request_over_the_wire(announcements: Announcements, way: str) -> None:
    process = AsyncProcess(
        target=targets.give_up_waiting, args=(announcements.path,), start_method="fork"
    )
    assert await process == "still there"


@pytest.mark.parametrize("grace", [0.0, TIMEOUT])
async def test_stop_in_the_middle_of_requests(announcements: Announcements, grace: float) -> None:
    """Wherever the request strikes, the process ends as a terminated one does."""
    for _ in range(20):
        process = AsyncProcess(
            target=targets.ask_for_ever, args=(announcements.path,), stop=StopPolicy(grace=grace)
        )
        await process.start()
        await announcements.get()
        await process.terminate()
        assert process.exitcode == (-signal.SIGTERM if grace else -signal.SIGKILL)


async def test_requests_while_unwinding(announcements: Announcements, way: str) -> None:
    for _ in range(10):
        process = AsyncProcess(
            target=targets.ask_while_unwinding,
            args=(announcements.path,),
            start_method="fork",
            stop=StopPolicy(grace=TIMEOUT),
        )
        await process.start()
        await announcements.get()
        await process.terminate()
        assert await announcements.get() == "23"
        assert process.exitcode == -signal.SIGTERM


waited_for: list[AsyncProcess[Any]] = []


async def _terminate() -> str:
    await waited_for[0].terminate()
    return "not reached"


async def _wait_for_result() -> str:
    await waited_for[0]
    return "not reached"


@pytest.mark.parametrize("function", [_terminate, _wait_for_result])
async def test_function_that_waits_for_the_process_that_called_it(function: Run) -> None:
    process: AsyncProcess[Any] = AsyncProcess(
        target=targets.run, args=(function,), timeout=None if function is _terminate else 0.3
    )
    waited_for[:] = [process]
    with anyio.fail_after(TIMEOUT), pytest.raises((ProcessDied, ProcessTimeout)):
        await process


@pytest.mark.parametrize("before", [False, True])
def test_closed_event_loop(anyio_backend: str, announcements: Announcements, before: bool) -> None:
    """A process that is still there when its event loop is closed hears that from its requests.

    :param before: whether it has made one before
    """

    async def start() -> AsyncProcess[Any]:
        process = AsyncProcess(target=_ask_when_told, args=(announcements.path, gate, before))
        await process.start()
        if before:
            await until(lambda: targets.noted)
        return process

    gate = f"{announcements.path}-gate"
    os.mkfifo(gate)
    process = anyio.run(start, backend=anyio_backend)
    with open(gate, "wb"):
        pass
    assert announcements.get_blocking() == "ProcessStateError"
    assert process._handle.finished.wait_in_thread(TIMEOUT)


def _ask_when_told(path: str, gate: str, before: bool) -> None:
    from support import announce

    if before:
        from_process.run_sync(targets.note, "before")
    with open(gate, "rb") as file:
        file.read()
    try:
        from_process.run_sync(targets.add, 1, 2)
    except BaseException as error:
        announce(path, type(error).__name__)


async def test_nothing_leaks() -> None:
    async with open_pool(1) as pool:

        async def use() -> int:
            for _ in range(20):
                await run_in_process(targets.run_sync, targets.add, 1, 2)
                await run_in_process(targets.arun, targets.where_async)
                await pool.run(targets.run_sync, targets.add, 1, 2)
            gc.collect()
            return len(list(open_descriptors()))

        before = await use()
        assert await use() <= before


# --- stopping -------------------------------------------------------------------------------------


async def test_not_cancelled(run: Run) -> None:
    assert await run(targets.not_cancelled) is False
    with pytest.raises(LookupError):
        await run(targets.fail_deferred)


@pytest.mark.parametrize("check", [True, False])
async def test_deferred_cancellation(announcements: Announcements, check: bool) -> None:
    target = functools.partial(targets.defer_then_work, announcements.path, check=check)
    process = AsyncProcess(target=target)
    await process.start()
    assert await announcements.get() == "working"
    await process.terminate(StopPolicy(grace=TIMEOUT))
    assert process.exitcode == -signal.SIGTERM
    heard = [await announcements.get()]
    while heard[-1] != "unwound":
        heard.append(await announcements.get())
    assert heard == ["cancelled", *([] if check else ["finished"]), "unwound"]


async def test_deferred_cancellation_in_a_pool(announcements: Announcements) -> None:
    async with open_pool(1, stop=StopPolicy(grace=TIMEOUT)) as pool:
        call = functools.partial(targets.defer_then_work, announcements.path, check=True)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(pool.run, call)
            assert await announcements.get() == "working"
            task_group.cancel_scope.cancel()
        assert [await announcements.get() for _ in range(2)] == ["cancelled", "unwound"]


async def test_deferred_cancellation_of_an_async_function_in_a_pool(
    announcements: Announcements,
) -> None:
    async with open_pool(1, stop=StopPolicy(grace=TIMEOUT)) as pool:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(pool.run, targets.defer_async, announcements.path)
            assert await announcements.get() == "working"
            task_group.cancel_scope.cancel()
        assert [await announcements.get() for _ in range(2)] == ["finished", "unwound"]


async def test_deferred_cancellation_of_an_async_function(announcements: Announcements) -> None:
    process = AsyncProcess(target=targets.defer_async, args=(announcements.path,))
    await process.start()
    assert await announcements.get() == "working"
    await process.terminate(StopPolicy(grace=TIMEOUT))
    assert [await announcements.get() for _ in range(2)] == ["finished", "unwound"]


async def test_thread_that_checks(announcements: Announcements) -> None:
    process = AsyncProcess(target=targets.work_in_thread, args=(announcements.path,))
    await process.start()
    assert await announcements.get() == "working"
    await process.terminate(StopPolicy(grace=TIMEOUT))
    assert await announcements.get() == "thread unwound"


# --- progress -------------------------------------------------------------------------------------


async def test_progress_step_by_step(tmp_path: Path, start_method: str) -> None:
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    process = AsyncProcess(
        target=targets.report_step_by_step, args=(gate, 3), start_method=start_method
    )
    seen = []
    assert process.progress.latest is None
    assert (process.progress.done, process.progress.total) == (0, None)
    async with process:
        with os.fdopen(os.open(gate, os.O_RDWR), "wb", buffering=0) as file:
            file.write(b"x")
            with anyio.fail_after(TIMEOUT):
                async for progress in process.progress:
                    seen.append(progress)
                    file.write(b"x")
    assert seen == [Progress(index + 0.5) for index in range(3)]


async def test_reader_that_never_waits_lets_others_run() -> None:
    """Nor does it escape its cancellation, which loses nothing."""
    feed = ProgressFeed()
    reports = aiter(feed)
    others_run = anyio.Event()
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(_set, others_run)
        for number in range(10):
            feed._report(Progress(number))
            assert await anext(reports) == Progress(number)
        assert others_run.is_set()
    feed._report(Progress(10))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anext(reports)
    assert scope.cancelled_caught
    assert await anext(reports) == Progress(10)


async def _set(event: anyio.Event) -> None:
    event.set()


async def test_slow_reader_gets_the_newest(anyio_backend: str) -> None:
    process = AsyncProcess(target=targets.report_all, args=(500,))
    assert await process == "done"
    assert [progress async for progress in process.progress] == [Progress(500, 500, "item 500")]
    assert (process.progress.done, process.progress.total) == (500, 500)


async def test_all_readers_get_the_last_report() -> None:
    process = AsyncProcess(target=targets.report_all, args=(50,))
    last: list[Progress] = []

    async def read() -> None:
        async for progress in process.progress:
            latest = progress
        last.append(latest)

    async with anyio.create_task_group() as task_group:
        for _ in range(3):
            task_group.start_soon(read)
        await process
    assert last == [Progress(50, 50, "item 50")] * 3


async def test_reports_of_a_process_that_dies() -> None:
    process = AsyncProcess(target=targets.report_and_die, args=(20,))
    with pytest.raises(ProcessDied):
        await process
    assert process.progress.latest == Progress(20, 20, "item 20")


@pytest.mark.parametrize("timeout", [None, TIMEOUT])
async def test_reports_of_a_call_in_a_pool(timeout: float | None, start_method: str) -> None:
    """Every call has its own; and all are here when its value is."""
    reports: dict[int, list[float]] = {}

    async def call(pool: ProcessPool, count: int) -> None:
        def on_progress(progress: Progress) -> None:
            reports.setdefault(count, []).append(progress.done)

        assert (
            await pool.run(targets.report_all, count, timeout=timeout, on_progress=on_progress)
            == "done"
        )
        assert reports[count] == list(range(1, count + 1))

    async with open_pool(2, start_method=start_method) as pool:
        async with anyio.create_task_group() as task_group:
            for count in range(1, 30):
                task_group.start_soon(call, pool, count)
        assert await pool.run(targets.report_all, 10) == "done"  # heard by nobody
        assert len(await pool.map(targets.report_all, range(5))) == 5
        assert await pool.run(targets.report_from_threads, 50) == "done"


async def test_report_in_the_middle_of_another_message() -> None:
    """In a finalizer, or a signal handler. A call that has ended reports nothing to the next."""
    reports: list[float] = []

    def on_progress(progress: Progress) -> None:
        reports.append(progress.done)

    async with open_pool(1) as pool:
        with anyio.fail_after(TIMEOUT):
            await pool.run(targets.report_while_sending, 3, on_progress=on_progress)
        assert reports == [1, -1, 2, -1, 3, -1]
        assert await pool.run(double, 2, on_progress=on_progress) == 4
    assert len(reports) == 6


def fail(progress: Progress) -> None:
    raise LookupError("oh")


async def test_on_progress_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    async with open_pool(1) as pool:
        assert await pool.run(targets.report_all, 2, on_progress=fail) == "done"
    assert caplog.text.count("on_progress of a call") == 2


async def test_on_progress_whose_failure_cannot_be_logged() -> None:
    """That is in the event loop, and must not end it."""
    async with open_pool(1) as pool:
        with Collector().failing_on("creche"):
            assert await pool.run(targets.report_all, 2, on_progress=fail) == "done"


async def test_progress_of_a_process_that_never_starts() -> None:
    process = AsyncProcess(target=targets.report_all, args=(make_lambda(),))
    with pytest.raises(SerializationError):
        await process
    assert [progress async for progress in process.progress] == []


async def test_progress_of_a_process_that_is_called_off() -> None:
    async with open_nursery(limiter=anyio.CapacityLimiter(1)) as nursery:
        first = nursery.start_soon(targets.report_then_wait, 1)
        async for _ in first.progress:
            break  # it has the limiter
        waiting = nursery.start_soon(targets.report_all, 1)
        nursery.cancel_scope.cancel()
    with anyio.fail_after(TIMEOUT):
        assert [progress async for progress in waiting.progress] == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("1",), "done must be a number, not '1'"),
        ((None,), "done must be a number, not None"),
        ((1, "2"), "total must be a number, not '2'"),
        ((1, 2, 3), "message must be a string, not 3"),
    ],
)
async def test_wrong_reports(args: tuple[Any, ...], message: str) -> None:
    assert await run_in_process(targets.report_wrongly, *args) == message


# --- started() ------------------------------------------------------------------------------------


async def test_started_twice() -> None:
    with pytest.raises(ProcessStateError, match="called before"):
        await run_in_process(targets.start_twice)


async def test_started_has_no_effect_in_workers() -> None:
    async with open_pool(1) as pool:
        assert await pool.run(targets.start_once, 1) == 1
        assert await pool.run(targets.start_once, 2) == 2


async def test_nursery_start_and_requests() -> None:
    async with open_nursery() as nursery:
        assert await nursery.start(_start_then_ask) == "ready"
    assert targets.noted == ["asked"]


def _start_then_ask() -> None:
    from_process.started("ready")
    from_process.run_sync(targets.note, "asked")


def test_public_names() -> None:
    assert from_process.CurrentProcess.__module__ == "creche.from_process"
    assert creche.ProgressFeed.__module__ == "creche"


# --- garbage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sections"),
    [
        (FrameKind.PROGRESS, [[b"5"]]),
        (FrameKind.PROGRESS, [[b"[" * 100_000]]),
        (FrameKind.PROGRESS, []),
        (FrameKind.REQUEST, []),
        (FrameKind.LOG, []),
    ],
)
async def test_broken_frame(kind: FrameKind, sections: list[Section]) -> None:
    data = b"".join(pack(kind, sections))
    with (
        anyio.fail_after(TIMEOUT),
        pytest.raises(SerializationError, match="wrote to creche's connection"),
    ):
        await run_in_process(write_garbage, data, logs=True)
