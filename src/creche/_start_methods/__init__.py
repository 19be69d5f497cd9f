"""How processes come into being.

Everything above this package sees a :class:`multiprocessing.process.BaseProcess` and the ``Popen``
that starting it gave; which start method made it is decided here and nowhere else.
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from .._multiprocessing import process as _multiprocessing_process
from .._platform import DEFAULT_START_METHOD
from ._main_module import import_main, main_module_settings
from ._preloaded import preloaded, set_preloaded
from ._server_statistics import ForkServerStatistics

if sys.platform == "win32":
    from ._windows_popen import (
        PROCESS_TYPES,
        abort_start,
        own_started,
        preload_in_server,
        retire_servers,
        server_statistics,
        settle_in,
        start,
        ties_children,
    )
else:
    from ._posix_start import (
        PROCESS_TYPES,
        abort_start,
        own_started,
        preload_in_server,
        retire_servers,
        server_statistics,
        settle_in,
        start,
        ties_children,
    )

__all__ = [
    "abort_start",
    "check_start_method",
    "forget_process",
    "import_main",
    "main_module_settings",
    "make_process",
    "own_started",
    "ForkServerStatistics",
    "get_context",
    "preload_in_server",
    "preloaded",
    "retire_servers",
    "server_statistics",
    "set_preloaded",
    "settle_in",
    "start",
    "start_method_of",
    "ties_children",
]


def check_start_method(method: str | None) -> str:
    """Return the name of a start method that this platform has; the default one for ``None``.

    :raises ValueError: if there is no such start method here
    """
    if method is None:
        return DEFAULT_START_METHOD
    if method not in PROCESS_TYPES:
        known = ", ".join(sorted(PROCESS_TYPES))
        raise ValueError(f"no start method {method!r} on this platform, which has: {known}")
    return method


def get_context() -> BaseContext:
    """Return the ``multiprocessing`` context of creche's own start method, ``"creche"``.

    It has what the contexts of the standard library have: ``Process``, ``Pool``, locks, queues and
    pipes, which can be passed to its processes, and to those of :class:`AsyncProcess` under this
    start method. ``multiprocessing.get_context("creche")`` gives the same, once creche is imported.

    Its processes are joined and terminated as ever. Other than those of the standard library they
    end with the process that started them, even if that is killed; and they see the environment,
    the working directory, ``sys.path`` and ``sys.argv`` as they are when they are started.

    :raises ValueError: if this platform does not have the start method: it is there on Linux, from
        5.3 on
    """
    check_start_method("creche")
    return multiprocessing.get_context("creche")


def make_process(
    method: str, name: str | None, default_name: str, daemon: bool | None
) -> BaseProcess:
    """Make a process object that has not been started."""
    process: BaseProcess = PROCESS_TYPES[method](name=name, daemon=daemon)
    if name is None:
        process.name = f"{default_name}-{':'.join(map(str, process._identity))}"
    return process


def start_method_of(process: Any) -> str:
    """The start method of somebody's own process object."""
    return process._start_method or multiprocessing.get_start_method()


def forget_process(process: BaseProcess) -> None:
    """In a fork of this process: keep ``multiprocessing`` from joining its parent's child."""
    _multiprocessing_process._children.discard(process)
