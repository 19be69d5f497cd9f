"""The parent's end of a child process on POSIX: starting, signalling and reaping it.

Three ``Popen`` classes take the place of ``multiprocessing``'s own under ``fork``, ``spawn`` and
``forkserver``. They differ from those in what the laws of creche need:

* One owner reaps. ``multiprocessing`` polls *all* children whenever one is started or asked whether
  it is alive; two threads that poll a forkserver child at once give one of them a false 255. Here
  :meth:`OwnedPopen.reap` is called by the watcher alone, and ``poll()`` reports what it found.
* The sentinel is a pidfd where there is one. ``multiprocessing``'s is a pipe whose other end the
  child's own children inherit, so that it stays silent for as long as one of them lives.
* The main module is not imported by the preparation code, whose failure would be a traceback on the
  child's stderr, but later by :mod:`creche._child`, which reports it.
* What was opened before something failed is closed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import forkserver, popen_fork, popen_forkserver, popen_spawn_posix
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

assert sys.platform != "win32" or not TYPE_CHECKING

from .._loops import Latch
from .._multiprocessing import keeping_resource_tracker, resource_tracker, spawn, util
from ._exit_descriptor import exit_descriptor_or, has_ended, is_readable, open_exit_descriptor
from ._fork_server import fork_server
from ._main_module import pickle_preparation

LOST_EXIT_CODE = 255
"""What ``multiprocessing`` reports for a child that somebody else has reaped."""


class OwnedPopen(popen_fork.Popen):
    """Reaped by one owner, and safe to signal and to wait for from any thread."""

    _reaped: Latch
    parent_descriptors: tuple[int, ...] = ()
    server_lost = False
    exitcode_lost = False
    _exit_descriptor: int | None = None

    def __init__(self, process_obj: BaseProcess) -> None:
        self._reaped = Latch()
        super().__init__(process_obj)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        if not flag & os.WNOHANG:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        self._reaped.wait_in_thread(timeout)
        return self.returncode

    def watchable(self) -> int:
        """Return a descriptor that becomes readable when the child ends.

        :raises ProcessLookupError: if it has ended, and nobody is left who knows how
        """
        return self.sentinel

    def reap(self, *, kill_group: bool) -> int | None:
        """Collect the exit code of a child that seems to have ended; ``None`` if it has not.

        To be called by the watcher only.

        :param kill_group: whether to kill what the child leaves behind in its process group
        """
        if self.returncode is None:
            try:
                if not has_ended(self.pid):
                    return None
                if kill_group:  # while the zombie keeps the number of the group
                    self.kill_group()
                _, status = os.waitpid(self.pid, 0)
            except ChildProcessError:  # reaped by somebody's waitpid(-1), or by SIGCHLD ignored
                self.give_up_exit_code()
            else:
                self._set_returncode(os.waitstatus_to_exitcode(status))
        return self.returncode

    def give_up_exit_code(self) -> None:
        """The child has ended, and so has whoever knew its exit code."""
        self.exitcode_lost = True
        self._set_returncode(LOST_EXIT_CODE)

    def expect_exit_code(
        self,
        call_later: Callable[[float, Callable[[], None]], None],
        on_lost: Callable[[], None],
    ) -> None:
        """The child has ended, and somebody else has its exit code: do not wait for ever for that.

        :param call_later: calls what it is given after so many seconds
        :param on_lost: called when the exit code is given up
        """

    def ask_to_stop(self) -> None:
        self.send_signal(signal.SIGTERM)
        self.send_signal(signal.SIGCONT)  # a stopped process takes no other signal but SIGKILL

    def nudge(self) -> None:
        self.send_signal(signal.SIGCONT)  # interrupts system calls in a child of ours

    def kill(self, *, group: bool = False) -> None:
        if group and self.returncode is None:
            self.kill_group()
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Signal the child, unless it has been reaped.

        A zombie keeps its process id, so as long as only :meth:`reap` frees it, and not while this
        runs, the signal cannot reach a stranger. (Both run in the watcher.)
        """
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill_group(self) -> None:
        """SIGKILL whatever is left of the child's process group.

        The kernel gives the number to nobody else for as long as a group has it.
        """
        # EPERM: macOS says so of a group of zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _send_signal(self, sig: int) -> None:  # multiprocessing's terminate() and kill()
        self.send_signal(sig)

    def close(self) -> None:
        """Close the descriptors; what is known stays."""
        # A fork that another thread makes meanwhile must not close what has the numbers by then.
        self.parent_descriptors = ()
        exit_descriptor, self._exit_descriptor = self._exit_descriptor, None
        super().close()
        if exit_descriptor is not None:
            os.close(exit_descriptor)

    def forget(self) -> None:
        """In a fork of this process: close our copies of the descriptors."""
        for descriptor in self.parent_descriptors:
            os.close(descriptor)

    def _set_returncode(self, returncode: int) -> None:
        self.returncode = returncode
        self._reaped.set()

    def _keep(self, sentinel: int, *others: int) -> None:
        """Own these descriptors until the process object is closed or collected."""
        self.sentinel = sentinel
        self.parent_descriptors = (sentinel, *others)
        self.finalizer = util.Finalize(self, util.close_fds, self.parent_descriptors)


class ForkPopen(OwnedPopen):
    """Forks this very process."""

    def _launch(self, process_obj: BaseProcess) -> None:
        with _Descriptors() as opened:
            child_r, parent_w = opened.pipe()
            # Only for platforms without a descriptor for a process: ends when the child does.
            parent_r, _child_w = opened.pipe()
            with keeping_resource_tracker():
                self.pid = os.fork()
            if self.pid == 0:
                _run_forked_child(process_obj, child_r, to_close=(parent_w, parent_r))
            sentinel = exit_descriptor_or(parent_r, self.pid)
            self._keep(opened.keep(sentinel), opened.keep(parent_w))


class SpawnPopen(OwnedPopen):
    """Starts a fresh interpreter."""

    method = "spawn"
    DupFd = popen_spawn_posix._DupFd

    def __init__(self, process_obj: BaseProcess) -> None:
        self._fds: list[int] = []
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _launch(self, process_obj: BaseProcess) -> None:
        tracker_fd = resource_tracker.getfd()
        self._fds.append(tracker_fd)
        preparation = pickle_preparation(self, process_obj)
        with _Descriptors() as opened:
            child_r, parent_w = opened.pipe()
            parent_r, child_w = opened.pipe()
            command = spawn.get_command_line(tracker_fd=tracker_fd, pipe_handle=child_r)
            self._fds += [child_r, child_w]
            self.pid = util.spawnv_passfds(spawn.get_executable(), command, self._fds)
            sentinel = exit_descriptor_or(parent_r, self.pid)
            self._keep(opened.keep(sentinel), opened.keep(parent_w))
        with open(parent_w, "wb", closefd=False) as pipe, contextlib.suppress(BrokenPipeError):
            pipe.write(preparation)


class ForkServerPopen(OwnedPopen):
    """Asks creche's fork server for a child."""

    method = "forkserver"
    DupFd = popen_forkserver._DupFd

    def __init__(self, process_obj: BaseProcess) -> None:
        self._fds: list[int] = []
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        self._fds.append(fd)
        return len(self._fds) - 1

    def _launch(self, process_obj: BaseProcess) -> None:
        preparation = pickle_preparation(self, process_obj)
        _check_descriptors_left(6)  # connect_to_new_process leaks some when it runs out of them
        server = fork_server(getattr(process_obj, "server_modules", ()))
        sentinel, parent_w = server.request_child(self._fds)
        self._keep(sentinel, parent_w)
        with open(parent_w, "wb", closefd=False) as pipe:
            pipe.write(preparation)
        try:
            self.pid = forkserver.read_signed(sentinel)
        except EOFError:
            self.close()
            raise OSError(
                "the fork server ended instead of starting a child; it writes the reason to stderr"
            ) from None

    def watchable(self) -> int:
        return watchable_of_forkserver_child(self)

    def reap(self, *, kill_group: bool) -> int | None:
        return reap_forkserver_child(self, kill_group)

    def send_signal(self, number: int) -> None:
        signal_forkserver_child(self, number)


class AdoptedPopen(OwnedPopen):
    """A child that ``multiprocessing`` forked or spawned, given to us while it runs."""

    def watchable(self) -> int:
        if self._exit_descriptor is None:
            self._exit_descriptor = open_exit_descriptor(self.pid)
        return self.sentinel if self._exit_descriptor is None else self._exit_descriptor


def watchable_of_forkserver_child(popen: OwnedPopen) -> int:
    """The pipe to which the server writes the exit code; without the server, the child itself."""
    if not popen.server_lost:
        return popen.sentinel
    if popen._exit_descriptor is None:
        popen._exit_descriptor = open_exit_descriptor(popen.pid)
    if popen._exit_descriptor is None:
        raise ProcessLookupError
    return popen._exit_descriptor


def reap_forkserver_child(popen: OwnedPopen, kill_group: bool) -> int | None:
    """Read the exit code that the fork server writes after it has reaped the child."""
    if popen.returncode is None and not popen.server_lost and is_readable(popen.sentinel):
        try:
            code = forkserver.read_signed(popen.sentinel)
        except (EOFError, OSError):
            popen.server_lost = True  # the server died; the child lives on
        else:
            popen._set_returncode(code)
    elif popen._exit_descriptor is not None and is_readable(popen._exit_descriptor):
        popen.give_up_exit_code()
    if kill_group and popen.returncode is not None:
        popen.kill_group()
    return popen.returncode


def signal_forkserver_child(popen: OwnedPopen, number: int) -> None:
    """Signal a child that the server may reap at any moment, which frees its process id.

    The pidfd pins down whoever has the id now. That is the child, unless the server has reported
    its death before the pidfd was there.
    """
    if popen.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
            os.kill(popen.pid, number)
            return
        try:
            pidfd = os.pidfd_open(popen.pid)
        except ProcessLookupError:
            return
        except OSError:  # no descriptor left: the id is as good, but for a moment
            if popen.server_lost or not is_readable(popen.sentinel):
                os.kill(popen.pid, number)
            return
        try:
            if popen.server_lost or not is_readable(popen.sentinel):
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


class _Descriptors:
    """Closes what was opened in a ``with`` block, but for what was kept."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._kept: set[int] = set()

    def __enter__(self) -> _Descriptors:
        return self

    def pipe(self) -> tuple[int, int]:
        pair = os.pipe()
        self._open.update(pair)
        return pair

    def keep(self, descriptor: int) -> int:
        self._kept.add(descriptor)
        return descriptor

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        for descriptor in self._open - self._kept if exc_type is None else self._open:
            os.close(descriptor)


def _check_descriptors_left(number: int) -> None:
    """:raises OSError: if this process cannot open that many descriptors"""
    opened: list[int] = []
    try:
        for _ in range(number):
            opened.append(os.open(os.devnull, os.O_RDONLY))  # noqa: PERF401
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _run_forked_child(process_obj: Any, parent_sentinel: int, to_close: tuple[int, ...]) -> None:
    """Run the child's side of a fork. Does not return."""
    code = 1
    try:
        for descriptor in to_close:
            os.close(descriptor)
        # Threads are daemonic if the one that makes them is, and so is the thread that has forked,
        # which is the main one here. The end of the process waits for those that are not.
        main_thread: Any = threading.current_thread()
        main_thread._daemonic = False
        code = process_obj._bootstrap(parent_sentinel=parent_sentinel)
        util._exit_function()  # joins the threads of queues; from 3.13 on _bootstrap does not
    finally:
        os._exit(code)
