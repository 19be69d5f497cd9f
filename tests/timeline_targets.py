"""What the tests of the timeline and the monitor run in children."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

from support import announce, wait_for_ever

from creche import from_process


def double(number: int) -> int:
    return 2 * number


def fail(text: str) -> NoReturn:
    raise ValueError(text)


def crash() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def announce_and_wait(path: str) -> None:
    announce(path)
    wait_for_ever()


def serve(path: str) -> None:
    from_process.started("ready")
    announce_and_wait(path)
