"""What code that runs in a child calls to talk to the parent, after ``anyio.from_thread``.

All of it works in plain and in async functions, in any thread of the child, in processes of their
own and in the workers of pools.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar, TypeVarTuple, Unpack

from ._errors import ProcessStateError, SerializationError
from ._parent_connection import CurrentProcess, ParentConnection, parent_connection
from ._parent_requests import Requests, parent_requests
from ._progress_feed import encode_progress
from ._wire._framing import FrameKind
from ._wire._outcomes import value_message
from ._wire._pickling import loads

__all__ = [
    "CurrentProcess",
    "arun",
    "arun_sync",
    "cancelled",
    "check_cancelled",
    "current_process",
    "deferred_cancellation",
    "report",
    "run",
    "run_sync",
    "started",
]

T = TypeVar("T")
PosArgsT = TypeVarTuple("PosArgsT")


def started(value: object = None) -> None:
    """Tell the parent that this process is ready.

    :meth:`creche.ProcessNursery.start` waits for this, and returns ``value``. Elsewhere it has no
    effect.

    :param value: anything that can be pickled: the port that a server listens on, say
    :raises ProcessStateError: if this process was not started by creche, or has called it before
    :raises SerializationError: if ``value`` cannot be pickled
    """
    connection = _connection("started()")
    with connection.stop.deferring():  # or it is taken for an error of pickling
        message = value_message(value, FrameKind.STARTED)
    if message[0] is FrameKind.BAD_VALUE:
        type_name, (error_name, text, _) = loads(message[1])
        raise SerializationError(
            f"the value given to started(), of type {type_name}, cannot be pickled"
            f" ({error_name}: {text})"
        )
    connection.send_started(message)


def run(
    func: Callable[[Unpack[PosArgsT]], Awaitable[T]],
    *args: *PosArgsT,
) -> T:
    """Call an async function in the parent, and block until it is done.

    It runs in the event loop that started this process (or opened the pool of this worker), in a
    task of its own, with the context variables of the task that did so. When this process ends
    before it does, it is cancelled.

    In async code this holds up the event loop of the child: there, use :func:`arun`.

    :param func: an async function that the parent can import
    :param args: its positional arguments, which travel as pickles
    :return: what it returns
    :raises Exception: whatever it raises, with the parent's traceback as its ``__cause__``
    :raises RemoteError: in place of an exception that cannot be raised here
    :raises SerializationError: if something cannot be pickled or unpickled
    :raises ProcessStateError: if this process was not started by creche, or the parent's event loop
        is closed; or in a finalizer or a signal handler which has interrupted this thread just when
        it was sending or receiving something of the kind
    """
    return _requests("run()").call(func, args, awaits=True)  # type: ignore[no-any-return]


def run_sync(func: Callable[[Unpack[PosArgsT]], T], *args: *PosArgsT) -> T:
    """Call a plain function in the parent's event loop, and block until it is done.

    The event loop waits for it: it should take no time. All else is as for :func:`run`.
    """
    return _requests("run_sync()").call(func, args, awaits=False)  # type: ignore[no-any-return]


async def arun(
    func: Callable[[Unpack[PosArgsT]], Awaitable[T]],
    *args: *PosArgsT,
) -> T:
    """Call an async function in the parent, from async code, and wait until it is done.

    Cancellation cancels it in the parent, without waiting for that. All else is as for :func:`run`.
    """
    requests = _requests("arun()")
    return await requests.acall(func, args, awaits=True)  # type: ignore[no-any-return]


async def arun_sync(func: Callable[[Unpack[PosArgsT]], T], *args: *PosArgsT) -> T:
    """Call a plain function in the parent's event loop, from async code, and wait for its value.

    All else is as for :func:`run_sync`.
    """
    requests = _requests("arun_sync()")
    return await requests.acall(func, args, awaits=False)  # type: ignore[no-any-return]


def report(done: float, total: float | None = None, message: str | None = None) -> None:
    """Tell the parent how far this process is.

    It gets it as ``process.progress``: see :attr:`creche.AsyncProcess.progress`. A reader that is
    slower gets the newest report. What a call in a worker of a pool reports goes to the
    ``on_progress`` of :meth:`creche.ProcessPool.run`; what the items of a map report, to nobody.

    A report costs some microseconds in both processes, so it should be made some thousand times a
    second at most.

    :param done: how much is done, in any unit
    :param total: how much there is, where that is known
    :param message: what is being done
    :raises TypeError: if an argument is of a wrong type
    :raises ProcessStateError: if this process was not started by creche
    """
    connection = _connection("report()")
    for name, number in (("done", done), ("total", total)):
        if not isinstance(number, int | float) and (name == "done" or number is not None):
            raise TypeError(f"{name} must be a number, not {number!r}")
    if message is not None and not isinstance(message, str):
        raise TypeError(f"message must be a string, not {message!r}")
    connection.send_progress(encode_progress(done, total, message))


def cancelled() -> bool:
    """Whether the parent has asked this process to stop.

    Code sees that which is not interrupted by it: other threads than the main one, clean-up in a
    ``finally``, and the block of :func:`deferred_cancellation`.

    :raises ProcessStateError: if this process was not started by creche
    """
    return _connection("cancelled()").stop.requested


def check_cancelled() -> None:
    """Raise :exc:`creche.StopRequested` if the parent has asked this process to stop.

    For code that is not interrupted by the request itself (see :func:`cancelled`), at places where
    it can be left. In async functions there is no need for it: they are cancelled.

    :raises StopRequested: if it has; let it pass
    :raises ProcessStateError: if this process was not started by creche
    """
    _connection("check_cancelled()").stop.check()


def deferred_cancellation() -> AbstractContextManager[None]:
    """Return a context manager that keeps a request to stop from interrupting its block.

    A plain function is interrupted at any bytecode. In this block it is not: the request takes
    effect where the block ends, or at a :func:`check_cancelled` in it, whichever comes first. The
    grace period of the stop goes on meanwhile, and the process is killed when that is over::

        with from_process.deferred_cancellation():
            for record in records:
                from_process.check_cancelled()
                write(record)

    It concerns the main thread, as no other is interrupted anyway; and the cancellation of an async
    function, too.

    :raises ProcessStateError: if this process was not started by creche
    """
    return _connection("deferred_cancellation()").stop.deferring_function()


def current_process() -> CurrentProcess:
    """Return what is known of the process that runs the caller: name, pid, parent and so on.

    :raises ProcessStateError: if this process was not started by creche
    """
    return _connection("current_process()").facts


def _connection(what: str) -> ParentConnection:
    connection = parent_connection()
    if connection is None:
        raise ProcessStateError(
            f"{what} was called outside of a process that creche started: only the code that such"
            " a process runs can call it"
        )
    return connection


def _requests(what: str) -> Requests:
    return parent_requests(_connection(what))


def _show_as_public(*values: Any) -> None:
    for value in values:
        value.__module__ = __name__


_show_as_public(CurrentProcess)
