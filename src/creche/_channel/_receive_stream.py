"""The end of a channel that receives."""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
from anyio import get_cancelled_exc_class
from anyio.abc import ObjectReceiveStream

from .._durations import check_timeout
from .._in_thread import ThreadJob
from .._runtime import picklers
from .._wire._handing_over import no_fork_meanwhile
from ._end import CHECKPOINT_SECONDS, ChannelEnd, EndState, check_not_in_loop
from ._items import LargePacket, ReceivedItem, load_other, load_packet
from ._transports import Received

T_co = TypeVar("T_co", covariant=True)

Packet = Received | ThreadJob

_Item = bytes | ReceivedItem | LargePacket | ThreadJob

_clock = time.perf_counter
_loads = pickle.loads


class _Unclaimed(Exception):
    """There is an item for one of those who wait, which the transport does not know of."""


class ChannelReceiveStream(ChannelEnd, ObjectReceiveStream[T_co]):
    """The end of a channel that receives; made by :class:`create_channel`.

    Any number of tasks and threads may use it. It has an async face (:meth:`receive`, ``async
    for``, ``async with``) and a sync one for code without an event loop (:meth:`receive_sync`,
    ``for``, ``with``).
    """

    def __init__(self, transport: Any) -> None:
        super().__init__(transport)
        # Items that were received, and are being unpickled, for tasks that were cancelled.
        self._unclaimed: deque[ThreadJob] = deque()
        self._used_in_thread = False
        self._take: Callable[[], Packet] = transport.receive

    async def receive(self) -> T_co:
        """Return the next item. Each item goes to one receiving end.

        Waits as long as there is none. Cancellation never loses an item: what one that is cancelled
        has not returned stays in the channel. (A large item that is being unpickled just then is
        returned nevertheless; or, if asyncio's own cancellation comes, it stays with this end, for
        another call, until the end is closed or handed over.)

        :raises anyio.EndOfStream: if there is none, and no sending end is left, in no process
        :raises SerializationError: if the item cannot be unpickled; the next one may be
        :raises anyio.ClosedResourceError: if this end is closed, or was handed over
        :raises OSError: if no descriptor is left for a large item, which is gone then
        """
        if _clock() >= self._checkpoint_at:
            await self._checkpoint()
        try:
            packet = self._take()
        except ValueError:
            raise self._closed_error() from None
        if packet.__class__ is bytes and packet:
            try:
                return _loads(packet)  # type: ignore[no-any-return]
            except Exception as error:
                return load_other(packet, error)  # type: ignore[no-any-return]
        return await self._receive_other(packet)  # type: ignore[no-any-return]

    async def __anext__(self) -> T_co:
        # All of receive() again: with small items, a coroutine more takes its time.
        if _clock() >= self._checkpoint_at:
            await self._checkpoint()
        try:
            packet = self._take()
        except ValueError:
            raise self._closed_error() from None
        if packet.__class__ is bytes and packet:
            try:
                return _loads(packet)  # type: ignore[no-any-return]
            except Exception as error:
                return load_other(packet, error)  # type: ignore[no-any-return]
        try:
            return await self._receive_other(packet)  # type: ignore[no-any-return]
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    def receive_nowait(self) -> T_co:
        """Return the next item, if there is one.

        An item of many megabytes holds up the event loop for the time that copying it takes.

        :raises anyio.WouldBlock: if there is none just now
        :raises Exception: all that :meth:`receive` raises
        """
        packet = self._try()
        if packet is None:
            try:
                packet = self._open_transport().receive_now()
            except ValueError:
                raise self._closed_error() from None
        received = self._received(packet)
        if received is None:
            raise anyio.WouldBlock
        return self._load(received)  # type: ignore[no-any-return]

    def receive_sync(self, timeout: float | None = None) -> T_co:
        """Return the next item, in code without an event loop; the thread waits for it.

        When its process is asked to stop, a wait in the main thread is broken off, with nothing
        received.

        :param timeout: seconds to wait at most
        :raises TimeoutError: if that was not enough
        :raises ProcessStateError: if the calling thread runs an event loop, which it would hold up
        :raises Exception: all that :meth:`receive` raises
        """
        if not self._used_in_thread:
            self._check_not_in_loop()
        try:
            packet = self._take()
        except ValueError:
            raise self._closed_error() from None
        if packet.__class__ is bytes and packet:
            try:
                return _loads(packet)  # type: ignore[no-any-return]
            except Exception as error:
                return load_other(packet, error)  # type: ignore[no-any-return]
        return self._receive_other_sync(packet, timeout)  # type: ignore[no-any-return]

    def clone(self) -> ChannelReceiveStream[T_co]:
        """Return another receiving end of the same channel; each item goes to one of them.

        Each is closed, or handed over, on its own: the sending ends find the channel broken when
        the last one is gone.

        :raises anyio.ClosedResourceError: if this end is closed, or was handed over
        :raises OSError: if there are no descriptors left, or the channel has 512 receiving ends
        """
        with no_fork_meanwhile():
            return ChannelReceiveStream(self._clone_transport())

    def __iter__(self) -> ChannelReceiveStream[T_co]:
        return self

    def __next__(self) -> T_co:
        try:
            return self.receive_sync()
        except anyio.EndOfStream:
            raise StopIteration from None

    # --- inner workings ---------------------------------------------------------------------------

    async def _receive_other(self, packet: Packet) -> Any:
        while (received := self._received(packet)) is None:
            try:
                packet = await self._transport.receive_later(self._check_waiting)
            except ValueError:
                raise self._closed_error() from None
            except _Unclaimed:
                packet = None
            self._checkpoint_at = _clock() + CHECKPOINT_SECONDS
            if packet is None:
                packet = self._try()
        return await self._load_apart(received)

    def _receive_other_sync(self, packet: Packet, timeout: float | None) -> Any:
        seconds = check_timeout(timeout)
        if packet is None:
            self._check_not_in_loop()
            packet = self._wait_in_thread(seconds)
        received = self._received(packet)
        if received is None:
            raise TimeoutError(f"no item came in {seconds:g} seconds")
        return self._load(received)

    def _wait_in_thread(self, seconds: float | None) -> Packet:
        give_up = None if seconds is None else _clock() + seconds
        while True:
            try:
                packet: Packet = self._transport.receive_blocking(self._check_waiting, seconds)
                return packet
            except ValueError:
                raise self._closed_error() from None
            except _Unclaimed:
                packet = self._try()
            if packet is not None:
                return packet
            if give_up is not None:
                seconds = max(0.0, give_up - _clock())

    def _check_waiting(self) -> None:
        """Check whether there is something to wait for."""
        self._open_transport()
        if self._unclaimed:
            raise _Unclaimed

    def _check_not_in_loop(self) -> None:
        check_not_in_loop("receive_sync", "receive")
        self._used_in_thread = True

    def _try(self) -> Packet:
        try:
            return self._take()
        except ValueError:
            raise self._closed_error() from None

    def _received(self, packet: Packet) -> _Item | None:
        """Say what was received; ``None`` if there is nothing just now."""
        if isinstance(packet, tuple):
            return ReceivedItem(*packet)
        if packet == b"":
            raise anyio.EndOfStream
        return packet

    def _take_unclaimed(self) -> Packet:
        try:
            job = self._unclaimed.popleft()
        except IndexError:  # another thread was faster
            self._update()
            return self._take()
        self._update()
        return job

    def _update(self) -> None:
        # Several threads may do so at once: whoever writes last looks again after that, too.
        while self._take != (take := self._way_to_take()):
            self._take = take

    def _way_to_take(self) -> Callable[[], Packet]:
        if self._state is not EndState.OPEN:
            return self._raise_closed
        if self._unclaimed:
            return self._take_unclaimed
        return self._transport.receive  # type: ignore[no-any-return]

    def _load(self, packet: _Item) -> Any:
        if isinstance(packet, bytes):
            return load_packet(packet)
        if isinstance(packet, ThreadJob):
            return packet.result_in_thread()
        return packet.load()

    async def _load_apart(self, packet: _Item) -> Any:
        """Unpickle an item that may take long, in a thread."""
        if isinstance(packet, ReceivedItem | LargePacket) and not packet.at_once:
            packet = ThreadJob(picklers, packet.load)
        if not isinstance(packet, ThreadJob):
            return self._load(packet)
        result: Any = None
        with anyio.CancelScope(shield=True):
            try:
                result = await packet.result()
            except get_cancelled_exc_class():
                # In spite of the shield, by asyncio's own means: somebody else gets it.
                self._unclaimed.append(packet)
                self._update()
                self._transport.wake()
                raise
        self._checkpoint_at = _clock() + CHECKPOINT_SECONDS
        return result
