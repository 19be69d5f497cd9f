"""In the server: importing the main module and others once, for all children.

Threads do not survive a fork, and what they held stays locked, so a module that starts threads must
not be imported in the server. What it has done cannot be undone: the server says so and ends, and
the next one leaves that module to the children.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

assert sys.platform == "linux" or not TYPE_CHECKING

from ..._errors import reason_of
from .._main_module import MAIN, import_main_in_server

# Seconds. A thread that was joined is listed for a moment longer, on a busy machine for a long one.
_TIME_FOR_THREADS_TO_GO = 0.5


class ThreadsStarted(Exception):
    """A module has started threads, which are still there."""


def preload(module: str, main: dict[str, Any]) -> str | None:
    """Import ``module``.

    :param main: how to import the main module, which is named ``__main__``
    :return: what went wrong, if it could not be imported; its main module's failures are reported
        by the children
    :raises ThreadsStarted: if threads were started
    """
    failure = None
    if module == MAIN:
        import_main_in_server(main)
    else:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            failure = reason_of(error)
    if _has_threads() and _keeps_threads_over_fork():
        raise ThreadsStarted
    return failure


def import_in_child(modules: Iterable[str]) -> None:
    """Import what the server must not."""
    for module in modules:
        if module != MAIN:  # which has a way of its own, and is reported
            try:
                importlib.import_module(module)
            except (Exception, SystemExit) as error:
                warnings.warn(f"cannot import {module!r}: {error}", RuntimeWarning, stacklevel=2)


def _has_threads() -> bool:
    return len(os.listdir("/proc/self/task")) > 1


def _keeps_threads_over_fork() -> bool:
    """Whether threads are left after a fork.

    Some libraries, such as OpenBLAS, end theirs before every fork, by pthread_atfork(3), and start
    them again when they are needed: these are safe.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + _TIME_FOR_THREADS_TO_GO
    while _has_threads():
        if time.monotonic() > deadline:
            return True
        time.sleep(0.001)
    return False
