"""What the application, its server and the children say to each other, over ``SOCK_SEQPACKET``.

A message is whole, and its descriptors come with it. There is one request on the way at most, and
each gets one answer, so the socket never fills. What is too large for a packet travels in a file
without a name, whose descriptor is the last one of the message.
"""

from __future__ import annotations

import enum
import json
import os
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

assert sys.platform == "linux" or not TYPE_CHECKING

MAX_DESCRIPTORS = 253
"""What the kernel passes in one message (``SCM_MAX_FD``)."""

# A packet has to fit into the socket's buffer, of 208 KiB unless somebody has set less.
_PACKET_BYTES = 32 * 1024

_HEADER = struct.Struct("=B?")

PID = struct.Struct("=q")

EXIT_CODE = struct.Struct("=q")
"""What the server writes to the status pipe of a child that it has reaped."""


class Kind(enum.IntEnum):
    """What a message is about."""

    SETTINGS = 1
    """To the server, once: what to import."""

    IMPORTING = 2
    """From the server: it imports this module next, and may end of it."""

    THREADS = 3
    """From the server: this module has started threads, so it gives up."""

    READY = 4
    """From the server: it takes requests from here on."""

    START = 5
    """To the spare: be this process."""

    TAKEN = 6
    """From the spare to the server: it is a child now, with this status pipe."""

    STARTED = 7
    """From the child: its process id, and a pidfd of itself."""

    FAILED = 8
    """The number and the text of the error for which there is no child."""


@dataclass(frozen=True)
class Message:
    """One message. Whoever receives it owns the descriptors."""

    kind: Kind
    payload: bytes = b""
    descriptors: Sequence[int] = ()


def failed(error: OSError) -> Message:
    """Say why there is no child."""
    return Message(Kind.FAILED, json.dumps([error.errno, error.strerror]).encode())


class DescriptorsLost(Exception):
    """The receiver has no descriptors left for those of a message.

    :param message: the message without them, and without a payload that was in one of them
    """

    def __init__(self, message: Message) -> None:
        super().__init__(message)
        self.message = message


def send(sock: socket.socket, message: Message) -> None:
    """Send ``message``, whose descriptors stay the caller's.

    :raises OSError: if nobody receives any more, or there are no descriptors left
    """
    if len(message.payload) <= _PACKET_BYTES:
        header = _HEADER.pack(message.kind, False)
        socket.send_fds(sock, [header, message.payload], list(message.descriptors))
        return
    file = os.memfd_create("creche-message")
    try:
        with open(file, "wb", closefd=False) as stream:
            stream.write(message.payload)
        header = _HEADER.pack(message.kind, True)
        socket.send_fds(sock, [header], [*message.descriptors, file])
    finally:
        os.close(file)


def receive(sock: socket.socket) -> Message | None:
    """Block until there is a message; ``None`` where the other side is gone.

    :raises DescriptorsLost: if there are not enough descriptors left
    :raises TimeoutError: if the socket has a timeout, and it is over
    """
    try:
        data, descriptors, flags, _ = socket.recv_fds(
            sock, _HEADER.size + _PACKET_BYTES, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError:  # it has ended, and had not received all
        return None
    if not data:
        return None
    if flags & socket.MSG_CTRUNC:
        for descriptor in descriptors:
            os.close(descriptor)
        raise DescriptorsLost(Message(Kind(data[0]), data[_HEADER.size :]))
    kind, in_file = _HEADER.unpack_from(data)
    if not in_file:
        return Message(Kind(kind), data[_HEADER.size :], descriptors)
    file = descriptors.pop()
    with open(file, "rb") as stream:
        stream.seek(0)  # the sender left the shared position at the end
        return Message(Kind(kind), stream.read(), descriptors)


@dataclass(frozen=True)
class StartRequest:
    """Asks for a child."""

    surroundings: bytes
    """Packed; empty where they are the same as the last time."""

    process: bytes
    """The pickled process object, which the child alone opens."""

    status: int
    """Where the server writes the exit code."""

    tracker: int
    """The connection to ``multiprocessing``'s resource tracker."""

    output: tuple[int | None, int | None]
    """Standard output and standard error; ``None`` where they are closed."""

    descriptors: Sequence[int]
    """What the process object refers to, by position."""

    _HEADER = struct.Struct("=I??")

    def pack(self) -> Message:
        header = self._HEADER.pack(
            len(self.surroundings), *(descriptor is not None for descriptor in self.output)
        )
        output = [descriptor for descriptor in self.output if descriptor is not None]
        return Message(
            Kind.START,
            header + self.surroundings + self.process,
            [self.status, self.tracker, *output, *self.descriptors],
        )

    @classmethod
    def unpack(cls, message: Message) -> StartRequest:
        length, *has_output = cls._HEADER.unpack_from(message.payload)
        status, tracker, *descriptors = message.descriptors
        output = [descriptors.pop(0) if has else None for has in has_output]
        begin = cls._HEADER.size
        return cls(
            surroundings=message.payload[begin : begin + length],
            process=message.payload[begin + length :],
            status=status,
            tracker=tracker,
            output=(output[0], output[1]),
            descriptors=descriptors,
        )
