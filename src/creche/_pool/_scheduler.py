"""Which call runs where, and when."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from .._errors import ProcessStartError
from ._calls import CallState, PoolCall
from ._options import PoolOptions
from ._statistics import PoolStatistics
from ._worker import Worker, WorkerState
from ._worker_statistics import statistics_of
from ._workforce import Workforce

_AHEAD_CALLS = 64

# A worker that has got on for so long is left the calls that it was sent ahead.
_SOON_SECONDS = 0.001

# A worker with nothing else to do that has not received a call by then does not run: somebody has
# stopped it by a signal.
_DEAF_SECONDS = 0.25

# Of how many functions it is remembered how long they take.
_MAX_KNOWN = 1000

_UNKNOWN = 1.0


class MakeWorker(Protocol):
    """Makes a worker that reports to a scheduler; see :class:`._workforce.WorkerFactory`."""

    def __call__(self, scheduler: Scheduler) -> Worker: ...


class Scheduler:
    """Hands calls to workers in order of arrival.

    Everything in here runs in the event loop of the pool and returns at once.

    :param call_later: calls back in the event loop after some seconds
    """

    def __init__(
        self,
        options: PoolOptions,
        make_worker: MakeWorker,
        call_later: Callable[[float, Callable[[], object]], object],
    ) -> None:
        self._options = options
        self._call_later = call_later
        self._queue: deque[PoolCall] = deque()
        self._called_off = 0  # calls in the queue that nobody wants any more
        self._seconds: dict[object, float] = {}  # that a function takes
        self._looking_again = False  # for calls to take back
        self._done = 0
        self._failed = 0
        self._cancelled = 0
        self.workforce = Workforce(
            options, lambda: make_worker(self), call_later, on_hopeless=self._fail_all
        )
        self.on_change: Callable[[], None] | None = None

    # --- calls ----------------------------------------------------------------------------------

    @property
    def has_calls(self) -> bool:
        return bool(self._queued or any(worker.calls for worker in self.workforce.all))

    def submit(self, call: PoolCall) -> None:
        """Have a call run, as soon as those before it have begun."""
        workforce = self.workforce
        if call.what is not None:
            call.seconds = self._seconds.get(call.what, _UNKNOWN)
        if workforce.idle and not self._queue and workforce.may_begin():
            self._begin(call)
            if len(workforce.idle) < self._options.spares:
                self.grow()
            return
        self._queue.append(call)
        if len(self._queue) == 1:  # or else those before it would wait in vain, too
            self._feed()
        if not workforce.is_full:
            self.grow()

    def cancel(self, call: PoolCall) -> Worker | None:
        """Call off a call.

        :return: the worker that is being stopped because it runs it
        """
        if call.state is CallState.DONE:
            return None
        stopped = None
        if call.state is CallState.SENT:
            worker = self._worker_of(call)
            if worker is not None:
                # What takes its time to cancel lets others finish, and more be handed out.
                with self.workforce.reserved(worker):
                    self._take_back(worker)
                    if call.state is CallState.SENT and worker.cancel(call):
                        stopped = worker
        queued = call.state is CallState.QUEUED
        if not call.done:
            call.state = CallState.DONE
            self._cancelled += 1
            if call.observed is not None:
                call.observed._finished("cancelled")
        if queued:
            self._skip_one()
        self._feed()
        self.grow()
        self._tell()
        return stopped

    def grow(self) -> None:
        """Have as many workers as there is something to do for, or as are to be kept ready."""
        waiting = sum(max(0, len(worker.calls) - 1) for worker in self.workforce.alive)
        self.workforce.grow(self._queued + waiting)

    def count(self, *, done: int = 0, failed: int = 0) -> None:
        """Count calls that have come to their ends by themselves."""
        self._done += done
        self._failed += failed

    def statistics(self) -> PoolStatistics:
        """Return how things are just now."""
        return statistics_of(
            self.workforce.all,
            queued=self._queued,
            done=self._done,
            failed=self._failed,
            cancelled=self._cancelled,
            restarts=self.workforce.restarts,
        )

    # --- what workers say -----------------------------------------------------------------------

    def worker_ready(self, worker: Worker) -> None:
        self.workforce.free(worker)
        self._feed()
        self._tell()

    def worker_finished(self, worker: Worker, call: PoolCall, seconds: float) -> None:
        workforce = self.workforce
        if call.what is not None:
            self._learn(call, seconds)
        workforce.served()
        if worker.state is WorkerState.READY and not worker.calls:
            workforce.free(worker)
            if worker.retired:
                self.grow()
        if self._queue or (workforce.idle and len(workforce.alive) > 1):
            self._feed()
        self._tell()

    def worker_ending(self, worker: Worker) -> None:
        self.workforce.ending(worker)

    def worker_gone(self, worker: Worker, unbegun: list[PoolCall], *, running: bool) -> None:
        self._queue.extendleft(reversed(unbegun))
        self.workforce.gone(worker, running=running)
        self._feed()
        self.grow()
        self._tell()

    # --- inner workings -------------------------------------------------------------------------

    @property
    def _queued(self) -> int:
        """How many calls wait in the queue that somebody wants."""
        return len(self._queue) - self._called_off

    def _tell(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def _fail_all(self, error: ProcessStartError) -> None:
        """Fail every call that waits."""
        waiting = [call for call in self._queue if call.state is CallState.QUEUED]
        self._queue.clear()
        self._called_off = 0
        for call in waiting:
            call.state = CallState.FAILING  # as the failure of one may call off others
        for call in waiting:
            call.fail(error)

    def _next(self) -> PoolCall | None:
        """Take the first call in the queue that somebody still wants."""
        while self._queue:
            call = self._queue.popleft()
            if call.state is CallState.QUEUED:
                return call
            self._called_off -= 1
        return None

    def _skip_one(self) -> None:
        """One more of the calls in the queue is not wanted: clear them out when they are many."""
        self._called_off += 1
        if self._called_off > 100 and self._called_off > len(self._queue) / 2:
            self._queue = deque(call for call in self._queue if call.state is CallState.QUEUED)
            self._called_off = 0

    def _feed(self) -> None:
        """Hand out what waits."""
        workforce = self.workforce
        while workforce.idle and workforce.may_begin():
            call = self._next() or self._taken_back()
            if call is None:
                return
            self._begin(call)
        while self._queue and not workforce.idle:
            call = self._next()
            if call is None:
                return
            worker = self._worker_for_more(call)
            if worker is None or not worker.send(call):
                self._queue.appendleft(call)
                return

    def _begin(self, call: PoolCall) -> None:
        """Give a call to a worker that has nothing to do."""
        worker = self.workforce.idle.pop()
        if not worker.send(call):  # it has just died, or the system has no memory left for it
            self._queue.appendleft(call)
            worker.stop()

    def _learn(self, call: PoolCall, seconds: float) -> None:
        # Quick to learn that a function takes longer than was thought, slow to forget it.
        if seconds < call.seconds < _UNKNOWN:
            seconds = 0.8 * call.seconds + 0.2 * seconds
        self._seconds[call.what] = seconds
        if len(self._seconds) > _MAX_KNOWN:
            self._seconds.clear()

    def _worker_of(self, call: PoolCall) -> Worker | None:
        return next((worker for worker in self.workforce.all if call in worker.calls), None)

    def _worker_for_more(self, call: PoolCall) -> Worker | None:
        """Find a worker that is busy, and will come to the call in no time."""
        limit = call.ahead_seconds
        if call.seconds > limit:
            return None
        best, least = None, limit
        # One that has not got on for so long runs something of which nobody knows how long it will.
        recent = time.monotonic() - limit
        for worker in self.workforce.alive:
            if (
                worker.load < least
                and worker.begun > recent
                and len(worker.calls) < _AHEAD_CALLS
                and worker.accepts_ahead
                and worker.assigned < self._options.max_tasks_per_worker
            ):
                best, least = worker, worker.load
        return best

    def _taken_back(self) -> PoolCall | None:
        """A worker has nothing to do: take back what waits behind what another one runs.

        Unless that one has just begun it. Then it will soon come to the rest, as far as is known.
        """
        loaded, most = None, 1
        for worker in self.workforce.alive:
            if len(worker.calls) > most:
                loaded, most = worker, len(worker.calls)
        if loaded is None:
            return None
        if time.monotonic() - loaded.begun > _SOON_SECONDS:
            self._take_back(loaded)
            return self._next()
        if not self._looking_again:
            self._looking_again = True
            self._call_later(2 * _SOON_SECONDS, self._look_again)
        return None

    def _look_again(self) -> None:
        self._looking_again = False
        self._feed()

    def _take_back(self, worker: Worker) -> None:
        """Queue again, in front of all others, what a worker has not begun."""
        self._queue.extendleft(reversed(worker.take_back()))
        if not worker.calls and worker.state is WorkerState.READY:
            # It had not even begun the first.
            if time.monotonic() - worker.begun > _DEAF_SECONDS:
                worker.stop()
            else:
                self.workforce.free(worker)
