"""Job objects: what process groups and the lifeline are on POSIX, in one.

Each child is in a job of its own, to which this process has the only handle. Whatever the child
starts is in the job, too. The kernel kills all that is in a job when its last handle is closed,
which it is when this process ends, even by ``TerminateProcess``.

Jobs nest since Windows 8: it does no harm that this process is in one itself (of a console host, a
service, a CI runner, or as a child of creche's), and what the child adds nests in ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from ctypes import wintypes
from typing import TYPE_CHECKING

assert sys.platform == "win32" or not TYPE_CHECKING

_EXTENDED_LIMIT_INFORMATION = 9  # JobObjectExtendedLimitInformation
_LIMIT_PROCESS_MEMORY = 0x0100  # JOB_OBJECT_LIMIT_PROCESS_MEMORY
_LIMIT_BREAKAWAY_OK = 0x0800  # JOB_OBJECT_LIMIT_BREAKAWAY_OK
_LIMIT_KILL_ON_JOB_CLOSE = 0x2000  # JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE


class _BasicLimitInformation(ctypes.Structure):  # JOBOBJECT_BASIC_LIMIT_INFORMATION
    _fields_ = (
        ("PerProcessUserTimeLimit", wintypes.LARGE_INTEGER),
        ("PerJobUserTimeLimit", wintypes.LARGE_INTEGER),
        ("LimitFlags", wintypes.DWORD),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", wintypes.DWORD),
        ("Affinity", ctypes.c_size_t),  # a ULONG_PTR
        ("PriorityClass", wintypes.DWORD),
        ("SchedulingClass", wintypes.DWORD),
    )


class _ExtendedLimitInformation(ctypes.Structure):  # JOBOBJECT_EXTENDED_LIMIT_INFORMATION
    _fields_ = (
        ("BasicLimitInformation", _BasicLimitInformation),
        ("IoInfo", ctypes.c_ulonglong * 6),  # IO_COUNTERS
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    )


# A library object of our own: those of ctypes.windll are shared, with the types that others set.
_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)

_create_job = _kernel32.CreateJobObjectW
_create_job.argtypes = (wintypes.LPVOID, wintypes.LPCWSTR)
_create_job.restype = wintypes.HANDLE

_set_information = _kernel32.SetInformationJobObject
_set_information.argtypes = (wintypes.HANDLE, ctypes.c_int, wintypes.LPVOID, wintypes.DWORD)
_set_information.restype = wintypes.BOOL

_assign_process = _kernel32.AssignProcessToJobObject
_assign_process.argtypes = (wintypes.HANDLE, wintypes.HANDLE)
_assign_process.restype = wintypes.BOOL

_terminate_job = _kernel32.TerminateJobObject
_terminate_job.argtypes = (wintypes.HANDLE, wintypes.UINT)
_terminate_job.restype = wintypes.BOOL

_current_process = _kernel32.GetCurrentProcess
_current_process.argtypes = ()
_current_process.restype = wintypes.HANDLE

_close_handle = _kernel32.CloseHandle
_close_handle.argtypes = (wintypes.HANDLE,)
_close_handle.restype = wintypes.BOOL


class Job:
    """Ends all that is in it when this object is closed, or this process ends.

    :raises OSError: if there can be no more jobs
    """

    def __init__(self) -> None:
        handle: int | None = _create_job(None, None)  # not inherited: ours is the only handle
        if handle is None:
            raise _last_error()
        self._handle: int | None = handle
        try:
            # A descendant that should outlive the child asks for CREATE_BREAKAWAY_FROM_JOB, as it
            # would for a session of its own on POSIX.
            self._limit(_LIMIT_KILL_ON_JOB_CLOSE | _LIMIT_BREAKAWAY_OK)
        except OSError:
            self.close()
            raise

    def add(self, process_handle: int) -> None:
        """Put a process into the job, and whatever it starts from now on.

        :raises OSError: if that cannot be, because the job that this process itself is in forbids
            it
        """
        _check(_assign_process(self._handle, process_handle))

    def kill(self, exitcode: int) -> None:
        """End all that is in the job now."""
        if self._handle is not None:
            _check(_terminate_job(self._handle, exitcode))

    def release(self) -> None:
        """Close the job, and let what is left in it go on."""
        if self._handle is not None:
            with contextlib.suppress(OSError):  # what is left goes, too, but nobody waits in vain
                self._limit(_LIMIT_BREAKAWAY_OK)
            self.close()

    def close(self) -> None:
        """Close the job, which ends what is left in it. Does nothing the second time."""
        handle, self._handle = self._handle, None
        if handle is not None:
            _close_handle(handle)

    def _limit(self, flags: int, memory: int = 0) -> None:
        information = _ExtendedLimitInformation()
        information.ProcessMemoryLimit = memory
        information.BasicLimitInformation.LimitFlags = flags
        _check(
            _set_information(
                self._handle,
                _EXTENDED_LIMIT_INFORMATION,
                ctypes.byref(information),
                ctypes.sizeof(information),
            )
        )


_own_job: Job | None = None


def limit_own_memory(limit: int) -> None:
    """Have the kernel refuse this process more than ``limit`` bytes of committed memory.

    :raises OSError: if that cannot be
    """
    global _own_job
    _own_job = Job()  # for ever: closing it would end this process
    _own_job._limit(_LIMIT_PROCESS_MEMORY | _LIMIT_BREAKAWAY_OK, limit)
    _own_job.add(_current_process())


def lift_own_memory_limit() -> None:
    """Undo :func:`limit_own_memory`."""
    if _own_job is not None:
        _own_job._limit(_LIMIT_BREAKAWAY_OK)


def _check(succeeded: int) -> None:
    if not succeeded:
        raise _last_error()


def _last_error() -> OSError:
    return ctypes.WinError(ctypes.get_last_error())
