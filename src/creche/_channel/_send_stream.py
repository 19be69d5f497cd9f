"""The end of a channel that sends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
from anyio.abc import ObjectSendStream

from .._durations import check_timeout
from .._in_thread import in_thread
from .._platform import Segment
from .._runtime import picklers
from .._wire._handing_over import no_fork_meanwhile
from .._wire._payloads import TooHeavyError
from ._end import CHECKPOINT_SECONDS, ChannelEnd, EndState, check_not_in_loop
from ._items import LargeItem, dump_item, dump_small, inline_packet, large_item

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

_clock = time.perf_counter


class ChannelSendStream(ChannelEnd, ObjectSendStream[T_contra]):
    """The end of a channel that sends; made by :class:`create_channel`.

    Any number of tasks and threads may use it. It has an async face (:meth:`send`, ``async with``)
    and a sync one for code without an event loop (:meth:`send_sync`, ``with``).
    """

    def __init__(self, transport: Any) -> None:
        super().__init__(transport)
        self._used_in_thread = False
        self._put: Callable[[bytes], bool] = transport.send

    async def send(self, item: T_contra) -> None:
        """Send an item, which one of the receiving ends will get.

        Waits as long as the buffer is full. Cancellation while it waits leaves nothing behind: the
        item is not sent.

        :param item: anything that can be pickled
        :raises SerializationError: if it cannot be pickled; nothing is sent, and the channel lives
            on
        :raises anyio.BrokenResourceError: if no receiving end is left, in no process
        :raises anyio.ClosedResourceError: if this end is closed, or was handed over
        :raises OSError: if no descriptor, or no memory, is left for a large item; nothing is sent
        """
        if _clock() >= self._checkpoint_at:
            await self._checkpoint()
        packet = dump_small(item)
        if packet is None:
            await self._send_other(item)
            return
        try:
            sent = self._put(packet)
        except (ValueError, BrokenPipeError) as error:
            raise self._error(error) from None
        if not sent:
            await self._send_when_room(packet, None)

    def send_nowait(self, item: T_contra) -> None:
        """Send an item at once.

        An item of many megabytes holds up the event loop for the time that copying it takes.

        :raises anyio.WouldBlock: if the buffer is full
        :raises Exception: all that :meth:`send` raises
        """
        packet, segment = self._prepare(item)
        if not self._try_now(packet, segment):
            raise anyio.WouldBlock

    def send_sync(self, item: T_contra, timeout: float | None = None) -> None:
        """Send an item from code without an event loop; the thread waits while the buffer is full.

        When its process is asked to stop, a wait in the main thread is broken off, with nothing
        sent.

        :param timeout: seconds to wait at most
        :raises TimeoutError: if that was not enough; nothing is sent
        :raises ProcessStateError: if the calling thread runs an event loop, which it would hold up
        :raises Exception: all that :meth:`send` raises
        """
        if not self._used_in_thread:
            self._check_not_in_loop()
        packet, segment = dump_small(item), None
        if packet is None:
            packet, segment = self._prepare(item)
        if not self._try(packet, segment):
            self._wait_and_send(packet, segment, timeout)

    def clone(self) -> ChannelSendStream[T_contra]:
        """Return another sending end of the same channel.

        Each is closed, or handed over, on its own: the receiving ends see the end of the channel
        when the last one is gone.

        :raises anyio.ClosedResourceError: if this end is closed, or was handed over
        :raises OSError: if there are no descriptors left, or the channel has 512 sending ends
        """
        with no_fork_meanwhile():
            return ChannelSendStream(self._clone_transport())

    # --- inner workings ---------------------------------------------------------------------------

    def _wait_and_send(self, packet: bytes, segment: Segment | None, timeout: float | None) -> None:
        self._check_not_in_loop()
        seconds = check_timeout(timeout)
        try:
            sent = self._transport.send_blocking(self._open_transport, packet, segment, seconds)
        except (ValueError, BrokenPipeError) as error:
            raise self._error(error) from None
        if not sent:
            raise TimeoutError(f"the channel's buffer was full for {seconds:g} seconds")

    def _check_not_in_loop(self) -> None:
        check_not_in_loop("send_sync", "send")
        self._used_in_thread = True

    def _try(self, packet: bytes, segment: Segment | None = None) -> bool:
        if segment is not None:
            return self._try_now(packet, segment)
        try:
            return self._put(packet)
        except (ValueError, BrokenPipeError) as error:
            raise self._error(error) from None

    def _try_now(self, packet: bytes, segment: Segment | None) -> bool:
        try:
            return self._open_transport().send_now(packet, segment)  # type: ignore[no-any-return]
        except (ValueError, BrokenPipeError) as error:
            raise self._error(error) from None

    def _error(self, error: ValueError | BrokenPipeError) -> Exception:
        if isinstance(error, ValueError):
            return self._closed_error()
        return anyio.BrokenResourceError("all ends that receive from this channel are closed")

    def _update(self) -> None:
        is_open = self._state is EndState.OPEN
        self._put = self._transport.send if is_open else self._raise_closed

    def _prepare(self, item: T_contra) -> tuple[bytes, Segment | None]:
        """Make the packet of an item, and its segment if it needs one, at once."""
        packet = dump_small(item)
        if packet is not None:
            return packet, None
        self._open_transport()
        packet, large = self._lay_out(item, light=False)
        return packet, None if large is None else large.write()

    async def _send_other(self, item: T_contra) -> None:
        """Send an item that may be large, or take long to pickle."""
        self._open_transport()
        try:
            packet, large = self._lay_out(item, light=True)
        except TooHeavyError:
            packet, large = await self._apart(lambda: self._lay_out(item, light=False))
        if large is None:
            segment = None
        elif large.at_once:
            segment = large.write()
        else:
            segment = await self._apart(large.write)
        if not self._try(packet, segment):
            await self._send_when_room(packet, segment)

    def _lay_out(self, item: T_contra, *, light: bool) -> tuple[bytes, LargeItem | None]:
        payload = dump_item(item, light=light)
        transport = self._open_transport()
        packet = inline_packet(payload, transport.packet_bytes, light=light)
        if packet is not None and transport.fits(len(packet)):
            return packet, None
        large = large_item(payload)
        return large.header, large

    async def _apart(self, work: Callable[[], T]) -> T:
        result = await in_thread(picklers, work)
        self._checkpoint_at = _clock() + CHECKPOINT_SECONDS
        return result

    async def _send_when_room(self, packet: bytes, segment: Segment | None) -> None:
        sent = False
        while not sent:
            try:
                sent = await self._transport.send_later(self._open_transport, packet, segment)
            except (ValueError, BrokenPipeError) as error:
                raise self._error(error) from None
            self._checkpoint_at = _clock() + CHECKPOINT_SECONDS
