"""Hearing of signals in a fork, from CPython 3.13 on.

A Python signal handler runs when the interpreter's main loop sees a flag in the state of the main
thread. Since 3.13 the C-level handler sets that flag in the state of the thread that was the main
one *before* the fork (``_PyRuntime.main_tstate``). A child that was forked from another thread, as
those of creche are, has no such thread: its pure Python code never sees a signal, and only system
calls that the signal interrupts do.

The wakeup descriptor is written to nevertheless. A thread of the child reads it and raises an
exception in the main thread through the interpreter's own ``PyThreadState_SetAsyncExc``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable

MISSES_SIGNALS = sys.version_info >= (3, 13) and sys.implementation.name == "cpython"
"""Whether a fork misses signals on this interpreter."""

_raise_in_thread = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)
_take_back = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)


class SignalThread:
    """Calls back in a thread of its own when a signal arrives that has a Python handler.

    It needs the wakeup descriptor, of which a process has one, and which event loops set when they
    start: hence :meth:`enable` and :meth:`disable`.
    """

    def __init__(self, number: int, callback: Callable[[], None]) -> None:
        receiver, self._sender = os.pipe()
        if sys.platform != "win32":  # where this is not used
            os.set_blocking(self._sender, False)
        # Where the function starts Trio itself, which restores the descriptor when it ends.
        warnings.filterwarnings("ignore", "It looks like Trio's signal handling", RuntimeWarning)
        threading.Thread(
            target=_read, args=(receiver, number, callback), name="creche-signals", daemon=True
        ).start()

    def enable(self) -> None:
        """Listen. The handlers of signals that came before run now. In the main thread only."""
        signal.set_wakeup_fd(self._sender, warn_on_full_buffer=False)
        os.kill(os.getpid(), 0)  # sends nothing, but has the interpreter look for signals

    def disable(self) -> None:
        """Free the wakeup descriptor. In the main thread only."""
        signal.set_wakeup_fd(-1)


def raise_in_main_thread(exception: type[BaseException]) -> None:
    """Have ``exception`` raised in the main thread at its next bytecode."""
    _raise_in_thread(threading.main_thread().ident, exception)


def take_back() -> None:
    """In the main thread: forget what :func:`raise_in_main_thread` has not raised yet."""
    _take_back(threading.get_ident(), None)


def _read(receiver: int, number: int, callback: Callable[[], None]) -> None:
    while arrived := os.read(receiver, 1):
        if arrived[0] == number:
            callback()
