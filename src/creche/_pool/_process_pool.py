"""A pool of warm workers."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, TypeVar, TypeVarTuple, Unpack, overload

import anyio

from .._durations import check_timeout
from .._errors import ProcessClosedError, ProcessStartError, ProcessStateError, ProcessTimeout
from .._loops import EventLoop, backend_of, current_loop, post, waiter_in
from .._process import AsyncProcess
from .._runtime import Runtime, runtime
from .._stop_policy import StopPolicy
from .._wire._outcomes import Failure, cannot_pickle_call
from .._wire._payloads import Payload, Serializer, TooHeavyError, dump
from ._calls import CallState, PoolCall, what_runs
from ._channel import Driver, WorkerChannel, driver_for
from ._options import PoolOptions, check_options
from ._scheduler import Scheduler
from ._serving import WorkerProgram
from ._statistics import PoolStatistics
from ._thread_jobs import ThreadJobs
from ._worker import Worker

__all__ = ["ProcessPool", "open_pool"]

T = TypeVar("T")
PosArgsT = TypeVarTuple("PosArgsT")

_numbers = itertools.count(1)


def open_pool(
    workers: int | None = None,
    *,
    min_workers: int = 0,
    spares: int | None = None,
    initializer: Callable[..., object] | None = None,
    initargs: Sequence[Any] = (),
    finalizer: Callable[[], object] | None = None,
    max_tasks_per_worker: int | None = None,
    max_idle: float = 300.0,
    memory_limit: int | None = None,
    serializer: Serializer | None = None,
    preload: Sequence[str] = (),
    stop: StopPolicy | None = None,
    start_method: str | None = None,
    name: str | None = None,
) -> ProcessPool:
    """Return a :class:`ProcessPool`, to be used in ``async with``.

    :param workers: how many processes may run calls at once; by default as many as there are CPUs
        that this process may use. They are started when there are calls for them
    :param min_workers: how many processes to start at once and to keep ready. ``async with`` waits
        for them
    :param spares: how many processes to start ahead, beyond those that are busy. By default none;
        with ``max_tasks_per_worker=1`` as many as there are CPUs, so that each call has a process
        of its own and yet does not wait for it to start
    :param initializer: called in each worker before its first call; may be ``async``
    :param initargs: its arguments
    :param finalizer: called without arguments in each worker that ends in order or is stopped
        politely, the counterpart of ``initializer``; may be ``async``
    :param max_tasks_per_worker: how many calls a worker serves before it is replaced
    :param max_idle: seconds without a call after which a worker ends, unless it is one of
        ``min_workers``
    :param memory_limit: bytes of memory of its own that a worker may have. A call that needs more
        fails with :exc:`WorkerMemoryError`, and its worker is replaced. macOS does not keep it
    :param serializer: what to pickle functions, arguments and results with: ``cloudpickle`` for
        lambdas and closures, or anything with ``dumps`` and ``loads``. By default :mod:`pickle`
    :param preload: names of modules to import once, in the fork server, for all workers
    :param stop: how workers are stopped
    :param start_method: as for :class:`AsyncProcess`
    :param name: the name of the pool, with which those of its workers begin
    :raises ValueError: if an argument is out of its range
    :raises TypeError: if an argument is of a wrong type
    """
    return ProcessPool(
        check_options(
            workers=workers,
            min_workers=min_workers,
            spares=spares,
            initializer=initializer,
            initargs=initargs,
            finalizer=finalizer,
            max_tasks_per_worker=max_tasks_per_worker,
            max_idle=max_idle,
            memory_limit=memory_limit,
            serializer=serializer,
            preload=preload,
            stop=stop,
            start_method=start_method,
            name=f"pool-{next(_numbers)}" if name is None else name,
        )
    )


class ProcessPool:
    """Processes that stay warm and serve calls; made by :func:`open_pool`.

    Calls are served in order of arrival, whichever task they come from. The ``async with`` block is
    left when all calls have ended, those of other tasks included; an exception or a cancellation
    stops them. Then the workers are gone.

    A pool belongs to the event loop in which it was opened.
    """

    def __init__(self, options: PoolOptions) -> None:
        self._options = options
        self._owner_pid = os.getpid()
        self._loop: EventLoop | None = None
        self._closed = False
        self._worker_numbers = itertools.count(1)
        self._runtime: Runtime
        self._driver: Driver
        self._scheduler: Scheduler
        self._jobs: ThreadJobs
        self._calls: set[PoolCall] = set()

    async def __aenter__(self) -> ProcessPool:
        if self._loop is not None:
            raise ProcessStateError(f"pool {self._options.name!r} was opened before")
        self._open()
        try:
            await self._wait_ready()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        try:
            if exc_type is None:
                await self._wait_for_calls()
                self._closed = True
                self._scheduler.retire_all()
                await self._wait_gone()
        finally:
            self._close()
            with anyio.CancelScope(shield=True):
                await self._wait_gone()

    @overload
    async def run(
        self,
        func: Callable[[Unpack[PosArgsT]], Coroutine[Any, Any, T]],
        *args: *PosArgsT,
        timeout: float | None = None,
    ) -> T: ...

    @overload
    async def run(
        self,
        func: Callable[[Unpack[PosArgsT]], T],
        *args: *PosArgsT,
        timeout: float | None = None,
    ) -> T: ...

    async def run(
        self,
        func: Callable[[Unpack[PosArgsT]], Any],
        *args: *PosArgsT,
        timeout: float | None = None,
    ) -> Any:
        """Call ``func(*args)`` in a worker; return its value or raise its error.

        Cancellation stops the worker if it runs the call, by the pool's stop policy, waits until it
        is gone, and replaces it. A call that still waits just leaves. No other call notices.

        :param func: anything that can be called and pickled. An ``async`` function runs in an event
            loop of the pool's backend, which all those of a worker share
        :param args: its positional arguments (for keyword arguments use :func:`functools.partial`)
        :param timeout: seconds that this may take, waiting for a worker included
        :raises Exception: whatever ``func`` raises, with the worker's traceback as its
            ``__cause__``
        :raises ProcessDied: if the worker died, or left through ``sys.exit``, while it ran the call
        :raises ProcessTimeout: if ``timeout`` ran out; the worker is stopped
        :raises SerializationError: if something could not be pickled or unpickled
        :raises WorkerMemoryError: if the call needed more memory than ``memory_limit``
        :raises ProcessStartError: if no worker can be started, because ``initializer`` fails, say
        :raises ProcessClosedError: if the pool is closed
        :raises ProcessStateError: if the pool belongs to another event loop or process
        """
        if timeout is not None:
            return await self._run_within(timeout, func, args)
        if self._loop is not current_loop() or self._closed or self._owner_pid != os.getpid():
            raise self._not_usable()
        try:
            payload = dump((func, args), self._options.serializer, light=True)
        except BaseException as error:
            payload = await self._pickle(func, args, error)
        waiter = waiter_in(self._loop)
        call = PoolCall(payload, what_runs(func), waiter.wake)
        self._calls.add(call)
        try:
            self._scheduler.submit(call)
            await waiter
        except BaseException:
            if call.state is not CallState.DONE:
                await self._cancel(call)
            raise
        finally:
            self._calls.discard(call)
        outcome = call.outcome
        if isinstance(outcome, Failure):
            raise outcome.exception
        return outcome.value  # type: ignore[union-attr]

    def statistics(self) -> PoolStatistics:
        """Return how things are just now.

        :raises ProcessStateError: if the pool was not opened
        """
        if self._loop is None:
            raise ProcessStateError(f"pool {self._options.name!r} was not opened")
        return self._scheduler.statistics()

    # --- inner workings -------------------------------------------------------------------------

    async def _run_within(
        self, timeout: float, func: Callable[..., Any], args: tuple[Any, ...]
    ) -> Any:
        seconds = check_timeout(timeout)
        with anyio.move_on_after(seconds):
            return await self.run(func, *args)
        raise ProcessTimeout(
            f"a call of {_name_of(func)} in {self._options.name!r} was stopped after its timeout of"
            f" {seconds:g} seconds"
        )

    async def _cancel(self, call: PoolCall) -> None:
        worker = self._scheduler.cancel(call)
        self._jobs.abandon(call)
        if worker is not None:
            with anyio.CancelScope(shield=True):
                await worker.wait_gone()

    async def _pickle(
        self, func: Callable[..., Any], args: tuple[Any, ...], error: BaseException
    ) -> Payload:
        """Pickle a call in a thread, if it takes too long for the event loop."""
        if isinstance(error, TooHeavyError):
            return await self._pickle_in_thread((func, args))
        raise cannot_pickle_call(self._options.name, func, args, error) from error

    async def _pickle_in_thread(self, call: tuple[Any, ...]) -> Payload:
        assert self._loop is not None
        waiter = waiter_in(self._loop)
        result: Payload | BaseException | None = None

        def work() -> Payload | BaseException:
            try:
                return dump(call, self._options.serializer)
            except BaseException as error:
                return error

        def then(_owner: object, pickled: Payload | BaseException) -> None:
            nonlocal result
            result = pickled
            waiter.wake()

        owner = object()
        self._jobs.run(owner, work, then)
        try:
            await waiter
        finally:
            self._jobs.abandon(owner)
        if isinstance(result, BaseException):
            raise cannot_pickle_call(self._options.name, *call[:2], result) from result
        assert result is not None
        return result

    def _open(self) -> None:
        loop = current_loop()
        try:
            self._runtime = runtime()
        except (OSError, RuntimeError) as error:  # no descriptors, or no threads left
            raise ProcessStartError(f"cannot open {self._options.name!r}: {error}") from error
        self._loop = loop
        self._driver = driver_for(loop, self._runtime.watcher)
        self._jobs = ThreadJobs(loop, self._runtime.picklers)
        self._scheduler = Scheduler(self._options, self._make_worker, self._call_later)
        self._scheduler.keep_ready()

    async def _wait_ready(self) -> None:
        """Wait for those workers that are to be kept ready."""
        assert self._loop is not None
        scheduler = self._scheduler
        while scheduler.ready_workers < self._options.min_workers:
            if scheduler.start_error is not None:
                raise scheduler.start_error
            await self._wait_for_change()

    async def _wait_for_calls(self) -> None:
        while self._scheduler.has_calls or self._calls:
            await self._wait_for_change()

    async def _wait_for_change(self) -> None:
        waiter = waiter_in(self._loop)
        self._scheduler.on_change = waiter.wake
        try:
            await waiter
        finally:
            self._scheduler.on_change = None

    async def _wait_gone(self) -> None:
        while self._scheduler.workers:
            await next(iter(self._scheduler.workers)).wait_gone()
            await anyio.lowlevel.checkpoint()

    def _close(self) -> None:
        """Stop whatever there is."""
        self._closed = True
        self._scheduler.stop_all()
        error = ProcessClosedError(f"pool {self._options.name!r} was closed before the call ended")
        for call in list(self._calls):
            self._jobs.abandon(call)
            call.fail(error)
        self._jobs.abandon_all()

    def _make_worker(self, scheduler: Scheduler) -> Worker:
        options = self._options
        assert self._loop is not None
        number = next(self._worker_numbers)
        program: Any
        worker: Worker
        channel = WorkerChannel(
            self._driver,
            lambda messages: worker.on_messages(messages),
            lambda error: worker.on_garbage(error),
        )
        program = WorkerProgram(
            channel.child_wire, channel.child_segments, options.serializer, options.memory_limit
        )
        process: AsyncProcess[Any] = AsyncProcess(
            target=program,
            args=(options.initializer, options.initargs, options.finalizer),
            name=f"{options.name}-worker-{number}",
            stop=options.stop,
            start_method=options.start_method,
        )
        worker = Worker(process, scheduler, self._loop, options.serializer, self._jobs)
        try:
            worker.start(channel)
        except BaseException:
            channel.close()
            raise
        return worker

    def _call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        watcher, loop = self._runtime.watcher, self._loop
        method = weakref.WeakMethod(callback)  # type: ignore[arg-type]

        def call() -> None:
            bound = method()
            if bound is not None:
                post(loop, bound)

        watcher.call_soon(lambda: watcher.call_later(seconds, call))

    def _not_usable(self) -> ProcessStateError:
        """Say why nothing can be run."""
        name = self._options.name
        if self._loop is None:
            return ProcessStateError(f"pool {name!r} was not opened: use it in `async with`")
        if self._owner_pid != os.getpid():
            return ProcessStateError(
                f"pool {name!r} belongs to the process with pid {self._owner_pid}, not to this one"
            )
        if self._closed:
            return ProcessClosedError(f"pool {name!r} is closed")
        return ProcessStateError(
            f"pool {name!r} belongs to another event loop: the one in which it was opened"
        )


def _name_of(func: object) -> str:
    return repr(getattr(func, "__qualname__", None) or func)
