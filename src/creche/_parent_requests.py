"""In a child: having functions called in the parent.

Where a socket can lead right into the parent's event loop, requests and replies go over a *line* of
their own, which is opened for the first one: no thread is between the two. It is read by whoever
waits for a reply; of several, by one, the *leader*, who hands the others their replies, and the
lead when it leaves. Elsewhere they go over the wire, which a thread reads.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

from ._errors import ProcessStateError
from ._in_thread import in_thread
from ._loop_poller import loop_poller
from ._loops import EventLoop, current_loop, post, waiter_in
from ._multiprocessing import util
from ._parent_connection import ParentConnection
from ._platform import EagerReceiver
from ._stop_request import StopListener
from ._wire._framing import Frame, FrameKind
from ._wire._payloads import TooHeavyError
from ._wire._requests import (
    Message,
    MessageReader,
    decode_reply,
    encode_request,
    encode_withdrawal,
    is_heavy,
    number_of,
    parent_unavailable,
)
from ._worker_threads import WorkerThreads

_READ_BYTES = 64 * 1024

# Where there are lines there is such a flag.
_NOW = getattr(socket, "MSG_DONTWAIT", 0)

Deliver = Callable[[Message | None], object]
"""Takes the reply to a request; or ``None``, which asks the waiter to look how things are."""


class ParentRequests:
    """The requests of one child. Any thread of it may make some.

    So may finalizers and signal handlers, which interrupt a thread that is making one.
    """

    def __init__(self, connection: ParentConnection) -> None:
        self._stop = connection.stop
        self._numbers = itertools.count()
        self._threads = WorkerThreads("creche-requests", 1)
        self._under_way: set[int] = set()  # requests that a thread is sending
        self._waiting: dict[int, Deliver] = {}
        self._lock = threading.RLock()
        self._ended = False
        self._leader: int | None = None  # the thread that reads the line, or whose event loop does
        # How often it does: in a blocking call within an event loop that leads, or in one that has
        # interrupted another.
        self._leads = 0
        self._led_by: list[SimpleQueue[Message | None]] = []  # the blocking ones of these calls
        sock = connection.open_line()
        self._line: _Line | None = None
        if sock is not None:
            self._line = _Line(sock, self._stop, self._receive)
            # At the very end of the process, or the interpreter would complain of it.
            util.Finalize(None, sock.close, exitpriority=-1000)
        self._way = _Wire(connection, self._receive) if self._line is None else self._line

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], *, awaits: bool) -> Any:
        """Have the parent call ``func``; block until it is done, return or raise what comes back.

        :raises SerializationError: if something cannot be pickled or unpickled
        :raises ProcessStateError: if the parent's event loop is closed, or the caller has
            interrupted this thread in the middle of sending or receiving something
        """
        replies: SimpleQueue[Message | None] = SimpleQueue()
        number = next(self._numbers)
        request = encode_request(number, func, args, awaits=awaits)
        reply = None
        try:
            self._begin(number, request, replies.put)
            while reply is None:
                self._check_open()
                reply = replies.get() if self._line is None else self._wait(self._line, replies)
        finally:
            self._end(number)
        return _outcome_of(reply)

    async def acall(self, func: Callable[..., Any], args: tuple[Any, ...], *, awaits: bool) -> Any:
        """Do the same without blocking the event loop of the caller."""
        loop = current_loop()
        number = next(self._numbers)
        waiter = waiter_in(loop)
        reply: Message | None = None

        def deliver(message: Message | None) -> None:
            nonlocal reply
            if message is not None:
                reply = message
            post(loop, lambda: waiter.wake())  # the newest one

        try:
            try:
                request = encode_request(number, func, args, awaits=awaits, light=True)
            except TooHeavyError:
                encode = partial(encode_request, number, func, args, awaits=awaits)
                await self._begin_apart(number, encode, deliver)
            else:
                if self._under_way:  # or the event loop would wait for those
                    await self._begin_apart(number, lambda: request, deliver)
                else:
                    self._begin(number, request, deliver)
            while reply is None:
                self._check_open()
                waiter = waiter_in(loop)
                with self._leading_in(loop):
                    await waiter
        finally:
            self._end(number)
        if is_heavy(reply):
            return await in_thread(lambda: self._threads, partial(_outcome_of, reply))
        return _outcome_of(reply)

    def _begin(self, number: int, request: bytes, deliver: Deliver) -> None:
        if self._way.is_busy_here:
            raise _interrupted()
        self._waiting[number] = deliver
        self._way.send(request)

    async def _begin_apart(
        self, number: int, encode: Callable[[], bytes], deliver: Deliver
    ) -> None:
        """Do the same with a large request, for as long as which the event loop goes on."""

        begun = False

        def send() -> None:
            nonlocal begun
            begun = True
            try:
                self._way.send(encode())
            finally:
                self._under_way.discard(number)
                if number not in self._waiting:
                    self._withdraw(number)

        self._waiting[number] = deliver
        self._under_way.add(number)
        try:
            await in_thread(lambda: self._threads, send)
        finally:
            if not begun:  # given up before its turn
                self._under_way.discard(number)

    def _end(self, number: int) -> None:
        if self._waiting.pop(number, None) is not None and not self._ended:
            # A cancellation, or a request to stop: nobody waits for what the function does.
            if not self._under_way:
                self._withdraw(number)
            elif number not in self._under_way:  # or it is withdrawn when it has been sent
                self._threads.submit(partial(self._withdraw, number))
        if self._leader is None:  # left by the caller, or offered to it in vain
            self._offer_lead()

    def _withdraw(self, number: int) -> None:
        self._way.send(encode_withdrawal(number))

    def _wait(self, line: _Line, replies: SimpleQueue[Message | None]) -> Message | None:
        """Wait for a reply, or for the lead; nothing where something else has happened."""
        leads = False
        try:
            with self._stop.deferring():
                leads = self._take_lead(blocking=True)
                if leads:
                    self._led_by.append(replies)
            if not leads:
                return replies.get()
            while not self._ended:
                while not replies.empty():
                    reply = replies.get()
                    if reply is not None:
                        return reply
                line.wait_readable()
                line.receive()
            return None
        finally:
            if leads:
                with self._stop.deferring():
                    self._led_by.pop()
                    self._wake_interrupted()
                    self._hand_over()

    @contextmanager
    def _leading_in(self, loop: EventLoop) -> Iterator[None]:
        """Have the event loop read the line, unless somebody does."""
        if self._line is None or not self._take_lead(blocking=False):
            yield
            return
        poller = loop_poller(loop)
        try:
            poller.watch(self._line.fileno(), self._line.receive)
            yield
        finally:
            poller.unwatch(self._line.fileno())
            self._hand_over()

    def _take_lead(self, *, blocking: bool) -> bool:
        """:param blocking: whether the caller blocks its thread, and the event loop in it"""
        thread = threading.get_ident()
        with self._lock:
            if self._leader is not None and not (blocking and self._leader == thread):
                return False
            self._leads += 1  # first, or what interrupts this would make nobody the leader
            self._leader = thread
            return True

    def _hand_over(self) -> None:
        with self._lock:
            self._leads -= 1
            if not self._leads:
                self._leader = None

    def _wake_interrupted(self) -> None:
        """Wake the call that the caller has interrupted, if its reply was received meanwhile.

        It waits for the line, as system calls go on after a signal. So something has to come.
        """
        if self._led_by and not self._led_by[-1].empty():
            self._way.send(encode_request(next(self._numbers), bool, (), awaits=False))

    def _offer_lead(self) -> None:
        # To the newest: the thread of an older one may be in a call that has interrupted it, or
        # holds up its event loop.
        for deliver in list(self._waiting.values())[-1:]:
            deliver(None)

    def _receive(self, messages: list[Message] | None) -> None:
        """Take replies; or nothing, where something else has happened that waiters should see."""
        if messages is None:
            self._wake_all()
            return
        if not messages:
            self._ended = True
            self._wake_all()
        for message in messages:
            deliver = self._waiting.pop(number_of(message), None)
            if deliver is not None:
                deliver(message)

    def _wake_all(self) -> None:
        for deliver in list(self._waiting.values()):
            deliver(None)

    def _check_open(self) -> None:
        if self._ended:
            raise parent_unavailable()


class _Line:
    """A socket to the parent's event loop, which blocks.

    :param on_messages: called with what was received; an empty list at the end
    """

    def __init__(
        self,
        sock: socket.socket,
        stop: StopListener,
        on_messages: Callable[[list[Message]], None],
    ) -> None:
        self._sock = sock
        self._stop = stop
        self._on_messages = on_messages
        self._messages = MessageReader()
        self._eager = EagerReceiver()
        self._sending = threading.Lock()
        self._busy: set[int] = set()  # threads

    @property
    def is_busy_here(self) -> bool:
        """Whether the caller has interrupted its thread in the middle of sending or receiving."""
        return threading.get_ident() in self._busy

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: bytes) -> None:
        # A request to stop must not strike in the middle of a message.
        with self._stop.deferring(), self._busily(), self._sending:
            try:
                self._sock.sendall(message)
            except OSError:  # the parent has closed it
                self._on_messages([])

    def wait_readable(self) -> None:
        """Block until there is something to receive. Only the leader may."""
        with contextlib.suppress(OSError):  # receive() will tell
            # Nothing is taken, so nothing is lost where a request to stop interrupts this.
            self._eager.receive(self._look, self._look_blocking)

    def _look(self) -> bytes:
        return self._sock.recv(1, socket.MSG_PEEK | _NOW)

    def _look_blocking(self) -> bytes:
        return self._sock.recv(1, socket.MSG_PEEK)

    def receive(self) -> None:
        """Receive what there is. Only the leader may."""
        # It must not get lost on the way from here to there.
        with self._stop.deferring(), self._busily():
            try:
                data = self._sock.recv(_READ_BYTES, _NOW)
            except BlockingIOError:  # a blocking call in the same thread was faster
                return
            except OSError:
                data = b""
            messages = self._messages.feed(data)
            if messages or not data:
                self._on_messages(messages)

    @contextmanager
    def _busily(self) -> Iterator[None]:
        thread = threading.get_ident()
        try:
            self._busy.add(thread)
            yield
        finally:
            self._busy.discard(thread)


class _Wire:
    """Requests and replies among the other frames of the wire.

    :param on_messages: called with what was received; an empty list at the end, and ``None`` for a
        request to stop, which the main thread notices only when it does something
    """

    def __init__(
        self,
        connection: ParentConnection,
        on_messages: Callable[[list[Message] | None], None],
    ) -> None:
        self._connection = connection
        self._on_messages = on_messages
        connection.listen(self._on_frame)

    @property
    def is_busy_here(self) -> bool:
        """Whether the caller has interrupted its thread in the middle of sending or receiving."""
        return self._connection.listens_here or self._connection.sends_here

    def send(self, message: bytes) -> None:
        if not self._connection.send((FrameKind.REQUEST, [[message]])):
            self._on_messages([])

    def _on_frame(self, frame: Frame | None) -> None:
        if frame is None:
            self._on_messages([])
        elif frame.kind is FrameKind.STOP:
            self._on_messages(None)
        elif frame.kind is FrameKind.REPLY:
            self._on_messages(MessageReader().feed(b"".join(frame.sections[0])))


class Requests(Protocol):
    """What asks the parent to call functions."""

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], *, awaits: bool) -> Any: ...

    async def acall(
        self, func: Callable[..., Any], args: tuple[Any, ...], *, awaits: bool
    ) -> Any: ...


_relaying: Callable[[Requests], Requests] | None = None


def relay_requests(through: Callable[[Requests], Requests]) -> None:
    """Have the requests of this process pass through something: its parent only passes them on."""
    global _relaying
    _relaying = through


_requests: tuple[int, ParentRequests] | None = None
_opening = threading.RLock()
_is_opening = False


def parent_requests(connection: ParentConnection) -> Requests:
    """The requests of this process.

    :raises ProcessStateError: if the caller has interrupted this thread in the middle of this
    """
    global _requests, _is_opening
    known = _requests
    if known is None or known[0] != connection.pid:
        with connection.stop.deferring(), _opening:
            if _is_opening:
                raise _interrupted()
            if _requests is None or _requests[0] != os.getpid():
                try:
                    _is_opening = True
                    _requests = os.getpid(), ParentRequests(connection)
                finally:
                    _is_opening = False
            known = _requests
    return known[1] if _relaying is None else _relaying(known[1])


def _outcome_of(message: Message) -> Any:
    return decode_reply(message).take()


def _interrupted() -> ProcessStateError:
    return ProcessStateError(
        "a finalizer or a signal handler cannot ask the parent while it interrupts what asks it"
    )
