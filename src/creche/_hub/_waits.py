"""Tasks and threads that wait for an answer, none of which takes a thread to do so."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import anyio
import anyio.lowlevel

from .._loops import EventLoop, Waiter, current_loop, current_task, is_current, post, waiter_in
from .._platform import LONGEST_DEAF_WAIT
from .._wire._framing import Section
from ._states import Party, Ticket

# Seconds. What can be done at once does not give way to other tasks each time: that would take a
# multiple of it.
_TURN = 0.001


_NOBODY = Party(0)


class Wait(Ticket):
    """A request of this process, and whoever waits for it to be answered.

    It is armed, before anybody else can answer it, or not at all where it is answered at once.
    """

    __slots__ = ("_error", "_value", "asked", "is_done")

    def __init__(self, holder: int = 0, body: Section | None = None) -> None:
        super().__init__(_NOBODY, 0, holder, [] if body is None else body)
        self.asked: Any = None
        """Who is to answer: set, with party and number, by whoever asks."""
        self.is_done = False
        self._value: Any = None
        self._error: BaseException | None = None

    def settle(self, value: object) -> bool:
        self._value = value
        self.is_done = True
        return self._wake()

    def fail(self, error: BaseException) -> None:
        """Have it end in an error."""
        self._error = error
        self.is_done = True
        self._wake()

    def interrupt(self) -> None:
        """Have whoever waits go on without the answer: they look around, and wait again."""
        self._wake()

    def result(self) -> Any:
        """Return what was answered.

        :raises Exception: where that was an error
        """
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # or it would refer to itself, through its traceback
        return self._value

    def arm(self) -> None:
        """From now on, other threads may answer."""

    def _wake(self) -> bool:
        return True


class AsyncWait(Wait):
    """Waits in a task."""

    __slots__ = ("_loop", "_waiter")

    def __init__(self, holder: int = 0, body: Section | None = None) -> None:
        super().__init__(holder, body)
        self._loop: EventLoop = None
        self._waiter: Waiter | None = None

    def arm(self) -> None:
        self._loop = current_loop()
        self._waiter = waiter_in(self._loop)

    def _wake(self) -> bool:
        if self._waiter is None:
            return True
        if is_current(self._loop):
            self._waiter.wake_soon()
            return True
        return post(self._loop, self._waiter.wake)

    async def wait(self) -> None:
        """Wait for the answer, or give way to other tasks now and then if it is here."""
        if self._waiter is not None:
            await self._waiter
        else:
            await give_way()

    async def wait_again(self) -> None:
        """Wait for the answer after an interruption."""
        self._waiter = waiter_in(self._loop)
        if not self.is_done:  # or whoever answered may have woken the one before
            await self._waiter


class ThreadWait(Wait):
    """Waits in a thread."""

    __slots__ = ("_gate",)

    def __init__(self, holder: int = 0, body: Section | None = None) -> None:
        super().__init__(holder, body)
        self._gate: threading.Lock | None = None

    def arm(self) -> None:
        self._gate = threading.Lock()
        self._gate.acquire()

    def _wake(self) -> bool:
        if self._gate is not None:
            with contextlib.suppress(RuntimeError):  # woken twice: see interrupt()
                self._gate.release()
        return True

    def wait(self, timeout: float | None) -> bool:
        """Wait for the answer, or an interruption; return whether there was one."""
        if self._gate is None:
            return True
        if LONGEST_DEAF_WAIT is None:
            return self._gate.acquire(timeout=-1 if timeout is None else _limited(timeout))
        # A request to stop is heard of between two waits only.
        give_up = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LONGEST_DEAF_WAIT if give_up is None else give_up - time.monotonic()
            if self._gate.acquire(timeout=min(max(left, 0.0), LONGEST_DEAF_WAIT)):
                return True
            if left <= 0:
                return False


def _limited(timeout: float) -> float:
    return min(timeout, threading.TIMEOUT_MAX)


def current_holder() -> tuple[int, object]:
    """Identify the task, or the thread where there is none, that runs this.

    :return: a number, which is nobody else's as long as the object exists
    """
    task = current_task()
    return (threading.get_ident(), None) if task is None else (id(task), task)


class _Turn(threading.local):
    end = 0.0


_turn = _Turn()


async def give_way() -> None:
    """Let other tasks run if none of them has had the chance for a while. Not to be cancelled."""
    if time.monotonic() >= _turn.end:
        await anyio.lowlevel.cancel_shielded_checkpoint()
        _turn.end = time.monotonic() + _TURN
