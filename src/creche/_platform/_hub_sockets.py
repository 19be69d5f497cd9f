"""Where a process listens for others that use what it has made.

On Linux that is an abstract ``AF_UNIX`` address: it has no file, ends with its last descriptor, and
the kernel says whose process is at the other end. Elsewhere it is a port of 127.0.0.1, to which
every user of the machine can connect.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import sys
import time
from dataclasses import dataclass

# Children may all connect at once; the kernel has a limit of its own.
_BACKLOG = 4096

# Seconds. Connecting takes microseconds, unless a thousand others are doing it.
_CONNECT_TIMEOUT = 5.0

# Seconds until the next try where so many others are connecting that there is no room to wait.
_PAUSE = 0.005

_HAS_ABSTRACT_SOCKETS = sys.platform == "linux"
if sys.platform == "win32":
    _AF_UNIX = socket.AF_INET  # not used
else:
    _AF_UNIX = socket.AF_UNIX


@dataclass(frozen=True, slots=True)
class HubAddress:
    """An address to listen at, and to connect to.

    :param name: of an abstract socket; empty where it is a port
    :param port: of 127.0.0.1
    """

    name: bytes
    port: int = 0

    @property
    def is_private(self) -> bool:
        """Whether the kernel says that a process of our own user is at the other end."""
        return bool(self.name)


def hub_listen(*, tcp: bool = not _HAS_ABSTRACT_SOCKETS) -> tuple[socket.socket, HubAddress]:
    """Listen at a new address.

    :param tcp: whether to use a port, on systems that have better
    :raises OSError: if there are no descriptors or ports left
    """
    if tcp:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    else:
        listener = socket.socket(_AF_UNIX, socket.SOCK_STREAM)
    try:
        if tcp:
            if sys.platform == "win32":  # where others could listen at the same port otherwise
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            listener.bind(("127.0.0.1", 0))
            address = HubAddress(b"", listener.getsockname()[1])
        else:
            # A name that nobody else gets by chance when this process has ended.
            address = HubAddress(b"\0creche-" + secrets.token_hex(16).encode())
            listener.bind(address.name)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener, address


def hub_accept(listener: socket.socket) -> socket.socket | None:
    """Accept the next connection that is waiting; ``None`` if it is somebody's whom we do not know.

    :raises OSError: if nobody is waiting, or there are no descriptors left
    """
    sock, _ = listener.accept()
    if not _is_friend(sock):
        sock.close()
        return None
    _set_up(sock)
    return sock


def hub_connect(address: HubAddress) -> socket.socket:
    """Connect to somebody who listens.

    :raises OSError: if nobody listens there any more, or somebody else does
    """
    if address.name:
        sock = socket.socket(_AF_UNIX, socket.SOCK_STREAM)
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.settimeout(_CONNECT_TIMEOUT)
        _connect(sock, address)
        if not _is_friend(sock):
            raise PermissionError("a process of another user listens there")
        _set_up(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(sock: socket.socket, address: HubAddress) -> None:
    give_up = time.monotonic() + _CONNECT_TIMEOUT
    while True:
        try:
            sock.connect(address.name or ("127.0.0.1", address.port))
        except BlockingIOError:  # AF_UNIX with a timeout: it does not wait for a full backlog
            if time.monotonic() >= give_up:
                raise
            time.sleep(_PAUSE)
        else:
            return


def _set_up(sock: socket.socket) -> None:
    sock.setblocking(False)
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _is_friend(sock: socket.socket) -> bool:
    """Whether the other end may be trusted to know the secret; it has to show that it does."""
    if sys.platform == "linux" and sock.family == _AF_UNIX:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, user, _ = struct.unpack("3i", credentials)
        # A child may have given up the rights of its parent.
        return os.geteuid() in (user, 0) or user == 0
    return True
