"""Items of a map that travel together, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from .._errors import ProcessDied, ProcessTimeout, RemoteError
from .._wire._framing import FrameKind
from .._wire._outcomes import Failure, Outcome, Value
from .._wire._payloads import Payload
from ._answers import Unbegun, Undecodable
from ._calls import CallState, PoolCall
from ._chunk_size import CHUNK_SECONDS
from ._observing import tell_failure, tell_outcome
from ._outcomes import ItemOutcome

# What is sent ahead can be taken back, but not divided.
_AHEAD_SECONDS = 4 * CHUNK_SECONDS


class ChunkOwner(Protocol):
    """The map that a chunk is a part of."""

    timeout: float | None

    def add_part(self, part: Part, seconds: float) -> None:
        """Some items have ended, after so many seconds of work."""

    def give_back(self, start: int, items: Sequence[Any], *, alone: bool) -> None:
        """Some items have not begun.

        :param alone: whether each is to be sent on its own
        """

    def chunk_sent(self, chunk: Chunk) -> None: ...

    def chunk_died(self) -> None:
        """The worker of a chunk has died."""

    def chunk_ended(self, chunk: Chunk) -> None: ...

    def break_off(self, error: BaseException) -> None:
        """Nothing will ever run."""


class Part:
    """The values of some items that follow each other, or the error of one of them."""

    __slots__ = ("_items", "_values", "error", "start")

    def __init__(
        self,
        start: int,
        items: Sequence[Any],
        values: list[Any] | None,
        error: BaseException | None = None,
    ) -> None:
        self.start = start
        self.error = error
        self._items = items
        self._values = values

    def __len__(self) -> int:
        return len(self._items)

    def give_out(self, *, yields_errors: bool) -> list[Any]:
        """Return the values, or outcomes.

        :raises BaseException: the error, unless it is to be in an outcome
        """
        if self._values is not None:
            if not yields_errors:
                return self._values
            pairs = zip(self._items, self._values, strict=True)
            return [
                ItemOutcome(index, item, None, value)
                for index, (item, value) in enumerate(pairs, self.start)
            ]
        assert self.error is not None
        if yields_errors:
            return [ItemOutcome(self.start, self._items[0], self.error, None)]
        error = self.error
        if isinstance(error, StopAsyncIteration):  # which would look like the end of the map
            error = RemoteError("builtins.StopAsyncIteration", str(error), str(error.__cause__))
            error.__cause__ = self.error.__cause__
        error.add_note(f"This was item {self.start} of the map: {_short(self._items[0])}")
        raise error


class Chunk(PoolCall):
    """Some items of a map, on their way through the pool."""

    __slots__ = ("_answers", "_expected", "_owner", "ahead_seconds", "items", "left", "start")

    kind = FrameKind.CHUNK

    def __init__(self, owner: ChunkOwner, start: int, items: Sequence[Any]) -> None:
        super().__init__(_NO_PAYLOAD, None, _nothing)
        self.start = start
        self.items = items
        self.left = len(items)
        # A timeout counts from the moment of sending.
        self.ahead_seconds = _AHEAD_SECONDS if owner.timeout is None else 0.0
        self._owner = owner
        self._answers: dict[int, tuple[bool, float, Outcome | _Death]] = {}
        self._expected = 0

    @property
    def timeout(self) -> float | None:
        """Seconds that a worker may take for it."""
        return self._owner.timeout

    def sent(self) -> None:
        self._owner.chunk_sent(self)

    def deliver(self, number: int, last: bool, seconds: float, outcome: Outcome) -> None:
        self._receive(number, last, seconds, outcome)

    def died(self, error: BaseException, begun: int) -> None:
        # After the answers that came before it and are still being unpickled.
        self._receive(self.answers, True, 0.0, _Death(error, begun))

    def fail(self, error: BaseException) -> None:
        if self.state is not CallState.DONE:
            self.state = CallState.DONE
            if self.observed is not None:
                tell_outcome(self.observed, Failure(error))
            self._owner.break_off(error)

    def time_out(self) -> None:
        """The worker was stopped because the chunk's only item took too long."""
        self._add(
            1,
            None,
            ProcessTimeout(
                f"item {self.start} of a map was stopped after its timeout of"
                f" {self._owner.timeout:g} seconds"
            ),
        )
        self._end()

    def _receive(self, number: int, last: bool, seconds: float, outcome: Outcome | _Death) -> None:
        self._answers[number] = last, seconds, outcome
        while (answer := self._answers.pop(self._expected, None)) is not None:
            self._expected += 1
            if self.state is not CallState.DONE:  # the map may be over
                self._take(*answer)

    def _take(self, last: bool, seconds: float, outcome: Outcome | _Death) -> None:
        if self.observed is not None and isinstance(outcome, Failure):
            tell_failure(self.observed, outcome)
        if isinstance(outcome, Value):
            self._add(len(outcome.value), outcome.value, None, seconds)
        elif isinstance(outcome, _Death):
            self._die(outcome)
        elif isinstance(outcome, Undecodable):
            for _ in range(outcome.items):
                self._add(1, None, outcome.exception)
        elif isinstance(outcome, Unbegun) and self.left > 1:
            self._give_back(alone=True)
        else:
            self._add(1, None, outcome.exception, seconds)
        if last:
            if self.left:
                self._give_back(alone=False)
            self._end()

    def _add(
        self,
        number: int,
        values: list[Any] | None,
        error: BaseException | None,
        seconds: float = 0.0,
    ) -> None:
        """The next items have ended."""
        first = len(self.items) - self.left
        self.left -= number
        items = self.items if number == len(self.items) else self.items[first : first + number]
        self._owner.add_part(Part(self.start + first, items, values, error), seconds)

    def _give_back(self, *, alone: bool) -> None:
        first = len(self.items) - self.left
        self.left = 0
        self._owner.give_back(self.start + first, self.items[first:], alone=alone)

    def _die(self, death: _Death) -> None:
        """The worker has died in the middle of the chunk: tell of which item, if of one."""
        self._owner.chunk_died()
        if self.observed is not None:
            self.observed._fails("killed", death.error)
        answered = len(self.items) - self.left
        if not death.begun:  # it died while it unpickled them
            if self.left > 1:
                self._give_back(alone=True)
            else:
                self._add(1, None, death.error)
        for number in range(answered, death.begun):
            error = death.error
            if number + 1 < death.begun and isinstance(error, ProcessDied):
                error = ProcessDied(
                    error.exitcode,
                    name=error.name,
                    pid=error.pid,
                    detail="this item was done, but its value was lost when item"
                    f" {self.start + death.begun - 1} ended the process",
                )
            self._add(1, None, error)

    def _end(self) -> None:
        self.state = CallState.DONE
        if self.observed is not None:
            self.observed._finished("ok")
        self._owner.chunk_ended(self)


class _Death:
    """The end of the worker, in place of an answer."""

    def __init__(self, error: BaseException, begun: int) -> None:
        self.error = error
        self.begun = begun


_NO_PAYLOAD = Payload([], heavy=False)


def _nothing() -> None:
    pass


def _short(item: object) -> str:
    try:
        text = repr(item)
    except BaseException:
        return f"an object of type {type(item).__qualname__}"
    return text if len(text) <= 100 else f"{text[:97]}..."
