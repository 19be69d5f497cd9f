"""One thread of the parent that waits for all of its processes at once.

It hears of deaths, moves what travels over the wires, and keeps the timers of stops and timeouts.
Everything that happens to a process happens in this one thread, in order, so that little of it
needs a lock, and it goes on while an event loop is blocked or when it is closed.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ._own_log import log_exception
from ._platform import LONGEST_WAIT, Poller, SelectorPoller


class Timer:
    """A callback that is due at a time; :meth:`cancel` makes it none."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Watcher:
    """Owns the poller and the thread that turns it.

    :param poller: instead of the one that waits for processes and wires
    """

    def __init__(
        self, poller: Poller | SelectorPoller | None = None, name: str = "creche-watcher"
    ) -> None:
        self.poller: Any = Poller() if poller is None else poller
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._counter = itertools.count()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` in the watcher, after what was asked for before. From any thread."""
        self._calls.append(callback)
        if threading.get_ident() != self._thread.ident:
            self.poller.wake()

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Run ``callback`` in the watcher after ``delay`` seconds. In the watcher only."""
        timer = Timer(callback)
        if math.isfinite(delay):
            heapq.heappush(self._timers, (time.monotonic() + delay, next(self._counter), timer))
        return timer

    def forget(self) -> None:
        """In a fork of this process, which has no such thread: close what it used."""
        self.poller.close()

    def _run(self) -> None:
        while True:
            try:
                self.poller.poll(self._time_to_next_timer())
                self._run_calls()
                self._run_timers()
            except BaseException:
                # Every other process of the application depends on this thread.
                log_exception("creche's watcher caught an error; please report this")

    def _run_calls(self) -> None:
        for _ in range(len(self._calls)):
            self._calls.popleft()()

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and (self._timers[0][0] <= now or self._timers[0][2].callback is None):
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                callback()

    def _time_to_next_timer(self) -> float | None:
        if self._calls:
            return 0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return min(max(0.0, self._timers[0][0] - time.monotonic()), LONGEST_WAIT)
