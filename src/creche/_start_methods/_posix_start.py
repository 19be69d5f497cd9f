"""Process types and starting on POSIX."""

from __future__ import annotations

import contextlib
import multiprocessing.context
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

assert sys.platform != "win32" or not TYPE_CHECKING

from .._loops import Latch
from .._platform._parent_death import die_with_parent
from .._platform._posix import has_pidfds, isolate_child, reset_signals
from ._fork_server import (
    kill_fork_servers,
    leave_fork_server,
)
from ._interrupts import interrupts_blocked
from ._posix_popen import AdoptedPopen, ForkPopen, ForkServerPopen, OwnedPopen, SpawnPopen
from ._server_statistics import ForkServerStatistics


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

_ADOPTED_POPEN_TYPES: dict[str, type[OwnedPopen]] = {"forkserver": ForkServerPopen}

if sys.platform == "linux":
    from ._server._context import OwnedCrecheProcess
    from ._server._popen import ServedPopen
    from ._server._servers import kill_servers, running_servers
    from ._server._servers import retire_servers as retire_own_servers

    if has_pidfds():
        PROCESS_TYPES["creche"] = OwnedCrecheProcess
        _POPEN_TYPES["creche"] = _ADOPTED_POPEN_TYPES["creche"] = ServedPopen


def start(process: Any, method: str) -> OwnedPopen:
    """Start a process of any ``multiprocessing`` type as one that the watcher reaps. Blocks.

    :raises OSError: if the system has no process ids, descriptors or memory left
    """
    # On the instance: the process may be of the application's own subclass.
    process._Popen = _POPEN_TYPES[method]
    try:
        # The server's children are out of the reach of a Ctrl-C before they are children.
        with contextlib.nullcontext() if ties_children(method) else interrupts_blocked():
            process.start()
    finally:
        del process._Popen
    return process._popen  # type: ignore[no-any-return]


def preload_in_server(process: Any, modules: Sequence[str]) -> None:
    """Have modules imported by the process that ``process`` will be a fork of, if there is one."""
    if hasattr(process, "server_modules"):  # one that comes from a server
        process.server_modules = tuple(sorted(set(modules)))


def own_started(process: Any) -> OwnedPopen:
    """Make a process that ``multiprocessing`` has started one that only the watcher reaps."""
    popen: Any = process._popen
    popen.__class__ = _ADOPTED_POPEN_TYPES.get(popen.method, AdoptedPopen)
    popen._reaped = Latch()
    if popen.returncode is not None:
        popen._reaped.set()
    return cast("OwnedPopen", popen)


def abort_start(method: str) -> None:
    """Make a start that hangs in another thread fail, where that is possible."""
    if method == "forkserver":
        kill_fork_servers()
    elif sys.platform == "linux" and method == "creche":
        kill_servers()


def retire_servers() -> None:
    """Start no more children from the fork servers that there are."""
    if sys.platform == "linux":
        retire_own_servers()


def server_statistics() -> list[ForkServerStatistics]:
    """What there is to tell of the fork servers of creche's own start method."""
    if sys.platform == "linux":
        found = (server.statistics() for server in running_servers())
        return [statistics for statistics in found if statistics is not None]
    else:  # noqa: RET505 -- for the type checker
        return []


def settle_in(method: str, lifeline: int | None) -> None:
    """In a child: leave the parent's process group, and be tied to its life.

    :param method: how the child came into being
    :param lifeline: the read end of the parent's lifeline, which this takes over; ``None`` where
        whoever started the child has done all this
    """
    if lifeline is None:
        return
    isolate_child()
    if method == "fork":
        reset_signals()
    elif method == "forkserver":
        leave_fork_server()
    die_with_parent(lifeline)


def ties_children(method: str) -> bool:
    """Whether children are born with what :func:`settle_in` does for others."""
    return method == "creche"
