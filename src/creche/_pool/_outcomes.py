"""What became of one item of a map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class ItemOutcome(Generic[T_co]):
    """What ``pool.map(..., on_error="yield")`` gives for each item."""

    index: int
    """Which item it was, counted from 0."""
    item: object
    """The item itself: a tuple where there are several iterables."""
    exception: BaseException | None
    """Why there is no value, or ``None`` where there is one."""
    _value: T_co

    @property
    def value(self) -> T_co:
        """What the function returned.

        :raises BaseException: what it raised, where it did
        """
        if self.exception is not None:
            raise self.exception
        return self._value
