"""The lines that a process writes, as a stream."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import anyio
import anyio.lowlevel
from anyio.abc import ObjectReceiveStream

from ._loops import EventLoop, Waiter, current_loop, post, waiter_in
from ._output_lines import LineSplitter

# Bytes that are read ahead. What a process writes beyond that stays in its pipe, and then it waits.
_BUFFER_BYTES = 64 * 1024

# Seconds for which lines that are here are handed out without letting other tasks run.
_LONGEST_TURN = 0.001


class LineStream(ObjectReceiveStream[str]):
    """Receives lines in any event loop; the watcher feeds it.

    :param on_room: called, in any thread, when there is room again after :meth:`feed` has said that
        there is none
    """

    def __init__(self) -> None:
        self.on_room: Callable[[], object] = _do_nothing
        self._splitter = LineSplitter()
        self._lines: deque[str] = deque()
        self._waiter: Waiter | None = None
        self._yielded = time.monotonic()
        self._lock = threading.Lock()  # guards what follows
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._limit = _BUFFER_BYTES
        self._full = False
        self._ended = False
        self._closed = False
        self._sleeper: tuple[EventLoop, Callable[[], None]] | None = None

    # --- in an event loop -----------------------------------------------------------------------

    async def receive(self) -> str:
        """Return the next line, without its newline.

        Cancellation loses no line.

        :raises anyio.EndOfStream: if there will be no more
        :raises anyio.ClosedResourceError: if the stream was closed
        :raises anyio.BusyResourceError: if another task is waiting for the next line
        """
        if time.monotonic() - self._yielded > _LONGEST_TURN:
            await anyio.lowlevel.checkpoint()
            self._yielded = time.monotonic()
        else:
            await anyio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self._closed:
                raise anyio.ClosedResourceError
            if self._waiter is not None:
                raise anyio.BusyResourceError("receiving from")
            if self._lines:
                return self._lines.popleft()
            ended = self._ended  # before looking for what comes before that
            chunk = self._take_chunk()
            if chunk is not None:
                self._lines.extend(self._splitter.feed(chunk))
            elif ended:
                self._lines.extend(self._splitter.finish())
                if not self._lines:
                    raise anyio.EndOfStream
            else:
                await self._wait()

    async def aclose(self) -> None:
        """Close the stream. The process does not notice: what it writes is thrown away."""
        with self._lock:
            self._closed = True
        self._lines.clear()
        while self._take_chunk() is not None:
            pass
        self._wake()  # who receives may do so in another event loop
        await anyio.lowlevel.checkpoint()

    async def _wait(self) -> None:
        loop = current_loop()
        self._waiter = waiter_in(loop)
        try:
            if self._sleep(loop, self._waiter):
                await self._waiter
                self._yielded = time.monotonic()
        finally:
            self._waiter = None

    def _take_chunk(self) -> bytes | None:
        with self._lock:
            if not self._chunks:
                return None
            chunk = self._chunks.popleft()
            self._size -= len(chunk)
            has_room = self._full and self._size < self._limit
            self._full = self._full and not has_room
        if has_room:
            self.on_room()
        return chunk

    def _sleep(self, loop: EventLoop, waiter: Waiter) -> bool:
        """Have ``waiter`` woken by what comes next; ``False`` where something has come already."""
        with self._lock:
            if self._chunks or self._ended or self._closed:
                return False
            self._sleeper = loop, waiter.wake_soon
            return True

    def _wake(self) -> None:
        with self._lock:
            sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None:
            loop, wake = sleeper
            post(loop, wake)

    # --- in the watcher -------------------------------------------------------------------------

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; return whether there is room for more."""
        with self._lock:
            if self._closed:
                return True
            self._chunks.append(data)
            self._size += len(data)
            self._full = self._size >= self._limit
            has_room = not self._full
        self._wake()
        return has_room

    def end(self) -> None:
        """There is nothing more to come. From any thread."""
        with self._lock:
            self._ended = True
        self._wake()

    def take_more(self, size: int) -> None:
        """Make room for so many bytes, whether anybody receives or not."""
        with self._lock:
            self._limit += size
            has_room, self._full = self._full, False
        if has_room:
            self.on_room()


def _do_nothing() -> None:
    pass
