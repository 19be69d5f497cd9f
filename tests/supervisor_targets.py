"""What the tests of the supervisor run in children."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import anyio
from support import announce, append_line, hold_the_gil, wait_for_ever

from creche import (
    ChannelReceiveStream,
    ChannelSendStream,
    Supervisor,
    from_process,
    open_supervisor,
)


def serve(value: object = None) -> None:
    from_process.started(value)
    wait_for_ever()


async def serve_async(value: object = None) -> None:
    from_process.started(value)
    await anyio.sleep_forever()


def serve_and_note(path: str, name: str) -> None:
    """Leave a line in a file when it starts, and when it is stopped."""
    append_line(path, f"+{name}")
    try:
        from_process.started()
        wait_for_ever()
    finally:
        append_line(path, f"-{name}")


def serve_without_saying(path: str) -> None:
    announce(path)
    wait_for_ever()


def never_ready(path: str | None = None) -> None:
    if path is not None:
        announce(path)
    wait_for_ever()


def serve_stubbornly() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from_process.started()
    wait_for_ever()


def clean_up_slowly(gate: str) -> None:
    """When it is stopped, wait for somebody to open the gate, a FIFO."""
    try:
        from_process.started()
        wait_for_ever()
    finally:
        with open(gate) as file:
            file.read()


def end_in_order(path: str, how: str) -> Any:
    """Be ready, and end: each time that happens is a line in a file."""
    append_line(path, how)
    from_process.started()
    if how == "returns":
        return "a value"
    if how == "exits":
        sys.exit(0)
    if how == "exits with 3":
        sys.exit(3)
    if how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise LookupError(how)


def fail_at_start(path: str | None = None) -> None:
    if path is not None:
        append_line(path, "tried")
    raise LookupError("cannot start")


def return_at_once() -> None:
    """End without saying that it is ready."""


def start_once(path: str) -> None:
    """Be ready the first time; fail at start from then on."""
    append_line(path, "tried")
    if len(Path(path).read_text().splitlines()) > 1:
        raise LookupError("only once")
    serve()


def start_from_the_second_time_on(path: str) -> None:
    """Be ready the first time; fail at start the second time; be ready from then on."""
    append_line(path, "tried")
    if len(Path(path).read_text().splitlines()) == 2:
        raise LookupError("not the second time")
    serve()


def start_while_exists(path: str) -> None:
    """Be ready as long as there is a file; else wait for ever."""
    if Path(path).exists():
        from_process.started()
    wait_for_ever()


def start_with_lambda() -> None:
    from_process.started(lambda: None)
    wait_for_ever()


def beat(times: int, then: str) -> None:
    """Give some signs of life, and then none any more."""
    from_process.started()
    for number in range(times):
        from_process.report(number)
        time.sleep(0.02)
    if then == "holds the GIL":
        hold_the_gil()
    wait_for_ever()


def beat_for_ever() -> None:
    from_process.started()
    number = 0
    while True:
        from_process.report(number)
        number += 1
        time.sleep(0.02)


def say_what_arrives(receive: ChannelReceiveStream[Any], send: ChannelSendStream[Any]) -> None:
    from_process.started()
    for item in receive:
        send.send_sync((os.getpid(), item))


async def supervise(path: str, number: int) -> None:
    """Have a supervisor, and children, in a process that is supervised itself."""
    async with open_supervisor() as supervisor:
        for _ in range(number):
            child = await supervisor.start(serve)
            announce(path, child.pid)
        from_process.started()
        await supervisor.wait()


async def set_up_two(supervisor: Supervisor) -> None:
    await supervisor.start(serve, name="left")
    await supervisor.start(serve, name="right")
