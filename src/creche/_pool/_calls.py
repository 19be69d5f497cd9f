"""One call on its way through a pool."""

from __future__ import annotations

import enum
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._wire._framing import FrameKind
from .._wire._outcomes import Failure, Outcome

if TYPE_CHECKING:
    from .._wire._payloads import Payload
    from ._worker import Worker


class CallState(enum.Enum):
    QUEUED = "queued"
    SENT = "sent"
    DONE = "done"


class PoolCall:
    """A function and its arguments, pickled, and what becomes of them.

    :param payload: the function and its arguments
    :param what: what tells functions that take long from others
    :param on_done: called in the event loop when :attr:`outcome` is known
    """

    __slots__ = (
        "answers",
        "moves",
        "on_done",
        "outcome",
        "payload",
        "seconds",
        "state",
        "what",
        "worker",
    )

    kind: int = FrameKind.CALL

    sent_ahead = True
    """Whether the call may be sent to a worker that is busy."""

    def __init__(self, payload: Payload, what: object, on_done: Callable[[], object]) -> None:
        self.payload = payload
        self.what = what
        self.on_done = on_done
        self.state = CallState.QUEUED
        self.worker: Worker | None = None
        self.outcome: Outcome | None = None
        self.seconds = 1.0  # that it is thought to take
        self.answers = 0
        self.moves = 0

    def deliver(self, number: int, last: bool, outcome: Outcome) -> None:
        """Take an answer; a plain call has one.

        :param number: which one, counted from 0, as they may come in any order
        """
        self.finish(outcome)

    def finish(self, outcome: Outcome) -> None:
        """Say what became of the call; only the first word counts."""
        if self.state is not CallState.DONE:
            self.state = CallState.DONE
            self.outcome = outcome
            del self.payload
            self.on_done()

    def fail(self, error: BaseException) -> None:
        self.finish(Failure(error))


def what_runs(func: Any) -> object:
    """Return what tells a function from others that take longer or shorter."""
    if type(func) is types.FunctionType:
        return func.__code__
    while hasattr(func, "func"):  # functools.partial
        func = func.func
    func = getattr(func, "__func__", func)
    if isinstance(func, types.FunctionType):
        return func.__code__
    return func if isinstance(func, types.BuiltinFunctionType | type) else type(func)
