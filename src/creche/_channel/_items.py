"""Items as packets, and back.

A packet is a pickle; or a mark, a table of lengths and the sections of a payload; or a mark, flags
and the table alone, while the sections lie in a segment that travels with the packet. Where packets
can be of any size, there are no segments.
"""

from __future__ import annotations

import contextlib
import pickle
from dataclasses import dataclass
from typing import Any

from .._errors import SerializationError, reason_of
from .._platform import Segment, SegmentReader, fresh_memory, write_segment
from .._wire._framing import Buffer, Section
from .._wire._messages import (
    BUFFERS,
    HEAVY,
    lengths_in,
    offsets_of,
    sections_of,
    size_of,
    table_of,
)
from .._wire._payloads import LIGHT_BYTES, Payload, TooHeavyError, dump, is_plain, load, load_from

# What copies within a millisecond need not go to a thread, with whatever that costs.
_AT_ONCE_BYTES = 1024 * 1024

# The first byte of a packet.
_PICKLE = 0x80
_INLINE = b"\x01"
_APART = b"\x02"

_PLAIN = frozenset({int, float, complex, bool, type(None)})
_STRINGS = frozenset({str, bytes})
_SHORT = 400

# Packets up to this size are sent without asking whether there is a better way.
_SMALL_BYTES = 512

_dumps = pickle.dumps

# Containers of so few plain objects take no time to pickle.
_FEW = 16

# What refers to more buffers than that is pickled with their contents: the table of their lengths
# must fit into a packet.
_MAX_BUFFERS = 1000


def dump_small(item: Any) -> bytes | None:
    """Pickle an item if that takes no time, for certain, and makes a small packet; or ``None``."""
    kind = type(item)
    if kind in _PLAIN or (kind in _STRINGS and len(item) <= _SHORT):
        packet = _dumps(item, 5)
    elif kind is tuple or kind is list:
        if len(item) > _FEW or not is_plain(item):
            return None
        packet = _dumps(item, 5)
    elif kind is dict:
        if len(item) > _FEW or not (is_plain(tuple(item)) and is_plain(tuple(item.values()))):
            return None
        packet = _dumps(item, 5)
    else:
        return None
    return packet if len(packet) <= _SMALL_BYTES else None


def dump_item(item: object, *, light: bool) -> Payload:
    """Pickle an item.

    :param light: do it only if it does not take long
    :raises TooHeavyError: if it would
    :raises SerializationError: if the item cannot be pickled
    """
    try:
        payload = dump(item, None, light=light)
        if len(payload.sections) > _MAX_BUFFERS:
            payload = Payload([[pickle.dumps(item, 5)]], heavy=True)
    except TooHeavyError:
        raise
    except Exception as error:
        raise _cannot_pickle(item, error) from error
    return payload


def _cannot_pickle(item: object, error: BaseException) -> SerializationError:
    return SerializationError(
        f"an item of type {type(item).__qualname__} cannot be sent over a channel, as it cannot be"
        f" pickled ({reason_of(error)})"
    )


def inline_packet(payload: Payload, packet_bytes: float, *, light: bool) -> bytes | None:
    """Make the packet of an item; ``None`` if it is too large for one.

    :param packet_bytes: what a packet can hold
    :param light: do it only if it does not take long
    :raises TooHeavyError: if it would
    """
    sections = payload.sections
    size = sum(map(size_of, sections))
    if size > packet_bytes - 1 - 8 * (len(sections) + 1):
        return None
    if light and size > _AT_ONCE_BYTES:
        raise TooHeavyError
    if len(sections) == 1:
        return b"".join(sections[0])
    pieces = (piece for section in sections for piece in section)
    return b"".join([_INLINE, table_of(sections), *pieces])


@dataclass(slots=True)
class LargeItem:
    """An item whose payload travels apart from its packet, or is to."""

    header: bytes
    sections: list[Section]

    @property
    def at_once(self) -> bool:
        """Whether copying it takes no longer than an event loop can wait."""
        return sum(map(size_of, self.sections)) <= _AT_ONCE_BYTES

    def write(self) -> Segment:
        """Copy the payload into a segment.

        :raises OSError: if there is no memory, or no descriptor, left
        """
        return write_segment(self.sections, offsets_of(list(map(size_of, self.sections))))


def large_item(payload: Payload) -> LargeItem:
    flags = HEAVY if payload.heavy else 0
    header = b"".join([_APART, bytes([flags]), table_of(payload.sections)])
    return LargeItem(header, payload.sections)


@dataclass(slots=True)
class ReceivedItem:
    """An item in a segment, to be read once."""

    packet: bytes
    segment: Segment

    @property
    def at_once(self) -> bool:
        """Whether unpickling it takes no longer than an event loop can wait."""
        lengths, _ = lengths_in(self.packet[2:])
        return not self.packet[1] & HEAVY and sum(lengths) <= _AT_ONCE_BYTES

    def load(self) -> Any:
        """Unpickle the item.

        :raises SerializationError: if that fails
        """
        with contextlib.closing(self.segment):
            try:
                lengths, _ = lengths_in(self.packet[2:])
                readers = [
                    SegmentReader(self.segment, offset, length)
                    for offset, length in zip(offsets_of(lengths), lengths, strict=False)
                ]
                buffers: list[memoryview] = []
                for reader, length in zip(readers[1:], lengths[1:], strict=True):
                    buffers.append(fresh_memory(length))
                    reader.readinto(buffers[-1])
                return load_from(readers[0], lengths[0], buffers, None)
            except Exception as error:
                raise _cannot_unpickle(error) from error


@dataclass(slots=True)
class LargePacket:
    """An item in a large packet, which came in pieces."""

    pieces: list[Buffer]

    at_once = False

    def load(self) -> Any:
        """Unpickle the item.

        :raises SerializationError: if that fails
        """
        return load_packet(b"".join(self.pieces))


def received_packet(pieces: list[Buffer]) -> bytes | LargePacket:
    """Say what an item is whose packet came in pieces."""
    return b"".join(pieces) if size_of(pieces) <= LIGHT_BYTES else LargePacket(pieces)


def load_other(packet: bytes, error: Exception) -> Any:
    """Make an item of a packet that could not be unpickled, because of ``error``, as it is.

    :raises SerializationError: if it has no other form
    """
    if packet[0] == _PICKLE:
        raise _cannot_unpickle(error) from error
    return load_packet(packet)


def load_packet(packet: bytes) -> Any:
    """Make an item of a packet that has all of it.

    :raises SerializationError: if that fails
    """
    try:
        if packet[0] == _PICKLE:
            return pickle.loads(packet)
        return load(sections_of(packet[1:], BUFFERS), None)
    except Exception as error:
        raise _cannot_unpickle(error) from error


def _cannot_unpickle(error: BaseException) -> SerializationError:
    return SerializationError(
        "an item came over a channel that cannot be unpickled"
        f" ({reason_of(error)}); the next one may be"
    )
