"""The servers of this process: one for each set of modules to preload, started when needed."""

from __future__ import annotations

import os
import resource
import sys
import threading
from typing import TYPE_CHECKING

assert sys.platform == "linux" or not TYPE_CHECKING

from ..._multiprocessing import util
from ..._platform import Lifeline
from .._preloaded import preloaded
from ._client import Server
from ._server_process import CannotPreload

_LIMITS = [
    getattr(resource, name)
    for name in dir(resource)
    if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"  # another name of another
]


class _Servers:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.birthright: object = None
        self.lifeline: Lifeline | None = None
        self.left_to_children: dict[str, CannotPreload] = {}
        self.by_modules: dict[tuple[str, ...], Server] = {}
        self.retired: list[Server] = []


_servers = _Servers()


def server_for(modules: tuple[str, ...] = ()) -> Server:
    """Return the server that has these modules, and all that are preloaded for everybody.

    :raises OSError: if there are no descriptors left
    """
    wanted = tuple(dict.fromkeys([*preloaded(), *modules]))
    birthright = _birthright()
    if _servers.birthright != birthright:
        retire_servers()
        _servers.birthright = birthright
    with _servers.lock:
        _reap_retired()
        server = _servers.by_modules.get(wanted)
        if server is None:
            if _servers.lifeline is None:
                _servers.lifeline = Lifeline()
                # A negative priority: multiprocessing has joined the children before.
                util.Finalize(None, retire_servers, exitpriority=-100)
            server = _servers.by_modules[wanted] = Server(
                wanted, _servers.lifeline, _servers.left_to_children
            )
        return server


def _birthright() -> object:
    """What a process has from its parent, and a server cannot give to its children later.

    An application that has given up rights must not have them again in its children, for one.
    """
    return (
        os.getresuid(),
        os.getresgid(),
        os.getgroups(),
        os.getpriority(os.PRIO_PROCESS, 0),
        os.sched_getaffinity(0),
        [resource.getrlimit(limit) for limit in _LIMITS],
    )


def retire_servers() -> None:
    """Let each server end after its last child: others are to take their places."""
    with _servers.lock:
        retired = list(_servers.by_modules.values())
        _servers.by_modules.clear()
        _servers.retired += retired
    for server in retired:
        server.retire()


def running_servers() -> list[Server]:
    """All servers that run, also those that are retired and still have children."""
    with _servers.lock:
        _reap_retired()
        servers = [*_servers.by_modules.values(), *_servers.retired]
    return [server for server in servers if server.pid is not None]


def kill_servers() -> None:
    """Kill servers that do not answer: the next child is started by a new one."""
    for server in list(_servers.by_modules.values()):
        server.kill()


def _reap_retired() -> None:
    _servers.retired = [server for server in _servers.retired if not server.has_ended()]


def _forget_servers() -> None:
    """In a fork of the application: start over with servers of its own."""
    global _servers
    forgotten, _servers = _servers, _Servers()
    for server in [*forgotten.by_modules.values(), *forgotten.retired]:
        server.forget()
    if forgotten.lifeline is not None:
        forgotten.lifeline.close()


os.register_at_fork(after_in_child=_forget_servers)
