"""Payloads that travel beside the messages that announce them: in shared memory, or a stream."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from .._platform import (
    KeptSegment,
    Segment,
    SegmentReader,
    SegmentSocket,
    StreamReader,
    StreamWriter,
    keep_segment,
    write_segment,
)
from .._wire._framing import Buffer, Section
from .._wire._messages import KEEP, KEPT, SEGMENT, STREAM, lengths_in, offsets_of, size_of
from .._wire._payloads import Serializer, load_at_once, load_from
from ._stream_payloads import ReceivedStream, pieces_for_stream, read_fresh

# Copying that takes longer than a millisecond is not for an event loop.
COPY_IN_LOOP_BYTES = 1536 * 1024

# With room for the gaps between sections. A segment takes no more memory than is used of it.
_KEPT_BYTES = COPY_IN_LOOP_BYTES + 64 * 1024

# Pieces that are much smaller are those of many objects, and making objects takes far longer than
# copying does: who sends them need not wait for that.
_LARGE_PIECE_BYTES = 256 * 1024


def is_for_stream(sections: Sequence[Section], size: int) -> bool:
    """Whether a payload is best received while it is sent, as it takes long to copy, and no longer
    to receive."""
    return size > COPY_IN_LOOP_BYTES and size >= _LARGE_PIECE_BYTES * sum(map(len, sections))


def is_long_copy(payload: Buffer | list[Buffer], received: ReceivedPayload | None) -> bool:
    """Whether the payload of a message takes longer to copy than an event loop can wait.

    :param received: the payload, where the message has only the table of it
    """
    if received is not None:
        size = sum(lengths_in(payload)[0])
    else:
        size = size_of(payload if isinstance(payload, list) else [payload])
    return size > COPY_IN_LOOP_BYTES


class SegmentPort:
    """One end of a connection over which large payloads travel.

    What is copied within a millisecond travels in a segment that is kept, as copying to and from
    memory that was used before takes a tenth of the time that fresh memory takes.

    :param patient: whether this end waits for the other as long as that may take
    """

    def __init__(self, sock: SegmentSocket, *, patient: bool) -> None:
        self._socket = sock
        self._patient = patient
        self._streams: weakref.WeakSet[StreamWriter | StreamReader] = weakref.WeakSet()
        self._kept: KeptSegment | None = None  # that this end writes
        self._kept_by_peer: KeptSegment | None = None  # that this end reads
        self._is_new = False

    def write(self, sections: Sequence[Section], *, may_keep: bool) -> Segment | KeptSegment:
        """Write a payload into shared memory; :meth:`send` sends it.

        :param may_keep: whether the peer has read what was sent last
        :raises OSError: if there is no memory, or no descriptor, left
        """
        offsets = offsets_of(list(map(size_of, sections)))
        if not may_keep or offsets[-1] > _KEPT_BYTES:
            return write_segment(sections, offsets)
        if self._kept is None:
            self._kept = keep_segment(_KEPT_BYTES)
            self._is_new = True
        self._kept.write(sections, offsets)
        return self._kept

    def send(self, segment: Segment | KeptSegment) -> int:
        """Send what was written; return the flags that tell the peer of it.

        :raises OSError: if nobody is there to receive it
        """
        if isinstance(segment, Segment):
            with contextlib.closing(segment):
                self._socket.send(segment.descriptor)
            return SEGMENT
        if not self._is_new:
            return SEGMENT | KEPT
        self._socket.send(segment.fileno())
        segment.release_descriptor()
        self._is_new = False
        return SEGMENT | KEEP

    def send_handles(self, descriptors: Sequence[int]) -> bool:
        """Send descriptors that move with a call; return whether that could be done."""
        try:
            self._socket.send_all(descriptors)
        except OSError:  # nobody is there, or too many are on their way
            return False
        return True

    def receive_handles(self) -> list[int]:
        """Receive the descriptors that move with a call, if any do.

        :raises EOFError: if they should, but do not come
        """
        return self._socket.receive_all()

    def open_stream(self, sections: Sequence[Section]) -> StreamWriter:
        """Open a stream for a payload, and send the peer the other end.

        :raises OSError: if there are no descriptors left, or nobody is there to receive it
        """
        pieces = pieces_for_stream(sections)
        stream = self._socket.open_stream(pieces, patient=self._patient)
        self._streams.add(stream)
        return stream

    def receive(
        self,
        flags: int,
        table: Buffer | list[Buffer],
        on_stall: Callable[[], object] | None = None,
    ) -> ReceivedPayload:
        """Receive what the peer has sent.

        :param table: tells of the sections of the payload
        :param on_stall: called when the peer sends nothing of the payload for a while
        :raises EOFError: if there is nothing
        """
        if flags & STREAM:
            reader = self._socket.receive_stream(on_stall)
            self._streams.add(reader)
            return ReceivedStream(reader, table)
        if not flags & (KEEP | KEPT):
            return ReceivedSegment(Segment(self._socket.receive()), table)
        if flags & KEEP:
            self._kept_by_peer = KeptSegment(self._socket.receive(), _KEPT_BYTES)
            self._kept_by_peer.release_descriptor()
        if self._kept_by_peer is None:
            raise EOFError("no shared memory was kept")
        return ReceivedKeptSegment(self._kept_by_peer.memory, table)

    def close(self) -> None:
        """The peer is gone: nothing more will come, nor be taken."""
        for stream in self._streams:
            stream.hang_up()
        self._close()

    def forget(self) -> None:
        """In a fork of this process: close our copies."""
        for stream in self._streams:
            stream.forget()
        self._close()

    def _close(self) -> None:
        self._socket.close()
        for segment in (self._kept, self._kept_by_peer):
            if segment is not None:
                segment.close()


class ReceivedSegment:
    """A payload in shared memory, to be read once.

    :param table: tells of the sections
    """

    kept = False

    def __init__(self, segment: Segment, table: Buffer | list[Buffer]) -> None:
        self._segment = segment
        self._table = table

    def load(self, serializer: Serializer | None) -> Any:
        """Unpickle the payload.

        :raises Exception: whatever the pickle's own constructors raise
        """
        with contextlib.closing(self._segment):
            pickled, *others = self._readers()
            buffers = [read_fresh(*other) for other in others]
            return load_from(*pickled, buffers, serializer)

    def sections(self) -> list[Section]:
        """Copy the sections of the payload."""
        with contextlib.closing(self._segment):
            return [[read_fresh(*reader)] for reader in self._readers()]

    def _readers(self) -> list[tuple[SegmentReader, int]]:
        """Return what each section can be read from, and how large it is."""
        lengths, _ = lengths_in(self._table)
        return [
            (SegmentReader(self._segment, offset, length), length)
            for offset, length in zip(offsets_of(lengths), lengths, strict=False)
        ]


class ReceivedKeptSegment:
    """A payload in shared memory that the peer will use again, to be read before it does.

    :param table: tells of the sections
    """

    kept = True

    def __init__(self, memory: memoryview, table: Buffer | list[Buffer]) -> None:
        self._memory = memory
        self._table = table

    def load(self, serializer: Serializer | None) -> Any:
        """Unpickle the payload.

        :raises Exception: whatever the pickle's own constructors raise
        """
        pickled, *others = self._views()
        return load_at_once(pickled, list(map(bytearray, others)), serializer)

    def sections(self) -> list[Section]:
        """Copy the sections of the payload."""
        return [[bytes(view)] for view in self._views()]

    def _views(self) -> list[memoryview]:
        lengths, _ = lengths_in(self._table)
        return [
            self._memory[offset : offset + length]
            for offset, length in zip(offsets_of(lengths), lengths, strict=False)
        ]


ReceivedPayload = ReceivedSegment | ReceivedKeptSegment | ReceivedStream
