"""The fork server that creche starts children from: the standard library's, with main preloaded.

Under ``multiprocessing``'s ``forkserver`` every child imports the main module again, because the
preloading of ``__main__`` does not take there (python/cpython#126631). Our server imports
:mod:`._fork_server_preload`, which imports the main module once, for all children. It is a server
of our own, so that ``multiprocessing.set_forkserver_preload`` stays the application's to use.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from multiprocessing import forkserver
from typing import TYPE_CHECKING, Any

assert sys.platform != "win32" or not TYPE_CHECKING

from .._multiprocessing import spawn
from .._platform import Lifeline
from ._exit_descriptor import has_ended, open_exit_descriptor
from ._main_module import main_module_settings
from ._preloaded import preloaded

ENVIRONMENT_KEY = "_CRECHE_FORK_SERVER"

# A child that runs an async function needs its backend: 100 ms if each child imports Trio itself.
_BACKEND_MODULES = ("anyio._backends._asyncio", "anyio._backends._trio")


class PreloadingForkServer(forkserver.ForkServer):
    """Passes what the preload module has to know through the environment of the server.

    :param modules: names of modules that it imports besides the main module
    """

    def __init__(self, modules: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._modules = modules
        self._forkserver_address: str | None
        self._forkserver_alive_fd: int | None
        self._forkserver_pid: int | None
        self._lifeline = Lifeline()
        self._killed = False
        self.set_forkserver_preload(["creche._start_methods._fork_server_preload"])

    def ensure_running(self) -> None:
        if self._is_running():
            return
        # The server's command line is the standard library's, and a fork server can be told
        # nothing later, so the environment is the only way. The starter thread alone comes here.
        os.environ[ENVIRONMENT_KEY] = json.dumps(self._settings())
        try:
            super().ensure_running()
        finally:
            del os.environ[ENVIRONMENT_KEY]

    def request_child(self, descriptors: list[int]) -> tuple[int, int]:
        """Ask for a child; start a new server where the one that we know has just died.

        :return: where to read the child's pid and exit code, and where to write to it
        """
        self._killed = False
        try:
            return self.connect_to_new_process(descriptors)
        except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
            if self._killed:
                # Nobody waits any more, and at the interpreter's end, when the standard library
                # has cleaned up already, the socket of a new server would be left behind.
                raise
            # It was killed, and is not yet known to be dead. It has started nothing for us.
            if self._forkserver_pid is not None:
                self._wait_for_end(self._forkserver_pid)
            return self.connect_to_new_process(descriptors)

    def kill(self) -> None:
        """Make what waits for this server fail. The next child has a new one. From any thread."""
        self._killed = True
        if self._forkserver_pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._forkserver_pid, signal.SIGKILL)

    def _wait_for_end(self, pid: int) -> None:
        try:
            descriptor = open_exit_descriptor(pid)
        except ProcessLookupError:
            return
        if descriptor is not None:
            try:
                select.select([descriptor], [], [], 5.0)
            finally:
                os.close(descriptor)

    def forget(self) -> None:
        """In a fork of the application: let go of the server, which is not ours."""
        if self._forkserver_alive_fd is not None:
            os.close(self._forkserver_alive_fd)
            self._forkserver_alive_fd = None
        self._lifeline.close()

    def _is_running(self) -> bool:
        if self._forkserver_pid is None:
            return False
        with contextlib.suppress(ChildProcessError):  # reaped by somebody's waitpid(-1)
            if not has_ended(self._forkserver_pid):
                return True
            os.waitpid(self._forkserver_pid, 0)
        if self._forkserver_alive_fd is not None:
            os.close(self._forkserver_alive_fd)
        self._forkserver_alive_fd = self._forkserver_address = self._forkserver_pid = None
        return False

    def _settings(self) -> dict[str, Any]:
        settings = spawn.get_preparation_data("")
        surroundings = {key: settings[key] for key in ("sys_argv", "orig_dir", "dir")}
        return {
            "application": os.getpid(),
            "lifeline": self._lifeline.path,
            "main": surroundings | main_module_settings(),
            "modules": [
                *(module for module in _BACKEND_MODULES if module in sys.modules),
                *self._modules,
            ],
        }


_servers: dict[tuple[str, ...], PreloadingForkServer] = {}


def fork_server(modules: tuple[str, ...] = ()) -> PreloadingForkServer:
    """Return this process's fork server, which is started when the first child is asked for.

    :param modules: names of modules that it imports besides the main module. There is a server for
        each set of them, because one that runs, and has children, can be told nothing any more
    """
    wanted = tuple(dict.fromkeys([*preloaded(), *modules]))
    if wanted not in _servers:
        _servers[wanted] = PreloadingForkServer(wanted)
    return _servers[wanted]


def _forget_fork_servers() -> None:
    """In a fork of the application: start over with servers of its own."""
    for server in _servers.values():
        server.forget()
    _servers.clear()


def kill_fork_servers() -> None:
    """Kill servers that do not answer: the next child is started from a new one."""
    for server in _servers.values():
        server.kill()


def leave_fork_server() -> None:
    """In a child of a server: close the descriptor that keeps the server running.

    The server takes whatever a child writes there, by mistake, for a reason to end.
    """
    server: Any = forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None


os.register_at_fork(after_in_child=_forget_fork_servers)
