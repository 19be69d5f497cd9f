"""A pool's calls, on their way to a cluster and back."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import pickle
import uuid
from collections.abc import Callable
from types import ModuleType
from typing import Any

import anyio

from .._errors import ProcessClosedError, SerializationError, reason_of
from .._log_forwarding import LogTarget
from .._loops import EventLoop, Latch, backend_of, post
from .._pool._answers import Undecodable
from .._pool._call_engine import CallEngine
from .._pool._calls import CallState, PoolCall
from .._pool._chunks import Chunk
from .._pool._options import PoolOptions
from .._wire._payloads import Serializer
from ._address import Address
from ._answers import (
    Answer,
    Answers,
    Death,
    PickledFailure,
    PickledValue,
    load_exception,
    load_outcome,
)
from ._caller_requests import RequestServer
from ._connection import Connection
from ._data import ScatteredData
from ._errors import ClusterError
from ._frames import CallerSerializer, ModuleSerializer, make_frame
from ._loop_thread import LoopThread
from ._requests import CallRequest, Event, PoolSetup
from ._statistics import ClusterStatistics
from ._versions import our_versions

_logger = logging.getLogger("creche")

# What is unpickled in the event loop; more than that in a thread.
_SMALL_BYTES = 64 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class ClusterOptions:
    """What :func:`creche.cluster.open_pool` has beyond :func:`creche.open_pool`."""

    address: Address
    scheduler_file: Any
    security: Any
    workers: int | None
    retries: int
    connect_timeout: float


class ClusterEngine(CallEngine):
    """Everything in here runs in the event loop of the pool.

    :raises ProcessStateError: if the caller runs in no event loop
    :raises SerializationError: if the initializer cannot be pickled
    """

    # A Dask task costs the scheduler and the client some milliseconds: a few percent of that.
    chunk_seconds = 0.1

    def __init__(self, options: PoolOptions, cluster: ClusterOptions) -> None:
        data = ScatteredData()
        plain: Any = options.serializer
        if isinstance(plain, ModuleType):
            plain = ModuleSerializer(plain)
        self.serializer = CallerSerializer(plain, data.keep)
        self._setup_serializer: Serializer = plain
        super().__init__(dataclasses.replace(options, serializer=self.serializer))
        self.running: dict[int, PoolCall] = {}
        self.scheduler = ClusterStatistics(self.running)
        self._cluster = cluster
        self._numbers = itertools.count(1)
        self._number_of: dict[PoolCall, int] = {}
        self._stopping: set[_Stopping] = set()
        self._lost: ClusterError | None = None
        self._setup = PoolSetup(
            pool=uuid.uuid4().hex[:12],
            name=options.name,
            versions=our_versions(),
            backend=backend_of(self.loop),
            serializer=plain,
            setup=self._pickle_setup(options),
            max_tasks_per_worker=_int_or_none(options.max_tasks_per_worker),
            max_idle=options.max_idle,
            memory_limit=options.memory_limit,
            preload=options.preload,
            stop=options.stop,
            start_method=None,
            log_level=_log_level(options.logs),
        )
        self._thread: LoopThread | None = None
        self._ended = False
        self._requests = RequestServer(self.loop, plain, self._reply)
        self._connection = Connection(
            self._setup,
            cluster.retries,
            data,
            lambda workers: self._post(lambda: self._on_workers(workers)),
            lambda news: self._post(lambda: self.scheduler.hear(news)),
            lambda event: self._post(lambda: self._on_event(event)),
            lambda error: self._post(lambda: self._on_lost(error)),
        )

    # --- calls ----------------------------------------------------------------------------------

    def submit(self, call: PoolCall) -> None:
        self._calls.add(call)
        if self._lost is not None:
            call.fail(self._lost)
            return
        number = next(self._numbers)
        self.running[number] = call
        self._number_of[call] = number
        call.state = CallState.SENT
        chunk = isinstance(call, Chunk)
        request = CallRequest(
            self._setup,
            number,
            chunk,
            call.timeout if isinstance(call, Chunk) else None,
            call.on_progress is not None,
            b"".join(call.payload.sections[0]),
        )

        def receive(answers: Answers | BaseException) -> None:
            self._post(lambda: self._on_answers(number, answers))

        self._in_thread(lambda: self._connection.begin(request, receive))

    def call_off(self, call: PoolCall) -> _Stopping | None:
        self.forget(call)
        self.jobs.abandon(call)
        number = self._number_of.pop(call, None)
        if call.done:
            return None
        call.state = CallState.DONE
        if call.observed is not None:
            call.observed._finished("cancelled")
        self.scheduler.cancelled += 1
        return None if number not in self.running else self._stop_running(number)

    def call_later(self, seconds: float, method: Callable[[], object]) -> None:
        # Only maps with a timeout ask for it, of which the far side keeps the time.
        raise NotImplementedError

    def _on_answers(self, number: int, answers: Answers | BaseException) -> None:
        call = self.running.pop(number, None)
        if call is None:
            return
        if isinstance(answers, BaseException):
            self._number_of.pop(call, None)
            self._fail(call, answers)
            return
        sizes = (len(getattr(getattr(a, "outcome", None), "data", None) or b"") for a in answers)
        if sum(sizes) > _SMALL_BYTES:
            self.jobs.run(call, lambda: self._load(answers), self._deliver)
        else:
            self._deliver(call, self._load(answers))

    def _load(self, answers: Answers) -> list[tuple[Any, Any]]:
        """Unpickle what is in answers; in a thread, or in the event loop where it is small."""
        loaded: list[tuple[Any, Any]] = []
        for answer in answers:
            if isinstance(answer, Answer):
                loaded.append((answer, load_outcome(answer.outcome, self.serializer)))
            elif isinstance(answer, Death):
                loaded.append((answer, load_exception(answer.error, self.serializer)))
            else:
                loaded.append((answer, None))
        return loaded

    def _deliver(self, call: PoolCall, answers: list[tuple[Any, Any]]) -> None:
        self._number_of.pop(call, None)
        # A large answer that came before may have been copied until after the death.
        for answer, found in sorted(answers, key=lambda pair: isinstance(pair[0], Death)):
            if isinstance(answer, Answer):
                call.answers += 1
                call.deliver(answer.number, answer.last, answer.seconds, found)
            elif isinstance(answer, Death):
                call.died(found, answer.begun)
            elif isinstance(call, Chunk):
                call.time_out()
        if not call.done:
            self._fail(call, ClusterError(f"a call of {self.options.name!r} was lost"))

    def _fail(self, call: PoolCall, error: BaseException) -> None:
        if isinstance(call, Chunk) and not isinstance(error, ClusterError):
            call.fail(error)
        elif isinstance(call, Chunk) and self._lost is None:
            # What of it was done is not known.
            call.deliver(call.answers, True, 0.0, Undecodable(error, call.left))
        else:
            call.fail(error)

    def _on_workers(self, threads: dict[str, int]) -> None:
        self.scheduler.workers_are(threads)
        if places := self.scheduler.places:  # or else calls wait for a worker to come
            self.options = dataclasses.replace(self.options, workers=places)

    def _on_event(self, event: Event) -> None:
        if "progress" in event:
            call = self.running.get(event["progress"])
            if call is not None:
                call.report([event["data"]])
        elif "log" in event:
            self._runtime.loggers.submit(lambda: self._log(event["log"]))
        elif "withdrawn" in event:
            self._requests.withdraw(event["worker"], event["request"])
        elif "request" in event and not self._ended:
            self._requests.serve(event["worker"], event["request"], event["data"], event["awaits"])

    def _log(self, data: bytes) -> None:
        """Handle a log record; in a thread."""
        target = self.options.logs
        try:
            record = logging.makeLogRecord(pickle.loads(data))
            logger = target if isinstance(target, logging.Logger) else None
            (logger or logging.getLogger(record.name)).handle(record)
        except Exception:
            _logger.exception("a log record of a process on a cluster could not be handled")

    def _reply(self, worker: str, number: int, reply: PickledValue | PickledFailure) -> None:
        if self._thread is not None:
            self._in_thread(lambda: self._connection.reply(worker, number, reply))

    def _on_lost(self, error: ClusterError) -> None:
        self._lost = error
        while self.running:  # a map has its other chunks called off when the first fails
            call = self.running.pop(next(iter(self.running)))
            self._number_of.pop(call, None)
            call.fail(error)

    # --- the beginning and the end --------------------------------------------------------------

    async def wait_ready(self) -> None:
        """Connect to the cluster.

        :raises ClusterError: if that cannot be done
        """
        cluster = self._cluster
        self._thread = LoopThread("creche-cluster")
        await self._thread.run(
            lambda: self._connection.open(
                cluster.address,
                cluster.scheduler_file,
                cluster.security,
                cluster.workers,
                cluster.connect_timeout,
            )
        )

    async def wait_for_calls(self) -> None:
        self._close_to_calls()
        while self._expects_calls:
            await self._wait_for_change()

    async def close(self) -> None:
        await self.wait_gone()

    def stop(self) -> None:
        self._close_to_calls()
        for number in list(self.running):
            self._stop_running(number)
        self._number_of.clear()
        self._fail_calls()

    async def wait_gone(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with anyio.CancelScope(shield=True):
            self._ended = True
            await self._requests.close()
            for stopping in list(self._stopping):
                await stopping.wait_gone()
            try:
                await thread.run(self._connection.close)
            finally:
                await thread.close()

    # --- inner workings -------------------------------------------------------------------------

    def _pickle_setup(self, options: PoolOptions) -> bytes | None:
        if options.initializer is None and options.finalizer is None:
            return None
        setup = options.initializer, options.initargs, options.finalizer
        try:
            return make_frame(self._setup_serializer.dumps(setup))
        except BaseException as error:
            raise SerializationError(
                f"cannot open {options.name!r}: initializer, initargs and finalizer cannot be"
                f" pickled ({reason_of(error)})"
            ) from error

    def _stop_running(self, number: int) -> _Stopping:
        del self.running[number]
        stopping = _Stopping(self.loop)
        self._stopping.add(stopping)
        stopping.tell_gone(lambda: self._stopping.discard(stopping))
        self._in_thread(lambda: self._connection.stop(number, stopping.gone))
        return stopping

    def _post(self, callback: Callable[[], object]) -> None:
        post(self.loop, callback)

    def _in_thread(self, callback: Callable[[], object]) -> None:
        if self._thread is None:
            raise ProcessClosedError(f"pool {self.options.name!r} is closed")
        self._thread.call(callback)


class _Stopping:
    """A call that is being stopped."""

    def __init__(self, loop: EventLoop) -> None:
        self.gone = Latch()
        self._loop = loop

    async def wait_gone(self) -> None:
        await self.gone.wait()

    def tell_gone(self, callback: Callable[[], object]) -> None:
        self.gone.tell(callback, self._loop)


def _int_or_none(number: float) -> int | None:
    return None if number == math.inf else int(number)


def _log_level(target: LogTarget) -> int | None:
    """From which level on log records are wanted."""
    if isinstance(target, logging.Logger):
        return target.getEffectiveLevel()
    return logging.root.level if target else None
