"""The connection of this process to the hub of another: one, for all of its tasks and threads."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable

import anyio

from .._multiprocessing import util
from .._parent_connection import deferring_stop
from .._platform import hub_connect
from .._wire._framing import Section
from ._connection import Connection
from ._protocol import (
    ANSWER,
    WELCOME,
    BadMessageError,
    HubRef,
    MessageReader,
    Op,
    check_welcome,
    make_hello,
    pack_request,
    unpack_answer,
)
from ._waits import Wait

# Seconds that the end of this process waits for what it has told others.
_PATIENCE_AT_EXIT = 1.0


class Link:
    """Asks and tells; once it is broken, it stays so, because what this process held is lost.

    :raises OSError: if the hub cannot be reached
    """

    def __init__(self, ref: HubRef) -> None:
        self._ref = ref
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._pending: dict[int, tuple[int, Wait]] = {}
        self._later: deque[Section] = deque()
        self._reader = MessageReader(ANSWER)
        self._welcome = b""
        self._is_welcome = False
        self.is_broken = False
        self._ended = threading.Event()
        hello, self._expected = make_hello(ref, os.getpid())
        sock = hub_connect(ref.address)
        self._connection = Connection(sock, self._on_data, self._on_end)
        self._connection.send([hello])
        if not ref.address.is_private:
            self._connection.hold_back()  # who knows who listens there

    def ask(self, op: Op, obj: int, wait: Wait) -> None:
        """Ask for something; the answer settles ``wait``.

        :raises anyio.BrokenResourceError: if the hub's process has ended
        """
        wait.arm()
        with self._lock:
            if self.is_broken:
                raise broken(self._ref.pid)
            wait.number = next(self._numbers)
            self._pending[wait.number] = obj, wait
        self._send(op, obj, wait.number, wait.holder, wait.body)

    def cancel(self, obj: int, number: int) -> None:
        """Take back a question, or what was answered: nobody has heard of it. Never fails."""
        self._pending.pop(number, None)
        self._send(Op.CANCEL, obj, number, 0, [])

    def tell(self, op: Op, obj: int, number: int, holder: int, body: Section) -> None:
        """Tell something that is not answered.

        :raises anyio.BrokenResourceError: if the hub's process has ended
        """
        if self.is_broken:
            raise broken(self._ref.pid)
        self._send(op, obj, number, holder, body)

    def tell_later(self, op: Op, obj: int, number: int) -> None:
        """Tell something with whatever is sent next: it is not worth a system call."""
        self._later.append(pack_request(op, obj, number, 0, []))

    def _send(self, op: Op, obj: int, number: int, holder: int, body: Section) -> None:
        pieces: Section = []
        with deferring_stop():
            with contextlib.suppress(IndexError):  # another thread may be at it, too
                while self._later:
                    pieces += self._later.popleft()
            self._connection.send([*pieces, *pack_request(op, obj, number, holder, body)])

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call back in the watcher. From any thread, in the middle of anything."""
        self._connection.call_soon(callback)

    def finish(self, give_up: float) -> None:
        """At the end of this process: see to it that all that was told arrives."""
        # Over TCP what has been sent is lost, too, where the end comes before all was received.
        if self.is_broken or (self._connection.all_sent and self._ref.address.is_private):
            return
        while not self._connection.all_sent and time.monotonic() < give_up:
            if self._ended.wait(0.001):
                return
        self._connection.shut_down_sending()
        self._ended.wait(max(0.0, give_up - time.monotonic()))

    def forget(self) -> None:
        """In a fork of this process: close our copy."""
        self._connection.forget()

    def _on_data(self, data: bytes) -> None:
        try:
            if not self._is_welcome:
                self._welcome += data
                if len(self._welcome) < WELCOME.size:
                    return
                check_welcome(self._welcome[: WELCOME.size], self._expected)
                data = self._welcome[WELCOME.size :]
                self._is_welcome = True
                self._connection.let_go()
            for (kind, number, _), body in self._reader.feed(data):
                self._on_answer(kind, number, body)
        except BadMessageError:
            self._connection.close()

    def _on_answer(self, kind: int, number: int, body: Section) -> None:
        obj, wait = self._pending.pop(number, (0, None))
        if wait is None:  # it was cancelled
            return
        try:
            value = unpack_answer(kind, body)
        except Exception as error:
            wait.fail(error)
        else:
            if not wait.settle(value):  # its event loop was closed while it waited
                self.cancel(obj, number)

    def _on_end(self) -> None:
        with self._lock:
            self.is_broken = True
            pending, self._pending = self._pending, {}
        for _, wait in pending.values():
            wait.fail(broken(self._ref.pid))
        self._ended.set()


_links: dict[HubRef, Link] = {}
_lock = threading.Lock()


def link_to(ref: HubRef) -> Link:
    """Return the connection of this process to a hub, made on first use.

    :raises anyio.BrokenResourceError: if the hub's process has ended
    """
    link = _links.get(ref)
    if link is not None:
        return link
    with _lock:
        link = _links.get(ref)
        if link is None:
            try:
                link = Link(ref)
            except OSError as error:
                raise broken(ref.pid) from error
            if not _links:
                _finish_at_exit()
            _links[ref] = link
        return link


def broken(pid: int) -> anyio.BrokenResourceError:
    return anyio.BrokenResourceError(
        f"process {pid}, which made this, has ended or cannot be reached"
    )


def _finish_at_exit() -> None:
    # Before multiprocessing joins its children, which may wait for what we have told them.
    util.Finalize(None, _finish, exitpriority=900)


def _finish() -> None:
    give_up = time.monotonic() + _PATIENCE_AT_EXIT
    for link in list(_links.values()):
        link.finish(give_up)


def forget_links() -> None:
    """In a fork of this process: it makes its own."""
    global _lock
    _lock = threading.Lock()
    for link in list(_links.values()):
        link.forget()
    _links.clear()
