"""How many workers there are."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from .._errors import ProcessError, ProcessStartError, reason_of
from .._wire._outcomes import Failure
from ._options import PoolOptions
from ._worker import Worker, WorkerState

# Deaths in a row, of workers that have not come to serve.
_MAX_START_FAILURES = 3


class WorkerFactory(Protocol):
    """Makes a worker and begins to start it.

    :raises OSError: if there are no descriptors left
    :raises ProcessStartError: if it cannot be started
    """

    def __call__(self) -> Worker: ...


class Workforce:
    """Starts workers when they are needed, and lets those end that have nothing to do.

    Everything in here runs in the event loop of the pool and returns at once.

    :param call_later: calls back in the event loop after some seconds
    :param on_hopeless: called where there are no workers, and none can be started
    """

    def __init__(
        self,
        options: PoolOptions,
        make_worker: WorkerFactory,
        call_later: Callable[[float, Callable[[], object]], object],
        on_hopeless: Callable[[ProcessStartError], object],
    ) -> None:
        self._options = options
        self._make_worker = make_worker
        self._call_later = call_later
        self._on_hopeless = on_hopeless
        self._most = options.workers + options.spares
        self._open = True
        self._start_failures = 0
        self._failed_at = -math.inf  # when a worker last has
        self._checking_idle = False
        self.all: set[Worker] = set()
        self.alive: set[Worker] = set()  # those that serve calls, or will
        self.idle: list[Worker] = []  # the one that worked last at the end
        self.restarts = 0
        self.start_error: ProcessStartError | None = None

    @property
    def ready(self) -> int:
        """How many workers are ready to serve, or do."""
        return sum(worker.state is WorkerState.READY for worker in self.alive)

    @property
    def is_full(self) -> bool:
        """Whether there are as many workers as there may be."""
        return len(self.alive) >= self._most

    def may_begin(self) -> bool:
        """Whether one more worker may be busy."""
        if not self._options.spares:
            return True
        return sum(bool(worker.calls) for worker in self.alive) < self._options.workers

    def grow(self, waiting: int) -> None:
        """Start the workers that there is something to do for, or that are to be kept ready.

        :param waiting: how many calls no worker has begun
        """
        options = self._options
        room = self._most - len(self.alive)
        if room <= 0 or not self._open:
            return
        spare = len(self.idle) + self._starting
        wanted = waiting - spare
        if self.start_error is None:  # or else this would go on for ever
            kept = max(options.min_workers - len(self.alive), options.spares - spare)
            wanted = max(wanted, kept)
        for _ in range(int(min(wanted, room))):
            try:
                worker = self._make_worker()
            except (OSError, ProcessStartError) as error:
                self._start_failed(Failure(error), at_once=True)
                return
            self.all.add(worker)
            self.alive.add(worker)

    def retire_all(self) -> None:
        """The pool is closed, and nothing runs any more: let every worker end."""
        self._open = False
        self.idle.clear()
        for worker in list(self.all):
            self._retire(worker)

    def stop_all(self) -> None:
        """The pool is closed at once."""
        self._open = False
        self.idle.clear()
        for worker in list(self.all):
            worker.stop()

    def free(self, worker: Worker) -> None:
        """A worker has nothing to do: keep it, or let it end if it has served enough."""
        if worker.reserved:
            return
        if worker.assigned >= self._options.max_tasks_per_worker:
            self._retire(worker)
            return
        self.idle.append(worker)
        self._check_idle_later()

    @contextlib.contextmanager
    def reserved(self, worker: Worker) -> Iterator[None]:
        """Give a worker nothing to do while the block runs: it may have to be stopped."""
        worker.reserved += 1
        try:
            yield
        finally:
            worker.reserved -= 1
            if worker.state is WorkerState.READY and not worker.calls:
                self.free(worker)

    def served(self) -> None:
        """A worker has served a call: workers can be started."""
        self._start_failures = 0
        self.start_error = None

    def ending(self, worker: Worker) -> None:
        """A worker serves no more calls."""
        self.alive.discard(worker)
        if worker in self.idle:
            self.idle.remove(worker)

    def gone(self, worker: Worker, *, running: bool) -> None:
        """A worker has ended.

        :param running: whether it ran a call
        """
        self.ending(worker)
        self.all.discard(worker)
        if not self._open:
            return
        if worker.was_ready and not worker.retired:
            self.restarts += 1
        served = worker.tasks or running or worker.retired or worker.handle.stop_requested
        if served and not worker.failed_to_start:
            return
        if worker.made > self._failed_at:  # those that end together count once
            self._start_failed(worker.handle.outcome)

    @property
    def _starting(self) -> int:
        return sum(worker.state is WorkerState.STARTING for worker in self.alive)

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
            # Where others are being started, there is no more to be had, but that is something.
            if not self.ready and not (at_once and self._starting):
                self._on_hopeless(self.start_error)

    def _retire(self, worker: Worker) -> None:
        worker.retire(self._options.stop.exit_timeout)

    def _check_idle_later(self) -> None:
        if not self._checking_idle and len(self.alive) > self._options.min_workers:
            self._checking_idle = True
            self._call_later(self._options.max_idle, self._check_idle)

    def _check_idle(self) -> None:
        self._checking_idle = False
        now = time.monotonic()
        spare = len(self.idle) - self._options.spares
        spare = min(spare, len(self.alive) - self._options.min_workers)
        for worker in [w for w in self.idle if now - w.begun >= self._options.max_idle]:
            if spare <= 0:
                return
            spare -= 1
            self._retire(worker)
        if self.idle:
            self._checking_idle = True
            wait = self._options.max_idle - (now - self.idle[0].begun)
            self._call_later(max(0.0, wait), self._check_idle)


def _cannot_start(options: PoolOptions, error: BaseException | None) -> ProcessStartError:
    reason = "" if error is None else f": {reason_of(error)}"
    failure = ProcessStartError(f"{options.name!r} cannot start workers{reason}")
    failure.__cause__ = error
    return failure
