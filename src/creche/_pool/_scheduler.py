"""Which call runs where and when, and how many workers there are."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from .._errors import ProcessError, ProcessStartError
from .._stop_policy import StopPolicy
from .._wire._outcomes import Failure
from ._calls import CallState, PoolCall
from ._options import PoolOptions
from ._statistics import PoolStatistics
from ._worker import Worker, WorkerState
from ._worker_statistics import statistics_of

_AHEAD_CALLS = 64

# A worker that has got on for so long is left the calls that it was sent ahead.
_SOON_SECONDS = 0.001

# Deaths in a row, of workers that have not come to serve.
_MAX_START_FAILURES = 3

# A worker with nothing else to do that has not received a call by then does not run: somebody has
# stopped it by a signal.
_DEAF_SECONDS = 0.25

# Of how many functions it is remembered how long they take.
_MAX_KNOWN = 1000

_UNKNOWN = 1.0


class WorkerFactory(Protocol):
    """Makes a worker and begins to start it.

    :raises OSError: if there are no descriptors left
    :raises ProcessStartError: if it cannot be started
    """

    def __call__(self, scheduler: Scheduler) -> Worker: ...


class Scheduler:
    """Hands calls to workers in order of arrival, and keeps as many workers as that takes.

    Everything in here runs in the event loop of the pool and returns at once.

    :param call_later: calls back in the event loop after some seconds
    """

    def __init__(
        self,
        options: PoolOptions,
        make_worker: WorkerFactory,
        call_later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._options = options
        self._make_worker = make_worker
        self._call_later = call_later
        self._queue: deque[PoolCall] = deque()
        self._called_off = 0  # calls in the queue that nobody wants any more
        self._idle: list[Worker] = []  # the one that worked last at the end
        self._seconds: dict[object, float] = {}  # that a function takes
        self._start_failures = 0
        self._failed_at = -math.inf  # when a worker last has
        self._restarts = 0
        self._done = 0
        self._failed = 0
        self._cancelled = 0
        self._checking_idle = False
        self._looking_again = False  # for calls to take back
        self._open = True
        self._most_workers = options.workers + options.spares
        self._alive: set[Worker] = set()  # those that serve calls, or will
        self.workers: set[Worker] = set()
        self.start_error: ProcessStartError | None = None
        self.on_change: Callable[[], None] | None = None

    # --- calls ----------------------------------------------------------------------------------

    @property
    def has_calls(self) -> bool:
        return bool(len(self._queue) - self._called_off or any(w.calls for w in self.workers))

    def submit(self, call: PoolCall) -> None:
        """Have a call run, as soon as those before it have begun."""
        if call.what is not None:
            call.seconds = self._seconds.get(call.what, _UNKNOWN)
        if self._idle and not self._queue and self._may_begin():
            self._begin(call)
            if len(self._idle) < self._options.spares:
                self._grow()
            return
        self._queue.append(call)
        if len(self._queue) == 1:  # or else those before it would wait in vain, too
            self._feed()
        if len(self._alive) < self._most_workers:
            self._grow()

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
                self._take_back(worker)
                if call.state is CallState.SENT and worker.cancel(call):
                    stopped = worker
        queued = call.state is CallState.QUEUED
        if not call.done:
            call.state = CallState.DONE
            self._cancelled += 1
        if queued:
            self._skip_one()
        self._feed()
        if stopped is not None:
            self._grow()
        self._tell()
        return stopped

    def _worker_of(self, call: PoolCall) -> Worker | None:
        return next((worker for worker in self.workers if call in worker.calls), None)

    def fail_all(self, error: BaseException) -> None:
        """Fail every call that waits."""
        waiting = [call for call in self._queue if call.state is CallState.QUEUED]
        self._queue.clear()
        self._called_off = 0
        for call in waiting:
            call.state = CallState.FAILING  # as the failure of one may call off others
        for call in waiting:
            call.fail(error)

    # --- workers --------------------------------------------------------------------------------

    def keep_ready(self) -> None:
        """Have as many workers as are to be kept ready."""
        self._grow()

    @property
    def ready_workers(self) -> int:
        return sum(worker.state is WorkerState.READY for worker in self._alive)

    def retire_all(self) -> None:
        """The pool is closed, and nothing runs any more: let every worker end."""
        self._open = False
        self._idle.clear()
        for worker in list(self.workers):
            self._retire(worker)

    def stop_all(self, policy: StopPolicy | None = None) -> None:
        """The pool is closed at once."""
        self._open = False
        self._idle.clear()
        for worker in list(self.workers):
            worker.stop(policy)

    def worker_ready(self, worker: Worker) -> None:
        self._idle.append(worker)
        self._feed()
        self._check_idle_later()
        self._tell()

    def worker_finished(self, worker: Worker, call: PoolCall, seconds: float) -> None:
        if call.what is not None:
            # Quick to learn that a function takes longer than was thought, slow to forget it.
            if seconds < call.seconds < _UNKNOWN:
                seconds = 0.8 * call.seconds + 0.2 * seconds
            self._learn(call.what, seconds)
        self._start_failures = 0
        self.start_error = None
        if worker.state is WorkerState.READY and not worker.calls:
            if worker.assigned >= self._options.max_tasks_per_worker:
                self._retire(worker)
                self._grow()
            else:
                self._idle.append(worker)
                self._check_idle_later()
        if self._queue or (self._idle and len(self._alive) > 1):
            self._feed()
        self._tell()

    def worker_ending(self, worker: Worker) -> None:
        self._alive.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)

    def worker_gone(self, worker: Worker, unbegun: list[PoolCall], *, running: bool) -> None:
        self.worker_ending(worker)
        self.workers.discard(worker)
        self._queue.extendleft(reversed(unbegun))
        if self._open:
            if worker.was_ready and not worker.retired:
                self._restarts += 1
            served = worker.tasks or running or worker.retired or worker.handle.stop_requested
            if not served and worker.made > self._failed_at:  # those that end together count once
                self._start_failed(worker.handle.outcome)
            self._feed()
            self._grow()
        self._tell()

    def statistics(self) -> PoolStatistics:
        """Return how things are just now."""
        return statistics_of(
            self.workers,
            queued=len(self._queue) - self._called_off,
            done=self._done,
            failed=self._failed,
            cancelled=self._cancelled,
            restarts=self._restarts,
        )

    def count(self, *, done: int = 0, failed: int = 0) -> None:
        """Count calls that have come to their ends by themselves."""
        self._done += done
        self._failed += failed

    # --- inner workings -------------------------------------------------------------------------

    def _tell(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def _may_begin(self) -> bool:
        """Whether one more worker may be busy."""
        if not self._options.spares:
            return True
        return sum(bool(worker.calls) for worker in self._alive) < self._options.workers

    def _next(self) -> PoolCall | None:
        """Take the first call in the queue that somebody still wants."""
        while self._queue:
            call = self._queue.popleft()
            if call.state is CallState.QUEUED:
                return call
            self._called_off -= 1
        return None

    def _feed(self) -> None:
        """Hand out what waits."""
        while self._idle and self._may_begin():
            call = self._next() or self._taken_back()
            if call is None:
                return
            self._begin(call)
        while self._queue and not self._idle:
            call = self._next()
            if call is None:
                return
            worker = self._worker_for_more(call)
            if worker is None or not worker.send(call):
                self._queue.appendleft(call)
                return

    def _begin(self, call: PoolCall) -> None:
        """Give a call to a worker that has nothing to do."""
        worker = self._idle.pop()
        if not worker.send(call):  # the system has no memory left for it
            self._queue.appendleft(call)
            worker.stop()

    def _learn(self, what: object, seconds: float) -> None:
        self._seconds[what] = seconds
        if len(self._seconds) > _MAX_KNOWN:
            self._seconds.clear()

    def _taken_back(self) -> PoolCall | None:
        """A worker has nothing to do: take back what waits behind what another one runs.

        Unless that one has just begun it. Then it will soon come to the rest, as far as is known.
        """
        loaded, most = None, 1
        for worker in self._alive:
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
                self._idle.append(worker)

    def _worker_for_more(self, call: PoolCall) -> Worker | None:
        """Find a worker that will come to the call in no time."""
        limit = call.ahead_seconds
        if call.seconds > limit:
            return None
        best, least = None, limit
        # One that has not got on for so long runs something of which nobody knows how long it will.
        recent = time.monotonic() - limit
        for worker in self._alive:
            if (
                worker.load < least
                and worker.begun > recent
                and len(worker.calls) < _AHEAD_CALLS
                and worker.accepts_ahead
                and worker.assigned < self._options.max_tasks_per_worker
            ):
                best, least = worker, worker.load
        return best

    def _grow(self) -> None:
        """Start the workers that there is something to do for, or that are to be kept ready."""
        options = self._options
        room = self._most_workers - len(self._alive)
        if room <= 0 or not self._open:
            return
        waiting = len(self._queue) - self._called_off
        waiting += sum(max(0, len(worker.calls) - 1) for worker in self._alive)
        starting = sum(worker.state is WorkerState.STARTING for worker in self._alive)
        spare = len(self._idle) + starting
        wanted = waiting - spare
        if self.start_error is None:  # or else this would go on for ever
            kept = max(options.min_workers - len(self._alive), options.spares - spare)
            wanted = max(wanted, kept)
        for _ in range(int(min(wanted, room))):
            try:
                worker = self._make_worker(self)
            except (OSError, ProcessStartError) as error:
                self._start_failed(Failure(error), at_once=True)
                return
            self.workers.add(worker)
            self._alive.add(worker)

    def _start_failed(self, outcome: object, *, at_once: bool = False) -> None:
        """A worker has not come to serve.

        :param at_once: whether there is no point in trying again
        """
        self._start_failures += 1
        self._failed_at = time.monotonic()
        error = outcome.exception if isinstance(outcome, Failure) else None
        told = error is not None and not isinstance(error, ProcessError)  # by the initializer
        if at_once or told or self._start_failures >= _MAX_START_FAILURES:
            self._start_failures = 0
            self.start_error = _cannot_start(self._options, error)
            if not self.ready_workers:
                self.fail_all(self.start_error)
        self._tell()

    def _retire(self, worker: Worker) -> None:
        worker.retire(self._options.stop.exit_timeout)

    def _skip_one(self) -> None:
        """One more of the calls in the queue is not wanted: clear them out when they are many."""
        self._called_off += 1
        if self._called_off > 100 and self._called_off > len(self._queue) / 2:
            self._queue = deque(call for call in self._queue if call.state is CallState.QUEUED)
            self._called_off = 0

    def _check_idle_later(self) -> None:
        if not self._checking_idle and len(self._alive) > self._options.min_workers:
            self._checking_idle = True
            self._call_later(self._options.max_idle, self._check_idle)

    def _check_idle(self) -> None:
        self._checking_idle = False
        now = time.monotonic()
        spare = len(self._idle) - self._options.spares
        spare = min(spare, len(self._alive) - self._options.min_workers)
        for worker in [w for w in self._idle if now - w.begun >= self._options.max_idle]:
            if spare <= 0:
                return
            spare -= 1
            self._retire(worker)
        if self._idle:
            self._checking_idle = True
            wait = self._options.max_idle - (now - self._idle[0].begun)
            self._call_later(max(0.0, wait), self._check_idle)


def _cannot_start(options: PoolOptions, error: BaseException | None) -> ProcessStartError:
    reason = "" if error is None else f": {type(error).__name__}: {error}"
    failure = ProcessStartError(f"{options.name!r} cannot start workers{reason}")
    failure.__cause__ = error
    return failure
