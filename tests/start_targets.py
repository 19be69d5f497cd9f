"""What the tests of creche's own start method run in children, and how they hear of it.

As in :mod:`support`, nothing in here depends on pytest: children import it.
"""

from __future__ import annotations

import hashlib
import importlib
import locale
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from multiprocessing import shared_memory
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from support import TIMEOUT, announce, append_line, open_descriptors, wait_for_gate

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


def server_pid() -> int:
    """Wait until there is one server: another may have been retired, and be about to end."""
    deadline = time.monotonic() + TIMEOUT
    while len(servers := creche.fork_server_statistics()) != 1:
        assert time.monotonic() < deadline, servers
        time.sleep(0.001)
    return servers[0].pid


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


def hold_and_exit(ready: str, gate: str, code: int) -> None:
    wait_for_gate(ready, gate)
    os._exit(code)


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


# --- what a child finds around it -----------------------------------------------------------------


class OwnWarning(UserWarning):
    """A category that children have to import before they can be told of it."""


# Without what readline sets behind Python's back.
_PRINT_ENVIRONMENT = """
import os
print(sorted(item for item in os.environb.items() if item[0] not in (b"LINES", b"COLUMNS")))
"""


def surroundings() -> dict[str, Any]:
    """Everything of the interpreter's state that a child has in common with its parent."""
    from multiprocessing import process

    original: str = process.ORIGINAL_DIR  # type: ignore[attr-defined]
    return {
        "environment": dict(os.environb),
        "of programs": subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PRINT_ENVIRONMENT],
            stdout=subprocess.PIPE,
            check=True,
        ).stdout,
        "directory": os.getcwd(),
        "original directory": original,
        "path": [entry or original for entry in sys.path],
        "arguments": sys.argv,
        "locale": locale.setlocale(locale.LC_ALL),
        "zone": (time.tzname, time.timezone, time.localtime(0).tm_hour),
        "limit": resource.getrlimit(resource.RLIMIT_NOFILE),
    }


def reaction_to_warnings() -> dict[str, str]:
    """What comes of warnings of several categories: an exception, a line on stderr, nothing."""
    reactions = {}
    for category in (OwnWarning, RuntimeWarning, ImportWarning):
        shown: list[Any] = []
        original = warnings.showwarning
        warnings.showwarning = lambda *args, shown=shown, **_: shown.append(args)  # type: ignore[misc]
        try:
            warnings.warn(f"of {category.__name__}", category, stacklevel=1)
        except category:
            reactions[category.__name__] = "raised"
        else:
            reactions[category.__name__] = "shown" if shown else "ignored"
        finally:
            warnings.showwarning = original
    return reactions


def signals() -> dict[str, Any]:
    """How this process reacts to signals, as Python and as the kernel know it."""
    status = dict(
        line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if line
    )
    return {
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "handlers": {
            number.name: getattr(handler, "__name__", handler)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)
            for handler in [signal.getsignal(number)]
        },
        "kernel": {key: status[key] for key in ("SigBlk", "SigIgn", "SigCgt")},
        "wakeup": signal.set_wakeup_fd(-1),
    }


def links() -> dict[int, str]:
    """What the open descriptors refer to, but for libffi's own file, which newer ones keep open."""
    found = {
        descriptor: os.readlink(f"/proc/self/fd/{descriptor}")
        for descriptor in sorted(open_descriptors())
    }
    return {number: link for number, link in found.items() if "/libffi." not in link}


def links_and_sentinel() -> tuple[dict[int, str], str]:
    parent = multiprocessing.parent_process()
    assert parent is not None
    found = links()
    return found, found[parent.sentinel]


def groups() -> tuple[int, int, int, int]:
    return os.getpid(), os.getpgrp(), os.getsid(0), os.getppid()


def random_numbers() -> list[Any]:
    name = tempfile.mktemp()
    return [random.random(), random.SystemRandom().random(), str(uuid.uuid4()), name]


def threads() -> tuple[list[str], int]:
    return [thread.name for thread in threading.enumerate()], len(os.listdir("/proc/self/task"))


def read_stdin() -> str:
    return sys.stdin.read()


def received(connections: list[Connection]) -> list[Any]:
    return [connection.recv() for connection in connections]


def received_and_length(connections: list[Connection], data: bytes) -> tuple[list[Any], int]:
    return received(connections), len(data)


def lengths(*names: str) -> tuple[int, list[int]]:
    return sum(map(len, sys.argv)), [len(os.environ[name]) for name in names]


def flags() -> tuple[object, ...]:
    return tuple(sys.flags), sys.flags.dev_mode, sorted(sys._xoptions.items())


# --- modules --------------------------------------------------------------------------------------


def has_modules(*names: str) -> list[bool]:
    """Whether modules are there before this function runs."""
    return [name in sys.modules for name in names]


def value_from(module: str) -> Any:
    return importlib.import_module(module).VALUE


def multiply_matrices(size: int) -> float:
    import numpy as np

    matrix = np.ones((size, size))
    return float((matrix @ matrix)[0, 0])


def preload_in_child(module: str) -> list[bool]:
    creche.preload(module)
    context = creche.get_context()
    return [*value_of(context, has_modules, module), *has_modules(module)]
