"""Both directions at once."""

from __future__ import annotations

from typing import Any, TypeVar

import anyio.lowlevel
from anyio.abc import ObjectStream

from .._wire._handing_over import Lent, Movable
from ._end import ClosedByWith
from ._receive_stream import ChannelReceiveStream
from ._send_stream import ChannelSendStream

T_Item = TypeVar("T_Item")


class ChannelStream(ClosedByWith, Movable, ObjectStream[T_Item]):
    """An end of a duplex channel; made by :class:`create_duplex_channel`.

    It consists of a :attr:`send_stream` and a :attr:`receive_stream`, whose methods it has, and is
    handed over and cloned as a whole.
    """

    def __init__(
        self, send_stream: ChannelSendStream[T_Item], receive_stream: ChannelReceiveStream[T_Item]
    ) -> None:
        self.send_stream = send_stream
        """What sends to the other end."""
        self.receive_stream = receive_stream
        """What receives from the other end."""

    async def send(self, item: T_Item) -> None:
        """Send an item to the other end: see :meth:`ChannelSendStream.send`."""
        await self.send_stream.send(item)

    def send_nowait(self, item: T_Item) -> None:
        """Send an item at once: see :meth:`ChannelSendStream.send_nowait`."""
        self.send_stream.send_nowait(item)

    def send_sync(self, item: T_Item, timeout: float | None = None) -> None:
        """Send an item in code without an event loop: see :meth:`ChannelSendStream.send_sync`."""
        self.send_stream.send_sync(item, timeout)

    async def send_eof(self) -> None:
        """Close the :attr:`send_stream`: the other end sees the end when it has received all."""
        await self.send_stream.aclose()

    async def receive(self) -> T_Item:
        """Return the next item from the other end: see :meth:`ChannelReceiveStream.receive`."""
        return await self.receive_stream.receive()

    def receive_nowait(self) -> T_Item:
        """Return the next item, if there is one: see
        :meth:`ChannelReceiveStream.receive_nowait`."""
        return self.receive_stream.receive_nowait()

    def receive_sync(self, timeout: float | None = None) -> T_Item:
        """Return the next item in code without an event loop: see
        :meth:`ChannelReceiveStream.receive_sync`."""
        return self.receive_stream.receive_sync(timeout)

    def clone(self) -> ChannelStream[T_Item]:
        """Return another end of the same kind, which shares what comes from the other one.

        :raises Exception: all that :meth:`ChannelSendStream.clone` raises
        """
        send_stream = self.send_stream.clone()
        try:
            return ChannelStream(send_stream, self.receive_stream.clone())
        except BaseException:
            send_stream.close()
            raise

    def close(self) -> None:
        """Close both directions of this end."""
        self.send_stream.close()
        self.receive_stream.close()

    async def aclose(self) -> None:
        """Close both directions of this end. A checkpoint."""
        self.close()
        await anyio.lowlevel.checkpoint()

    def claim(self) -> None:
        self.send_stream.claim()
        try:
            self.receive_stream.claim()
        except BaseException:
            self.send_stream.unclaim()
            raise

    def unclaim(self) -> None:
        self.send_stream.unclaim()
        self.receive_stream.unclaim()

    def lend(self) -> Lent:
        return _LentStream(self.send_stream.lend(), self.receive_stream.lend())

    def release(self) -> None:
        self.send_stream.release()
        self.receive_stream.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return ChannelStream, (self.send_stream, self.receive_stream)

    def __iter__(self) -> ChannelStream[T_Item]:
        return self

    def __next__(self) -> T_Item:
        return next(self.receive_stream)


class _LentStream(Lent):
    """An end that many processes get a clone of."""

    def __init__(self, *lent: Lent) -> None:
        self._lent = lent

    def __reduce__(self) -> tuple[Any, ...]:
        return ChannelStream, self._lent

    def close(self) -> None:
        for lent in self._lent:
            lent.close()
