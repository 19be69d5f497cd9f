"""What the answers of a worker say."""

from __future__ import annotations

from dataclasses import dataclass

from .._process import AsyncProcess
from .._wire._framing import Frame, FrameKind
from .._wire._messages import Message, sections_of
from .._wire._outcomes import Failure, Outcome, Value, cannot_unpickle, decode
from .._wire._payloads import Serializer, load
from ._segment_payloads import ReceivedPayload


@dataclass(frozen=True, slots=True)
class Unbegun(Failure):
    """The worker could not unpickle the call."""


@dataclass(frozen=True, slots=True)
class Undecodable(Failure):
    """What came for so many items of a chunk could not be unpickled."""

    items: int


class AnswerDecoder:
    """Makes outcomes of the answers of one worker.

    :param process: the worker
    """

    def __init__(self, process: AsyncProcess[object], serializer: Serializer | None) -> None:
        self._process = process
        self._serializer = serializer

    def decode(self, message: Message, received: ReceivedPayload | None) -> Outcome:
        """Make an outcome of an answer; in a thread, or in the event loop where it is small.

        :param received: what came apart from the message
        """
        kind, flags, _, items, payload = message
        try:
            if kind in (FrameKind.VALUE, FrameKind.VALUES):
                if received is not None:
                    return Value(received.load(self._serializer))
                return Value(load(sections_of(payload, flags), self._serializer))
            sections = sections_of(payload, flags) if received is None else received.sections()
        except BaseException as error:
            return self.cannot_unpickle(error, items)
        frame = Frame(FrameKind(kind), sections)
        outcome = decode(
            frame,
            self._process.name,
            self._process._handle.pid,
            None,
            lambda sections: load(sections, self._serializer),
        )
        if kind == FrameKind.BAD_CALL and isinstance(outcome, Failure):
            return Unbegun(outcome.exception)
        return outcome

    def cannot_unpickle(self, error: BaseException, items: int) -> Undecodable:
        """Say that an answer about so many items could not be unpickled."""
        name, pid = self._process.name, self._process._handle.pid
        return Undecodable(cannot_unpickle("result", name, pid, error), items)
