"""What instruments are told: of every process and every call, in order, and once each."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import instrument_targets as targets
import psutil
import pytest
import support
from log_collector import Collector
from support import TIMEOUT, Announcements

import creche
from creche import (
    AsyncProcess,
    Instrument,
    ObservedCall,
    ObservedProcess,
    ProcessDied,
    ProcessPool,
    ProcessTimeout,
    StopPolicy,
    add_instrument,
    open_nursery,
    open_pool,
    open_stream,
    remove_instrument,
    run_in_process,
    to_process,
)

pytestmark = pytest.mark.anyio


class Checker(Instrument):
    """Keeps what it is told, and checks the promises that the documentation makes."""

    def __init__(self) -> None:
        self.told: dict[int, list[str]] = {}
        self.processes: dict[int, ObservedProcess] = {}
        self.calls: dict[int, ObservedCall] = {}
        self.wrong: list[str] = []
        self.threads: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def process_created(self, process: ObservedProcess) -> None:
        self._check(process.pid is None, "created with a pid")
        self._first(process, self.processes)
        self._note("created", process)

    def process_started(self, process: ObservedProcess) -> None:
        self._check(process.pid is not None, "started without a pid")
        self._note("started", process)

    def process_ready(self, process: ObservedProcess) -> None:
        self._check("started" in self.told.get(process.id, ()), "ready before it was started")
        self._note("ready", process)

    def process_stop_requested(self, process: ObservedProcess) -> None:
        self._check(process.stop_requested, "stop_requested is not set")
        self._note("stop_requested", process)

    def process_exited(self, process: ObservedProcess) -> None:
        started = "started" in self.told.get(process.id, ())
        self._check(started == (process.pid is not None), "pid without start")
        self._check(started or process.exception is not None, "not started, and no reason")
        self._note("exited", process)

    def call_queued(self, call: ObservedCall) -> None:
        self._check(call.status is None and call.process is None, "queued, but not new")
        self._first(call, self.calls)
        self._note("queued", call)

    def call_started(self, call: ObservedCall) -> None:
        self._check(call.process is not None and call.status is None, "started nowhere")
        if call.process is not None:
            self._check("ready" in self.told.get(call.process.id, ()), "worker is not ready")
        with self._lock:  # may come more than once
            self.told.setdefault(call.id, []).append("started")

    def call_finished(self, call: ObservedCall) -> None:
        failed = call.status in ("error", "killed")
        self._check(call.status is not None, "finished, but no status")
        self._check(not failed or call.exception is not None, "failed for no reason")
        self._check(call.status != "ok" or call.seconds is not None, "ran for no time")
        self._note("finished", call)

    def _check(self, condition: bool, text: str) -> None:
        if not condition:
            self.wrong.append(text)

    def _first(self, subject: Any, subjects: dict[int, Any]) -> None:
        self._check(subject.id not in self.told, f"known already: {subject}")
        subjects[subject.id] = subject

    def _note(self, event: str, subject: Any) -> None:
        with self._lock:
            told = self.told.setdefault(subject.id, [])
            self._check(event not in told, f"{event} twice: {subject}")
            self._check("exited" not in told and "finished" not in told, f"{event} after the end")
            told.append(event)
            self.threads.setdefault(event, set()).add(threading.current_thread().name)

    def check(self, *, open_processes: int = 0) -> None:
        """Everything that has begun has ended."""
        assert self.wrong == []
        assert self.open_processes == open_processes
        assert all(self.told[id][0] == "created" for id in self.processes)
        for id in self.calls:
            assert (self.told[id][0], self.told[id][-1]) == ("queued", "finished")

    @property
    def open_processes(self) -> int:
        """How many processes have not ended."""
        return sum(self.told[id][-1] != "exited" for id in self.processes)

    @property
    def only_process(self) -> ObservedProcess:
        (process,) = self.processes.values()
        return process

    @property
    def only_call(self) -> ObservedCall:
        (call,) = self.calls.values()
        return call

    def told_of(self, subject: ObservedProcess | ObservedCall) -> list[str]:
        return self.told[subject.id]


@contextlib.contextmanager
def added(*instruments: Instrument) -> Iterator[None]:
    for instrument in instruments:
        add_instrument(instrument)
    try:
        yield
    finally:
        for instrument in instruments:
            remove_instrument(instrument)


@pytest.fixture
def checker() -> Iterator[Checker]:
    instrument = Checker()
    with added(instrument):
        yield instrument


# --- processes ------------------------------------------------------------------------------------


async def test_value(checker: Checker, start_method: str) -> None:
    assert await run_in_process(targets.add, 1, 2, start_method=start_method) == 3
    process = checker.only_process
    assert checker.told_of(process) == ["created", "started", "exited"]
    checker.check()
    assert process.kind == "process"
    assert process.pool is None
    assert process.start_method == start_method
    assert process.func == "instrument_targets.add"
    assert process.exitcode == 0
    assert process.exception is None
    assert not process.stop_requested
    assert process.name.startswith("add-")
    assert str(process.pid) in repr(process)


async def test_error(checker: Checker) -> None:
    with pytest.raises(LookupError) as raised:
        await run_in_process(targets.fail, "text")
    process = checker.only_process
    assert checker.told_of(process) == ["created", "started", "exited"]
    assert process.exception is raised.value
    assert process.exitcode == 1
    checker.check()


async def test_death(checker: Checker, start_method: str) -> None:
    with pytest.raises(ProcessDied):
        await run_in_process(targets.die, start_method=start_method)
    assert checker.only_process.exitcode == -signal.SIGKILL
    assert isinstance(checker.only_process.exception, ProcessDied)
    checker.check()


async def test_cancelled(checker: Checker, announcements: Announcements) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_process, targets.announce_and_wait, announcements.path)
        await announcements.get()
        process = checker.only_process
        # By another thread than that of the stop: the child may be faster than it.
        await support.until(lambda: "started" in checker.told_of(process))
        tasks.cancel_scope.cancel()
    assert checker.told_of(process) == ["created", "started", "stop_requested", "exited"]
    assert process.stop_requested
    assert process.exitcode == -signal.SIGTERM
    checker.check()


async def test_timeout(checker: Checker) -> None:
    with pytest.raises(ProcessTimeout):
        await run_in_process(support.wait_for_ever, timeout=0.2)
    process = checker.only_process
    assert isinstance(process.exception, ProcessTimeout)
    assert process.stop_requested
    checker.check()


async def test_not_pickled(checker: Checker, start_method: str) -> None:
    with pytest.raises(creche.SerializationError) as raised:
        await run_in_process(targets.add, lambda: None, start_method=start_method)  # type: ignore[arg-type]
    process = checker.only_process
    assert checker.told_of(process) == ["created", "exited"]
    assert process.pid is None
    assert process.exitcode is None
    assert process.exception is raised.value
    checker.check()


async def test_stopped_before_it_is_started(checker: Checker) -> None:
    for _ in range(20):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await AsyncProcess(target=targets.add, args=(1,)).start()
    checker.check()


async def test_never_started(checker: Checker) -> None:
    """A process that nobody begins to start is none."""
    process = AsyncProcess(target=targets.add)
    async with open_nursery(limiter=anyio.CapacityLimiter(1)) as nursery:
        nursery.start_soon(support.wait_for_ever)
        nursery.start_soon(support.wait_for_ever)
        while not checker.processes:
            await anyio.sleep(0.002)
        nursery.cancel_scope.cancel()
    assert process.state is creche.ProcessState.CREATED
    assert len(checker.processes) == 1
    checker.check()


async def test_ready(checker: Checker, start_method: str) -> None:
    async with open_nursery(start_method=start_method) as nursery:
        assert await nursery.start(targets.ready_then_return, 1) == "ready"
        assert "ready" in checker.told_of(checker.only_process)
    assert checker.told_of(checker.only_process) == ["created", "started", "ready", "exited"]
    checker.check()


async def test_ready_once(checker: Checker) -> None:
    await run_in_process(targets.ready_twice)
    assert checker.told_of(checker.only_process).count("ready") == 1
    checker.check()


async def test_stream(checker: Checker) -> None:
    async with open_stream(targets.count_to, 3) as numbers:
        assert [number async for number in numbers] == [0, 1, 2]
    assert checker.only_process.func == "instrument_targets.count_to"
    checker.check()


async def test_decorated(checker: Checker) -> None:
    assert await targets.decorated() == 5
    assert checker.only_process.func == "instrument_targets.decorated"
    checker.check()


@pytest.mark.parametrize("started", [False, True])
async def test_adopted(checker: Checker, started: bool) -> None:
    inner = multiprocessing.get_context("spawn").Process(target=targets.add, args=(1,))
    if started:
        inner.start()
    async with AsyncProcess.wrap(inner) as process:
        await process.join()
    assert checker.told_of(checker.only_process) == ["created", "started", "exited"]
    assert checker.only_process.func is None
    assert checker.only_process.pid == process.pid
    assert checker.only_process.start_method == "spawn"
    checker.check()


async def test_told_before_whoever_waits_goes_on(checker: Checker) -> None:
    for _ in range(10):
        process = AsyncProcess(target=targets.add, args=(1,))
        await process.start()
        assert "started" in checker.told_of(list(checker.processes.values())[-1])
        await process.join()
        checker.check()


async def test_a_child_has_no_instruments(checker: Checker, start_method: str) -> None:
    assert await run_in_process(targets.instruments_here, start_method=start_method) == 0
    names = await run_in_process(targets.observe_in_child, start_method=start_method)
    assert names == ["grandchild"]
    assert "grandchild" not in [process.name for process in checker.processes.values()]


# --- calls ----------------------------------------------------------------------------------------


async def test_call(checker: Checker, start_method: str) -> None:
    async with open_pool(1, name="adders", start_method=start_method) as pool:
        assert await pool.run(targets.add, 1, 2) == 3
        call = checker.only_call
        worker = checker.only_process
        assert checker.told_of(call) == ["queued", "started", "finished"]
        assert checker.told_of(worker) == ["created", "started", "ready"]
        assert (call.func, call.pool, call.items) == ("instrument_targets.add", "adders", 1)
        assert (call.status, call.exception) == ("ok", None)
        assert call.process is worker
        assert call.seconds is not None
        assert 0 <= call.seconds < TIMEOUT
        assert (worker.kind, worker.pool, worker.func) == ("worker", "adders", None)
    assert checker.told_of(worker) == ["created", "started", "ready", "exited"]
    assert not worker.stop_requested
    checker.check()
    assert checker.threads["queued"] == {threading.current_thread().name}


async def test_call_fails(checker: Checker) -> None:
    async with open_pool(1) as pool:
        with pytest.raises(LookupError) as raised:
            await pool.run(targets.fail)
        assert checker.only_call.status == "error"
        assert checker.only_call.exception is raised.value
    checker.check()


async def test_call_kills(checker: Checker) -> None:
    async with open_pool(1) as pool:
        with pytest.raises(ProcessDied) as raised:
            await pool.run(targets.die)
        assert checker.only_call.status == "killed"
        assert checker.only_call.exception is raised.value
        assert checker.only_call.seconds is None
        assert checker.only_process.exitcode == -signal.SIGKILL
    checker.check()


@pytest.mark.parametrize(
    "die", [support.die_while_answering, functools.partial(support.exit_at_once, 3)]
)
async def test_worker_leaves(checker: Checker, die: Callable[[], object]) -> None:
    async with open_pool(1) as pool:
        with pytest.raises(ProcessDied):
            await pool.run(die)
    assert checker.only_call.status == "killed"
    checker.check()


async def test_call_cancelled_while_it_runs(checker: Checker, announcements: Announcements) -> None:
    async with open_pool(1) as pool:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run, targets.announce_and_wait, announcements.path)
            await announcements.get()
            tasks.cancel_scope.cancel()
        assert checker.told_of(checker.only_call) == ["queued", "started", "finished"]
        assert (checker.only_call.status, checker.only_call.exception) == ("cancelled", None)
    assert checker.only_process.stop_requested
    checker.check()


async def test_call_cancelled_in_the_queue(checker: Checker, announcements: Announcements) -> None:
    async with open_pool(1) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run, targets.announce_and_wait, announcements.path)
        await announcements.get()
        with anyio.move_on_after(0.05):
            await pool.run(targets.add, 1)
        waiting = list(checker.calls.values())[-1]
        assert checker.told_of(waiting) == ["queued", "finished"]
        assert (waiting.status, waiting.process) == ("cancelled", None)
        tasks.cancel_scope.cancel()
    checker.check()


async def test_call_times_out(checker: Checker) -> None:
    async with open_pool(1) as pool:
        with pytest.raises(ProcessTimeout):
            await pool.run(support.wait_for_ever, timeout=0.2)
    assert checker.only_call.status == "cancelled"
    checker.check()


async def test_call_is_not_pickled(checker: Checker) -> None:
    async with open_pool(1) as pool:
        with pytest.raises(creche.SerializationError) as raised:
            await pool.run(targets.add, lambda: None)  # type: ignore[arg-type]
    assert checker.told_of(checker.only_call) == ["queued", "finished"]
    assert checker.only_call.exception is raised.value
    checker.check()


async def test_result_is_not_unpickled(checker: Checker) -> None:
    async with open_pool(1) as pool:
        with pytest.raises(creche.SerializationError):
            await pool.run(support.make, support.RefusesUnpickling)
    assert checker.only_call.status == "error"
    checker.check()


async def test_large_call_and_result(checker: Checker) -> None:
    async with open_pool(1) as pool:
        data = bytes(20 * 1024 * 1024)
        assert await pool.run(targets.add, data, data[:1]) == data + b"\0"  # type: ignore[arg-type]
    assert checker.only_call.status == "ok"
    checker.check()


async def test_pool_left_with_an_error(checker: Checker, announcements: Announcements) -> None:
    async with anyio.create_task_group() as tasks:
        with pytest.raises(KeyError):
            async with open_pool(1) as pool:

                async def run(func: Callable[..., Any], *args: Any) -> None:
                    with pytest.raises(creche.ProcessClosedError):
                        await pool.run(func, *args)

                tasks.start_soon(run, targets.announce_and_wait, announcements.path)
                await announcements.get()
                tasks.start_soon(run, targets.add, 1)
                while len(checker.calls) < 2:
                    await anyio.sleep(0.002)
                raise KeyError
    assert {call.status for call in checker.calls.values()} == {"cancelled"}
    assert all(
        isinstance(call.exception, creche.ProcessClosedError) for call in checker.calls.values()
    )
    checker.check()


async def test_broken_initializer(checker: Checker) -> None:
    async with open_pool(2, initializer=targets.initializer_that_fails) as pool:
        with pytest.raises(creche.ProcessStartError):
            await pool.run(targets.add, 1)
    assert checker.told_of(checker.only_call) == ["queued", "finished"]
    assert checker.only_call.status == "error"
    assert all("ready" not in checker.told_of(p) for p in checker.processes.values())
    checker.check()


async def test_to_process(checker: Checker) -> None:
    assert await to_process.run_sync(targets.add, 1, 2) == 3
    assert (checker.only_call.pool, checker.only_call.status) == ("to_process", "ok")
    checker.check(open_processes=1)


async def test_stopped_worker_gives_its_call_to_another(checker: Checker) -> None:
    async with open_pool(2, min_workers=2) as pool:
        pids = [worker.pid for worker in pool.statistics().workers]
        os.kill(pids[-1], signal.SIGSTOP)
        os.kill(pids[0], signal.SIGSTOP)
        for pid in pids:
            while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
                await anyio.sleep(0.002)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run, targets.add, 1)
            while not checker.calls or checker.only_call.process is None:
                await anyio.sleep(0.002)
            first = checker.only_call.process.pid
            assert first is not None
            os.kill(next(pid for pid in pids if pid != first), signal.SIGCONT)
            os.kill(first, signal.SIGKILL)
    call = checker.only_call
    assert checker.told_of(call) == ["queued", "started", "started", "finished"]
    assert call.process is not None
    assert call.process.pid != first
    checker.check()


# --- maps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 7, "auto"])
async def test_map(checker: Checker, chunksize: Any) -> None:
    async with open_pool(2) as pool:
        assert await pool.map(targets.add, range(100), chunksize=chunksize) == list(range(100))
    assert sum(call.items for call in checker.calls.values()) >= 100
    assert {call.status for call in checker.calls.values()} == {"ok"}
    assert {call.func for call in checker.calls.values()} == {"instrument_targets.add"}
    checker.check()


async def test_item_fails(checker: Checker) -> None:
    async with open_pool(1) as pool:
        fail_at_3 = functools.partial(targets.fail_at, 3)
        outcomes = await pool.map(fail_at_3, range(10), chunksize=5, on_error="yield")
        assert [outcome.index for outcome in outcomes if outcome.exception] == [3]
    first, second = checker.calls.values()
    assert (first.status, second.status) == ("error", "ok")
    assert isinstance(first.exception, LookupError)
    assert first.func == "instrument_targets.fail_at"
    checker.check()


async def test_map_ends_at_an_error(checker: Checker) -> None:
    async with open_pool(2) as pool:
        with pytest.raises(LookupError):
            await pool.map(functools.partial(targets.fail_at, 30), range(1000), chunksize=4)
    assert "error" in {call.status for call in checker.calls.values()}
    checker.check()


async def test_item_kills(checker: Checker) -> None:
    async with open_pool(1) as pool:
        die_at_3 = functools.partial(targets.die_at, 3)
        outcomes = await pool.map(die_at_3, range(10), chunksize=5, on_error="yield")
        assert outcomes[3].exception is not None
    statuses = [call.status for call in checker.calls.values()]
    assert statuses.count("killed") == 1
    assert set(statuses) <= {"killed", "ok"}
    checker.check()


async def test_item_times_out(checker: Checker, announcements: Announcements) -> None:
    paths = [None, announcements.path, None]
    options: Any = {"timeout": 2 * TIMEOUT, "on_error": "yield"}

    async def time_out(waits: Any) -> None:
        await announcements.get()
        deadlines = waits._run._deadlines
        deadlines._deadlines.update(dict.fromkeys(deadlines._deadlines, -math.inf))
        deadlines._check()

    async with open_pool(1) as pool, anyio.create_task_group() as tasks:
        waits: Any = pool.map(targets.announce_and_wait_if_any, paths, **options)
        tasks.start_soon(time_out, waits)
        outcomes = await waits
        assert [type(outcome.exception) for outcome in outcomes] == [
            type(None),
            ProcessTimeout,
            type(None),
        ]
    assert [call.status for call in checker.calls.values()] == ["ok", "cancelled", "ok"]
    checker.check()


async def test_map_left_early(checker: Checker) -> None:
    async with open_pool(2) as pool:
        async with pool.map(targets.add, iter(int, 1)) as numbers:
            async for _ in numbers:
                break
        # A worker that was stopped is gone a moment before its pool hears of that.
        await support.until(lambda: checker.open_processes == len(pool.statistics().workers))
        checker.check(open_processes=len(pool.statistics().workers))
    checker.check()


async def test_items_are_not_pickled(checker: Checker) -> None:
    async with open_pool(1) as pool:
        outcomes = await pool.map(targets.add, [1, lambda: None, 2], chunksize=3, on_error="yield")
        assert [outcome.exception is None for outcome in outcomes] == [True, False, True]
    assert sorted(str(call.status) for call in checker.calls.values()) == [
        "error",
        "error",
        "ok",
        "ok",
    ]
    checker.check()


# --- many things at once --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_thousand_things_at_once(checker: Checker, seed: int) -> None:
    chance = random.Random(seed)
    policy = StopPolicy(grace=0.2)

    async def one(pool: ProcessPool, number: int) -> None:
        kind, patience = chance.random(), chance.choice([0.001, 0.01, 0.1, math.inf])
        with anyio.move_on_after(patience), contextlib.suppress(LookupError, ProcessDied):
            if kind < 0.9:
                await pool.run(targets.at_random, number)
            elif kind < 0.99:
                items = range(number, number + 20)
                async for _ in pool.map(targets.at_random, items, on_error="yield"):
                    if chance.random() < 0.02:
                        break
            else:
                await run_in_process(targets.at_random, number, stop=policy)

    with anyio.fail_after(2 * TIMEOUT), contextlib.suppress(KeyError):
        async with open_pool(4, stop=policy) as pool:
            async with anyio.create_task_group() as tasks:
                for number in range(1000):
                    tasks.start_soon(one, pool, number)
                    if number % 50 == 0:
                        await anyio.sleep(0.01)
            await pool.run(targets.add, 1)
            raise KeyError
    checker.check()
    assert {"ok", "error", "cancelled", "killed"} == {
        call.status for call in checker.calls.values()
    }


# --- instruments themselves -----------------------------------------------------------------------


class Raises(Instrument):
    """Raises in one of its hooks."""

    def __init__(self, hook: str, error: BaseException) -> None:
        self.told = 0
        self._error = error
        setattr(self, hook, self._raise)

    def _raise(self, _subject: Any) -> None:
        self.told += 1
        raise self._error


HOOKS = [name for name in vars(Instrument) if not name.startswith("_")]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("error", [LookupError("text"), SystemExit(3)], ids=repr)
async def test_one_that_raises_is_dropped(
    hook: str, error: BaseException, caplog: pytest.LogCaptureFixture, announcements: Announcements
) -> None:
    broken, checker = Raises(hook, error), Checker()
    with added(broken, checker):
        async with open_pool(1) as pool:
            assert await pool.run(targets.add, 1, 2) == 3
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.run, targets.announce_and_wait, announcements.path)
                await announcements.get()
                tasks.cancel_scope.cancel()
            assert await pool.run(targets.add, 1, 2) == 3
        checker.check()
        assert len(checker.calls) == 3
    assert broken.told == 1
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.name == "creche"
    assert f"in {hook}()" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("hook", HOOKS)
async def test_one_that_raises_and_cannot_be_logged(
    hook: str, announcements: Announcements
) -> None:
    broken, checker = Raises(hook, LookupError("text")), Checker()
    with Collector().failing_on("creche"), added(broken, checker), anyio.fail_after(TIMEOUT):
        async with open_pool(1) as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run, targets.announce_and_wait, announcements.path)
            await announcements.get()
            tasks.cancel_scope.cancel()
        checker.check()
    assert broken.told == 1


async def test_added_and_removed_in_hooks() -> None:
    late = Checker()

    class Changes(Instrument):
        def call_queued(self, call: ObservedCall) -> None:
            remove_instrument(self)
            remove_instrument(self)
            add_instrument(late)

    with added(Changes()):
        async with open_pool(1) as pool:
            await pool.run(targets.add, 1)
            assert len(late.calls) == 0
            await pool.run(targets.add, 2)
            assert len(late.calls) == 1
    remove_instrument(late)


async def test_added_while_things_go_on(announcements: Announcements) -> None:
    told: list[str] = []

    class Late(Instrument):
        def process_exited(self, process: ObservedProcess) -> None:
            assert process.func == "instrument_targets.announce_and_wait"
            assert process.stop_requested
            told.append("exited")

        def call_finished(self, call: ObservedCall) -> None:
            told.append("finished")

    async with open_nursery() as nursery:
        nursery.start_soon(targets.announce_and_wait, announcements.path)
        await announcements.get()
        add_instrument(late := Late())
        nursery.cancel_scope.cancel()
    remove_instrument(late)
    assert told == ["exited"]


async def test_added_twice() -> None:
    checker = Checker()
    with added(checker, checker):
        await run_in_process(targets.add, 1)
    checker.check()
    with added():
        await run_in_process(targets.add, 1)
    assert len(checker.processes) == 1


def test_what_is_no_instrument() -> None:
    with pytest.raises(TypeError, match=r"derived from creche\.Instrument"):
        add_instrument(object())  # type: ignore[arg-type]
    remove_instrument(Instrument())


async def test_attributes_are_for_instruments() -> None:
    class Remembers(Instrument):
        def call_queued(self, call: ObservedCall) -> None:
            call.attributes["mine"] = 5

        def call_finished(self, call: ObservedCall) -> None:
            found.append(call.attributes["mine"])

    found: list[int] = []
    with added(Remembers()):
        async with open_pool(1) as pool:
            await pool.run(targets.add, 1)
    assert found == [5]


async def test_keyboard_interrupt_is_not_swallowed() -> None:
    """Where it strikes is chance, and no fault of the instrument."""

    class Struck(Instrument):
        def call_queued(self, call: ObservedCall) -> None:
            if not told:
                told.append(call)
                raise KeyboardInterrupt

    told: list[ObservedCall] = []
    checker = Checker()
    with added(Struck(), checker):
        async with open_pool(1) as pool:
            with pytest.raises(KeyboardInterrupt):
                await pool.run(targets.add, 1)
            assert await pool.run(targets.add, 1, 2) == 3
    checker.check()
    assert [call.status for call in checker.calls.values()] == ["cancelled", "ok"]
