"""The parent's end of a child process on Windows: starting, ending and waiting for it.

:class:`SpawnPopen` takes the place of ``multiprocessing``'s own, from which it differs in this:

* The child is in a job, so that the kernel ends it and its descendants with this process, and in a
  process group of its own, so that Ctrl-C is for this process alone.
* One owner waits for it: the watcher. ``poll()`` reports what it found.
* The main module is not imported by the preparation code, whose failure would be a traceback on the
  child's stderr, but later by :mod:`creche._child`, which reports it.
* A child that dies before it has read what it is sent holds up nobody.
"""

from __future__ import annotations

import _winapi
import contextlib
import msvcrt
import multiprocessing.context
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing import popen_spawn_win32
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, cast

assert sys.platform == "win32" or not TYPE_CHECKING

from .._loops import Latch
from .._multiprocessing import reduction, spawn, util
from .._platform._windows import TERMINATED, isolate_child
from .._platform._windows_job import Job
from ._main_module import pickle_preparation
from ._server_statistics import ForkServerStatistics

_KILLED = TERMINATED + 9
"""Our exit code for what was killed, to tell it from what was terminated: there are no signals."""

_EXIT_CODES = {TERMINATED: -signal.SIGTERM, _KILLED: -9}


class OwnedPopen(popen_spawn_win32.Popen):
    """Waited for by one owner, and safe to end and to wait for from any thread."""

    exitcode_lost = False
    returncode: int | None
    sentinel: int
    _reaped: Latch
    _job: Job | None = None

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        self._reaped.wait_in_thread(timeout)
        return self.returncode

    def watchable(self) -> int:
        """Return a handle that becomes ready when the child ends: that of the process."""
        return self.sentinel

    def expect_exit_code(self, *_: object) -> None:
        """Nothing: whoever has the handle has the exit code."""

    def reap(self, *, kill_group: bool) -> int | None:
        """Learn the exit code of a child that seems to have ended; ``None`` if it has not.

        To be called by the watcher only.

        :param kill_group: whether to end what the child leaves behind in its job
        """
        if self.returncode is None:
            # Not its exit code alone, which is there some time before the process has gone.
            if _winapi.WaitForSingleObject(self.sentinel, 0) != _winapi.WAIT_OBJECT_0:
                return None
            if self._job is not None and kill_group:
                self._job.close()
            elif self._job is not None:
                self._job.release()
            code = _winapi.GetExitCodeProcess(self.sentinel)
            self._set_returncode(_EXIT_CODES.get(code, code))
        return self.returncode

    def give_up_exit_code(self) -> None:
        """Never needed: whoever has a handle can ask for the exit code."""
        raise NotImplementedError

    def ask_to_stop(self) -> None:
        """End a child that has no wire: Windows knows no polite way."""
        self._terminate_process(TERMINATED)

    def nudge(self) -> None:
        """Nothing: a child that is asked by this class is not asked twice."""

    def kill(self, *, group: bool = False) -> None:
        if group and self._job is not None and self.returncode is None:
            with contextlib.suppress(OSError):  # the process itself must go in any case
                self._job.kill(_KILLED)
        self._terminate_process(_KILLED)

    def terminate(self) -> None:  # multiprocessing's
        self._terminate_process(TERMINATED)

    def _terminate_process(self, exitcode: int) -> None:
        """End the child, unless it is known to have ended. The handle pins down its process id."""
        if self.returncode is None:
            with contextlib.suppress(PermissionError):  # it has ended already
                _winapi.TerminateProcess(self.sentinel, exitcode)

    def forget(self) -> None:
        """Nothing: there are no forks."""

    def _set_returncode(self, returncode: int) -> None:
        self.returncode = returncode
        self._reaped.set()


class SpawnPopen(OwnedPopen):
    """Starts a fresh interpreter in a job."""

    def __init__(self, process_obj: BaseProcess) -> None:
        self._reaped = Latch()
        self.returncode = None
        with contextlib.ExitStack() as undo:
            self._job = Job()
            undo.callback(self._job.close)
            # The child takes the read end from us, which we therefore keep for as long as it lives.
            read_end, write_end = _winapi.CreatePipe(None, 0)
            undo.callback(_winapi.CloseHandle, read_end)
            to_child = _descriptor_of(write_end)
            undo.callback(os.close, to_child)
            self._create_process(read_end)
            undo.callback(_winapi.CloseHandle, self.sentinel)
            undo.callback(self.kill)
            # It waits for what it has yet to be sent, so it has started nothing outside of the job.
            self._job.add(self.sentinel)
            preparation = pickle_preparation(self, process_obj)
            # In a thread, because a pipe takes a few kilobytes at once, and ours does not break
            # before :meth:`close` is called.
            threading.Thread(
                target=_send, args=(to_child, preparation), name="creche-sender", daemon=True
            ).start()
            undo.pop_all()
        self.finalizer = util.Finalize(self, _close, ((self.sentinel, read_end), self._job))

    def duplicate_for_child(self, handle: int) -> int:
        """Give the child a duplicate of a handle; return its number there."""
        duplicate: int = reduction.duplicate(handle, self.sentinel)
        return duplicate

    def _create_process(self, read_end: int) -> None:
        command = spawn.get_command_line(parent_pid=os.getpid(), pipe_handle=read_end)
        executable = spawn.get_executable()
        environment = None
        # In a virtual environment, python.exe is a launcher that starts the real one as its child.
        base: str = sys._base_executable  # type: ignore[attr-defined]
        if _same_path(executable, sys.executable) and not _same_path(executable, base):
            command[0] = executable = base
            environment = os.environ | {"__PYVENV_LAUNCHER__": sys.executable}
        process, thread, self.pid, _ = _winapi.CreateProcess(
            executable,
            " ".join(f'"{part}"' for part in command),
            None,
            None,
            False,
            subprocess.CREATE_NEW_PROCESS_GROUP,
            cast("Any", environment),
            None,
            cast("Any", None),
        )
        _winapi.CloseHandle(thread)
        self.sentinel = int(process)
        self._handle = process


class AdoptedPopen(OwnedPopen):
    """A child that ``multiprocessing`` started, given to us while it runs. It is in no job."""


class SpawnProcess(multiprocessing.context.SpawnProcess):
    imports_main_later = True


PROCESS_TYPES: dict[str, Any] = {"spawn": SpawnProcess}


def start(process: Any, method: str) -> OwnedPopen:
    """Start a process of any ``multiprocessing`` type as one that the watcher reaps. Blocks.

    :raises OSError: if the system has no memory left, or lets this process have no jobs
    """
    # On the instance: the process may be of the application's own subclass.
    process._Popen = SpawnPopen
    try:
        process.start()
    finally:
        del process._Popen
    return process._popen  # type: ignore[no-any-return]


def own_started(process: Any) -> OwnedPopen:
    """Take over a process that ``multiprocessing`` started."""
    popen: Any = process._popen
    popen.__class__ = AdoptedPopen
    popen._reaped = Latch()
    if popen.returncode is not None:
        popen._reaped.set()
    return cast("OwnedPopen", popen)


def abort_start(method: str) -> None:
    """Make a start that hangs in another thread fail, where that is possible: not here."""


def preload_in_server(process: BaseProcess, modules: Sequence[str]) -> None:
    """There is no server: a process imports modules itself."""


def retire_servers() -> None:
    """There are none."""


def server_statistics() -> list[ForkServerStatistics]:
    """There are none."""
    return []


def settle_in(method: str, lifeline: int | None) -> None:
    """In a child: leave the reach of the parent's Ctrl-C. The job ties it to the parent's life."""
    isolate_child()


def ties_children(method: str) -> bool:
    """Whether children are born with what :func:`settle_in` does for others."""
    return False


def _same_path(left: str, right: str) -> bool:
    return os.path.normcase(left) == os.path.normcase(right)


def _descriptor_of(handle: int) -> int:
    """Turn a handle, which this takes over, into a descriptor of the C library."""
    try:
        return msvcrt.open_osfhandle(handle, 0)
    except OSError:
        _winapi.CloseHandle(handle)
        raise


def _send(descriptor: int, data: bytes) -> None:
    # Windows says EINVAL where POSIX says EPIPE: the child died, which its exit code will explain.
    with contextlib.suppress(OSError), open(descriptor, "wb") as pipe:
        pipe.write(data)


def _close(handles: tuple[int, ...], job: Job) -> None:
    for handle in handles:
        _winapi.CloseHandle(handle)
    job.close()
