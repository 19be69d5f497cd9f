"""Latches, worker threads, the watcher and the poller."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import anyio
import anyio.to_thread
import pytest
from log_collector import Collector
from support import TIMEOUT

from creche._errors import ProcessStateError
from creche._lifecycle import Event, ProcessState, next_state
from creche._loops import Latch, current_loop
from creche._own_log import log_exception
from creche._platform._selector_poller import SelectorPoller
from creche._runtime import Runtime, runtime
from creche._stop_policy import StopPolicy
from creche._thread_queue import ThreadQueue
from creche._watcher import Watcher
from creche._worker_threads import WorkerThreads


@pytest.fixture
def broken_log() -> Iterator[Collector]:
    """A handler that fails on whatever creche logs."""
    collector = Collector()
    with collector.failing_on("creche"):
        yield collector


def check_that_it_goes_on(run_soon: Callable[[Callable[[], None]], object]) -> None:
    """Check that what comes after something that fails is run all the same."""
    finished = threading.Event()

    def fail() -> None:
        raise LookupError("oh")

    run_soon(fail)
    run_soon(finished.set)
    assert finished.wait(TIMEOUT)


@pytest.mark.anyio
async def test_latch_wakes_all_waiters() -> None:
    latch = Latch()
    woken: list[int] = []

    async def wait(number: int) -> None:
        await latch.wait()
        woken.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(wait, number)
        await anyio.wait_all_tasks_blocked()
        assert woken == []
        await anyio.to_thread.run_sync(latch.set)
    assert sorted(woken) == [0, 1, 2, 3, 4]
    await latch.wait()
    assert latch.is_set()


@pytest.mark.anyio
async def test_cancelled_waiter_leaves_nothing() -> None:
    latch = Latch()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(latch.wait)
            await anyio.wait_all_tasks_blocked()
            assert latch._waiters
            scope.cancel()
    assert not latch._waiters


@pytest.mark.anyio
async def test_cancelled_scope_is_heard_of_even_if_the_latch_is_set() -> None:
    latch = Latch()
    latch.set()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await latch.wait()
    assert scope.cancelled_caught


def test_latch_outlives_its_loop(anyio_backend_name: str) -> None:
    latch = Latch()

    async def main() -> None:
        latch._add_waiter(anyio.Event().set, current_loop())

    anyio.run(main, backend=anyio_backend_name)
    latch.set()  # the loop is closed, and that is no error


def test_latch_in_threads() -> None:
    latch = Latch()
    assert not latch.wait_in_thread(0)
    waiter = threading.Thread(target=latch.wait_in_thread, args=(TIMEOUT,))
    waiter.start()
    latch.set()
    waiter.join(TIMEOUT)
    assert not waiter.is_alive()
    assert latch.wait_in_thread(0)


def test_no_loop() -> None:
    with pytest.raises(ProcessStateError, match="running asyncio or Trio event loop"):
        current_loop()


def test_worker_threads_are_few_and_keep_the_order() -> None:
    workers = WorkerThreads("test-worker", limit=1)
    done: list[int] = []
    finished = threading.Event()
    for number in range(100):
        workers.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    workers.submit(finished.set)
    assert finished.wait(TIMEOUT)
    assert done == list(range(100))
    assert len(threads_of("test-worker")) == 1


def test_worker_survives_a_job_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    workers = WorkerThreads("failing-worker", limit=1)
    finished = threading.Event()

    def fail() -> None:
        raise SystemExit("not even this")

    with caplog.at_level(logging.ERROR, "creche"):
        workers.submit(fail)
        workers.submit(finished.set)
        assert finished.wait(TIMEOUT)
    assert "a job of creche's own failed" in caplog.text


def test_worker_survives_a_job_whose_failure_cannot_be_logged(broken_log: Collector) -> None:
    workers = WorkerThreads("unlogged-worker", limit=1)
    check_that_it_goes_on(workers.submit)


@pytest.mark.parametrize("error", [LookupError("oh"), SystemExit(3)], ids=repr)
def test_item_that_fails_costs_itself_alone(broken_log: Collector, error: BaseException) -> None:
    done: list[int] = []
    idle = threading.Event()
    running, release = threading.Event(), threading.Event()

    def handle(number: int) -> None:
        if number == 2:
            raise error
        done.append(number)

    def on_handled(numbers: deque[int]) -> None:
        handled.extend(numbers)

    handled: list[int] = []
    workers = WorkerThreads("queue-worker", limit=1)
    workers.submit(lambda: (running.set(), release.wait(TIMEOUT)))
    assert running.wait(TIMEOUT)
    calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
    queue = ThreadQueue(workers, calls.put, handle, on_handled, idle.set)
    for number in range(4):
        queue.add(number)
    release.set()
    while not idle.is_set():
        calls.get(timeout=TIMEOUT)()
    assert not queue.busy
    assert handled == [0, 1, 2, 3]
    assert done == [0, 1, 3]


def threads_of(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


def test_job_that_is_abandoned_keeps_no_thread_from_others() -> None:
    workers = WorkerThreads("stuck-worker", limit=1)
    running, release, finished = (threading.Event() for _ in range(3))
    stuck = workers.submit(lambda: (running.set(), release.wait(TIMEOUT)))
    workers.submit(finished.set)
    assert running.wait(TIMEOUT)
    assert not finished.is_set()
    workers.abandon(stuck)
    workers.abandon(stuck)
    assert finished.wait(TIMEOUT)
    stuck_thread, _ = threads_of("stuck-worker")
    release.set()
    stuck_thread.join(TIMEOUT)
    assert not stuck_thread.is_alive()
    finished.clear()
    workers.submit(finished.set)
    assert finished.wait(TIMEOUT)
    assert len(threads_of("stuck-worker")) == 1


def test_job_that_is_abandoned_before_it_begins_never_does() -> None:
    workers = WorkerThreads("patient-worker", limit=1)
    release, finished = threading.Event(), threading.Event()
    done: list[str] = []
    workers.submit(lambda: release.wait(TIMEOUT))
    waiting = workers.submit(lambda: done.append("abandoned"))
    workers.submit(lambda: (done.append("wanted"), finished.set()))
    workers.abandon(waiting)
    release.set()
    assert finished.wait(TIMEOUT)
    assert done == ["wanted"]


def test_job_that_gives_way_keeps_no_thread_from_others() -> None:
    workers = WorkerThreads("polite-worker", limit=1)
    release, finished = threading.Event(), threading.Event()

    def wait() -> None:
        for _ in range(3):
            workers.give_way()
        release.wait(TIMEOUT)

    workers.submit(wait)
    workers.submit(finished.set)
    assert finished.wait(TIMEOUT)
    threads = threads_of("polite-worker")
    assert len(threads) == 2
    release.set()
    finished.clear()
    threads[0].join(TIMEOUT)
    workers.submit(finished.set)
    assert finished.wait(TIMEOUT)
    assert len(threads_of("polite-worker")) == 1


def test_nobody_but_a_job_gives_way() -> None:
    with pytest.raises(RuntimeError):
        WorkerThreads("no-worker", limit=1).give_way()


@pytest.fixture
def watcher() -> Watcher:
    return runtime().watcher


def test_watcher_runs_timers_in_order(watcher: Watcher) -> None:
    order: list[str] = []
    finished = threading.Event()

    def schedule() -> None:
        watcher.call_later(0.02, lambda: order.append("late"))
        watcher.call_later(0.03, finished.set)
        watcher.call_later(0.01, lambda: order.append("early"))
        watcher.call_later(0, lambda: order.append("cancelled")).cancel()
        watcher.call_later(math.inf, lambda: order.append("never"))

    watcher.call_soon(schedule)
    assert finished.wait(TIMEOUT)
    assert order == ["early", "late"]


def test_watcher_survives_a_callback_that_fails(
    watcher: Watcher, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "creche"):
        check_that_it_goes_on(watcher.call_soon)
    assert "LookupError: oh" in caplog.text


def test_watcher_survives_a_failure_that_cannot_be_logged(
    watcher: Watcher, broken_log: Collector
) -> None:
    check_that_it_goes_on(watcher.call_soon)


def test_starter_survives_a_failure_that_cannot_be_logged(broken_log: Collector) -> None:
    starter = runtime().starter  # it has no end, so this is no place for one more
    check_that_it_goes_on(starter.submit)


def test_ctrl_c_is_not_dropped_with_what_handlers_raise() -> None:
    class Struck(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise KeyboardInterrupt

    logger, handler = logging.getLogger("creche"), Struck()
    logger.addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            log_exception("text")
    finally:
        logger.removeHandler(handler)


@pytest.fixture
def poller() -> Iterator[SelectorPoller]:
    poller = SelectorPoller()
    yield poller
    poller.close()


def test_poller(poller: SelectorPoller) -> None:
    left, right = socket.socketpair()
    calls: list[str] = []
    with left, right:
        poller.watch(left.fileno(), lambda: calls.append("readable"))
        poller.poll(0)
        assert calls == []
        right.send(b"x")
        poller.poll(TIMEOUT)
        poller.watch_writable(left.fileno(), lambda: calls.append("writable"))
        poller.poll(TIMEOUT)
        poller.unwatch_writable(left.fileno())
        poller.poll(TIMEOUT)
        poller.unwatch(left.fileno())
        poller.unwatch(left.fileno())
        poller.poll(0)
    assert calls == ["readable", "readable", "writable", "readable"]


def test_poller_callback_that_unwatches_another(poller: SelectorPoller) -> None:
    pipes = [os.pipe() for _ in range(2)]
    calls: list[int] = []

    def on_ready(this: int, other: int) -> None:
        calls.append(this)
        poller.unwatch(other)

    (first, _), (second, _) = pipes
    poller.watch(first, lambda: on_ready(first, second))
    poller.watch(second, lambda: on_ready(second, first))
    for _, sender in pipes:
        os.write(sender, b"x")
    poller.poll(TIMEOUT)
    assert len(calls) == 1
    poller.unwatch(calls[0])
    for descriptor in (*pipes[0], *pipes[1]):
        os.close(descriptor)


def test_poller_is_woken(poller: SelectorPoller) -> None:
    for _ in range(100_000):  # more than its pipe can take
        poller.wake()
    poller.poll(TIMEOUT)
    timer = threading.Timer(0.01, poller.wake)
    timer.start()
    poller.poll(TIMEOUT)
    timer.join(TIMEOUT)  # it must not wake one that is closed


@pytest.mark.parametrize("state", ProcessState)
@pytest.mark.parametrize("event", Event)
def test_lifecycle(state: ProcessState, event: Event) -> None:
    allowed = {
        (ProcessState.CREATED, Event.START): ProcessState.STARTED,
        (ProcessState.STARTED, Event.RUN): ProcessState.RUNNING,
        (ProcessState.STARTED, Event.END): ProcessState.TERMINATED,
        (ProcessState.RUNNING, Event.END): ProcessState.TERMINATED,
    }
    if (state, event) in allowed:
        assert next_state(state, event, "p") is allowed[state, event]
    else:
        with pytest.raises(ProcessStateError, match=f"cannot {event.value} process 'p'"):
            next_state(state, event, "p")


def test_wait_at_the_end_of_the_interpreter_may_have_no_end() -> None:
    class Gone(Latch):
        def wait_in_thread(self, timeout: float | None) -> bool:
            assert timeout is not None
            return threading.Lock().acquire(timeout=timeout)  # raises if that is too long

    class Live:
        policy = StopPolicy(grace=math.inf)
        gone: Latch = Gone()
        stopped = False

        def stop(self, policy: StopPolicy) -> None:
            self.stopped = True

        def forget(self) -> None: ...

    machinery = Runtime.__new__(Runtime)
    live = Live()
    machinery.live = {live}
    machinery.stop_all()
    assert live.stopped
