"""Log records of children in the logging tree of the parent."""

from __future__ import annotations

import functools
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
import support
import talk_targets as targets
from log_collector import Collector, failing_record_factory
from support import TIMEOUT, Announcements

from creche import (
    AsyncProcess,
    ProcessDied,
    Progress,
    StopPolicy,
    in_process,
    open_nursery,
    open_pool,
    open_stream,
    run_in_process,
)
from creche._loops import Latch
from creche._runtime import runtime

pytestmark = pytest.mark.anyio

# The outcome waits for all records, however long it takes to handle them.
PATIENT = StopPolicy(exit_timeout=math.inf)


@pytest.fixture
def collector() -> Iterator[Collector]:
    """On the logger of the children's records, which lets through INFO."""
    handler = Collector()
    logger = logging.getLogger("talk")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def expected(count: int) -> list[str]:
    return [f"record {index}" for index in range(count)]


@pytest.mark.parametrize("target", [targets.log_all, targets.log_async])
async def test_records_in_order(
    collector: Collector, start_method: str, target: Callable[..., Any]
) -> None:
    process = AsyncProcess(target=target, args=(100,), start_method=start_method, logs=True)
    await process
    assert collector.messages == expected(100)
    record = collector.records[0]
    assert (record.process, record.processName) == (process.pid, process.name)
    assert (record.name, record.levelname, record.funcName) == (
        "talk.child",
        "INFO",
        target.__name__,
    )
    assert collector.threads == {"creche-logs-1"}  # not the event loop's


async def test_every_way_of_starting(collector: Collector) -> None:
    await run_in_process(targets.log_all, 1, logs=True)
    await targets.log_decorated(1)
    async with open_nursery(logs=True) as nursery:
        nursery.start_soon(targets.log_all, 1)
        nursery.start_soon(targets.log_all, 5, logs=False)
    async with open_nursery() as nursery:
        nursery.start_soon(targets.log_all, 1, logs=True)
    assert collector.messages == expected(1) * 4
    async with open_stream(targets.log_and_yield, logs=True) as items:
        assert [item async for item in items] == ["item"]
    assert collector.messages == expected(1) * 5
    async with open_pool(1, logs=True) as pool:
        await pool.run(targets.log_all, 1)
    # The worker is gone, so that all it had to say is here.
    assert collector.messages == expected(1) * 6


async def test_without_logs_they_are_the_childs_own_affair(collector: Collector) -> None:
    await run_in_process(targets.log_all, 1)
    assert collector.messages == []


async def test_one_logger_for_all(collector: Collector) -> None:
    other = logging.getLogger("talk.other")
    other.setLevel(logging.ERROR)
    try:
        assert await run_in_process(targets.log_levels, logs=other) is False
    finally:
        other.setLevel(logging.NOTSET)
    assert collector.messages == ["quiet error"]
    assert collector.records[0].name == "talk.quiet"  # where it came from


async def test_levels_are_applied_in_the_child(collector: Collector) -> None:
    loud, quiet = logging.getLogger("talk.loud"), logging.getLogger("talk.quiet")
    loud.setLevel(logging.DEBUG)
    quiet.setLevel(logging.ERROR)
    try:
        assert await run_in_process(targets.log_levels, logs=True) is False
    finally:
        loud.setLevel(logging.NOTSET)
        quiet.setLevel(logging.NOTSET)
    assert collector.messages == ["info", "loud debug", "quiet error"]


async def test_disabled_levels(collector: Collector) -> None:
    logging.disable(logging.WARNING)
    try:
        await run_in_process(targets.log_levels, logs=True)
    finally:
        logging.disable(logging.NOTSET)
    assert collector.messages == ["quiet error"]


@pytest.mark.parametrize(
    "end",
    [
        functools.partial(os._exit, 3),
        functools.partial(support.send_signal, 9),
        support.segfault,
        functools.partial(targets.fail, "oh"),
        functools.partial(support.exit_in_order, 3),
    ],
    ids=["_exit", "SIGKILL", "segfault", "exception", "sys.exit"],
)
async def test_none_is_lost_with_the_child(collector: Collector, end: Callable[[], Any]) -> None:
    with pytest.raises((ProcessDied, LookupError)):
        await run_in_process(targets.log_then, end, logs=True)
    assert collector.messages == expected(3)


async def test_stopped_child(collector: Collector, announcements: Announcements) -> None:
    process = AsyncProcess(
        target=targets.log_before_dying, args=(announcements.path, 50), logs=True
    )
    await process.start()
    await announcements.get()
    await process.kill()
    assert collector.messages == expected(50)


async def test_records_of_what_outlives_the_function(
    collector: Collector, start_method: str
) -> None:
    process = AsyncProcess(
        target=targets.log_after_the_end,
        args=(2000,),
        start_method=start_method,
        stop=PATIENT,
        logs=True,
    )
    with anyio.fail_after(TIMEOUT):
        assert await process == "returned"
    assert collector.messages == expected(2000)
    assert process.progress.latest == Progress(2000)


async def test_records_at_the_exit_of_a_stopped_child(collector: Collector) -> None:
    with pytest.raises(ProcessDied):
        await run_in_process(targets.log_at_exit, 3, logs=True)
    assert collector.messages == expected(3)


async def test_exceptions_and_extras(collector: Collector) -> None:
    await run_in_process(targets.log_exception, logs=True)
    (record,) = collector.records
    assert "LookupError: oh" in (record.exc_text or "")
    assert record.__dict__["answer"] == 42
    assert record.__dict__["array"] == b"data"
    assert "lock" in record.__dict__["odd"]  # what cannot be pickled comes as text


async def test_record_that_cannot_be_unpickled(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    await run_in_process(targets.log_what_cannot_be_unpickled, logs=True)
    assert collector.messages == ["before", "after"]
    assert "could not be handled" in caplog.text


async def test_handler_that_fails(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    collector.fails = True
    await run_in_process(targets.log_all, 2, logs=True)
    assert caplog.text.count("could not be handled") == 2
    collector.fails = False
    await run_in_process(targets.log_all, 2, logs=True)
    assert collector.messages == expected(2)


async def test_handler_that_fails_on_everything(collector: Collector) -> None:
    """It also gets what creche logs of its failure."""
    with anyio.fail_after(TIMEOUT):
        with collector.failing_on("creche"):
            await run_in_process(targets.log_all, 1, logs=True, stop=PATIENT)
        await run_in_process(targets.log_all, 2000, logs=True, stop=PATIENT)
    assert collector.messages == expected(2000)


async def test_record_factory_that_fails(collector: Collector) -> None:
    with anyio.fail_after(TIMEOUT):
        with failing_record_factory():
            await run_in_process(targets.log_all, 1, logs=True, stop=PATIENT)
        await run_in_process(targets.log_all, 2000, logs=True, stop=PATIENT)
    assert collector.messages == expected(2000)


async def test_slow_handler_holds_up_the_child_and_not_the_loop(collector: Collector) -> None:
    """A child that logs faster than its records are handled has to wait; nobody else."""
    collector.gate = threading.Event()
    process = AsyncProcess(target=targets.log_all, args=(5000,), logs=True, stop=PATIENT)
    await process.start()
    assert await run_in_process(support.double, 2) == 4  # the loop and the watcher go on
    assert process.is_alive()
    assert len(collector.records) < 5000
    collector.gate.set()
    with anyio.fail_after(TIMEOUT):
        await process
    assert collector.messages == expected(5000)


async def test_handler_that_hangs(collector: Collector, announcements: Announcements) -> None:
    """The outcome waits for the records, but not for ever."""
    collector.gate = threading.Event()
    with anyio.fail_after(TIMEOUT):
        policy = StopPolicy(exit_timeout=0.1)
        await run_in_process(targets.log_all, 3, logs=True, stop=policy)
        policy = StopPolicy(grace=TIMEOUT, kill_timeout=0.1)
        process = AsyncProcess(
            target=targets.log_before_dying, args=(announcements.path, 3), logs=True
        )
        await process.start()
        await announcements.get()
        assert await process.terminate(policy) == -signal.SIGTERM  # the process itself is gone
    collector.gate.set()
    # What hung goes on, and is not to come to the next test.
    loggers = runtime().loggers
    with anyio.fail_after(TIMEOUT):
        while len(collector.records) < 6 or loggers._jobs or loggers._idle < loggers._threads:
            await anyio.sleep(0.001)


async def test_threads_of_a_child(collector: Collector) -> None:
    with anyio.fail_after(TIMEOUT):
        await run_in_process(targets.log_from_threads, 300, logs=True, stop=PATIENT)
    assert sorted(collector.messages) == sorted(expected(300) * 4)


async def test_finalizers_that_log(collector: Collector) -> None:
    with anyio.fail_after(TIMEOUT):
        await run_in_process(targets.log_and_collect, 2000, logs=True, stop=PATIENT)
    assert [text for text in collector.messages if text != "freed"] == expected(2000)
    assert collector.messages.count("freed") == 2000


async def test_interruption_in_the_middle_of_a_message(collector: Collector) -> None:
    with anyio.fail_after(TIMEOUT):
        await run_in_process(targets.log_while_sending, 2000, logs=True, stop=PATIENT)
    assert collector.messages[::2] == expected(2000)
    assert collector.messages[1::2] == ["interruption"] * 2000


async def test_interruption_of_what_makes_room(collector: Collector) -> None:
    with anyio.fail_after(TIMEOUT):
        await run_in_process(targets.log_while_room_is_made, 5000, logs=True, stop=PATIENT)
    collected = collector.messages
    collected.remove("interruption")
    assert collected == expected(5000)


async def test_child_that_can_have_no_thread(collector: Collector) -> None:
    with anyio.fail_after(TIMEOUT):
        assert await run_in_process(targets.log_without_threads, 5000, logs=True, stop=PATIENT) == 0
    assert collector.messages == expected(5000)


async def test_child_that_closes_its_descriptors(collector: Collector) -> None:
    with anyio.fail_after(TIMEOUT), pytest.raises(ProcessDied) as raised:
        await run_in_process(targets.log_without_descriptors, 5000, logs=True, stop=PATIENT)
    assert raised.value.exitcode == 7
    assert collector.messages == expected(1)


async def test_forks_of_a_child_send_nothing(collector: Collector) -> None:
    await run_in_process(targets.log_in_fork, logs=True)
    assert collector.messages == ["from the child"]


async def test_child_has_no_other_handlers(start_method: str, collector: Collector) -> None:
    """A fork has those of the parent, which would handle its records twice."""
    found = await run_in_process(targets.handlers, start_method=start_method, logs=True)
    assert found == ["ParentHandler"]


@pytest.mark.parametrize("logs", ["root", 1, None, logging.INFO])
async def test_wrong_target(logs: Any) -> None:
    with pytest.raises(TypeError, match=r"logs must be True, False or a logging\.Logger"):
        AsyncProcess(target=targets.log_all, logs=logs)
    with pytest.raises(TypeError, match="logs must be"):
        open_pool(1, logs=logs)
    with pytest.raises(TypeError, match="logs must be"):
        open_nursery(logs=logs)
    with pytest.raises(TypeError, match="logs must be"):
        in_process(logs=logs)
    with pytest.raises(TypeError, match="logs must be"):
        open_stream(targets.log_and_yield, logs=logs)


async def test_timeout_of_a_process_that_has_died() -> None:
    """Its records are still being handled, but that is not what the timeout is about."""
    handling, go_on = threading.Event(), threading.Event()

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            handling.set()
            assert go_on.wait(TIMEOUT)

    logger = logging.Logger("slow")
    logger.addHandler(Slow())
    process = AsyncProcess(
        target=targets.log_and_die,
        args=(1,),
        logs=logger,
        timeout=TIMEOUT,
        stop=StopPolicy(exit_timeout=TIMEOUT, kill_timeout=TIMEOUT),
    )
    handle, watcher = process._handle, runtime().watcher
    with anyio.fail_after(TIMEOUT):
        await process.start()
        try:
            await support.until(lambda: handle.exitcode is not None and handling.is_set())
            late = Latch()
            watcher.call_soon(handle._on_timeout)
            watcher.call_soon(lambda: handle._give_up_start(handle.policy))
            watcher.call_soon(late.set)
            await late.wait()
            assert not handle.gone.is_set()
        finally:
            go_on.set()
        with pytest.raises(ProcessDied) as caught:
            await process
    assert caught.value.exitcode == 3
