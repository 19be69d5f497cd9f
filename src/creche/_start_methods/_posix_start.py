"""Process types and starting on POSIX."""

from __future__ import annotations

import multiprocessing.context
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

assert sys.platform != "win32" or not TYPE_CHECKING

from ._fork_server import forget_fork_servers, kill_fork_servers, leave_fork_server
from ._posix_popen import (
    ForkPopen,
    ForkServerPopen,
    OwnedPopen,
    SpawnPopen,
    interrupts_blocked,
    own_popen,
)

__all__ = [
    "PROCESS_TYPES",
    "abort_start",
    "forget_fork_servers",
    "leave_fork_server",
    "own_started",
    "preload_in_server",
    "start",
]


class ForkProcess(multiprocessing.context.ForkProcess):
    imports_main_later = True


class SpawnProcess(multiprocessing.context.SpawnProcess):
    imports_main_later = True


class ForkServerProcess(multiprocessing.context.ForkServerProcess):
    imports_main_later = True
    server_modules: tuple[str, ...] = ()


PROCESS_TYPES: dict[str, Any] = {
    "fork": ForkProcess,
    "spawn": SpawnProcess,
    "forkserver": ForkServerProcess,
}

_POPEN_TYPES: dict[str, type[OwnedPopen]] = {
    "fork": ForkPopen,
    "spawn": SpawnPopen,
    "forkserver": ForkServerPopen,
}


def start(process: Any, method: str) -> OwnedPopen:
    """Start a process of any ``multiprocessing`` type as one that the watcher reaps. Blocks.

    :raises OSError: if the system has no process ids, descriptors or memory left
    """
    # On the instance: the process may be of the application's own subclass.
    process._Popen = _POPEN_TYPES[method]
    try:
        with interrupts_blocked():
            process.start()
    finally:
        del process._Popen
    return process._popen  # type: ignore[no-any-return]


def preload_in_server(process: BaseProcess, modules: Sequence[str]) -> None:
    """Have modules imported by the process that ``process`` will be a fork of, if there is one."""
    if isinstance(process, ForkServerProcess):
        process.server_modules = tuple(sorted(set(modules)))


def own_started(process: BaseProcess) -> OwnedPopen:
    """Take over a process that ``multiprocessing`` started."""
    return own_popen(process)


def abort_start(method: str) -> None:
    """Make a start that hangs in another thread fail, where that is possible."""
    if method == "forkserver":
        kill_fork_servers()
