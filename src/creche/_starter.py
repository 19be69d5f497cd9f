"""The thread of the parent that starts processes, one after the other.

Starting is serial anyway: ``multiprocessing``'s bookkeeping is not made for more threads.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from ._own_log import log_exception


class Starter:
    """Runs what it is given, in order, in a daemon thread.

    :raises RuntimeError: if the system has no threads left
    """

    def __init__(self) -> None:
        # Without a lock that a KeyboardInterrupt, which may be raised anywhere in the main thread,
        # could find that thread holding.
        self._jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="creche-starter", daemon=True).start()

    def submit(self, job: Callable[[], object]) -> None:
        """Run ``job`` after what was submitted before. From any thread."""
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except BaseException:
                log_exception("a start failed in a way of its own; please report this")
            del job  # an idle thread keeps nothing alive


class Claim:
    """What one thread only can take."""

    def __init__(self) -> None:
        self._left = [None]

    def take(self) -> bool:
        """Return whether it is the caller's."""
        try:
            self._left.pop()  # atomic
        except IndexError:
            return False
        return True
