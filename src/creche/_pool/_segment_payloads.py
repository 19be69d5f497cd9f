"""Payloads that lie in shared memory."""

from __future__ import annotations

import contextlib
from typing import Any

from .._platform import Segment, SegmentReader, buffer_in_segment
from .._wire._framing import Buffer, Section
from .._wire._messages import lengths_in, offsets_of
from .._wire._payloads import Serializer, load_from


def load_segment(
    segment: Segment, table: Buffer | list[Buffer], serializer: Serializer | None
) -> Any:
    """Unpickle a payload in shared memory."""
    with contextlib.closing(segment):
        lengths, _ = lengths_in(table)
        places = list(zip(offsets_of(lengths), lengths, strict=False))
        buffers = [buffer_in_segment(segment, *place) for place in places[1:]]
        return load_from(SegmentReader(segment, *places[0]), lengths[0], buffers, serializer)


def load_sections(segment: Segment, table: Buffer | list[Buffer]) -> list[Section]:
    """Copy the sections of a payload in shared memory."""
    with contextlib.closing(segment):
        lengths, _ = lengths_in(table)
        sections: list[Section] = []
        for offset, length in zip(offsets_of(lengths), lengths, strict=False):
            data = bytearray(length)
            SegmentReader(segment, offset, length).readinto(memoryview(data))
            sections.append([data])
        return sections
