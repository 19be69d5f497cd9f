"""What an open pool consists of."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel

from .._ctrl_c import is_ctrl_c
from .._errors import ProcessStuckError, SerializationError, reason_of
from .._loops import post
from .._process import AsyncProcess
from .._start_methods import preload_in_server
from .._wire._handing_over import lend_all
from .._wire._payloads import Serializer
from ._call_engine import CallEngine
from ._calls import PoolCall
from ._channel import WorkerChannel, driver_for
from ._options import PoolOptions
from ._scheduler import Scheduler
from ._serving import WorkerProgram
from ._worker import Worker


class PoolEngine(CallEngine):
    """The workers of a pool, and the calls that are on their way.

    :raises ProcessStateError: if the caller runs in no event loop
    :raises ProcessStartError: if there are no descriptors or threads left
    :raises SerializationError: if the serializer cannot pickle what workers are set up with
    """

    scheduler: Scheduler

    backend: str | None = None
    """What async functions run under, where it is not that of the event loop of the pool."""

    def __init__(self, options: PoolOptions) -> None:
        super().__init__(options)
        self.scheduler = Scheduler(options, self._make_worker, self.call_later)
        self._driver = driver_for(self.loop, self._runtime.watcher)
        self._worker_numbers = itertools.count(1)
        initargs, self._lent = lend_all(options.initargs)
        self._setup: tuple[Any, ...] = (options.initializer, initargs, options.finalizer)
        if options.serializer is not None:
            self._setup = (self._pickle_setup(options.serializer),)
        self.scheduler.grow()

    # --- calls ----------------------------------------------------------------------------------

    def submit(self, call: PoolCall) -> None:
        """Have a call run. It is known to the pool until :meth:`forget`."""
        self._calls.add(call)
        self.scheduler.submit(call)

    def call_off(self, call: PoolCall) -> Worker | None:
        """See to it that a call does not run, or no longer.

        :return: the worker that is being stopped for that
        """
        self.forget(call)
        self.jobs.abandon(call)
        return self.scheduler.cancel(call)

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
        self._close_to_calls()
        while self.scheduler.has_calls or self._expects_calls:
            await self._wait_for_change()

    async def close(self) -> None:
        """Let the workers, which have nothing to do, end; wait until they are gone."""
        for lent in self._lent:
            lent.close()
        self.scheduler.workforce.retire_all()
        await self.wait_gone()

    def stop(self) -> None:
        """Stop whatever there is."""
        self._close_to_calls()
        for lent in self._lent:
            lent.close()
        self.scheduler.workforce.stop_all()
        self._fail_calls()

    async def wait_gone(self) -> None:
        """Wait until all workers are gone.

        :raises ProcessStuckError: if one does not go
        """
        workers = self.scheduler.workforce.all
        stuck: ProcessStuckError | None = None
        while workers:
            try:
                await next(iter(workers)).wait_gone()
            except ProcessStuckError as error:
                stuck = error
            await anyio.lowlevel.checkpoint()  # it is told by a callback
        if stuck is not None:
            raise stuck

    # --- inner workings -------------------------------------------------------------------------

    def _pickle_setup(self, serializer: Serializer) -> bytes:
        try:
            return serializer.dumps(self._setup)
        except BaseException as error:
            for lent in self._lent:
                lent.close()
            if is_ctrl_c(error):
                raise
            raise SerializationError(
                f"cannot open {self.options.name!r}: its serializer cannot pickle initializer,"
                f" initargs and finalizer ({reason_of(error)})"
            ) from error

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
        process._backend = self.backend
        preload_in_server(process._handle.process, options.preload)
        worker = Worker(number, process, scheduler, self.loop, options, self.jobs)
        try:
            worker.start(channel)
        except BaseException:
            channel.close()
            raise
        return worker
