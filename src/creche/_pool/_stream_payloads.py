"""Payloads that are received while they are sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._platform import SegmentReader, StreamReader, fresh_memory
from .._wire._framing import Buffer, Section
from .._wire._messages import lengths_in
from .._wire._payloads import Serializer, load_from


def pieces_for_stream(sections: Sequence[Section]) -> list[Buffer]:
    """Put a payload in the order in which it is needed: what a pickle refers to comes before it."""
    return [piece for section in (*sections[1:], sections[0]) for piece in section]


def read_fresh(reader: SegmentReader | StreamReader, size: int) -> memoryview:
    """Read so many bytes into memory of their own."""
    memory = fresh_memory(size)
    reader.readinto(memory)
    return memory


class ReceivedStream:
    """A payload that comes through a stream, to be read once, in one thread.

    :param table: tells of the sections
    """

    kept = False

    def __init__(self, reader: StreamReader, table: Buffer | list[Buffer]) -> None:
        self._reader = reader
        self._table = table
        self._size = 0

    @property
    def cut_off(self) -> bool:
        """Whether the stream ended before all of the payload had come."""
        return self._reader.at_end and self._reader.received < self._size

    def close(self) -> None:
        """Nobody wants the payload any more."""
        self._reader.close()

    def load(self, serializer: Serializer | None) -> Any:
        """Unpickle the payload as it comes.

        :raises Exception: whatever the pickle's own constructors raise
        """
        with self._reader.reading():
            size, buffers = self._read_buffers()
            return load_from(self._reader, size, buffers, serializer)

    def sections(self) -> list[Section]:
        """Receive the sections of the payload."""
        with self._reader.reading():
            size, buffers = self._read_buffers()
            sections: list[Section] = [[read_fresh(self._reader, size)]]
            sections.extend([buffer] for buffer in buffers)
            return sections

    def _read_buffers(self) -> tuple[int, list[memoryview]]:
        """Read what comes before the pickle; return how large that is, too."""
        lengths, _ = lengths_in(self._table)
        self._size = sum(lengths)
        return lengths[0], [read_fresh(self._reader, length) for length in lengths[1:]]
