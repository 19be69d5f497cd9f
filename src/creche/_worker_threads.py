"""A handful of daemon threads of creche's own.

Blocking work cannot go to anyio's worker threads: their limiter has 40 tokens and users fill them,
and a thread of theirs that hangs holds up the end of the interpreter.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

_logger = logging.getLogger("creche")


class WorkerThreads:
    """Runs jobs in order of submission in at most ``limit`` daemon threads, made on demand."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._condition = threading.Condition(threading.Lock())
        self._jobs: deque[Callable[[], object]] = deque()
        self._threads = 0
        self._idle = 0

    def submit(self, job: Callable[[], object]) -> None:
        """Queue ``job``. It deals with its own errors; what escapes it is logged."""
        with self._condition:
            self._jobs.append(job)
            if self._idle >= len(self._jobs) or self._threads >= self._limit:
                self._condition.notify()
                return
            self._threads += 1
            name = f"{self._name}-{self._threads}"
        try:
            threading.Thread(target=self._run, name=name, daemon=True).start()
        except RuntimeError:  # no more threads: the job must wait for one of the others
            with self._condition:
                self._threads -= 1
                if not self._threads:
                    self._jobs.remove(job)
                    raise

    def replace_one(self) -> None:
        """A job never ends: allow a thread in place of the one that it keeps."""
        with self._condition:
            self._limit += 1
            if not self._jobs:
                return
        self.submit(_do_nothing)  # makes a thread, which takes the oldest job

    def _run(self) -> None:
        while True:
            with self._condition:
                self._idle += 1
                while not self._jobs:
                    self._condition.wait()
                self._idle -= 1
                job = self._jobs.popleft()
            try:
                job()
            except BaseException:
                _logger.exception("a job of creche's own failed; please report this")
            del job  # an idle thread keeps nothing alive


def _do_nothing() -> None:
    pass
