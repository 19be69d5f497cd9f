"""Where no anonymous shared memory can be sent to another process: payloads go through the wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._wire._framing import Buffer


class Segment:
    """There is none here."""

    def close(self) -> None:
        raise NotImplementedError


class SegmentSocket:
    """There is none here."""

    def send(self, segment: Segment) -> None:
        raise NotImplementedError

    def receive(self) -> Segment:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def segment_sockets() -> tuple[SegmentSocket, SegmentSocket] | None:
    """Tell that there is no shared memory here."""
    return None


def write_segment(
    sections: Sequence[Sequence[Buffer]], offsets: Sequence[int], segment: Segment | None = None
) -> Segment:
    raise NotImplementedError


def buffer_in_segment(segment: Segment, offset: int, size: int, *, copy: bool) -> memoryview:
    raise NotImplementedError


def SegmentReader(segment: Segment, offset: int, size: int) -> Any:
    raise NotImplementedError
