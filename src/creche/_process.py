"""A process that can be awaited."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from multiprocessing import process as _multiprocessing_process
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, TypeVar, overload

import anyio
import anyio.lowlevel

from ._conversation import Conversation
from ._durations import check_timeout
from ._errors import ProcessClosedError, ProcessStartError, ProcessStateError
from ._handle import ProcessHandle
from ._lifecycle import ProcessState
from ._log_forwarding import LogTarget, check_log_target
from ._loops import EventLoop, backend_of, current_loop
from ._output import ErrorOutput, Output, OutputCapture, check_output
from ._process_facts import ProcessFacts
from ._runtime import runtime
from ._shielded import shielded
from ._start_methods import check_start_method, make_process, start_method_of
from ._stop_policy import StopPolicy, check_stop_policy
from ._wire._outcomes import Call, Failure, Value

__all__ = ["AsyncProcess"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
SelfT = TypeVar("SelfT", bound="AsyncProcess[Any]")


class AsyncProcess(ProcessFacts[T_co]):
    """One operating-system process, started, awaited and stopped from asyncio or Trio.

    It wraps a ``multiprocessing.Process``, and has its constructor and its words::

        process = AsyncProcess(target=crunch, args=(data,))
        value = await process             # starts it, and gives what crunch(data) returned

        async with AsyncProcess(target=serve) as process:
            ...                           # an error or a cancellation in here stops it

    A process belongs to the event loop that starts it. :meth:`join` and the properties can be used
    from any event loop and thread of the application.

    :param group: always ``None``; there for the sake of ``multiprocessing.Process``
    :param target: what the child calls: anything that can be called and pickled. An ``async``
        function runs in an event loop of the parent's backend
    :param name: the name of the process, in its own ``multiprocessing.current_process()`` and in
        errors; ``Process-1`` and so on by default
    :param args: positional arguments for ``target``
    :param kwargs: keyword arguments for ``target``
    :param daemon: whether the process may have no ``multiprocessing`` children of its own; by
        default as the current process. Unlike in ``multiprocessing``, it says nothing about what
        happens when the application ends: no process of creche's outlives it
    :param start_method: ``"creche"`` (the default on Linux), ``"forkserver"`` (the default on other
        POSIX systems), ``"spawn"`` (the default on Windows) or ``"fork"``
    :param timeout: seconds after which a process that still runs its target is stopped; its outcome
        is a :exc:`ProcessTimeout` then
    :param stop: how the process is stopped
    :param logs: ``True`` has the log records of the child handled here, by the loggers of the same
        names, in the order in which they were made and by their levels here; a logger has all of
        them handled by that one. They are handled in a thread, and before the process is said to
        have ended. By default the child's loggers are its own affair
    :param stdout: where standard output goes. By default to the application's own. A
        :class:`logging.Logger` gets each line as a record of level INFO; ``"stream"`` makes them
        items of the stream :attr:`stdout`. On POSIX that holds for everything in the process and
        its children, on Windows for Python code in the process
    :param stderr: where standard error goes: as ``stdout``, but with level WARNING, and
        :attr:`stderr`; ``"stdout"`` for where standard output goes
    :raises ValueError: if ``timeout`` is negative or NaN, ``group`` is not ``None``, there is no
        such start method, or ``stdout`` or ``stderr`` is another string
    :raises TypeError: if an argument is of a wrong type
    """

    _backend: str | None = None  # what async functions run under; by default as the caller

    @overload
    def __init__(
        self: AsyncProcess[T],
        group: None = None,
        target: Callable[..., Coroutine[Any, Any, T]] = ...,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = {},
        *,
        daemon: bool | None = None,
        start_method: str | None = None,
        timeout: float | None = None,
        stop: StopPolicy | None = None,
        logs: LogTarget = False,
        stdout: Output = None,
        stderr: ErrorOutput = None,
    ) -> None: ...

    @overload
    def __init__(
        self: AsyncProcess[T],
        group: None = None,
        target: Callable[..., T] = ...,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = {},
        *,
        daemon: bool | None = None,
        start_method: str | None = None,
        timeout: float | None = None,
        stop: StopPolicy | None = None,
        logs: LogTarget = False,
        stdout: Output = None,
        stderr: ErrorOutput = None,
    ) -> None: ...

    @overload
    def __init__(
        self: AsyncProcess[None],
        group: None = None,
        target: None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = {},
        *,
        daemon: bool | None = None,
        start_method: str | None = None,
        timeout: float | None = None,
        stop: StopPolicy | None = None,
        logs: LogTarget = False,
        stdout: Output = None,
        stderr: ErrorOutput = None,
    ) -> None: ...

    def __init__(
        self,
        group: None = None,
        target: Callable[..., Any] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = {},
        *,
        daemon: bool | None = None,
        start_method: str | None = None,
        timeout: float | None = None,
        stop: StopPolicy | None = None,
        logs: LogTarget = False,
        stdout: Output = None,
        stderr: ErrorOutput = None,
    ) -> None:
        if group is not None:
            raise ValueError("group must be None: there are no process groups of that kind yet")
        if target is not None and not callable(target):
            raise TypeError(f"target must be callable, not {type(target).__name__}")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a string, not {type(name).__name__}")
        check_output(stdout, stderr)
        method = check_start_method(start_method)
        self._set_up(
            ProcessHandle(
                make_process(method, name, "Process", daemon),
                method=method,
                call=Call(target or _do_nothing, tuple(args), dict(kwargs)),
                policy=check_stop_policy(stop),
                timeout=check_timeout(timeout),
                conversation=Conversation(check_log_target(logs)),
                output=OutputCapture(stdout, stderr),
            )
        )

    @classmethod
    def wrap(
        cls,
        process: BaseProcess,
        *,
        timeout: float | None = None,
        stop: StopPolicy | None = None,
        logs: LogTarget = False,
    ) -> AsyncProcess[None]:
        """Adopt a ready-made ``multiprocessing`` process, started or not.

        Of a subclass with a ``run`` of its own, say. It has no return value: it ends well with exit
        code 0, and with the exception of ``run`` or :exc:`ProcessDied` otherwise. From here on
        creche reaps it. A process that was started before is stopped by signals alone: nothing in
        it unwinds its function, or ties it to the life of this process.

        :param process: the process object
        :param timeout: as for :class:`AsyncProcess`; counts from the start, or from now
        :param stop: as for :class:`AsyncProcess`
        :param logs: as for :class:`AsyncProcess`; has no effect where it was started before
        :raises TypeError: if it is not a ``multiprocessing`` process
        :raises ProcessStateError: if it belongs to another process, or was closed
        """
        if not isinstance(process, BaseProcess):
            raise TypeError(f"expected a multiprocessing process, not {type(process).__name__}")
        inner: Any = process
        if inner._closed:
            raise ProcessClosedError(f"process {process.name!r} is closed")
        if inner._parent_pid != os.getpid():
            raise ProcessStateError(f"process {process.name!r} is not a child of this process")
        handle = ProcessHandle(
            process,
            method=start_method_of(process),
            call=None,
            policy=check_stop_policy(stop),
            timeout=check_timeout(timeout),
            conversation=Conversation(check_log_target(logs)),
        )
        wrapper: AsyncProcess[None] = AsyncProcess.__new__(AsyncProcess)
        wrapper._set_up(handle)
        if inner._popen is not None:
            handle.adopt(runtime())
        return wrapper

    def _set_up(self, handle: ProcessHandle) -> None:
        super().__init__(handle)
        self._loop: EventLoop | None = None
        self._started_by_nursery = False

    # --- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the process; return when the child exists.

        The work is done in a thread: other tasks go on.

        Cancellation stops the process as soon as it exists, and waits for that.

        :raises ProcessStateError: if it was started before
        :raises SerializationError: if the function or an argument cannot be pickled
        :raises ProcessStartError: if the system cannot start it, or the main module lacks its
            ``if __name__ == "__main__":`` guard
        :raises ProcessTimeout: if the start hangs for longer than its ``timeout``
        :raises ProcessStuckError: if the start hangs, and the process was to be stopped meanwhile
        """
        self._check_usable()
        if self._started_by_nursery:
            raise ProcessStateError(f"{self._who()} is started by its nursery")
        self._begin()
        await self._launched()

    async def join(self, timeout: float | None = None) -> int | None:
        """Wait until the process has ended; return its exit code.

        Does not raise what the function raised: see :meth:`result`. May be called any number of
        times, and from any event loop.

        Cancellation leaves the process running.

        :param timeout: seconds to wait at most, without stopping anything
        :return: the exit code: 0, what was given to ``sys.exit``, 1 after an exception, or ``-N``
            where signal *N* ended it; ``None`` if the process still runs
        :raises ProcessStateError: if it was not started
        """
        seconds = check_timeout(timeout)
        self._check_usable()
        if self._handle.state is ProcessState.CREATED and not self._started_by_nursery:
            raise ProcessStateError(
                f"cannot join {self._who()}: it was not started; call start() first"
            )
        with anyio.move_on_after(seconds):
            await self._handle.finished.wait()
        return self.exitcode

    async def result(self) -> T_co:
        """Wait for the end of the process; return what its function returned, or raise what it
        raised. Starts the process if need be. ``await process`` is the same.

        When this returns or raises, the process is gone: one that has given its outcome and does
        not exit within ``StopPolicy.exit_timeout`` seconds is killed.

        Cancellation stops the process, and waits until it is gone.

        :raises Exception: whatever the function raised, with the child's traceback as its
            ``__cause__``
        :raises RemoteError: in place of an exception that cannot be raised here
        :raises ProcessDied: if the process ended without an outcome
        :raises ProcessTimeout: if its ``timeout`` ran out
        :raises SerializationError: if something could not be pickled or unpickled
        :raises ProcessStartError: if it could not be started
        :raises ProcessStuckError: if it was to be stopped and even SIGKILL did not end it
        """
        self._check_usable()
        if self._handle.state is ProcessState.CREATED and not self._started_by_nursery:
            self._begin()
        if not self._handle.finished.is_set():
            self._check_loop()
            self._handle.own()
            async with _StopUnlessDone(self):
                # Gone before it is finished: it was killed in vain.
                await self._handle.gone.wait()
            self._handle.check_gone()
            await self._handle.conversation.wait_over()
        else:
            await anyio.lowlevel.checkpoint()
        return self._outcome()

    def __await__(self) -> Generator[Any, Any, T_co]:
        return self.result().__await__()

    async def terminate(self, stop: StopPolicy | None = None) -> int | None:
        """Stop the process politely, by force after the grace period; return when it is reaped.

        A process that was unwound ends with exit code -15, as a terminated one does. It is no error
        if the process has ended already.

        Cancellation does not call the stop off. It is waited for nevertheless, within the time that
        the policy allows.

        :param stop: how to stop it this time, instead of the process's own policy
        :return: the exit code
        :raises ProcessStateError: if it was not started
        :raises ProcessStuckError: if even SIGKILL did not end it
        """
        return await self._stop(self._handle.policy if stop is None else check_stop_policy(stop))

    async def kill(self) -> int | None:
        """Kill the process at once (SIGKILL); return when it is reaped.

        Cancellation, return value and errors as for :meth:`terminate`.
        """
        policy = self._handle.policy
        return await self._stop(
            StopPolicy(grace=0, group=policy.group, kill_timeout=policy.kill_timeout)
        )

    async def __aenter__(self: SelfT) -> SelfT:
        """Start the process, unless it was started before."""
        if self._handle.state is ProcessState.CREATED:
            await self.start()
        else:
            self._check_usable()
            self._check_loop()
            await anyio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Join the process; stop it if the block was left by an exception or a cancellation.

        An exception of the function is not raised here: see :meth:`result` and :attr:`exception`.
        """
        if exc_type is not None:
            await self._stop_shielded(self._handle.policy)
            return
        self._handle.own()
        async with _StopUnlessDone(self):
            await self._handle.gone.wait()
        self._handle.check_gone()
        await self._handle.conversation.wait_over()

    def close(self) -> None:
        """Release what the object holds. It cannot be used any more then.

        Descriptors are released as soon as the process ends, so there is seldom a need for this.

        :raises ProcessStateError: if the process still runs
        """
        if self._closed:
            return
        if self.is_alive():
            raise ProcessStateError(
                f"cannot close {self._who()} while it runs: join() or terminate() it first"
            )
        self._closed = True
        self._handle.process.close()

    # --- inner workings -------------------------------------------------------------------------

    def _begin(self) -> None:
        """Begin to start the process."""
        self._check_usable()
        current: Any = _multiprocessing_process.current_process()
        if getattr(current, "_inheriting", False):
            raise ProcessStartError(
                f"{self._who()} was started in a child process while its main module is being"
                ' imported: put the code that starts processes under `if __name__ == "__main__":`'
            )
        if current.daemon:
            raise ProcessStartError(
                f"cannot start {self._who()}: {current.name!r} is a daemonic process, and"
                " multiprocessing does not allow these to have children. Use daemon=False there"
            )
        loop = current_loop()
        self._handle.take_context()
        try:
            machinery = runtime()
        except (OSError, RuntimeError) as error:  # no descriptors, or no threads left
            raise ProcessStartError(f"cannot start {self._who()}: {error}") from error
        self._handle.conversation.begin(loop, machinery)
        self._handle.start(machinery, self._backend or backend_of(loop))
        self._loop = loop

    async def _launched(self) -> None:
        """Wait until the child exists."""
        async with _StopUnlessDone(self):
            await self._handle.wait_for(self._handle.launched)
        self._handle.check_gone()
        # The latch ``finished`` is set in another thread, and may yet have to be.
        if self._handle.outcome is not None and self._handle.pid is None:
            self._outcome()

    def _begin_unless_started(self) -> None:
        """Start the process on behalf of its nursery, unless somebody has called it off."""
        if self._handle.state is ProcessState.CREATED:
            self._begin()

    async def _start_until_ready(self) -> Value | None:
        """Wait for the child's ``started()``; return what it said, or ``None`` if it has ended."""
        self._handle.own()
        async with _StopUnlessDone(self):
            await self._handle.wait_for(self._handle.ready)
            if isinstance(self._handle.started_outcome, Failure):
                raise self._handle.started_outcome.exception
        if not self._handle.ready.is_set():
            self._handle.check_gone()
        return self._handle.started_outcome

    async def _leave_nothing(self) -> None:
        """See to it that the process is gone, or will never be, and wake those who wait for it.

        It is gone already, except where something struck between two lines: a KeyboardInterrupt.
        """
        self._handle.give_up_unless_started()
        if not self._handle.gone.is_set():
            await self._stop_shielded(self._handle.policy)

    def _was_stopped_on_request(self) -> bool:
        return self._handle.stop_requested

    def _outcome(self) -> T_co:
        self._asked_for_outcome = True
        outcome = self._handle.outcome
        if isinstance(outcome, Failure):
            raise outcome.exception
        assert isinstance(outcome, Value)
        return outcome.value  # type: ignore[no-any-return]

    async def _stop(self, policy: StopPolicy) -> int | None:
        self._check_usable()
        if self._handle.state is ProcessState.CREATED and not self._started_by_nursery:
            raise ProcessStateError(f"cannot stop {self._who()}: it was not started")
        if self._handle.finished.is_set():
            await anyio.lowlevel.checkpoint()
        else:
            self._check_loop()
            await self._stop_shielded(policy)
            await anyio.lowlevel.checkpoint_if_cancelled()
        return self.exitcode

    async def _stop_shielded(self, policy: StopPolicy) -> None:
        """Stop the process. Whatever happens, this ends within the time that the policy allows."""
        if not self._handle.finished.is_set():
            self._handle.stop(policy)
        await shielded(self._wait_gone)
        self._handle.check_gone()

    async def _wait_gone(self) -> None:
        await self._handle.gone.wait()
        await self._handle.conversation.wait_over()

    def _check_loop(self) -> None:
        if self._loop is None:
            self._loop = current_loop()  # adopted when it was running already
        elif self._loop is not current_loop():
            raise ProcessStateError(
                f"{self._who()} belongs to another event loop: the one that started it. From here"
                " it can only be joined"
            )


class _StopUnlessDone:
    """Stops a process if its block is left by a cancellation, or any other exception."""

    def __init__(self, process: AsyncProcess[Any]) -> None:
        self._process = process

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is not None:
            await self._process._stop_shielded(self._process._handle.policy)


def _do_nothing() -> None:
    """What a process without a target runs."""
