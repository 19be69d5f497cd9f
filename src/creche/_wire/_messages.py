"""What travels between a pool and its workers, without I/O.

A call is a header and a payload, which may travel apart from it where it is large; an answer is a
header and as many bytes as it says.

A payload is a pickle; or, with :data:`BUFFERS`, a table of lengths, a pickle, and the buffers that
it refers to; or, with :data:`SEGMENT` or :data:`STREAM`, the table alone, while the rest lies in
shared memory, or follows through a stream.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from ._framing import BadFrameError, Buffer, FrameKind, Section

_MAGIC = 0x6372
_CALL_HEADER = struct.Struct("<HBBIQ")
_ANSWER_HEADER = struct.Struct("<HBBfIQ")
CALL_HEADER_BYTES = _CALL_HEADER.size

INLINE_BYTES = 64 * 1024
"""How large a payload can be to travel with the header of its call; larger ones go through shared
memory, where there is such a thing."""

# In shared memory, every section begins where a CPU likes its vectors to.
ALIGNMENT = 64

_KINDS = frozenset(map(int, FrameKind))

# A payload beyond this is none.
_MAX_BYTES = 1 << 48


BUFFERS = 1
SEGMENT = 2
HEAVY = 4
"""The payload takes long to unpickle: not to be done in an event loop."""
LAST = 8
"""No other answer will follow to the same call."""
LEAVING = 16
"""The worker ends when it has sent this."""
KEEP = 32
"""The shared memory that comes with this will be used again."""
KEPT = 64
"""The payload lies in the shared memory that was to be kept."""
STREAM = 128
"""The payload follows through a stream."""
HANDLES = 8
"""Something moves with the call, descriptors perhaps: the worker says when it has it. (Of a call;
of an answer it is :data:`LAST`.)"""


# Which of the numbers that a worker shares with its pool tells what.
BEGUN_CALL = 0
"""The number of the call that the worker has begun, or began last, and 1; 0 before the first."""
BEGUN_ITEMS = 1
"""How many items of a chunk it has begun, for when it dies of one of them."""
KEPT_IS_UNREAD = 2
"""Whether the pool has yet to read the segment that the worker keeps."""


Message = tuple[int, int, float, int, Buffer | list[Buffer]]
"""A message of a worker: kind, flags, how many seconds it worked, on how many items, and the
payload."""


def pack_call(kind: int, flags: int, number: int, size: int) -> bytes:
    """Make the header of a message to a worker.

    :param number: which message to that worker it is
    :param size: bytes of the payload, which follows
    """
    return _CALL_HEADER.pack(_MAGIC, kind, flags, number, size)


def unpack_call(message: Buffer) -> tuple[int, int, int, int]:
    """Read the header of a message.

    :return: kind, flags, number, and how many bytes of payload belong to it
    :raises BadFrameError: if it is no message of a pool
    """
    magic, kind, flags, number, size = _CALL_HEADER.unpack_from(message)
    if magic != _MAGIC:
        raise BadFrameError(f"a call cannot begin with {bytes(message[:4])!r}")
    return kind, flags, number, size


def number_of(header: bytes) -> int:
    """Read from a header which message to its worker it is."""
    return _CALL_HEADER.unpack(header)[3]  # type: ignore[no-any-return]


def pack_answer(kind: int, flags: int, seconds: float, size: int, items: int = 1) -> bytes:
    """Make the header of a message to the pool.

    :param seconds: how long the worker took
    :param size: bytes of the payload, which follows
    :param items: how many items of a chunk it is about
    """
    return _ANSWER_HEADER.pack(_MAGIC, kind, flags, seconds, items, size)


class AnswerReader:
    """Cuts what a worker sends into messages."""

    def __init__(self) -> None:
        self._rest = b""
        self._head: tuple[int, int, float, int] | None = None  # of a large message, in progress
        self._pieces: list[Buffer] = []
        self._missing = 0

    @property
    def in_message(self) -> bool:
        """Whether the stream would be cut off in the middle of a message if it ended here."""
        return bool(self._rest) or self._head is not None

    def feed(self, data: bytes) -> list[Message]:
        """Take the next bytes; return the messages that they complete.

        :raises BadFrameError: if they are no message of a worker
        """
        messages: list[Message] = []
        if self._head is not None:
            data = self._feed_large(data, messages)
        elif self._rest:
            data = self._rest + data
        start, end = 0, len(data)
        header = _ANSWER_HEADER.size
        while end - start >= header:
            magic, kind, flags, seconds, items, size = _ANSWER_HEADER.unpack_from(data, start)
            if magic != _MAGIC or kind not in _KINDS or size > _MAX_BYTES:
                raise BadFrameError(f"an answer cannot begin with {data[start : start + 16]!r}")
            stop = start + header + size
            if stop > end:
                self._head = kind, flags, seconds, items
                self._pieces = [data[start + header :]]
                self._missing = stop - end
                start = end
                break
            messages.append((kind, flags, seconds, items, data[start + header : stop]))
            start = stop
        self._rest = data[start:]
        return messages

    def _feed_large(self, data: bytes, messages: list[Message]) -> bytes:
        assert self._head is not None
        piece = data[: self._missing]
        self._pieces.append(piece)
        self._missing -= len(piece)
        if not self._missing:
            pieces, self._pieces = self._pieces, []
            head, self._head = self._head, None
            messages.append((*head, pieces))
        return data[len(piece) :]


# --- payloads ---------------------------------------------------------------------------------


def size_of(pieces: Sequence[Buffer]) -> int:
    return sum(memoryview(piece).nbytes for piece in pieces)


def table_of(sections: Sequence[Section]) -> bytes:
    """Describe the sections of a payload: how many, and how long each is."""
    return struct.pack(f"<I{len(sections)}Q", len(sections), *map(size_of, sections))


def inline(sections: Sequence[Section]) -> tuple[int, list[Buffer]]:
    """Lay out a payload that travels without shared memory: return its flags and its pieces."""
    if len(sections) == 1:
        return 0, sections[0]
    return BUFFERS, [table_of(sections), *(piece for section in sections for piece in section)]


def lengths_in(payload: Buffer | list[Buffer]) -> tuple[list[int], list[Buffer]]:
    """Read the table at the beginning of a payload; return it, and what follows it."""
    pieces = list(payload) if isinstance(payload, list) else [payload]
    count = struct.unpack("<I", _take(pieces, 4))[0]
    lengths = struct.unpack(f"<{count}Q", _take(pieces, 8 * count))
    return list(lengths), pieces


def sections_of(payload: Buffer | list[Buffer], flags: int) -> list[Section]:
    """Cut a payload that is all here into the sections it is made of."""
    if not flags & BUFFERS:
        return [payload if isinstance(payload, list) else [payload]]
    lengths, pieces = lengths_in(payload)
    return [list(_take_pieces(pieces, length)) for length in lengths]


def offsets_of(lengths: Sequence[int]) -> list[int]:
    """Where each section lies in shared memory; and, at the end, how large that is."""
    offsets = [0]
    for length in lengths:
        offsets.append(-(-(offsets[-1] + length) // ALIGNMENT) * ALIGNMENT)
    return offsets


def _take(pieces: list[Buffer], size: int) -> bytes:
    return b"".join(_take_pieces(pieces, size))


def _take_pieces(pieces: list[Buffer], size: int) -> Iterator[Buffer]:
    while size:
        piece = memoryview(pieces[0]).cast("B")
        if len(piece) <= size:
            yield piece
            size -= len(piece)
            del pieces[0]
        else:
            yield piece[:size]
            pieces[0] = piece[size:]
            size = 0
