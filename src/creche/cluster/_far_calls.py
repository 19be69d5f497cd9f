"""Calls of a pool on the far side: they gather their answers, which go back together."""

from __future__ import annotations

from collections.abc import Callable

from .._errors import SerializationError
from .._pool._answers import Unbegun
from .._pool._calls import PoolCall
from .._wire._framing import Buffer, FrameKind
from .._wire._outcomes import Outcome, Value
from .._wire._payloads import Payload
from ._answers import Answer, Answers, Death, TimedOut, pickle_exception, pickle_outcome

_GATHERED = Value(None)


class FarCall(PoolCall):
    """A call that has come from another machine.

    :param on_sent: called when a process has got the call
    :param on_report: called with what the function reports of its progress
    :param where: names the Dask worker, in errors
    """

    __slots__ = ("_expected", "_on_report", "_on_sent", "_where", "gathered")

    ahead_seconds = 0.0  # Dask gives no more calls than there are processes

    def __init__(
        self,
        payload: Payload,
        on_done: Callable[[], object],
        on_sent: Callable[[], object],
        on_report: Callable[[bytes], object],
        where: str,
    ) -> None:
        super().__init__(payload, None, on_done)
        self.gathered: Answers = []
        self._on_sent = on_sent
        self._where = where
        self._on_report = on_report
        self._expected: int | None = None

    def sent(self) -> None:
        self._on_sent()

    def deliver(self, number: int, last: bool, seconds: float, outcome: Outcome) -> None:
        if self.done:
            return
        if isinstance(outcome, Unbegun):
            text = f"{outcome.exception} That was on {self._where}"
            error = SerializationError(text)
            error.__cause__ = outcome.exception.__cause__
            outcome = Unbegun(error)
        self.gathered.append(Answer(number, last, seconds, pickle_outcome(outcome)))
        self._check_end(number + 1 if last else None)

    def died(self, error: BaseException, begun: int) -> None:
        if self.done:
            return
        self.gathered.append(Death(pickle_exception(error), begun))
        self._check_end(self.answers)

    def report(self, payload: Buffer | list[Buffer]) -> None:
        pieces = payload if isinstance(payload, list) else [payload]
        if not self.done:
            self._on_report(b"".join(pieces))

    def time_out(self) -> None:
        """The process was stopped, as it took too long; so the call has been called off."""
        self.gathered.append(TimedOut())
        self.on_done()

    def finish(self, outcome: Outcome) -> None:
        if not self.gathered:  # a small value, or nothing will ever come
            self.gathered.append(Answer(0, True, 0.0, pickle_outcome(outcome)))
        super().finish(outcome)

    def _check_end(self, expected: int | None) -> None:
        """End the call when all its answers are here: what is large may come after the last.

        :param expected: how many answers there are in all, where that is known by now
        """
        if expected is not None:
            self._expected = expected
        if sum(isinstance(answer, Answer) for answer in self.gathered) == self._expected:
            super().finish(_GATHERED)


class FarChunk(FarCall):
    """A chunk of a map that has come from another machine."""

    __slots__ = ()

    kind = FrameKind.CHUNK
