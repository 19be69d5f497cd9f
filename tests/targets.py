"""What the tests of ordinary behaviour run in children."""

from __future__ import annotations

import functools
import multiprocessing
import os
import socket
import time
from multiprocessing.connection import Connection
from typing import Any

import anyio
import numpy.typing as npt
from support import announce

import creche
from creche import from_process


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


class AsyncAdder(Adder):
    async def __call__(self, right: int) -> int:  # type: ignore[override]
        await anyio.sleep(0)
        return self.left + right


def plain_wrapper_of_async(left: int, right: int) -> Any:
    return add_async(left, right)


def fail(message: str) -> None:
    raise LookupError(message)


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
