"""Ends of channels whose items are packets of a socket: see :mod:`creche._platform`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._loops import EventLoop, current_loop
from .._platform import PACKET_BYTES, PacketReceiver, PacketSender, Segment, packet_channel
from ._transports import Received
from ._waiting import LoopWait, ThreadWait


class _PacketTransport:
    """What is the same for both kinds of ends.

    :param end: the end of the socket
    """

    def __init__(self, end: Any) -> None:
        self._end = end
        self.max_buffer_size: int = end.max_buffer_size
        self._loop_waits: dict[EventLoop, LoopWait] = {}
        # Not on demand: several threads may be the first.
        self._thread_wait = ThreadWait(end)

    def statistics(self) -> tuple[int, int, int]:
        senders, receivers = self._end.open_ends()
        return self._end.in_flight(), senders, receivers

    def clone(self) -> Any:
        return type(self)(self._end.clone())

    def pack_up(self, handle: Callable[[int], Any]) -> tuple[Any, ...]:
        return _rebuild, type(self), type(self._end), self._end.pack_up(handle)

    def hand_over(self) -> None:
        """Whoever gets the descriptors has the end."""

    def started(self) -> None:
        self.close()

    def wake(self) -> None:
        self._end.wake()

    def end_waits(self) -> None:
        self._end.wake()
        loop_waits, self._loop_waits = self._loop_waits, {}
        for loop_wait in loop_waits.values():
            loop_wait.end_from_anywhere()
        self._thread_wait.end()

    def close(self) -> None:
        self._end.close()

    close_soon = close

    def forget(self) -> None:
        self._end.forget()

    def leave(self) -> None:
        self._end.leave()

    def forget_waits(self) -> None:
        for wait in self._loop_waits.values():
            wait.forget()
        self._thread_wait.forget()

    async def _wait_in_loop(self, check: Callable[[], object]) -> None:
        """Wait until it may be worth while to try again."""
        loop = current_loop()
        wait = self._loop_waits.get(loop)
        if wait is None:
            waits = self._loop_waits
            for other in list(waits.values()):
                # Of a loop that has ended, perhaps; and other threads may be faster.
                if other.unused and waits.pop(other.loop, None) is not None:
                    other.end_from_anywhere()
            wait = self._loop_waits[loop] = LoopWait(loop, self._end)
            check()  # a thread that woke us before that has not been heard
        await wait.wait()

    def _wait_in_thread(self, attempt: Callable[[], Any], timeout: float | None) -> Any:
        """Try until something comes of it; ``None`` when the time is over."""
        return self._thread_wait.wait(attempt, timeout)


class PacketSending(_PacketTransport):
    """An end that sends."""

    packet_bytes: float = PACKET_BYTES

    def __init__(self, end: PacketSender) -> None:
        super().__init__(end)
        self.send: Callable[[bytes], bool] = end.send
        self.fits: Callable[[int], bool] = end.fits

    def send_now(self, packet: bytes, segment: Segment | None) -> bool:
        if segment is None:
            return self.send(packet)
        return self._end.send_segment(packet, segment)  # type: ignore[no-any-return]

    async def send_later(
        self, check: Callable[[], object], packet: bytes, segment: Segment | None
    ) -> bool:
        check()
        await self._wait_in_loop(check)
        check()
        return self.send_now(packet, segment)

    def send_blocking(
        self,
        check: Callable[[], object],
        packet: bytes,
        segment: Segment | None,
        timeout: float | None,
    ) -> bool:
        def attempt() -> bool | None:
            check()
            return self.send_now(packet, segment) or None

        return self._wait_in_thread(attempt, timeout) is not None


class PacketReceiving(_PacketTransport):
    """An end that receives."""

    def __init__(self, end: PacketReceiver) -> None:
        super().__init__(end)
        self.receive: Callable[[], Received] = end.receive
        self.receive_now = self.receive

    async def receive_later(self, check: Callable[[], object]) -> Received:
        check()
        await self._wait_in_loop(check)
        return None

    def receive_blocking(self, check: Callable[[], object], timeout: float | None) -> Received:
        def attempt() -> Received:
            check()
            return self.receive()

        return self._wait_in_thread(attempt, timeout)  # type: ignore[no-any-return]


def _rebuild(cls: Any, end_class: Any, packed: tuple[Any, ...]) -> Any:
    sock, page, *rest = packed
    return cls(end_class.rebuild(sock.detach(), page.detach(), *rest))


def packet_transports(max_buffer_size: int) -> tuple[PacketSending, PacketReceiving]:
    """Make a channel; return its first two ends.

    :raises OSError: if there are no descriptors left
    """
    send, receive = packet_channel(max_buffer_size)
    return PacketSending(send), PacketReceiving(receive)
