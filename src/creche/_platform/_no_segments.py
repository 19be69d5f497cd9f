"""Where no anonymous shared memory can be sent to another process: payloads go through the wire."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from .._wire._framing import Buffer


class Segment:
    """There is none here."""

    descriptor = -1

    def __init__(self, descriptor: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class KeptSegment:
    """There is none here."""

    memory: memoryview

    def __init__(self, descriptor: int, size: int) -> None:
        raise NotImplementedError

    def fileno(self) -> int:
        raise NotImplementedError

    def release_descriptor(self) -> None:
        raise NotImplementedError

    def write(self, sections: Sequence[Sequence[Buffer]], offsets: Sequence[int]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class SegmentReader:
    """There is none here."""

    def __init__(self, segment: Segment, offset: int, size: int) -> None:
        raise NotImplementedError

    def readinto(self, target: memoryview) -> int:
        raise NotImplementedError


class StreamWriter:
    """There is none here."""

    def fileno(self) -> int:
        raise NotImplementedError

    def write(self) -> bool:
        raise NotImplementedError

    def hang_up(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def forget(self) -> None:
        raise NotImplementedError


class StreamReader:
    """There is none here."""

    received = 0
    at_end = False

    def reading(self) -> contextlib.AbstractContextManager[object]:
        raise NotImplementedError

    def readinto(self, target: memoryview) -> int:
        raise NotImplementedError

    def hang_up(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def forget(self) -> None:
        raise NotImplementedError


class SegmentSocket:
    """There is none here."""

    def send(self, descriptor: int) -> None:
        raise NotImplementedError

    def receive(self) -> int:
        raise NotImplementedError

    def send_all(self, descriptors: Sequence[int]) -> None:
        raise NotImplementedError

    def receive_all(self) -> list[int]:
        raise NotImplementedError

    def open_stream(self, pieces: Sequence[Buffer], *, patient: bool) -> StreamWriter:
        raise NotImplementedError

    def receive_stream(self, on_stall: Callable[[], object] | None) -> StreamReader:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def segment_sockets() -> tuple[SegmentSocket, SegmentSocket] | None:
    """Tell that there is no shared memory here."""
    return None


def keep_segment(size: int) -> KeptSegment:
    raise NotImplementedError


def write_segment(sections: Sequence[Sequence[Buffer]], offsets: Sequence[int]) -> Segment:
    raise NotImplementedError


def fresh_memory(size: int) -> memoryview:
    raise NotImplementedError
