"""When the items of a map are to be stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")


class Deadlines(Generic[K]):
    """Tells when something has taken as many seconds as it may, all of it as many.

    One timer serves all: what came first is due first.

    :param call_later: calls a method back after some seconds
    """

    def __init__(
        self,
        seconds: float,
        call_later: Callable[[float, Callable[[], object]], object],
        on_due: Callable[[K], object],
    ) -> None:
        self._seconds = seconds
        self._call_later = call_later
        self._on_due = on_due
        self._deadlines: dict[K, float] = {}  # in order
        self._waiting = False

    def add(self, what: K) -> None:
        """Begin to count the time of something, anew where it was counted before."""
        self._deadlines.pop(what, None)  # or it would keep its place
        self._deadlines[what] = time.monotonic() + self._seconds
        self._wait()

    def discard(self, what: K) -> None:
        """Something has ended in time, or is not of interest any more."""
        self._deadlines.pop(what, None)

    def _wait(self) -> None:
        if self._deadlines and not self._waiting:
            self._waiting = True
            first = next(iter(self._deadlines.values()))
            self._call_later(max(0.0, first - time.monotonic()), self._check)

    def _check(self) -> None:
        self._waiting = False
        now = time.monotonic()
        for what, deadline in list(self._deadlines.items()):
            if deadline > now:
                break
            if self._deadlines.pop(what, None) is not None:  # or the end of another ended it
                self._on_due(what)
        self._wait()
