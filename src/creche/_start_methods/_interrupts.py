"""Keeping Ctrl-C from processes that have just been born."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

assert sys.platform != "win32" or not TYPE_CHECKING

from .._multiprocessing import resource_tracker


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Let what is started here be born with SIGINT blocked.

    A Ctrl-C goes to the whole foreground process group, which a child is in until it has made a
    group of its own; it would die of it with a traceback. The child unblocks the signal then. Other
    threads of this process get the signal as ever.
    """
    resource_tracker.ensure_running()  # starting it would unblock the signal
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
