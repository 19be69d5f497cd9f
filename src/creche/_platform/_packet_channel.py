"""A channel on Linux: one socket pair is the buffer, and each item is one packet.

``SOCK_SEQPACKET`` keeps packets whole and gives each to whoever receives first. All ends that send
have the one socket of the pair, all that receive the other. So the kernel hands out the items, says
when the last end of the other kind is gone (the end of the file, or ``EPIPE``), however that came
to pass, and has nothing that a killed process could leave in disorder.

:mod:`._channel_page` bounds the number of items. The order of counting makes that no death is in
anybody's way. An end counts what it *has* sent, and what it is *about* to receive: one that is
killed in between has counted one item too few into the buffer, or too many out of it, so one more
fits, and nobody waits for room that never comes.

An end that waits for room need not be told of it by those that receive. The kernel tells whoever
watches the sending socket of each packet that was taken out (as long as there is a lot of room for
bytes: a quarter full at most), and an edge-triggered watch, of which each waiting end has its own,
hears of each of these moments. What it then reads of the page was written before the packet was
taken out, by a system call, which makes it visible.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import sys
import termios
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

assert sys.platform == "linux" or not TYPE_CHECKING

from ._channel_page import ChannelPage
from ._segments import Segment

PACKET_BYTES = 64 * 1024
"""What an item's packet holds at most. What is larger goes into a segment, whose descriptor travels
with the packet."""

# Bytes that the sending socket is to hold, if the system allows it.
_BUFFER_BYTES = 4 * 1024 * 1024

# From <asm-generic/socket.h>: for those who may exceed net.core.wmem_max.
_SO_SNDBUFFORCE = 32

# Items of this size are small enough for any buffer: they are not asked whether they fit.
_SMALL_BYTES = 512

# A packet, and the kernel's bookkeeping of it.
_PACKET_OVERHEAD = 768

_SMALL_PACKET = _SMALL_BYTES + _PACKET_OVERHEAD

# Descriptors on their way count against a limit that all channels and pools of a user share.
_MAX_SEGMENTS = 64

_DESCRIPTOR = struct.Struct("@i")
_CUT_OFF = int(socket.MSG_CTRUNC)  # not as an enum, with which computing takes a microsecond
_ANCILLARY = socket.CMSG_SPACE(_DESCRIPTOR.size)


class Watch:
    """Tells when there may be items, or room for them; owned by whoever waits.

    :param end: the socket
    :param events: what to wait for
    """

    def __init__(self, end: socket.socket, events: int, wake: int) -> None:
        self._epoll = select.epoll(2)
        try:
            self._epoll.register(end, events)
            self._epoll.register(wake, select.EPOLLIN | select.EPOLLET)
        except BaseException:
            self._epoll.close()
            raise

    def fileno(self) -> int:
        """What becomes readable when there may be what is waited for."""
        return self._epoll.fileno()

    def clear(self) -> None:
        """Forget what has happened so far."""
        self._epoll.poll(0)

    def wait(self, timeout: float | None) -> None:
        """Block until there may be what is waited for, or the time is over, in seconds."""
        self._epoll.poll(timeout)

    def close(self) -> None:
        self._epoll.close()


class _PacketEnd:
    """What is the same for both kinds of ends. Any thread may use an end."""

    _sends: bool
    _events: int

    def __init__(self, sock: socket.socket, page: ChannelPage, max_buffer_size: int) -> None:
        self.max_buffer_size = max_buffer_size
        self._socket = sock
        self._page = page
        self._lock = threading.Lock()
        self._wake = -1  # wakes this end's own watches
        self._watches = 0
        self._open = True

    @classmethod
    def rebuild(cls, sock: int, page: int, row: int, max_buffer_size: int) -> Any:
        """Make an end of the descriptors that have come from another process."""
        for descriptor in (sock, page):
            os.set_inheritable(descriptor, False)
        return cls(_socket_of(sock), ChannelPage(page, row, sends=cls._sends), max_buffer_size)

    def pack_up(self, handle: Callable[[int], object]) -> tuple[Any, ...]:
        """Return what makes this end in another process, to which its descriptors go.

        :param handle: makes what travels in place of a descriptor
        """
        page = self._page
        return (
            handle(self._socket.fileno()),
            handle(page.descriptor),
            page.row,
            self.max_buffer_size,
        )

    def clone(self) -> Any:
        """Return another end of the same kind.

        :raises OSError: if there are no descriptors left, or the channel has too many ends
        """
        with self._lock:
            self._check_open()
            sock = self._socket.dup()
            try:
                page = self._page.add_end(sends=self._sends)
            except BaseException:
                sock.close()
                raise
        sock.setblocking(False)
        return type(self)(sock, page, self.max_buffer_size)

    @property
    def is_open(self) -> bool:
        return self._open

    def in_flight(self) -> int:
        """How many items are in the buffer."""
        with self._lock:
            self._check_open()
            return max(0, self._page.in_flight())

    def open_ends(self) -> tuple[int, int]:
        """How many ends there are that send, and that receive."""
        with self._lock:
            self._check_open()
            return self._page.open_ends()

    def open_watch(self) -> Watch:
        """Return a watch, to be given to :meth:`close_watch`.

        :raises ValueError: if the end is closed
        :raises OSError: if there are no descriptors left
        """
        with self._lock:
            self._check_open()
            if self._wake < 0:
                self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            watch = Watch(self._socket, self._events, self._wake)
            self._watches += 1
            return watch

    def close_watch(self, watch: Watch) -> None:
        watch.close()
        with self._lock:
            self._watches -= 1
            if not self._open and not self._watches:
                self._close_descriptors()

    def wake(self) -> None:
        """Have all watches tell that there may be something."""
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Close the end. Whoever waits is woken."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            if not self._watches:
                self._close_descriptors()
                return
            # Whoever watches closes what is left. The other side hears of it now.
            self._close_channel()
            os.eventfd_write(self._wake, 1)

    def forget(self) -> None:
        """In a fork of this process: close our copies of the descriptors."""
        self._lock = threading.Lock()  # a thread of the parent may have held it
        self._open = False
        self._close_descriptors()

    def leave(self) -> None:
        """In a fork of this process that it was handed to: another object owns our copies."""
        self._socket.detach()
        self._page.leave()
        self.forget()

    def _close_descriptors(self) -> None:
        self._close_channel()
        wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)

    def _close_channel(self) -> None:
        self._socket.close()
        self._page.close()

    def __del__(self) -> None:
        # Where a watch was left behind, of an event loop that was closed.
        wake = getattr(self, "_wake", -1)
        if wake >= 0:
            os.close(wake)

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError("the end is closed")


class PacketSender(_PacketEnd):
    """An end that sends."""

    _sends = True
    _events = select.EPOLLOUT | select.EPOLLET

    def __init__(self, sock: socket.socket, page: ChannelPage, max_buffer_size: int) -> None:
        super().__init__(sock, page, max_buffer_size)
        self._room = [0]  # items for which there is room for sure, as nobody else sends
        self._buffer_bytes = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        # More than that may be in the buffer when nobody tells of room: see fits().
        self._small_packets = self._buffer_bytes // 4 // _SMALL_PACKET
        self._padding = 0
        if max_buffer_size > _MAX_SEGMENTS:
            # So that the bytes allow of no more of them than that.
            self._padding = min(self._buffer_bytes // _MAX_SEGMENTS, PACKET_BYTES)
        self.send = self._make_send()
        """Send an item; return whether there was room for it.

        :raises BrokenPipeError: if nobody is left to receive it
        :raises ValueError: if the end is closed
        """

    def _make_send(self) -> Callable[[bytes], bool]:
        # A closure, as this is done for each small item, and looking up attributes takes time.
        lock, send, page = self._lock, self._socket.send, self._page
        cells, sent, alone, room = page.cells, page.cell, page.alone, self._room
        this = weakref.ref(self)

        def send_packet(packet: bytes) -> bool:
            with lock:
                # Cells that are released raise a ValueError: the end is closed.
                if cells[alone] and room[0] > 0:
                    try:
                        send(packet)
                    except OSError as error:
                        return _not_sent(error, page)
                    cells[sent] += 1
                    room[0] -= 1
                    return True
                end = this()
                assert end is not None
                return end._send_if_room(packet, -1)

        return send_packet

    def send_segment(self, header: bytes, segment: Segment) -> bool:
        """Send an item that lies in a segment, which stays open here; as :meth:`send`."""
        with self._lock:
            self._check_open()
            return self._send_if_room(header.ljust(self._padding, b"\0"), segment.descriptor)

    def fits(self, size: int) -> bool:
        """Whether a packet of that size leaves the buffer as empty as it should be.

        The kernel counts bytes, its bookkeeping included, and tells of room only where a quarter is
        used. Half of that is for packets that are not asked, and for those with segments.
        """
        if size <= _SMALL_BYTES:
            return True
        with self._lock:
            self._check_open()
            return self._used_bytes() + 2 * size <= self._buffer_bytes // 8

    def _send_if_room(self, packet: bytes, descriptor: int) -> bool:
        page = self._page
        if page.cells[page.alone] or page.check_alone():
            self._room[0] = self._room_for(len(packet))
            if self._room[0] > 0:
                return self._send_now(packet, descriptor)
        else:
            self._room[0] = 0
            locked = page.lock_sending()
            try:
                if self._room_for(len(packet)) > 0:
                    return self._send_now(packet, descriptor)
            finally:
                if locked:
                    page.unlock_sending()
        self._check_receivers()
        return False

    def _room_for(self, size: int) -> int:
        """How many packets there is room for: the first of that size, the others small."""
        in_flight = self._page.in_flight()
        room = self.max_buffer_size - in_flight
        if self.max_buffer_size <= self._small_packets // 2:
            return room
        if in_flight <= 0:
            return min(room, self._small_packets)
        left = self._buffer_bytes // 4 - self._used_bytes()
        if left < size + _PACKET_OVERHEAD:
            return 0
        return min(room, 1 + (left - size) // _SMALL_PACKET)

    def _used_bytes(self) -> int:
        """As the kernel counts, with its bookkeeping."""
        used = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4))
        return int(_DESCRIPTOR.unpack(used)[0])

    def _check_receivers(self) -> None:
        """Nothing is sent as there is no room: see whether anybody is left to make some."""
        try:
            if self._socket.recv(1):  # nothing ever comes this way, but the end
                return
        except BlockingIOError:
            return
        except ConnectionResetError:  # with items that nobody has received
            pass
        raise BrokenPipeError

    def _send_now(self, packet: bytes, descriptor: int) -> bool:
        try:
            if descriptor < 0:
                self._socket.send(packet)
            else:
                socket.send_fds(self._socket, [packet], [descriptor])
        except OSError as error:
            return _not_sent(error, self._page)
        self._page.cells[self._page.cell] += 1
        self._room[0] -= 1
        return True


def _not_sent(error: OSError, page: ChannelPage) -> bool:
    """Say whether an item can be sent later, or raise why not."""
    if error.errno in (errno.EPIPE, errno.ECONNRESET):
        raise BrokenPipeError from None
    if error.errno == errno.EAGAIN:
        return False  # it was full, and whoever has made room since has told so
    if error.errno in (errno.ENOBUFS, errno.ETOOMANYREFS) and page.in_flight() > 0:
        return False  # or else nobody would tell of room
    raise error


class PacketReceiver(_PacketEnd):
    """An end that receives."""

    _sends = False
    _events = select.EPOLLIN

    def __init__(self, sock: socket.socket, page: ChannelPage, max_buffer_size: int) -> None:
        super().__init__(sock, page, max_buffer_size)
        self.receive = self._make_receive()
        """Receive an item, with its segment if it has one; ``None`` if there is none just now.

        Nothing (``b""``) when there will be no more.

        :raises ValueError: if the end is closed
        :raises OSError: if an item's segment could not be received: there is no descriptor left
        """

    def _make_receive(self) -> Callable[[], bytes | tuple[bytes, Segment] | None]:
        # A closure, as this is done for each small item, and looking up attributes takes time.
        lock, receive = self._lock, self._socket.recvmsg
        cells, cell = self._page.cells, self._page.cell

        def receive_packet() -> bytes | tuple[bytes, Segment] | None:
            with lock:
                # Cells that are released raise a ValueError: the end is closed.
                count = cells[cell]
                cells[cell] = count + 1
                try:
                    packet, ancillary, flags, _ = receive(PACKET_BYTES, _ANCILLARY)
                except OSError as error:
                    cells[cell] = count
                    if error.errno == errno.EAGAIN:
                        return None
                    raise
                if not packet:
                    cells[cell] = count
            if ancillary or flags & _CUT_OFF:
                return packet, _segment_in(ancillary)
            return packet

        return receive_packet


def _segment_in(ancillary: list[tuple[int, int, bytes]]) -> Segment:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and data:
            segment = Segment(_DESCRIPTOR.unpack_from(data)[0])
            os.set_inheritable(segment.descriptor, False)
            return segment
    raise OSError(errno.EMFILE, "no descriptor was left for an item that came in shared memory")


def packet_channel(max_buffer_size: int) -> tuple[PacketSender, PacketReceiver]:
    """Make a channel.

    :raises OSError: if there are no descriptors left
    """
    with contextlib.ExitStack() as undo:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(ours.close)
        undo.callback(theirs.close)
        for sock in (ours, theirs):
            sock.setblocking(False)
        wanted = min(_BUFFER_BYTES, 4 * max_buffer_size * (PACKET_BYTES + _PACKET_OVERHEAD))
        try:
            ours.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, wanted)
        except OSError:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wanted)
        sends = ChannelPage.create()
        undo.callback(sends.close)
        receives = sends.add_end(sends=False)
        undo.pop_all()
    return (
        PacketSender(ours, sends, max_buffer_size),
        PacketReceiver(theirs, receives, max_buffer_size),
    )


def _socket_of(descriptor: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, descriptor)
    sock.setblocking(False)
    return sock
