"""Work for calls that is too heavy for the event loop: pickling, copying, unpickling."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from .._loops import EventLoop, post
from .._worker_threads import Job, WorkerThreads

K = TypeVar("K")
T = TypeVar("T")


class ThreadJobs:
    """Runs jobs in creche's threads, and takes their results back to the event loop.

    Each job belongs to an owner: whoever loses interest abandons what is done for it.
    """

    def __init__(self, loop: EventLoop, threads: WorkerThreads) -> None:
        self._loop = loop
        self._threads = threads
        self._jobs: dict[object, set[Job]] = {}

    def run(self, owner: K, work: Callable[[], T], then: Callable[[K, T], object]) -> None:
        """Run ``work`` in a thread, and ``then`` with its result in the loop. It may not raise."""

        def run() -> None:
            result = work()
            post(self._loop, lambda: finish(result))

        def finish(result: T) -> None:
            jobs = self._jobs.get(owner)
            if jobs is not None and job in jobs:
                jobs.remove(job)
                if not jobs:
                    del self._jobs[owner]
                then(owner, result)

        try:
            job = self._threads.submit(run)
        except RuntimeError:  # no thread, and none to be had: the loop has to wait for it
            then(owner, work())
        else:
            self._jobs.setdefault(owner, set()).add(job)

    def abandon(self, owner: object) -> None:
        """Nobody wants to know the results any more."""
        for job in self._jobs.pop(owner, ()):
            self._threads.abandon(job)

    def abandon_all(self) -> None:
        for owner in list(self._jobs):
            self.abandon(owner)
