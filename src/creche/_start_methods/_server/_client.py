"""Asking a server for children, and replacing it when it has died."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

assert sys.platform == "linux" or not TYPE_CHECKING

from ..._multiprocessing import resource_tracker, spawn
from ..._platform import Lifeline
from .._main_module import MAIN, main_module_settings
from ._protocol import (
    MAX_DESCRIPTORS,
    PID,
    DescriptorsLost,
    Kind,
    Message,
    StartRequest,
    receive,
    send,
)
from ._server_process import WAKING_SECONDS, CannotPreload, ServerDied, ServerProcess
from ._surroundings import Surroundings

# Seconds. An answer takes a millisecond, and tens of them if there has to be a fork first.
_PATIENCE = 10.0
_PATIENCE_FOR_REASONS = 0.1

# A child that runs an async function needs its backend: 100 ms if each child imports Trio itself.
_BACKEND_MODULES = ("anyio._backends._asyncio", "anyio._backends._trio")

# What every child of creche's runs. A string, as it is above this package.
_CHILD_MODULE = "creche._child"

OWN_MODULES = frozenset({_CHILD_MODULE, *_BACKEND_MODULES})
# Of those in a request, the ones that do not belong to the process object.
_OWN_DESCRIPTORS = 5


@dataclass(frozen=True)
class StartedChild:
    """A child that has been started, and that the server will reap."""

    pid: int
    pidfd: int
    status: int
    """Where the server will write the exit code."""

    server: ServerProcess


class Server:
    """A server, and its successors: one that has died is replaced when it is needed.

    All methods can be called from any thread.

    :param modules: names of modules that it imports besides the main module
    :param lifeline: what ends with the application
    :param left_to_children: modules that no server must import, and why; what turns out to be one
        is added
    """

    def __init__(
        self,
        modules: tuple[str, ...],
        lifeline: Lifeline,
        left_to_children: dict[str, CannotPreload],
    ) -> None:
        self._modules = modules
        self._lifeline = lifeline
        self._lock = threading.Lock()
        self._process: ServerProcess | None = None
        self._former: list[ServerProcess] = []
        """Those that take no more requests, but still have children."""
        self._surroundings: Surroundings | None = None
        self._left_to_children = left_to_children
        self._killed = False
        self._retired = False

    def start_child(self, process_obj: bytes, descriptors: list[int]) -> StartedChild:
        """Have a child started that runs a pickled process object. Blocks.

        :param descriptors: what the process object refers to
        :raises ValueError: if these are too many
        :raises OSError: if the system or the server cannot
        """
        if len(descriptors) + _OWN_DESCRIPTORS > MAX_DESCRIPTORS:
            raise ValueError(
                f"a process can be given {MAX_DESCRIPTORS - _OWN_DESCRIPTORS} descriptors at most,"
                f" not {len(descriptors)}"
            )
        try:
            with self._lock:
                self._killed = False
                try:
                    return self._ask_for_child(process_obj, descriptors)
                except ServerDied:
                    if self._killed:
                        raise
                # It was killed by somebody, and has started nothing for us. Once is bad luck.
                return self._ask_for_child(process_obj, descriptors)
        finally:
            self._dismiss_if_retired()

    def kill(self) -> None:
        """Make what waits for this server fail. The next child has a new one."""
        self._killed = True
        process = self._process
        if process is not None:
            process.signal(signal.SIGKILL)

    def retire(self) -> None:
        """Let it end when its last child has ended. Does not block."""
        self._retired = True
        self._dismiss_if_retired()

    def has_ended(self) -> bool:
        """Whether all of its processes have ended, and are collected. Does not block."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._reap_former()
            if self._process is not None and self._process.has_ended():
                self._process.reap()
                self._process = None
            return self._process is None and not self._former
        finally:
            self._lock.release()

    def processes(self) -> list[ServerProcess]:
        """Those that run: the one that takes requests, and those that still have children."""
        self.has_ended()  # so that one that somebody has killed is no zombie until the next start
        processes = [*self._former, self._process]
        return [process for process in processes if process is not None and not process.has_ended()]

    def forget(self) -> None:
        """In a fork of the application: let go of a server that is not ours."""
        for process in [self._process, *self._former]:
            if process is not None:
                process.forget()

    def _give_up_process(self) -> None:
        """Ask it for no more children."""
        if self._process is not None:
            self._process.dismiss()
            self._former.append(self._process)
            self._process = None
        self._reap_former()

    def _reap_former(self) -> None:
        for process in self._former[:]:
            if process.has_ended():
                process.reap()
                self._former.remove(process)

    def _dismiss_if_retired(self) -> None:
        # Whoever holds the lock comes here after that.
        if self._retired and self._lock.acquire(blocking=False):
            try:
                if self._process is not None:
                    self._process.dismiss()
            finally:
                self._lock.release()

    # --- a child ------------------------------------------------------------------------------

    def _ask_for_child(self, process_obj: bytes, descriptors: list[int]) -> StartedChild:
        """:raises ServerDied: if the server has, and there is no child"""
        server = self._running_process()
        surroundings = Surroundings.take()
        changed = surroundings != self._surroundings
        self._surroundings = None  # whatever becomes of the request, which may be half done
        status, servers_status = os.pipe()
        try:
            try:
                request = StartRequest(
                    surroundings=surroundings.pack() if changed else b"",
                    process=process_obj,
                    status=servers_status,
                    tracker=_tracker_descriptor(),
                    output=(_if_inheritable(1), _if_inheritable(2)),
                    descriptors=descriptors,
                )
                send(server.sock, request.pack())
            except (BrokenPipeError, ConnectionResetError):
                server.dismiss()  # it may take a moment to end, and is not to be asked again
                raise ServerDied("the fork server has died") from None
            finally:
                os.close(servers_status)
            try:
                answer = self._receive_answer(server, status)
            except BaseException:
                # A KeyboardInterrupt, say: the answer must not be taken for that to the next.
                _disown_answer(server)
                raise
            if answer.kind is Kind.FAILED:
                number, text = json.loads(answer.payload)
                raise OSError(number, f"{text}, says the fork server")
        except BaseException:
            os.close(status)
            raise
        self._surroundings = surroundings
        server.children_started += 1
        return StartedChild(PID.unpack(answer.payload)[0], answer.descriptors[0], status, server)

    def _receive_answer(self, server: ServerProcess, status: int) -> Message:
        """Wait for the answer, but not for ever.

        :raises ServerDied: if there will be none, and no child
        """
        poller = select.poll()
        poller.register(server.sock, select.POLLIN)
        # Its end: the spare has died with the request. Those who held the pipe are gone.
        poller.register(status, select.POLLIN)
        give_up = time.monotonic() + WAKING_SECONDS + _PATIENCE
        while not (ready := poller.poll(WAKING_SECONDS * 1000)) and time.monotonic() < give_up:
            server.signal(signal.SIGCONT)
        if not ready:
            server.signal(signal.SIGKILL)
            ready = poller.poll(_PATIENCE * 1000)
        if ready and ready[0][0] == status:
            # An answer that says why may come a moment later.
            poller.unregister(status)
            poller.poll(_PATIENCE_FOR_REASONS * 1000)
        try:
            answer = receive(server.sock)
        except BlockingIOError:
            raise ServerDied("the fork server does not answer") from None
        except DescriptorsLost as error:
            # The child runs, and nobody would know when it ends.
            if error.message.kind is Kind.STARTED:
                os.kill(PID.unpack(error.message.payload)[0], signal.SIGKILL)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from None
        if answer is None:
            raise ServerDied("the fork server has died")
        return answer

    # --- the server ---------------------------------------------------------------------------

    def _running_process(self) -> ServerProcess:
        """:raises OSError: if there is no server, and none can be started"""
        self._reap_former()
        process = self._process
        if process is not None and process.is_usable():
            return process
        self._give_up_process()
        while True:
            process = self._process = self._start_process()
            if self._killed:  # while there was nothing to kill
                process.signal(signal.SIGKILL)
            try:
                failures = process.wait_until_ready()
            except CannotPreload as error:
                process.reap()
                self._process = None
                if self._killed or error.module == _CHILD_MODULE:
                    raise ServerDied(f"the fork server has ended: {error.reason}") from None
                self._leave_to_children([error])
            except BaseException:
                process.dismiss()
                raise
            else:
                self._leave_to_children(failures)
                return process

    def _start_process(self) -> ServerProcess:
        settings = spawn.get_preparation_data("")
        surroundings = {key: settings[key] for key in ("sys_argv", "orig_dir", "dir")}
        main = main_module_settings()
        wanted: list[str] = [
            _CHILD_MODULE,
            *([MAIN] if main else []),
            *(module for module in _BACKEND_MODULES if module in sys.modules),
            *self._modules,
        ]
        self._surroundings = None
        lifeline = self._lifeline.duplicate()
        try:
            return ServerProcess(
                lifeline,
                {
                    "main": surroundings | main,
                    "modules": [
                        module for module in wanted if module not in self._left_to_children
                    ],
                    "imported_by_children": [
                        module
                        for module in wanted
                        if module in self._left_to_children
                        and self._left_to_children[module].starts_threads
                    ],
                },
                settings["sys_path"],
            )
        finally:
            os.close(lifeline)

    def _leave_to_children(self, errors: list[CannotPreload]) -> None:
        self._left_to_children.update({error.module: error for error in errors})
        for error in errors:
            what = "the main module" if error.module == MAIN else repr(error.module)
            # Given in the thread that starts processes: no line of the application's is to blame.
            warnings.warn(
                f"cannot preload {what} in the fork server: {error.reason}."
                " Each child that needs it imports it itself, which takes longer",
                RuntimeWarning,
                stacklevel=1,
            )


def _disown_answer(server: ServerProcess) -> None:
    """Nobody waits for the answer any more: there must be no child that nobody knows of."""
    # From here on no answer can be sent, and a child that cannot send it runs nothing.
    server.sock.shutdown(socket.SHUT_RD)
    with contextlib.suppress(BlockingIOError, DescriptorsLost):
        answer = receive(server.sock)
        if answer is not None and answer.kind is Kind.STARTED:
            (pidfd,) = answer.descriptors
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
    server.dismiss()


def _tracker_descriptor() -> int:
    # getfd() would wake the tracker each time, to see whether it is there.
    descriptor: int | None = resource_tracker._resource_tracker._fd
    return resource_tracker.getfd() if descriptor is None else descriptor


def _if_inheritable(descriptor: int) -> int | None:
    """A standard descriptor, or ``None`` where it is closed, and its number may be another's."""
    try:
        return descriptor if os.get_inheritable(descriptor) else None
    except OSError:
        return None
