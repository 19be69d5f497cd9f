"""What the tests of :mod:`creche.sync` run in children."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from support import TIMEOUT, announce, append_line, wait_for_ever

import creche
from creche import sync
from creche._hub import _driver, _link, _shared
from creche._hub._protocol import HubRef, Op


def call_method(obj: Any, name: str, *args: Any) -> Any:
    return getattr(obj, name)(*args)


async def await_method(obj: Any, name: str, *args: Any) -> Any:
    return await getattr(obj, name)(*args)


def call_in(objects: dict[str, list[Any]], *args: Any) -> Any:
    """Call a method of what is deep inside a data structure."""
    return call_method(objects["deep"][0][1], *args)


def hold(obj: Any, ready: str) -> None:
    with obj:
        announce(ready)
        wait_for_ever()


async def hold_async(obj: Any, ready: str) -> None:
    async with obj:
        announce(ready)
        await anyio.sleep_forever()


def hold_until(obj: Any, ready: str, event: sync.Event) -> int | None:
    with obj:
        announce(ready)
        event.wait_sync(TIMEOUT)
        return getattr(obj, "abandoned_by", None)


async def hold_until_async(obj: Any, ready: str, event: sync.Event) -> int | None:
    async with obj:
        announce(ready)
        await event.wait()
        return getattr(obj, "abandoned_by", None)


def abandoned_by(lock: sync.Lock) -> tuple[int | None, int | None]:
    """Who has died with it, for the first holder and for the next."""
    found = []
    for _ in range(2):
        with lock:
            found.append(lock.abandoned_by)
    return found[0], found[1]


async def abandoned_by_async(lock: sync.Lock) -> tuple[int | None, int | None]:
    found = []
    for _ in range(2):
        async with lock:
            found.append(lock.abandoned_by)
    return found[0], found[1]


def count_up(lock: sync.Lock, path: str, times: int) -> None:
    """Add to a number in a file, which goes wrong without the lock."""
    file = Path(path)
    for _ in range(times):
        with lock:
            number = int(file.read_text())
            file.write_text(str(number + 1))


async def count_up_async(lock: sync.Lock, path: str, times: int) -> None:
    file = Path(path)

    async def count() -> None:
        for _ in range(times // 2):
            async with lock:
                number = int(file.read_text())
                await anyio.sleep(0)
                file.write_text(str(number + 1))

    async with anyio.create_task_group() as group:
        group.start_soon(count)
        group.start_soon(count)


def produce(queue: sync.Queue[Any], start: int, count: int) -> None:
    for number in range(start, start + count):
        queue.put_sync(number)


async def produce_async(queue: sync.Queue[Any], start: int, count: int) -> None:
    for number in range(start, start + count):
        await queue.put(number)


def consume(queue: sync.Queue[Any]) -> list[Any]:
    return list(queue)


async def consume_async(queue: sync.Queue[Any]) -> list[Any]:
    return [item async for item in queue]


def consume_to_file(queue: sync.Queue[int], path: str) -> None:
    for item in queue:
        append_line(path, item)


def get_and_die(queue: sync.Queue[Any], how: str, ready: str) -> None:
    """Be given an item, and die before anybody has got it."""
    queue._tell = functools.partial(_die_when_told, ready)  # type: ignore[method-assign]
    if how == "sync":
        queue.get_sync()
    else:
        anyio.run(queue.get)


def _die_when_told(ready: str, *_: Any) -> None:
    announce(ready)
    wait_for_ever()


class KillsWhoeverUnpickles:
    """An item that is the end of the process that gets it."""

    def __init__(self, padding: int) -> None:
        self.padding = bytes(padding)

    def __reduce__(self) -> tuple[Any, ...]:
        return _kill_this_process, (self.padding,)


def _kill_this_process(padding: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class HeldUp:
    """A large item whose unpickling, in a thread then, waits until it is let go."""

    begun = threading.Event()
    let_go = threading.Event()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle_when_let_go, (bytes(100_000),)


def _unpickle_when_let_go(padding: bytes) -> int:
    HeldUp.begun.set()
    assert HeldUp.let_go.wait(TIMEOUT)
    return len(padding)


async def cancel_natively_while_unpickling(
    queue: sync.Queue[Any], meanwhile: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Get a :class:`HeldUp`, and be cancelled by asyncio's own means meanwhile.

    :param meanwhile: what is awaited before the cancellation
    """
    task = asyncio.create_task(queue.get())
    with anyio.fail_after(TIMEOUT):
        while not HeldUp.begun.is_set():
            await anyio.sleep(0.001)
    if meanwhile is not None:
        await meanwhile()
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return
    finally:
        HeldUp.let_go.set()
    raise AssertionError("the task was not cancelled")


def cancel_natively_in_a_loop(queue: sync.Queue[Any]) -> None:
    asyncio.run(cancel_natively_while_unpickling(queue))


def echo_queue(requests: sync.Queue[Any], replies: sync.Queue[Any]) -> None:
    for item in requests:
        replies.put_sync(item)


async def echo_queue_async(requests: sync.Queue[Any], replies: sync.Queue[Any]) -> None:
    async for item in requests:
        await replies.put(item)


def errors_of(obj: Any, *names: str) -> list[str]:
    """The names of the errors that methods raise."""
    found = []
    for name in names:
        try:
            getattr(obj, name)()
        except Exception as error:
            found.append(type(error).__name__)
        else:
            found.append("")
    return found


def acquire_twice(obj: Any) -> str:
    with obj:
        try:
            obj.acquire_sync()
        except RuntimeError as error:
            return str(error)
    return ""


async def release_in_another_task(obj: Any) -> list[str]:
    """Acquire in one task; release in another, and in a thread."""
    found = []

    async def release() -> None:
        try:
            obj.release()
        except RuntimeError as error:
            found.append(str(error))

    async with obj:
        async with anyio.create_task_group() as group:
            group.start_soon(release)
        try:
            await anyio.to_thread.run_sync(obj.release)
        except RuntimeError as error:
            found.append(str(error))
    return found


def is_same(one: Any, other: Any) -> bool:
    return one is other


def send_back(value: Any) -> Any:
    return value


def pass_on(start_method: str, func: Any, *args: Any) -> Any:
    """Run something in a grandchild."""
    return anyio.run(functools.partial(pass_on_async, start_method, func, *args))


async def pass_on_async(start_method: str, func: Any, *args: Any) -> Any:
    return await creche.run_in_process(func, *args, start_method=start_method)


def own_and_lend(start_method: str, own_thread: bool) -> list[Any]:
    """Make objects here, and use them in a grandchild."""
    _driver.use_own_thread(own_thread)
    lock, queue = sync.Lock(), sync.Queue[Any]()
    with lock:
        waiting = threading.Thread(target=queue.put_sync, args=("first",))
        waiting.start()
        waiting.join()
    pass_on(start_method, with_put, lock, queue, own_thread)
    with lock:
        return [queue.get_sync(), queue.get_sync()]


def with_put(lock: sync.Lock, queue: sync.Queue[Any], own_thread: bool) -> None:
    _driver.use_own_thread(own_thread)
    with lock:
        queue.put_sync("second")
    names = [thread.name for thread in threading.enumerate()]
    assert ("creche-hub" in names) == own_thread, names


_given: list[Any] = []


def initialize(*objects: Any) -> None:
    _given[:] = objects


def put_given(item: Any) -> int:
    lock, queue = _given
    with lock:
        queue.put_sync(item)
    return os.getpid()


def with_limiter(
    limiter: sync.CapacityLimiter, meeting: sync.Barrier, path: str, seconds: float, _item: int
) -> None:
    """Note down when this is allowed in, and leaves; it does not leave before another is there."""
    with limiter:
        append_line(path, "+")
        meeting.wait_sync(TIMEOUT)
        time.sleep(seconds)  # in which too many would come
        append_line(path, "-")


def use_in_threads(lock: sync.Lock, path: str, threads: int, times: int) -> None:
    started = [threading.Thread(target=count_up, args=(lock, path, times)) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def use_in_loops(lock: sync.Lock, path: str, backend: str, loops: int, times: int) -> None:
    started = [
        threading.Thread(
            target=functools.partial(anyio.run, count_up_async, lock, path, times, backend=backend)
        )
        for _ in range(loops)
    ]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


async def wait_cancelled(obj: Any, name: str, *args: Any) -> None:
    """Wait for what does not come, and give up."""
    for _ in range(20):
        with anyio.move_on_after(0.001):
            await getattr(obj, name)(*args)
            raise AssertionError("it came")


def wait_times_out(obj: Any, name: str, *args: Any) -> None:
    for _ in range(20):
        try:
            getattr(obj, name)(*args, timeout=0.001)
        except TimeoutError:
            continue
        raise AssertionError("it came")


def poll_until_set(event: sync.Event, ready: str) -> bool:
    """Work until an event is set, as loops do that are to be stopped."""
    first = event.is_set()
    announce(ready)
    while not event.is_set():
        time.sleep(0.001)
    return first


async def poll_until_set_async(event: sync.Event, ready: str) -> bool:
    first = event.is_set()
    announce(ready)
    while not event.is_set():
        await anyio.sleep(0.001)
    return first


def set_and_exit(event: sync.Event) -> None:
    event.set()
    os._exit(3)


def forked_use(lock: sync.Lock, queue: sync.Queue[Any]) -> None:
    """Use what this process has a connection for in a fork of it, too."""
    with lock:
        queue.put_sync("parent")
        pid = os.fork()
        if not pid:
            try:
                queue.put_sync("fork")
                try:
                    lock.release()
                except RuntimeError:
                    queue.put_sync("does not hold it")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)


class Inherits(multiprocessing.Process):
    """Under ``fork``, it uses what it has inherited in memory."""

    def __init__(self, lock: sync.Lock, queue: sync.Queue[Any]) -> None:
        super().__init__()
        self.lock = lock
        self.queue = queue

    def run(self) -> None:
        with self.lock:
            self.queue.put_sync(os.getpid())


def cycle(queue: sync.Queue[Any], times: int) -> dict[str, int]:
    """Use other objects again and again; return what this process has more of afterwards."""
    count_of: dict[str, int] = {}
    for number in range(times):
        lock, event = queue.get_sync()
        with lock:
            event.set()
        del lock, event
        if number == times // 10:
            count_of = _count()
    after = _count()
    return {name: after[name] - count_of[name] for name in after}


def _count() -> dict[str, int]:
    gc.collect()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "handles": len(_shared._handles),
        "requests": sum(len(link._pending) for link in _link._links.values()),
    }


# --- owners that end ------------------------------------------------------------------------------


def own(*extra: Any) -> None:
    """Make one of each, give them to the parent, and keep them until the end."""
    limiter = sync.CapacityLimiter(1)
    everything = {
        "lock": sync.Lock(),
        "semaphore": sync.Semaphore(0),
        "limiter": limiter,
        "event": sync.Event(),
        "barrier": sync.Barrier(2),
        "queue": sync.Queue[Any](1),
    }
    with limiter:  # before the parent can
        creche.from_process.started(everything)
        wait_for_ever()


def poll_until_broken(event: sync.Event, ready: str) -> str:
    """Work until there is nobody any more who could set the event."""
    try:
        event.is_set()
        announce(ready)
        while not event.is_set():
            time.sleep(0.001)
    except anyio.BrokenResourceError:
        return "broken"
    return "set"


def start_and_forget() -> None:
    creche.from_process.started(sync.Event())
    wait_for_ever()


def acquire_and_stay(
    semaphore: sync.Semaphore, times: int, done: sync.Event, over: sync.Event
) -> None:
    for _ in range(times):
        semaphore.acquire_sync(TIMEOUT)
    semaphore.statistics_sync(TIMEOUT)
    done.set()
    over.wait_sync(TIMEOUT)


def queue_at(ref: HubRef) -> sync.Queue[Any]:
    """A queue of another process, or of whoever listens there."""
    queue = _shared._find(sync.Queue, ref, 1)
    assert isinstance(queue, sync.Queue)
    return queue


def poll_and_forget(pickled: bytes, times: int) -> None:
    for _ in range(times):
        assert not pickle.loads(pickled).is_set()
        gc.collect()
    while pickle.loads(pickled).statistics_sync(TIMEOUT).tasks_waiting:
        time.sleep(0.001)


async def hammer(lock: sync.Lock, queue: sync.Queue[int], seed: int, path: str) -> None:
    """Acquire and get, and give up in the middle of it, again and again."""
    chance = random.Random(seed)
    for _ in range(60):
        with anyio.move_on_after(chance.choice([0, 0.0001, 0.0005, 0.002])):
            async with lock:
                await anyio.sleep(chance.choice([0, 0.0005]))
        with anyio.move_on_after(chance.choice([0, 0.0001, 0.0005, 0.002])):
            item = await queue.get()
            append_line(path, item)


def hammer_sync(lock: sync.Lock, queue: sync.Queue[int], seed: int, path: str) -> None:
    chance = random.Random(seed)
    for _ in range(60):
        with contextlib.suppress(TimeoutError):
            lock.acquire_sync(chance.choice([0, 0.0001, 0.0005, 0.002]))
            lock.release()
        with contextlib.suppress(TimeoutError):
            append_line(path, queue.get_sync(chance.choice([0, 0.0001, 0.0005, 0.002])))


def get_many(queue: sync.Queue[Any], ready: str, number: int) -> None:
    """Ask for many items, from as many threads, and look at none."""
    queue._tell = lambda *_args: wait_for_ever()  # type: ignore[method-assign]
    for _ in range(number):
        threading.Thread(target=queue.get_sync, daemon=True).start()
    announce(ready)
    wait_for_ever()


def put_large(queue: sync.Queue[Any], ready: str, size: int) -> None:
    announce(ready)
    while True:
        queue.put_sync(bytes(size))


def clean_up(obj: Any, name: str, ready: str) -> None:
    """Wait, and say so when that is interrupted."""
    try:
        announce(ready)
        getattr(obj, name)()
    finally:
        announce(ready, "cleaned up")


def clean_up_with(lock: sync.Lock, ready: str) -> None:
    """Be stopped while holding a lock, and use it to clean up."""
    with lock:
        try:
            announce(ready)
            wait_for_ever()
        finally:
            time.sleep(0.01)


def use_for_ever(lock: sync.Lock, queue: sync.Queue[bytes]) -> None:
    while True:
        with lock:
            queue.put_sync(bytes(random.choice([1, 1000, 100_000])))
            queue.get_sync()


async def use_for_ever_async(lock: sync.Lock, queue: sync.Queue[bytes]) -> None:
    while True:
        async with lock:
            await queue.put(bytes(random.choice([1, 1000, 100_000])))
            await queue.get()


def use_after_a_stop_while(
    op: Op, tokens: sync.Lock | sync.Semaphore | sync.CapacityLimiter
) -> bool:
    """Be asked to stop just when ``op`` is to be told; return whether all is in order then."""
    pack_request = _link.pack_request

    def pack_and_strike(asked: Op, *args: Any) -> Any:
        if asked is op:
            _link.pack_request = pack_request
            os.kill(os.getpid(), signal.SIGTERM)
        return pack_request(asked, *args)

    _link.pack_request = pack_and_strike
    try:
        with tokens:
            pass
    except creche.StopRequested:
        with tokens:
            pass
        return True
    return False
