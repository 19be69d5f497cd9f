"""How a supervisor supervises."""

from __future__ import annotations

from dataclasses import dataclass

from .._durations import check_duration
from ._backoff import Backoff
from ._intensity import check_intensity
from ._strategies import StopOrder, Strategy, check_stop_order, check_strategy


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What is said of a supervisor, and not of its children.

    :raises ValueError: if a value is out of its range
    :raises TypeError: if a value is of a wrong type
    """

    strategy: Strategy
    intensity: int
    period: float
    backoff: Backoff
    stop_order: StopOrder

    def __post_init__(self) -> None:
        check_strategy(self.strategy)
        check_intensity(self.intensity)
        check_duration("period", self.period)
        check_stop_order(self.stop_order)
