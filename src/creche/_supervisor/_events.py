"""What happens under a supervisor: events, and those who read them."""

from __future__ import annotations

import math
import weakref
from collections import deque
from dataclasses import dataclass

import anyio.lowlevel

from ._changes import Changes

__all__ = [
    "ChildExited",
    "ChildReady",
    "ChildRestarting",
    "ChildStarted",
    "SupervisorEvent",
    "SupervisorEvents",
    "SupervisorGaveUp",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorEvent:
    """Something that happened under a supervisor. Base class of all such events."""

    supervisor: str
    """The name of the supervisor; of a nested one, after those that it is nested in:
    ``"outer/inner"``."""
    time: float
    """When it happened, by :func:`time.monotonic`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStarted(SupervisorEvent):
    """A process was started, or a nested supervisor begins to start its children."""

    child: str
    """The name of the child."""
    pid: int | None
    """The process id; ``None`` for a nested supervisor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildReady(SupervisorEvent):
    """A child serves: it has called :func:`creche.from_process.started`, if it is to do so."""

    child: str
    pid: int | None
    seconds: float
    """How long that took, from when it was to be started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildExited(SupervisorEvent):
    """A process has ended, or could not be started; or a nested supervisor has ended."""

    child: str
    pid: int | None
    exitcode: int | None
    """The exit code of the process, if there was one."""
    exception: BaseException | None
    """What was wrong. ``None`` where the child has ended in order, or was stopped. One that was to
    stop may have failed at that: its clean-up has raised this, or it is a
    :exc:`creche.ProcessStuckError`."""
    stopped: bool
    """Whether the supervisor wanted that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildRestarting(SupervisorEvent):
    """A child will be started again."""

    child: str
    delay: float
    """In how many seconds; those that are started before it may take time on top."""
    attempt: int
    """How many times in a row it has failed: see :class:`creche.Backoff`."""
    exception: BaseException | None
    """Why. ``None`` where it has not failed itself: because of the strategy, or on demand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorGaveUp(SupervisorEvent):
    """There were too many restarts: the supervisor stops all of its children, and fails."""

    failures: tuple[BaseException, ...]
    """What has failed within the last ``period`` seconds, the oldest first."""


class SupervisorEvents:
    """The events of a supervisor from one moment on: what :meth:`creche.Supervisor.events` gives.

    An async iterator that ends with the supervisor. Each has a buffer of its own: a reader that is
    slower than the events loses none, unless there are more of them in the buffer than it was made
    for. Then the oldest are dropped, and counted. Cancellation of a reader loses nothing.
    """

    def __init__(self, buffer: float) -> None:
        self._buffer = buffer
        self._events: deque[SupervisorEvent] = deque()
        self._changes = Changes()
        self._ended = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """How many events were lost because nobody read them in time."""
        return self._dropped

    def __aiter__(self) -> SupervisorEvents:
        return self

    async def __anext__(self) -> SupervisorEvent:
        if self._events:
            await anyio.lowlevel.checkpoint()
        if not self._events:  # or not any more: another task was faster
            await self._changes.wait_until(lambda: self._events or self._ended)
        if not self._events:
            raise StopAsyncIteration
        return self._events.popleft()

    def _add(self, event: SupervisorEvent) -> None:
        if len(self._events) >= self._buffer:
            self._events.popleft()
            self._dropped += 1
        self._events.append(event)
        self._changes.notify()

    def _end(self) -> None:
        self._ended = True
        self._changes.notify()


class EventHub:
    """Hands each event to all who read them."""

    def __init__(self) -> None:
        # A reader that nobody has any more is not worth its memory.
        self._readers: weakref.WeakSet[SupervisorEvents] = weakref.WeakSet()
        self._ended = False
        self.outer: EventHub | None = None
        """That of the supervisor that this one is nested in."""

    def publish(self, event: SupervisorEvent) -> None:
        if self.outer is not None:
            self.outer.publish(event)
        for reader in list(self._readers):
            reader._add(event)

    def reader(self, buffer: float) -> SupervisorEvents:
        """
        :raises ValueError: if ``buffer`` is not at least 1
        :raises TypeError: if it is no number
        """
        if isinstance(buffer, bool) or not (isinstance(buffer, int) or buffer == math.inf):
            raise TypeError(f"buffer must be a whole number or math.inf, not {buffer!r}")
        if buffer < 1:
            raise ValueError(f"buffer must be at least 1 event, not {buffer}")
        reader = SupervisorEvents(buffer)
        if self._ended:
            reader._end()
        else:
            self._readers.add(reader)
        return reader

    def end(self) -> None:
        self._ended = True
        for reader in list(self._readers):
            reader._end()
