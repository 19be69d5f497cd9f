"""What a child reports of its progress, as the parent sees it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import anyio.lowlevel

from ._loops import Latch
from ._wire._framing import BadFrameError, Section

__all__ = ["Progress", "ProgressFeed"]


@dataclass(frozen=True, slots=True)
class Progress:
    """What a child has given to :func:`creche.from_process.report`."""

    done: float
    """How much is done, in whatever units the child counts."""
    total: float | None = None
    """How much there is, if that is known."""
    message: str | None = None
    """What the child is at."""


class ProgressFeed:
    """The progress of a process: ``process.progress``.

    An async iterable of :class:`Progress`, which ends with the process::

        async for progress in process.progress:
            print(progress.done, progress.total)

    Progress is a state, not a stream of events: who reads slower than the child reports gets the
    newest report, and always the last one. Any number of tasks may read, each gets all. It is a
    source for :func:`creche.progress.track`. Cancellation of a reader loses nothing.
    """

    def __init__(self) -> None:
        self._latest: Progress | None = None
        self._latest_at = -math.inf  # by time.monotonic()
        self._version = 0
        self._ended = False
        self._changed = Latch()

    @property
    def latest(self) -> Progress | None:
        """The newest report, or ``None`` before the first."""
        return self._latest

    @property
    def done(self) -> float:
        """How much is done by the newest report; 0 before the first."""
        return 0 if self._latest is None else self._latest.done

    @property
    def total(self) -> float | None:
        """How much there is by the newest report, if that is known."""
        return None if self._latest is None else self._latest.total

    def __aiter__(self) -> AsyncIterator[Progress]:
        return _Reports(self)

    def _report(self, progress: Progress) -> None:
        """In the watcher: the child has said something."""
        self._latest = progress
        self._latest_at = time.monotonic()
        self._version += 1
        self._wake()

    def _end(self) -> None:
        """From any thread: the process has ended."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, Latch()
        changed.set()


class _Reports:
    def __init__(self, feed: ProgressFeed) -> None:
        self._feed = feed
        self._seen = 0

    def __aiter__(self) -> _Reports:
        return self

    async def __anext__(self) -> Progress:
        feed = self._feed
        # Where the child reports faster than they are dealt with, there is always a new one.
        await anyio.lowlevel.checkpoint()
        while True:
            changed, ended = feed._changed, feed._ended  # before looking: it may change meanwhile
            if feed._version != self._seen:
                self._seen = feed._version
                assert feed._latest is not None
                return feed._latest
            if ended:
                raise StopAsyncIteration
            await changed.wait()


def encode_progress(done: float, total: float | None, message: str | None) -> Section:
    return [json.dumps([done, total, message]).encode()]


def decode_progress(section: Section) -> Progress:
    """Read a report, in the watcher: there is nothing in it that could run anybody's code.

    :raises BadFrameError: if it is none
    """
    try:
        done, total, message = json.loads(b"".join(section))
        return Progress(done, total, message)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadFrameError("the child has sent a report that is none") from error
