"""One server process, as the application sees it: from its start until it is reaped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

assert sys.platform == "linux" or not TYPE_CHECKING

from ..._multiprocessing import resource_tracker, spawn, util
from .._exit_descriptor import is_readable
from .._interrupts import interrupts_blocked
from ._protocol import Kind, Message, receive, send

WAKING_SECONDS = 1.0
"""Whoever waits for a server wakes it this often: somebody may have stopped it."""


class ServerDied(OSError):
    """The server has ended, or was killed, while somebody waited for it."""


class CannotPreload(Exception):
    """A module could not be imported in the server, or has ended it.

    :param module: its name
    :param reason: what it does, in words
    :param starts_threads: whether that is to start threads, which does no harm in a child
    """

    def __init__(self, module: str, reason: str, *, starts_threads: bool) -> None:
        super().__init__(module, reason)
        self.module = module
        self.reason = reason
        self.starts_threads = starts_threads


class ServerProcess:
    """Starts a server in a fresh interpreter.

    :param lifeline: the read end of the application's lifeline, for the server to inherit
    :param settings: what it is told first
    :param path: its ``sys.path``
    :raises OSError: if it cannot be started
    """

    def __init__(self, lifeline: int, settings: dict[str, Any], path: list[str]) -> None:
        self.modules: list[str] = settings["modules"]
        """What it is to import, and then what it has imported."""
        self.kernel_reaps = False
        """Whether the kernel reaps its children, and tells their exit codes."""
        self.children_started = 0
        self._killed = False
        self._reaped = False
        self.sock, servers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            tracker = resource_tracker.getfd()
            with servers_end, interrupts_blocked():
                self.pid = _spawn(servers_end.fileno(), lifeline, path)
            self._pidfd = _open_pidfd(self.pid)
        except BaseException:
            self.sock.close()
            raise
        # It may have ended already, which whoever reads will see.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send(self.sock, Message(Kind.SETTINGS, json.dumps(settings).encode(), [tracker]))

    def wait_until_ready(self) -> list[CannotPreload]:
        """Wait until the server has imported everything.

        :return: what could not be imported
        :raises CannotPreload: if it has ended because of one of them
        :raises ServerDied: if it has ended for another reason
        """
        importing = None
        while (message := self._receive()) is not None:
            if message.kind is Kind.IMPORTING:
                importing = message.payload.decode()
            elif message.kind is Kind.THREADS:
                raise CannotPreload(
                    message.payload.decode(),
                    "it starts threads, which no fork would have",
                    starts_threads=True,
                )
            else:
                self.sock.setblocking(False)
                failures: dict[str, str]
                self.kernel_reaps, failures = json.loads(message.payload)
                self.modules = [module for module in self.modules if module not in failures]
                return [
                    CannotPreload(module, reason, starts_threads=False)
                    for module, reason in failures.items()
                ]
        if importing is None:
            raise ServerDied(
                "the fork server ended instead of starting a child; it writes the reason to stderr"
            )
        raise CannotPreload(
            importing, "the fork server ends while importing it", starts_threads=False
        )

    def _receive(self) -> Message | None:
        """Wait for what it says, however long it imports."""
        while not is_readable(self.sock.fileno(), WAKING_SECONDS):
            self.signal(signal.SIGCONT)
        return receive(self.sock)

    def has_ended(self) -> bool:
        # A process that was killed takes a moment.
        return self._reaped or is_readable(self._pidfd, 1.0 if self._killed else 0.0)

    def is_usable(self) -> bool:
        """Whether it takes requests."""
        return self.sock.fileno() >= 0 and not self.has_ended()

    def signal(self, number: int) -> None:
        """Signal the server and its spare, which is in its process group until it is taken."""
        if self._reaped:
            return  # the number of the group may be another's by now
        if number == signal.SIGKILL:
            self._killed = True
        # Of its own: a server that has just been started has no group yet.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def dismiss(self) -> None:
        """Let it end after its last child, and its spare at once."""
        self.sock.close()

    def reap(self) -> None:
        """Collect a server that has ended, or is about to."""
        self.sock.close()
        self.signal(signal.SIGKILL)  # the spare
        self._reaped = True  # before others get the numbers: other threads may be about to use them
        os.close(self._pidfd)
        with contextlib.suppress(ChildProcessError):  # somebody's waitpid(-1) was faster
            os.waitpid(self.pid, 0)

    def forget(self) -> None:
        """In a fork of the application: close our copies."""
        self.sock.close()
        os.close(self._pidfd)


def _spawn(sock: int, lifeline: int, path: list[str]) -> int:
    command = (
        f"import sys; sys.path[:] = {path!r};"
        f" from creche._start_methods._server._serving import main; main({sock}, {lifeline})"
    )
    executable = spawn.get_executable()
    arguments = [executable, *util._args_from_interpreter_flags(), "-c", command]
    pid: int = util.spawnv_passfds(executable, arguments, [sock, lifeline])
    return pid


def _open_pidfd(pid: int) -> int:
    """Open a pidfd of a child of this process, which is ended if there is no descriptor left."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise
