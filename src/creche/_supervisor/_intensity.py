"""How many restarts are too many."""

from __future__ import annotations

from collections import deque


class Intensity:
    """Counts restarts in a window of time. Knows no clock: times are given to it.

    :param limit: so many restarts within ``period`` are fine
    :param period: seconds
    """

    def __init__(self, limit: int, period: float) -> None:
        self.limit = limit
        self.period = period
        self._failures: deque[tuple[float, BaseException]] = deque()

    def note(self, now: float, failure: BaseException) -> bool:
        """Note a failure, for which there is to be a restart; return whether there may be one."""
        self._failures.append((now, failure))
        self._forget(now)
        return len(self._failures) <= self.limit

    def count(self, now: float) -> int:
        """How many restarts there were within the last ``period`` seconds."""
        self._forget(now)
        return len(self._failures)

    @property
    def failures(self) -> list[BaseException]:
        """What has failed within the period, the oldest first."""
        return [failure for _, failure in self._failures]

    def _forget(self, now: float) -> None:
        while self._failures and self._failures[0][0] < now - self.period:
            self._failures.popleft()


def check_intensity(intensity: int) -> int:
    if isinstance(intensity, bool) or not isinstance(intensity, int):
        raise TypeError(f"intensity must be a whole number, not {type(intensity).__name__}")
    if intensity < 0:
        raise ValueError(f"intensity must be zero or more restarts, not {intensity}")
    return intensity
