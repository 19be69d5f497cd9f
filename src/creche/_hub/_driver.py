"""Who waits for the sockets of hubs and their clients: the watcher, wherever it can."""

from __future__ import annotations

import os
import threading

from .._platform import WATCHER_TAKES_SOCKETS, SelectorPoller
from .._runtime import runtime
from .._watcher import Watcher

_own: Watcher | None = None
_lock = threading.Lock()
_own_thread = not WATCHER_TAKES_SOCKETS


def socket_watcher() -> Watcher:
    """Return the watcher whose poller can wait for sockets, of which a process has one.

    Windows' waits for handles; so there is another thread for this there.
    """
    global _own
    if not _own_thread:
        return runtime().watcher
    with _lock:
        if _own is None:
            _own = Watcher(SelectorPoller(), name="creche-hub")
        return _own


def use_own_thread(own: bool) -> None:
    """For tests: whether there is to be another thread, for what connects from now on."""
    global _own_thread
    _own_thread = own


def _forget() -> None:
    global _own, _lock
    _lock = threading.Lock()
    if _own is not None:
        forgotten, _own = _own, None
        forgotten.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
