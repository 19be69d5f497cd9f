"""Payloads that travel in shared memory."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from .._platform import (
    Segment,
    SegmentReader,
    SegmentSocket,
    buffer_in_segment,
    write_segment,
)
from .._wire._framing import Buffer, Section
from .._wire._messages import KEEP, KEPT, SEGMENT, lengths_in, offsets_of, size_of
from .._wire._payloads import Serializer, load_from

# Copying that takes longer than a millisecond is not for an event loop.
COPY_IN_LOOP_BYTES = 1536 * 1024


class SegmentPort:
    """One end of a connection over which payloads travel in shared memory.

    What is copied within a millisecond travels in a segment that is kept, as memory that was used
    before is written in a quarter of the time that fresh memory takes.
    """

    def __init__(self, sock: SegmentSocket) -> None:
        self._socket = sock
        self._kept: Segment | None = None  # that this end writes
        self._kept_by_peer: Segment | None = None  # that this end reads
        self._is_new = False

    def write(self, sections: Sequence[Section], *, may_keep: bool) -> Segment:
        """Write a payload into shared memory; :meth:`send` sends it.

        :param may_keep: whether the peer has read what was sent last
        :raises OSError: if there is no memory, or no descriptor, left
        """
        lengths = list(map(size_of, sections))
        if not may_keep or sum(lengths) > COPY_IN_LOOP_BYTES:
            return write_segment(sections, offsets_of(lengths))
        self._is_new = self._kept is None
        self._kept = write_segment(sections, offsets_of(lengths), self._kept)
        return self._kept

    def send(self, segment: Segment) -> int:
        """Send what was written; return the flags that tell the peer of it.

        :raises OSError: if nobody is there to receive it
        """
        if segment is not self._kept:
            with contextlib.closing(segment):
                self._socket.send(segment)
            return SEGMENT
        if not self._is_new:
            return SEGMENT | KEPT
        try:
            self._socket.send(segment)
        except OSError:
            self._kept = None
            raise
        self._is_new = False
        return SEGMENT | KEEP

    def receive(self, flags: int) -> ReceivedSegment:
        """Receive what the peer has sent.

        :raises EOFError: if there is nothing
        """
        if not flags & (KEEP | KEPT):
            return ReceivedSegment(self._socket.receive(), kept=False)
        if flags & KEEP:
            self._kept_by_peer = self._socket.receive()
        if self._kept_by_peer is None:
            raise EOFError("no shared memory was kept")
        return ReceivedSegment(self._kept_by_peer, kept=True)

    def close(self) -> None:
        self._socket.close()
        for segment in (self._kept, self._kept_by_peer):
            if segment is not None:
                segment.close()


class ReceivedSegment:
    """A payload in shared memory, to be read once.

    :param kept: whether the peer will use the memory again
    """

    def __init__(self, segment: Segment, *, kept: bool) -> None:
        self.kept = kept
        self._segment = segment

    def load(self, table: Buffer | list[Buffer], serializer: Serializer | None) -> Any:
        """Unpickle the payload.

        :param table: tells of the sections
        :raises Exception: whatever the pickle's own constructors raise
        """
        with self._closing():
            lengths, _ = lengths_in(table)
            places = list(zip(offsets_of(lengths), lengths, strict=False))
            buffers = [
                buffer_in_segment(self._segment, *place, copy=self.kept) for place in places[1:]
            ]
            reader = SegmentReader(self._segment, *places[0])
            return load_from(reader, lengths[0], buffers, serializer)

    def sections(self, table: Buffer | list[Buffer]) -> list[Section]:
        """Copy the sections of the payload."""
        with self._closing():
            lengths, _ = lengths_in(table)
            sections: list[Section] = []
            for offset, length in zip(offsets_of(lengths), lengths, strict=False):
                data = bytearray(length)
                SegmentReader(self._segment, offset, length).readinto(memoryview(data))
                sections.append([data])
            return sections

    def _closing(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if self.kept else contextlib.closing(self._segment)
