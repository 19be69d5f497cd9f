"""A task group for processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext
from types import TracebackType
from typing import Any, TypeVar, TypeVarTuple, Unpack, overload

import anyio
from anyio.abc import TaskGroup, TaskStatus

from ._errors import ProcessDied, ProcessStartError, ProcessStateError, describe
from ._log_forwarding import LogTarget, check_log_target
from ._output import ErrorOutput, Output, check_output
from ._process import AsyncProcess
from ._run import name_after
from ._stop_policy import StopPolicy, check_stop_policy
from ._wire._outcomes import Failure, Value

__all__ = ["ProcessNursery", "open_nursery"]

T = TypeVar("T")
PosArgsT = TypeVarTuple("PosArgsT")


def open_nursery(
    *,
    limiter: anyio.CapacityLimiter | None = None,
    stop: StopPolicy | None = None,
    start_method: str | None = None,
    logs: LogTarget = False,
    stdout: Output = None,
    stderr: ErrorOutput = None,
) -> ProcessNursery:
    """Return a :class:`ProcessNursery`, to be used in ``async with``.

    :param limiter: bounds how many of the nursery's processes run at once; without one, as many run
        as are started
    :param stop: how its processes are stopped
    :param start_method: as for :class:`AsyncProcess`
    :param logs: as for :class:`AsyncProcess`
    :param stdout: where the standard output of its processes goes, as for :class:`AsyncProcess`
    :param stderr: where their standard error goes
    :raises ValueError: if there is no such start method, or ``stdout`` or ``stderr`` is a string
        that means nothing
    :raises TypeError: if an argument is of a wrong type
    """
    check_output(stdout, stderr)
    return ProcessNursery(
        limiter=limiter,
        stop=stop,
        start_method=start_method,
        logs=logs,
        stdout=stdout,
        stderr=stderr,
    )


class ProcessNursery:
    """Runs processes as an ``anyio`` task group runs tasks; made by :func:`open_nursery`.

    The ``async with`` block is left when all of its processes have ended and are reaped. The first
    one that fails, or an exception in the block, stops all the others. What failed comes out in
    one ``ExceptionGroup``, also what failed just before it was stopped, or in its clean-up (but not
    where the nursery was only cancelled: then that may have come of the stopping of others). A
    process that the program itself stops (by ``terminate()``, ``kill()`` or by cancelling an
    ``await process``) has not failed.
    """

    def __init__(
        self,
        *,
        limiter: anyio.CapacityLimiter | None,
        stop: StopPolicy | None,
        start_method: str | None,
        logs: LogTarget,
        stdout: Output,
        stderr: ErrorOutput,
    ) -> None:
        self._stdout: Output = stdout
        self._stderr: ErrorOutput = stderr
        self._limiter = limiter
        self._stop = check_stop_policy(stop)
        self._start_method = start_method
        self._logs = check_log_target(logs)
        self._task_group: TaskGroup = anyio.create_task_group()
        self._processes: dict[AsyncProcess[Any], None] = {}
        self._failures_of_cancelled: list[BaseException] = []
        self._open = False

    @property
    def cancel_scope(self) -> anyio.CancelScope:
        """Cancelling it stops every process of the nursery, and the block."""
        return self._task_group.cancel_scope

    @property
    def processes(self) -> frozenset[AsyncProcess[Any]]:
        """The processes that have not ended yet, those that wait for the limiter included."""
        return frozenset(self._processes)

    @overload
    def start_soon(
        self,
        func: Callable[[Unpack[PosArgsT]], Coroutine[Any, Any, T]],
        *args: *PosArgsT,
        name: str | None = None,
        timeout: float | None = None,
        stop: StopPolicy | None = None,
        logs: LogTarget | None = None,
        stdout: Output = None,
        stderr: ErrorOutput = None,
    ) -> AsyncProcess[T]: ...

    @overload
    def start_soon(
        self,
        func: Callable[[Unpack[PosArgsT]], T],
        *args: *PosArgsT,
        name: str | None = None,
        timeout: float | None = None,
        stop: StopPolicy | None = None,
        logs: LogTarget | None = None,
        stdout: Output = None,
        stderr: ErrorOutput = None,
    ) -> AsyncProcess[T]: ...

    def start_soon(
        self,
        func: Callable[[Unpack[PosArgsT]], Any],
        *args: *PosArgsT,
        name: str | None = None,
        timeout: float | None = None,
        stop: StopPolicy | None = None,
        logs: LogTarget | None = None,
        stdout: Output = None,
        stderr: ErrorOutput = None,
    ) -> AsyncProcess[Any]:
        """Start ``func(*args)`` in a process of its own, soon.

        :param func: anything that can be called and pickled; ``async`` functions, too
        :param args: its positional arguments
        :param name: the name of the process; by default ``func``'s name and a number
        :param timeout: seconds that the process may run
        :param stop: how the process is stopped, instead of the nursery's own policy
        :param logs: what becomes of its log records, instead of what the nursery does with them
        :param stdout: where its standard output goes, instead of where that of the nursery's
            processes does
        :param stderr: where its standard error goes
        :return: the process. It can be awaited for its result in the block; after the block it has
            its ``return_value``
        :raises ProcessStateError: if the nursery is not open
        """
        process = self._make_process(func, args, name, timeout, stop, logs, stdout, stderr)
        self._task_group.start_soon(self._run, process, name=process.name)
        return process

    async def start(
        self,
        func: Callable[[Unpack[PosArgsT]], Any],
        *args: *PosArgsT,
        name: str | None = None,
        timeout: float | None = None,
        stop: StopPolicy | None = None,
        logs: LogTarget | None = None,
        stdout: Output = None,
        stderr: ErrorOutput = None,
    ) -> Any:
        """Start ``func(*args)`` in a process of its own, and wait until it says that it is ready.

        The child says so by calling :func:`creche.from_process.started`. From then on the process
        is one of the nursery's like all others.

        Cancellation before that stops the process, and waits until it is gone.

        :return: what the child gave to ``started()``
        :raises Exception: whatever ``func`` raises before it is ready
        :raises ProcessStartError: if the child ends without calling ``started()``
        :raises ProcessStateError: if the nursery is not open
        """
        process = self._make_process(func, args, name, timeout, stop, logs, stdout, stderr)
        outcome = await self._task_group.start(self._run_until_ready, process, name=process.name)
        return outcome.take()

    async def __aenter__(self) -> ProcessNursery:
        await self._task_group.__aenter__()
        self._open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        try:
            return await self._task_group.__aexit__(exc_type, exc, tb)
        except BaseExceptionGroup as group:
            # A failure that the block also heard of, by awaiting the process, is in there twice.
            failures = (*group.exceptions, *self._failures_of_cancelled)
            unique = list({id(failure): failure for failure in failures}.values())
            if len(unique) == len(group.exceptions):
                raise
            raise group.derive(unique) from None
        finally:
            self._open = False

    def _make_process(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        name: str | None,
        timeout: float | None,
        stop: StopPolicy | None,
        logs: LogTarget | None,
        stdout: Output,
        stderr: ErrorOutput,
    ) -> AsyncProcess[Any]:
        if not self._open:
            raise ProcessStateError("this nursery is not open: no processes can be started in it")
        process: AsyncProcess[Any] = AsyncProcess(
            target=func,
            name=name,
            args=args,
            timeout=timeout,
            stop=self._stop if stop is None else stop,
            start_method=self._start_method,
            logs=self._logs if logs is None else logs,
            stdout=self._stdout if stdout is None else stdout,
            stderr=self._stderr if stderr is None else stderr,
        )
        if name is None:
            name_after(process, func)
        process._handle.claims.claim()  # they are the child's from now on, whenever it starts
        process._started_by_nursery = True
        self._processes[process] = None
        return process

    async def _run(self, process: AsyncProcess[Any]) -> None:
        async with self._admitted(process):
            await self._result(process)

    async def _run_until_ready(
        self, process: AsyncProcess[Any], *, task_status: TaskStatus[Any]
    ) -> None:
        async with self._admitted(process):
            try:
                ready = await self._ready(process)
            except (anyio.get_cancelled_exc_class(), KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:
                # Older versions of Trio raise what comes through a start() of theirs "from
                # None", which takes the child's traceback away.
                task_status.started(Failure(error))
                return
            task_status.started(ready)
            await self._result(process)

    async def _ready(self, process: AsyncProcess[Any]) -> Value:
        ready = await process._start_until_ready()
        if ready is None:
            await self._result(process)
            raise ProcessStartError(
                f"{describe(process.name, process.pid)} ended without calling"
                " creche.from_process.started(), for which start() waits; use start_soon() for"
                " a function that does not call it"
            )
        return ready

    async def _result(self, process: AsyncProcess[Any]) -> None:
        try:
            await process.result()
        except (ProcessDied, ProcessStartError):
            if not process._was_stopped_on_request():
                raise
        except anyio.get_cancelled_exc_class():
            # Perhaps for something that came of this: the other end of its channel was closed.
            failure = process._handle.failure_of_its_own
            if failure is not None:
                self._failures_of_cancelled.append(failure)
            raise

    @asynccontextmanager
    async def _admitted(self, process: AsyncProcess[Any]) -> AsyncIterator[None]:
        """Wait for the limiter, and account for the process whatever becomes of it."""
        try:
            async with nullcontext() if self._limiter is None else self._limiter:
                process._begin_unless_started()
                yield
        except KeyboardInterrupt:
            # Trio raises it in any task. Those in the block that await the process are cancelled
            # with everything else, instead of being told that it has died, which it is about to.
            self._task_group.cancel_scope.cancel()
            raise
        finally:
            del self._processes[process]
            await process._leave_nothing()
