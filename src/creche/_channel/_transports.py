"""What carries the items of a channel, seen from one of its ends.

Items are packets, and where the system has shared memory without a name, large ones lie in segments
of it. What returns at once may be called in event loops.

Where ``check`` is a parameter, it raises when the end is no longer to be used, or nobody need wait
for it, and :meth:`wake` has it called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from .._platform import Segment
from ._items import LargePacket

Received = bytes | tuple[bytes, Segment] | LargePacket | None
"""What there is to be received: an item, the end (``b""``), or nothing just now."""


class Transport(Protocol):
    """What is the same for both kinds of ends.

    All methods but those that end something raise ``ValueError`` if the end is closed.
    """

    max_buffer_size: int

    def statistics(self) -> tuple[int, int, int]:
        """How many items are in the buffer, and how many ends send, and receive."""
        ...

    def clone(self) -> Any:
        """Return another end of the same kind.

        :raises OSError: if there are no descriptors left, or the channel has too many ends
        """
        ...

    def pack_up(self, handle: Callable[[int], Any]) -> tuple[Any, ...]:
        """Return a function and its arguments, which make this end in another process.

        :param handle: makes what travels in place of a descriptor
        """
        ...

    def hand_over(self) -> None:
        """What was packed up goes to another process. :meth:`close` takes back what is not claimed
        there."""
        ...

    def started(self) -> None:
        """The process that it goes to exists, and has its copies of what was packed up."""
        ...

    def wake(self) -> None:
        """Have those who wait check whether the end is to be used."""
        ...

    def end_waits(self) -> None:
        """Nobody waits for the end any more; have those who do check it."""
        ...

    def close(self) -> None:
        """Close the end."""
        ...

    def close_soon(self) -> None:
        """Close the end, in the middle of anything that this thread is at."""
        ...

    def forget(self) -> None:
        """In a fork of this process: close our copies."""
        ...

    def leave(self) -> None:
        """In a fork of this process that what was packed up goes to: our copies belong to the end
        that is made of it there."""
        ...

    def forget_waits(self) -> None:
        """In a fork of this process: close our copies of what belongs to those who wait."""
        ...


class SendTransport(Transport, Protocol):
    """An end that sends.

    Where nobody is left to receive it raises ``BrokenPipeError``, or anyio's error.
    """

    packet_bytes: float
    """What a packet can hold."""

    @property
    def send(self) -> Callable[[bytes], bool]:
        """Sends a packet if that can be done at once; returns whether it was."""
        ...

    @property
    def fits(self) -> Callable[[int], bool]:
        """Says whether a packet of some size need not lie in a segment."""
        ...

    def send_now(self, packet: bytes, segment: Any) -> bool:
        """Send an item if there is room; return whether there was."""
        ...

    async def send_later(self, check: Callable[[], object], packet: bytes, segment: Any) -> bool:
        """Wait for room, and send an item; return whether it was sent, or is to be tried again."""
        ...

    def send_blocking(
        self, check: Callable[[], object], packet: bytes, segment: Any, timeout: float | None
    ) -> bool:
        """Do so in a thread; return whether there was room in so many seconds."""
        ...


class ReceiveTransport(Transport, Protocol):
    """An end that receives."""

    @property
    def receive(self) -> Callable[[], Received]:
        """Receives what can be received at once."""
        ...

    def receive_now(self) -> Received:
        """Receive what there is just now."""
        ...

    async def receive_later(self, check: Callable[[], object]) -> Received:
        """Wait for an item; nothing where it is to be tried again."""
        ...

    def receive_blocking(self, check: Callable[[], object], timeout: float | None) -> Received:
        """Wait for an item in a thread; nothing where there was none in so many seconds."""
        ...
