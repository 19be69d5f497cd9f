"""The server: one thread that keeps a spare, and tells of the ends of its children.

It runs nothing of the application's but the modules that it imports before it serves. Requests are
received by the spare; the server does so only where it cannot fork one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

assert sys.platform == "linux" or not TYPE_CHECKING

from ..._ctrl_c import postpone_ctrl_c_in_children
from ..._multiprocessing import keeping_resource_tracker, resource_tracker, util
from ..._platform._parent_death import die_with_lifeline
from ..._platform._posix import reset_signals
from .._exit_descriptor import is_readable, let_kernel_reap
from . import _surroundings
from ._preloading import ThreadsStarted, preload
from ._protocol import EXIT_CODE, PID, DescriptorsLost, Kind, Message, failed, receive, send
from ._spare import Birth, be_spare

# Spares that end without a request, one after the other: a request waits for no more of them.
_MAX_STILLBIRTHS = 3


def main(inherited_socket: int, inherited_lifeline: int) -> None:
    """Serve until the application is gone, or has no more use for this server.

    :param inherited_socket: the server's end of the socket
    :param inherited_lifeline: the read end of the application's lifeline
    """
    descriptor, lifeline = map(_above_standard, (inherited_socket, inherited_lifeline))
    for standard in range(3):
        _open_if_closed(standard)
    # Out of the reach of a terminal's Ctrl-C, which was blocked when this process was started.
    os.setpgid(0, 0)
    interrupt_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # The server leaves nothing behind, so the kernel may kill it at any moment.
    tie = die_with_lifeline(f"/proc/self/fd/{lifeline}", signal.SIGKILL)
    with socket.socket(fileno=descriptor) as requests:
        settings = receive(requests)
        if settings is not None:
            (resource_tracker._resource_tracker._fd,) = settings.descriptors
            server = _Server(requests, lifeline, tie, interrupt_handler)
            server.run(json.loads(settings.payload))


def _above_standard(inherited: int) -> int:
    """Move a descriptor to where no child takes it for its standard output."""
    moved = fcntl.fcntl(inherited, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(inherited)
    return moved


def _open_if_closed(standard: int) -> None:
    """See to it that no other descriptor gets the number of a standard one."""
    try:
        os.fstat(standard)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


class _Server:
    def __init__(
        self, requests: socket.socket, lifeline: int, tie: int | None, interrupt_handler: Any
    ) -> None:
        self._requests = requests
        self._lifeline = lifeline
        self._tie = tie
        self._interrupt_handler = interrupt_handler
        self._from_spare, self._to_server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._from_spare.setblocking(False)
        self._descriptor_limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._wake_receiver, self._wake_sender = os.pipe()
        self._poller = select.poll()
        self._wanted = True
        self._spare: int | None = None
        self._stillbirths = 0
        self._end_of_spare: int | None = None
        self._kernel_reaps = False
        self._status_pipes: dict[int, int] = {}
        self._warning_filters: tuple[bytes, ...] = ()
        self._imported_by_children: list[str] = []

    # --- before there are children ------------------------------------------------------------

    def run(self, settings: dict[str, Any]) -> None:
        self._imported_by_children = settings["imported_by_children"]
        failures = self._preload(settings["modules"], settings["main"])
        reset_signals()  # the main module may have installed handlers
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        postpone_ctrl_c_in_children()
        # What is in the buffers would be written once more by every child.
        util._flush_std_streams()
        # Objects that the collector never touches stay on pages that server and children share.
        gc.collect()
        gc.freeze()
        # A descriptor for each child, however few the application may have itself.
        _, highest = self._descriptor_limits
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))
        self._kernel_reaps = let_kernel_reap()
        ready = json.dumps([self._kernel_reaps, failures]).encode()
        self._answer(Message(Kind.READY, ready))
        with self._from_spare, self._to_server:
            self._serve()
        if self._kernel_reaps:
            # A child whose parent ends first is reaped by whom nobody knows, who may take his time.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, 0)

    def _preload(self, modules: list[str], main: dict[str, Any]) -> dict[str, str]:
        """Import the modules; return what went wrong, by module."""
        failures = {}
        for module in modules:
            self._answer(Message(Kind.IMPORTING, module.encode()))
            try:
                failure = preload(module, main)
            except ThreadsStarted:
                self._answer(Message(Kind.THREADS, module.encode()))
                os._exit(0)  # not waiting for the threads
            if failure is not None:
                failures[module] = failure
        return failures

    # --- with children ------------------------------------------------------------------------

    def _serve(self) -> None:
        if not self._kernel_reaps:
            for descriptor in (self._wake_receiver, self._wake_sender):
                os.set_blocking(descriptor, False)
            signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)
            signal.set_wakeup_fd(self._wake_sender, warn_on_full_buffer=False)
        self._poller.register(self._wake_receiver, select.POLLIN)
        self._poller.register(self._from_spare, select.POLLIN)
        self._poller.register(self._requests, select.POLLIN)
        self._make_spare()
        while self._wanted or self._status_pipes or self._spare is not None:
            for descriptor, events in self._poller.poll():
                if descriptor == self._wake_receiver:
                    os.read(self._wake_receiver, 4096)
                    self._reap()
                elif descriptor == self._from_spare.fileno():
                    self._hear_spare()
                elif descriptor != self._requests.fileno():
                    self._hear_of_end()
                elif events & select.POLLIN:
                    if self._spare is None:
                        self._make_spare_for_request()
                else:  # POLLHUP: the application has closed its end
                    self._poller.unregister(self._requests)
                    self._wanted = False

    def _make_spare(self) -> None:
        # Without process ids, or memory, that is an error as soon as somebody asks for a child.
        with contextlib.suppress(OSError):
            self._fork_spare()

    def _make_spare_for_request(self) -> None:
        """Somebody asks for a child, and there is no spare."""
        try:
            if self._stillbirths >= _MAX_STILLBIRTHS:
                self._stillbirths = 0
                raise OSError(errno.ECHILD, "children end as soon as they are forked")
            self._fork_spare()
        except OSError as error:
            self._decline_request(error)

    def _fork_spare(self) -> None:
        """:raises OSError: if there is none"""
        with keeping_resource_tracker():
            pid = os.fork()
        if pid == 0:
            try:
                self._become_spare()
            finally:
                os._exit(1)  # never back into the server's loop
        self._spare = pid
        # Its end is all that is of interest, as the spare receives what comes.
        self._poller.modify(self._requests, 0)
        try:
            self._end_of_spare = os.pidfd_open(pid)
        except ProcessLookupError:  # gone already
            self._lose_dead_spare()
        else:
            self._poller.register(self._end_of_spare, select.POLLIN)

    def _become_spare(self) -> None:
        be_spare(
            Birth(
                requests=self._requests,
                server=self._to_server,
                lifeline=self._lifeline,
                tie=self._tie,
                servers_own=[
                    self._from_spare.detach(),
                    self._wake_receiver,
                    self._wake_sender,
                    *self._status_pipes.values(),
                    *([] if self._end_of_spare is None else [self._end_of_spare]),
                ],
                descriptor_limits=self._descriptor_limits,
                interrupt_handler=self._interrupt_handler,
                warning_filters=self._warning_filters,
                imported_by_children=self._imported_by_children,
                sample=sys.modules["creche._child"].sample,
            )
        )

    def _hear_spare(self) -> None:
        """Hear of a spare that is a child of the application's now, and make another one."""
        try:
            message = receive(self._from_spare)
        except BlockingIOError:
            return
        except DescriptorsLost:
            os._exit(1)  # this many children are too many: the application starts a new server
        assert message is not None, "this process has the other end, too"
        (pid,) = PID.unpack_from(message.payload)
        (status,) = message.descriptors
        if self._kernel_reaps:
            os.close(status)
        else:
            self._status_pipes[pid] = status
        self._stillbirths = 0
        surroundings = message.payload[PID.size :]
        if surroundings:
            with contextlib.suppress(OSError):  # the child has told the application
                self._warning_filters = _surroundings.apply(surroundings)
        self._lose_spare()
        if self._wanted:
            self._make_spare()

    def _hear_of_end(self) -> None:
        # Or of that of the spare before, which we have heard of otherwise.
        if self._end_of_spare is not None and is_readable(self._end_of_spare):
            self._lose_dead_spare()

    def _lose_dead_spare(self) -> None:
        """The spare has ended; perhaps as a child of the application's."""
        spare = self._spare
        self._hear_spare()
        if self._spare == spare:
            self._stillbirths += 1
            self._lose_spare()  # until there is a request

    def _lose_spare(self) -> None:
        self._spare = None
        if self._end_of_spare is not None:
            self._poller.unregister(self._end_of_spare)
            os.close(self._end_of_spare)
            self._end_of_spare = None
        if self._wanted:
            self._poller.modify(self._requests, select.POLLIN)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._spare:
                self._lose_dead_spare()
            pipe = self._status_pipes.pop(pid, None)
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # nobody wants to know any more
                    os.write(pipe, EXIT_CODE.pack(os.waitstatus_to_exitcode(status)))
                os.close(pipe)

    def _decline_request(self, error: OSError) -> None:
        try:
            request = receive(self._requests)
        except DescriptorsLost:
            request = Message(Kind.START)
        if request is not None:  # else the end of the socket will be noticed
            self._answer(failed(error))
            for descriptor in request.descriptors:
                os.close(descriptor)

    def _answer(self, message: Message) -> None:
        # The application has gone, or given up: the end of the socket will tell.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send(self._requests, message)
