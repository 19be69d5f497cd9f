"""What processes write, line by line: to a logger, or to a stream."""

from __future__ import annotations

import functools
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import output_targets as targets
import pytest
from log_collector import Collector, failing_record_factory
from support import (
    TIMEOUT,
    Announcements,
    until,
    use_poller,
    wait_until_gone,
)

import creche
from creche import (
    AsyncProcess,
    StopPolicy,
    _launching,
    _output,
    open_nursery,
    open_pool,
    run_in_process,
)
from creche._platform import _connection_wire, _output_connection
from creche._platform._connection_poller import ConnectionPoller

pytestmark = pytest.mark.anyio


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    logger = logging.getLogger("tests.output")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(collector)
    yield collector
    logger.removeHandler(collector)
    logger.filters.clear()


LOGGER = logging.getLogger("tests.output")

# What a process writes at its end, and its lines, have as much time as they need.
PATIENT = StopPolicy(exit_timeout=math.inf)


async def read_all(stream: Any) -> list[str]:
    assert stream is not None
    with anyio.fail_after(TIMEOUT):
        return [line async for line in stream]


def streaming(target: Any, *args: Any, **options: Any) -> AsyncProcess[Any]:
    return AsyncProcess(target=target, args=args, **{"stdout": "stream", **options})


# --- loggers --------------------------------------------------------------------------------------


async def test_lines_become_records(collector: Collector, start_method: str) -> None:
    process = AsyncProcess(
        target=targets.write,
        args=("one\ntwo 100%s\n\n", "wrong\nlast without newline", 7),
        name="writer",
        stdout=LOGGER,
        stderr=LOGGER,
        start_method=start_method,
    )
    assert await process == 7
    out = [r for r in collector.records if r.levelno == logging.INFO]
    err = [r for r in collector.records if r.levelno == logging.WARNING]
    assert [r.getMessage() for r in out] == ["one", "two 100%s", ""]
    assert [r.getMessage() for r in err] == ["wrong", "last without newline"]
    assert {r.process for r in collector.records} == {process.pid}
    assert {r.processName for r in collector.records} == {"writer"}
    assert {r.name for r in collector.records} == {"tests.output"}
    assert collector.threads == {"creche-logs-1"}
    assert process.stdout is None
    assert process.stderr is None


async def test_c_code_and_grandchildren_are_captured(
    collector: Collector, start_method: str
) -> None:
    await run_in_process(
        targets.write_by_all_ways, stdout=LOGGER, stderr="stdout", start_method=start_method
    )
    expected = ["python", "system call", "c library", "program", "shell", "original"]
    assert collector.messages == expected


async def test_both_into_one_keep_their_order(collector: Collector, start_method: str) -> None:
    await run_in_process(
        targets.write_alternately, 200, stdout=LOGGER, stderr="stdout", start_method=start_method
    )
    assert collector.messages == [str(number) for number in range(200)]
    assert {record.levelno for record in collector.records} == {logging.INFO}


async def test_async_functions(collector: Collector, start_method: str) -> None:
    assert await run_in_process(
        targets.write_async, "hello", stdout=LOGGER, start_method=start_method
    )
    assert collector.messages == ["hello"]


async def test_outcome_comes_after_the_lines(collector: Collector) -> None:
    """Many lines and a handler that takes its time, and still none is missing."""
    ended = threading.Event()
    LOGGER.addFilter(lambda record: ended.wait(TIMEOUT))
    # Fewer than may wait for their turn, so that the process ends before the first is logged.
    process = AsyncProcess(target=targets.count_up, args=(8_000, 20), stdout=LOGGER, stop=PATIENT)
    async with anyio.create_task_group() as tasks:

        async def go_on() -> None:
            try:
                await until(lambda: process._handle.exitcode is not None)
            finally:
                ended.set()

        tasks.start_soon(go_on)
        assert await process == 8_000
        assert [int(line.rstrip(".")) for line in collector.messages] == list(range(8_000))


@pytest.mark.parametrize(
    ("target", "error", "lines"),
    [
        (targets.write_and_kill, creche.ProcessDied, ["last words", "cut off"]),
        (targets.write_and_exit_hard, creche.ProcessDied, ["last words"]),
        (targets.write_and_raise, LookupError, ["last words"]),
    ],
)
async def test_last_words(
    collector: Collector, start_method: str, target: Any, error: Any, lines: list[str]
) -> None:
    with pytest.raises(error):
        await run_in_process(target, stdout=LOGGER, start_method=start_method)
    assert collector.messages == lines


async def test_handler_that_hangs_does_not_hold_up_the_outcome(collector: Collector) -> None:
    hanging = threading.Event()
    LOGGER.addFilter(lambda record: hanging.wait(TIMEOUT))
    try:
        with anyio.fail_after(TIMEOUT / 2):
            value = await run_in_process(
                targets.write, "x\n", "", 5, stdout=LOGGER, stop=StopPolicy(exit_timeout=0.1)
            )
        assert value == 5
        assert collector.messages == []
    finally:
        hanging.set()
    # The thread goes on.
    await run_in_process(targets.write, "y\n", stdout=LOGGER, stop=PATIENT)
    assert collector.messages == ["x", "y"]


async def test_handler_that_hangs_does_not_hold_up_a_cancellation(
    collector: Collector, announcements: Announcements
) -> None:
    hanging = threading.Event()
    LOGGER.addFilter(lambda record: hanging.wait(TIMEOUT))
    stop = StopPolicy(grace=TIMEOUT, kill_timeout=0.1, exit_timeout=TIMEOUT)
    try:
        with anyio.fail_after(TIMEOUT / 2):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(
                    functools.partial(run_in_process, stdout=LOGGER, stop=stop),
                    targets.write_then_wait,
                    announcements.path,
                    "x",
                )
                await announcements.get_pid()
                tasks.cancel_scope.cancel()
    finally:
        hanging.set()
    # What hung goes on, and is not to come to the next test.
    with anyio.fail_after(TIMEOUT):
        while collector.messages != ["x"]:
            await anyio.sleep(0.001)


async def test_filter_that_fails_costs_its_line_alone(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        if record.getMessage() == "b":
            raise LookupError("refused")
        return True

    LOGGER.addFilter(refuse)
    await run_in_process(targets.write, "a\nb\nc\n", stdout=LOGGER)
    assert collector.messages == ["a", "c"]
    assert "cannot log a line" in caplog.text


async def test_record_factory_that_fails(collector: Collector) -> None:
    """It fails on what creche logs of that, too."""
    with anyio.fail_after(TIMEOUT):
        with failing_record_factory():
            await run_in_process(targets.write, "lost\n", stdout=LOGGER, stop=PATIENT)
        # More than may wait for its turn.
        await run_in_process(targets.count_up, 10_000, 60, stdout=LOGGER, stop=PATIENT)
    assert len(collector.messages) == 10_000


async def test_filter_that_exits(collector: Collector) -> None:
    def leave(record: logging.LogRecord) -> bool:
        if record.getMessage() == "b":
            raise SystemExit(3)
        return True

    LOGGER.addFilter(leave)
    with anyio.fail_after(TIMEOUT):
        await run_in_process(targets.write, "a\nb\nc\n", stdout=LOGGER, stop=PATIENT)
    assert collector.messages == ["a", "c"]


async def test_level_that_is_off(collector: Collector) -> None:
    LOGGER.setLevel(logging.WARNING)
    await run_in_process(targets.write, "quiet\n", "loud\n", stdout=LOGGER, stderr=LOGGER)
    assert collector.messages == ["loud"]


async def test_child_waits_for_a_handler_that_is_behind(collector: Collector) -> None:
    """What is not logged yet does not pile up in this process."""
    release = threading.Event()
    LOGGER.addFilter(lambda record: release.wait(TIMEOUT))
    process = AsyncProcess(target=targets.count_up, args=(50_000, 90), stdout=LOGGER, stop=PATIENT)
    async with process:
        sink: Any = process._handle.output._stdout
        with anyio.fail_after(TIMEOUT):
            while sink is None or not sink.sink._full:
                await anyio.sleep(0.002)
        assert sink.sink._size < 512 * 1024
        assert process.is_alive()
        release.set()
    assert len(collector.messages) == 50_000


async def test_output_and_log_records_at_once(collector: Collector, start_method: str) -> None:
    process = AsyncProcess(
        target=targets.print_and_log,
        args=(50,),
        stdout=LOGGER,
        logs=LOGGER,
        start_method=start_method,
    )
    await process
    printed = [line for line in collector.messages if line.startswith("printed")]
    logged = [line for line in collector.messages if line.startswith("logged")]
    assert printed == [f"printed {number}" for number in range(50)]
    assert logged == [f"logged {number}" for number in range(50)]
    assert {record.process for record in collector.records} == {process.pid}


# --- streams --------------------------------------------------------------------------------------


async def test_stream(start_method: str) -> None:
    process = streaming(
        targets.write,
        "one\n\ntwo\nlast",
        "wrong\n",
        7,
        stderr="stream",
        start_method=start_method,
    )
    async with process:
        assert await read_all(process.stdout) == ["one", "", "two", "last"]
        assert await read_all(process.stderr) == ["wrong"]
    assert process.return_value == 7
    assert process.stdout is not None
    with pytest.raises(anyio.EndOfStream):
        await process.stdout.receive()


async def test_line_comes_as_soon_as_it_is_written(
    announcements: Announcements, start_method: str
) -> None:
    process = streaming(
        targets.write_then_wait, announcements.path, "ready", start_method=start_method
    )
    async with process:
        with anyio.fail_after(TIMEOUT):
            assert await process.stdout.receive() == "ready"  # type: ignore[union-attr]
        assert process.is_alive()
        await process.terminate()
    assert await read_all(process.stdout) == []


async def test_encoding_and_long_lines(start_method: str) -> None:
    long = "é" * 100_000
    data = b"raw \xff\n" + long.encode() + b"\n" + b"x" * (64 * 1024) + b"\nend\r\n"
    process = streaming(targets.write_bytes, data, start_method=start_method)
    async with process:
        lines = await read_all(process.stdout)
    assert lines[0] == "raw \\xff"
    assert "".join(lines[1:5]) == long
    assert all(len(line.encode()) <= 64 * 1024 for line in lines)
    assert lines[5:] == ["x" * (64 * 1024), "end\r"]


async def test_text_is_utf8_whatever_the_child_writes(start_method: str) -> None:
    process = streaming(targets.write, "\udcff\nžluťoučký\n", start_method=start_method)
    async with process:
        assert await read_all(process.stdout) == ["\\udcff", "žluťoučký"]
    described = streaming(targets.describe_output, start_method=start_method)
    assert await described == (1, "utf-8", "backslashreplace", True)


async def test_nothing_is_lost_and_little_is_kept(start_method: str) -> None:
    process = streaming(targets.count_up, 40_000, 60, start_method=start_method)
    stream: Any = process.stdout
    async with process:
        for number in range(40_000):
            line = await stream.receive()
            assert int(line.rstrip(".")) == number
            if number < 15_000:
                assert stream._size <= 128 * 1024
        assert await read_all(stream) == []
    assert process.return_value == 40_000


async def test_other_tasks_run_while_lines_are_received() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.sleep(0)

    process = streaming(targets.count_up, 50_000)
    async with anyio.create_task_group() as tasks, process:
        tasks.start_soon(count_turns)
        await read_all(process.stdout)
        tasks.cancel_scope.cancel()
    assert turns > 10


async def test_cancelled_receive_loses_no_line(start_method: str) -> None:
    process = streaming(targets.count_up, 2_000, start_method=start_method)
    received: list[int] = []
    stream: Any = process.stdout
    async with process:
        with anyio.fail_after(TIMEOUT):
            ended = False
            while not ended:
                with anyio.move_on_after(0.0002):
                    while True:
                        try:
                            received.append(int(await stream.receive()))
                        except anyio.EndOfStream:
                            ended = True
                            break
    assert received == list(range(2_000))


async def test_one_receiver_at_a_time(announcements: Announcements) -> None:
    process = streaming(targets.write_then_wait, announcements.path, "x")
    stream: Any = process.stdout
    async with process:
        assert await stream.receive() == "x"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.receive)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await stream.receive()
            tasks.cancel_scope.cancel()
        await process.kill()


async def test_closing_does_not_disturb_the_process(start_method: str) -> None:
    process = streaming(targets.swallow_broken_pipe, start_method=start_method)
    stream: Any = process.stdout
    async with process:
        await stream.receive()
        await stream.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()
    assert process.return_value == "wrote it all"


async def test_closing_wakes_the_receiver(announcements: Announcements) -> None:
    process = streaming(targets.write_then_wait, announcements.path, "x")
    stream: Any = process.stdout
    async with process:
        await stream.receive()
        async with anyio.create_task_group() as tasks:

            async def receive() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await stream.receive()

            tasks.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            await stream.aclose()
        await process.kill()


async def test_blocked_child_can_be_stopped_politely(
    start_method: str, announcements: Announcements
) -> None:
    process = streaming(
        targets.count_until_stopped,
        announcements.path,
        start_method=start_method,
        stop=StopPolicy(grace=TIMEOUT),
    )
    await process.start()
    stream: Any = process.stdout
    with anyio.fail_after(TIMEOUT):
        while not stream._full:
            await anyio.sleep(0.002)
        await process.terminate()
    assert await announcements.get() == "cleaned up"
    assert process.exitcode == -signal.SIGTERM
    lines = await read_all(stream)
    # It was stopped in the middle of a line, or between it and its newline.
    assert [int(line) for line in lines[:-2]] == list(range(len(lines) - 2))
    assert lines[-1].endswith("stopped")


async def test_blocked_child_is_killed(start_method: str) -> None:
    process = streaming(targets.count_for_ever, start_method=start_method)
    await process.start()
    stream: Any = process.stdout
    with anyio.fail_after(TIMEOUT):
        await stream.receive()
        await process.kill()
    lines = await read_all(stream)
    assert [int(line) for line in lines[:-1]] == list(range(1, len(lines)))


async def test_what_a_process_writes_at_its_exit_needs_no_reader(start_method: str) -> None:
    """Up to a limit: it has given its outcome, and is awaited."""
    process = streaming(targets.write_at_exit, 50_000, start_method=start_method, stop=PATIENT)
    with anyio.fail_after(TIMEOUT):
        assert await process == "done"
    assert process.exitcode == 0
    assert len(await read_all(process.stdout)) == 50_000


@pytest.mark.parametrize("endless", [False, True])
async def test_descendant_that_keeps_the_pipe_holds_up_nothing(
    start_method: str, endless: bool
) -> None:
    process = streaming(targets.leave_writer_behind, endless, start_method=start_method)
    with anyio.fail_after(TIMEOUT):
        async with process:
            lines = await read_all(process.stdout)
    try:
        assert "left behind" in lines
        assert process.exitcode == 0
    finally:
        # It may have died of a broken pipe.
        try:
            os.kill(process.return_value, signal.SIGKILL)
        except ProcessLookupError:
            assert endless
    assert wait_until_gone(process.return_value)


async def test_logger_and_a_descendant_that_keeps_the_pipe(
    collector: Collector, start_method: str
) -> None:
    with anyio.fail_after(TIMEOUT):
        pid = await run_in_process(
            targets.leave_writer_behind, False, stdout=LOGGER, start_method=start_method
        )
    os.kill(pid, signal.SIGKILL)
    assert collector.messages == ["left behind"]


async def test_process_that_closes_its_output(
    start_method: str, announcements: Announcements
) -> None:
    process = streaming(targets.close_output, announcements.path, start_method=start_method)
    async with process:
        with anyio.fail_after(TIMEOUT):
            assert await process.stdout.receive() == "before"  # type: ignore[union-attr]
            if start_method == "spawn":
                # multiprocessing's own: nothing else in it holds the pipe.
                with pytest.raises(anyio.EndOfStream):
                    await process.stdout.receive()  # type: ignore[union-attr]
        await process.kill()
    assert await read_all(process.stdout) == []


async def test_stopped_process_can_be_killed(announcements: Announcements) -> None:
    process = streaming(targets.write_then_wait, announcements.path, "x")
    async with process:
        os.kill(await announcements.get_pid(), signal.SIGSTOP)
        await process.kill()
    assert await read_all(process.stdout) == ["x"]


async def test_stream_of_a_process_that_never_runs() -> None:
    def local() -> None: ...

    process = streaming(local)
    with pytest.raises(creche.SerializationError):
        await process
    assert await read_all(process.stdout) == []
    async with open_nursery(limiter=anyio.CapacityLimiter(1), stdout="stream") as nursery:
        first = nursery.start_soon(targets.count_for_ever)
        assert await first.stdout.receive() == "0"  # type: ignore[union-attr]
        waiting = nursery.start_soon(targets.count_up, 1)
        nursery.cancel_scope.cancel()
    assert await read_all(waiting.stdout) == []


async def test_stream_ends_where_there_are_no_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    original = _output.output_pipe

    def fail_the_second_time() -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(24, "Too many open files")
        return original()

    monkeypatch.setattr(_output, "output_pipe", fail_the_second_time)
    process = streaming(targets.count_up, 1, stderr="stream")
    with pytest.raises(creche.ProcessStartError, match="Too many open files"):
        await process
    assert await read_all(process.stdout) == []
    assert await read_all(process.stderr) == []


async def test_another_event_loop_receives() -> None:
    process = streaming(targets.count_up, 1000)
    async with process:
        lines = await anyio.to_thread.run_sync(anyio.run, read_all, process.stdout)
    assert len(lines) == 1000


async def test_forked_sibling_has_no_part_in_it(announcements: Announcements) -> None:
    process = streaming(
        targets.write_then_wait, announcements.path, "x", start_method="fork", stderr="stream"
    )
    async with process:
        pid = await announcements.get_pid()
        ours = {os.readlink(f"/proc/{pid}/fd/{number}") for number in (1, 2)}
        assert len(ours) == 2
        sibling = await run_in_process(targets.descriptors, start_method="fork")
        assert not ours & sibling
        captured = streaming(targets.descriptors, start_method="fork")
        assert not ours & await captured
        await process.kill()


async def test_many_cycles_leave_nothing_behind(collector: Collector) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        async with open_nursery(stdout="stream", stderr=LOGGER) as nursery:
            processes = [nursery.start_soon(targets.write, "a\n", "b\n") for _ in range(5)]
        for process in processes:
            assert await read_all(process.stdout) == ["a"]
    assert len(collector.messages) == 100
    assert len(os.listdir("/proc/self/fd")) <= before + 2


# --- nurseries and pools --------------------------------------------------------------------------


async def test_nursery_default_and_exception_to_it(collector: Collector, start_method: str) -> None:
    async with open_nursery(stdout=LOGGER, stderr="stdout", start_method=start_method) as nursery:
        nursery.start_soon(targets.write, "logged\n", "logged too\n")
        other = nursery.start_soon(targets.write, "streamed\n", "here\n", stdout="stream")
        third = nursery.start_soon(targets.write, "", "apart\n", stderr="stream")
        assert await read_all(other.stdout) == ["streamed", "here"]
        assert await read_all(third.stderr) == ["apart"]
        assert await nursery.start(targets.write_started, "ready") == "ready"
    assert sorted(collector.messages) == ["logged", "logged too", "ready"]


async def test_nursery_start_with_options(collector: Collector) -> None:
    async with open_nursery() as nursery:
        assert await nursery.start(targets.write_started, "up", stdout=LOGGER) == "up"
    assert collector.messages == ["up"]


@creche.in_process(stdout=LOGGER, stderr="stdout")
def decorated(line: str) -> str:
    print(line)
    print(line, file=sys.stderr)
    return line


async def test_decorator(collector: Collector) -> None:
    assert await decorated("x") == "x"
    assert collector.messages == ["x", "x"]


async def test_pool(collector: Collector, start_method: str) -> None:
    async with open_pool(
        2, stdout=LOGGER, stderr=LOGGER, start_method=start_method, name="printers"
    ) as pool:
        assert await pool.map(targets.print_item, range(100)) == list(range(100))
        await pool.run(targets.write, "", "to stderr\n")
    names = {record.processName or "" for record in collector.records}
    assert all(name.startswith("printers-worker-") for name in names)
    lines = collector.messages
    assert sorted(lines) == sorted([*(f"item {n}" for n in range(100)), "to stderr"])


async def test_worker_that_dies_leaves_its_last_words(
    collector: Collector, start_method: str
) -> None:
    async with open_pool(1, stdout=LOGGER, start_method=start_method) as pool:
        with pytest.raises(creche.ProcessDied):
            await pool.run(targets.write_and_kill)
        await pool.run(targets.write, "next\n")
    assert collector.messages == ["last words", "cut off", "next"]


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"stdout": "stdout"}, {"stdout": "x"}, {"stderr": "x"}])
async def test_words_that_mean_nothing(options: Any) -> None:
    for call in (AsyncProcess, open_nursery, open_pool, creche.in_process):
        with pytest.raises(ValueError, match="'stream'"):
            call(**options)
    with pytest.raises(ValueError):
        await run_in_process(targets.count_up, 1, **options)
    async with open_nursery() as nursery:
        with pytest.raises(ValueError):
            nursery.start_soon(targets.count_up, 1, **options)


@pytest.mark.parametrize("options", [{"stdout": 1}, {"stderr": sys.stderr}, {"stdout": print}])
async def test_wrong_types(options: Any) -> None:
    for call in (AsyncProcess, open_nursery, open_pool, creche.in_process):
        with pytest.raises(TypeError, match="must be a "):
            call(**options)


async def test_no_stream_where_nobody_could_read_it() -> None:
    with pytest.raises(ValueError, match="use AsyncProcess or a nursery"):
        await run_in_process(targets.count_up, 1, stdout="stream")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="use AsyncProcess or a nursery"):
        creche.in_process(stderr="stream")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="workers serve many calls"):
        open_pool(stdout="stream")  # type: ignore[arg-type]


# --- whole programs -------------------------------------------------------------------------------

CLOSED_OUTPUT = """
import os, sys
import anyio
import creche
import output_targets

async def main():
    for method in ("creche", "forkserver", "spawn", "fork"):
        process = creche.AsyncProcess(
            target=output_targets.write, args=("out\\n", "err\\n"), stdout="stream",
            stderr="stream", start_method=method
        )
        async with process:
            out = [line async for line in process.stdout]
            err = [line async for line in process.stderr]
        assert (out, err) == (["out"], ["err"]), (method, out, err)
    with open(sys.argv[1], "w") as file:
        file.write("well")

if __name__ == "__main__":
    anyio.run(main)
"""


async def test_application_without_output_of_its_own(tmp_path: Path) -> None:
    script, said = tmp_path / "program.py", tmp_path / "said"
    script.write_text(CLOSED_OUTPUT, encoding="utf-8")
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    subprocess.run(
        ["sh", "-c", 'exec "$0" "$@" >&- 2>&-', sys.executable, str(script), str(said)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        timeout=TIMEOUT,
        check=True,
    )
    assert said.read_text() == "well"


# --- as on Windows --------------------------------------------------------------------------------


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch, machinery: None) -> Iterator[None]:
    """Have creche wait, and capture output, as it does on Windows."""
    monkeypatch.setattr(_output, "output_pipe", _output_connection.output_pipe)
    monkeypatch.setattr(_launching, "wire_pair", _connection_wire.wire_pair)
    original = use_poller(ConnectionPoller(batch_size=3))
    yield
    use_poller(original).close()


@pytest.mark.usefixtures("connections")
async def test_python_code_is_captured(collector: Collector, start_method: str) -> None:
    value = await run_in_process(
        targets.write,
        "one\ntwo \udcff\nlast",
        "wrong\n",
        7,
        stdout=LOGGER,
        stderr=LOGGER,
        start_method=start_method,
    )
    assert value == 7
    assert sorted(collector.messages) == ["last", "one", "two \\udcff", "wrong"]


@pytest.mark.usefixtures("connections")
async def test_python_code_is_captured_into_one(collector: Collector, start_method: str) -> None:
    await run_in_process(
        targets.write_alternately, 200, stdout=LOGGER, stderr="stdout", start_method=start_method
    )
    assert collector.messages == [str(number) for number in range(200)]


@pytest.mark.usefixtures("connections")
async def test_stream_of_python_code(start_method: str) -> None:
    process = streaming(targets.count_up, 20_000, 60, start_method=start_method)
    stream: Any = process.stdout
    async with process:
        for number in range(20_000):
            assert int((await stream.receive()).rstrip(".")) == number
            if number < 15_000:
                assert stream._size <= 128 * 1024
        assert await read_all(stream) == []
    assert process.return_value == 20_000


@pytest.mark.usefixtures("connections")
@pytest.mark.parametrize(
    ("target", "error"),
    [
        (targets.write_and_kill, creche.ProcessDied),
        (targets.write_and_raise, LookupError),
    ],
)
async def test_last_words_of_python_code(
    collector: Collector, start_method: str, target: Any, error: Any
) -> None:
    with pytest.raises(error):
        await run_in_process(target, stdout=LOGGER, start_method=start_method)
    assert collector.messages[0] == "last words"


@pytest.mark.usefixtures("connections")
async def test_blocked_python_code_is_killed(start_method: str) -> None:
    process = streaming(targets.count_for_ever, start_method=start_method)
    await process.start()
    assert process.stdout is not None
    with anyio.fail_after(TIMEOUT):
        await process.stdout.receive()
        await process.kill()
    await read_all(process.stdout)


@pytest.mark.usefixtures("connections")
async def test_pool_of_python_code(collector: Collector, start_method: str) -> None:
    async with open_pool(2, stdout=LOGGER, start_method=start_method) as pool:
        assert await pool.map(targets.print_item, range(20)) == list(range(20))
    assert sorted(collector.messages) == sorted(f"item {n}" for n in range(20))
