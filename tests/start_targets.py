"""What the tests of creche's own start method run in children, and how they hear of it.

As in :mod:`support`, nothing in here depends on pytest: children import it.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing import shared_memory
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from support import TIMEOUT, announce, append_line, wait_for_gate

import creche

# --- values of processes that have none -----------------------------------------------------------


def call_and_send(connection: Connection, func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """In a child of plain multiprocessing: give the value of a function back."""
    value = func(*args)
    with connection:
        connection.send(value)


def value_of(context: Any, func: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a process of plain multiprocessing."""
    receiver, sender = context.Pipe(duplex=False)
    with receiver:
        with sender:
            process = context.Process(target=call_and_send, args=(sender, func, args))
            process.start()
        if not receiver.poll(TIMEOUT):
            process.kill()
            raise TimeoutError("the child does not answer")
        try:
            value = receiver.recv()
        except EOFError:
            value = EOFError
    process.join(TIMEOUT)
    exitcode = process.exitcode
    process.close()
    assert value is not EOFError, f"ended without a value, with exit code {exitcode}"
    assert exitcode == 0, exitcode
    return value


def nothing() -> None:
    pass


def value_in_child_of_child(method: str, func: Callable[..., Any], *args: Any) -> Any:
    return value_of(multiprocessing.get_context(method), func, *args)


# --- what multiprocessing offers ------------------------------------------------------------------


def exit_with(code: Any) -> None:
    sys.exit(code)


def fail_deep_inside(text: str) -> None:
    def inner_function() -> None:
        raise LookupError(text)

    inner_function()


def increment_with(lock: Any, counter: Any, times: int) -> None:
    for _ in range(times):
        with lock:
            number = counter.value
            time.sleep(0)
            counter.value = number + 1


def increment_twice_with(lock: Any, counter: Any, times: int) -> None:
    for _ in range(times):
        with lock, lock:
            counter.value += 1


def enter(semaphore: Any, inside: Any, most: Any, times: int) -> None:
    """Note down how many are between acquire and release at once."""
    for _ in range(times):
        with semaphore:
            with inside.get_lock():
                inside.value += 1
                most.value = max(most.value, inside.value)
            time.sleep(0)
            with inside.get_lock():
                inside.value -= 1


def answer_event(asked: Any, answered: Any) -> None:
    if asked.wait(TIMEOUT):
        answered.set()


def take_turn(condition: Any, turn: Any, number: int, path: str) -> None:
    with condition:
        if condition.wait_for(lambda: turn.value == number, TIMEOUT):
            append_line(path, number)
            turn.value += 1
            condition.notify_all()


def pass_barrier(barrier: Any, path: str) -> None:
    append_line(path, "arrived")
    index = barrier.wait(TIMEOUT)
    append_line(path, f"passed with {len(Path(path).read_text().splitlines()) >= 3}")
    assert 0 <= index < 3


def put_all(queue: Any, items: Any) -> None:
    for item in items:
        queue.put(item)


def double_until_none(tasks: Any, results: Any) -> None:
    while (task := tasks.get()) is not None:
        results.put(2 * task)
        if hasattr(tasks, "task_done"):
            tasks.task_done()
    if hasattr(tasks, "task_done"):
        tasks.task_done()


def echo_over(connection: Connection) -> None:
    with connection:
        while (value := connection.recv()) is not None:
            connection.send(value)


def receive_connection_over(connection: Connection) -> None:
    """A connection that travels when the child runs already."""
    with connection:
        inner = connection.recv()
    with inner:
        inner.send(os.getpid())


def fill(array: Any, value: Any) -> None:
    with array.get_lock():
        for index in range(len(array)):
            array[index] = index + value.value


def write_to_shared_memory(name: str, data: bytes) -> None:
    memory = shared_memory.SharedMemory(name)
    memory.buf[: len(data)] = data
    memory.close()


def fill_managed(values: Any, items: Any, lock: Any) -> None:
    with lock:
        values["pid"] = os.getpid()
        items.append("from the child")


def identity(_item: object = None) -> int:
    return os.getpid()


def accept_one(listener: socket.socket) -> None:
    with listener:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"from the child")


def shout(sock: socket.socket) -> None:
    with sock:
        data = sock.recv(100)
        sock.sendall(data.upper())


def hold(ready: str, gate: str, *_: Any) -> None:
    wait_for_gate(ready, gate)


def describe_process() -> dict[str, Any]:
    current = multiprocessing.current_process()
    parent = multiprocessing.parent_process()
    assert parent is not None
    return {
        "name": current.name,
        "daemon": current.daemon,
        "authkey": bytes(current.authkey),
        "pid": current.pid,
        "own pid": os.getpid(),
        "parent's pid": parent.pid,
        "parent's name": parent.name,
        "parent is alive": parent.is_alive(),
        "siblings": multiprocessing.active_children(),
        "start method": multiprocessing.get_start_method(allow_none=True),
    }


_set_by_initializer: Any = None


def initialize(value: Any) -> None:
    global _set_by_initializer
    _set_by_initializer = value


def initialized(_item: object = None) -> Any:
    return _set_by_initializer


class SaysHello(creche.get_context().Process):  # type: ignore[name-defined,misc]
    """A process with a ``run`` and a state of its own."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(name="says-hello")
        self._path = path
        self._text = text

    def run(self) -> None:
        announce(self._path, f"{self.name} {self._text}")
        if self._text == "fail":
            raise LookupError("as it was told")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
