"""Channels: what their ends do, in one process and between two."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import channel_targets
import numpy as np
import pytest
from anyio.abc import ObjectReceiveStream, ObjectSendStream, ObjectStream
from channel_transports import only_hub, only_packets, transport
from support import TIMEOUT

import creche
from creche import create_channel, create_duplex_channel, run_in_process
from creche._channel import _hub_transport, _waiting
from creche._channel._hub_transport import _HubTransport
from creche._hub._waits import ThreadWait

__all__ = ["transport"]

pytestmark = pytest.mark.anyio

Ends = tuple[channel_targets.Send, channel_targets.Receive]


@pytest.fixture
def ends() -> Iterator[Ends]:
    send, receive = create_channel[Any](4)
    yield send, receive
    send.close()
    receive.close()


async def all_blocked() -> None:
    """Give tasks that were just started the time to wait."""
    for _ in range(10):
        await anyio.lowlevel.checkpoint()


# --- one process ----------------------------------------------------------------------------------


async def test_items_come_in_order(ends: Ends) -> None:
    send, receive = ends
    for item in (1, "two", (3, None), {"four": 4.0}, [5], b"six", {7}):
        await send.send(item)
        assert await receive.receive() == item


async def test_ends_are_object_streams(ends: Ends) -> None:
    send, receive = ends
    assert isinstance(send, ObjectSendStream)
    assert isinstance(receive, ObjectReceiveStream)
    here, there = create_duplex_channel[int]()
    with here, there:
        assert isinstance(here, ObjectStream)


async def test_buffer_holds_so_many_items(ends: Ends) -> None:
    send, receive = ends
    for item in range(4):
        send.send_nowait(item)
    with pytest.raises(anyio.WouldBlock):
        send.send_nowait(4)
    assert send.statistics() == receive.statistics()
    assert send.statistics() == creche.ChannelStatistics(4, 4, 1, 1)
    assert receive.receive_nowait() == 0
    send.send_nowait(4)
    with pytest.raises(anyio.WouldBlock):
        send.send_nowait(5)
    assert [receive.receive_nowait() for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(anyio.WouldBlock):
        receive.receive_nowait()


@pytest.mark.parametrize("size", [1, 2, 64, 100, 250])
@pytest.mark.parametrize("bytes_each", [1, 900, 5000, 60_000, 100_000])
async def test_buffer_size_does_not_depend_on_what_is_in_it(size: int, bytes_each: int) -> None:
    if size > 64 and bytes_each > 1:
        pytest.skip("the system may allow of no more than that")
    send, receive = create_channel[bytes](size)
    with send, receive:
        for number in range(size):
            send.send_nowait(bytes([number % 256]) * bytes_each)
        with pytest.raises(anyio.WouldBlock):
            send.send_nowait(b"")
        for number in range(size):
            assert receive.receive_nowait() == bytes([number % 256]) * bytes_each


@pytest.mark.parametrize("size", [0, -1, 2.0, float("inf"), True, "1", None])
def test_a_channel_needs_a_finite_buffer(size: Any) -> None:
    with pytest.raises(ValueError, match="max_buffer_size must be"):
        create_channel[int](size)
    with pytest.raises(ValueError, match="max_buffer_size must be"):
        create_duplex_channel[int](size)


async def test_receive_waits_for_an_item(ends: Ends) -> None:
    send, receive = ends
    async with anyio.create_task_group() as tasks:

        @tasks.start_soon
        async def _wait() -> None:
            with anyio.fail_after(TIMEOUT):
                assert await receive.receive() == 1

        await all_blocked()
        send.send_nowait(1)


async def test_send_waits_for_room(ends: Ends) -> None:
    send, receive = ends
    for item in range(4):
        send.send_nowait(item)
    async with anyio.create_task_group() as tasks:

        @tasks.start_soon
        async def _wait() -> None:
            with anyio.fail_after(TIMEOUT):
                await send.send(4)
                await send.send(5)

        await all_blocked()
        assert send.statistics().current_buffer_used == 4
        with anyio.fail_after(TIMEOUT):
            assert [await receive.receive() for _ in range(6)] == list(range(6))


async def test_many_tasks_share_an_end(ends: Ends) -> None:
    send, receive = ends
    received: list[int] = []

    async def producer(start: int) -> None:
        for item in range(start, start + 100):
            await send.send(item)

    async def consumer() -> None:
        received.extend([await receive.receive() for _ in range(100)])

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(producer, 100 * number)
                tasks.start_soon(consumer)
    assert sorted(received) == list(range(500))


async def test_end_of_stream_comes_after_what_is_left(ends: Ends) -> None:
    send, receive = ends
    send.send_nowait(1)
    other = send.clone()
    send.close()
    other.send_nowait(2)
    await other.aclose()
    assert [item async for item in receive] == [1, 2]
    with pytest.raises(anyio.EndOfStream):
        await receive.receive()
    with pytest.raises(anyio.EndOfStream):
        receive.receive_nowait()


async def test_waiting_receive_sees_the_end(ends: Ends) -> None:
    send, receive = ends
    async with anyio.create_task_group() as tasks:

        @tasks.start_soon
        async def _wait() -> None:
            with anyio.fail_after(TIMEOUT), pytest.raises(anyio.EndOfStream):
                await receive.receive()

        await all_blocked()
        send.close()


async def test_sending_to_nobody(ends: Ends) -> None:
    send, receive = ends
    send.send_nowait(1)  # what nobody has received is lost
    receive.close()
    for _ in range(2):
        with pytest.raises(anyio.BrokenResourceError, match="are closed"):
            send.send_nowait(2)
        with pytest.raises(anyio.BrokenResourceError):
            await send.send(2)


async def test_waiting_send_hears_that_nobody_is_left(ends: Ends) -> None:
    send, receive = ends
    for item in range(4):
        send.send_nowait(item)
    async with anyio.create_task_group() as tasks:

        @tasks.start_soon
        async def _wait() -> None:
            with anyio.fail_after(TIMEOUT), pytest.raises(anyio.BrokenResourceError):
                await send.send(4)

        await all_blocked()
        receive.close()


@pytest.mark.parametrize("full", [False, True])
async def test_closing_an_end_wakes_its_own_tasks(ends: Ends, full: bool) -> None:
    send, receive = ends
    for item in range(4 if full else 0):
        send.send_nowait(item)
    end = send if full else receive
    woken = 0

    async def wait() -> None:
        nonlocal woken
        with anyio.fail_after(TIMEOUT), pytest.raises(anyio.ClosedResourceError):
            await (send.send(4) if full else receive.receive())
        woken += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(wait)
        await all_blocked()
        await end.aclose()
    assert woken == 3


async def test_closed_ends(ends: Ends) -> None:
    send, receive = ends
    for end in ends:
        end.close()
        end.close()
        with pytest.raises(anyio.ClosedResourceError, match="was closed"):
            end.clone()
        with pytest.raises(anyio.ClosedResourceError):
            end.statistics()
    with pytest.raises(anyio.ClosedResourceError):
        await send.send(1)
    with pytest.raises(anyio.ClosedResourceError):
        await send.send(bytes(1_000_000))
    with pytest.raises(anyio.ClosedResourceError):
        send.send_nowait(1)
    with pytest.raises(anyio.ClosedResourceError):
        await receive.receive()
    with pytest.raises(anyio.ClosedResourceError):
        receive.receive_nowait()
    with pytest.raises(anyio.ClosedResourceError):
        await anext(receive)


async def test_cancelled_receive_loses_nothing(ends: Ends) -> None:
    send, receive = ends
    received: list[int] = []

    async def consumer(seconds: float) -> None:
        while len(received) < 300:
            with anyio.move_on_after(seconds):
                received.append(await receive.receive())

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer, 0.0005)
            tasks.start_soon(consumer, 0.0002)
            for item in range(302):
                await send.send(item)
                if item % 3 == 0:
                    await anyio.sleep(0.0003)
    assert sorted(received)[:300] == list(range(300))


async def test_cancelled_scope_takes_and_sends_nothing(ends: Ends) -> None:
    send, receive = ends
    send.send_nowait(1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await receive.receive()
    assert scope.cancelled_caught
    with anyio.CancelScope() as scope:
        scope.cancel()
        await send.send(2)
    assert scope.cancelled_caught
    assert receive.statistics().current_buffer_used == 1


async def test_cancelled_send_sends_nothing(ends: Ends) -> None:
    send, receive = ends
    for item in range(4):
        send.send_nowait(item)
    with anyio.move_on_after(0.01):
        await send.send("late")
    assert [receive.receive_nowait() for _ in range(4)] == list(range(4))
    with pytest.raises(anyio.WouldBlock):
        receive.receive_nowait()


async def test_other_tasks_run_while_there_is_always_something(ends: Ends) -> None:
    """Neither end waits, as both are used by one task; others get their turns."""
    send, receive = ends
    over = False

    async def busy() -> None:
        while not over:
            await send.send(1)
            await receive.receive()

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(busy)
            for _ in range(20):
                await anyio.sleep(0.001)
            over = True


async def test_what_cannot_be_pickled(ends: Ends) -> None:
    send, receive = ends
    for bad in (threading.Lock(), channel_targets.ExplodesOnPickling(), lambda: None):
        with pytest.raises(creche.SerializationError, match="cannot be sent over a channel"):
            await send.send(bad)
        with pytest.raises(creche.SerializationError):
            send.send_nowait(bad)
    send.send_nowait("good")
    assert await receive.receive() == "good"


async def test_what_cannot_be_unpickled(ends: Ends) -> None:
    send, receive = ends
    bad = channel_targets.RefusesToComeBack()
    for item in (bad, "good", [bad, bytes(200_000)], "better"):
        send.send_nowait(item)
    for _ in range(2):
        with pytest.raises(creche.SerializationError, match="not here"):
            await receive.receive()
        assert (await receive.receive()) in ("good", "better")


@pytest.mark.parametrize("size", [10, 1000, 65_000, 66_000, 1 << 20, 20 << 20])
async def test_items_of_all_sizes(ends: Ends, size: int) -> None:
    send, receive = ends
    data = os.urandom(min(size, 10_000)) * -(-size // 10_000)
    array = np.frombuffer(data, dtype=np.uint8)
    many = list(range(size // 1000))
    with anyio.fail_after(TIMEOUT):
        for item in (data, bytearray(data), many):
            await send.send(item)
            assert await receive.receive() == item
        await send.send({"array": array, "data": data})
        received = await receive.receive()
    assert np.array_equal(received["array"], array)
    assert received["data"] == data


async def test_large_items_by_the_nowait_methods(ends: Ends) -> None:
    send, receive = ends
    for size in (100_000, 3_000_000):
        send.send_nowait(bytes(size))
        assert len(receive.receive_nowait()) == size


async def test_many_buffers_in_one_item(ends: Ends) -> None:
    send, receive = ends
    arrays = [np.full(3, number) for number in range(5000)]
    await send.send(arrays)
    received = await receive.receive()
    assert all(map(np.array_equal, received, arrays))


async def test_large_item_survives_a_cancelled_receive(ends: Ends) -> None:
    send, receive = ends
    item = list(range(500_000))
    with anyio.fail_after(TIMEOUT):
        for seconds in (0, 0.0001, 0.001, 0.005, 0.02):
            await send.send(item)
            received = None
            with anyio.move_on_after(seconds):
                received = await receive.receive()
            if received is None:
                received = await receive.receive()
            assert received == item


async def test_an_unclosed_end_warns() -> None:
    send, receive = create_channel[int]()
    with pytest.warns(ResourceWarning, match="Unclosed <ChannelSendStream"):
        del send
    with pytest.raises(anyio.EndOfStream):
        await receive.receive()
    with pytest.warns(ResourceWarning, match="Unclosed <ChannelReceiveStream"):
        del receive


async def test_sync_methods_refuse_to_hold_up_an_event_loop(ends: Ends) -> None:
    send, receive = ends
    with pytest.raises(creche.ProcessStateError, match="use `await send"):
        send.send_sync(1)
    with pytest.raises(creche.ProcessStateError, match="use `await receive"):
        receive.receive_sync()
    with pytest.raises(creche.ProcessStateError):
        next(iter(receive))
    assert send.statistics().current_buffer_used == 0


def test_sync_timeouts(ends: Ends) -> None:
    send, receive = ends
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError):
            receive.receive_sync(timeout)
    for item in range(4):
        send.send_sync(item, timeout=0)
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError):
            send.send_sync(4, timeout)
    assert [receive.receive_sync(0) for _ in range(4)] == list(range(4))
    with pytest.raises(ValueError, match="timeout"):
        receive.receive_sync(-1)


@only_packets
@pytest.mark.parametrize("method", ["send_sync", "receive_sync"])
def test_sync_timeouts_of_many_days(
    ends: Ends, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More milliseconds than an int holds."""
    send, receive = ends
    wait = _waiting.Watch.wait

    def make_ready_and_wait(watch: _waiting.Watch, timeout: float | None) -> None:
        if method == "send_sync":
            receive.receive_nowait()
        else:
            send.send_nowait("item")
        wait(watch, timeout)

    monkeypatch.setattr(_waiting.Watch, "wait", make_ready_and_wait)
    if method == "send_sync":
        for item in range(4):
            send.send_nowait(item)
        send.send_sync(4, timeout=3_000_000)
        assert [receive.receive_nowait() for _ in range(4)] == [1, 2, 3, 4]
    else:
        assert receive.receive_sync(timeout=3_000_000) == "item"


def test_sync_face_in_threads(ends: Ends) -> None:
    send, receive = ends
    received: list[int] = []
    consumers = [
        threading.Thread(target=lambda: received.extend(channel_targets.consume(receive.clone())))
        for _ in range(2)
    ]
    producers = [
        threading.Thread(target=channel_targets.produce, args=(send.clone(), 500, 500 * number))
        for number in range(3)
    ]
    for thread in consumers + producers:
        thread.start()
    send.close()
    for thread in consumers + producers:
        thread.join(TIMEOUT)
    assert sorted(received) == list(range(1500))


def count_waiting(end: Any) -> int:
    transport = end._transport
    if isinstance(transport, _HubTransport):
        return len(transport._waits)
    return int(transport._end._watches)


@pytest.mark.parametrize("full", [False, True])
def test_closing_an_end_wakes_its_threads(ends: Ends, full: bool) -> None:
    send, receive = ends
    for item in range(4 if full else 0):
        send.send_sync(item)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            if full:
                send.send_sync(4)
            else:
                receive.receive_sync()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + TIMEOUT
    end: Any = send if full else receive
    while count_waiting(end) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    end.close()
    for thread in threads:
        thread.join(TIMEOUT)
    assert [type(error) for error in errors] == [anyio.ClosedResourceError] * 3
    assert count_waiting(end) == 0


@pytest.mark.parametrize("granted", [False, True])
async def test_item_is_sent_once_if_a_call_cannot_have_its_end(ends: Ends, granted: bool) -> None:
    """The call claims the end, and finds that another one of its arguments is closed."""
    send, receive = ends
    for item in range(4):
        send.send_nowait(item)
    received: list[int] = []
    async with anyio.create_task_group() as tasks:

        @tasks.start_soon
        async def _wait() -> None:
            with anyio.fail_after(TIMEOUT):
                await send.send(4)

        await all_blocked()
        received = [receive.receive_nowait() for _ in range(5 if granted and is_hub(send) else 0)]
        send.claim()
        send.unclaim()
        await all_blocked()
        with anyio.fail_after(TIMEOUT):
            while len(received) < 5:
                received.append(await receive.receive())
    assert received == list(range(5))
    assert send.statistics().current_buffer_used == 0


@pytest.mark.parametrize("method", ["close", "claim"])
async def test_closed_end_receives_nothing_any_more(ends: Ends, method: str) -> None:
    send, receive = ends
    closed = receive.clone()
    async with anyio.create_task_group() as tasks:

        @tasks.start_soon
        async def _wait() -> None:
            with anyio.fail_after(TIMEOUT), pytest.raises(anyio.ClosedResourceError):
                await closed.receive()

        await all_blocked()
        getattr(closed, method)()
        send.send_nowait(1)  # before the task has had its turn
    with anyio.fail_after(TIMEOUT):
        assert await receive.receive() == 1
    closed.unclaim()
    closed.close()


def is_hub(end: Any) -> bool:
    return isinstance(end._transport, _HubTransport)


class ThreadWaitWithEvents(ThreadWait):
    """Something happens while the thread waits."""

    events: Iterator[Callable[[], object]] = iter([])

    def wait(self, timeout: float | None) -> bool:
        for event in self.events:
            event()
            break
        return super().wait(timeout)


def happens_meanwhile(monkeypatch: pytest.MonkeyPatch, *events: Callable[[], object]) -> None:
    monkeypatch.setattr(ThreadWaitWithEvents, "events", iter(events))
    monkeypatch.setattr(_hub_transport, "ThreadWait", ThreadWaitWithEvents)


@only_hub
@pytest.mark.parametrize("granted", [False, True])
def test_thread_sends_once_if_a_call_cannot_have_its_end(
    ends: Ends, granted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, receive = ends
    for item in range(4):
        send.send_sync(item)
    received: list[int] = []

    def take() -> None:
        received.extend(receive.receive_nowait() for _ in range(5))

    def refuse() -> None:
        send.claim()
        send.unclaim()

    def take_and_refuse() -> None:
        take()
        refuse()

    happens_meanwhile(monkeypatch, *([take_and_refuse] if granted else [refuse, take]))
    send.send_sync(4, timeout=TIMEOUT)
    assert received == list(range(5))
    assert send.statistics().current_buffer_used == 0


@only_hub
@pytest.mark.parametrize("method", ["close", "claim"])
def test_end_is_closed_while_a_thread_does_what_takes_no_time(
    ends: Ends, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked for before is answered."""
    send, receive = ends
    with send.clone() as sends, send.clone() as asks, receive.clone() as receives:
        happens_meanwhile(monkeypatch, getattr(sends, method))
        sends.send_nowait(1)
        happens_meanwhile(monkeypatch, getattr(asks, method))
        assert asks.statistics().current_buffer_used == 1
        happens_meanwhile(monkeypatch, getattr(receives, method))
        assert receives.receive_nowait() == 1
        for end in (sends, asks, receives):
            with pytest.raises(anyio.ClosedResourceError):
                end.statistics()
            end.unclaim()


async def test_statistics_count_ends(ends: Ends) -> None:
    send, receive = ends
    clones = [send.clone() for _ in range(3)]
    receivers = [receive.clone() for _ in range(2)]
    assert send.statistics().open_send_streams == 4
    assert clones[2].statistics().open_receive_streams == 3
    for end in (*clones, *receivers):
        end.close()
    assert receive.statistics().open_send_streams == 1
    assert receive.statistics().open_receive_streams == 1


async def test_buffer_size_is_kept_whoever_sends(ends: Ends) -> None:
    """Ends come and go, and what they have counted stays."""
    send, receive = ends
    for _ in range(50):
        others = [send.clone() for _ in range(3)]
        for item, end in enumerate((send, *others)):
            end.send_nowait(item)
        with pytest.raises(anyio.WouldBlock):
            others[1].send_nowait(4)
        taker = receive.clone()
        assert [taker.receive_nowait() for _ in range(4)] == [0, 1, 2, 3]
        for end in (*others, taker):
            end.close()


@only_packets
async def test_too_many_ends(ends: Ends) -> None:
    send, _ = ends
    clones = []
    with pytest.raises(OSError, match="more than 512 ends that send"):
        while True:
            clones.append(send.clone())
    assert len(clones) == 511
    for clone in clones:
        clone.close()
    send.clone().close()


async def test_one_end_in_two_event_loops(ends: Ends, anyio_backend_name: str) -> None:
    send, receive = ends
    received: list[int] = []

    async def take() -> None:
        received.extend([item async for item in receive])

    def in_thread() -> None:
        anyio.run(take, backend=anyio_backend_name)

    thread = threading.Thread(target=in_thread)
    thread.start()
    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take)
            for item in range(200):
                await send.send(item)
                await anyio.sleep(0)
            send.close()
    await anyio.to_thread.run_sync(thread.join)
    assert sorted(received) == list(range(200))


@only_packets
async def test_end_is_closed_while_an_event_loop_begins_to_wait_for_it(ends: Ends) -> None:
    """By another thread, at the moment at which it looks whether other loops still do."""
    _, receive = ends
    other_loop = object()

    class OtherWait:
        loop = other_loop

        @property
        def unused(self) -> bool:
            receive.close()
            return True

        def end_from_anywhere(self) -> None:
            pass

    transport: Any = receive._transport
    transport._loop_waits[other_loop] = OtherWait()
    with anyio.fail_after(TIMEOUT), pytest.raises(anyio.ClosedResourceError):
        await receive.receive()


# --- between processes ----------------------------------------------------------------------------


@pytest.mark.parametrize("target", channel_targets.PRODUCERS)
async def test_from_a_child(ends: Ends, target: Any, start_method: str) -> None:
    send, receive = ends
    with anyio.fail_after(TIMEOUT):
        async with creche.open_nursery(start_method=start_method) as nursery:
            nursery.start_soon(target, send, 1000)
            assert [item async for item in receive] == list(range(1000))


@pytest.mark.parametrize("target", channel_targets.CONSUMERS)
async def test_to_a_child(ends: Ends, target: Any, start_method: str) -> None:
    send, receive = ends
    with anyio.fail_after(TIMEOUT):
        async with creche.open_nursery(start_method=start_method) as nursery:
            consumer = nursery.start_soon(target, receive)
            await channel_targets.produce_async(send, 1000)
    assert consumer.return_value == list(range(1000))


async def test_many_producers_and_consumers(ends: Ends) -> None:
    send, receive = ends
    with anyio.fail_after(TIMEOUT):
        async with creche.open_nursery() as nursery:
            consumers = [
                nursery.start_soon(target, receive.clone())
                for target in (channel_targets.consume, channel_targets.consume_async)
            ]
            for number, target in enumerate(2 * channel_targets.PRODUCERS):
                nursery.start_soon(target, send.clone(), 1000, 1000 * number)
            send.close()
            receive.close()
    items = [item for consumer in consumers for item in consumer.return_value]
    assert sorted(items) == list(range(4000))


async def test_two_children_talk(ends: Ends) -> None:
    """A pipeline of three: read, pass on, write."""
    send, receive = ends
    next_send, next_receive = create_channel[int](4)
    with anyio.fail_after(TIMEOUT):
        async with creche.open_nursery() as nursery:
            nursery.start_soon(channel_targets.produce, send, 1000)
            nursery.start_soon(channel_targets.forward, receive, next_send)
            last = nursery.start_soon(channel_targets.consume, next_receive)
    assert last.return_value == list(range(1000))


@pytest.mark.parametrize("target", [channel_targets.double_all, channel_targets.double_all_async])
async def test_request_and_reply(target: Any) -> None:
    here, there = create_duplex_channel[int]()
    with anyio.fail_after(TIMEOUT):
        async with creche.open_nursery() as nursery:
            nursery.start_soon(target, there)
            async with here:
                for number in range(100):
                    await here.send(number)
                    assert await here.receive() == 2 * number
                await here.send_eof()
                with pytest.raises(anyio.EndOfStream):
                    await here.receive()


@pytest.mark.parametrize("size", [1 << 20, 30 << 20])
async def test_large_items_between_processes(ends: Ends, size: int) -> None:
    send, receive = ends
    with anyio.fail_after(TIMEOUT):
        async with creche.open_nursery() as nursery:
            nursery.start_soon(channel_targets.send_zeros, send, size, 5)
            middle_send, middle_receive = create_channel[bytes](2)
            consumer = nursery.start_soon(channel_targets.measure_items, middle_receive)
            async with middle_send:
                async for item in receive:
                    await middle_send.send(item)
    assert consumer.return_value == [size] * 5


async def test_bad_items_of_a_child(ends: Ends) -> None:
    send, receive = ends
    with anyio.fail_after(TIMEOUT):
        async with creche.open_nursery() as nursery:
            nursery.start_soon(channel_targets.send_bad_ones, send)
            with pytest.raises(creche.SerializationError, match="not here"):
                await receive.receive()
            assert await receive.receive() == "next"
            assert "ExplodesOnPickling" in await receive.receive()


async def test_run_in_process_gives_what_the_function_returns(ends: Ends) -> None:
    send, receive = ends
    send.send_nowait(5)
    assert await run_in_process(channel_targets.receive_one, receive) == 5
