"""What the tests of ordinary behaviour run in children."""

from __future__ import annotations

import enum
import functools
import math
import multiprocessing
import os
import socket
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import anyio
import numpy.typing as npt
from support import RefusesUnpickling, announce

import creche
from creche import _ctrl_c, _loops, from_process
from creche._loops import current_loop


class Colour(enum.IntEnum):
    RED = 1


class Count(int):
    pass


def add(left: int, right: int = 0, *, extra: int = 0) -> int:
    return left + right + extra


async def add_async(left: int, right: int = 0, *, extra: int = 0) -> int:
    await anyio.sleep(0)
    return left + right + extra


class Adder:
    """Adds, as a bound method, a class method, a callable object and an async callable object."""

    def __init__(self, left: int) -> None:
        self.left = left

    def add(self, right: int) -> int:
        return self.left + right

    @classmethod
    def add_one(cls, right: int) -> int:
        return 1 + right

    def __call__(self, right: int) -> int:
        return self.left + right

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adder) and other.left == self.left

    __hash__ = None  # type: ignore[assignment]


def end_in_thread(path: str) -> bool:
    """Leave a thread behind, which the end of the process waits for."""

    def announce_later() -> None:
        time.sleep(0.05)
        announce(path, "thread ended")

    thread = threading.Thread(target=announce_later)
    thread.start()
    return thread.daemon


class AsyncAdder(Adder):
    async def __call__(self, right: int) -> int:  # type: ignore[override]
        await anyio.sleep(0)
        return self.left + right


def plain_wrapper_of_async(left: int, right: int) -> Any:
    return add_async(left, right)


def fail(message: str) -> None:
    raise LookupError(message)


def fail_to_clean_up(ready: str) -> None:
    try:
        wait_for_ever(ready)
    finally:
        raise LookupError("clean-up")


async def fail_async(message: str) -> None:
    await anyio.sleep(0)
    raise LookupError(message)


def describe_self() -> dict[str, Any]:
    current = multiprocessing.current_process()
    parent = multiprocessing.parent_process()
    assert parent is not None
    return {
        "name": current.name,
        "pid": os.getpid(),
        "daemon": current.daemon,
        "authkey": bytes(current.authkey),
        "parent": parent.pid,
        "parent_alive": parent.is_alive(),
        "group": os.getpgrp(),
    }


async def backend_in_use() -> str:
    import asyncio

    is_asyncio = anyio.get_cancelled_exc_class() is asyncio.CancelledError
    return "asyncio" if is_asyncio else "trio"


def wait_for_ever(ready: str) -> None:
    announce(ready)
    while True:
        time.sleep(60)


async def wait_for_ever_async(ready: str) -> None:
    announce(ready)
    await anyio.sleep_forever()


def wait_for_file(ready: str, path: str) -> str:
    """Run until a file exists."""
    announce(ready)
    while not os.path.exists(path):
        time.sleep(0.005)
    return "seen"


def echo(value: Any) -> Any:
    return value


def double_array(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array *= 2  # what arrives is writable
    return array


def exit_with(code: int) -> None:
    raise SystemExit(code)


def send_through(connection: Connection, value: object) -> None:
    connection.send(value)
    connection.close()


def put(queue: Any, value: object) -> None:
    queue.put(value)


def with_lock(lock: Any, ready: str) -> bool:
    announce(ready)
    with lock:
        return True


def send_on_socket(sock: socket.socket) -> None:
    sock.sendall(b"hello")


def start_server(port: int) -> str:
    from_process.started(port)
    return "served"


async def start_server_async(port: int) -> None:
    from_process.started(port)
    await anyio.sleep_forever()


def start_twice() -> None:
    from_process.started(1)
    from_process.started(2)


def start_with_lambda() -> None:
    from_process.started(lambda: None)


def start_nothing() -> None:
    from_process.started()


@creche.in_process(timeout=60)
def decorated(left: int, *, right: int = 1) -> int:
    """Add in a process."""
    return left + right


@creche.in_process()
async def decorated_async(left: int) -> tuple[int, int]:
    await anyio.sleep(0)
    return left, os.getpid()


class OwnRun(multiprocessing.Process):
    """A subclass of the application's own."""

    def __init__(self, path: str, code: int = 0) -> None:
        super().__init__(name="own")
        self.path = path
        self.code = code

    def run(self) -> None:
        announce(self.path, self.name)
        if self.code < 0:
            raise LookupError("from run")
        if self.code:
            raise SystemExit(self.code)


add_three = functools.partial(add, 3, extra=100)
add_three_async = functools.partial(add_async, 3, extra=100)


# --- in the workers of a pool ---------------------------------------------------------------------

_worker_state: dict[str, Any] = {"initialized": 0}


def initialize(value: Any) -> None:
    _worker_state["value"] = value
    _worker_state["initialized"] += 1


async def initialize_async(value: Any) -> None:
    await is_loop_of_first_call()
    initialize(value)


def answer_for_whole_chunks() -> None:
    """Have this worker answer when a chunk is done, however long that takes it."""
    from creche._pool import _chunk_run

    _chunk_run._ANSWER_SECONDS = math.inf


def recall() -> tuple[Any, int]:
    """What the initializer was given, and how often it has run."""
    return _worker_state["value"], _worker_state["initialized"]


async def announce_async(path: str, text: object = None) -> None:
    await anyio.sleep(0)
    announce(path, text)


async def is_loop_of_first_call() -> bool:
    loop = current_loop()
    await anyio.sleep(0)
    return _worker_state.setdefault("loop", loop) is loop


def wait_for_file_if(condition: bool, ready: str, path: str) -> int:
    """Return at once, or run until a file exists."""
    if condition:
        wait_for_file(ready, path)
    return os.getpid()


async def wait_for_file_async(ready: str, path: str) -> str:
    announce(ready)
    while not os.path.exists(path):
        await anyio.sleep(0.005)
    return "seen"


def coroutine_if_odd(number: int) -> Any:
    return add_async(number, 100) if number % 2 else number + 100


def give_all_kinds(number: int) -> Any:
    """Give a value, a coroutine, an error, the coroutine of one, or what cannot be pickled."""
    kind = number % 7
    if kind == 1:
        return add_async(number, 100)
    if kind == 2:
        raise LookupError(number)
    if kind == 3:
        return threading.Lock()
    if kind == 4:
        return fail_async(str(number))
    return number + 100


def fail_if(bad: Any, value: Any) -> Any:
    if value == bad:
        raise LookupError(f"{value!r} is bad")
    return value


def wait_if(number: int, ready: str, value: int) -> int:
    if value == number:
        wait_for_ever(ready)
    return value


def wait_for_file_if_item(number: int, ready: str, path: str, value: int) -> int:
    if value == number:
        wait_for_file(ready, path)
    return value


def stop_iteration_if(bad: int, value: int) -> int:
    if value == bad:
        raise StopIteration(value)
    return value


def lock_if(bad: int, value: int) -> Any:
    """Return what cannot be pickled."""
    return threading.Lock() if value == bad else value


def announce_and_refuse(path: str, bad: int, value: int) -> Any:
    """Return what cannot be unpickled in the parent."""
    announce(path, value)
    return RefusesUnpickling() if value == bad else value


class SlowToPickle:
    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        time.sleep(0.02)
        return int, (self.value,)


def become_slow(after: int, value: int) -> Any:
    if value < after:
        return value
    time.sleep(0.011)
    return SlowToPickle(value)


def pid_of_worker(_item: object) -> int:
    return os.getpid()


async def use_pool_in_worker(start_method: str) -> tuple[int, int]:
    async with creche.open_pool(1, start_method=start_method) as pool:
        return os.getpid(), await pool.run(os.getpid)


def use_pool_in_worker_sync(backend: str, start_method: str) -> tuple[int, int]:
    return anyio.run(use_pool_in_worker, start_method, backend=backend)


def describe_array(array: npt.NDArray[Any]) -> tuple[Any, ...]:
    return array.shape, str(array.dtype), bool(array.flags.writeable), float(array.sum())


def make_array(size: int) -> npt.NDArray[Any]:
    import numpy as np

    return np.arange(size)


class AnnouncesItsEnd:
    def __init__(self, path: str) -> None:
        self._path = path

    def __del__(self) -> None:
        announce(self._path, "begun")
        while True:
            time.sleep(0.001)


def wait_in_finalizer(path: str) -> None:
    """Be in a finalizer when the request to stop comes, which ends it."""
    try:
        AnnouncesItsEnd(path)
        while True:
            time.sleep(0.001)
    finally:
        announce(path, "unwound")


def codes_spared_by_ctrl_c() -> int:
    """How much of creche is known to be, in code that has no event loop, but asks for one."""
    _loops.runs_in_loop()
    return len(_ctrl_c._known)
