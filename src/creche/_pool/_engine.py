"""What an open pool consists of, and what its calls and maps need of it."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel

from .._errors import (
    ProcessClosedError,
    ProcessStartError,
    ProcessStateError,
    SerializationError,
)
from .._function_names import qualified_name
from .._instruments import ObservedCall
from .._loops import EventLoop, current_loop, is_current, post, waiter_in
from .._process import AsyncProcess
from .._runtime import runtime
from .._start_methods import preload_in_server
from .._wire._context import CallInContext
from .._wire._handing_over import lend_all
from .._wire._outcomes import Failure, Outcome, Value, cannot_pickle_call
from .._wire._payloads import Payload, Serializer, TooHeavyError, dump_call, dumps_plain, is_plain
from ._calls import PoolCall
from ._channel import WorkerChannel, driver_for
from ._options import PoolOptions
from ._scheduler import Scheduler
from ._serving import WorkerProgram
from ._thread_jobs import ThreadJobs
from ._worker import Worker


class PoolEngine:
    """The workers of a pool, and the calls that are on their way; lives in one event loop.

    :raises ProcessStateError: if the caller runs in no event loop
    :raises ProcessStartError: if there are no descriptors or threads left
    :raises SerializationError: if the serializer cannot pickle what workers are set up with
    """

    def __init__(self, options: PoolOptions) -> None:
        self.options = options
        self.closed = False
        self.loop: EventLoop = current_loop()
        try:
            self._runtime = runtime()
        except (OSError, RuntimeError) as error:
            raise ProcessStartError(f"cannot open {options.name!r}: {error}") from error
        self.jobs = ThreadJobs(self.loop, self._runtime.picklers)
        self.scheduler = Scheduler(options, self._make_worker, self.call_later)
        self._owner_pid = os.getpid()
        self._driver = driver_for(self.loop, self._runtime.watcher)
        self._worker_numbers = itertools.count(1)
        self._calls: set[PoolCall] = set()
        initargs, self._lent = lend_all(options.initargs)
        self._setup: tuple[Any, ...] = (options.initializer, initargs, options.finalizer)
        if options.serializer is not None:
            self._setup = (self._pickle_setup(options.serializer),)
        self.scheduler.grow()

    # --- calls ----------------------------------------------------------------------------------

    def check_usable(self) -> None:
        """Check that calls can be made.

        :raises ProcessClosedError: if the pool is closed
        :raises ProcessStateError: if it belongs to another event loop or process
        """
        self.check_place()
        if self.closed:
            raise ProcessClosedError(f"pool {self.options.name!r} is closed")

    def check_place(self) -> None:
        """Check that the caller runs in the event loop of the pool.

        :raises ProcessStateError: if it does not
        """
        if self._runtime.forgotten:
            raise ProcessStateError(
                f"pool {self.options.name!r} belongs to the process with pid {self._owner_pid},"
                " not to this one"
            )
        if not is_current(self.loop):
            raise ProcessStateError(
                f"pool {self.options.name!r} belongs to another event loop: the one in which it"
                " was opened"
            )

    def observe(self, func: Callable[..., Any], items: int = 1) -> ObservedCall:
        """Return what instruments get to see of a call."""
        return ObservedCall(qualified_name(func), self.options.name, items)

    def expect(self, call: PoolCall) -> None:
        """A call is going to be submitted. It is known to the pool until :meth:`forget`."""
        self._calls.add(call)

    def submit(self, call: PoolCall) -> None:
        """Have a call run. It is known to the pool until :meth:`forget`."""
        self._calls.add(call)
        self.scheduler.submit(call)

    def forget(self, call: PoolCall) -> None:
        """Nobody waits for the call any more."""
        self._calls.discard(call)
        call.close_payload()
        if self.scheduler.on_change is not None:
            self.scheduler.on_change()

    def call_off(self, call: PoolCall) -> Worker | None:
        """See to it that a call does not run, or no longer.

        :return: the worker that is being stopped for that
        """
        self.forget(call)
        self.jobs.abandon(call)
        return self.scheduler.cancel(call)

    def pickle_plain(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Payload | None:
        """Pickle a call with plain arguments, which takes no time; ``None`` if this is none."""
        if isinstance(func, CallInContext) and not is_plain(func.loads):
            return None
        if self.options.serializer is None and is_plain(args):
            try:
                return Payload([[dumps_plain((func, args))]], heavy=False)
            except BaseException:
                return None  # pickle() will say why
        return None

    async def pickle(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Payload:
        """Pickle a call: here if that is quickly done, or else in a thread.

        :raises SerializationError: if something cannot be pickled
        """
        call = func, args
        try:
            return dump_call(call, self.options.serializer, light=True)
        except TooHeavyError:
            pickled = await self._pickle_in_thread(call)
        except BaseException as error:
            pickled = Failure(error)
        if isinstance(pickled, Failure):
            reason = pickled.exception
            raise cannot_pickle_call(self.options.name, func, args, reason) from reason
        return pickled.value  # type: ignore[no-any-return]

    def call_later(self, seconds: float, method: Callable[[], object]) -> None:
        """Call a bound method in the event loop after some seconds, if its object is still there.

        Where the event loop was closed without the pool, the workers are stopped.
        """
        watcher, loop = self._runtime.watcher, self.loop
        callback: Any = weakref.WeakMethod(method)
        workforce = weakref.ref(self.scheduler.workforce)

        def call() -> None:
            bound, orphaned = callback(), workforce()
            if bound is not None and not post(loop, bound) and orphaned is not None:
                orphaned.stop_all()

        def start_timer() -> None:
            watcher.call_later(seconds, call)

        watcher.call_soon(start_timer)

    # --- the beginning and the end --------------------------------------------------------------

    async def wait_ready(self) -> None:
        """Wait for those workers that are to be kept ready.

        :raises ProcessStartError: if they cannot be started
        """
        workforce = self.scheduler.workforce
        while workforce.ready < self.options.min_workers:
            if workforce.start_error is not None:
                raise workforce.start_error
            await self._wait_for_change()

    async def wait_for_calls(self) -> None:
        """Take no more calls, and wait until every one has ended."""
        self.closed = True
        while self.scheduler.has_calls or self._calls:
            await self._wait_for_change()

    async def close(self) -> None:
        """Let the workers, which have nothing to do, end; wait until they are gone."""
        for lent in self._lent:
            lent.close()
        self.scheduler.workforce.retire_all()
        await self.wait_gone()

    def stop(self) -> None:
        """Stop whatever there is."""
        self.closed = True
        for lent in self._lent:
            lent.close()
        self.scheduler.workforce.stop_all()
        error = ProcessClosedError(
            f"pool {self.options.name!r} was closed before the call had ended"
        )
        for call in list(self._calls):
            self.jobs.abandon(call)
            if call.observed is not None:
                call.observed._fails("cancelled", error)
                call.observed._finished("cancelled")
            call.fail(error)
        self._calls.clear()
        self.jobs.abandon_all()

    async def wait_gone(self) -> None:
        """Wait until all workers are gone.

        :raises ProcessStuckError: if one does not go
        """
        workers = self.scheduler.workforce.all
        while workers:
            await next(iter(workers)).wait_gone()
            await anyio.lowlevel.checkpoint()  # it is told by a callback

    # --- inner workings -------------------------------------------------------------------------

    def _pickle_setup(self, serializer: Serializer) -> bytes:
        try:
            return serializer.dumps(self._setup)
        except BaseException as error:
            for lent in self._lent:
                lent.close()
            raise SerializationError(
                f"cannot open {self.options.name!r}: its serializer cannot pickle initializer,"
                f" initargs and finalizer ({type(error).__name__}: {error})"
            ) from error

    async def _pickle_in_thread(self, call: tuple[Any, ...]) -> Outcome:
        waiter = waiter_in(self.loop)
        result: Outcome | None = None

        def work() -> Outcome:
            return outcome_of(lambda: dump_call(call, self.options.serializer))

        def then(_owner: object, pickled: Outcome) -> None:
            nonlocal result
            result = pickled
            waiter.wake_soon()

        owner = object()
        self.jobs.run(owner, work, then)
        try:
            await waiter
        finally:
            self.jobs.abandon(owner)
        assert result is not None
        return result

    async def _wait_for_change(self) -> None:
        waiter = waiter_in(self.loop)
        self.scheduler.on_change = waiter.wake_soon
        try:
            await waiter
        finally:
            self.scheduler.on_change = None

    def _make_worker(self, scheduler: Scheduler) -> Worker:
        options = self.options
        number = next(self._worker_numbers)
        channel = WorkerChannel(self._driver)
        program: Any = WorkerProgram(
            channel.child_wire,
            channel.child_calls,
            channel.child_segments,
            channel.shared,
            serializer=options.serializer,
            memory_limit=options.memory_limit,
            preload=options.preload,
        )
        process: AsyncProcess[Any] = AsyncProcess(
            target=program,
            args=self._setup,
            name=f"{options.name}-worker-{number}",
            stop=options.stop,
            start_method=options.start_method,
            logs=options.logs,
            stdout=options.stdout,
            stderr=options.stderr,
        )
        process._handle.observed.kind = "worker"
        process._handle.observed.pool = options.name
        preload_in_server(process._handle.process, options.preload)
        worker = Worker(number, process, scheduler, self.loop, options, self.jobs)
        try:
            worker.start(channel)
        except BaseException:
            channel.close()
            raise
        return worker


def outcome_of(pickle: Callable[[], Payload]) -> Outcome:
    """Pickle something, in a thread: what becomes of it is told, not raised."""
    try:
        return Value(pickle())
    except BaseException as error:
        return Failure(error)
