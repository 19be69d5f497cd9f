"""What creche builds on in ``multiprocessing`` without its documentation promising it.

All in one place, so that a new version of Python can be checked against one list, and with the type
``Any``, because the type stubs know these parts in part only.
"""

from __future__ import annotations

import multiprocessing.context as _context
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
# ensure_running, getfd
resource_tracker: Any = _resource_tracker
# get_preparation_data, prepare, get_command_line, get_executable
spawn: Any = _spawn
# SemLock
synchronize: Any = _synchronize
# Finalize, close_fds, spawnv_passfds, _exit_function, _flush_std_streams
util: Any = _util
