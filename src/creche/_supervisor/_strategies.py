"""Who is started again when a child has ended: the decisions, as pure functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, TypeVar, get_args

__all__ = ["RestartType", "StopOrder", "Strategy"]

T = TypeVar("T")

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
"""Which children are started again when one has failed."""

RestartType = Literal["permanent", "transient", "temporary"]
"""When a child is started again."""


StopOrder = Literal["reverse", "together"]
"""In which order children are stopped, where several are: one after the other, the last one first,
or all at once."""


def is_restarted(restart: RestartType, *, failed: bool) -> bool:
    """Whether a child that has ended by itself is started again."""
    return restart == "permanent" or (restart == "transient" and failed)


def affected(strategy: Strategy, order: Sequence[T], failed: Collection[T]) -> list[T]:
    """Return whom a restart concerns, in the order in which they are started.

    :param order: all children in the order in which they were started
    :param failed: those that have failed; some may not be children any more
    """
    positions = [number for number, child in enumerate(order) if child in failed]
    if not positions:
        return []
    if strategy == "one_for_all":
        return list(order)
    if strategy == "rest_for_one":
        return list(order[positions[0] :])
    return [order[position] for position in positions]


def check_strategy(strategy: Strategy) -> Strategy:
    return _check("strategy", strategy, get_args(Strategy))


def check_restart_type(restart: RestartType) -> RestartType:
    return _check("restart", restart, get_args(RestartType))


def check_stop_order(order: StopOrder) -> StopOrder:
    return _check("stop_order", order, get_args(StopOrder))


def _check(what: str, value: T, known: Sequence[str]) -> T:
    if value not in known:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, known))}, not {value!r}")
    return value
