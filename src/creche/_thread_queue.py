"""Work that is done in a thread, in order, for the watcher."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from ._own_log import log_exception
from ._worker_threads import WorkerThreads

T = TypeVar("T")


class ThreadQueue(Generic[T]):
    """Takes items in the watcher, and handles them in a thread.

    There is one job at a time, for all items that are there: queues that share a thread take turns.

    :param threads: where; one thread, so that everything is done in order
    :param call_soon: calls in the watcher
    :param handle: handles an item, in the thread; deals with its own errors
    :param on_handled: called in the watcher with items that have been handled
    :param on_idle: called there when nothing is left
    """

    def __init__(
        self,
        threads: WorkerThreads,
        call_soon: Callable[[Callable[[], None]], None],
        handle: Callable[[T], object],
        on_handled: Callable[[deque[T]], object],
        on_idle: Callable[[], object],
    ) -> None:
        self.busy = False
        """Whether there is something that is not handled yet."""
        self._threads = threads
        self._call_soon = call_soon
        self._handle = handle
        self._on_handled = on_handled
        self._on_idle = on_idle
        self._waiting: deque[T] = deque()

    def add(self, item: T) -> None:
        """Have an item handled after those before it."""
        self._waiting.append(item)
        if not self.busy:
            self.busy = True
            self._work_soon()

    def _work_soon(self) -> None:
        items, self._waiting = self._waiting, deque()

        def work() -> None:
            try:
                for item in items:
                    self._handle_one(item)
            finally:  # or the queue would be busy for ever
                self._call_soon(lambda: self._worked(items))

        try:
            self._threads.submit(work)
        except RuntimeError:  # no thread, and none to be had
            work()

    def _handle_one(self, item: T) -> None:
        try:
            self._handle(item)
        except BaseException:  # which must not cost the items after it
            log_exception("creche could not deal with what a process has said; please report this")

    def _worked(self, items: deque[T]) -> None:
        self._on_handled(items)
        if self._waiting:
            self._work_soon()
        else:
            self.busy = False
            self._on_idle()
