"""What the contenders run in their processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def noop() -> None:
    pass


async def noop_async() -> None:
    pass


def sleep_for_ever() -> None:
    time.sleep(3600)


def serve() -> None:
    from creche import from_process  # which is there already where creche has started this

    from_process.started()
    while True:
        signal.pause()


# What a server of the peers says that is ready.
READY = b"ready\n"


def serve_and_tell(ready: Any) -> None:
    ready.send_bytes(READY)
    while True:
        signal.pause()


def busy() -> None:
    while True:
        pass


def busy_and_deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        pass


def payload(size: int) -> bytes:
    return b"x" * size


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def same(value: T) -> T:
    return value


async def call_in_coroutine(func: Callable[..., T], *args: Any) -> T:
    """For pools that take nothing but coroutine functions."""
    return func(*args)


def nap(seconds: float) -> None:
    """Sleep; not at all for 0 seconds."""
    if seconds:
        time.sleep(seconds)
