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
import select
import signal
import socket
import stat
import sys
from collections.abc import Iterator

import creche._child

from .._multiprocessing import process, spawn
from .._platform import die_with_lifeline, reset_signals
from ._fork_server import ENVIRONMENT_KEY
from ._posix_popen import open_exit_descriptor

main_failure: Exception | None = None
"""Why the main module could not be imported. The children report it, instead of trying again: a
main module without a guard would run the whole program once more in each of them."""


def prepare_server() -> None:
    # A Ctrl-C is for the foreground process group. The children start in the server's group.
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    settings = json.loads(os.environ.pop(ENVIRONMENT_KEY))
    with _ending_with(settings["application"], settings["lifeline"]):
        _import_main(settings["main"])
    for module in settings["modules"]:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    reset_signals()  # the main module may have installed handlers
    # Objects that the collector never touches stay on pages that parent and children share.
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def _ending_with(application: int, lifeline: str) -> Iterator[None]:
    """End with the application, and remove the server's socket if that was killed.

    The server's own loop, later, notices the end of the application by itself; importing a main
    module that never returns does not.
    """
    server = os.getpid()
    address = _listening_address()

    def remove_socket() -> None:
        if os.getpid() == server and _has_ended(application):
            with contextlib.suppress(OSError):
                os.unlink(address)
                os.rmdir(os.path.dirname(address))

    def end(_signum: int, _frame: object) -> None:
        remove_socket()
        os._exit(1)

    atexit.register(remove_socket)
    signal.signal(signal.SIGTERM, end)
    tie = die_with_lifeline(lifeline, signal.SIGTERM)
    try:
        yield
    finally:
        if tie is not None:
            os.close(tie)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _listening_address() -> str:
    """The path of the socket that this server listens on, or an empty string."""
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as listener:
                    address = listener.getsockname()
                if isinstance(address, str) and address:
                    return address
    return ""


def _has_ended(application: int) -> bool:
    """Whether the application has ended, or does so just now.

    A process that exits closes its pipes, which is what we hear of, some time before its children
    get another parent.
    """
    if os.getppid() != application:
        return True
    try:
        descriptor = open_exit_descriptor(application)
    except ProcessLookupError:
        return True
    if descriptor is None:
        return False
    try:
        return bool(select.select([descriptor], [], [], 1.0)[0])
    finally:
        os.close(descriptor)


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


if ENVIRONMENT_KEY in os.environ and "multiprocessing.forkserver" in sys.modules:
    prepare_server()
