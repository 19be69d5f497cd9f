"""One call on its way through a pool."""

from __future__ import annotations

import enum
import types
from collections.abc import Callable
from typing import Any

from .._instruments import ObservedCall
from .._own_log import log_exception
from .._progress_feed import Progress, decode_progress
from .._wire._framing import Buffer, FrameKind
from .._wire._messages import INLINE_BYTES, inline, pack_call, size_of
from .._wire._outcomes import Failure, Outcome
from .._wire._payloads import Payload
from ._observing import tell_outcome

_UNKNOWN_SECONDS = 1.0


class CallState(enum.Enum):
    NEW = "new"  # no scheduler knows of it
    QUEUED = "queued"
    SENT = "sent"
    FAILING = "failing"  # taken out of the queue, as nothing will run
    DONE = "done"


class PoolCall:
    """A function and its arguments, pickled, and what becomes of them.

    :param payload: the function and its arguments
    :param what: what tells functions that take long from others
    :param on_done: called in the event loop when :attr:`outcome` is known
    """

    __slots__ = (
        "answers",
        "number",
        "observed",
        "on_done",
        "on_progress",
        "outcome",
        "payload",
        "seconds",
        "state",
        "what",
    )

    kind: int = FrameKind.CALL

    ahead_seconds: float = 0.001
    """The call may be sent to a worker that is busy if that will have come to it, and be done with
    it, within so many seconds: then it never waits for the pool, and takes next to nothing that
    another could have done. (0: never.)"""

    def __init__(self, payload: Payload, what: object, on_done: Callable[[], object]) -> None:
        self.payload = payload
        self.what = what
        self.on_done = on_done
        self.on_progress: Callable[[Progress], object] | None = None
        self.state = CallState.NEW
        self.outcome: Outcome | None = None
        self.seconds = _UNKNOWN_SECONDS  # that it is thought to take
        self.number = 0  # among the messages to its worker
        self.answers = 0
        self.observed: ObservedCall | None = None  # where there are instruments

    @property
    def done(self) -> bool:
        return self.state is CallState.DONE

    def message(self) -> bytes | None:
        """Return the call as one message; ``None`` if it is too large for that, or more than bytes
        move with it."""
        if self.payload.handles is not None:
            return None
        flags, pieces = inline(self.payload.sections)
        size = len(pieces[0]) if len(pieces) == 1 else size_of(pieces)
        if size > INLINE_BYTES:
            return None
        return pack_call(self.kind, flags, self.number, size) + b"".join(pieces)

    def received(self) -> None:
        """The worker has got what moves with the call."""
        self.close_payload()

    def close_payload(self) -> None:
        """Close our copies of what moves with the call, which no worker will need any more."""
        payload = getattr(self, "payload", None)
        if payload is not None:
            payload.close()

    def sent(self) -> None:
        """The call is on its way to a worker."""

    def deliver(self, number: int, last: bool, seconds: float, outcome: Outcome) -> None:
        """Take an answer; a plain call has one.

        :param number: which one, counted from 0, as they may come in any order
        :param last: whether no other will follow
        :param seconds: how long the worker took
        """
        self.finish(outcome)

    def died(self, error: BaseException, begun: int) -> None:
        """The worker that ran the call has ended.

        :param begun: how many items of a chunk it had begun
        """
        if self.observed is not None:
            self.observed._fails("killed", error)
        self.fail(error)

    def report(self, payload: Buffer | list[Buffer]) -> None:
        """The function has said how far it is."""
        if self.on_progress is None or self.done:
            return
        try:
            section = payload if isinstance(payload, list) else [payload]
            self.on_progress(decode_progress(section))
        except Exception:
            log_exception("the on_progress of a call of a pool failed")

    def finish(self, outcome: Outcome) -> None:
        """Say what became of the call; only the first word counts."""
        if self.state is not CallState.DONE:
            self.state = CallState.DONE
            self.outcome = outcome
            self.close_payload()
            del self.payload
            if self.observed is not None:
                tell_outcome(self.observed, outcome)
            self.on_done()

    def fail(self, error: BaseException) -> None:
        """Nothing of the call will ever run, or come back."""
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
