"""What a child asks its parent to call, and what the parent replies, without I/O.

Requests and replies have the form of a worker's answers: see :mod:`creche._wire._messages`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from .._errors import ProcessStateError, RemoteTraceback, SerializationError, reason_of
from . import _messages
from ._framing import BadFrameError, FrameKind, Section
from ._messages import HEAVY, inline, pack_answer, sections_of, size_of
from ._outcomes import Failure, Outcome, Value, cannot_pickle_request, rebuild_exception
from ._outcomes import Message as OutcomeMessage
from ._payloads import LIGHT_BYTES, Payload, TooHeavyError, dump, dumps_plain, is_plain, load

_NUMBER = struct.Struct("<Q")

_REQUESTS = (FrameKind.REQUEST, FrameKind.AWAITED_REQUEST)

MessageReader = _messages.AnswerReader
Message = _messages.Message


def number_of(message: Message) -> int:
    """Which request a message is, or is about."""
    return message[3]


def is_heavy(message: Message) -> bool:
    """Whether a message takes too long to unpickle for an event loop."""
    return bool(message[1] & HEAVY)


def encode_number(number: int) -> Section:
    return [_NUMBER.pack(number)]


def decode_number(section: Section) -> int:
    """Read a number.

    :raises BadFrameError: if it is none
    """
    data = b"".join(section)
    if len(data) != _NUMBER.size:
        raise BadFrameError(f"{data[:16]!r} is no number")
    return _NUMBER.unpack(data)[0]  # type: ignore[no-any-return]


# --- in the child -----------------------------------------------------------------------------


def encode_request(
    number: int,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    awaits: bool,
    light: bool = False,
) -> bytes:
    """Pickle a request.

    :param awaits: whether the function is async
    :param light: do it only if it does not take long
    :raises TooHeavyError: if it would
    :raises SerializationError: if the function or an argument cannot be pickled
    """
    kind = FrameKind.AWAITED_REQUEST if awaits else FrameKind.REQUEST
    try:
        if is_plain(args):
            return _encode_plain(kind, number, (func, args))
        return _encode(kind, number, _dump((func, args), light=light))
    except TooHeavyError:
        raise
    except Exception as error:
        raise cannot_pickle_request(func, args, error) from error


def encode_withdrawal(number: int) -> bytes:
    """Say that nobody waits for what comes of a request any more."""
    return pack_answer(FrameKind.WITHDRAWN, 0, 0.0, 0, number)


def decode_reply(message: Message) -> Outcome:
    """Turn the parent's reply into what its function returned or raised."""
    kind, flags, _, _, payload = message
    try:
        sections = sections_of(payload, flags)
        if kind == FrameKind.VALUE:
            return Value(load(sections, None))
        if kind == FrameKind.EXCEPTION:
            return Failure(rebuild_exception(sections, lambda pickled: load(pickled, None)))
        if kind == FrameKind.BAD_VALUE:
            value_type, (type_name, text, trace) = load(sections, None)
            error: Exception = SerializationError(
                f"the result of the function that the parent called, of type {value_type}, cannot"
                f" be pickled ({type_name}: {text}). Return plain data instead."
            )
        elif kind == FrameKind.BAD_CALL:
            type_name, text, trace = load(sections, None)
            error = SerializationError(
                "the parent could not unpickle the function that it was to call, or its arguments"
                f" ({type_name}: {text}). It must be able to import the modules that define them"
            )
        else:
            return Failure(parent_unavailable())
    except Exception as failed:  # not a request to stop
        error = SerializationError(
            "the result of the function that the parent called could not be unpickled"
            f" ({reason_of(failed)})"
        )
        error.__cause__ = failed
        return Failure(error)
    error.__cause__ = RemoteTraceback(trace)
    return Failure(error)


def parent_unavailable() -> ProcessStateError:
    return ProcessStateError(
        "the parent cannot call anything for this process: its event loop is closed, or it is gone"
    )


# --- in the parent ----------------------------------------------------------------------------


def check_request(message: Message) -> None:
    """Check that a message is one of a child to its parent.

    :raises BadFrameError: if it is not
    """
    if message[0] not in _REQUESTS and message[0] != FrameKind.WITHDRAWN:
        raise BadFrameError(f"a message of kind {message[0]} is no request")


def awaits(message: Message) -> bool:
    """Whether the function is async."""
    return message[0] == FrameKind.AWAITED_REQUEST


def decode_request(message: Message) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Unpickle the function of a request, and its arguments.

    :raises Exception: whatever their constructors raise
    """
    func, args = load(sections_of(message[4], message[1]), None)
    return func, args


def encode_value(number: int, value: object) -> bytes:
    """Reply what the function returned.

    :raises TooHeavyError: if that takes too long for an event loop
    :raises Exception: if it cannot be pickled
    """
    if is_plain((value,)):
        return _encode_plain(FrameKind.VALUE, number, value)
    return _encode(FrameKind.VALUE, number, _dump(value, light=True))


def encode_reply(number: int, message: OutcomeMessage) -> bytes:
    """Reply how the function ended."""
    return _encode(message[0], number, Payload(message[1], heavy=False))


def encode_unavailable(number: int) -> bytes:
    """Reply that the event loop is closed."""
    return pack_answer(FrameKind.UNAVAILABLE, 0, 0.0, 0, number)


def _encode_plain(kind: int, number: int, obj: object) -> bytes:
    data = dumps_plain(obj)
    return pack_answer(kind, 0, 0.0, len(data), number) + data


def _dump(obj: object, *, light: bool) -> Payload:
    payload = dump(obj, None, light=light)
    if light and sum(map(size_of, payload.sections)) > LIGHT_BYTES:
        raise TooHeavyError
    return payload


def _encode(kind: int, number: int, payload: Payload) -> bytes:
    flags, pieces = inline(payload.sections)
    size = size_of(pieces)
    if payload.heavy or size > LIGHT_BYTES:
        flags |= HEAVY
    header = pack_answer(kind, flags, 0.0, size, number)
    return b"".join([header, *pieces]) if pieces else header
