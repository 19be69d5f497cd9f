"""The parent's end of a child that the server has forked."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

assert sys.platform == "linux" or not TYPE_CHECKING

from ..._multiprocessing import spawn
from .._exit_descriptor import exit_code_of, is_readable, is_reaped, open_reaped_descriptor
from .._main_module import main_module_settings, pickle_for_child
from .._posix_popen import OwnedPopen
from ._protocol import EXIT_CODE
from ._servers import server_for
from ._spare import ReceivedDescriptor

# What is left of multiprocessing's settings: the rest is in the Surroundings.
_SETTINGS = frozenset({"name", "authkey", "log_to_stderr", "log_level", "start_method"})

# Seconds that an exit code may be on its way until the server, which somebody may have stopped, is
# woken; and until it is given up. (On a busy machine, 50 ms were too few now and then, as a process
# that has ended needs a CPU once more to be reaped.)
_EXIT_CODE_LATE = 0.2
_EXIT_CODE_LOST = 5.0

# From <linux/pidfd.h>: a signal to the process group that the process has led.
_PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2


class ServedPopen(OwnedPopen):
    """Started by the server, and reaped by it; the watcher hears of the end from the pidfd."""

    method = "creche"
    DupFd = ReceivedDescriptor

    def __init__(self, process_obj: BaseProcess) -> None:
        self._descriptors: list[int] = []
        self._awaits_exit_code = False
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        self._descriptors.append(fd)
        return len(self._descriptors) - 1

    def _launch(self, process_obj: BaseProcess) -> None:
        pickled = _pickle_process(self, process_obj)
        server = server_for(getattr(process_obj, "server_modules", ()))
        child = server.start_child(pickled, self._descriptors)
        self._server = child.server
        self.pid = child.pid
        self._status = child.status
        self._keep(child.pidfd, child.status)

    def watchable(self) -> int:
        if not self._awaits_exit_code:
            return self.sentinel
        if not self._server.kernel_reaps:
            return self._status
        if self._exit_descriptor is None:
            self._exit_descriptor = open_reaped_descriptor(self.sentinel)
        return self._exit_descriptor

    def reap(self, *, kill_group: bool) -> int | None:
        self.collect()
        if kill_group and self.returncode is not None:
            self.kill_group()
        return self.returncode

    def collect(self) -> None:
        """See whether the child has ended, and how."""
        if self.returncode is not None or not is_readable(self.sentinel):
            return
        if not self._tells_exit_code(0.0):
            self._awaits_exit_code = True  # the server, or the kernel, is about to reap it
            return
        code: int | None
        if not self._server.kernel_reaps and (data := os.read(self._status, EXIT_CODE.size)):
            (code,) = EXIT_CODE.unpack(data)
        else:  # or the server has died
            code = exit_code_of(self.sentinel)
        if code is None:
            self.give_up_exit_code()
        else:
            self._set_returncode(code)

    def _tells_exit_code(self, timeout: float) -> bool:
        """Whether somebody tells in time how the child has ended, or nobody ever will."""
        if not self._server.kernel_reaps:
            return is_readable(self._status, timeout)
        return is_reaped(self.sentinel, timeout) or self._server.has_ended()

    def expect_exit_code(
        self,
        call_later: Callable[[float, Callable[[], None]], None],
        on_lost: Callable[[], None],
    ) -> None:
        def give_up() -> None:
            if self.returncode is None:
                self.give_up_exit_code()
                on_lost()

        if self._awaits_exit_code:
            call_later(_EXIT_CODE_LATE, self._wake_server)
            call_later(_EXIT_CODE_LOST, give_up)

    def _wake_server(self) -> None:
        self._server.signal(signal.SIGCONT)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.sentinel, number)

    def kill_group(self) -> None:
        try:
            # The pidfd pins the number down, even when the child has been reaped.
            signal.pidfd_send_signal(
                self.sentinel, signal.SIGKILL, None, _PIDFD_SIGNAL_PROCESS_GROUP
            )
        except (ProcessLookupError, PermissionError):
            pass
        except OSError:  # EINVAL, before Linux 6.9
            super().kill_group()


class SharedServedPopen(ServedPopen):
    """For processes that plain ``multiprocessing`` code starts and joins, from any thread."""

    def __init__(self, process_obj: BaseProcess) -> None:
        self._collecting = threading.Lock()
        super().__init__(process_obj)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        if not flag & os.WNOHANG:
            return self.wait()
        with self._collecting:
            self.collect()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        if self.returncode is None and connection.wait([self.sentinel], timeout):
            self.poll()
            if self.returncode is None and not self._tells_exit_code(_EXIT_CODE_LATE):
                self._wake_server()
                self._tells_exit_code(_EXIT_CODE_LOST)
            self.poll()
            if self.returncode is None:
                self.give_up_exit_code()
        return self.returncode


def _pickle_process(popen: ServedPopen, process_obj: BaseProcess) -> bytes:
    settings = {
        key: value
        for key, value in spawn.get_preparation_data(process_obj.name).items()
        if key in _SETTINGS
    }
    if not getattr(process_obj, "imports_main_later", False):
        settings |= main_module_settings()
    return pickle_for_child(popen, settings, process_obj)
