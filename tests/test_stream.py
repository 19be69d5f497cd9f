"""open_stream: what it gives, in which order, how far the generator runs ahead, and how it ends."""

from __future__ import annotations

import contextlib
import functools
import math
import pickle
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import stream_targets as targets
import support
from anyio.abc import ObjectReceiveStream
from support import TIMEOUT, Announcements

import creche
from creche import (
    ProcessClosedError,
    ProcessDied,
    ProcessStartError,
    ProcessStateError,
    ProcessStream,
    ProcessTimeout,
    RemoteError,
    SerializationError,
    StopPolicy,
    open_stream,
)

pytestmark = pytest.mark.anyio

PATIENT = StopPolicy(grace=TIMEOUT, exit_timeout=TIMEOUT)
"""Who waits for a force that is not needed times out."""

MEBIBYTE = 1024 * 1024


async def until_waiting_for_room(items: ProcessStream[Any]) -> None:
    """Wait until the generator is suspended for the first time, as the buffer is full."""
    from creche._stream._ring import ROOM_AWAITED, TURN_AWAITED

    cells = items._receiver._reader._cells  # type: ignore[attr-defined]
    with anyio.fail_after(TIMEOUT):
        while not cells[TURN_AWAITED] + cells[ROOM_AWAITED]:
            await anyio.sleep(0.002)


# --- items ----------------------------------------------------------------------------------------


@pytest.mark.either_backend
@pytest.mark.parametrize("function", [targets.count, targets.count_async])
@pytest.mark.parametrize("number", [0, 1, 1000, 5000])
async def test_items(function: Callable[[int], Any], number: int, start_method: str) -> None:
    async with open_stream(function, number, start_method=start_method) as items:
        assert [item async for item in items] == list(range(number))


@pytest.mark.parametrize(
    "function",
    [
        targets.a_list,
        targets.an_iterable,
        targets.a_list_later,
        targets.an_async_iterable_later,
        targets.Numbers,
        targets.AsyncNumbers,
        range,
        functools.partial(targets.count),
    ],
)
async def test_any_function_that_gives_an_iterable(function: Callable[[int], Any]) -> None:
    async with open_stream(function, 300) as items:
        assert [item async for item in items] == list(range(300))


@pytest.mark.parametrize("max_buffer_size", [1, 2, 7, 1000, 10**9, math.inf])
async def test_all_sizes_of_buffers(max_buffer_size: float) -> None:
    async with open_stream(targets.count, 700, max_buffer_size=max_buffer_size) as items:
        assert [item async for item in items] == list(range(700))


async def test_all_kinds_of_items() -> None:
    values = [
        None,
        True,
        1.5,
        2**70,
        "text",
        "x" * 5000,
        b"bytes",
        b"y" * 70_000,
        bytearray(b"z" * 70_000),
        {"a": [1, (2, 3)]},
        frozenset({1, 2}),
        [b"w" * 1_000_000, "v" * 1_000_000],
        "u" * (5 * MEBIBYTE),
        support.double,
        ValueError("an exception is an item, too"),
        [],
    ]
    async with open_stream(targets.each, values) as items:
        received = [item async for item in items]
    assert list(map(repr, received)) == list(map(repr, values))


async def test_sizes_around_all_limits() -> None:
    """What fits in a record and what does not, what is in the way of the ring's end, and so on."""
    sizes = [
        base + difference
        for base in (0, 64 * 1024, 128 * 1024, 512 * 1024, 1536 * 1024, 2 * MEBIBYTE, 4 * MEBIBYTE)
        for difference in (*range(-40, 40, 5), 0, 1, -1)
        if base + difference >= 0
    ]
    async with open_stream(targets.blocks, sizes) as items:
        number = 0
        async for item in items:
            assert len(item) == sizes[number]
            assert item == bytes([number % 251]) * len(item)
            number += 1
    assert number == len(sizes)


async def test_large_objects() -> None:
    async with open_stream(targets.large_objects, 5) as items:
        number = 0
        async for item in items:
            assert item == support.many_objects(20_000 + number)
            number += 1
    assert number == 5


async def test_buffers() -> None:
    shapes = [(1, 10), (3, 100_000), (2, MEBIBYTE), (1, 10 * MEBIBYTE), (3000, 5), (2, 0), (0, 0)]
    async with open_stream(targets.arrays, shapes) as items:
        received = [item async for item in items]
    for item, (number, size) in zip(received, shapes, strict=True):
        assert [bytes(part) for part in item.parts] == [
            bytes([i % 251]) * size for i in range(number)
        ]


async def test_async_generators_run_in_the_same_backend(anyio_backend_name: str) -> None:
    async with open_stream(targets.tell_backend) as items:
        assert await items.receive() == anyio_backend_name


async def test_other_tasks_of_the_child_run() -> None:
    async with open_stream(targets.ticks, 5, max_buffer_size=math.inf) as items:
        assert await items.receive() == 0
        assert len([item async for item in items]) > 0


async def test_many_at_once() -> None:
    totals: list[int] = []

    async def consume(number: int) -> None:
        async with open_stream(targets.count, number, max_buffer_size=3) as items:
            totals.append(sum([item async for item in items]))

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(consume, number)
    assert sorted(totals) == [number * (number - 1) // 2 for number in range(20)]


async def test_streams_in_children_and_of_streams() -> None:
    assert await creche.run_in_process(targets.sum_of_stream, 1000) == 499500
    for func in (targets.relay, targets.relay_async):
        async with open_stream(func, 100) as items:
            assert [item async for item in items] == list(range(100))


# --- one at a time --------------------------------------------------------------------------------


async def test_it_is_an_object_stream() -> None:
    async with open_stream(targets.count, 2, stop=PATIENT) as items:
        assert isinstance(items, ObjectReceiveStream)
        assert aiter(items) is items
        assert await items.receive() == 0
        assert await anext(items) == 1
        for _ in range(2):
            with pytest.raises(anyio.EndOfStream):
                await items.receive()
            with pytest.raises(StopAsyncIteration):
                await anext(items)
            with pytest.raises(anyio.EndOfStream):
                items.receive_nowait()
        assert items.process.exitcode == 0
    for _ in range(2):
        with pytest.raises(anyio.ClosedResourceError):
            await items.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await anext(items)
        with pytest.raises(anyio.ClosedResourceError):
            items.receive_nowait()


async def test_process() -> None:
    async with open_stream(targets.one_then_wait, name="reader", stop=PATIENT) as items:
        assert items.process.name == "reader"
        assert isinstance(items.process.pid, int)
        assert items.process.is_alive()
    assert not items.process.is_alive()
    assert items.process.exitcode == -15
    async with open_stream(targets.count, 1) as items:
        assert items.process.name.startswith("count-")


@pytest.mark.parametrize(
    "function", [targets.one_then_busy, targets.one_then_hold_the_gil, targets.one_then_wait]
)
async def test_a_lone_item_is_not_held_back(function: Callable[[], Any], start_method: str) -> None:
    stop = StopPolicy(grace=0)
    async with open_stream(function, stop=stop, start_method=start_method) as items:
        with anyio.fail_after(TIMEOUT):
            assert await items.receive() == 1
            with pytest.raises(anyio.WouldBlock):
                items.receive_nowait()


async def test_one_when_there_is_one(announcements: Announcements, tmp_path: Any) -> None:
    """Each item wakes the task that waits for it."""
    with open(announcements.path, "r+b", buffering=0) as gate:
        async with open_stream(targets.one_when_told, announcements.path, 100) as items:
            for number in range(100):
                with pytest.raises(anyio.WouldBlock):
                    items.receive_nowait()
                gate.write(b"go\n")
                with anyio.fail_after(TIMEOUT):
                    assert await items.receive() == number


async def test_receive_nowait() -> None:
    async with open_stream(targets.count, 1000) as items:
        received = []
        with anyio.fail_after(TIMEOUT):
            while True:
                try:
                    received.append(items.receive_nowait())
                except anyio.WouldBlock:
                    await anyio.sleep(0.001)
                except anyio.EndOfStream:
                    break
        assert received == list(range(1000))


# --- how far it runs ahead ------------------------------------------------------------------------


@pytest.mark.parametrize("function", [targets.count_telling, targets.count_telling_async])
@pytest.mark.parametrize("size", [1, 2, 10])
async def test_the_generator_is_suspended(
    function: Callable[[str], Any], size: int, announcements: Announcements
) -> None:
    async with open_stream(function, announcements.path, max_buffer_size=size) as items:
        for number in range(size):
            assert await announcements.get() == str(number)
        for number in range(30):
            # Nothing more until an item is received; and then one more.
            with pytest.raises(TimeoutError):
                with anyio.fail_after(0.01):
                    await announcements.get()
            assert await items.receive() == number
            assert await announcements.get() == str(size + number)


async def test_large_items_are_bounded_by_their_bytes() -> None:
    async with open_stream(targets.blocks, [MEBIBYTE] * 100) as items:
        await until_waiting_for_room(items)
        received = [len(item) async for item in items]
    assert received == [MEBIBYTE] * 100


async def test_a_slow_loop() -> None:
    number = 0
    async with open_stream(targets.count_for_ever, max_buffer_size=5) as items:
        async for item in items:
            assert item == number
            number += 1
            await anyio.sleep(0.001)
            if number == 50:
                break


@pytest.mark.parametrize("function", [targets.count_for_ever, targets.count_for_ever_async])
async def test_other_tasks_run(function: Callable[[], Any]) -> None:
    """Though there is always an item."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group, open_stream(function) as items:
        group.start_soon(tick)
        async for item in items:
            if item == 20_000:
                break
        group.cancel_scope.cancel()
    assert ticks > 20


# --- cancellation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 100])
async def test_a_cancelled_receive_loses_nothing(size: int) -> None:
    received: list[int] = []
    number = 3000
    async with open_stream(targets.count, number, max_buffer_size=size) as items:
        delay = 0.0
        while len(received) < number:
            with anyio.move_on_after(delay):
                # Not one more than there are: that would be the end, if it comes in time.
                for _ in range(min(100, number - len(received))):
                    received.append(await items.receive())  # noqa: PERF401
            delay = (delay + 0.000_013) % 0.001
    assert received == list(range(number))


async def test_a_cancelled_scope_receives_nothing() -> None:
    async with open_stream(targets.count, 10) as items:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await items.receive()
        assert scope.cancelled_caught
        assert [item async for item in items] == list(range(10))


async def test_cancellation_of_a_busy_loop() -> None:
    received: list[int] = []
    async with open_stream(targets.count_for_ever) as items:
        with anyio.CancelScope() as scope:
            async for item in items:
                received.append(item)
                if item == 5000:
                    scope.cancel()
        assert scope.cancelled_caught
        assert received == list(range(len(received)))
        assert await items.receive() == len(received)


async def test_a_cancelled_large_item_comes_later() -> None:
    received = 0
    async with open_stream(targets.blocks, [20 * MEBIBYTE] * 3) as items:
        delay = 0.0
        while received < 3:
            with anyio.move_on_after(delay):
                assert await items.receive() == bytes([received]) * (20 * MEBIBYTE)
                received += 1
            delay += 0.0005
        with pytest.raises(anyio.EndOfStream):
            await items.receive()


@pytest.mark.parametrize("number", [0, 10, 10_000])
@pytest.mark.parametrize("function", [targets.clean_up, targets.clean_up_async])
@pytest.mark.parametrize("way", ["break", "error", "cancel", "aclose"])
async def test_leaving_early_runs_finally(
    function: Callable[[str, int], Any], number: int, way: str, announcements: Announcements
) -> None:
    """The generator waits by itself, or for room."""
    with contextlib.suppress(ZeroDivisionError):
        with anyio.CancelScope() as scope:
            async with open_stream(function, announcements.path, number, stop=PATIENT) as items:
                pid = await announcements.get_pid()
                if number == 10_000:
                    assert await items.receive() == 0
                if way == "error":
                    _ = 1 / 0
                elif way == "cancel":
                    scope.cancel()
                    await anyio.sleep_forever()
                elif way == "aclose":
                    await items.aclose()
                    await items.aclose()
                    assert support.wait_until_gone(pid, 0)
                    with pytest.raises(anyio.ClosedResourceError):
                        await items.receive()
    assert await announcements.get() == "cleaned up"
    assert support.wait_until_gone(pid, 0)
    assert items.process.exitcode == -15


async def test_leaving_early_while_the_generator_computes(
    announcements: Announcements, start_method: str
) -> None:
    async with open_stream(
        targets.clean_up_busy, announcements.path, stop=PATIENT, start_method=start_method
    ):
        await announcements.get()
    assert await announcements.get() == "cleaned up"


async def test_cancelling_the_start(start_method: str) -> None:
    for delay in (0.0, 0.0005, 0.002, 0.02):
        with anyio.move_on_after(delay):
            items = open_stream(targets.one_then_wait, start_method=start_method)
            async with items:
                await items.receive()
                await items.receive()
        assert not items.process.is_alive()


# --- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [targets.count_then_raise, targets.count_then_raise_async])
@pytest.mark.parametrize("number", [0, 1, 2500])
async def test_errors_come_in_place(function: Callable[..., Any], number: int) -> None:
    received: list[int] = []
    async with open_stream(function, number, targets.TargetError("why"), stop=PATIENT) as items:
        with pytest.raises(targets.TargetError, match="why") as raised:
            async for item in items:
                received.append(item)  # noqa: PERF401
        assert "in count_then_raise" in str(raised.value.__cause__)
        with pytest.raises(anyio.EndOfStream):
            await items.receive()
        assert items.process.exitcode == 1
    assert received == list(range(number))


async def test_errors_that_cannot_be_rebuilt() -> None:
    async with open_stream(targets.raise_cannot_be_rebuilt) as items:
        assert await items.receive() == 1
        with pytest.raises(RemoteError, match="ThreeArguments: 1 2 3"):
            await items.receive()


@pytest.mark.parametrize("error", [anyio.EndOfStream("not the end"), StopAsyncIteration("nor")])
async def test_errors_that_look_like_the_end(error: Exception) -> None:
    async with open_stream(targets.count_then_raise, 3, error) as items:
        with pytest.raises(RemoteError, match="no"):
            async for _ in items:
                pass


async def test_errors_of_the_function_itself() -> None:
    async with open_stream(targets.raise_at_once, ValueError("at once")) as items:
        with pytest.raises(ValueError, match="at once"):
            await items.receive()
    async with open_stream(targets.no_iterable) as items:
        with pytest.raises(TypeError, match="no_iterable must yield items"):
            await items.receive()


async def test_exit() -> None:
    async with open_stream(targets.count_then_exit, 3, 7, stop=PATIENT) as items:
        assert [await items.receive() for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ProcessDied) as raised:
            await items.receive()
        assert raised.value.exitcode == 7


async def test_timeout() -> None:
    async with open_stream(targets.one_then_wait, timeout=2 * TIMEOUT) as items:
        assert await items.receive() == 1
        support.time_out(items.process)  # not before it has come so far
        with anyio.fail_after(TIMEOUT), pytest.raises(ProcessTimeout):
            await items.receive()
    with anyio.fail_after(TIMEOUT), pytest.raises(ProcessTimeout):
        async with open_stream(targets.one_then_wait, timeout=0.2) as items:
            async for _ in items:
                pass


async def test_an_error_that_nobody_hears_of_is_the_process_s() -> None:
    async with open_stream(targets.fail_to_clean_up, stop=PATIENT) as items:
        await items.receive()
    assert isinstance(items.process.exception, targets.TargetError)


# --- items that do not travel ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "function", [targets.unpicklable_in_between, targets.unpicklable_in_between_async]
)
async def test_the_generator_is_told_what_cannot_be_pickled(function: Callable[..., Any]) -> None:
    async with open_stream(function, True) as items:
        first, told, last = [item async for item in items]
    assert (first, last) == (1, 2)
    assert "Unpicklable cannot be pickled" in told
    assert "this is not for you" in told

    async with open_stream(function, False) as items:
        assert await items.receive() == 1
        with pytest.raises(SerializationError, match="this is not for you") as raised:
            await items.receive()
        assert "unpicklable_in_between" in str(raised.value.__cause__)
        with pytest.raises(anyio.EndOfStream):
            await items.receive()


async def test_many_that_cannot_be_pickled() -> None:
    async with open_stream(targets.unpicklable_many, 20, max_buffer_size=3) as items:
        assert [item async for item in items] == list(range(1, 20, 2))


async def test_what_belongs_to_its_process() -> None:
    async with open_stream(targets.connections) as items:
        told = [item async for item in items]
    assert len(told) == 5
    assert all("cannot be pickled" in text for text in told)


async def test_an_iterable_cannot_be_told() -> None:
    async with open_stream(targets.unpicklable_in_a_list) as items:
        assert await items.receive() == 1
        with pytest.raises(SerializationError):
            await items.receive()


@pytest.mark.parametrize("padding", [0, 3000, 300_000, 3_000_000])
async def test_what_cannot_be_unpickled(padding: int) -> None:
    async with open_stream(targets.ununpicklable_in_between, padding) as items:
        assert await items.receive() == 1
        with pytest.raises(SerializationError, match="not here"):
            await items.receive()
        assert await items.receive() == 2
        with pytest.raises(anyio.EndOfStream):
            await items.receive()


async def test_unpickling_that_exits() -> None:
    async with open_stream(targets.exits_when_made) as items:
        assert await items.receive() == 1
        with pytest.raises(SerializationError, match="SystemExit"):
            await items.receive()
        assert await items.receive() == 2


async def test_slow_unpickling_holds_up_nobody(tmp_path: Any) -> None:
    gate = tmp_path / "gate"
    import os

    os.mkfifo(gate)
    async with open_stream(targets.slow_to_make, str(gate)) as items:
        assert await items.receive() == 1
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(items.receive)
                # Nobody else has it unpickled, and would open the gate for reading.
                await support.until(lambda: items._receiver._unpickling)  # type: ignore[attr-defined]
                scope.cancel()
        assert scope.cancelled_caught
        with pytest.raises(anyio.WouldBlock):
            items.receive_nowait()
        await anyio.to_thread.run_sync(gate.write_text, "go")
        with anyio.fail_after(TIMEOUT):
            assert await items.receive() == "go"
            assert await items.receive() == 2


@pytest.mark.parametrize("arguments", [(lambda: None,), (targets.each, [lambda: None])])
async def test_what_cannot_be_sent_to_the_child(arguments: Any, start_method: str) -> None:
    with pytest.raises(SerializationError, match="lambda"):
        async with open_stream(*arguments, start_method=start_method):
            raise AssertionError("it was opened")


# --- misuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1])
async def test_too_small_a_buffer(size: int) -> None:
    with pytest.raises(ValueError, match="max_buffer_size must be 1 or more"):
        open_stream(targets.count, 1, max_buffer_size=size)


@pytest.mark.parametrize("size", [1.5, "1", None, True])
async def test_no_number_of_items(size: Any) -> None:
    with pytest.raises(TypeError, match="max_buffer_size must be"):
        open_stream(targets.count, 1, max_buffer_size=size)


async def test_options_are_checked() -> None:
    wrong: Any = 5
    with pytest.raises(TypeError, match="func must be callable"):
        open_stream(wrong)
    with pytest.raises(TypeError, match="stop"):
        open_stream(targets.count, 1, stop=wrong)
    with pytest.raises(ValueError, match="start method"):
        open_stream(targets.count, 1, start_method="wrong")
    with pytest.raises(ValueError, match="timeout"):
        open_stream(targets.count, 1, timeout=-1)


async def test_use_without_a_block() -> None:
    items = open_stream(targets.count, 1)
    for use in (items.receive, items.__anext__):
        with pytest.raises(ProcessStateError, match="was not opened"):
            await use()
    with pytest.raises(ProcessStateError, match="was not opened"):
        items.receive_nowait()
    await items.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await items.receive()
    with pytest.raises(anyio.ClosedResourceError):
        async with items:
            raise AssertionError("it was opened")


async def test_opening_twice() -> None:
    async with open_stream(targets.count, 1) as items:
        with pytest.raises(ProcessStateError, match="was opened before"):
            async with items:
                raise AssertionError("it was opened")
        assert await items.receive() == 0
    with pytest.raises(anyio.ClosedResourceError):
        async with items:
            raise AssertionError("it was opened")


async def test_two_tasks() -> None:
    async with open_stream(targets.one_then_wait) as items:
        assert await items.receive() == 1
        async with anyio.create_task_group() as group:
            group.start_soon(items.receive)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await items.receive()
            with pytest.raises(anyio.BusyResourceError):
                items.receive_nowait()
            group.cancel_scope.cancel()


async def test_closing_while_another_task_receives() -> None:
    async with (
        anyio.create_task_group() as group,
        open_stream(targets.one_then_wait, stop=PATIENT) as items,
    ):
        assert await items.receive() == 1

        async def receive() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await items.receive()

        group.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        await items.aclose()


async def test_another_event_loop(anyio_backend_name: str) -> None:
    async with open_stream(targets.count, 2) as items:

        async def receive() -> None:
            with pytest.raises(ProcessStateError, match="another event loop"):
                await items.receive()

        await anyio.to_thread.run_sync(
            functools.partial(anyio.run, receive, backend=anyio_backend_name)
        )
        assert await items.receive() == 0


async def test_public_names() -> None:
    assert ProcessStream.__module__ == open_stream.__module__ == "creche"
    assert pickle.loads(pickle.dumps(open_stream)) is open_stream
    assert issubclass(ProcessClosedError, ProcessStateError)
    assert issubclass(ProcessStartError, creche.ProcessError)


async def test_output_of_the_generator(start_method: str) -> None:
    async with creche.open_stream(
        targets.print_and_yield, 3, start_method=start_method, stdout="stream", stop=PATIENT
    ) as items:
        assert [item async for item in items] == [0, 1, 2]
        assert items.process.stdout is not None
        assert [line async for line in items.process.stdout] == ["line 0", "line 1", "line 2"]
