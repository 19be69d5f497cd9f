"""The connection between a pool and one worker, as the pool sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from .._loop_poller import loop_poller
from .._loops import EventLoop, post
from .._platform import (
    LOOPS_CAN_READ,
    CallReceiver,
    CallSender,
    ParentWire,
    SegmentSocket,
    SharedNumbers,
    StreamWriter,
    call_sockets,
    segment_sockets,
    wire_pair,
)
from .._watcher import Watcher
from .._wire._framing import BadFrameError, Buffer
from .._wire._messages import (
    BEGUN_CALL,
    BEGUN_ITEMS,
    KEPT_IS_UNREAD,
    AnswerReader,
    Message,
    number_of,
)
from ._segment_payloads import SegmentPort


class ChildEnd(Protocol):
    """What the worker gets, and its pool has a copy of."""

    def close(self) -> None: ...


class Driver(Protocol):
    """Whoever waits for the wires of a pool's workers: the event loop, or creche's watcher."""

    drains_at_once: bool
    """Whether what a worker has answered can be taken in at any moment."""

    def attach(self, wire: ParentWire, on_data: Callable[[bytes], None]) -> None: ...

    def run(self, action: Callable[[], object]) -> None:
        """Do something with a wire, where its owner does it."""

    def drain(self, wire: ParentWire, then: Callable[[], object]) -> None:
        """Called by the watcher: take in what a dead worker has left; then go on in the loop."""

    def when_writable(self, stream: StreamWriter, then: Callable[[], object]) -> None:
        """Go on in the loop when a stream can be written to."""

    def give_up(self, stream: StreamWriter) -> None:
        """Close a stream that was given to :meth:`when_writable`."""


class LoopDriver:
    """Wires belong to the event loop: nothing is between the system and the pool."""

    drains_at_once = True

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._poller: Any = loop_poller(loop)

    def attach(self, wire: ParentWire, on_data: Callable[[bytes], None]) -> None:
        wire.attach(self._poller, on_data)

    def run(self, action: Callable[[], object]) -> None:
        action()

    def drain(self, wire: ParentWire, then: Callable[[], object]) -> None:
        def drain_in_loop() -> None:
            try:
                wire.drain()
            finally:  # a task that is resumed by what came may leave through SystemExit
                then()

        post(self._loop, drain_in_loop)

    def when_writable(self, stream: StreamWriter, then: Callable[[], object]) -> None:
        descriptor = stream.fileno()

        def on_writable() -> None:
            self._poller.unwatch_writable(descriptor)
            then()

        self._poller.watch_writable(descriptor, on_writable)

    def give_up(self, stream: StreamWriter) -> None:
        self._poller.unwatch(stream.fileno())
        stream.close()


class WatcherDriver:
    """Wires belong to the watcher's thread, where event loops cannot wait for them."""

    drains_at_once = False

    def __init__(self, loop: EventLoop, watcher: Watcher) -> None:
        self._loop = loop
        self._watcher = watcher

    def attach(self, wire: ParentWire, on_data: Callable[[bytes], None]) -> None:
        def pass_on(data: bytes) -> None:
            post(self._loop, lambda: on_data(data))

        self.run(lambda: wire.attach(self._watcher.poller, pass_on))

    def run(self, action: Callable[[], object]) -> None:
        self._watcher.call_soon(action)  # type: ignore[arg-type]

    def drain(self, wire: ParentWire, then: Callable[[], object]) -> None:
        wire.drain()
        post(self._loop, then)

    def when_writable(self, stream: StreamWriter, then: Callable[[], object]) -> None:
        descriptor = stream.fileno()
        poller: Any = self._watcher.poller  # of descriptors, as there are streams

        def on_writable() -> None:
            poller.unwatch_writable(descriptor)
            post(self._loop, then)

        self.run(lambda: poller.watch_writable(descriptor, on_writable))

    def give_up(self, stream: StreamWriter) -> None:
        def close() -> None:
            self._watcher.poller.unwatch(stream.fileno())
            stream.close()

        self.run(close)


def driver_for(loop: EventLoop, watcher: Watcher) -> Driver:
    return LoopDriver(loop) if LOOPS_CAN_READ else WatcherDriver(loop, watcher)


class WorkerChannel:
    """Sends calls, and hands on the answers.

    :raises OSError: if there are no descriptors left
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._on_messages: Callable[[list[Message]], None]
        self._on_garbage: Callable[[BadFrameError], None]
        self._reader = AnswerReader()
        self._broken = False
        with contextlib.ExitStack() as undo:
            self.wire, self.child_wire = wire_pair()
            undo.callback(self.wire.close)
            undo.callback(self.child_wire.close)
            self._child_ends: list[ChildEnd] = [self.child_wire]
            self.shared = SharedNumbers()
            undo.callback(self.shared.close)
            self._calls: CallSender | None = None
            self.child_calls: CallReceiver | None = None
            calls = call_sockets() if driver.drains_at_once else None
            if calls is not None:
                self._calls, self.child_calls = calls
                undo.callback(self._calls.close)
                undo.callback(self.child_calls.close)
                self._child_ends.append(self.child_calls)
            self.segments: SegmentPort | None = None
            self.child_segments: SegmentSocket | None = None
            segments = segment_sockets()
            if segments is not None:
                ours, self.child_segments = segments
                self.segments = SegmentPort(ours, patient=False)
                self._child_ends.append(self.child_segments)
            undo.pop_all()
        self.send: Callable[[bytes], bool] = (
            self._send_over_wire if self._calls is None else self._calls.send
        )
        """Sends a call in one piece; returns whether there was room for it."""

    @property
    def cut_off(self) -> bool:
        """Whether what came last is the beginning of something."""
        return self._reader.in_message

    @property
    def can_take_back(self) -> bool:
        """Whether the worker can be sent calls ahead, and they can be taken back."""
        return self._calls is not None

    def open(
        self,
        on_messages: Callable[[list[Message]], None],
        on_garbage: Callable[[BadFrameError], None],
    ) -> None:
        """Begin to receive.

        :param on_messages: called in the event loop with what came
        :param on_garbage: called there with the reason where it was no message
        """
        self._on_messages = on_messages
        self._on_garbage = on_garbage
        self._driver.attach(self.wire, self._receive)

    def send_large(self, header: bytes, payload: Iterable[Buffer]) -> bool:
        """Send a call of any size; return whether that could be begun."""
        if not self.send(header):
            return False
        self._driver.run(lambda: self.wire.send(payload))
        return True

    def when_writable(self, stream: StreamWriter, then: Callable[[], object]) -> None:
        """Go on when the worker takes more of a stream."""
        self._driver.when_writable(stream, then)

    def give_up(self, stream: StreamWriter) -> None:
        """Close a stream of which the worker was to take more."""
        self._driver.give_up(stream)

    def take_back(self) -> set[int]:
        """Take back what the worker has not received; return the numbers of these messages."""
        return set() if self._calls is None else set(map(number_of, self._calls.take_back()))

    def drain(self) -> None:
        """Take in now what the worker has answered."""
        self.wire.drain()

    def begun_call(self) -> int:
        """The number of the call that the worker has begun, or began last; -1 before the first."""
        return int(self.shared.cells[BEGUN_CALL]) - 1

    def begun_items(self) -> int:
        """How many items the worker has begun of the chunk that it runs."""
        return int(self.shared.cells[BEGUN_ITEMS])

    def has_read_kept(self) -> None:
        """The segment that the worker keeps can be written again."""
        self.shared.cells[KEPT_IS_UNREAD] = 0

    def drain_dead(self, then: Callable[[], object]) -> None:
        """Called by the watcher: take in what the dead worker has left; then go on in the loop."""
        self._driver.drain(self.wire, then)

    def close(self) -> None:
        """The worker has ended, or never lived."""
        self._driver.run(self._close)

    def forget(self, *, child_exists: bool) -> None:
        """In a fork of this process: close our copies of what belongs to its parent.

        :param child_exists: whether the worker does; or else this process may be it
        """
        self.wire.forget()
        if self.segments is not None:
            self.segments.forget()
        if self._calls is not None:
            self._calls.forget(child_exists=child_exists)
        if child_exists:
            self.release_child_ends()

    def release_child_ends(self) -> None:
        """The worker has its own."""
        # A fork that another thread makes meanwhile must not close what has the numbers by then.
        ends, self._child_ends = self._child_ends, []
        for end in ends:
            end.close()
        self.shared.release_descriptor()

    def _close(self) -> None:
        self.wire.close()
        self.release_child_ends()
        self.shared.close()
        if self._calls is not None:
            self._calls.close()
        if self.segments is not None:
            self.segments.close()

    def _send_over_wire(self, message: bytes) -> bool:
        self._driver.run(lambda: self.wire.send_at_once(message))
        return True

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
