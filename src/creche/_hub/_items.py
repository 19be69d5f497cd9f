"""Items of queues: objects, pickled by whoever puts them and unpickled by whoever gets them."""

from __future__ import annotations

from typing import Any

from .._errors import SerializationError, reason_of
from .._in_thread import in_thread, outcome_in_thread
from .._runtime import picklers
from .._wire._framing import FrameKind, FrameReader, Section, pack
from .._wire._outcomes import Outcome
from .._wire._payloads import LIGHT_BYTES, Payload, TooHeavyError, dump, load
from ._protocol import size_of


async def pickle_item(item: object) -> Section:
    """Pickle an item in an event loop, which goes on meanwhile. Cancellation gives it up.

    :raises SerializationError: if it cannot be pickled
    """
    try:
        payload = dump(item, None, light=True)
    except TooHeavyError:
        return await in_thread(picklers, lambda: pickle_item_sync(item))
    except Exception as error:
        raise _cannot_pickle(item, error) from error
    if sum(map(size_of, payload.sections)) > LIGHT_BYTES:
        return await in_thread(picklers, lambda: _pack(payload))
    return _pack(payload)


def pickle_item_sync(item: object) -> Section:
    """:raises SerializationError: if it cannot be pickled"""
    try:
        payload = dump(item, None)
    except Exception as error:
        raise _cannot_pickle(item, error) from error
    return _pack(payload)


def is_light(body: Section) -> bool:
    """Whether unpickling an item takes no longer than an event loop can wait."""
    return size_of(body) <= LIGHT_BYTES


async def unpickle_item_apart(body: Section) -> Outcome:
    """Unpickle an item in an event loop, which goes on meanwhile. Cancellation gives it up.

    What it raises is never the item's.
    """
    return await outcome_in_thread(picklers, lambda: unpickle_item_sync(body))


def unpickle_item_sync(body: Section) -> Any:
    """:raises SerializationError: if it cannot be unpickled"""
    try:
        reader = FrameReader()
        (frame,) = (frame for piece in body for frame in reader.feed(bytes(piece)))
        return load(frame.sections, None)
    except Exception as error:
        raise SerializationError(
            f"an item of the queue could not be unpickled ({reason_of(error)}). It is"
            " gone; the queue goes on"
        ) from error


def _pack(payload: Payload) -> Section:
    # The item may wait in this process, and what is writable may change meanwhile.
    pieces = pack(FrameKind.VALUE, payload.sections)
    return [piece if type(piece) is bytes else bytes(piece) for piece in pieces]


def _cannot_pickle(item: object, error: BaseException) -> SerializationError:
    return SerializationError(
        f"an item of type {type(item).__qualname__} cannot be put into the queue, because it cannot"
        f" be pickled ({reason_of(error)})"
    )
