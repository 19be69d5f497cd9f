"""The connection between a pool and one worker, as the pool sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from .._loop_poller import loop_poller
from .._loops import EventLoop, post
from .._platform import (
    CAN_TAKE_BACK,
    LOOPS_CAN_READ,
    ChildWire,
    ParentWire,
    SegmentSocket,
    segment_sockets,
    wire_pair,
)
from .._watcher import Watcher
from .._wire._framing import BadFrameError, Buffer
from .._wire._messages import SLOT_BYTES, AnswerReader, Message


class Driver(Protocol):
    """Whoever waits for the wires of a pool's workers: the event loop, or creche's watcher."""

    can_take_back: bool

    def attach(self, wire: ParentWire, on_data: Callable[[bytes], None]) -> None: ...

    def sender(self, wire: ParentWire) -> Callable[[bytes], None]:
        """Return what sends small messages over a wire."""

    def run(self, action: Callable[[], object]) -> None:
        """Do something with a wire, where its owner does it."""

    def drain(self, wire: ParentWire, then: Callable[[], object]) -> None:
        """Called by the watcher: take in what a dead worker has left; then go on in the loop."""


class LoopDriver:
    """Wires belong to the event loop: nothing is between the system and the pool."""

    can_take_back = CAN_TAKE_BACK

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._poller: Any = loop_poller(loop)

    def attach(self, wire: ParentWire, on_data: Callable[[bytes], None]) -> None:
        wire.attach(self._poller, on_data)

    def sender(self, wire: ParentWire) -> Callable[[bytes], None]:
        return wire.send_at_once

    def run(self, action: Callable[[], object]) -> None:
        action()

    def drain(self, wire: ParentWire, then: Callable[[], object]) -> None:
        def drain_in_loop() -> None:
            wire.drain()
            then()

        post(self._loop, drain_in_loop)


class WatcherDriver:
    """Wires belong to the watcher's thread, where event loops cannot wait for them."""

    can_take_back = False  # the pool hears of answers later than the wire does

    def __init__(self, loop: EventLoop, watcher: Watcher) -> None:
        self._loop = loop
        self._watcher = watcher

    def attach(self, wire: ParentWire, on_data: Callable[[bytes], None]) -> None:
        def pass_on(data: bytes) -> None:
            post(self._loop, lambda: on_data(data))

        self.run(lambda: wire.attach(self._watcher.poller, pass_on))

    def sender(self, wire: ParentWire) -> Callable[[bytes], None]:
        return lambda data: self.run(lambda: wire.send_at_once(data))

    def run(self, action: Callable[[], object]) -> None:
        self._watcher.call_soon(action)  # type: ignore[arg-type]

    def drain(self, wire: ParentWire, then: Callable[[], object]) -> None:
        wire.drain()
        post(self._loop, then)


def driver_for(loop: EventLoop, watcher: Watcher) -> Driver:
    return LoopDriver(loop) if LOOPS_CAN_READ else WatcherDriver(loop, watcher)


class WorkerChannel:
    """Sends calls, and hands on the answers.

    :param on_messages: called in the event loop with what came
    :param on_garbage: called there with the reason where it was no message
    :raises OSError: if there are no descriptors left
    """

    def __init__(
        self,
        driver: Driver,
        on_messages: Callable[[list[Message]], None],
        on_garbage: Callable[[BadFrameError], None],
    ) -> None:
        self._driver = driver
        self._on_messages = on_messages
        self._on_garbage = on_garbage
        self._reader = AnswerReader()
        self._broken = False
        self.wire, self.child_wire = wire_pair()
        try:
            pair = segment_sockets()
        except BaseException:
            self.wire.close()
            self.child_wire.close()
            raise
        self.segments: SegmentSocket | None
        self.child_segments: SegmentSocket | None
        self.segments, self.child_segments = (None, None) if pair is None else pair
        self.send = driver.sender(self.wire)
        """Sends a small message."""

    @property
    def cut_off(self) -> bool:
        """Whether what came last is the beginning of something."""
        return self._reader.in_message

    @property
    def can_take_back(self) -> bool:
        return self._driver.can_take_back

    def open(self) -> None:
        """Begin to receive."""
        self._driver.attach(self.wire, self._receive)

    def send_pieces(self, pieces: Iterable[Buffer]) -> None:
        self._driver.run(lambda: self.wire.send(pieces))

    def take_back(self) -> int:
        """Take back what the worker has not begun to receive; return how many calls that were."""
        taken = 0
        while self.child_wire.take_back(SLOT_BYTES):
            taken += 1
        return taken

    def drain(self) -> None:
        """Take in now what the worker has answered."""
        self.wire.drain()

    def drain_dead(self, then: Callable[[], object]) -> None:
        """Called by the watcher: take in what the dead worker has left; then go on in the loop."""
        self._driver.drain(self.wire, then)

    def close(self) -> None:
        """The worker has ended, or never lived."""
        self._driver.run(self._close)

    def forget(self) -> None:
        """In a fork of this process: close our copies of what belongs to its parent."""
        self.wire.forget()
        self._close_others()

    def _close(self) -> None:
        self.wire.close()
        self._close_others()

    def _close_others(self) -> None:
        self.child_wire.close()
        for end in (self.segments, self.child_segments):
            if end is not None:
                end.close()

    def _receive(self, data: bytes) -> None:
        if data and not self._broken:
            try:
                messages = self._reader.feed(data)
            except BadFrameError as error:
                self._broken = True
                self._on_garbage(error)
            else:
                if messages:
                    self._on_messages(messages)
