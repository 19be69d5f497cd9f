"""creche.sync: what people who know anyio's classes expect, across processes."""

from __future__ import annotations

import functools
import itertools
import math
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import sync_targets as targets
from support import TIMEOUT, Announcements, RefusesUnpickling, make_lambda

import creche
from creche import AsyncProcess, SerializationError, open_nursery, open_pool, run_in_process, sync
from creche._hub import _sources
from creche._hub._hub import Hub
from creche._platform import hub_listen

pytestmark = pytest.mark.anyio

STYLES = ["sync", "async"]


@pytest.fixture(params=["private", "tcp"])
def transport(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whether other processes come through an abstract socket, or through a port."""
    if request.param == "private":
        yield
        return
    places = _sources._places
    usual = places.open_hub()
    places.hub = Hub(places.find, functools.partial(hub_listen, tcp=True))
    assert not places.hub.ref.address.is_private
    yield
    places.hub.close()
    places.hub = usual


async def until(obj: Any, **expected: Any) -> None:
    """Wait until the statistics, of which nobody is told, are such."""
    with anyio.fail_after(TIMEOUT):
        while True:
            found = await obj.statistics()
            if all(getattr(found, name) == value for name, value in expected.items()):
                return
            await anyio.sleep(0.001)


async def until_all_is_heard() -> None:
    """Wait until the hub has heard all that processes have said which have ended, and their end.

    It may hear of that when they are reaped.
    """
    hub_here = _sources.open_hub()
    with anyio.fail_after(TIMEOUT):
        while hub_here.clients:
            await anyio.sleep(0.001)


def pick(style: str, name: str) -> Any:
    """A target that comes in two styles."""
    return getattr(targets, name if style == "sync" else f"{name}_async")


# --- each of them ---------------------------------------------------------------------------------


@pytest.mark.either_backend
@pytest.mark.parametrize("style", STYLES)
async def test_event_is_set_in_a_child(style: str, start_method: str, transport: None) -> None:
    event = sync.Event()
    async with open_nursery(start_method=start_method) as nursery:
        for _ in range(2):
            if style == "sync":
                nursery.start_soon(targets.call_method, event, "wait_sync", TIMEOUT)
            else:
                nursery.start_soon(targets.await_method, event, "wait")
        await until(event, tasks_waiting=2)
        assert not event.is_set()
        nursery.start_soon(targets.call_method, event, "set")
        with anyio.fail_after(TIMEOUT):
            await event.wait()
    assert event.is_set()
    assert await event.statistics() == sync.EventStatistics(is_set=True, tasks_waiting=0)


@pytest.mark.parametrize("style", STYLES)
async def test_event_is_polled(style: str, announcements: Announcements) -> None:
    event = sync.Event()
    async with open_nursery() as nursery:
        process = nursery.start_soon(pick(style, "poll_until_set"), event, announcements.path)
        await announcements.get()
        event.set()
    assert process.return_value is False
    # A plain function gets to know at once.
    assert await run_in_process(targets.call_method, event, "is_set")


@pytest.mark.either_backend
@pytest.mark.parametrize("style", STYLES)
async def test_lock_excludes_others(
    style: str, start_method: str, tmp_path: Path, transport: None
) -> None:
    lock = sync.Lock()
    path = tmp_path / "number"
    path.write_text("0")
    async with open_nursery(start_method=start_method) as nursery:
        for _ in range(4):
            nursery.start_soon(pick(style, "count_up"), lock, str(path), 100)
        await targets.count_up_async(lock, str(path), 100)
        await anyio.to_thread.run_sync(targets.count_up, lock, str(path), 100)
    assert path.read_text() == "600"
    await until_all_is_heard()
    assert await lock.statistics() == sync.LockStatistics(
        locked=False, holder=None, tasks_waiting=0, abandoned_by=None
    )


async def test_lock_among_threads_and_loops_of_a_child(anyio_backend: str, tmp_path: Path) -> None:
    lock = sync.Lock()
    path = tmp_path / "number"
    path.write_text("0")
    async with open_nursery() as nursery:
        nursery.start_soon(targets.use_in_threads, lock, str(path), 3, 50)
        nursery.start_soon(targets.use_in_loops, lock, str(path), anyio_backend, 3, 50)
        await anyio.to_thread.run_sync(targets.use_in_loops, lock, str(path), anyio_backend, 2, 50)
    assert path.read_text() == "400"


@pytest.mark.parametrize("make", [sync.Lock, functools.partial(sync.CapacityLimiter, 1)])
async def test_only_the_holder_releases(make: Any) -> None:
    obj = make()
    for run in (run_in_process, _call_here):
        assert "holds the" in await run(targets.acquire_twice, obj)
        found = await run(targets.release_in_another_task, obj)
        assert len(found) == 2
        assert all("does not hold the" in text for text in found)
        assert await run(targets.errors_of, obj, "release") == ["RuntimeError"]
        assert await run(targets.errors_of, obj, "acquire_nowait_sync", "release", "release") == [
            "",
            "",
            "RuntimeError",
        ]


async def _call_here(func: Any, *args: Any) -> Any:
    value = func(*args)
    return await value if hasattr(value, "__await__") else value


@pytest.mark.parametrize(
    "make", [sync.Lock, functools.partial(sync.CapacityLimiter, 1), lambda: sync.Semaphore(1)]
)
async def test_acquire_nowait(make: Any) -> None:
    obj = make()
    async with obj:
        for run in (run_in_process, anyio.to_thread.run_sync):
            with pytest.raises(anyio.WouldBlock):
                await run(targets.call_method, obj, "acquire_nowait_sync")
        with pytest.raises(anyio.WouldBlock):
            await run_in_process(targets.await_method, obj, "acquire_nowait")
    await obj.acquire_nowait()
    obj.release()
    await run_in_process(targets.await_method, obj, "acquire_nowait")  # and dies with it
    await obj.acquire()
    obj.release()


async def test_semaphore_is_released_by_others() -> None:
    semaphore = sync.Semaphore(0)
    async with open_nursery() as nursery:
        process = nursery.start_soon(targets.await_method, semaphore, "acquire")
        await until(semaphore, tasks_waiting=1)
        await run_in_process(targets.call_method, semaphore, "release")
        await process.result()
    await until_all_is_heard()
    assert await semaphore.statistics() == sync.SemaphoreStatistics(
        value=1, acquired=0, tasks_waiting=0
    )


async def test_nothing_is_kept_of_grants_that_were_heard_of() -> None:
    semaphore, done, over = sync.Semaphore(0), sync.Event(), sync.Event()
    state: Any = semaphore._place().state  # type: ignore[attr-defined]
    with anyio.fail_after(TIMEOUT):
        async with open_nursery() as nursery:
            nursery.start_soon(targets.acquire_and_stay, semaphore, 100, done, over)
            for _ in range(100):
                semaphore.release()
            await done.wait()
            assert not state.unheard
            over.set()
        await until(semaphore, acquired=0)
        semaphore.acquire_nowait_sync()
        await semaphore.acquire()
    assert not state.unheard


async def test_release_for_a_waiter_that_is_cancelled_is_not_lost() -> None:
    semaphore = sync.Semaphore(0)
    acquired = 0
    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as group:
            scope = anyio.CancelScope()

            @group.start_soon
            async def _wait() -> None:
                nonlocal acquired
                with scope:
                    await semaphore.acquire()
                    acquired += 1

            await until(semaphore, tasks_waiting=1)
            semaphore.release()
            semaphore.release()
            scope.cancel()
        for _ in range(2 - acquired):
            await semaphore.acquire()
    assert (await semaphore.statistics()).value == 0


async def test_limiter_bounds_all_processes(tmp_path: Path, anyio_backend: str) -> None:
    limiter, meeting = sync.CapacityLimiter(2), sync.Barrier(2)
    path = tmp_path / "entered"
    run = functools.partial(targets.with_limiter, limiter, meeting, str(path), 0.01)
    async with open_pool(4) as pool:
        await pool.map(run, range(12), chunksize=1)
    now, most = 0, 0
    for line in path.read_text().splitlines():
        now += 1 if line == "+" else -1
        most = max(most, now)
    assert (now, most) == (0, 2)


async def test_limiter_changes() -> None:
    limiter = sync.CapacityLimiter(0)
    async with open_nursery() as nursery:
        process = nursery.start_soon(targets.await_method, limiter, "acquire")
        await until(limiter, tasks_waiting=1)
        limiter.set_total_tokens(1)
        await process.result()
        await run_in_process(targets.call_method, limiter, "set_total_tokens", math.inf)
        await until(limiter, total_tokens=math.inf, borrowed_tokens=0)
        await limiter.acquire()
        found = await limiter.statistics()
        assert found == sync.CapacityLimiterStatistics(
            borrowed_tokens=1, total_tokens=math.inf, borrowers={os.getpid(): 1}, tasks_waiting=0
        )
        await anyio.to_thread.run_sync(lambda: None, limiter=anyio.CapacityLimiter(1))
    limiter.release()


@pytest.mark.parametrize("style", STYLES)
async def test_barrier(style: str, start_method: str) -> None:
    barrier = sync.Barrier(3)
    for _ in range(2):
        async with open_nursery(start_method=start_method) as nursery:
            processes = [
                nursery.start_soon(targets.call_method, barrier, "wait_sync", TIMEOUT)
                if style == "sync"
                else nursery.start_soon(targets.await_method, barrier, "wait")
                for _ in range(2)
            ]
            with anyio.fail_after(TIMEOUT):
                mine = await barrier.wait()
        found = {mine, *(process.return_value for process in processes)}
        assert found == {0, 1, 2}
    assert await barrier.statistics() == sync.BarrierStatistics(
        parties=3, broken=False, tasks_waiting=0
    )


async def test_barrier_is_broken_and_reset_by_others() -> None:
    barrier = sync.Barrier(2)
    await run_in_process(targets.call_method, barrier, "abort")
    for run in (run_in_process, _call_here):
        with pytest.raises(threading.BrokenBarrierError, match="was aborted by process"):
            await run(targets.await_method, barrier, "wait")
    await run_in_process(targets.call_method, barrier, "reset")
    await until(barrier, broken=False)


@pytest.mark.either_backend
@pytest.mark.parametrize("style", STYLES)
async def test_queue_of_many(style: str, start_method: str, transport: None) -> None:
    queue = sync.Queue[int](10)
    async with open_nursery(start_method=start_method) as nursery:
        consumers = [nursery.start_soon(pick(style, "consume"), queue) for _ in range(2)]
        producers = [
            nursery.start_soon(pick(style, "produce"), queue, start, 100) for start in (0, 100)
        ]
        await targets.produce_async(queue, 200, 100)
        await anyio.to_thread.run_sync(targets.produce, queue, 300, 100)
        for process in producers:
            await process.result()
        queue.close()
    received = [process.return_value for process in consumers]
    assert sorted(itertools.chain(*received)) == list(range(400))
    for items in received:
        for start in range(0, 400, 100):  # those of one producer stay in order
            of_one = [item for item in items if start <= item < start + 100]
            assert of_one == sorted(of_one)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "item",
    [None, {"a": [1, 2]}, b"x" * 100, "y" * 100_000, b"z" * 5_000_000, bytearray(3_000_000)],
    ids=["nothing", "dict", "bytes", "text", "large bytes", "bytearray"],
)
async def test_items(style: str, item: Any, transport: None) -> None:
    requests, replies = sync.Queue[Any](), sync.Queue[Any]()
    async with open_nursery() as nursery:
        nursery.start_soon(pick(style, "echo_queue"), requests, replies)
        with anyio.fail_after(TIMEOUT):
            for _ in range(3):
                await requests.put(item)
                reply = await replies.get()
                assert reply == item
                assert type(reply) is type(item)
                await anyio.to_thread.run_sync(requests.put_sync, item)
                assert await anyio.to_thread.run_sync(replies.get_sync) == item
        requests.close()


async def test_items_are_as_they_were_when_they_were_put() -> None:
    queue = sync.Queue[Any]()
    small, large = [1], bytearray(b"a" * 1_000_000)
    await queue.put(small)
    await queue.put(large)
    queue.put_sync(large)
    small.append(2)
    large[:] = b"b" * 1_000_000
    assert await queue.get() == [1]
    assert await queue.get() == b"a" * 1_000_000
    assert queue.get_sync() == b"a" * 1_000_000


async def test_arrays() -> None:
    numpy = pytest.importorskip("numpy")
    queue = sync.Queue[Any]()
    array = numpy.arange(200_000)
    await queue.put(array)
    array *= 2
    found = await run_in_process(targets.call_method, queue, "get_sync")
    assert (found == numpy.arange(200_000)).all()


@pytest.mark.parametrize("style", STYLES)
async def test_items_that_cannot_travel(style: str) -> None:
    queue = sync.Queue[Any]()
    for item in (make_lambda(), [make_lambda()] * 3):
        with pytest.raises(SerializationError, match="cannot be put into the queue"):
            if style == "sync":
                queue.put_sync(item)
            else:
                await queue.put(item)
    for padding in (0, 1_000_000):
        await queue.put([RefusesUnpickling(), bytes(padding)])
        await queue.put("next")
        with pytest.raises(SerializationError, match=r"could not be unpickled.*not in here"):
            if style == "sync":
                await run_in_process(targets.call_method, queue, "get_sync")
            else:
                await run_in_process(targets.await_method, queue, "get")
        assert await queue.get() == "next"


async def test_queue_without_waiting() -> None:
    queue = sync.Queue[int](1)
    with pytest.raises(anyio.WouldBlock):
        await queue.get_nowait()
    await run_in_process(targets.await_method, queue, "put_nowait", 1)
    assert await queue.qsize() == 1
    assert await run_in_process(targets.call_method, queue, "qsize_sync") == 1
    with pytest.raises(anyio.WouldBlock):
        await run_in_process(targets.call_method, queue, "put_nowait_sync", 2)
    with pytest.raises(anyio.WouldBlock):
        queue.put_nowait_sync(2)
    assert await run_in_process(targets.call_method, queue, "get_nowait_sync") == 1
    with pytest.raises(anyio.WouldBlock):
        queue.get_nowait_sync()
    await queue.put_nowait(3)
    await run_in_process(targets.call_method, queue, "close")
    with pytest.raises(anyio.ClosedResourceError):
        await queue.put(4)
    assert [item async for item in queue] == [3]
    assert list(queue) == []
    for run in (run_in_process, _call_here):
        with pytest.raises(anyio.EndOfStream):
            await run(targets.await_method, queue, "get")


async def test_timeouts(start_method: str) -> None:
    lock, event, queue = sync.Lock(), sync.Event(), sync.Queue[int]()
    async with lock, open_nursery(start_method=start_method) as nursery:
        for obj, name in ((lock, "acquire_sync"), (event, "wait_sync"), (queue, "get_sync")):
            nursery.start_soon(targets.wait_times_out, obj, name)
            await anyio.to_thread.run_sync(targets.wait_times_out, obj, name)
    await until_all_is_heard()
    for obj in (lock, event):
        assert (await obj.statistics()).tasks_waiting == 0
    await queue.put(1)
    assert await queue.get() == 1
    lock.acquire_sync(timeout=0)
    lock.release()
    with pytest.raises(ValueError, match="timeout must be"):
        lock.acquire_sync(timeout=-1)


async def test_cancelled_requests_take_nothing(start_method: str) -> None:
    lock, event, queue, barrier = sync.Lock(), sync.Event(), sync.Queue[int](), sync.Barrier(3)
    limiter = sync.CapacityLimiter(1)
    waits = ((lock, "acquire"), (event, "wait"), (queue, "get"), (barrier, "wait"))
    async with (
        lock,
        limiter,
        open_nursery(start_method=start_method) as nursery,
        anyio.create_task_group() as group,
    ):
        for obj, name in (*waits, (limiter, "acquire")):
            nursery.start_soon(targets.wait_cancelled, obj, name)
            group.start_soon(targets.wait_cancelled, obj, name)
    await until_all_is_heard()
    for obj in (lock, event, barrier, limiter):
        assert (await obj.statistics()).tasks_waiting == 0
    await queue.put(1)
    assert await queue.get() == 1
    async with lock, limiter:
        pass


# --- passing them on ------------------------------------------------------------------------------


async def test_all_ways_to_pass_them(start_method: str) -> None:
    lock, queue = sync.Lock(), sync.Queue[Any]()
    put = functools.partial(targets.call_method, queue, "put_sync")
    await run_in_process(put, 1, start_method=start_method)
    async with AsyncProcess(target=put, args=(2,), start_method=start_method):
        pass
    await run_in_process(
        targets.call_in, {"deep": [(0, queue)]}, "put_sync", 3, start_method=start_method
    )
    await run_in_process(targets.pass_on, start_method, put, 4, start_method=start_method)
    async with open_pool(
        2, start_method=start_method, initializer=targets.initialize, initargs=(lock, queue)
    ) as pool:
        await pool.run(put, 5)
        await pool.map(put, [6, 7])
        await pool.map(targets.put_given, [8, 9])
    await creche.to_process.run_sync(put, 10)
    assert sorted([await queue.get() for _ in range(10)]) == list(range(1, 11))


async def test_queue_travels_through_a_queue() -> None:
    requests, replies, inner = sync.Queue[Any](), sync.Queue[Any](), sync.Queue[Any]()
    await requests.put(inner)
    requests.close()
    await run_in_process(targets.echo_queue, requests, replies)
    assert await replies.get() is inner


async def test_a_process_has_one_object_for_each() -> None:
    for obj in (sync.Lock(), sync.Queue[int]()):
        assert pickle.loads(pickle.dumps(obj)) is obj
        assert await run_in_process(targets.send_back, obj) is obj
        assert await run_in_process(targets.is_same, obj, [obj][0])
        async with open_pool(1) as pool:
            pickled = pickle.dumps(obj)
            assert await pool.run(targets.is_same, pickle.loads(pickled), obj)


async def test_fork_uses_what_it_has_inherited() -> None:
    lock, queue = sync.Lock(), sync.Queue[Any]()
    process = AsyncProcess.wrap(targets.Inherits(lock, queue))
    if multiprocessing.get_start_method() != "fork":
        process = AsyncProcess.wrap(_forked(lock, queue))
    async with process:
        assert await queue.get() == process.pid
    async with lock:
        assert lock.abandoned_by is None


def _forked(lock: sync.Lock, queue: sync.Queue[Any]) -> Any:
    context: Any = multiprocessing.get_context("fork")
    return context.Process(target=_use_inherited, args=(lock, queue))


def _use_inherited(lock: sync.Lock, queue: sync.Queue[Any]) -> None:
    with lock:
        queue.put_sync(os.getpid())


async def test_fork_of_a_child_has_a_connection_of_its_own(start_method: str) -> None:
    lock, queue = sync.Lock(), sync.Queue[Any]()
    await run_in_process(targets.forked_use, lock, queue, start_method=start_method)
    assert [await queue.get() for _ in range(3)] == ["parent", "fork", "does not hold it"]
    async with lock:
        assert lock.abandoned_by is None


@pytest.mark.parametrize("own_thread", [False, True])
async def test_children_own_things_too(own_thread: bool, start_method: str) -> None:
    """The thread of its own is what Windows needs."""
    found = await run_in_process(
        targets.own_and_lend, start_method, own_thread, start_method=start_method
    )
    assert found == ["first", "second"]


async def test_serializers(anyio_backend: str) -> None:
    pytest.importorskip("cloudpickle")
    import cloudpickle

    queue = sync.Queue[int]()
    async with open_pool(1, serializer=cloudpickle) as pool:
        await pool.run(lambda: queue.put_sync(5))
    assert await queue.get() == 5


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: sync.Semaphore(-1), ValueError),
        (lambda: sync.Semaphore(True), TypeError),
        (lambda: sync.Semaphore(1.5), TypeError),  # type: ignore[arg-type]
        (lambda: sync.CapacityLimiter(-1), ValueError),
        (lambda: sync.CapacityLimiter(1.5), TypeError),
        (lambda: sync.CapacityLimiter(1).set_total_tokens(-1), ValueError),
        (lambda: sync.Barrier(0), ValueError),
        (lambda: sync.Barrier("2"), TypeError),  # type: ignore[arg-type]
        (lambda: sync.Queue(-1), ValueError),
        (lambda: sync.Queue(None), TypeError),  # type: ignore[arg-type]
    ],
)
def test_arguments_are_checked(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


def test_names_are_public() -> None:
    for name in sync.__all__:
        assert getattr(sync, name).__module__ == "creche.sync"
    with pytest.raises(AttributeError):
        creche.synch  # type: ignore[attr-defined]  # noqa: B018
    assert sys.modules["creche.sync"] is creche.sync


def test_without_an_event_loop() -> None:
    lock, event, queue = sync.Lock(), sync.Event(), sync.Queue[int](1)
    with lock:
        thread = threading.Thread(target=targets.call_method, args=(lock, "acquire_sync"))
        thread.start()
    thread.join(TIMEOUT)
    assert lock.statistics_sync().locked
    assert not event.is_set()
    event.set()
    event.wait_sync()
    queue.put_sync(1)
    assert queue.qsize_sync() == 1
    assert event.statistics_sync().is_set
    assert sync.Semaphore(2).statistics_sync().value == 2
    assert sync.Barrier(2).statistics_sync().parties == 2
    assert sync.CapacityLimiter(2).statistics_sync().total_tokens == 2
