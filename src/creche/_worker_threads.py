"""A handful of daemon threads of creche's own.

Blocking work cannot go to anyio's worker threads: their limiter has 40 tokens and users fill them,
and a thread of theirs that hangs holds up the end of the interpreter.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from ._own_log import log_exception


class Job:
    """What was given to :meth:`WorkerThreads.submit`."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.run = run
        self.running = False
        self.abandoned = False


class WorkerThreads:
    """Runs jobs in order of submission in at most ``limit`` daemon threads, made on demand."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._condition = threading.Condition(threading.Lock())
        self._jobs: deque[Job] = deque()
        self._threads = 0
        self._idle = 0
        self._current = threading.local()

    def submit(self, run: Callable[[], object]) -> Job:
        """Queue ``run``. It deals with its own errors; what escapes it is logged.

        :raises RuntimeError: if there is no thread, and the system has none left
        """
        job = Job(run)
        with self._condition:
            self._jobs.append(job)
            self._find_thread()
        return job

    def abandon(self, job: Job) -> None:
        """Nobody waits for ``job`` any more: if it never ends, no other has to wait for it."""
        with self._condition:
            if job in self._jobs:
                self._jobs.remove(job)
            elif job.running and not job.abandoned:
                job.abandoned = True
                self._limit += 1
                if self._jobs:
                    self._find_thread()

    def give_way(self) -> None:
        """Called by a job that waits for another process: no other job has to wait for that.

        :raises RuntimeError: if no job of these threads calls it
        """
        job: Job | None = getattr(self._current, "job", None)
        if job is None:
            raise RuntimeError("no thread is left to wait for another process")
        self.abandon(job)

    def _find_thread(self) -> None:
        """Have a thread take the jobs that are waiting; called with the lock held."""
        if self._idle >= len(self._jobs) or self._threads >= self._limit:
            self._condition.notify()
            return
        self._threads += 1
        name = f"{self._name}-{self._threads}"
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError:  # no more threads: the job must wait for one of the others
            self._threads -= 1
            if not self._threads:
                self._jobs.pop()
                raise

    def _work(self) -> None:
        while True:
            with self._condition:
                self._idle += 1
                while not self._jobs:
                    self._condition.wait()
                self._idle -= 1
                job = self._jobs.popleft()
                job.running = True
            self._current.job = job
            try:
                job.run()
            except BaseException:
                log_exception("a job of creche's own failed; please report this")
            with self._condition:
                job.running = False
                if job.abandoned:  # it did end: the thread in its place is one too many
                    self._limit -= 1
                    if self._threads > self._limit:
                        self._threads -= 1
                        return
            del job, self._current.job  # an idle thread keeps nothing alive
