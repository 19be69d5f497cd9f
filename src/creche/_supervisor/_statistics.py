"""What a supervisor tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

from ._states import ChildState

__all__ = ["ChildStatistics", "SupervisorStatistics"]


@dataclass(frozen=True, slots=True)
class ChildStatistics:
    """One child of a supervisor."""

    name: str
    """Its name."""
    pid: int | None
    """The process id of its newest process; ``None`` for a nested supervisor."""
    state: ChildState
    """Where it is in its life."""
    restarts: int
    """How many times it was started again, for whatever reason."""
    uptime: float
    """For how many seconds it has been ready; 0 if it is not."""


@dataclass(frozen=True, slots=True)
class SupervisorStatistics:
    """A supervisor at one moment."""

    name: str
    """Its name."""
    ready: int
    """How many children are ready."""
    restarts: int
    """How many times children have failed and were to be started again since it was opened (a
    nested supervisor: since it was started last)."""
    restarts_in_period: int
    """How many of these lie within the last ``period`` seconds: one more than ``intensity``, and it
    gives up."""
    children: tuple[ChildStatistics, ...]
    """Its children, in the order in which they were started."""
