"""Ends of channels whose items lie in the process that made them: see :mod:`creche._hub`.

They are slower than packets of a socket, but every system has them. In that process what can be
done at once is done at once; in another one, it takes a question and an answer.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import anyio

from .._hub._channel_state import ChannelState, Side
from .._hub._driver import socket_watcher
from .._hub._protocol import HubRef, Op, json_bytes
from .._hub._sources import Here, Source, There, this_party
from .._hub._states import State
from .._hub._waits import AsyncWait, ThreadWait, Wait
from .._wire._framing import Section
from ._items import received_packet
from ._transports import Received

T_Wait = TypeVar("T_Wait", bound=Wait)

_numbers = itertools.count(1)  # of the ends of this process

_kept: set[State] = set()
"""The states of channels that have ends anywhere: who made one need not have kept any."""


class _Woken(Exception):
    """The end was closed, or handed over, while somebody waited for an item; or may have been."""


class _HubTransport:
    """What is the same for both kinds of ends.

    :param source: where the state is; all ends that come from one another share it
    :param number: which of the ends of this process it is
    """

    _side: Side

    def __init__(self, source: Source, number: int, max_buffer_size: int) -> None:
        self.max_buffer_size = max_buffer_size
        self._source = source
        self._is_here = isinstance(source, Here)
        self._number = number
        self._party = this_party()
        self._watcher = socket_watcher()
        self._lock = threading.Lock()
        self._open = True
        self._waits: set[Wait] = set()
        self._token = secrets.token_hex(16)  # of this end on its way
        self._on_its_way = False

    def statistics(self) -> tuple[int, int, int]:
        found = self._ask_now(Op.STATISTICS, ThreadWait())
        return (
            found["current_buffer_used"],
            found["open_send_streams"],
            found["open_receive_streams"],
        )

    def clone(self) -> Any:
        number = next(_numbers)
        self._check_open()
        self._tell(Op.OPEN_END, [self._side, number])
        return type(self)(self._source, number, self.max_buffer_size)

    def pack_up(self, handle: Callable[[int], Any]) -> tuple[Any, ...]:
        return _rebuild, type(self), *self._source.refer(), self._token, self.max_buffer_size

    def hand_over(self) -> None:
        """The end is on its way from now on, and no more here."""
        self._open, self._on_its_way = False, True
        with contextlib.suppress(anyio.BrokenResourceError):  # whoever gets it finds that, too
            self._tell(Op.HAND_OVER_END, [self._side, self._token])
            self._tell(Op.CLOSE_END, [self._side, self._number])

    def started(self) -> None:
        """The process has not claimed it yet, for all that is known."""

    def wake(self) -> None:
        with self._lock:
            waits = list(self._waits)
        for wait in waits:
            wait.interrupt()

    end_waits = wake

    def close(self) -> None:
        with self._lock:
            was_open, self._open = self._open, False
            on_its_way, self._on_its_way = self._on_its_way, False
        if self._party is not this_party():
            return
        with contextlib.suppress(anyio.BrokenResourceError):
            if was_open:
                self._tell(Op.CLOSE_END, [self._side, self._number])
            elif on_its_way:
                self._tell(Op.TAKE_BACK_END, self._token)

    def close_soon(self) -> None:
        """Close it in the watcher. For the garbage collector, which comes in the middle of
        anything: it takes no lock."""
        if self._party is this_party():
            self._watcher.call_soon(self.close)

    def forget(self) -> None:
        self._open = self._on_its_way = False

    leave = forget

    def forget_waits(self) -> None:
        """They have nothing that a fork would have to close."""

    def _tell(self, op: Op, body: object) -> None:
        self._source.tell(op, 0, 0, [json_bytes(body)])

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError("the end is closed")

    @contextlib.contextmanager
    def _asking(self, op: Op, wait: Wait, check: Callable[[], object]) -> Iterator[None]:
        """Ask for something; the request is cancelled where the block does not come to its end."""
        try:
            self._source.ask(op, wait)
            check()  # what was closed before that does not wake us any more
            yield
        except BaseException as error:
            self._source.give_up(wait, error)
            raise

    @contextlib.contextmanager
    def _wakeable(self, wait: Wait) -> Iterator[None]:
        """Have :meth:`wake` interrupt the wait while the block runs."""
        with self._lock:
            self._waits.add(wait)
        try:
            yield
        finally:
            with self._lock:
                self._waits.discard(wait)

    def _is_answered(self, wait: Wait, check: Callable[[], object]) -> bool:
        """After waiting: whether there is an answer, or :meth:`wake` was called."""
        if not wait.is_done:
            check()
        return wait.is_done

    async def _ask(self, op: Op, wait: AsyncWait, check: Callable[[], object]) -> Any:
        with self._wakeable(wait), self._asking(op, wait, check):
            await wait.wait()
            while not self._is_answered(wait, check):
                await wait.wait_again()
            return wait.result()

    def _ask_blocking(
        self, op: Op, wait: ThreadWait, check: Callable[[], object], timeout: float | None
    ) -> Any:
        """:raises TimeoutError: if there is no answer in so many seconds"""
        give_up = None if timeout is None else time.monotonic() + timeout
        with self._wakeable(wait), self._asking(op, wait, check):
            while True:
                left = None if give_up is None else max(give_up - time.monotonic(), 0.0)
                if not wait.wait(left):
                    raise TimeoutError
                if self._is_answered(wait, check):
                    return wait.result()

    def _ask_now(self, op: Op, wait: ThreadWait) -> Any:
        """Ask for what is answered at once, so that nobody need end that."""
        with self._asking(op, wait, self._check_open):
            wait.wait(None)
            return wait.result()


class HubSending(_HubTransport):
    """An end that sends."""

    _side = "send"
    packet_bytes = math.inf

    def fits(self, size: int) -> bool:
        return True

    def send(self, packet: bytes) -> bool:
        return self._is_here and self.send_now(packet)

    def send_now(self, packet: bytes, segment: Any = None) -> bool:
        try:
            self._ask_now(Op.TRY_PUT, ThreadWait(body=[packet]))
        except anyio.WouldBlock:
            return False
        return True

    async def send_later(
        self, check: Callable[[], object], packet: bytes, segment: Any = None
    ) -> bool:
        # Woken, it is not asked again: it may have been granted, and the item be with somebody.
        await self._ask(Op.PUT, AsyncWait(body=[packet]), check)
        return True

    def send_blocking(
        self,
        check: Callable[[], object],
        packet: bytes,
        segment: Any,
        timeout: float | None,
    ) -> bool:
        if timeout == 0:
            return self.send_now(packet)
        try:
            self._ask_blocking(Op.PUT, ThreadWait(body=[packet]), check, timeout)
        except TimeoutError:
            return False
        return True


class HubReceiving(_HubTransport):
    """An end that receives."""

    _side = "receive"

    def receive(self) -> Received:
        return self.receive_now() if self._is_here else None

    def receive_now(self) -> Received:
        wait = ThreadWait()
        try:
            body = self._ask_now(Op.TRY_GET, wait)
        except anyio.WouldBlock:
            return None
        except anyio.EndOfStream:
            return b""
        return self._got(wait, body)

    async def receive_later(self, check: Callable[[], object]) -> Received:
        wait = AsyncWait()
        try:
            body = await self._ask(Op.GET, wait, check)
        except _Woken:
            return None
        except anyio.EndOfStream:
            return b""
        return self._got(wait, body)

    def receive_blocking(self, check: Callable[[], object], timeout: float | None) -> Received:
        if timeout == 0:
            return self.receive_now()
        wait = ThreadWait()
        try:
            body = self._ask_blocking(Op.GET, wait, check, timeout)
        except _Woken:
            check()
            return self.receive_blocking(check, timeout)
        except TimeoutError:
            return None
        except anyio.EndOfStream:
            return b""
        return self._got(wait, body)

    def _is_answered(self, wait: Wait, check: Callable[[], object]) -> bool:
        # Whatever is raised, an item that has come goes back to the front. So it is none of ours
        # any more where the end was closed, and can be asked for again where it was not.
        check()
        if not wait.is_done:
            raise _Woken
        return True

    def _got(self, wait: Wait, body: Section) -> Received:
        # Before it is unpickled: one that kills whoever does so must not go on to kill the next.
        with contextlib.suppress(anyio.BrokenResourceError):  # the item is here all the same
            self._source.tell(Op.GOT, wait.number, 0, [])
        return received_packet(body)


def _rebuild(cls: Any, ref: HubRef, obj: int, token: str, max_buffer_size: int) -> Any:
    """Unpickle an end: it is this process's from when the hub has said so."""
    source, number = There(ref, obj), next(_numbers)
    wait = ThreadWait(body=[json_bytes([cls._side, token, number])])
    source.ask(Op.CLAIM_END, wait)
    wait.wait(None)
    wait.result()
    return cls(source, number, max_buffer_size)


def hub_transports(max_buffer_size: int) -> tuple[HubSending, HubReceiving]:
    """Make a channel; return its first two ends."""
    state = ChannelState(max_buffer_size, this_party(), _kept.discard)
    source = Here(state)
    _kept.add(state)
    return HubSending(source, 0, max_buffer_size), HubReceiving(source, 0, max_buffer_size)
