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
from typing import TYPE_CHECKING

assert sys.platform != "win32" or not TYPE_CHECKING


from .._ctrl_c import postpone_ctrl_c_in_children
from .._platform._parent_death import die_with_lifeline
from .._platform._posix import isolate_child, reset_signals
from ._exit_descriptor import open_exit_descriptor
from ._fork_server import ENVIRONMENT_KEY
from ._main_module import import_main_in_server


def prepare_server() -> None:
    isolate_child()  # the children start in the server's process group
    settings = json.loads(os.environ.pop(ENVIRONMENT_KEY))
    address = _listening_address()
    _remove_socket_at_exit(address, settings["application"])
    with _dying_with(settings["application"], settings["lifeline"], address):
        import_main_in_server(settings["main"])
    for module in settings["modules"]:
        with contextlib.suppress(Exception):  # the child that needs it will report it
            importlib.import_module(module)
    reset_signals()  # the main module may have installed handlers
    postpone_ctrl_c_in_children()
    # Objects that the collector never touches stay on pages that parent and children share.
    gc.collect()
    gc.freeze()


def _remove_socket_at_exit(address: str, application: int) -> None:
    """Where the application was killed, remove what it would have removed at its end."""
    server = os.getpid()

    def remove_socket() -> None:
        if os.getpid() == server and _has_ended(application):
            _remove_socket(address)

    atexit.register(remove_socket)


@contextlib.contextmanager
def _dying_with(application: int, lifeline: str, address: str) -> Iterator[None]:
    """Die with the application while the block runs, whatever the block does.

    The server's own loop, later, notices the end of the application by itself. Importing a main
    module that never returns, or sits in C code that holds the GIL, does not: there the kernel
    kills the server, and a process made for that removes its socket.
    """
    if sys.platform != "linux":
        yield
        return
    janitor, held_by_server = _start_janitor(lifeline, address)
    # From here on the kernel may kill this process at any moment.
    tie = die_with_lifeline(lifeline, signal.SIGKILL)
    try:
        if tie is None and os.getppid() != application:
            sys.exit()  # it has ended already
        yield
    finally:
        if tie is not None:
            os.close(tie)
        os.kill(janitor, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # where the application ignores SIGCHLD
            os.waitpid(janitor, 0)
        os.close(held_by_server)


def _start_janitor(lifeline: str, address: str) -> tuple[int, int]:
    """Start the process that removes the socket of a server that did not come to serve.

    :return: its process id, and the descriptor that tells it of this process's end
    """
    end_of_server, held_by_server = os.pipe()
    janitor = os.fork()
    if janitor == 0:
        try:
            os.setpgid(0, 0)
            _clean_up_after_server(address, lifeline, end_of_server)
        finally:
            os._exit(0)
    # Out of the group that the kernel kills. Both say so, as nobody knows who comes first.
    os.setpgid(janitor, janitor)
    os.close(end_of_server)
    return janitor, held_by_server


def _clean_up_after_server(address: str, lifeline: str, end_of_server: int) -> None:
    """Wait for the end of the server or of the application, and remove the server's socket."""
    # As long as the listening socket is open in any process, who connects to it waits.
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor != end_of_server:
            with contextlib.suppress(OSError):  # the one that listed the directory
                os.close(descriptor)
    poller = select.poll()
    poller.register(end_of_server, select.POLLIN)
    try:
        end_of_application = os.open(lifeline, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # it has ended
        end_of_application = end_of_server
    poller.register(end_of_application, select.POLLIN)
    if end_of_application in dict(poller.poll()):
        _remove_socket(address)
    else:
        with contextlib.suppress(OSError):
            os.unlink(address)  # its folder is the application's, which lives


def _remove_socket(address: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(address)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(address))


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


if ENVIRONMENT_KEY in os.environ and "multiprocessing.forkserver" in sys.modules:
    prepare_server()
