"""What the tests of clusters run, on this side and on the other."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import anyio
import sniffio

from creche import from_process


def double(number: int) -> int:
    return 2 * number


async def async_double(number: int) -> tuple[int, str]:
    await anyio.sleep(0)
    return 2 * number, sniffio.current_async_library()


def fail(message: str) -> None:
    raise LookupError(message)


def fail_at(bad: int, number: int) -> int:
    if number == bad:
        raise LookupError(str(number))
    return number


def exit_at(bad: int, number: int) -> int:
    if number == bad:
        os._exit(7)
    return number


def write_pid(path: str) -> None:
    """Tell the test that this runs, and where."""
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")


def sleep(path: str, seconds: float = 600.0) -> None:
    write_pid(path)
    time.sleep(seconds)


def wait_for(path: str, other: str) -> str:
    """Wait for a second file, after having told that by the first; and tell that it is over."""
    write_pid(path)
    while not Path(other).exists():
        time.sleep(0.01)
    Path(f"{path}.over").touch()
    return "seen"


def sleep_in_first_run(path: str) -> int:
    write_pid(path)
    runs = len(Path(path).read_text().split())
    if runs == 1:
        time.sleep(600)
    return runs


def sleep_and_clean_up(path: str) -> None:
    try:
        sleep(path)
    finally:
        Path(f"{path}.clean").touch()


def report_up_to(number: int) -> None:
    for done in range(1, number + 1):
        from_process.report(done, number)


def log(message: str) -> None:
    logging.getLogger("far").warning(message)


async def add_in_caller(number: int) -> tuple[int, int]:
    await anyio.sleep(0)
    return number + 1, os.getpid()


def fail_in_caller() -> None:
    raise LookupError("in the caller")


def ask_caller(number: int) -> tuple[int, int]:
    return from_process.run(add_in_caller, number)


async def async_ask_caller(number: int) -> tuple[int, int]:
    return await from_process.arun(add_in_caller, number)


def ask_caller_to_fail() -> str:
    try:
        from_process.run_sync(fail_in_caller)
    except LookupError as error:
        return str(error)
    return ""


_state: list[int] = []


def initialize(number: int) -> None:
    _state.append(number)


def get_state() -> list[int]:
    return _state


def summed(data: bytes, number: int) -> int:
    return len(data) + number
