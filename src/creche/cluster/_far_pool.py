"""The processes of one pool on one Dask worker."""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
from collections.abc import Callable
from typing import Any

from .._pool._engine import PoolEngine
from .._pool._options import PoolOptions, check_options
from .._wire._payloads import Payload
from ._answers import Answers, PickledFailure, PickledValue
from ._dask import DaskWorker
from ._far_calls import FarCall, FarChunk
from ._far_requests import relays
from ._far_setup import begin, end
from ._frames import RelayingSerializer
from ._requests import CallRequest, PoolSetup, topic_of
from ._statistics import FarStatistics
from ._versions import this_side

# How often a call may tell the caller of its progress, in seconds.
_REPORT_SECONDS = 0.05


class FarPool:
    """Lives in the event loop of the Dask worker; its processes are started for its calls."""

    def __init__(self, worker: DaskWorker, setup: PoolSetup) -> None:
        self._worker = worker
        self._topic = topic_of(setup.pool)
        self._loop = asyncio.get_running_loop()
        self._where = f"the Dask worker {worker.address} on {this_side()}"
        self._place = f"{worker.id}/{setup.pool}"
        self._requests: dict[int, asyncio.Future[PickledValue | PickledFailure]] = {}
        self._request_numbers = itertools.count(1)
        relays[self._place] = self._request
        self._engine = PoolEngine(_options(worker, setup, self._place, self._logger(setup)))
        self._engine.backend = setup.backend
        self._running: dict[int, tuple[FarCall, asyncio.Event]] = {}
        self._stopping: dict[int, asyncio.Task[None]] = {}
        self._reports: dict[int, bytes | None] = {}

    async def run(self, request: CallRequest, parts: tuple[bytes, ...]) -> Answers:
        """Run a call, to its end or until it is stopped."""
        number = request.number
        ended = asyncio.Event()
        timer: asyncio.TimerHandle | None = None
        make = FarChunk if request.chunk else FarCall
        payload = Payload([[request.frame, *parts]], heavy=True)

        def on_sent() -> None:
            if request.timeout is not None:
                nonlocal timer
                if timer is not None:  # the process that it was sent to has died before it began
                    timer.cancel()
                timer = self._loop.call_later(request.timeout, self._time_out, call)

        def on_report(data: bytes) -> None:
            if request.reports:
                self._report(number, data)

        call = make(payload, ended.set, on_sent, on_report, self._where)
        self._running[number] = call, ended
        try:
            self._engine.submit(call)
            await ended.wait()
            if number in self._stopping:
                await self._stopping[number]
            return call.gathered
        finally:
            if timer is not None:
                timer.cancel()
            self._running.pop(number, None)
            self._engine.forget(call)
            self._flush_report(number)

    def statistics(self) -> FarStatistics:
        """Return how its processes are."""
        return FarStatistics.take(self._worker.address, self._engine.scheduler.statistics())

    # --- stopping -------------------------------------------------------------------------------

    def stop_soon(self, number: int) -> None:
        """Begin to stop a call, if it runs here."""
        if number in self._running and number not in self._stopping:
            task = self._loop.create_task(self._stop(number))
            self._stopping[number] = task
            task.add_done_callback(lambda _: self._stopping.pop(number, None))

    async def stop_calls(self, numbers: list[int]) -> None:
        """Stop calls, and wait until they are gone."""
        for number in numbers:
            self.stop_soon(number)
        tasks = [self._stopping[number] for number in numbers if number in self._stopping]
        if tasks:
            await asyncio.wait(tasks)

    async def _stop(self, number: int) -> None:
        call, ended = self._running[number]
        stopping = self._engine.call_off(call)
        try:
            if stopping is not None:
                await stopping.wait_gone()
        finally:
            ended.set()
            # The caller asks all workers, and one of those may not answer.
            self.tell({"stopped": number, "statistics": pickle.dumps(self.statistics(), 5)})

    def _time_out(self, call: FarCall) -> None:
        if call.done:
            return
        stopping = self._engine.call_off(call)
        if stopping is None:
            call.time_out()
        else:
            stopping.tell_gone(call.time_out)

    async def close(self) -> None:
        """End all processes; those with calls are stopped."""
        engine = self._engine
        try:
            if not self._running:
                await engine.close()
        finally:
            engine.stop()
            await engine.wait_gone()
            del relays[self._place]

    # --- for the caller -------------------------------------------------------------------------

    def tell(self, message: dict[str, Any]) -> None:
        """Tell the caller something, from any thread."""
        self._worker.log_event(self._topic, message)

    async def _request(self, data: bytes, awaits: bool) -> PickledValue | PickledFailure:
        """Have the caller call a function."""
        number = next(self._request_numbers)
        reply: asyncio.Future[PickledValue | PickledFailure] = self._loop.create_future()
        self._requests[number] = reply
        message = {"request": number, "worker": self._worker.address}
        self.tell({**message, "data": data, "awaits": awaits})
        try:
            return await reply
        except asyncio.CancelledError:
            self.tell({**message, "withdrawn": True})
            raise
        finally:
            del self._requests[number]

    def replied(self, number: int, reply: PickledValue | PickledFailure) -> None:
        """The caller has done so."""
        request = self._requests.get(number)
        if request is not None and not request.done():
            request.set_result(reply)

    def _logger(self, setup: PoolSetup) -> logging.Logger | None:
        """Return a logger that the records of all processes go to, if they are wanted."""
        if setup.log_level is None:
            return None
        logger = logging.Logger(setup.name, setup.log_level)
        logger.addHandler(_ToCaller(self.tell))
        return logger

    def _report(self, number: int, data: bytes) -> None:
        """Tell of progress, a number of times a second at most, and in any case the newest."""
        if number in self._reports:
            self._reports[number] = data
            return
        self._reports[number] = None
        self.tell({"progress": number, "data": data})
        self._loop.call_later(_REPORT_SECONDS, self._flush_report, number)

    def _flush_report(self, number: int) -> None:
        data = self._reports.pop(number, None)
        if data is not None:
            self._report(number, data)


class _ToCaller(logging.Handler):
    """Sends records, of which the process has made all that can travel."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell({"log": pickle.dumps(record.__dict__, 5)})


def _options(
    worker: DaskWorker, setup: PoolSetup, place: str, logger: logging.Logger | None
) -> PoolOptions:
    return check_options(
        workers=worker.state.nthreads,
        min_workers=0,
        spares=None,
        initializer=begin,
        initargs=(setup.setup, setup.serializer, place),
        finalizer=end,
        max_tasks_per_worker=setup.max_tasks_per_worker,
        max_idle=setup.max_idle,
        memory_limit=setup.memory_limit,
        serializer=RelayingSerializer(setup.serializer),
        preload=setup.preload,
        stop=setup.stop,
        start_method=setup.start_method,
        logs=logger or False,
        name=setup.name,
        stdout=None,
        stderr=None,
    )
