"""Waiting for an end of a channel, in event loops and in threads without one."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from .._loop_poller import AsyncioPoller
from .._loops import EventLoop, Waiter, is_current, post, waiter_in
from .._platform import LONGEST_WAIT, PacketReceiver, PacketSender, Watch

T = TypeVar("T")

Transport = PacketSender | PacketReceiver


class LoopWait:
    """Tasks of one event loop that wait for one end.

    All are woken when there may be something for one of them, so that it does not matter which of
    them are cancelled just then.

    :raises ValueError: if the end is closed
    :raises OSError: if there are no descriptors left
    """

    def __init__(self, loop: EventLoop, transport: Transport) -> None:
        self.loop = loop
        self._transport = transport
        self._watch: Watch = transport.open_watch()
        self._descriptor = self._watch.fileno()
        self._waiters: deque[Waiter] = deque()
        self._inside = 0
        self._over = False
        self._closed = False
        self._watching = False  # by asyncio's poller, or by a task of Trio
        self._poller = AsyncioPoller(loop) if isinstance(loop, asyncio.AbstractEventLoop) else None

    async def wait(self) -> None:
        """Wait until there may be items, or room, or the end is closed."""
        self._inside += 1
        try:
            if self._poller is None and not self._watching:
                await self._wait_for_all()
            else:
                await self._wait_to_be_told()
        finally:
            self._inside -= 1
            if self._over and not self._inside:
                self._close()

    def end(self) -> None:
        """The end is closed: close the watch when the last task has left."""
        self._over = True
        self._wake()
        if not self._inside:
            self._close()

    def end_from_anywhere(self) -> None:
        """Do :meth:`end` where the loop runs; without it, if it has ended."""
        if is_current(self.loop):
            self.end()
        elif not post(self.loop, self.end):
            self._over = True
            self._close()

    def forget(self) -> None:
        """In a fork of this process: close our copy of the descriptor."""
        self._watch.close()

    @property
    def unused(self) -> bool:
        return not self._inside

    async def _wait_to_be_told(self) -> None:
        if self._poller is not None and not self._watching:
            # It goes on when nobody waits any more, until that is in vain for once: whoever waits
            # often does not pay for it each time.
            self._poller.watch(self._descriptor, self._on_ready)
            self._watching = True
        waiter = waiter_in(self.loop)
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    async def _wait_for_all(self) -> None:
        """Under Trio, one task waits for the descriptor, and tells the others."""
        self._watching = True
        try:
            await sys.modules["trio"].lowlevel.wait_readable(self._descriptor)
            self._watch.clear()
        finally:
            self._watching = False
            self._wake()

    def _on_ready(self) -> None:
        if not self._waiters:
            self._unwatch()
            return
        self._watch.clear()
        first = self._waiters.popleft()
        self._wake()
        first.wake()

    def _wake(self) -> None:
        while self._waiters:
            self._waiters.popleft().wake_soon()

    def _unwatch(self) -> None:
        if self._poller is not None and self._watching:
            self._watching = False
            self._poller.unwatch(self._descriptor)

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._unwatch()
            self._transport.close_watch(self._watch)


class ThreadWait:
    """Threads that wait for one end. The first one keeps its watch for the next time."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = threading.Lock()
        self._kept: Watch | None = None
        self._over = False

    def wait(self, attempt: Callable[[], T | None], timeout: float | None) -> T | None:
        """Try again and again until something comes of it; ``None`` when the time is over.

        A signal handler that raises ends the wait.

        :raises ValueError: if the end is closed
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        watch = self._take()
        try:
            while True:
                watch.clear()
                if (result := attempt()) is not None:
                    return result
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                watch.wait(None if left is None else min(left, LONGEST_WAIT))
        finally:
            self._put_back(watch)

    def end(self) -> None:
        """The end is closed."""
        with self._lock:
            self._over = True
            watch, self._kept = self._kept, None
        if watch is not None:
            self._transport.close_watch(watch)

    def forget(self) -> None:
        """In a fork of this process: close our copy of the descriptor."""
        if self._kept is not None:
            self._kept.close()

    def _take(self) -> Watch:
        with self._lock:
            watch, self._kept = self._kept, None
        return self._transport.open_watch() if watch is None else watch

    def _put_back(self, watch: Watch) -> None:
        with self._lock:
            if self._kept is None and not self._over:
                self._kept = watch
                return
        self._transport.close_watch(watch)
