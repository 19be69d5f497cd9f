"""Runs once in creche's fork server, when the server's main function imports it.

What is imported here is in memory before the first child is forked, so that no child imports it.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import sys
from multiprocessing import forkserver
from typing import Any

import creche._child
import creche._start_methods._posix_popen

from .._multiprocessing import process, spawn
from .._platform import die_with_lifeline, reset_signals
from ._fork_server import ENVIRONMENT_KEY

main_failure: Exception | None = None
"""Why the main module could not be imported. The children report it, instead of trying again: a
main module without a guard would run the whole program once more in each of them."""


def prepare_server() -> None:
    # A Ctrl-C is for the foreground process group. The children start in the server's group.
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    settings = json.loads(os.environ.pop(ENVIRONMENT_KEY))
    # The server's own loop notices the end of the application; importing a main module that
    # never returns does not.
    die_with_lifeline(settings["lifeline"])
    atexit.register(_remove_socket, os.getpid(), settings["application"])
    _import_main(settings["main"])
    for module in settings["modules"]:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    reset_signals()  # the main module may have installed handlers
    # Objects that the collector never touches stay on pages that parent and children share.
    gc.collect()
    gc.freeze()


def _import_main(settings: dict[str, object]) -> None:
    global main_failure
    current = process.current_process()
    current._inheriting = True
    try:
        spawn.prepare(settings)
    except Exception as error:
        main_failure = error
    except SystemExit as error:
        main_failure = creche._child.MainModuleExited(f"sys.exit({error.code!r})")
    finally:
        del current._inheriting


def _remove_socket(server_pid: int, application: int) -> None:
    """Remove the server's socket and its folder where the application was killed."""
    if os.getpid() == server_pid and os.getppid() != application:
        server: Any = forkserver._forkserver
        address = server._forkserver_address
        if isinstance(address, str):
            with contextlib.suppress(OSError):
                os.unlink(address)
                os.rmdir(os.path.dirname(address))


if ENVIRONMENT_KEY in os.environ and "multiprocessing.forkserver" in sys.modules:
    prepare_server()
