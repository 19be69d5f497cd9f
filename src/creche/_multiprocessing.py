"""What creche builds on in ``multiprocessing`` without its documentation promising it.

All in one place, so that a new version of Python can be checked against one list, and with the type
``Any``, because the type stubs know these parts in part only.
"""

from __future__ import annotations

import contextlib
import multiprocessing.context as _context
from collections.abc import Iterator
from multiprocessing import process as _process
from multiprocessing import reduction as _reduction
from multiprocessing import resource_tracker as _resource_tracker
from multiprocessing import spawn as _spawn
from multiprocessing import synchronize as _synchronize
from multiprocessing import util as _util
from typing import Any

# get_spawning_popen, set_spawning_popen; the process types
context: Any = _context
# _children, current_process()._inheriting
process: Any = _process
# ForkingPickler, DupFd, dump
reduction: Any = _reduction
# ensure_running, getfd, _fork_intent, _resource_tracker._fd
resource_tracker: Any = _resource_tracker
# get_preparation_data, prepare, get_command_line, get_executable
spawn: Any = _spawn
# SemLock
synchronize: Any = _synchronize
# Finalize, close_fds, spawnv_passfds, _exit_function, _flush_std_streams
util: Any = _util


@contextlib.contextmanager
def keeping_resource_tracker() -> Iterator[None]:
    """Have a child that is forked in this block, by this thread, use the tracker of its parent.

    From 3.14 on, children that ``multiprocessing`` has not forked itself lose its descriptor, and
    would start trackers of their own, which unlink what the application still uses:
    https://github.com/python/cpython/issues/146313
    """
    intent = getattr(resource_tracker, "_fork_intent", None)
    if intent is None:
        yield
        return
    intent.preserve_fd = True
    try:
        yield
    finally:
        intent.preserve_fd = False
