"""The hub of a process: it lets other processes use what this one has made.

It runs in the watcher, so it goes on while an event loop is blocked. There is one of them a process
at most, made when the first object is passed on.
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import socket
import weakref
from collections.abc import Callable

import anyio

from .._own_log import log
from .._platform import HubAddress, hub_accept, hub_listen
from .._watcher import Watcher
from .._wire._framing import Section
from ._connection import Connection
from ._driver import socket_watcher
from ._protocol import (
    HELLO,
    REQUEST,
    BadMessageError,
    HubRef,
    MessageReader,
    Op,
    pack_answer,
    pack_error,
    read_hello,
)
from ._states import Party, State, Ticket

_logger = logging.getLogger("creche")
_warn = functools.partial(log, _logger, logging.WARNING)

# Seconds in which whoever connects has to show that it knows the secret.
_PATIENCE = 10.0

# Seconds until the next try where there was no descriptor for a connection.
_PAUSE = 0.1


class Hub:
    """Listens, and keeps the connections.

    :param find: finds an object of this process
    :param listen: for tests: another way to listen
    :raises OSError: if there are no descriptors left
    """

    def __init__(
        self,
        find: Callable[[int], State | None],
        listen: Callable[[], tuple[socket.socket, HubAddress]] = hub_listen,
    ) -> None:
        self.find = find
        self._watcher: Watcher = socket_watcher()
        self._listener, address = listen()
        self.ref = HubRef(address, secrets.token_bytes(32), os.getpid())
        self.clients: set[HubClient] = set()
        self._watcher.call_soon(self._begin)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call back in the watcher. From any thread, in the middle of anything."""
        self._watcher.call_soon(callback)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """In the watcher only."""
        self._watcher.call_later(seconds, callback)

    def forget(self) -> None:
        """In a fork of this process: close our copies."""
        self._listener.close()
        for client in list(self.clients):
            client.connection.forget()

    def close(self) -> None:
        """For tests: end it, and with it what other processes are doing. From any thread."""
        self._watcher.call_soon(self._close)

    def _close(self) -> None:
        self._watcher.poller.unwatch(self._listener.fileno())
        self._listener.close()
        for client in list(self.clients):
            client.connection.close()

    def _begin(self) -> None:
        if self._listener.fileno() >= 0:
            self._watcher.poller.watch(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock = hub_accept(self._listener)
        except (BlockingIOError, InterruptedError, ConnectionError):  # gone again
            return
        except OSError as error:  # EMFILE: whoever wants to connect has to wait
            _warn("creche cannot accept a connection for now: %s", error)
            self._watcher.poller.unwatch(self._listener.fileno())
            self._watcher.call_later(_PAUSE, self._begin)
            return
        if sock is not None:
            self.clients.add(HubClient(self, sock))


class HubClient:
    """A connection to another process, which shows first that it knows the secret."""

    def __init__(self, hub: Hub, sock: socket.socket) -> None:
        self._hub = hub
        self._hello = b""
        self._party: Party | None = None
        self._reader = MessageReader(REQUEST)
        self._used: weakref.WeakSet[State] = weakref.WeakSet()
        self.connection = Connection(sock, self._on_data, self._on_end)
        hub.call_later(_PATIENCE, self._cut_off_stranger)

    def _cut_off_stranger(self) -> None:
        if self._party is None:
            self.connection.close()

    def _on_end(self) -> None:
        self._hub.clients.discard(self)
        if self._party is not None:
            for state in list(self._used):
                with state.lock:
                    state.drop(self._party)

    def _on_data(self, data: bytes) -> None:
        if self._party is None:
            self._hello += data
            if len(self._hello) < HELLO.size:
                return
            hello, data = self._hello[: HELLO.size], self._hello[HELLO.size :]
            try:
                pid, welcome = read_hello(hello, self._hub.ref.secret)
            except BadMessageError as error:
                _warn("creche: %s, and was cut off", error)
                self.connection.close()
                return
            self._hello = b""
            self._party = Party(pid)
            self.connection.send([welcome])
        try:
            for (op, obj, number, holder, _), body in self._reader.feed(data):
                self._serve(self._party, Op(op), obj, number, holder, body)
        except ValueError:
            _warn("creche: process %d sent garbage, and was cut off", self._party.pid)
            self.connection.close()

    def _serve(
        self, party: Party, op: Op, obj: int, number: int, holder: int, body: Section
    ) -> None:
        state = self._hub.find(obj)
        ticket = _RemoteTicket(self.connection, party, number, holder, body)
        if state is None:
            if op < Op.RELEASE:
                ticket.fail(gone(self._hub.ref.pid))
            return
        self._used.add(state)
        with state.lock:
            if op is Op.CANCEL:
                state.cancel(party, number)
                return
            try:
                if op < Op.RELEASE:
                    state.ask(op, ticket)
                else:
                    state.tell(op, party, number, holder, body)
            except Exception as error:
                if op < Op.RELEASE:
                    ticket.fail(error)
                # Whoever tells something has made sure that it is right; or it is over by now.


class _RemoteTicket(Ticket):
    """A request that came over a connection."""

    __slots__ = ("_connection",)

    def __init__(
        self, connection: Connection, party: Party, number: int, holder: int, body: Section
    ) -> None:
        super().__init__(party, number, holder, body)
        self._connection = connection

    def settle(self, value: object) -> bool:
        # Where the process has died by now, what it was given is taken back when we hear of that.
        self._connection.send(pack_answer(self.number, value))
        return True

    def fail(self, error: BaseException) -> None:
        self._connection.send(pack_error(self.number, error))


def gone(pid: int) -> BaseException:
    """The error where an object does not exist any more, but its process may."""
    return anyio.BrokenResourceError(
        f"process {pid}, which made this, does not keep it any more: it exists as long as the"
        " object there does, so keep a reference to it"
    )
