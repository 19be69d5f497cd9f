"""How one process wakes the other that waits: it sends a byte through a socket.

There is never more than a few bytes in it, as nobody rings who was not asked to.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

import anyio

from .._loop_poller import loop_poller
from .._loops import EventLoop, current_loop, spawn
from .._platform import LOOPS_CAN_READ, wait_for_socket

_DING = b"\0"
_MOST_BYTES = 4096


class Doorbell:
    """One end of the socket. It travels to a child that is being started.

    :param sock: does not block
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def __reduce__(self) -> tuple[Any, ...]:
        return _of_child, (self._socket,)

    def ring(self) -> None:
        """Wake the other process. It may have ended, which others tell."""
        with contextlib.suppress(OSError):  # EPIPE; EAGAIN, if it was rung a thousand times
            self._socket.send(_DING)

    def wait(self) -> None:
        """Block the main thread of a child until it was rung.

        :raises EOFError: if nobody will any more
        """
        while True:
            wait_for_socket(self._socket)
            try:
                if not self._socket.recv(_MOST_BYTES):
                    raise EOFError("the parent has closed the stream")
            except BlockingIOError:
                continue
            except ConnectionResetError:
                raise EOFError("the parent has ended") from None
            return

    def listen(self, on_ring: Callable[[], object]) -> Callable[[], None]:
        """Have ``on_ring`` called in the event loop of the caller, whenever it was rung.

        :return: what ends that, to be called in the event loop
        """
        loop = current_loop()
        return self._watch(loop, on_ring) if LOOPS_CAN_READ else self._pump(loop, on_ring)

    def _watch(self, loop: EventLoop, on_ring: Callable[[], object]) -> Callable[[], None]:
        poller = loop_poller(loop)
        descriptor = self._socket.fileno()

        def on_readable() -> None:
            if not self._drain():
                poller.unwatch(descriptor)  # at its end it is readable for ever
            on_ring()

        poller.watch(descriptor, on_readable)
        return lambda: poller.unwatch(descriptor)

    def _pump(self, loop: EventLoop, on_ring: Callable[[], object]) -> Callable[[], None]:
        """Where event loops cannot wait for any descriptor, but can for sockets."""
        names: Any = anyio
        wait_readable = getattr(names, "wait_readable", None)
        if wait_readable is None:  # before anyio 4.7
            wait_readable = names.wait_socket_readable

        async def pump() -> None:
            with contextlib.suppress(anyio.ClosedResourceError, OSError):
                going_on = True
                while going_on:
                    await wait_readable(self._socket)
                    going_on = self._drain()
                    on_ring()

        return spawn(loop, pump)

    def _drain(self) -> bool:
        """Take the bytes; return whether more may come."""
        try:
            return bool(self._socket.recv(_MOST_BYTES))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        self._socket.close()


def doorbells() -> tuple[Doorbell, Doorbell]:
    """Make the parent's end, and the child's.

    :raises OSError: if there are no descriptors left
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return Doorbell(ours), Doorbell(theirs)


def _of_child(sock: socket.socket) -> Doorbell:
    sock.setblocking(False)
    return Doorbell(sock)
