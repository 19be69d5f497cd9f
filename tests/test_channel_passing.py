"""Channels: how their ends come to other processes, and that none stays behind."""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import channel_targets
import pytest
from channel_transports import only_packets, transport
from support import START_METHODS, TIMEOUT, Announcements, open_descriptors, until
from test_channel import count_waiting

import creche
from creche import (
    AsyncProcess,
    StopPolicy,
    create_channel,
    create_duplex_channel,
    open_nursery,
    open_pool,
    run_in_process,
    to_process,
)
from creche._wire import _handing_over

__all__ = ["transport"]

pytestmark = pytest.mark.anyio

Ends = tuple[channel_targets.Send, channel_targets.Receive]


@pytest.fixture
def ends() -> Iterator[Ends]:
    send, receive = create_channel[Any](4)
    yield send, receive
    send.close()
    receive.close()


@pytest.fixture
def patient_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a fork wait for whoever holds it up, even if that is stopped for a while."""
    monkeypatch.setattr(_handing_over, "_PATIENCE", TIMEOUT)


async def rest_of(receive: channel_targets.Receive) -> list[Any]:
    with anyio.fail_after(TIMEOUT):
        return [item async for item in receive]


# --- every way of running something ---------------------------------------------------------------


async def test_run_in_process(ends: Ends, start_method: str) -> None:
    send, receive = ends
    async with anyio.create_task_group() as tasks:
        run = functools.partial(run_in_process, start_method=start_method)
        tasks.start_soon(run, channel_targets.produce, send, 100)
        assert await rest_of(receive) == list(range(100))


async def test_async_process(ends: Ends, start_method: str) -> None:
    send, receive = ends
    process = AsyncProcess(
        target=channel_targets.produce,
        args=(send,),
        kwargs={"count": 100},
        start_method=start_method,
    )
    async with process:
        assert await rest_of(receive) == list(range(100))
        assert await process == 100


async def test_nursery_claims_at_once(ends: Ends) -> None:
    """What becomes of the end here, after the call, makes no difference to the child."""
    send, receive = ends
    async with open_nursery() as nursery:
        nursery.start_soon(channel_targets.produce, send, 100)
        with pytest.raises(anyio.ClosedResourceError, match="handed over"):
            send.send_nowait(1)
        with pytest.raises(anyio.ClosedResourceError, match="clone"):
            nursery.start_soon(channel_targets.produce, send, 100)
        send.close()
        assert await rest_of(receive) == list(range(100))


async def test_hidden_in_an_argument(ends: Ends, start_method: str) -> None:
    send, receive = ends
    async with open_nursery(start_method=start_method) as nursery:
        hidden = channel_targets.HiddenEnd(send)
        nursery.start_soon(channel_targets.produce_hidden, hidden, 100)
        assert await rest_of(receive) == list(range(100))
        with pytest.raises(anyio.ClosedResourceError, match="handed over"):
            send.clone()


async def test_end_that_a_child_has_closed(ends: Ends, start_method: str) -> None:
    """It counts no more, although the child stays."""
    send, receive = ends
    async with open_nursery(start_method=start_method) as nursery:
        nursery.start_soon(channel_targets.send_and_wait, send, 1)
        assert await rest_of(receive) == [1]
        await until(lambda: not receive.statistics().open_send_streams)
        nursery.cancel_scope.cancel()


async def test_in_a_partial(ends: Ends) -> None:
    send, receive = ends
    async with open_nursery() as nursery:
        nursery.start_soon(functools.partial(channel_targets.produce, send), 100)
        assert await rest_of(receive) == list(range(100))


async def test_both_ends_to_one_child(ends: Ends) -> None:
    send, receive = ends
    second_send, second_receive = create_channel[int](4)
    async with open_nursery() as nursery, anyio.create_task_group() as tasks:
        nursery.start_soon(channel_targets.forward, receive, second_send)
        tasks.start_soon(channel_targets.produce_async, send, 100)
        assert await rest_of(second_receive) == list(range(100))
        second_receive.close()


@pytest.mark.parametrize("method", START_METHODS)
async def test_pool_run(ends: Ends, method: str) -> None:
    send, receive = ends
    async with open_pool(2, start_method=method) as pool:
        for start in range(0, 500, 100):
            one = send.clone()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.run, channel_targets.produce, one, 100, start)
                with anyio.fail_after(TIMEOUT):
                    items = [await receive.receive() for _ in range(100)]
            assert items == list(range(start, start + 100))
            with pytest.raises(anyio.ClosedResourceError, match="handed over"):
                one.send_nowait(1)
    await until(lambda: receive.statistics().open_send_streams == 1)


async def test_pool_closes_its_copy_when_the_worker_has_its_own(ends: Ends) -> None:
    """The function goes on, but has closed its end."""
    send, receive = ends
    stop = StopPolicy(grace=5)
    async with open_pool(1, stop=stop) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run, _close_and_wait, send)
        assert await rest_of(receive) == ["sent"]
        tasks.cancel_scope.cancel()


def _close_and_wait(send: channel_targets.Send) -> None:
    import time

    send.send_sync("sent")
    send.close()
    while True:
        time.sleep(60)


async def test_pool_run_with_large_arguments(ends: Ends) -> None:
    """Descriptors travel before a payload of whatever kind."""
    send, receive = ends
    async with open_pool(1) as pool:
        for size in (10, 100_000, 1 << 20, 5 << 20):
            one = send.clone()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.run, channel_targets.send_items, one, [bytes(size)] * 2)
                with anyio.fail_after(TIMEOUT):
                    for _ in range(2):
                        assert await receive.receive() == bytes(size)
        many = [b"%099d" % number for number in range(5_000)]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run, channel_targets.send_items, send, many)
            assert await rest_of(receive) == many
        assert pool.statistics().restarts == 0


async def test_many_calls_at_once(ends: Ends) -> None:
    """More than there are workers: they wait with their ends."""
    send, receive = ends
    async with open_pool(2) as pool, anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(pool.run, channel_targets.produce, send.clone(), 10, 10 * number)
        await anyio.sleep(0)
        send.close()
        assert sorted(await rest_of(receive)) == list(range(300))


async def test_calls_that_never_run_leave_no_end(ends: Ends, announcements: Announcements) -> None:
    send, receive = ends
    async with open_pool(1) as pool:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run, channel_targets.keep_nothing, announcements.path)
            await announcements.get()
            for _ in range(3):
                tasks.start_soon(pool.run, channel_targets.produce, send.clone(), 10)
            await anyio.wait_all_tasks_blocked()
            assert receive.statistics().open_send_streams == 4
            send.close()
            tasks.cancel_scope.cancel()
        assert await rest_of(receive) == []


async def test_call_whose_worker_dies(ends: Ends) -> None:
    send, receive = ends
    async with open_pool(1) as pool:
        with pytest.raises(creche.ProcessDied):
            await pool.run(channel_targets.send_and_die, send, 3)
        assert await rest_of(receive) == [0, 1, 2]


async def test_closed_pool_takes_no_end(ends: Ends) -> None:
    send, receive = ends
    async with open_pool(1) as pool:
        pass
    with pytest.raises(creche.ProcessClosedError):
        await pool.run(channel_targets.produce, send, 1)
    send.send_nowait("still here")
    assert receive.receive_nowait() == "still here"


async def test_to_process(ends: Ends) -> None:
    send, receive = ends
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(to_process.run_sync, channel_targets.produce, send, 100)
        assert await rest_of(receive) == list(range(100))


async def test_items_of_a_map(ends: Ends) -> None:
    send, receive = ends
    for number in range(4):
        send.send_nowait(number)
    async with open_pool(2) as pool:
        ends_to_map = [receive.clone() for _ in range(4)]
        with anyio.fail_after(TIMEOUT):
            values = await pool.map(channel_targets.receive_one, ends_to_map)
    assert sorted(values) == [0, 1, 2, 3]
    await until(lambda: send.statistics().open_receive_streams == 1)


async def test_function_of_a_map_can_carry_none(ends: Ends) -> None:
    send, receive = ends
    async with open_pool(1) as pool:
        with pytest.raises(creche.SerializationError, match="with the function of a map"):
            await pool.map(functools.partial(channel_targets.produce, send), [1, 2, 3])
    send.send_nowait("still here")
    assert receive.receive_nowait() == "still here"


@pytest.mark.parametrize("method", ["creche", "fork"])
async def test_initargs(ends: Ends, method: str) -> None:
    """Each worker gets a clone, those that take the place of others included."""
    send, receive = ends
    async with open_pool(
        2,
        initializer=channel_targets.initialize,
        initargs=(send,),
        max_tasks_per_worker=1,
        start_method=method,
    ) as pool:
        with pytest.raises(anyio.ClosedResourceError, match="handed over"):
            send.send_nowait(1)
        received = []
        for number in range(6):
            await pool.run(channel_targets.send_from_worker, number)
            with anyio.fail_after(TIMEOUT):
                received.append(await receive.receive())
    assert received == list(range(6))
    assert await rest_of(receive) == []


async def test_duplex_in_initargs() -> None:
    here, there = create_duplex_channel[int]()
    async with open_pool(1, initializer=channel_targets.initialize, initargs=(there,)) as pool:
        await pool.run(channel_targets.send_from_worker, 5)
        with anyio.fail_after(TIMEOUT):
            assert await here.receive() == 5
    with anyio.fail_after(TIMEOUT), pytest.raises(anyio.EndOfStream):
        await here.receive()
    here.close()


async def test_a_serializer_of_the_applications_own(ends: Ends) -> None:
    send, receive = ends
    async with open_pool(1, serializer=pickle) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run, channel_targets.produce, send, 10)
        assert await rest_of(receive) == list(range(10))


async def test_grandchildren(ends: Ends, anyio_backend_name: str, start_method: str) -> None:
    send, receive = ends
    async with open_nursery(start_method=start_method) as nursery:
        nursery.start_soon(
            channel_targets.in_grandchild,
            start_method,
            channel_targets.produce,
            send.clone(),
            anyio_backend_name,
            10,
        )
        nursery.start_soon(
            channel_targets.in_grandchild_async,
            start_method,
            channel_targets.produce_async,
            send,
            10,
            10,
        )
        assert sorted(await rest_of(receive)) == list(range(20))


@pytest.mark.parametrize("method", ["creche", "forkserver", "spawn"])
def test_multiprocessing(ends: Ends, method: str) -> None:
    send, receive = ends
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=channel_targets.produce, args=(send, 100))
    process.start()
    with pytest.raises(anyio.ClosedResourceError, match="handed over"):
        send.send_sync(1)
    assert list(receive) == list(range(100))
    process.join()
    process.close()


def test_multiprocessing_start_that_fails(ends: Ends) -> None:
    send, receive = ends
    context: Any = multiprocessing.get_context("spawn")
    process = context.Process(
        target=channel_targets.produce, args=(send, channel_targets.ExplodesOnPickling())
    )
    with pytest.raises(LookupError):
        process.start()
    with pytest.raises(anyio.EndOfStream):
        receive.receive_sync(TIMEOUT)


# --- what is refused ------------------------------------------------------------------------------


async def test_pickling_elsewhere(ends: Ends) -> None:
    for end in ends:
        with pytest.raises(creche.ProcessStateError, match="as an argument of a call"):
            pickle.dumps(end)
    send, receive = ends
    with pytest.raises(creche.SerializationError, match="as an argument of a call"):
        send.send_nowait(send)
    send.send_nowait("still here")
    assert receive.receive_nowait() == "still here"


async def test_returning_an_end() -> None:
    with pytest.raises(creche.SerializationError, match="as an argument of a call"):
        await run_in_process(channel_targets.give_end_back)
    async with open_pool(1) as pool:
        with pytest.raises(creche.SerializationError, match="as an argument of a call"):
            await pool.run(channel_targets.give_end_back)


async def test_handed_over_twice(ends: Ends) -> None:
    send, _ = ends
    async with open_pool(1) as pool:
        with anyio.fail_after(TIMEOUT):
            await pool.run(channel_targets.produce, send, 2)
            with pytest.raises(creche.SerializationError, match="clone"):
                await pool.run(channel_targets.produce, send, 2)
    with pytest.raises(anyio.ClosedResourceError, match="clone"):
        await run_in_process(channel_targets.produce, send, 2)
    with pytest.raises(anyio.ClosedResourceError):
        await run_in_process(channel_targets.receive_one, send)


async def test_handed_over_twice_at_the_same_time(ends: Ends) -> None:
    """The second call is pickled while a thread is at the first one, which has the end."""
    send, receive = ends
    slow = _PickledSlowly()
    heavy = list(range(100_000))
    async with open_pool(1) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run, channel_targets.send_items, send, [heavy, slow])
        await until(slow.begun.is_set)
        try:
            with pytest.raises(creche.SerializationError, match="was handed over"):
                await pool.run(str, [send])
        finally:
            slow.let_go.set()
        assert await rest_of(receive) == [heavy, 0]


class _PickledSlowly:
    def __init__(self) -> None:
        self.begun = threading.Event()
        self.let_go = threading.Event()

    def __reduce__(self) -> tuple[Any, ...]:
        self.begun.set()
        assert self.let_go.wait(TIMEOUT)
        return int, ()


async def test_failed_claim_claims_nothing(ends: Ends) -> None:
    send, receive = ends
    receive.close()
    with pytest.raises(anyio.ClosedResourceError, match="was closed"):
        await run_in_process(channel_targets.forward, send, receive)
    send.clone().close()


async def test_call_that_cannot_be_pickled_closes_what_it_claimed(ends: Ends) -> None:
    """The end is the call's from the moment that it is made, whatever becomes of it."""
    send, receive = ends
    with pytest.raises(creche.SerializationError):
        await run_in_process(channel_targets.produce, send, lambda: None)  # type: ignore[arg-type]
    assert await rest_of(receive) == []


async def test_pool_call_that_cannot_be_pickled_keeps_the_end_here(ends: Ends) -> None:
    send, receive = ends
    async with open_pool(1) as pool:
        with pytest.raises(creche.SerializationError):
            await pool.run(channel_targets.produce, send, lambda: None)  # type: ignore[arg-type]
    send.send_nowait("still here")
    assert receive.receive_nowait() == "still here"


async def test_function_that_cannot_be_unpickled(ends: Ends) -> None:
    """The child has got the end, and nobody to give it to."""
    send, receive = ends
    bad = channel_targets.RefusesToComeBack()
    with pytest.raises(creche.SerializationError):
        await run_in_process(channel_targets.send_items, send.clone(), [bad])
    async with open_pool(1) as pool:
        for _ in range(3):
            with pytest.raises(creche.SerializationError):
                await pool.run(channel_targets.send_items, send.clone(), [bad])
        with anyio.fail_after(TIMEOUT):
            await pool.run(channel_targets.send_items, send.clone(), ["good"])
        assert await receive.receive() == "good"
        assert pool.statistics().restarts == 0
        send.close()
        assert await rest_of(receive) == []


async def test_process_that_is_never_started(ends: Ends) -> None:
    send, receive = ends
    limiter = anyio.CapacityLimiter(1)
    async with limiter:
        with anyio.move_on_after(0.01):
            async with open_nursery(limiter=limiter) as nursery:
                nursery.start_soon(channel_targets.produce, send, 1)
    assert await rest_of(receive) == []


async def test_tasks_that_wait_for_an_end_that_is_handed_over(ends: Ends) -> None:
    send, receive = ends
    async with open_nursery() as nursery, anyio.create_task_group() as tasks:

        @tasks.start_soon
        async def _wait() -> None:
            error = pytest.raises(anyio.ClosedResourceError, match="handed over")
            with anyio.fail_after(TIMEOUT), error:
                await receive.receive()

        await anyio.wait_all_tasks_blocked()
        consumer = nursery.start_soon(channel_targets.consume, receive)
        await channel_targets.produce_async(send, 10)
    assert consumer.return_value == list(range(10))


# --- forks ----------------------------------------------------------------------------------------


async def test_forked_children_keep_no_other_ends(ends: Ends, announcements: Announcements) -> None:
    """Under "fork" a child inherits all; what it was not given, it closes."""
    send, receive = ends
    second_send, second_receive = create_channel[int](4)
    async with open_nursery(start_method="fork") as nursery:
        nursery.start_soon(channel_targets.keep_nothing, announcements.path)
        await announcements.get()
        nursery.start_soon(channel_targets.produce, send, 10)
        nursery.start_soon(channel_targets.keep, second_send, announcements.path)
        await announcements.get()
        assert await rest_of(receive) == list(range(10))
        nursery.cancel_scope.cancel()
    assert await rest_of(second_receive) == []
    second_receive.close()


@only_packets
@pytest.mark.usefixtures("patient_forks")
def test_fork_while_another_thread_is_at_it() -> None:
    """A fork keeps nothing of what is made, cloned, lent or closed just then."""
    over = threading.Event()

    def make_and_close() -> None:
        while not over.is_set():
            send, receive = create_channel[int](4)
            send.claim()
            for end in (send.lend(), receive.clone(), receive):
                end.close()

    before = _left_in_a_fork()
    thread = threading.Thread(target=make_and_close)
    thread.start()
    try:
        assert {_left_in_a_fork() for _ in range(100)} == {before}
    finally:
        over.set()
        thread.join(TIMEOUT)


def _left_in_a_fork() -> int:
    """How many sockets and files without a name a fork of this process has open."""
    pid = os.fork()
    if not pid:
        left = 255
        try:
            targets = [os.readlink(f"/proc/self/fd/{number}") for number in open_descriptors()]
            left = sum(target.startswith(("socket:", "/memfd:")) for target in targets)
        finally:
            os._exit(left)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@only_packets
async def test_fork_keeps_no_large_item(ends: Ends) -> None:
    """The memory of one that is on its way would be in use as long as the fork lives."""
    send, receive = ends
    item = bytes(1 << 20)
    sizes = functools.partial(run_in_process, channel_targets.sizes_of_memory, start_method="fork")
    before = await sizes()
    async with anyio.create_task_group() as tasks:
        for _ in range(4 + 1):  # one more than fits
            tasks.start_soon(send.send, item)
        await until(lambda: count_waiting(send))
        assert await sizes() == before
        for _ in range(4 + 1):
            assert await receive.receive() == item


@pytest.mark.usefixtures("patient_forks")
async def test_children_that_are_forked_while_ends_are_made(ends: Ends) -> None:
    """Each is forked by a thread, while the event loop makes the next one's end."""
    send, receive = ends
    async with open_nursery(start_method="fork") as nursery:
        for number in range(20):
            nursery.start_soon(channel_targets.send_and_wait, send.clone(), number)
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
        send.close()
        assert sorted(await rest_of(receive)) == list(range(20))
        nursery.cancel_scope.cancel()


async def test_fork_of_the_functions_own(ends: Ends, announcements: Announcements) -> None:
    send, receive = ends
    async with open_nursery() as nursery:
        nursery.start_soon(channel_targets.fork_then_close, send, announcements.path)
        said = [await announcements.get(), await announcements.get()]
        assert any("fork of" in line for line in said)
        items = await rest_of(receive)  # ends, although the fork lives
        os.kill(items[0], 0)
        nursery.cancel_scope.cancel()
