"""Channels: processes that are killed, stopped or stuck, and cycles without end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import channel_targets
import pytest
import support
from backends import in_asyncio
from channel_transports import only_packets, transport
from support import START_METHODS, TIMEOUT, Announcements, wait_until_gone
from test_channel import count_waiting

import creche
from creche import StopPolicy, create_channel, create_duplex_channel, open_nursery, open_pool

__all__ = ["transport"]

pytestmark = pytest.mark.anyio

Ends = tuple[channel_targets.Send, channel_targets.Receive]

AT_ONCE = StopPolicy(grace=0)
PATIENT = StopPolicy(grace=TIMEOUT)
TURNS = 6


@pytest.fixture
def ends() -> Iterator[Ends]:
    send, receive = create_channel[Any](4)
    yield send, receive
    send.close()
    receive.close()


@only_packets
@pytest.mark.parametrize("senders", [1, 2])
async def test_each_item_that_is_received_makes_room(
    monkeypatch: pytest.MonkeyPatch, senders: int
) -> None:
    """Where the bytes are what bounds the buffer, too, of which the kernel tells late by itself."""
    from creche._platform import _packet_channel

    monkeypatch.setattr(_packet_channel, "_BUFFER_BYTES", 50_000)
    first, receive = create_channel[int](1000)
    ends = [first, *[first.clone() for _ in range(senders - 1)]]
    sent = 0
    with pytest.raises(anyio.WouldBlock):
        while True:
            ends[sent % senders].send_nowait(sent)
            sent += 1
    assert 10 < sent < 1000
    with anyio.fail_after(TIMEOUT):
        for number in range(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ends[number % senders].send, sent + number)
                assert await receive.receive() == number
    for end in [*ends, receive]:
        end.close()


@only_packets
def test_sender_that_looks_late_whether_the_buffer_was_full() -> None:
    """By then it may be empty, which is no reason to give up."""
    from creche._platform import _packet_channel

    send, receive = _packet_channel.packet_channel(1)
    assert not _packet_channel._not_sent(BlockingIOError(errno.EAGAIN, ""), send._page)
    with pytest.raises(OSError, match="too many"):
        _packet_channel._not_sent(OSError(errno.ENOBUFS, "too many"), send._page)
    send.close()
    receive.close()


def open_ends(end: Any) -> tuple[int, int]:
    """How many there are that send, and that receive."""
    statistics = end.statistics()
    return statistics.open_send_streams, statistics.open_receive_streams


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def stop(pid: int) -> None:
    """Stop a process by a signal, and wait until it does."""
    os.kill(pid, signal.SIGSTOP)
    with anyio.fail_after(TIMEOUT):
        while not is_stopped(pid):
            await anyio.sleep(0.001)


async def start(target: Any, *args: Any, start_method: str | None = None) -> Any:
    """Start a process that does not take others with it when it dies."""
    process: creche.AsyncProcess[Any] = creche.AsyncProcess(
        target=target, args=args, start_method=start_method
    )
    await process.start()
    return process


@pytest.mark.parametrize("method", START_METHODS)
async def test_killed_producer_is_the_end(
    ends: Ends, announcements: Announcements, method: str
) -> None:
    send, receive = ends
    process = await start(channel_targets.keep, send, announcements.path, start_method=method)
    pid = await announcements.get_pid()
    async with anyio.create_task_group() as tasks:

        @tasks.start_soon
        async def _wait() -> None:
            with anyio.fail_after(TIMEOUT), pytest.raises(anyio.EndOfStream):
                await receive.receive()

        await anyio.wait_all_tasks_blocked()
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(creche.ProcessDied):
        await process


async def test_killed_consumer_breaks_the_channel(ends: Ends, announcements: Announcements) -> None:
    send, receive = ends
    process = await start(channel_targets.keep, receive, announcements.path)
    pid = await announcements.get_pid()
    for item in range(4):
        send.send_nowait(item)
    async with anyio.create_task_group() as tasks:

        @tasks.start_soon
        async def _wait() -> None:
            with anyio.fail_after(TIMEOUT), pytest.raises(anyio.BrokenResourceError):
                await send.send(4)

        await anyio.wait_all_tasks_blocked()
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(creche.ProcessDied):
        await process


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 64])
async def test_producers_and_consumers_killed_at_any_moment(size: int, transport: str) -> None:
    """Whoever is killed neither blocks nor corrupts the others, and loses one item at most."""
    moments = random.Random(size)
    send, receive = create_channel[Any](size)
    come: set[tuple[int, int]] = set()
    last: dict[int, int] = {}
    counted = late = 0

    async def victims(target: Any, end: Any, *args: Any) -> None:
        for turn in range(TURNS):
            with anyio.move_on_after(0.05 * moments.random()):
                await pool.run(target, end.clone(), *(10 * arg + turn for arg in args))

    async def consume() -> None:
        nonlocal counted, late
        while (item := await receive.receive()) != "over":
            if isinstance(item, tuple):
                assert item not in come
                come.add(item)
                tag, number = item
                late += number < last.get(tag, -1)
                last[tag] = max(number, last.get(tag, -1))
            else:
                counted += 1

    async def torment() -> None:
        async with anyio.create_task_group() as tasks:
            for tag in range(2):
                tasks.start_soon(victims, channel_targets.send_for_ever, send, tag)
                tasks.start_soon(victims, channel_targets.receive_for_ever, receive)
            tasks.start_soon(channel_targets.produce_async, send.clone(), 300)
        # What the dead had in their hands comes back when a hub hears that they are.
        await support.until(lambda: open_ends(send) == (1, 1))
        await send.send("over")

    with anyio.fail_after(TIMEOUT):
        async with (
            open_pool(4, min_workers=4, stop=AT_ONCE) as pool,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(consume)
            tasks.start_soon(torment)
        # The items of one producer keep their order, but for one that comes back from a consumer
        # which was killed before it had it.
        assert late <= (0 if transport == "packets" else 2 * TURNS)
        # Nobody is blocked by those who are dead; one item more may fit for each of them.
        assert counted <= 300
        assert send.statistics() == creche.ChannelStatistics(size, 0, 1, 1)
        for item in range(size):
            send.send_nowait(item)
        fits = size
        with pytest.raises(anyio.WouldBlock):
            while True:
                send.send_nowait(fits)
                fits += 1
        assert fits <= size + 4 * TURNS
        send.close()
        assert [item async for item in receive] == list(range(fits))
    receive.close()


async def test_kills_in_mid_item_leave_whole_items(ends: Ends) -> None:
    """Each item that comes out is whole, however large."""
    send, receive = ends
    for _ in range(5):
        process = await start(channel_targets.send_zeros, send.clone(), 3_000_000, 1_000_000)
        with anyio.fail_after(TIMEOUT):
            for _ in range(3):
                assert len(await receive.receive()) == 3_000_000
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(creche.ProcessDied):
            await process
    send.close()
    async for item in receive:
        assert len(item) == 3_000_000


async def test_stopped_consumer_and_full_buffer(ends: Ends, announcements: Announcements) -> None:
    send, receive = ends
    async with open_nursery(stop=StopPolicy(grace=1)) as nursery:
        nursery.start_soon(channel_targets.keep, receive, announcements.path)
        pid = await announcements.get_pid()
        await stop(pid)
        for item in range(4):
            await send.send(item)
        with pytest.raises(anyio.WouldBlock):
            send.send_nowait(4)
        with anyio.move_on_after(0.01) as scope:
            await send.send(4)
        assert scope.cancelled_caught
        nursery.cancel_scope.cancel()
    with pytest.raises(anyio.BrokenResourceError):
        await send.send(5)


async def test_stopped_consumer_does_not_hold_up_others(
    ends: Ends, announcements: Announcements
) -> None:
    send, receive = ends
    async with open_nursery(stop=StopPolicy(grace=1)) as nursery:
        nursery.start_soon(
            channel_targets.receive_then_wait, receive.clone(), 1, announcements.path
        )
        await send.send(-1)
        assert await announcements.get() == "-1"
        await stop(await announcements.get_pid())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(channel_targets.produce_async, send, 500)
            with anyio.fail_after(TIMEOUT):
                assert [item async for item in receive] == list(range(500))
        nursery.cancel_scope.cancel()


async def test_stopped_producer_does_not_hold_up_others(
    ends: Ends, announcements: Announcements
) -> None:
    send, receive = ends
    async with open_nursery(stop=StopPolicy(grace=1)) as nursery:
        for turn in range(10):
            process = nursery.start_soon(channel_targets.send_for_ever, send.clone(), turn)
            with anyio.fail_after(TIMEOUT):
                while (await receive.receive())[0] != turn:
                    pass
                while process.pid is None:  # it sends before its start has returned, perhaps
                    await anyio.sleep(0.001)
            await stop(process.pid)
        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(channel_targets.produce_async, send.clone(), 100)
                items = []
                while len(items) < 100:
                    if not isinstance(item := await receive.receive(), tuple):
                        items.append(item)
        assert items == list(range(100))
        nursery.cancel_scope.cancel()


@pytest.mark.either_backend
@pytest.mark.parametrize("method", ["send_sync", "receive_sync"])
async def test_a_blocking_wait_is_broken_off_when_its_process_is_stopped(
    ends: Ends, announcements: Announcements, start_method: str, method: str
) -> None:
    send, receive = ends
    end = send.clone() if method == "send_sync" else receive.clone()
    async with open_nursery(start_method=start_method, stop=PATIENT) as nursery:
        process = nursery.start_soon(
            channel_targets.wait_for_ever_in, method, end, announcements.path
        )
        await announcements.get()
        with anyio.fail_after(TIMEOUT):
            while method == "send_sync" and send.statistics().current_buffer_used < 4:
                await anyio.sleep(0.001)
            await anyio.sleep(0.02)
            assert await process.terminate() == -signal.SIGTERM
        if method == "receive_sync":
            assert await announcements.get() == "unwound"


async def test_two_full_channels_can_be_cancelled() -> None:
    """Both send and nobody receives: nothing but a cancellation gets them out of it."""
    here, there = create_duplex_channel[int](1)
    ends = here.send_stream, here.receive_stream

    async def send_for_ever() -> None:
        while True:
            await here.send(0)

    with anyio.CancelScope() as scope:
        async with open_nursery() as nursery, anyio.create_task_group() as tasks:
            nursery.start_soon(channel_targets.wait_for_ever_in, "send_sync", there, os.devnull)
            tasks.start_soon(send_for_ever)
            await support.until(lambda: all(end.statistics().current_buffer_used for end in ends))
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    here.close()


async def test_end_that_nobody_receives(ends: Ends) -> None:
    """The process cannot be started; neither end waits for ever."""
    send, receive = ends
    with pytest.raises(creche.SerializationError):
        await creche.run_in_process(
            channel_targets.produce, send, channel_targets.ExplodesOnPickling()
        )
    with anyio.fail_after(TIMEOUT), pytest.raises(anyio.EndOfStream):
        await receive.receive()


async def test_child_that_is_killed_before_it_takes_its_end(ends: Ends) -> None:
    send, receive = ends
    async with open_nursery(stop=AT_ONCE) as nursery:
        for _ in range(10):
            nursery.start_soon(channel_targets.produce, send.clone(), 1)
        nursery.cancel_scope.cancel()
    send.close()
    with anyio.fail_after(TIMEOUT):
        items = [item async for item in receive]
    assert set(items) <= {0}


class HeldUp:
    """A large item whose unpickling, in a thread then, waits until it is let go."""

    def __init__(self) -> None:
        for event in (_begun, _let_go):
            event.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle_when_let_go, (bytes(2_000_000),)


_begun = threading.Event()
_let_go = threading.Event()


def _unpickle_when_let_go(padding: bytes) -> int:
    _begun.set()
    assert _let_go.wait(TIMEOUT)
    return len(padding)


@contextlib.asynccontextmanager
async def cancelled_natively_while_unpickling(ends: Ends) -> AsyncIterator[None]:
    """A task receives a large item meanwhile, and is cancelled by asyncio's own means then."""
    send, receive = ends
    await send.send(HeldUp())
    task = asyncio.create_task(receive.receive())
    await support.until(_begun.is_set)
    try:
        yield
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        _let_go.set()


@in_asyncio
async def test_native_cancellation_gives_a_large_item_to_a_task_that_waits(
    ends: Ends, anyio_backend: str
) -> None:
    _, receive = ends
    received: list[object] = []

    async def wait() -> None:
        received.append(await receive.receive())

    with anyio.fail_after(TIMEOUT):
        async with (
            anyio.create_task_group() as tasks,
            cancelled_natively_while_unpickling(ends),
        ):
            tasks.start_soon(wait)
            await support.until(lambda: count_waiting(receive) == 1)
    assert received == [2_000_000]


@in_asyncio
async def test_native_cancellation_gives_a_large_item_to_a_thread_that_waits(
    ends: Ends, anyio_backend: str
) -> None:
    _, receive = ends
    received: list[object] = []
    thread = threading.Thread(target=lambda: received.append(receive.receive_sync(TIMEOUT)))
    async with cancelled_natively_while_unpickling(ends):
        thread.start()
        await support.until(lambda: count_waiting(receive) == 1)
    await anyio.to_thread.run_sync(thread.join, TIMEOUT)
    assert received == [2_000_000]


@in_asyncio
async def test_item_that_another_thread_has_claimed(ends: Ends, anyio_backend: str) -> None:
    """Both have looked while it was there."""
    send, receive = ends
    async with cancelled_natively_while_unpickling(ends):
        pass
    take = receive._take
    assert await receive.receive() == 2_000_000
    assert take() is None
    await send.send("next")
    assert await receive.receive() == "next"


async def test_parent_that_dies_ends_the_channel(ends: Ends, announcements: Announcements) -> None:
    """What a grandchild holds goes with it."""
    send, receive = ends
    process = await start(
        channel_targets.in_grandchild_async,
        "creche",
        channel_targets.keep,
        send,
        announcements.path,
    )
    grandchild = await announcements.get_pid()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    with anyio.fail_after(TIMEOUT), pytest.raises(anyio.EndOfStream):
        await receive.receive()
    assert wait_until_gone(grandchild)
    with pytest.raises(creche.ProcessDied):
        await process


async def test_cancelled_at_every_point(ends: Ends) -> None:
    """A consumer in a child is cancelled and started again; what it had not received comes."""
    send, receive = ends
    async with open_pool(1) as pool:
        for seconds in (0, 0.001, 0.01, 0.05):
            with anyio.move_on_after(seconds):
                await pool.run(channel_targets.consume, receive.clone())
        with anyio.fail_after(TIMEOUT):
            await send.send("still here")
            assert await receive.receive() == "still here"
    await support.until(lambda: open_ends(send) == (1, 1))


# --- leaks ----------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_many_cycles_of_a_channel() -> None:
    before = None
    for cycle in range(10_000):
        send, receive = create_channel[int](2)
        send.send_nowait(cycle)
        if cycle % 100 == 0:
            with anyio.move_on_after(0):
                await receive.receive()
            assert await receive.receive() == cycle
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive.receive)
                await anyio.sleep(0)
                await send.send(cycle)
        send.close()
        receive.close()
        if cycle == 200:
            before = descriptors(), threading.active_count()
    await anyio.sleep(0)
    assert before is not None
    assert descriptors() <= before[0]
    assert threading.active_count() <= before[1]


async def test_many_ends_of_one_channel(ends: Ends) -> None:
    """Ends come and go, and the channel counts right and does not fill up with their traces."""
    send, receive = ends
    before = descriptors()
    for cycle in range(10_000):
        with send.clone() as one, receive.clone() as other:
            one.send_nowait(cycle)
            assert other.receive_nowait() == cycle
    assert descriptors() <= before
    assert open_ends(send) == (1, 1)
    for item in range(4):
        send.send_nowait(item)
    with pytest.raises(anyio.WouldBlock):
        send.send_nowait(4)


@pytest.mark.slow
async def test_many_ends_through_a_pool(ends: Ends) -> None:
    send, receive = ends
    async with open_pool(1) as pool:
        before = None
        for cycle in range(2_000):
            await pool.run(channel_targets.produce, send.clone(), 1)
            assert await receive.receive() == 0
            if cycle == 50:
                before = descriptors()
            if cycle % 500 == 0:
                pid = pool.statistics().workers[0].pid
                children = len(os.listdir(f"/proc/{pid}/fd"))
        assert before is not None
        most = before
        await support.until(lambda: descriptors() <= most)
        assert len(os.listdir(f"/proc/{pid}/fd")) <= children + 2


async def test_many_starts_with_ends(ends: Ends) -> None:
    send, receive = ends
    before = None
    for cycle in range(60):
        async with open_nursery() as nursery:
            nursery.start_soon(channel_targets.produce, send.clone(), 1)
            assert await receive.receive() == 0
        if cycle == 10:
            before = descriptors()
    assert before is not None
    most = before
    # The hub hears of the end of a connection when it hears of it.
    await support.until(lambda: descriptors() <= most)


@only_packets
async def test_no_descriptors_left(ends: Ends) -> None:
    send, _ = ends
    makes: list[Callable[[], Any]] = [lambda: create_channel[int](1), lambda: [send.clone()]]
    for make in makes:
        failures = 0
        made = None
        while made is None:
            try:
                with support.descriptors_left(failures):
                    made = make()
            except OSError:
                failures += 1
        for end in made:
            end.close()
        assert failures
    send.send_nowait(1)
