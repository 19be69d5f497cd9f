"""A pool of warm workers."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar, TypeVarTuple, Unpack, overload

import anyio

from .._carried import carriers, in_context
from .._durations import check_timeout
from .._errors import ProcessStateError, ProcessTimeout
from .._instruments import instruments
from .._log_forwarding import LogTarget
from .._loops import waiter_in
from .._progress_feed import Progress
from .._shielded import shielded
from .._stop_policy import StopPolicy
from .._wire._outcomes import Failure, Value
from .._wire._payloads import Serializer
from ._call_engine import CallEngine
from ._calls import PoolCall, what_runs
from ._engine import PoolEngine
from ._map import ProcessMap
from ._map_options import check_map_options
from ._map_run import MapRun
from ._observing import announce, tell_not_sent
from ._options import PoolOptions, check_options
from ._outcomes import ItemOutcome
from ._statistics import PoolStatistics

__all__ = ["ProcessPool", "open_pool"]

T = TypeVar("T")
PosArgsT = TypeVarTuple("PosArgsT")

_numbers = itertools.count(1)


def open_pool(
    workers: float | None = None,
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
    logs: LogTarget = False,
    name: str | None = None,
    stdout: logging.Logger | None = None,
    stderr: logging.Logger | Literal["stdout"] | None = None,
) -> ProcessPool:
    """Return a :class:`ProcessPool`, to be used in ``async with``.

    :param workers: how many processes may run calls at once; by default as many as there are CPUs
        that this process may use, and with ``math.inf`` as many as there are calls. They are
        started when there are calls for them
    :param min_workers: how many processes to start at once and to keep ready. ``async with`` waits
        for them
    :param spares: how many processes to start ahead, beyond those that are busy. By default none;
        with ``max_tasks_per_worker=1`` as many as there are CPUs, so that each call has a process
        of its own and yet does not wait for it to start
    :param initializer: called in each worker before its first call; may be ``async``
    :param initargs: its arguments
    :param finalizer: called without arguments in each worker that ends in order or is stopped
        politely, the counterpart of ``initializer``; may be ``async``
    :param max_tasks_per_worker: how many calls a worker serves before it is replaced; a chunk of a
        map counts as one. With 1, each call has a process of its own, and each item of a map
    :param max_idle: seconds without a call after which a worker ends, unless it is one of
        ``min_workers``
    :param memory_limit: bytes of memory of its own that a worker may have. A call that needs more
        fails with :exc:`WorkerMemoryError`, and its worker is replaced. macOS does not keep it
    :param serializer: what to pickle functions, arguments, results and ``initializer`` with:
        ``cloudpickle`` for lambdas and closures (``pip install creche[cloudpickle]``), or anything
        with ``dumps`` and ``loads``. By default :mod:`pickle`
    :param preload: names of modules to import once, in the fork server, for all workers
    :param stop: how workers are stopped
    :param start_method: as for :class:`AsyncProcess`
    :param logs: as for :class:`AsyncProcess`, for all workers. The last records of a call may be
        handled shortly after the call has ended
    :param name: the name of the pool, with which those of its workers begin
    :param stdout: a logger for the lines that workers write to their standard output, as for
        :class:`AsyncProcess`; by default they go to the application's own
    :param stderr: a logger for those of standard error; ``"stdout"`` for where standard output goes
    :raises ValueError: if an argument is out of its range
    :raises TypeError: if an argument is of a wrong type

    ``async with`` raises :exc:`ProcessStartError` if the workers that are to be kept ready cannot
    be started, :exc:`SerializationError` if ``serializer`` cannot pickle ``initializer``, and
    :exc:`ProcessStateError` outside of an event loop. Cancelling it leaves nothing behind.
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
            logs=logs,
            name=f"pool-{next(_numbers)}" if name is None else name,
            stdout=stdout,
            stderr=stderr,
        )
    )


class ProcessPool:
    """Processes that stay warm and serve calls; made by :func:`open_pool`.

    Calls are served in order of arrival, whichever task they come from. The ``async with`` block is
    left when all calls have ended, those of other tasks included; an exception or a cancellation
    stops them. Then the workers are gone.

    A pool belongs to the event loop in which it was opened. Leaving the block, it takes no more
    calls.
    """

    def __init__(self, options: PoolOptions) -> None:
        self._options = options
        self._maybe_engine: CallEngine | None = None

    async def __aenter__(self) -> ProcessPool:
        self._open()
        try:
            await self._engine.wait_ready()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        engine = self._engine
        try:
            if exc_type is None:
                await engine.wait_for_calls()
                await engine.close()
        finally:
            await self._stop()

    @overload
    async def run(
        self,
        func: Callable[[Unpack[PosArgsT]], Coroutine[Any, Any, T]],
        *args: *PosArgsT,
        timeout: float | None = None,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> T: ...

    @overload
    async def run(
        self,
        func: Callable[[Unpack[PosArgsT]], T],
        *args: *PosArgsT,
        timeout: float | None = None,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> T: ...

    async def run(
        self,
        func: Callable[[Unpack[PosArgsT]], Any],
        *args: *PosArgsT,
        timeout: float | None = None,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> Any:
        """Call ``func(*args)`` in a worker; return its value or raise its error.

        Cancellation stops the worker if it runs the call, by the pool's stop policy, and waits
        until it is gone; another takes its place when there is need of it. A call that still waits
        just leaves. No other call notices.

        :param func: anything that can be called and pickled. An ``async`` function runs in an event
            loop of the pool's backend, which all those of a worker share
        :param args: its positional arguments (for keyword arguments use :func:`functools.partial`)
        :param timeout: seconds that this may take, waiting for a worker included. 0 times out at
            once
        :param on_progress: called in the event loop with each :class:`Progress` that ``func``
            reports by :func:`creche.from_process.report`. It should take no time; what it raises is
            logged
        :raises Exception: whatever ``func`` raises, with the worker's traceback as its
            ``__cause__``
        :raises ProcessDied: if the worker died, or left through ``sys.exit``, while it ran the call
        :raises ProcessTimeout: if ``timeout`` ran out; the worker is stopped
        :raises SerializationError: if something could not be pickled or unpickled
        :raises WorkerMemoryError: if the call needed more memory than ``memory_limit``
        :raises ProcessStartError: if no worker can be started, because ``initializer`` fails, say
        :raises ProcessClosedError: if the pool is closed
        :raises ProcessStateError: if the pool was not opened, or belongs to another event loop or
            process
        """
        if timeout is not None:
            return await self._run_within(timeout, func, args, on_progress)
        engine = self._engine
        engine.check_usable()
        if carriers.all:
            func = in_context(func)
        observed = engine.observe(func) if instruments.of_calls else None
        try:
            if observed is not None:
                func = announce(observed, func)
            payload = engine.pickle_plain(func, args) or await engine.pickle(func, args)
        except BaseException as error:
            if observed is not None:
                tell_not_sent(observed, error)
            raise
        waiter = waiter_in(engine.loop)
        call = PoolCall(payload, what_runs(func), waiter.wake)
        call.observed = observed
        call.on_progress = on_progress
        try:
            engine.submit(call)
            await waiter
        except BaseException as error:
            worker = engine.call_off(call)
            # GeneratorExit: the event loop was closed with this task in it, and nobody waits.
            if worker is not None and not isinstance(error, GeneratorExit):
                await shielded(worker.wait_gone)
            raise
        finally:
            engine.forget(call)
        outcome = call.outcome
        if isinstance(outcome, Failure):
            engine.scheduler.count(failed=1)
            raise outcome.exception
        engine.scheduler.count(done=1)
        assert isinstance(outcome, Value)
        return outcome.take()  # whoever has resumed this task knows the outcome, but not the value

    @overload
    def map(
        self,
        func: Callable[..., Coroutine[Any, Any, T]],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        ordered: bool = True,
        chunksize: int | Literal["auto"] = "auto",
        in_flight: int | None = None,
        timeout: float | None = None,
        on_error: Literal["raise"] = "raise",
        on_progress: Callable[[int, int | None], object] | None = None,
    ) -> ProcessMap[T]: ...

    @overload
    def map(
        self,
        func: Callable[..., T],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        ordered: bool = True,
        chunksize: int | Literal["auto"] = "auto",
        in_flight: int | None = None,
        timeout: float | None = None,
        on_error: Literal["raise"] = "raise",
        on_progress: Callable[[int, int | None], object] | None = None,
    ) -> ProcessMap[T]: ...

    @overload
    def map(
        self,
        func: Callable[..., Coroutine[Any, Any, T]],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        ordered: bool = True,
        chunksize: int | Literal["auto"] = "auto",
        in_flight: int | None = None,
        timeout: float | None = None,
        on_error: Literal["yield"],
        on_progress: Callable[[int, int | None], object] | None = None,
    ) -> ProcessMap[ItemOutcome[T]]: ...

    @overload
    def map(
        self,
        func: Callable[..., T],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        ordered: bool = True,
        chunksize: int | Literal["auto"] = "auto",
        in_flight: int | None = None,
        timeout: float | None = None,
        on_error: Literal["yield"],
        on_progress: Callable[[int, int | None], object] | None = None,
    ) -> ProcessMap[ItemOutcome[T]]: ...

    def map(
        self,
        func: Callable[..., Any],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        ordered: bool = True,
        chunksize: int | Literal["auto"] = "auto",
        in_flight: int | None = None,
        timeout: float | None = None,
        on_error: Literal["raise", "yield"] = "raise",
        on_progress: Callable[[int, int | None], object] | None = None,
    ) -> ProcessMap[Any]:
        """Call ``func`` for each item of ``iterables``; return an async iterator over the values::

            async for page in pool.map(render, pages):
                ...

            sizes = await pool.map(os.path.getsize, paths)  # all at once, as a list

        Items are taken from the input, and values are kept, only as fast as the loop takes values:
        input and output may be infinite. A plain iterable is run in the event loop, so it should
        give its items without waiting; one that waits should be an async one.

        Leaving the loop early, by ``break``, an error or a cancellation, stops what runs. A map is
        to be used inside the pool's block: when that is left, a map that has not ended fails.

        Tiny items travel in large batches, and those that take long alone. Where a worker dies, the
        item that it ran fails with :exc:`ProcessDied`, and so do those of the last hundredth of a
        second before, of which the values are lost with it; none is run twice.

        :param func: as for :meth:`run`. With several iterables it gets an item of each, until the
            shortest ends
        :param ordered: whether values come in the order of their items; if not, as soon as they are
            there
        :param chunksize: how many items travel together. By default that follows from how long they
            take, so that even mixed ones are spread well
        :param in_flight: how many items at most may have been taken from the input without their
            values having been handed out. By default enough to keep the workers busy
        :param timeout: seconds that an item may take in its worker, which is stopped then. With it,
            items travel alone
        :param on_error: ``"raise"`` ends the map at the first item that fails, with its error, and
            a note that tells which it was; ``"yield"`` gives an :class:`ItemOutcome` for each item,
            failed or not
        :param on_progress: called with the number of items that have ended, and the number of all
            of them where the input tells (``None`` elsewhere), whenever the first has grown
        :raises ValueError: if an option is out of its range
        :raises TypeError: if an option is of a wrong type, or there is no iterable
        :raises ProcessClosedError: if the pool is closed
        :raises ProcessStateError: if the pool was not opened, or belongs to another event loop or
            process
        """
        engine = self._engine
        engine.check_usable()
        if not iterables:
            raise TypeError("map() needs at least one iterable")
        options = check_map_options(
            ordered=ordered,
            chunksize=chunksize,
            in_flight=in_flight,
            timeout=timeout,
            on_error=on_error,
            on_progress=on_progress,
        )
        return ProcessMap(MapRun(engine, in_context(func), iterables, options))

    def statistics(self) -> PoolStatistics:
        """Return how things are just now.

        :raises ProcessStateError: if the pool was not opened
        """
        return self._engine.scheduler.statistics()  # type: ignore[no-any-return]

    # --- inner workings -------------------------------------------------------------------------

    def _open(self) -> None:
        if self._maybe_engine is not None:
            raise ProcessStateError(f"pool {self._options.name!r} was opened before")
        self._maybe_engine = self._make_engine()

    def _make_engine(self) -> CallEngine:
        return PoolEngine(self._options)

    async def _stop(self) -> None:
        """Stop whatever there is, and wait until it is gone, within what the policy allows."""
        self._engine.stop()
        await shielded(self._engine.wait_gone)

    @property
    def _engine(self) -> CallEngine:
        if self._maybe_engine is None:
            raise ProcessStateError(
                f"pool {self._options.name!r} was not opened: use it in `async with`"
            )
        return self._maybe_engine

    async def _run_within(
        self,
        timeout: float,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        on_progress: Callable[[Progress], object] | None,
    ) -> Any:
        seconds = check_timeout(timeout)
        self._engine.check_usable()
        if seconds != 0:
            with anyio.move_on_after(seconds):
                return await self.run(func, *args, on_progress=on_progress)
        raise ProcessTimeout(
            f"a call of {_name_of(func)} in {self._options.name!r} was stopped after its timeout of"
            f" {seconds:g} seconds"
        )


def _name_of(func: object) -> str:
    return repr(getattr(func, "__qualname__", None) or func)
