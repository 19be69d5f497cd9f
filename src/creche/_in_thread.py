"""Running what takes too long for an event loop in a thread, on behalf of a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ._loops import Latch
from ._wire._outcomes import Outcome, outcome_of
from ._worker_threads import Job, WorkerThreads

T = TypeVar("T")


class ThreadJob:
    """Work in one of the threads, or in the caller's if there are none and none to be had.

    :param threads: returns the threads, or fails as :func:`._runtime.runtime` does
    """

    def __init__(self, threads: Callable[[], WorkerThreads], work: Callable[[], Any]) -> None:
        self._work: Callable[[], Any] | None = work
        self._outcome: Outcome
        self._done = Latch()
        self._job: Job | None = None
        try:
            self._threads = threads()
            self._job = self._threads.submit(self._run)
        except (OSError, RuntimeError):
            self._run()

    async def outcome(self) -> Outcome:
        """Wait for what comes of the work. Cancellation leaves it alone: see :meth:`abandon`."""
        if not self._done.is_set():
            await self._done.wait()
        return self._outcome

    async def result(self) -> Any:
        """Do the same, and take the result.

        :raises Exception: what the work has raised
        """
        return (await self.outcome()).take()

    def result_in_thread(self) -> Any:
        """Do the same in a thread without an event loop."""
        self._done.wait_in_thread(None)
        return self._outcome.take()

    def abandon(self) -> None:
        """Nobody wants the result."""
        if self._job is not None and not self._done.is_set():
            self._threads.abandon(self._job)

    def _run(self) -> None:
        assert self._work is not None
        self._outcome = outcome_of(self._work)
        self._work = None
        self._done.set()


async def in_thread(threads: Callable[[], WorkerThreads], work: Callable[[], T]) -> T:
    """Run something in a thread. Cancellation gives it up: it is not waited for.

    :raises Exception: what ``work`` raises
    """
    result: T = (await outcome_in_thread(threads, work)).take()
    return result


async def outcome_in_thread(
    threads: Callable[[], WorkerThreads], work: Callable[[], object]
) -> Outcome:
    """Do the same; what ``work`` raises is returned."""
    job = ThreadJob(threads, work)
    try:
        return await job.outcome()
    except BaseException:
        job.abandon()
        raise
