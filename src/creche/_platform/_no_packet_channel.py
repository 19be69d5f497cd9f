"""Where no socket keeps packets whole, or tells of room: channels are made of something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._no_segments import Segment

PACKET_BYTES = 0


class Watch:
    """There is none here."""

    def fileno(self) -> int:
        raise NotImplementedError

    def clear(self) -> None:
        raise NotImplementedError

    def wait(self, timeout: float | None) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _PacketEnd:
    max_buffer_size = 0
    is_open = False

    @classmethod
    def rebuild(cls, sock: int, page: int, row: int, max_buffer_size: int) -> Any:
        raise NotImplementedError

    def pack_up(self, handle: Callable[[int], object]) -> tuple[Any, ...]:
        raise NotImplementedError

    def clone(self) -> Any:
        raise NotImplementedError

    def in_flight(self) -> int:
        raise NotImplementedError

    def open_ends(self) -> tuple[int, int]:
        raise NotImplementedError

    def open_watch(self) -> Watch:
        raise NotImplementedError

    def close_watch(self, watch: Watch) -> None:
        raise NotImplementedError

    def wake(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def forget(self) -> None:
        raise NotImplementedError


class PacketSender(_PacketEnd):
    """There is none here."""

    def send(self, packet: bytes) -> bool:
        raise NotImplementedError

    def send_segment(self, header: bytes, segment: Segment) -> bool:
        raise NotImplementedError

    def fits(self, size: int) -> bool:
        raise NotImplementedError


class PacketReceiver(_PacketEnd):
    """There is none here."""

    def receive(self) -> bytes | tuple[bytes, Segment] | None:
        raise NotImplementedError


def packet_channel(max_buffer_size: int) -> tuple[PacketSender, PacketReceiver]:
    raise NotImplementedError
