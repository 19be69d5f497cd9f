"""Making channels."""

from __future__ import annotations

from typing import TypeVar

from .._platform import HAS_PACKET_SOCKETS
from .._wire._handing_over import no_fork_meanwhile
from ._duplex import ChannelStream
from ._hub_transport import hub_transports
from ._packet_transport import packet_transports
from ._receive_stream import ChannelReceiveStream
from ._send_stream import ChannelSendStream
from ._transports import ReceiveTransport, SendTransport

__all__ = ["create_channel", "create_duplex_channel"]

T_Item = TypeVar("T_Item")


def make_transports(max_buffer_size: int) -> tuple[SendTransport, ReceiveTransport]:
    """Make the first two ends of a channel, of what the system has."""
    if HAS_PACKET_SOCKETS:
        return packet_transports(max_buffer_size)
    return hub_transports(max_buffer_size)


class create_channel(tuple[ChannelSendStream[T_Item], ChannelReceiveStream[T_Item]]):
    """Make a channel between processes; return the end that sends, and the one that receives::

        send, receive = create_channel[bytes](10)

    Both are here at first. Passing one as an argument to any call of creche hands it over to the
    process that runs the call, and ``clone()`` makes more of them: for many producers, for many
    consumers, and for one that stays here. Each item goes to one consumer.

    Ends are closed by ``close()``, by leaving ``with`` or ``async with``, and with their process,
    however that ends. When the last sending end is gone, the receiving ones get what is left in the
    buffer, and then ``EndOfStream``; when the last receiving end is gone, sending raises
    ``BrokenResourceError``.

    :param max_buffer_size: how many items can be sent that nobody has received yet; at least one.
        Where the system does not allow sockets large buffers, a hundred items or so are the most
        that a channel can hold, whatever this says
    :raises ValueError: if that is no finite number of one or more items
    :raises OSError: if there are no descriptors left
    """

    def __new__(  # type: ignore[misc]
        cls, max_buffer_size: int = 64
    ) -> tuple[ChannelSendStream[T_Item], ChannelReceiveStream[T_Item]]:
        size = _check_size(max_buffer_size)
        with no_fork_meanwhile():
            send, receive = make_transports(size)
            return ChannelSendStream(send), ChannelReceiveStream(receive)


class create_duplex_channel(tuple[ChannelStream[T_Item], ChannelStream[T_Item]]):
    """Make a channel for each direction; return the two ends, for request and reply::

        here, there = create_duplex_channel[Request | Reply]()

    What is sent into one end comes out of the other. Each end is handed over to another process
    just as those of :class:`create_channel`.

    Two processes that both send into full channels, and receive nothing meanwhile, wait for each
    other for as long as that may be; either can be cancelled.

    :param max_buffer_size: how many items each direction can hold
    :raises Exception: all that :class:`create_channel` raises
    """

    def __new__(  # type: ignore[misc]
        cls, max_buffer_size: int = 64
    ) -> tuple[ChannelStream[T_Item], ChannelStream[T_Item]]:
        from_there, to_here = create_channel[T_Item](max_buffer_size)
        try:
            from_here, to_there = create_channel[T_Item](max_buffer_size)
        except BaseException:
            from_there.close()
            to_here.close()
            raise
        return ChannelStream(from_here, to_here), ChannelStream(from_there, to_there)


def _check_size(max_buffer_size: object) -> int:
    if isinstance(max_buffer_size, bool) or not isinstance(max_buffer_size, int):
        raise ValueError(
            f"max_buffer_size must be a whole number of items, not {max_buffer_size!r}: what is on"
            " its way between processes is in memory of the kernel, which is finite"
        )
    if max_buffer_size < 1:
        raise ValueError(
            f"max_buffer_size must be at least 1, not {max_buffer_size}: between processes an item"
            " is in the buffer until it is received, even if somebody waits for it"
        )
    return max_buffer_size
