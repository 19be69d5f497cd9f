"""Waiting for many connections and handles at once, by ``multiprocessing.connection.wait``.

This is how Windows waits; it works on POSIX too, with descriptors in place of handles.

``WaitForMultipleObjects`` takes 64 handles at most, and a process needs two: its own and that of
its pipe. What is more is waited for in batches, each further one in a thread of its own, so that
with *n* processes there are *n* / 30 threads. (From CPython 3.13 on, ``wait`` makes such threads
itself, but new ones each time.) The threads wait while :meth:`ConnectionPoller.poll` does, and have
stopped when it calls back: nobody waits for a handle while a callback reads from it or closes it.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from queue import SimpleQueue
from typing import Any

if sys.platform == "win32":
    from multiprocessing.connection import PipeConnection

    PipeEnd = PipeConnection
else:
    from multiprocessing.connection import Connection

    PipeEnd = Connection

_Callback = Callable[[], None]
_Waitable = int | PipeEnd
"""A Windows handle or a POSIX descriptor, or an end of a pipe, whose handle is not one that Windows
can wait for: ``wait`` starts an asynchronous read of no bytes, and waits for the end of that."""

# A wake-up socket belongs to each batch, and CPython adds events of its own.
_BATCH_SIZE = 60

# The system counts milliseconds in 32 bits.
_LONGEST_WAIT = 24 * 60 * 60.0


class ConnectionPoller:
    """Calls back when waitables become ready. One thread uses it; any thread may wake it."""

    def __init__(self, batch_size: int = _BATCH_SIZE) -> None:
        self._batch_size = batch_size
        self._callbacks: dict[_Waitable, _Callback] = {}
        self._waker = _Waker()
        self._helpers: list[_Helper] = []

    def watch(self, waitable: _Waitable, callback: _Callback) -> None:
        """Call ``callback`` whenever ``waitable`` is ready, readable or at its end."""
        self._callbacks[waitable] = callback

    def unwatch(self, waitable: _Waitable) -> None:
        """Forget ``waitable``, which is still open."""
        self._callbacks.pop(waitable, None)

    def wake(self) -> None:
        """Make :meth:`poll` return, now or the next time."""
        self._waker.wake()

    def poll(self, timeout: float | None) -> None:
        """Wait at most ``timeout`` seconds for something to become ready, and call back.

        May return early, with nothing ready.
        """
        for waitable in self._wait(None if timeout is None else min(timeout, _LONGEST_WAIT)):
            # An earlier callback of this round may have unwatched this one.
            callback = self._callbacks.get(waitable)
            if callback is not None:
                callback()

    def close(self) -> None:
        """Close what the poller itself opened."""
        for helper in self._helpers:
            helper.close()
        self._waker.close()

    def _wait(self, timeout: float | None) -> list[_Waitable]:
        waitables = list(self._callbacks)
        size = self._batch_size
        first, *others = [waitables[i : i + size] for i in range(0, len(waitables), size)] or [[]]
        while len(self._helpers) < len(others):
            self._helpers.append(_Helper(on_ready=self.wake))
        waiting = self._helpers[: len(others)]
        for helper, batch in zip(waiting, others, strict=True):
            helper.begin(batch)
        try:
            woken, ready = self._waker.wait_with(first, timeout)
            if woken:
                self._waker.clear()
        finally:
            for helper in waiting:
                helper.interrupt()
            results = [helper.end() for helper in waiting]
        for result in results:
            if isinstance(result, BaseException):
                raise result
            ready += result
        return ready


class _Waker:
    """Ends a wait from another thread."""

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        # Not the receiver: `wait` reads from it asynchronously on Windows, and we read when we know
        # that there is something.
        self._sender.setblocking(False)

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is awake
            self._sender.send(b"\0")

    def wait_with(
        self, waitables: Sequence[_Waitable], timeout: float | None
    ) -> tuple[bool, list[_Waitable]]:
        """Wait; return whether this was woken, and what of ``waitables`` is ready."""
        everything: list[Any] = [self._receiver, *waitables]
        ready: list[Any] = wait(everything, timeout)
        woken = self._receiver in ready
        return woken, [waitable for waitable in ready if waitable is not self._receiver]

    def clear(self, wakes: int = 4096) -> None:
        """Forget that it was woken, at most ``wakes`` times; block if it was not."""
        self._receiver.recv(wakes)

    def close(self) -> None:
        self._receiver.close()
        self._sender.close()


class _Helper:
    """A thread that waits for one batch at a time.

    :param on_ready: called in the thread when something in the batch is ready
    """

    def __init__(self, on_ready: Callable[[], None]) -> None:
        self._on_ready = on_ready
        self._waker = _Waker()
        self._batches: SimpleQueue[list[_Waitable] | None] = SimpleQueue()
        self._results: SimpleQueue[list[_Waitable] | BaseException] = SimpleQueue()
        threading.Thread(target=self._run, name="creche-watcher-helper", daemon=True).start()

    def begin(self, batch: list[_Waitable]) -> None:
        self._batches.put(batch)

    def interrupt(self) -> None:
        """Stop waiting. To be called exactly once for each :meth:`begin`."""
        self._waker.wake()

    def end(self) -> list[_Waitable] | BaseException:
        """After :meth:`interrupt`: return what is ready, or why that could not be found out."""
        return self._results.get()

    def close(self) -> None:
        self._waker.close()
        self._batches.put(None)

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            result: list[_Waitable] | BaseException
            try:
                interrupted, result = self._waker.wait_with(batch, None)
            except BaseException as error:
                interrupted, result = False, error
            if not interrupted:
                self._on_ready()
            self._waker.clear(wakes=1)  # the one interrupt of this round, which may come only now
            self._results.put(result)
            del batch, result  # an idle thread keeps nothing alive
