"""How calls travel to a warm worker on Linux: whole, and so that they can be taken back.

A ``SOCK_SEQPACKET`` socket keeps each message whole and gives it to whoever receives first. The
pool holds the worker's end, too, and receives there what the worker has not begun. Elsewhere calls
go through the wire: see :mod:`._no_call_sockets`.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

assert sys.platform == "linux" or not TYPE_CHECKING

from .._wire._messages import CALL_HEADER_BYTES, INLINE_BYTES
from ._eager_receiving import EagerReceiver


class CallSender:
    """The pool's end, which never blocks.

    :param ours: where messages are sent
    :param theirs: the worker's end
    """

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        self._ours = ours
        self._theirs = theirs
        ours.setblocking(False)

    def send(self, message: bytes) -> bool:
        """Send a message; return whether there was room for it."""
        try:
            self._ours.send(message)
        except OSError as error:
            # EPIPE: nobody reads any more, which the worker's exit code will explain.
            return error.errno in (errno.EPIPE, errno.ECONNRESET)
        return True

    def take_back(self) -> list[bytes]:
        """Take back what the worker has not received, which may do so meanwhile.

        :return: the headers of these messages
        """
        taken: list[bytes] = []
        while True:
            try:
                # A flag for this call alone, because the worker shares the descriptor's own. The
                # kernel drops the rest of the message.
                header = self._theirs.recv(CALL_HEADER_BYTES, socket.MSG_DONTWAIT)
            except OSError:  # EAGAIN
                return taken
            if not header:
                return taken
            taken.append(header)

    def forget(self, *, child_exists: bool) -> None:
        """In a fork of this process: close our copies; see ``WorkerChannel.forget``."""
        self._ours.close()
        if child_exists:
            self._theirs.close()

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


class CallReceiver:
    """The worker's end. It travels to the worker with the process object."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection  # owns the descriptor
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._eager = EagerReceiver()

    def __reduce__(self) -> tuple[type[CallReceiver], tuple[Connection]]:
        # While a process is being started.
        return CallReceiver, (self._connection,)

    def receive(self) -> memoryview:
        """Wait for the next message, and return it: good until this is called again.

        It is empty at the end.
        """
        size = self._eager.receive(self._receive_now, self._receive)
        return memoryview(self._buffer)[:size]

    def _receive_now(self) -> int:
        return self._receive(socket.MSG_DONTWAIT)

    def _receive(self, flags: int = 0) -> int:
        if self._socket is None:  # no use for one in the pool
            self._buffer = bytearray(CALL_HEADER_BYTES + INLINE_BYTES)
            descriptor = os.dup(self._connection.fileno())
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, descriptor)
        try:
            return self._socket.recv_into(self._buffer, 0, flags)
        except ConnectionResetError:
            return 0

    def close(self) -> None:
        """Close this end: in the pool, when the worker has its own; in the worker, at its end."""
        self._connection.close()
        if self._socket is not None:
            self._socket.close()


def call_sockets() -> tuple[CallSender, CallReceiver] | None:
    """Make the pool's end, and the worker's.

    :raises OSError: if there are no descriptors left
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        receiver = CallReceiver(Connection(os.dup(theirs.fileno())))
    except BaseException:
        ours.close()
        theirs.close()
        raise
    return CallSender(ours, theirs), receiver
