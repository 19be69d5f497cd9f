"""What the contenders run in their processes."""

from __future__ import annotations

import signal
import time


def noop() -> None:
    pass


async def noop_async() -> None:
    pass


def sleep_for_ever() -> None:
    time.sleep(3600)


def busy() -> None:
    while True:
        pass


def busy_and_deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        pass


def payload(size: int) -> bytes:
    return b"x" * size
