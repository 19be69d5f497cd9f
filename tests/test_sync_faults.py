"""creche.sync: whoever dies, is stopped, gives up, or is a stranger, at whatever moment."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import itertools
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.to_thread
import pytest
import sync_targets as targets
from backends import in_asyncio
from log_collector import Collector
from support import TIMEOUT, Announcements
from test_sync import STYLES, pick, transport, until, until_all_is_heard

from creche import (
    AsyncProcess,
    ProcessDied,
    ProcessStateError,
    StopPolicy,
    open_nursery,
    run_in_process,
    sync,
)
from creche._hub import _hub, _link, _sources
from creche._hub._protocol import HELLO, HubRef, Op, make_hello
from creche._loops import current_loop, post
from creche._platform import _hub_sockets, hub_connect, hub_listen

__all__ = ["transport"]

pytestmark = pytest.mark.anyio

PATIENT = StopPolicy(grace=TIMEOUT)


@contextlib.contextmanager
def expecting_death() -> Iterator[None]:
    """What a nursery raises when the test kills its processes."""
    try:
        yield
    except* ProcessDied:
        pass


# --- those who hold, wait and get -----------------------------------------------------------------


@pytest.mark.either_backend
@pytest.mark.parametrize("style", STYLES)
async def test_holder_is_killed(
    style: str, start_method: str, announcements: Announcements, transport: None
) -> None:
    lock, limiter, semaphore = sync.Lock(), sync.CapacityLimiter(1), sync.Semaphore(1)
    with expecting_death():
        async with open_nursery(start_method=start_method) as nursery:
            holders = [
                nursery.start_soon(pick(style, "hold"), obj, announcements.path)
                for obj in (lock, limiter, semaphore)
            ]
            pids = [await announcements.get_pid() for _ in holders]
            (pid,) = {(await lock.statistics()).holder} & set(pids)
            async with anyio.create_task_group() as group:
                group.start_soon(_abandoned_by, lock, pid)
                await until(lock, tasks_waiting=1)
                for obj in (limiter, semaphore):
                    group.start_soon(obj.acquire)
                    await until(obj, tasks_waiting=1)
                for victim in pids:
                    os.kill(victim, signal.SIGKILL)
    for obj in (lock, limiter, semaphore):
        assert (await obj.statistics()).tasks_waiting == 0


async def _abandoned_by(lock: sync.Lock, pid: int) -> None:
    with anyio.fail_after(TIMEOUT):
        await lock.acquire()
    assert lock.abandoned_by == pid
    lock.release()
    async with lock:
        assert lock.abandoned_by is None


@pytest.mark.parametrize("style", STYLES)
async def test_next_holder_is_told(style: str, announcements: Announcements) -> None:
    lock = sync.Lock()
    process = None
    with expecting_death():
        async with open_nursery() as nursery:
            nursery.start_soon(targets.hold, lock, announcements.path)
            pid = await announcements.get_pid()
            with anyio.CancelScope(shield=True):
                async with anyio.create_task_group() as group:

                    async def ask() -> None:
                        nonlocal process
                        process = await run_in_process(pick(style, "abandoned_by"), lock)

                    group.start_soon(ask)
                    await until(lock, tasks_waiting=1)
                    os.kill(pid, signal.SIGKILL)
    assert process == (pid, None)


async def test_waiters_are_killed(start_method: str, announcements: Announcements) -> None:
    lock, event, barrier = sync.Lock(), sync.Event(), sync.Barrier(3)
    async with lock:
        with expecting_death():
            async with open_nursery(start_method=start_method) as nursery:
                nursery.start_soon(targets.call_method, lock, "acquire_sync")
                nursery.start_soon(targets.await_method, event, "wait")
                victim = nursery.start_soon(targets.call_method, barrier, "wait_sync")
                for obj in (lock, event, barrier):
                    await until(obj, tasks_waiting=1)
                pids = [await _pid_of(process) for process in nursery.processes]
                # Not dead, only silent: all others go on.
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
                await run_in_process(targets.call_method, event, "set")
                async with anyio.create_task_group() as group:

                    async def wait() -> None:
                        with pytest.raises(threading.BrokenBarrierError, match=str(victim.pid)):
                            await barrier.wait()

                    group.start_soon(wait)
                    await until(barrier, tasks_waiting=2)
                    for pid in pids:
                        os.kill(pid, signal.SIGKILL)
        await until(lock, tasks_waiting=0)  # or it would go to the dead one
    with anyio.fail_after(TIMEOUT):
        async with lock:  # not that of somebody who waited for it
            assert lock.abandoned_by is None
    with pytest.raises(threading.BrokenBarrierError, match="died while it waited"):
        await run_in_process(targets.call_method, barrier, "wait_sync")


async def _pid_of(process: AsyncProcess[Any]) -> int:
    """Of a process that is heard of, perhaps before its start has returned."""
    with anyio.fail_after(TIMEOUT):
        while process.pid is None:
            await anyio.sleep(0.001)
    return process.pid


@pytest.mark.parametrize("style", STYLES)
async def test_item_of_a_process_that_dies_goes_back(
    style: str, start_method: str, announcements: Announcements
) -> None:
    queue = sync.Queue[str]()
    await queue.put("first")
    await queue.put("second")
    with expecting_death():
        async with open_nursery(start_method=start_method) as nursery:
            nursery.start_soon(targets.get_and_die, queue, style, announcements.path)
            pid = await announcements.get_pid()
            assert await queue.qsize() == 1
            os.kill(pid, signal.SIGKILL)
    await until(queue, qsize=2)
    assert [await queue.get(), await queue.get()] == ["first", "second"]


@pytest.mark.either_backend
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("padding", [0, 100_000])
async def test_item_that_kills_whoever_unpickles_it_goes_with_it(
    style: str, padding: int, start_method: str
) -> None:
    queue = sync.Queue[Any]()
    await queue.put(targets.KillsWhoeverUnpickles(padding))
    await queue.put("next")
    with pytest.raises(ProcessDied):
        if style == "sync":
            method = functools.partial(targets.call_method, queue, "get_sync")
        else:
            method = functools.partial(targets.await_method, queue, "get")
        await run_in_process(method, start_method=start_method)
    with anyio.fail_after(TIMEOUT):
        assert await queue.get() == "next"


async def test_stopped_consumer_holds_up_its_own_items_alone(
    announcements: Announcements, transport: None
) -> None:
    queue, other = sync.Queue[Any](), sync.Queue[Any]()
    large = bytes(1_000_000)
    with expecting_death():
        async with open_nursery() as nursery:
            nursery.start_soon(targets.get_many, queue, announcements.path, 20)
            pid = await announcements.get_pid()
            await until(queue, tasks_waiting_get=20)
            os.kill(pid, signal.SIGSTOP)
            with anyio.fail_after(TIMEOUT):
                for number in range(20):  # more than fits into the connection
                    await queue.put((number, large))
                await queue.put("more")
                assert await queue.get() == "more"
                await run_in_process(targets.call_method, other, "put_sync", "goes on")
                assert await other.get() == "goes on"
            os.kill(pid, signal.SIGKILL)
    with anyio.fail_after(TIMEOUT):
        assert [(await queue.get())[0] for _ in range(20)] == list(range(20))


async def test_producer_dies_in_the_middle_of_an_item(
    announcements: Announcements, transport: None
) -> None:
    queue = sync.Queue[bytes](1)
    for delay in (0, 0.003, 0.01, 0.03):
        with expecting_death():
            async with open_nursery() as nursery:
                nursery.start_soon(targets.put_large, queue, announcements.path, 30_000_000)
                pid = await announcements.get_pid()
                await anyio.sleep(delay)
                os.kill(pid, signal.SIGKILL)
        await until_all_is_heard()  # what was sent to the end is an item yet
        with contextlib.suppress(anyio.WouldBlock):
            while True:
                assert len(await queue.get_nowait()) == 30_000_000
    await run_in_process(targets.call_method, queue, "put_sync", b"whole")
    assert await queue.get() == b"whole"


async def test_what_was_told_is_not_lost(start_method: str) -> None:
    event = sync.Event()
    with pytest.raises(ProcessDied):
        await run_in_process(targets.set_and_exit, event, start_method=start_method)
    with anyio.fail_after(TIMEOUT):
        await event.wait()


async def test_event_set_over_a_port_is_not_lost(transport: None) -> None:
    event = sync.Event()
    await run_in_process(targets.call_method, event, "set")
    with anyio.fail_after(TIMEOUT):
        await event.wait()


# --- stopping -------------------------------------------------------------------------------------


@pytest.mark.either_backend
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (sync.Lock, "acquire_sync"),
        (sync.Event, "wait_sync"),
        (functools.partial(sync.Barrier, 2), "wait_sync"),
        (functools.partial(sync.CapacityLimiter, 0), "acquire_sync"),
        (sync.Queue, "get_sync"),
    ],
)
async def test_plain_code_that_waits_is_stopped(
    make: Any, name: str, start_method: str, announcements: Announcements
) -> None:
    obj = make()
    async with contextlib.AsyncExitStack() as stack:
        if isinstance(obj, sync.Lock):
            await stack.enter_async_context(obj)
        async with open_nursery(start_method=start_method, stop=PATIENT) as nursery:
            process = nursery.start_soon(targets.clean_up, obj, name, announcements.path)
            await announcements.get()
            with anyio.fail_after(TIMEOUT):
                nursery.cancel_scope.cancel()
                await anyio.lowlevel.checkpoint_if_cancelled()
    assert process.exitcode == -signal.SIGTERM
    assert await announcements.get() == "cleaned up"


async def test_stopped_process_releases_in_order(
    start_method: str, announcements: Announcements
) -> None:
    lock = sync.Lock()
    async with open_nursery(start_method=start_method, stop=PATIENT) as nursery:
        nursery.start_soon(targets.clean_up_with, lock, announcements.path)
        await announcements.get()
        nursery.cancel_scope.cancel()
    async with lock:
        assert lock.abandoned_by is None


@pytest.mark.parametrize(
    ("make_tokens", "op"),
    [
        (sync.Lock, Op.ACQUIRE),
        (sync.Lock, Op.RELEASE),
        (functools.partial(sync.CapacityLimiter, 1), Op.RELEASE),
        (functools.partial(sync.Semaphore, 1), Op.ACQUIRE),
        (functools.partial(sync.Semaphore, 1), Op.GOT),
        (functools.partial(sync.Semaphore, 1), Op.RELEASE),
    ],
)
async def test_stopped_process_goes_on_to_use_it(make_tokens: Callable[[], Any], op: Op) -> None:
    """In a ``finally``, say: what it was about to take or to give back is not lost to it."""
    with anyio.fail_after(TIMEOUT):
        assert await run_in_process(targets.use_after_a_stop_while, op, make_tokens())


# --- the owner ------------------------------------------------------------------------------------


async def test_owner_is_killed(start_method: str) -> None:
    failed: list[str] = []

    async def expect_failure(func: Any, *args: Any) -> None:
        with pytest.raises(anyio.BrokenResourceError, match=r"process \d+, which made this"):
            await func(*args)
        failed.append(str(func))

    with expecting_death():
        async with open_nursery(start_method=start_method) as nursery:
            all_of_them = await nursery.start(targets.own)
            (owner,) = nursery.processes
            lock, limiter, queue = (all_of_them[name] for name in ("lock", "limiter", "queue"))
            await lock.acquire()
            await queue.put(1)
            with anyio.CancelScope(shield=True), anyio.fail_after(TIMEOUT):
                async with anyio.create_task_group() as group:
                    for name, obj in all_of_them.items():
                        method = "wait" if name in ("event", "barrier") else "acquire"
                        func = functools.partial(obj.put, 2) if name == "queue" else None
                        group.start_soon(expect_failure, func or getattr(obj, method))
                        if name == "lock":
                            group.start_soon(
                                expect_failure, run_in_process, targets.call_method, obj,
                                "acquire_sync",
                            )  # fmt: skip
                            await until(obj, tasks_waiting=1 + 1)
                        elif name != "queue":
                            await until(obj, tasks_waiting=1)
                    await until(queue, tasks_waiting_put=1)
                    assert owner.pid is not None
                    os.kill(owner.pid, signal.SIGKILL)
    assert len(failed) == 7
    with pytest.raises(anyio.BrokenResourceError):
        lock.release()
    with pytest.raises(RuntimeError, match="does not hold"):  # for ever
        lock.release()
    for name, obj in all_of_them.items():
        with pytest.raises(anyio.BrokenResourceError):
            await obj.statistics()
        with pytest.raises(anyio.BrokenResourceError):
            await run_in_process(targets.call_method, obj, "statistics_sync")
        del name
    for func in (all_of_them["event"].set, queue.close, all_of_them["barrier"].abort):
        with pytest.raises(anyio.BrokenResourceError):
            func()
    with pytest.raises(anyio.BrokenResourceError):
        all_of_them["event"].is_set()
    with pytest.raises(anyio.BrokenResourceError):
        await limiter.acquire()


@pytest.mark.parametrize("size", [1, 1_000_000])
@pytest.mark.parametrize("method", ["get", "get_sync"])
async def test_item_that_came_before_its_owner_died_is_got(
    monkeypatch: pytest.MonkeyPatch, method: str, size: int
) -> None:
    def kill() -> None:
        assert owner.pid is not None
        os.kill(owner.pid, signal.SIGKILL)
        assert _link.link_to(queue._place().refer()[0])._ended.wait(TIMEOUT)

    async def ask_and_kill(*args: Any) -> Any:
        answer = await ask(*args)
        kill()
        return answer

    def ask_sync_and_kill(*args: Any) -> Any:
        answer = ask_sync(*args)
        kill()
        return answer

    with expecting_death():
        async with open_nursery() as nursery:
            queue: sync.Queue[bytes] = (await nursery.start(targets.own))["queue"]
            (owner,) = nursery.processes
            await queue.put(bytes(size))
            ask, ask_sync = queue._ask, queue._ask_sync
            monkeypatch.setattr(queue, "_ask", ask_and_kill)
            monkeypatch.setattr(queue, "_ask_sync", ask_sync_and_kill)
            with anyio.CancelScope(shield=True), anyio.fail_after(TIMEOUT):
                if method == "get":
                    assert await queue.get() == bytes(size)
                else:
                    assert await anyio.to_thread.run_sync(queue.get_sync) == bytes(size)


async def test_owner_of_an_event_that_is_polled_is_killed(announcements: Announcements) -> None:
    async with open_nursery() as outer:
        with expecting_death():
            async with open_nursery() as nursery:
                event = (await nursery.start(targets.own))["event"]
                (owner,) = nursery.processes
                process = outer.start_soon(targets.poll_until_broken, event, announcements.path)
                await announcements.get()
                assert not event.is_set()
                assert owner.pid is not None
                os.kill(owner.pid, signal.SIGKILL)
        with pytest.raises(anyio.BrokenResourceError), anyio.fail_after(TIMEOUT):
            while not event.is_set():
                await anyio.sleep(0.001)
    assert process.return_value == "broken"


async def test_owner_is_stopped(start_method: str) -> None:
    """Nobody answers; nobody who gives up waits for that."""
    with expecting_death():
        async with open_nursery(start_method=start_method) as nursery:
            lock = (await nursery.start(targets.own))["lock"]
            (owner,) = nursery.processes
            assert owner.pid is not None
            await lock.acquire()
            lock.release()
            os.kill(owner.pid, signal.SIGSTOP)
            with anyio.fail_after(TIMEOUT):
                while not _is_stopped(owner.pid):
                    await anyio.sleep(0.001)
            with anyio.move_on_after(0.01) as scope:
                await lock.acquire()
            assert scope.cancelled_caught
            with pytest.raises(TimeoutError):
                lock.acquire_sync(0.01)
            os.kill(owner.pid, signal.SIGCONT)
            with anyio.fail_after(TIMEOUT):
                async with lock:
                    assert (await lock.statistics()).tasks_waiting == 0
            os.kill(owner.pid, signal.SIGKILL)


async def test_polling_an_event_in_a_callback_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs in no task, but in the event loop all the same, which must not wait."""
    asked: list[object] = []
    called = anyio.Event()

    def poll() -> None:
        assert not event.is_set()
        called.set()

    async with open_nursery() as nursery:
        event: sync.Event = (await nursery.start(targets.own))["event"]
        monkeypatch.setattr(event, "_statistics_sync", asked.append)
        post(current_loop(), poll)
        with anyio.fail_after(TIMEOUT):
            await called.wait()
        nursery.cancel_scope.cancel()
    assert not asked


def _is_stopped(pid: int) -> bool:
    """Whether all threads of a process are."""
    states = [
        path.read_text().rpartition(")")[2] for path in Path(f"/proc/{pid}/task").glob("*/stat")
    ]
    return all(state.split()[0] == "T" for state in states)


async def test_error_of_the_block_comes_first_when_the_owner_has_died() -> None:
    for error in (LookupError, anyio.BrokenResourceError):
        with expecting_death():
            async with open_nursery() as nursery:
                lock = (await nursery.start(targets.own))["lock"]
                (owner,) = nursery.processes
                assert owner.pid is not None
                with anyio.CancelScope(shield=True), pytest.raises(error):
                    async with lock:
                        os.kill(owner.pid, signal.SIGKILL)
                        with pytest.raises(anyio.BrokenResourceError):
                            while True:
                                await lock.statistics()
                        if error is LookupError:
                            raise error


async def test_owner_lets_go(start_method: str) -> None:
    """What was passed on exists as long as the object of the process that made it."""
    event = sync.Event()
    async with open_nursery(start_method=start_method) as nursery:
        process = nursery.start_soon(
            targets.errors_of, event, "wait_sync", "set", "statistics_sync"
        )
        await until(event, tasks_waiting=1)
        del event
        gc.collect()
    assert process.return_value == ["BrokenResourceError", "", "BrokenResourceError"]
    async with open_nursery(start_method=start_method) as nursery:
        forgotten = await nursery.start(targets.start_and_forget)
        with pytest.raises(anyio.BrokenResourceError, match="keep a reference to it"):
            await forgotten.wait()
        nursery.cancel_scope.cancel()


async def test_loop_of_the_owner_is_blocked(tmp_path: Path) -> None:
    lock = sync.Lock()
    path = tmp_path / "number"
    path.write_text("0")
    async with open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(targets.count_up, lock, str(path), 100)
        with anyio.fail_after(TIMEOUT):
            while path.read_text() in ("", "0"):
                await anyio.sleep(0.001)
        deadline = time.monotonic() + TIMEOUT
        while path.read_text() != "200":
            assert time.monotonic() < deadline
            time.sleep(0.01)


# --- giving up ------------------------------------------------------------------------------------


async def test_giving_up_at_any_moment(tmp_path: Path, transport: None) -> None:
    lock, queue = sync.Lock(), sync.Queue[int](5)
    path = tmp_path / "items"
    async with open_nursery() as nursery, anyio.create_task_group() as group:
        for seed in range(2):
            nursery.start_soon(targets.hammer, lock, queue, seed, str(path))
        nursery.start_soon(targets.hammer_sync, lock, queue, 2, str(path))
        group.start_soon(targets.hammer, lock, queue, 3, str(path))
        numbers = itertools.count()
        put: set[int] = (
            set()
        )  # what is in the queue for sure: of the rest somebody may have got some
        while len([p for p in nursery.processes if p.exitcode is None]):
            number = next(numbers)
            with anyio.move_on_after(0.05) as scope:
                await queue.put(number)
            if not scope.cancelled_caught:
                put.add(number)
    await until_all_is_heard()
    items = [int(line) for line in path.read_text().splitlines()]
    while await queue.qsize():
        items.append(await queue.get())
    counts = Counter(items)
    assert max(counts.values()) == 1
    assert put <= set(items)
    with anyio.fail_after(TIMEOUT):
        async with lock:
            assert lock.abandoned_by is None
    assert (await lock.statistics()).tasks_waiting == 0


def test_loop_that_was_closed_in_the_middle() -> None:
    """Its tasks can neither take nor release anything any more."""
    lock, queue = sync.Lock(), sync.Queue[int]()
    loop = asyncio.new_event_loop()

    async def start() -> list[asyncio.Task[Any]]:
        tasks = [asyncio.create_task(lock.acquire()), asyncio.create_task(queue.get())]
        while not (await lock.statistics()).tasks_waiting:
            await asyncio.sleep(0)
        return tasks

    with lock:
        tasks = loop.run_until_complete(start())
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()
    lock.acquire_sync(TIMEOUT)
    lock.release()
    queue.put_sync(1)
    assert queue.get_sync(TIMEOUT) == 1
    for task in tasks:
        with contextlib.suppress(RuntimeError):
            task.get_coro().close()  # type: ignore[union-attr]


def test_task_of_a_closed_loop_that_is_collected_in_the_middle_of_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its request is cancelled by whoever the garbage collector interrupts, with any lock taken."""
    queue = sync.Queue[int]()
    loop = asyncio.new_event_loop()

    async def start() -> asyncio.Task[int]:
        task = asyncio.create_task(queue.get())
        while not (await queue.statistics()).tasks_waiting_get:
            await asyncio.sleep(0)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        return task

    collected = weakref.ref(loop.run_until_complete(start()))
    loop.close()
    queue.put_sync(1)  # so that the task waits for nothing
    source = queue._place()
    assert isinstance(source, _sources.Here)
    statistics = source.state.statistics

    def collect() -> dict[str, Any]:
        gc.collect()
        assert collected() is None
        return statistics()

    monkeypatch.setattr(source.state, "statistics", collect)
    found: list[sync.QueueStatistics] = []
    thread = threading.Thread(target=lambda: found.append(queue.statistics_sync()), daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    assert [statistics.qsize for statistics in found] == [1]


@in_asyncio
async def test_native_cancellation_of_asyncio(anyio_backend: str) -> None:
    lock = sync.Lock()
    await lock.acquire()
    for _ in range(10):
        task = asyncio.create_task(lock.acquire())
        await until(lock, tasks_waiting=1)
        task.cancel()
        if _ % 2:
            await asyncio.sleep(0)
        lock.release()
        with pytest.raises(asyncio.CancelledError):
            await task
        await lock.acquire()
    lock.release()
    assert await lock.statistics() == sync.LockStatistics(
        locked=False, holder=None, tasks_waiting=0, abandoned_by=None
    )


@pytest.fixture
def held_up() -> Iterator[targets.HeldUp]:
    yield targets.HeldUp()
    targets.HeldUp.begun.clear()
    targets.HeldUp.let_go.clear()


@in_asyncio
async def test_native_cancellation_gives_a_large_item_to_the_next(
    anyio_backend: str, held_up: targets.HeldUp
) -> None:
    """One that waits already, and hears of no end before."""
    queue = sync.Queue[Any]()
    await queue.put(held_up)
    queue.close()

    async def get_next() -> None:
        assert [item async for item in queue] == [100_000]

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as group:

            async def have_the_next_wait() -> None:
                group.start_soon(get_next)
                await until(queue, tasks_waiting_get=1)

            await targets.cancel_natively_while_unpickling(queue, have_the_next_wait)


@pytest.mark.either_backend
async def test_native_cancellation_in_a_child_gives_a_large_item_back(
    start_method: str, held_up: targets.HeldUp
) -> None:
    queue = sync.Queue[Any]()
    await queue.put(held_up)
    await queue.put("next")
    await run_in_process(targets.cancel_natively_in_a_loop, queue, start_method=start_method)
    held_up.let_go.set()
    await until(queue, qsize=2)
    with anyio.fail_after(TIMEOUT):
        assert [await queue.get(), await queue.get()] == [100_000, "next"]


# --- strangers ------------------------------------------------------------------------------------


def _strange_messages(ref: HubRef) -> dict[str, bytes]:
    wrong, _ = make_hello(HubRef(ref.address, b"a guess", ref.pid), os.getpid())
    right, _ = make_hello(ref, os.getpid())
    return {
        "garbage": b"\xff" * 200,
        "a wrong secret": wrong,
        "garbage afterwards": right + b"\xff" * 200,
    }


async def be_cut_off(ref: HubRef, what: str) -> None:
    """Say something strange; return when the connection has been ended."""
    with hub_connect(ref.address) as sock:
        sock.setblocking(True)
        sock.settimeout(TIMEOUT)
        sock.sendall(_strange_messages(ref)[what])
        with contextlib.suppress(ConnectionResetError):
            while await anyio.to_thread.run_sync(sock.recv, 4096):
                pass


@pytest.mark.parametrize("what", ["garbage", "a wrong secret", "garbage afterwards"])
async def test_strangers_are_cut_off(
    what: str, transport: None, caplog: pytest.LogCaptureFixture
) -> None:
    ref = _sources.open_hub().ref
    event = sync.Event()
    with caplog.at_level(logging.WARNING, "creche"):
        await be_cut_off(ref, what)
    assert "cut off" in caplog.text
    await run_in_process(targets.call_method, event, "set")
    with anyio.fail_after(TIMEOUT):
        await event.wait()


@pytest.mark.parametrize("what", ["a wrong secret", "garbage afterwards"])
async def test_strangers_of_whom_nothing_can_be_logged(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hub, "_PATIENCE", 1000)
    ref = _sources.open_hub().ref
    with Collector().failing_on("creche"):
        await be_cut_off(ref, what)


async def test_silent_strangers_are_cut_off(
    transport: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hub, "_PATIENCE", 0.01)
    sock = hub_connect(_sources.open_hub().ref.address)
    sock.setblocking(True)
    sock.settimeout(TIMEOUT)
    with contextlib.suppress(ConnectionError):  # it may be cut off before it says anything
        sock.send(b"x" * (HELLO.size - 1))
        assert await anyio.to_thread.run_sync(sock.recv, 1) == b""
    sock.close()


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("says", [b"", b"\xff" * 100], ids=["nothing", "garbage"])
async def test_stranger_in_place_of_the_hub(tcp: bool, says: bytes) -> None:
    """It gets to know nothing over a port, which anybody may have opened."""
    listener, address = hub_listen(tcp=tcp)
    listener.setblocking(True)
    ref = HubRef(address, b"secret", 1)
    received: list[bytes] = []

    def answer() -> None:
        sock, _ = listener.accept()
        received.append(sock.recv(HELLO.size, socket.MSG_WAITALL))
        if says:
            sock.sendall(says)
        else:
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            received.append(sock.recv(4096))
        sock.close()

    thread = threading.Thread(target=answer)
    thread.start()
    queue: sync.Queue[Any] = targets.queue_at(ref)
    with anyio.fail_after(TIMEOUT):
        for _ in range(2):
            with pytest.raises(anyio.BrokenResourceError):
                await queue.put("private")
    await anyio.to_thread.run_sync(thread.join)
    listener.close()
    assert b"secret" not in received[0]
    if tcp:
        assert received[1:] in ([], [b""])
    _link._links.pop(ref)


async def test_no_descriptor_for_a_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = 2

    def accept(listener: socket.socket) -> socket.socket | None:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.EMFILE, "too many open files")
        return real(listener)

    real = _hub.hub_accept
    monkeypatch.setattr(_hub, "hub_accept", accept)
    event = sync.Event()
    await run_in_process(targets.call_method, event, "set")
    with anyio.fail_after(TIMEOUT):
        await event.wait()
    assert failures == 0
    assert "cannot accept" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system waits by itself")
def test_hub_that_cannot_keep_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting waits until there is room in the backlog, but not for ever."""
    monkeypatch.setattr(_hub_sockets, "_BACKLOG", 1)
    listener, address = hub_listen()
    pauses = 0

    def pause(seconds: float) -> None:
        nonlocal pauses
        pauses += 1
        if pauses == 3:
            listener.accept()[0].close()

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=pause)
    monkeypatch.setattr(_hub_sockets, "time", clock)
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener)
        while not pauses:
            stack.enter_context(hub_connect(address))
        assert pauses == 3
        monkeypatch.setattr(_hub_sockets, "_CONNECT_TIMEOUT", 0)
        with pytest.raises(BlockingIOError):
            hub_connect(address)


# --- forks ----------------------------------------------------------------------------------------

_FORK = """
import os, sys
from creche import sync, ProcessStateError

lock = sync.Lock()
lock.acquire_sync()
if not os.fork():
    for use in (lock.acquire_sync, lock.statistics_sync):
        try:
            use()
        except ProcessStateError as error:
            print(error, flush=True)
    os._exit(0)
os.wait()
lock.release()
"""


async def test_fork_of_a_process_that_listens_to_nobody() -> None:
    done = await anyio.to_thread.run_sync(
        functools.partial(
            subprocess.run, [sys.executable, "-c", _FORK], capture_output=True, timeout=TIMEOUT
        )
    )
    assert done.stdout.count(b"pass it to a process as an argument") == 2, done
    assert issubclass(ProcessStateError, Exception)


# --- leaks ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("times", [10_000])
async def test_ten_thousand_objects(times: int) -> None:
    queue = sync.Queue[Any](10)
    gc.collect()
    before = len(_sources._places.states), len(os.listdir("/proc/self/fd"))

    def is_more_left() -> bool:
        return (
            len(_sources._places.states) > before[0] or len(os.listdir("/proc/self/fd")) > before[1]
        )

    kept: list[Any] = []
    async with open_nursery() as nursery:
        process = nursery.start_soon(targets.cycle, queue, times)
        for _ in range(times):
            pair = sync.Lock(), sync.Event()
            kept.append(pair)
            await queue.put(pair)
            if len(kept) > 20:
                await kept.pop(0)[1].wait()
        for pair in kept:
            await pair[1].wait()
    more = process.return_value
    assert more["descriptors"] <= 0
    assert more["threads"] <= 0
    assert more["handles"] <= 0
    assert more["requests"] <= 0
    kept.clear()
    del pair
    with anyio.fail_after(TIMEOUT):
        while is_more_left():  # less, if something of an earlier test has gone meanwhile
            gc.collect()
            await anyio.sleep(0.01)


async def test_processes_leave_no_connections() -> None:
    event = sync.Event()
    for _ in range(10):
        await run_in_process(targets.call_method, event, "statistics_sync")
    await until_all_is_heard()


async def test_event_that_is_polled_leaves_nothing() -> None:
    event = sync.Event()
    await run_in_process(targets.poll_and_forget, pickle.dumps(event), 50)


@pytest.mark.slow
async def test_stopped_at_any_moment(start_method: str) -> None:
    """Two processes that do nothing but use a lock and a queue; neither of them hangs or fails."""
    lock, queue = sync.Lock(), sync.Queue[bytes]()
    for delay in range(20):
        async with open_nursery(start_method=start_method, stop=PATIENT) as nursery:
            processes = [
                nursery.start_soon(targets.use_for_ever, lock, queue),
                nursery.start_soon(targets.use_for_ever_async, lock, queue),
            ]
            await anyio.sleep(delay / 100)
            nursery.cancel_scope.cancel()
        # None: it was stopped before it was started.
        assert {process.exitcode for process in processes} <= {-signal.SIGTERM, None}
        with anyio.fail_after(TIMEOUT):
            async with lock:
                while await queue.qsize():
                    await queue.get()
        assert (await lock.statistics()).tasks_waiting == 0
