"""Checking durations where the caller stands."""

from __future__ import annotations

import math


def check_duration(name: str, value: float) -> float:
    """Return ``value`` as a float of seconds.

    :raises TypeError: if it is not a real number
    :raises ValueError: if it is negative or NaN
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if math.isnan(value) or value < 0:
        raise ValueError(f"{name} must be zero or more seconds, not {value!r}")
    return float(value)


def check_timeout(value: float | None) -> float | None:
    """Return a timeout in seconds, or ``None`` where there is no limit (``None`` or infinity)."""
    if value is None:
        return None
    seconds = check_duration("timeout", value)
    return None if math.isinf(seconds) else seconds
