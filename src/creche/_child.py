"""Everything of creche's that runs in a child."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import current_process
from typing import Any

import anyio

from . import _platform
from ._child_output import ChildOutput
from ._log_forwarding import LogSettings, forward_logs
from ._loops import current_loop, post, run_to_end
from ._multiprocessing import util
from ._parent_connection import CurrentProcess, ParentConnection, set_parent_connection
from ._start_methods import import_main, settle_in
from ._stop_request import StopListener, StopRequested
from ._wire._context import CallInContext
from ._wire._framing import FrameKind, pack
from ._wire._outcomes import (
    Call,
    Message,
    encode_call,
    exception_message,
    exit_message,
    failure_message,
    value_message,
)
from ._wire._pickling import ArgumentHandles, loads, receive_handles


@dataclass
class ChildMain:
    """What a child process runs: takes the place of its process object's ``run``.

    It travels with the process object, so it holds nothing of the application's: the function and
    its arguments come over the wire, where a failure to unpickle them can be caught and reported.

    :param wire: the child's end of the wire
    :param lifeline: a descriptor that ends with the parent; ``None`` where the platform has no such
        thing, or whoever starts the child sees to it
    :param descriptors: what the arguments refer to
    :param objects: what the arguments refer to in a forked child
    :param main: how to import the main module
    :param backend: anyio's name of the event loop that async functions run in
    :param own_run: the ``run`` of a process object that brings its own, to be called instead
    :param start_method: how the child came into being
    :param parent_pid: the process id of the application
    :param logs: which log records the parent wants; ``None`` where it wants none
    :param output: where its output goes; ``None`` for the application's own
    """

    wire: _platform.ChildWire
    lifeline: int | None
    descriptors: Sequence[int]
    objects: Sequence[object]
    main: dict[str, str]
    backend: str
    own_run: Callable[[], object] | None
    start_method: str
    parent_pid: int
    logs: LogSettings | None = None
    output: ChildOutput | None = None

    def __getstate__(self) -> dict[str, Any]:
        # While a process is being started, which descriptors are handed over to.
        state = dict(self.__dict__)
        if self.lifeline is not None:
            state["lifeline"] = _platform.DescriptorForChild(self.lifeline)
        state["descriptors"] = [
            _platform.DescriptorForChild(descriptor) for descriptor in self.descriptors
        ]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if state["lifeline"] is not None:
            self.lifeline = state["lifeline"].detach()
        self.descriptors = [handle.detach() for handle in state["descriptors"]]

    def __call__(self) -> None:
        settle_in(self.start_method, self.lifeline)
        if self.output is not None:
            self.output.take_over()
        stop = StopListener()
        stop.listen(forked=self.start_method == "fork")
        connection = ParentConnection(self.wire, stop)
        connection.facts = self._facts()
        set_parent_connection(connection)
        self.wire.listen()
        connection.send((FrameKind.RUNNING, []))
        receive_handles(self.descriptors, self.objects)
        message, exitcode = self._run(connection, stop)
        if os.getpid() != connection.pid:
            os._exit(exitcode)  # a fork that the function made came back from it, too
        delivered = connection.send(message)
        if message[0] is FrameKind.STOPPED:
            _end_as_terminated()
        sys.exit(exitcode if delivered else exitcode or 1)

    def rehearse(self) -> None:
        """Do once, and for nothing, what a child does for each call.

        A fork shares the memory of its parent until it writes there, and running anything writes to
        the reference counts of all that it touches. Copying these pages takes longer than the work
        itself. A child that is forked before it is needed has the time.
        """
        stop = StopListener()
        try:
            stop.listen(forked=False)
            connection = ParentConnection(self.wire, stop)
            connection.send((FrameKind.RUNNING, []))
            connection.send(self._run(connection, stop)[0])
        finally:
            stop.close()
            self.wire.close()

    def _run(self, connection: ParentConnection, stop: StopListener) -> tuple[Message, int]:
        """Run the function; return what to tell the parent, and the exit code."""
        try:
            try:
                with stop.raising():
                    try:
                        import_main(self.main)
                    except Exception as error:
                        return failure_message(FrameKind.BAD_MAIN, error), 1
                    if self.logs is not None:
                        forward_logs(self.logs, connection)
                    try:
                        func, args, kwargs = self._receive_call(connection)
                    except Exception as error:
                        return failure_message(FrameKind.BAD_CALL, error), 1
                if isinstance(func, ChildProgram):
                    connection.serves_calls = True
                    value = func(ChildContext(self.backend, stop, connection), *args)
                else:
                    value = _call(func, args, kwargs, self.backend, stop)
                if self.own_run is not None:
                    value = None  # multiprocessing ignores what run() returns
            finally:
                stop.close()
        except StopRequested:
            return (FrameKind.STOPPED, []), 1
        except SystemExit as error:
            return exit_message(error.code), _exit_code(error.code)
        except BaseException as error:
            return exception_message(error), 1
        message = value_message(value)
        return message, int(message[0] is FrameKind.BAD_VALUE)

    def _facts(self) -> CurrentProcess:
        return CurrentProcess(
            name=current_process().name,
            pid=os.getpid(),
            parent_pid=self.parent_pid,
            start_method=self.start_method,
            backend=self.backend,
        )

    def _receive_call(self, connection: ParentConnection) -> Any:
        if self.own_run is not None:
            return self.own_run, (), {}
        return loads(connection.receive_call())


@dataclass(frozen=True)
class ChildContext:
    """What a :class:`ChildProgram` gets to know."""

    backend: str
    stop: StopListener
    connection: ParentConnection


class ChildProgram(ABC):
    """A function of creche's own for a child to run, which deals with requests to stop itself."""

    @abstractmethod
    def __call__(self, context: ChildContext, *args: Any) -> object: ...

    def function(self, args: tuple[Any, ...]) -> Callable[..., Any] | None:
        """Return the one function of the application's that it is about, if there is one."""
        return None


def sample() -> tuple[ChildMain, _platform.ParentWire]:
    """What a child can :meth:`~ChildMain.rehearse` with, and the other end of its wire."""
    parents_end, childs_end = _platform.wire_pair()
    call = encode_call(Call(_do_nothing, (), {}), "", ArgumentHandles(inherited=False))
    parents_end.send(pack(FrameKind.CALL, call))
    main = ChildMain(
        wire=childs_end,
        lifeline=None,
        descriptors=[],
        objects=(),
        main={},
        backend="asyncio",
        own_run=None,
        start_method="creche",
        parent_pid=os.getpid(),
    )
    return main, parents_end


def _do_nothing() -> None:
    pass


def is_async(func: Callable[..., Any]) -> bool:
    """Whether ``func`` gives a coroutine, looking through partials and callable objects."""
    while isinstance(func, functools.partial | CallInContext):
        func = func.func
    call = type(func).__call__
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(call)


def _call(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    backend: str,
    stop: StopListener,
) -> Any:
    if is_async(func):
        return call_async(func, args, kwargs, backend, stop)
    with stop.raising():
        value = func(*args, **kwargs)
    if inspect.iscoroutine(value):  # a plain function that wraps an async one

        async def await_value() -> Any:
            return await value

        return call_async(await_value, (), {}, backend, stop)
    return value


def call_async(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    backend: str,
    stop: StopListener,
) -> Any:
    stopped = False

    async def main() -> Any:
        nonlocal stopped
        loop = current_loop()
        with (
            anyio.CancelScope() as scope,
            stop.reacting(lambda: post(loop, scope.cancel)),
        ):
            return await func(*args, **kwargs)
        stopped = True
        return None

    value = run_to_end(main, backend)
    if stopped:
        raise StopRequested
    return value


def _exit_code(code: object) -> int:
    """The exit code that the interpreter makes of the argument of ``sys.exit``."""
    if code is None:
        return 0
    return code if isinstance(code, int) else 1


def _end_as_terminated() -> None:
    """End with exit code -15, as terminated processes do, but in order."""
    util._exit_function()
    util._flush_std_streams()
    _platform.die_as_terminated()
