"""How long a child that has failed waits for its restart."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .._durations import check_duration

__all__ = ["Backoff"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long a child that fails again and again waits before it is started again.

    The first ``immediate`` restarts in a row come at once. The *n*-th one after those waits for
    ``d = min(maximum, initial * factor ** (n - 1))`` seconds, of which the part ``jitter`` is
    random: the wait is between ``(1 - jitter) * d`` and ``d``, all values alike. With a jitter of
    1 that is what is known as exponential back-off with full jitter: children that have failed
    together do not come back together. A child that has been ready for ``reset_after`` seconds
    counts from the beginning.

    :param initial: seconds
    :param maximum: seconds
    :param factor: at least 1
    :param jitter: from 0 (none) to 1
    :param immediate: how many restarts in a row do not wait
    :param reset_after: seconds
    :raises ValueError: if a value is out of its range
    :raises TypeError: if a value is not a number
    """

    initial: float = 0.1
    maximum: float = 30.0
    factor: float = 2.0
    jitter: float = 1.0
    immediate: int = 1
    reset_after: float = 10.0

    def __post_init__(self) -> None:
        for name in ("initial", "maximum", "reset_after"):
            check_duration(name, getattr(self, name))
        for name in ("factor", "jitter", "immediate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number, not {type(value).__name__}")
        if not self.factor >= 1:
            raise ValueError(f"factor must be at least 1, not {self.factor!r}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must be between 0 and 1, not {self.jitter!r}")
        if not self.immediate >= 0:
            raise ValueError(f"immediate must be zero or more restarts, not {self.immediate!r}")

    def delay(self, attempt: int) -> float:
        """Return how many seconds to wait before a restart.

        :param attempt: 1 for the first restart in a row
        """
        number = attempt - self.immediate
        if number < 1:
            return 0.0
        try:
            longest = min(self.maximum, self.initial * self.factor ** (number - 1))
        except OverflowError:
            longest = self.maximum
        return longest * (1 - self.jitter * random.random())


class Attempts:
    """Counts the restarts in a row of one child."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self.count = 0

    def next_delay(self, uptime: float) -> float:
        """The child has failed; return for how long it waits.

        :param uptime: for how many seconds it was ready
        """
        if uptime >= self._backoff.reset_after:
            self.count = 0
        self.count += 1
        return self._backoff.delay(self.count)


def check_backoff(backoff: Backoff | None) -> Backoff:
    """Return ``backoff``, or the default one for ``None``."""
    if backoff is None:
        return Backoff()
    if not isinstance(backoff, Backoff):
        raise TypeError(f"backoff must be a Backoff, not {type(backoff).__name__}")
    return backoff
