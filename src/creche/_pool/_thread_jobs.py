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
        self._jobs: dict[object, dict[Job, Callable[[], object] | None]] = {}

    def run(
        self,
        owner: K,
        work: Callable[[], T],
        then: Callable[[K, T], object],
        *,
        call_off: Callable[[], object] | None = None,
    ) -> None:
        """Run ``work`` in a thread, and ``then`` with its result in the loop. It may not raise.

        :param call_off: called where the job is abandoned, to end what it waits for
        """

        def run() -> None:
            result = work()
            post(self._loop, lambda: finish(result))

        def finish(result: T) -> None:
            jobs = self._jobs.get(owner)
            if jobs is not None and job in jobs:
                del jobs[job]
                if not jobs:
                    del self._jobs[owner]
                then(owner, result)

        try:
            job = self._threads.submit(run)
        except RuntimeError:  # no thread, and none to be had: the loop has to wait for it
            then(owner, work())
        else:
            self._jobs.setdefault(owner, {})[job] = call_off

    def give_way(self) -> None:
        """Called by a job that waits for another process: no other job has to wait for that.

        :raises RuntimeError: if it runs in the event loop, for lack of threads
        """
        self._threads.give_way()

    def abandon(self, owner: object) -> None:
        """Nobody wants to know the results any more."""
        for job, call_off in self._jobs.pop(owner, {}).items():
            self._threads.abandon(job)
            if call_off is not None:
                call_off()

    def abandon_all(self) -> None:
        for owner in list(self._jobs):
            self.abandon(owner)
