"""A spare: a child that is forked before it is asked for.

It waits for the request itself, on the socket that it shares with the server, so that a start takes
neither the time of a fork nor a word from the server. When it has taken one it leaves the server,
and is a child of the application's, which may have it killed at any moment.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import pickle
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, NoReturn

assert sys.platform == "linux" or not TYPE_CHECKING

from ..._multiprocessing import process, resource_tracker, spawn, util
from ..._platform._parent_death import die_with_parent
from .._exit_descriptor import is_readable
from .._main_module import inheriting, pickle_for_child
from . import _surroundings
from ._preloading import import_in_child
from ._protocol import PID, DescriptorsLost, Kind, Message, StartRequest, failed, receive, send

# Where processes are started without a pause, the next request comes sooner.
_QUIET_SECONDS = 0.003

_descriptors: Sequence[int] = ()


class ReceivedDescriptor:
    """A descriptor that a process object refers to."""

    def __init__(self, position: int) -> None:
        self._position = position

    def detach(self) -> int:
        return _descriptors[self._position]


@dataclass(frozen=True)
class Birth:
    """What a spare gets from the server."""

    requests: socket.socket
    server: socket.socket
    """Where the server hears that a spare is none any more."""
    lifeline: int
    tie: int | None
    """What ties the process group of the server to the application's life."""
    servers_own: Sequence[int]
    """Descriptors that a child has no use for."""
    descriptor_limits: tuple[int, int]
    interrupt_handler: Any
    warning_filters: tuple[bytes, ...]
    imported_by_children: Sequence[str]
    """Modules that start threads."""
    sample: Callable[[], tuple[Any, Any]]
    """Makes something to rehearse with: :func:`creche._child.sample`."""


def be_spare(birth: Birth) -> NoReturn:
    """Be a child process, from the fork to the exit."""
    code = 1
    try:
        _settle_in(birth)
        _rehearse(birth)
        request = _take_request(birth)
        # None where the application has no use for the server any more.
        code = 0 if request is None else _run_process(request, birth)
    except SystemExit as error:  # of the main module, when it was imported
        code = _exit_code(error.code)
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        try:
            atexit._run_exitfuncs()
            util._flush_std_streams()
        finally:
            os._exit(code)


def _settle_in(birth: Birth) -> None:
    """Take leave of what is the server's. The process group is still its own, which ties us."""
    for descriptor in birth.servers_own:
        os.close(descriptor)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # What the server would do at its end is none of a child's business.
    atexit._clear()
    atexit.register(util._exit_function)


def _rehearse(birth: Birth) -> None:
    """Do what a request leads to, for nothing: see :meth:`creche._child.ChildMain.rehearse`.

    Where one comes quickly there is no time for that.
    """
    if is_readable(birth.requests.fileno(), _QUIET_SECONDS):
        return
    sample: Any = BaseProcess(name="spare")
    sample.run, parents_end = birth.sample()
    popen = _SamplePopen()
    settings = {"name": "spare", "authkey": process.current_process().authkey}
    pickled = pickle_for_child(popen, settings, sample)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    tracker = resource_tracker._resource_tracker._fd
    with ours, theirs, open(os.devnull, "rb") as null:
        send(ours, StartRequest(b"", pickled, null.fileno(), tracker, (1, 2), popen.sent).pack())
        message = receive(theirs)
    assert message is not None
    request = StartRequest.unpack(message)
    os.close(request.status)
    _adopt_surroundings(request, birth)
    _load_process(request, birth).run.rehearse()
    parents_end.close()
    sample.run.wire.close()
    util._close_stdin()
    process.BaseProcess._after_fork()


class _SamplePopen:
    """Takes the place of the ``Popen`` that hands descriptors over."""

    DupFd = ReceivedDescriptor

    def __init__(self) -> None:
        self.sent: list[int] = []

    def duplicate_for_child(self, descriptor: int) -> int:
        self.sent.append(descriptor)
        return len(self.sent) - 1


def _take_request(birth: Birth) -> StartRequest | None:
    """Wait for a request and become a child of the application's; ``None`` if there is none."""
    poller = select.poll()
    poller.register(birth.requests, select.POLLIN)
    poller.register(birth.server, 0)
    if birth.requests.fileno() not in dict(poller.poll()):
        return None  # the server has died, and the application will make another
    try:
        message = receive(birth.requests)
    except DescriptorsLost:
        _decline(birth, OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        return None
    if message is None:
        return None
    # From here on the application can kill this process without the server.
    os.setpgid(0, 0)
    die_with_parent(os.dup(birth.lifeline))
    if birth.tie is not None:
        os.close(birth.tie)
    signal.signal(signal.SIGINT, birth.interrupt_handler)
    request = StartRequest.unpack(message)
    pid = PID.pack(os.getpid())
    with contextlib.suppress(OSError):  # it has died, and will not hear of our end either
        send(birth.server, Message(Kind.TAKEN, pid + request.surroundings, [request.status]))
    try:
        _adopt_surroundings(request, birth)
        resource.setrlimit(resource.RLIMIT_NOFILE, birth.descriptor_limits)
        pidfd = os.pidfd_open(os.getpid())
    except OSError as error:
        _decline(birth, error)
        return None
    # Where it cannot be sent, nobody knows of this process, which must run nothing then.
    send(birth.requests, Message(Kind.STARTED, pid, [pidfd]))
    os.close(pidfd)
    os.close(request.status)
    birth.requests.close()
    birth.server.close()
    return request


def _decline(birth: Birth, error: OSError) -> None:
    send(birth.requests, failed(error))


def _adopt_surroundings(request: StartRequest, birth: Birth) -> None:
    filters = birth.warning_filters
    if request.surroundings:
        filters = _surroundings.apply(request.surroundings)
    if filters:
        _surroundings.apply_filters(filters)
    for standard, output in enumerate(request.output, 1):
        if output is None:
            with contextlib.suppress(OSError):
                os.close(standard)
        else:
            os.dup2(output, standard)
            os.close(output)
    os.close(resource_tracker._resource_tracker._fd)
    resource_tracker._resource_tracker._fd = request.tracker


def _run_process(request: StartRequest, birth: Birth) -> int:
    code: int = _load_process(request, birth)._bootstrap(parent_sentinel=birth.lifeline)
    return code


def _load_process(request: StartRequest, birth: Birth) -> Any:
    global _descriptors
    _descriptors = request.descriptors
    with inheriting():
        import_in_child(birth.imported_by_children)
        stream = io.BytesIO(request.process)
        spawn.prepare(pickle.load(stream))
        return pickle.load(stream)


def _exit_code(code: object) -> int:
    """What the interpreter makes of the argument of ``sys.exit``."""
    if code is None or isinstance(code, int):
        return code or 0
    print(code, file=sys.stderr)
    return 1
