"""What the tests of output and of carried context run in children."""

from __future__ import annotations

import contextvars
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import anyio
from support import announce, wait_for_ever

from creche import StopRequested, from_process

# --- output ---------------------------------------------------------------------------------------


def write(out: str, err: str = "", value: Any = None) -> Any:
    sys.stdout.write(out)
    sys.stderr.write(err)
    return value


async def write_async(out: str) -> str:
    print(out)
    return out


def write_bytes(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def write_by_all_ways() -> None:
    print("python")
    os.write(1, b"system call\n")
    ctypes.CDLL(None).puts(b"c library")
    ctypes.CDLL(None).fflush(None)
    subprocess.run(["echo", "program"], check=True)
    os.system("echo shell >&2")
    sys.__stdout__.write("original\n")  # type: ignore[union-attr]


def write_alternately(count: int) -> None:
    for number in range(count):
        print(number, file=sys.stderr if number % 2 else sys.stdout)


def count_up(count: int, padding: int = 0) -> int:
    for number in range(count):
        print(f"{number:08d}{'.' * padding}")
    return count


def count_for_ever() -> None:
    number = 0
    while True:
        print(number)
        number += 1


def count_until_stopped(path: str) -> None:
    """Fills what there is to be filled, and says whether it could clean up."""
    try:
        count_for_ever()
    finally:
        print("stopped")
        announce(path, "cleaned up")


def write_and_kill() -> None:
    print("last words")
    sys.stdout.write("cut off")
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def write_and_exit_hard() -> None:
    print("last words")
    os._exit(3)


def write_and_raise() -> None:
    print("last words")
    raise LookupError("after the last words")


def write_at_exit(count: int) -> str:
    """Leave the writing to a thread that the end of the process waits for."""
    threading.Thread(target=count_up, args=(count,)).start()
    return "done"


def leave_writer_behind(endless: bool) -> int:
    """Leave a descendant that holds the pipe, and is out of the reach of the stop policy."""
    command = ["sh", "-c", "while :; do echo on and on; done"] if endless else ["sleep", "1000"]
    child = subprocess.Popen(command, start_new_session=True)
    print("left behind")
    return child.pid


def write_then_wait(path: str, line: str) -> None:
    print(line)
    announce(path)
    wait_for_ever()


def close_output(path: str) -> None:
    print("before")
    sys.stdout.flush()
    os.close(1)
    announce(path)
    wait_for_ever()


def write_started(line: str) -> None:
    print(line)
    from_process.started(line)


def swallow_broken_pipe() -> str:
    try:
        count_up(100_000)
    except OSError as error:
        return repr(error)
    return "wrote it all"


def print_item(item: int) -> int:
    print(f"item {item}")
    return item


def print_and_log(count: int) -> None:
    for number in range(count):
        print(f"printed {number}")
        logging.getLogger("child").warning("logged %d", number)


def describe_output() -> tuple[Any, ...]:
    out = sys.stdout
    return out.fileno(), out.encoding, out.errors, out.line_buffering


def descriptors() -> set[str]:
    """What the descriptors of this process refer to."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    return found


# --- context --------------------------------------------------------------------------------------

request_id: contextvars.ContextVar[Any] = contextvars.ContextVar("request_id")
user: contextvars.ContextVar[Any] = contextvars.ContextVar("user", default="nobody")
other_name = also_known_as = contextvars.ContextVar("unlike_its_attribute", default=0)


class Holder:
    """Not a module."""

    hidden: contextvars.ContextVar[int] = contextvars.ContextVar("hidden")


def context(*_: object) -> tuple[Any, Any]:
    return request_id.get(None), user.get()


async def context_async(*_: object) -> tuple[Any, Any]:
    async def in_task(seen: list[Any]) -> None:
        seen.append(context())

    before = context()
    await anyio.sleep(0)
    seen = [before, context()]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_task, seen)
    assert seen == [before] * 3
    return before


def context_of_coroutine(*args: object) -> Any:
    """A plain function that gives a coroutine."""
    return context_async(*args)


class ContextCallable:
    def __call__(self, *_: object) -> tuple[Any, Any]:
        return context()


class ContextCallableAsync:
    async def __call__(self, *_: object) -> tuple[Any, Any]:
        return await context_async()


def set_request_id(value: Any) -> tuple[Any, Any]:
    before = context()
    request_id.set(value)
    return before


async def set_request_id_async(value: Any) -> tuple[Any, Any]:
    return set_request_id(value)


def wait_in_context(path: str) -> None:
    try:
        announce(path, request_id.get())
        wait_for_ever()
    except StopRequested:
        announce(path, f"stopped {request_id.get()}")
        raise


async def wait_in_context_async(path: str) -> None:
    try:
        announce(path, request_id.get())
        await anyio.sleep_forever()
    finally:
        announce(path, f"stopped {request_id.get()}")


def fail_in_context() -> None:
    raise LookupError(request_id.get())


def generate(count: int) -> Iterator[int]:
    yield from range(count)


class RefusesUnpickling:
    def __reduce__(self) -> Any:
        return int, ("not a number",)


def trace_ids() -> tuple[int, int]:
    from opentelemetry import trace

    span = trace.get_current_span().get_span_context()
    return span.trace_id, span.span_id


async def trace_ids_async() -> tuple[int, int]:
    await anyio.sleep(0)
    return trace_ids()


def child_span(*_: object) -> tuple[int, int]:
    """Make a span in this process; return its trace, and its parent."""
    from opentelemetry.sdk.trace import TracerProvider

    with TracerProvider().get_tracer("child").start_as_current_span("work") as span:
        parent: Any = span.parent  # type: ignore[attr-defined]
        return span.get_span_context().trace_id, 0 if parent is None else parent.span_id


def baggage() -> Any:
    from opentelemetry import baggage

    return baggage.get_baggage("user")
