"""What goes wrong with a stream: its process dies, hangs, or writes what is no item."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import anyio
import pytest
import stream_targets as targets
import support
from scripts import Program
from support import TIMEOUT, Announcements

from creche import (
    ProcessDied,
    ProcessStartError,
    ProcessTimeout,
    SerializationError,
    StopPolicy,
    open_stream,
)
from creche._stream import _process_stream
from creche._stream._ring import TURN_AWAITED

pytestmark = pytest.mark.anyio

PATIENT = StopPolicy(grace=TIMEOUT, exit_timeout=TIMEOUT)
"""Who waits for a force that is not needed times out."""

FORCEFUL = StopPolicy(grace=0.05, exit_timeout=0.05)
"""For what nothing but force ends."""

MEBIBYTE = 1024 * 1024


# --- death ----------------------------------------------------------------------------------------


@pytest.mark.either_backend
@pytest.mark.parametrize("number", [0, 1, 500, 5000])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGUSR1])
async def test_death_comes_after_the_items(number: int, how: int, start_method: str) -> None:
    async with open_stream(
        targets.count_then_die, number, int(how), start_method=start_method
    ) as items:
        received = []
        with anyio.fail_after(TIMEOUT), pytest.raises(ProcessDied) as raised:
            async for item in items:
                received.append(item)  # noqa: PERF401
        assert received == list(range(number))
        assert raised.value.signal == how
        assert raised.value.pid == items.process.pid
        with pytest.raises(anyio.EndOfStream):
            await items.receive()


async def test_death_in_the_middle_of_an_item(start_method: str) -> None:
    async with open_stream(targets.die_in_the_middle, start_method=start_method) as items:
        with anyio.fail_after(TIMEOUT):
            assert await items.receive() == b"first"
            with pytest.raises(ProcessDied, match="it died while sending an item") as raised:
                await items.receive()
    assert raised.value.signal == signal.SIGKILL


@pytest.mark.parametrize("sizes", [[10], [10_000], [MEBIBYTE], [10, MEBIBYTE, 5 * MEBIBYTE]])
async def test_killed_at_any_moment(sizes: list[int]) -> None:
    """What arrives is whole and in order, and then comes the death."""
    chance = random.Random(0)
    for _ in range(15):
        # Without an end, which it might come to before the timer does.
        async with open_stream(targets.blocks_for_ever, sizes) as items:
            number = 0
            async with anyio.create_task_group() as group:
                pid = items.process.pid
                assert pid is not None
                timer = threading.Timer(chance.uniform(0, 0.05), os.kill, (pid, signal.SIGKILL))
                timer.start()
                with anyio.fail_after(TIMEOUT), pytest.raises(ProcessDied):
                    async for item in items:
                        assert item == bytes([number % 251]) * sizes[number % len(sizes)]
                        number += 1
                timer.join()
                group.cancel_scope.cancel()


async def test_death_while_the_buffer_is_full() -> None:
    async with open_stream(targets.count_for_ever, max_buffer_size=10) as items:
        pid = items.process.pid
        assert pid is not None
        while items._receiver._reader._cells[TURN_AWAITED] == 0:  # type: ignore[attr-defined]
            await anyio.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        await items.process.join()
        assert [await items.receive() for _ in range(10)] == list(range(10))
        with pytest.raises(ProcessDied):
            await items.receive()


async def test_hanging_at_exit() -> None:
    async with open_stream(targets.count_then_hang_at_exit, 3, stop=FORCEFUL) as items:
        with anyio.fail_after(TIMEOUT):
            assert [item async for item in items] == [0, 1, 2]


async def test_terminated_by_somebody() -> None:
    async with open_stream(targets.one_then_wait, stop=PATIENT) as items:
        assert await items.receive() == 1
        await items.process.terminate()
        with pytest.raises(ProcessDied) as raised:
            await items.receive()
        assert raised.value.signal == signal.SIGTERM


def test_death_of_the_parent(program: Program, tmp_path: Path, anyio_backend: str) -> None:
    """While the child waits for room."""
    main = program.write(
        """
        import sys
        import anyio
        import creche
        import stream_targets as targets


        async def main():
            async with creche.open_stream(targets.count_telling, sys.argv[1], max_buffer_size=3):
                await anyio.sleep_forever()


        if __name__ == "__main__":
            anyio.run(main, backend=sys.argv[2])
        """
    )
    announcements = Announcements(tmp_path / "fifo")
    try:
        with program.running(main, announcements.path, anyio_backend) as parent:
            for number in range(3):
                assert announcements.get_blocking() == str(number)
            parent.kill()
            parent.wait(TIMEOUT)
            assert not program.wait_until_gone()
    finally:
        announcements.close()


# --- processes that do not stop -------------------------------------------------------------------


@pytest.mark.parametrize(
    "function", [targets.one_then_busy, targets.one_then_hold_the_gil, targets.one_then_wait]
)
@pytest.mark.parametrize("way", ["leave", "cancel"])
async def test_a_stopped_process(function: Callable[[], Any], way: str) -> None:
    """It gets SIGSTOP, and then a request to stop."""
    with anyio.fail_after(TIMEOUT), anyio.CancelScope() as scope:
        async with open_stream(function, stop=FORCEFUL) as items:
            assert await items.receive() == 1
            pid = items.process.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            if way == "cancel":
                scope.cancel()
                await items.receive()
    assert support.wait_until_gone(pid, 0)


async def test_a_process_stopped_in_the_middle_of_an_item() -> None:
    with anyio.fail_after(TIMEOUT):
        async with open_stream(
            targets.blocks, [50 * MEBIBYTE] * 10, stop=FORCEFUL, timeout=2 * TIMEOUT
        ) as items:
            pid = items.process.pid
            assert pid is not None
            await items.receive()
            os.kill(pid, signal.SIGSTOP)
            support.time_out(items.process)  # not before it has sent an item
            with pytest.raises(ProcessTimeout):
                async for _ in items:
                    pass


async def test_swallowing_the_request_once(announcements: Announcements) -> None:
    """The generator is not asked for more, and what it does at its end is done."""
    async with open_stream(targets.swallow_and_go_on, announcements.path, stop=PATIENT):
        await announcements.get()
    assert await announcements.get() == "yielded"


async def test_swallowing_the_request(announcements: Announcements) -> None:
    async with open_stream(targets.swallow_for_ever, announcements.path, stop=FORCEFUL) as items:
        await announcements.get()
    assert items.process.exitcode == -signal.SIGKILL


async def test_ignoring_generator_exit() -> None:
    async with open_stream(targets.ignore_exit, stop=PATIENT) as items:
        assert await items.receive() == 1
    assert isinstance(items.process.exception, RuntimeError)


async def test_no_item_ever() -> None:
    async with open_stream(support.wait_for_ever, stop=PATIENT) as items:  # type: ignore[arg-type]
        with anyio.move_on_after(0.1) as scope:
            await items.receive()
        assert scope.cancelled_caught


async def test_cancelled_at_every_moment() -> None:
    """Of its life, and nothing is left: see the fixture ``nothing_left_over``."""
    for step in range(60):
        with anyio.move_on_after(step * 0.000_5):
            async with open_stream(targets.blocks, [100, 3 * MEBIBYTE] * 10_000) as items:
                async for _ in items:
                    pass


# --- garbage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["too much", "backwards", "length", "kind", "table", "large table", "unasked"]
)
async def test_garbage(kind: str) -> None:
    async with open_stream(targets.write_garbage, kind, stop=PATIENT) as items:
        with anyio.fail_after(TIMEOUT):
            assert await items.receive() == 1
            with pytest.raises(SerializationError, match="was killed because something in it"):
                await items.receive()
            with pytest.raises(anyio.EndOfStream):
                await items.receive()
        assert items.process.exitcode == -signal.SIGKILL


async def test_ringing_without_end() -> None:
    async with open_stream(targets.write_garbage, "bell", stop=FORCEFUL) as items:
        assert await items.receive() == 1
        with anyio.move_on_after(0.2) as scope:
            await items.receive()
        assert scope.cancelled_caught


async def test_an_item_for_which_there_is_no_memory() -> None:
    async with open_stream(targets.huge_item, stop=FORCEFUL) as items:
        assert await items.receive() == 1
        with anyio.move_on_after(0.1) as scope:  # the rest of it will never come
            await items.receive()
        assert scope.cancelled_caught


async def test_a_fork_that_comes_back(announcements: Announcements) -> None:
    async with open_stream(targets.fork_and_go_on, announcements.path) as items:
        assert [item async for item in items] == [1, 2, 3]
    assert await announcements.get() == "forked"


# --- no resources ---------------------------------------------------------------------------------


async def test_no_descriptors_left() -> None:
    async with open_stream(targets.count, 1) as items:
        await items.receive()
    failures = 0
    received: list[int] = []
    while not received:
        with support.descriptors_left(failures):
            try:
                async with open_stream(targets.count, 1) as items:
                    received = [item async for item in items]
            except (ProcessStartError, SerializationError):
                failures += 1
    assert failures


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "too many open files"), RuntimeError("no new thread")]
)
async def test_nothing_left_for_the_machinery(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """As when a stream is the first thing that a program opens."""

    def no_runtime() -> NoReturn:
        raise error

    monkeypatch.setattr(_process_stream, "runtime", no_runtime)
    with pytest.raises(ProcessStartError, match=str(error.args[-1])):
        async with open_stream(targets.count, 1):
            pass


async def test_many_cycles() -> None:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for cycle in range(300):
        async with open_stream(targets.count, 3) as items:
            if cycle % 3 == 0:
                assert [item async for item in items] == [0, 1, 2]
            elif cycle % 3 == 1:
                assert await items.receive() == 0
    after = len(os.listdir("/proc/self/fd")), threading.active_count()
    assert after[0] <= before[0] + 3
    assert after[1] <= before[1] + 4


async def test_many_at_once_that_die() -> None:
    async def consume(number: int) -> None:
        async with open_stream(targets.count_then_die, number, int(signal.SIGKILL)) as items:
            received = []
            with pytest.raises(ProcessDied):
                async for item in items:
                    received.append(item)  # noqa: PERF401
            assert received == list(range(number))

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(consume, number)
