"""A stream of what a generator yields in a process of its own."""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar, TypeVarTuple, Unpack, overload

import anyio
import anyio.lowlevel
from anyio.abc import ObjectReceiveStream

from .. import _failures
from .._errors import ProcessDied, ProcessStartError, ProcessStateError, RemoteError
from .._log_forwarding import LogTarget, check_log_target
from .._loops import EventLoop, current_loop, is_current
from .._output import ErrorOutput, Output
from .._pool._thread_jobs import ThreadJobs
from .._process import AsyncProcess
from .._run import name_after
from .._runtime import runtime
from .._stop_policy import StopPolicy
from .._wire._outcomes import Call, Failure, cannot_unpickle
from ._link import StreamLink
from ._receiver import Receiver
from ._source import StreamProgram

__all__ = ["ProcessStream", "open_stream"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
PosArgsT = TypeVarTuple("PosArgsT")

# Seconds for which items are handed out without letting other tasks run.
_SLICE = 0.001

_NO_BOUND = 1 << 62


@overload
def open_stream(
    func: Callable[[Unpack[PosArgsT]], AsyncIterable[T]],
    *args: *PosArgsT,
    max_buffer_size: float = 1000,
    timeout: float | None = None,
    name: str | None = None,
    stop: StopPolicy | None = None,
    start_method: str | None = None,
    logs: LogTarget = False,
    stdout: Output = None,
    stderr: ErrorOutput = None,
) -> ProcessStream[T]: ...


@overload
def open_stream(
    func: Callable[[Unpack[PosArgsT]], Iterable[T]],
    *args: *PosArgsT,
    max_buffer_size: float = 1000,
    timeout: float | None = None,
    name: str | None = None,
    stop: StopPolicy | None = None,
    start_method: str | None = None,
    logs: LogTarget = False,
    stdout: Output = None,
    stderr: ErrorOutput = None,
) -> ProcessStream[T]: ...


@overload
def open_stream(
    func: Callable[[Unpack[PosArgsT]], Coroutine[Any, Any, AsyncIterable[T] | Iterable[T]]],
    *args: *PosArgsT,
    max_buffer_size: float = 1000,
    timeout: float | None = None,
    name: str | None = None,
    stop: StopPolicy | None = None,
    start_method: str | None = None,
    logs: LogTarget = False,
    stdout: Output = None,
    stderr: ErrorOutput = None,
) -> ProcessStream[T]: ...


def open_stream(
    func: Callable[[Unpack[PosArgsT]], Any],
    *args: *PosArgsT,
    max_buffer_size: float = 1000,
    timeout: float | None = None,
    name: str | None = None,
    stop: StopPolicy | None = None,
    start_method: str | None = None,
    logs: LogTarget = False,
    stdout: Output = None,
    stderr: ErrorOutput = None,
) -> ProcessStream[Any]:
    """Return a :class:`ProcessStream` of what a generator yields in a process of its own::

        async with open_stream(parse_lines, "big.log") as items:
            async for item in items:
                ...

    ``async with`` starts the process. Leaving the block stops it, if it still runs, and waits until
    it is gone: the generator's ``finally`` blocks run.

    The generator runs ahead of the loop, and is suspended while the buffer is full. An item can be
    received as soon as it is yielded, whatever the generator does next.

    :param func: a generator function that can be pickled, or any function that returns an iterable;
        plain or ``async``. An ``async`` one runs in an event loop of the backend that this is used
        in
    :param args: its positional arguments (for keyword arguments use :func:`functools.partial`)
    :param max_buffer_size: how many items the generator may have yielded that were not received;
        at least 1. ``math.inf`` for no such bound. Beside that, they may take 4 MiB; of a larger
        item, so much is sent ahead
    :param timeout: seconds that the process may run, counted from its start
    :param name: the name of the process; by default ``func``'s name and a number
    :param stop: how the process is stopped
    :param start_method: as for :class:`AsyncProcess`
    :param logs: as for :class:`AsyncProcess`
    :param stdout: as for :class:`AsyncProcess`; a stream is that of :attr:`ProcessStream.process`
    :param stderr: as for :class:`AsyncProcess`
    :raises ValueError: if an argument is out of its range
    :raises TypeError: if an argument is of a wrong type

    ``async with`` raises :exc:`SerializationError` if ``func`` or an argument cannot be pickled,
    :exc:`ProcessStartError` if the process cannot be started, and :exc:`ProcessStateError` outside
    of an event loop. Cancelling it leaves nothing behind.
    """
    return ProcessStream(
        func,
        args,
        max_buffer_size=_check_buffer_size(max_buffer_size),
        timeout=timeout,
        name=name,
        stop=stop,
        start_method=start_method,
        logs=check_log_target(logs),
        stdout=stdout,
        stderr=stderr,
    )


class ProcessStream(ObjectReceiveStream[T_co]):
    """The items that a generator yields in a process of its own; made by :func:`open_stream`.

    An ``anyio`` object stream, for one task at a time. It belongs to the event loop in which it was
    opened.

    An error of the generator is raised where the next item would have been, and so is the death of
    its process.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        max_buffer_size: int,
        timeout: float | None,
        name: str | None,
        stop: StopPolicy | None,
        start_method: str | None,
        logs: LogTarget,
        stdout: Output,
        stderr: ErrorOutput,
    ) -> None:
        if not callable(func):
            raise TypeError(f"func must be callable, not {type(func).__name__}")
        self._max_buffer_size = max_buffer_size
        self._call = (func, *args)
        # Made now, to check the options; its target is put in when there is something to connect.
        self._process: AsyncProcess[None] = AsyncProcess(
            target=None,
            name=name,
            timeout=timeout,
            stop=stop,
            start_method=start_method,
            logs=logs,
            stdout=stdout,
            stderr=stderr,
        )
        if name is None:
            name_after(self._process, func)
        self._process._asked_for_outcome = True  # it is raised here
        self._handle = self._process._handle
        self._maybe_receiver: Receiver | None = None
        self._loop: EventLoop | None = None
        self._receiving = False
        self._closed = False
        self._ended = False
        self._slice_end = 0.0

    @property
    def process(self) -> AsyncProcess[None]:
        """The process that the generator runs in."""
        return self._process

    async def receive(self) -> T_co:
        """Return the next item; wait until there is one.

        Cancellation loses no item. It takes effect where this waits, and at least every millisecond
        where it does not.

        :raises anyio.EndOfStream: if there are none left, as the generator has ended
        :raises Exception: what the generator has raised, with the child's traceback as its
            ``__cause__``. It has ended then
        :raises ProcessDied: if the process died, or left through ``sys.exit``
        :raises ProcessTimeout: if the process was stopped because its ``timeout`` ran out
        :raises SerializationError: if the item cannot be unpickled: the next one can be received.
            (If an item cannot be pickled, that is raised in the generator, where it is yielded.) Or
            if the process could not unpickle the function or an argument, or has written something
            else to its memory
        :raises anyio.ClosedResourceError: if the stream is closed
        :raises anyio.BusyResourceError: if another task is waiting for an item
        :raises ProcessStateError: if the stream was not opened, or belongs to another event loop
        """
        if monotonic() < self._slice_end:
            receiver = self._receiver
            for value in receiver.values:
                receiver.take()
                if not receiver.looking:
                    receiver.look_soon()
                return value  # type: ignore[no-any-return]
        return await self._receive()

    async def __anext__(self) -> T_co:
        if monotonic() < self._slice_end:
            receiver = self._receiver
            for value in receiver.values:
                receiver.take()
                if not receiver.looking:
                    receiver.look_soon()
                return value  # type: ignore[no-any-return]
        try:
            return await self._receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    def receive_nowait(self) -> T_co:
        """Return the next item, if it is here.

        :raises anyio.WouldBlock: if it is not. (One that takes long to unpickle comes while others
            run.)
        :raises Exception: all that :meth:`receive` raises
        """
        self._check_usable()
        receiver = self._receiver
        while (outcome := receiver.next_outcome()) is None:
            if not receiver.take_in() and receiver.waits:
                if self._handle.gone.is_set() and receiver.empty:
                    self._end()
                raise anyio.WouldBlock
        return outcome.take()  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """Stop the process, if it still runs, and wait until it is gone.

        Politely at first, so that the generator's ``finally`` blocks run. What they raise is the
        process's :attr:`~AsyncProcess.exception`, and is not raised here. Cancellation does not cut
        that short; it ends within the time that the stop policy allows.

        :raises ProcessStuckError: if even SIGKILL did not end it
        """
        self._closed = True
        receiver = self._maybe_receiver
        if receiver is None:
            self._handle.give_up_unless_started()
            return
        self._slice_end = 0.0
        receiver.wake()
        try:
            await self._process._leave_nothing()
        finally:
            receiver.close()

    async def __aenter__(self) -> ProcessStream[T_co]:
        if self._closed:
            raise anyio.ClosedResourceError
        if self._maybe_receiver is not None:
            raise ProcessStateError(f"stream {self._process.name!r} was opened before")
        await self._open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.aclose()

    # --- inner workings -------------------------------------------------------------------------

    async def _open(self) -> None:
        handle, process = self._handle, self._process
        loop = self._loop = current_loop()
        try:
            jobs = ThreadJobs(loop, runtime().picklers)  # may be what makes the runtime
            link = StreamLink()
        except (OSError, RuntimeError) as error:  # no descriptors, or no threads, left
            raise ProcessStartError(f"cannot start process {process.name!r}: {error}") from error
        try:
            receiver = Receiver(
                loop, link, jobs, self._max_buffer_size, self._cannot_unpickle, self._kill
            )
        except BaseException:
            link.close()
            raise
        self._maybe_receiver = receiver
        call, self._call = self._call, ()
        handle._call = Call(StreamProgram(*link.child_ends), call, {})
        handle.on_forget = lambda: link.forget(child_exists=handle.launched.is_set())
        try:
            await process.start()
            handle.own()  # it must exit once it has said its last word
            handle.gone.tell(receiver.wake, loop)
        except BaseException:
            await self.aclose()
            raise
        finally:
            link.release_child_ends()

    async def _receive(self) -> T_co:
        self._check_usable()
        receiver = self._receiver
        self._receiving = True
        try:
            await anyio.lowlevel.checkpoint()
            while (outcome := receiver.next_outcome()) is None:
                if self._closed:
                    raise anyio.ClosedResourceError
                if receiver.take_in():
                    continue
                if not receiver.waits:  # a piece of an item
                    await anyio.lowlevel.checkpoint()
                elif not self._handle.gone.is_set():
                    await receiver.wait(self._is_over)
                elif receiver.empty:
                    self._end()
                else:
                    await receiver.wait(lambda: self._closed)
        finally:
            self._receiving = False
        self._slice_end = monotonic() + _SLICE
        return outcome.take()  # type: ignore[no-any-return]

    def _is_over(self) -> bool:
        return self._closed or self._handle.gone.is_set()

    def _end(self) -> None:
        """All that the process has sent was received: raise how it has ended."""
        process = self._process
        if not self._ended:
            self._ended = True
            self._handle.check_gone()
            if self._receiver.garbage is not None:
                raise _failures.wrote_garbage(process.name, process.pid, self._receiver.garbage)
            outcome = self._handle.outcome
            if isinstance(outcome, Failure):
                raise self._visible(outcome.exception)
        raise anyio.EndOfStream

    def _visible(self, error: BaseException) -> BaseException:
        if isinstance(error, ProcessDied) and self._receiver.cut_off and not error.detail:
            died = ProcessDied(
                error.exitcode,
                error.signal,
                name=error.name,
                pid=error.pid,
                detail="it died while sending an item",
            )
            died.__cause__ = error.__cause__
            return died
        if isinstance(error, (anyio.EndOfStream, StopAsyncIteration)):
            # The caller would take it for the end.
            kind = type(error)
            remote = RemoteError(f"{kind.__module__}.{kind.__qualname__}", str(error))
            remote.__cause__ = error.__cause__
            return remote
        return error

    def _cannot_unpickle(self, error: BaseException) -> BaseException:
        return cannot_unpickle("item", self._process.name, self._handle.pid, error)

    def _kill(self) -> None:
        policy = self._handle.policy
        self._handle.stop(StopPolicy(grace=0, group=policy.group, kill_timeout=policy.kill_timeout))

    def _check_usable(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if self._maybe_receiver is None or not self._handle.launched.is_set():
            raise ProcessStateError(
                f"stream {self._process.name!r} was not opened: use it in `async with`"
            )
        if not is_current(self._loop):
            raise ProcessStateError(
                f"stream {self._process.name!r} belongs to another event loop: the one that opened"
                " it"
            )
        if self._receiving:
            raise anyio.BusyResourceError("receiving from")

    @property
    def _receiver(self) -> Receiver:
        assert self._maybe_receiver is not None
        return self._maybe_receiver


def _check_buffer_size(size: float) -> int:
    if size == math.inf:
        return _NO_BOUND
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"max_buffer_size must be an int or math.inf, not {type(size).__name__}")
    if size < 1:
        raise ValueError(f"max_buffer_size must be 1 or more, not {size!r}")
    return min(size, _NO_BOUND)
