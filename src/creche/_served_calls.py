"""Calling functions in an event loop on behalf of somebody who is not in it."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import anyio

from ._loops import EventLoop, Latch, spawn
from ._shielded import shielded
from ._wire._outcomes import Failure, Outcome, Value

K = TypeVar("K")

# On whose behalf the current task runs.
_serving: contextvars.ContextVar[ServedCalls[Any] | None] = contextvars.ContextVar(
    "creche_serving", default=None
)


class ServedCalls(Generic[K]):
    """The functions that run, each by a key. Async ones run in a task each."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._cancels: dict[K, Callable[[], None]] = {}
        self._over: Latch | None = None

    def __len__(self) -> int:
        return len(self._cancels)

    def call(
        self,
        key: K,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        reply: Callable[[K, Outcome], object],
        *,
        awaits: bool,
    ) -> None:
        """Call a function, in the event loop.

        :param reply: called there with what became of it
        :param awaits: whether it is async
        """
        if awaits:
            self._cancels[key] = spawn(
                self._loop,
                lambda: self._run(key, func, args, reply),
                on_end=lambda: self._ended(key),
            )
            return
        try:
            value = func(*args)
        except BaseException as error:
            reply(key, Failure(error))
        else:
            reply(key, Value(value))

    def cancel(self, key: K) -> None:
        """Nobody waits for what comes of a function any more."""
        cancel = self._cancels.get(key)
        if cancel is not None:
            cancel()

    def cancel_all(self) -> None:
        for cancel in list(self._cancels.values()):
            cancel()

    async def wait_over(self) -> None:
        """Cancel what runs, and wait for its end. Shielded."""
        # One of them may itself wait for the end of those on whose behalf it runs.
        if self._cancels and _serving.get() is not self:
            self.cancel_all()
            if self._over is None:
                self._over = Latch()
            await shielded(self._over.wait)

    async def _run(
        self,
        key: K,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        reply: Callable[[K, Outcome], object],
    ) -> None:
        _serving.set(self)
        try:
            value = await func(*args)
        except BaseException as error:
            reply(key, Failure(error))
            if isinstance(error, anyio.get_cancelled_exc_class()):
                raise
        else:
            reply(key, Value(value))

    def _ended(self, key: K) -> None:
        del self._cancels[key]
        if not self._cancels and self._over is not None:
            self._over.set()
