"""What becomes of a call, on its way from a Dask worker to the caller.

A Dask task gives a list of answers, as a worker of a pool sends them: one for a call, and for a
chunk of a map as many as there are. Values are still pickled in them.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

from .._errors import SerializationError, reason_of
from .._pool._answers import Unbegun, Undecodable
from .._wire._framing import Section
from .._wire._outcomes import Failure, Outcome, Value, exception_message, rebuild_exception
from .._wire._payloads import Serializer
from ._frames import Relayed
from ._versions import this_side


@dataclass(frozen=True, slots=True)
class PickledValue:
    data: bytes


@dataclass(frozen=True, slots=True)
class PickledFailure:
    """An exception.

    :param report: what is known of it in words, pickled
    :param data: its pickle, where it could be made
    :param unbegun: whether the call could not be unpickled
    :param items: how many items of a chunk have it, in place of values that could not come
    """

    report: bytes
    data: bytes | None
    unbegun: bool = False
    items: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    number: int
    last: bool
    seconds: float
    outcome: PickledValue | PickledFailure


@dataclass(frozen=True, slots=True)
class Death:
    """The process that ran the call has died; it had begun so many items of a chunk."""

    error: PickledFailure
    begun: int


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The process was stopped, as an item of a map took too long."""


Answers = list[Answer | Death | TimedOut]


def pickle_outcome(outcome: Outcome) -> PickledValue | PickledFailure:
    """Prepare an outcome for its way; on the Dask worker."""
    if isinstance(outcome, Value):
        value = outcome.take()
        assert isinstance(value, Relayed)
        return PickledValue(value.data)
    pickled = pickle_exception(outcome.exception)
    if isinstance(outcome, Unbegun):
        return PickledFailure(pickled.report, pickled.data, unbegun=True)
    if isinstance(outcome, Undecodable):
        return PickledFailure(pickled.report, pickled.data, items=outcome.items)
    return pickled


def pickle_exception(exception: BaseException) -> PickledFailure:
    if isinstance(exception, Relayed):  # of the function: the words are those of its process
        return PickledFailure(_relayed_report(exception), exception.data)
    _, sections = exception_message(exception)
    joined = [b"".join(section) for section in sections]
    return PickledFailure(joined[0], joined[1] if len(joined) == 2 else None)


def _relayed_report(exception: Relayed) -> bytes:
    text = str(getattr(exception.__cause__, "text", ""))
    # "module.Type: message" is the last line that is not indented.
    lines = [line for line in text.splitlines() if line and not line[0].isspace()]
    name, _, message = lines[-1].partition(": ") if lines else ("Exception", "", "")
    return pickle.dumps((name, message, text), 5)


def load_outcome(outcome: PickledValue | PickledFailure, serializer: Serializer) -> Outcome:
    """Make a value or an exception of what has come; on the side of the caller."""
    if isinstance(outcome, PickledValue):
        try:
            return Value(serializer.loads(outcome.data))
        except BaseException as error:
            reason = SerializationError(
                f"the result of a call could not be unpickled ({reason_of(error)})"
            )
            reason.__cause__ = error
            return Failure(reason)
    exception = load_exception(outcome, serializer)
    if outcome.unbegun:
        here = SerializationError(f"{exception}; the call came from {this_side()}")
        here.__cause__ = exception.__cause__
        return Unbegun(here)
    return Failure(exception) if outcome.items is None else Undecodable(exception, outcome.items)


def load_exception(failure: PickledFailure, serializer: Serializer) -> BaseException:
    sections: list[Section] = [[failure.report]]
    if failure.data is not None:
        sections.append([failure.data])

    def load(pickled: list[Section]) -> Any:
        return serializer.loads(b"".join(pickled[0]))

    return rebuild_exception(sections, load)
