"""An object that processes share: what a lock, a queue and the like have in common."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

import anyio.lowlevel

from .._durations import check_timeout
from .._wire._framing import Section
from ._protocol import HubRef, Op
from ._sources import Here, Source, There, after_fork, generation
from ._states import State
from ._waits import AsyncWait, ThreadWait


class Shared:
    """Refers to a state, in this process or another.

    A process has one such object for a state, however often it is passed to it.
    """

    def __init__(self, state: State) -> None:
        self._generation = generation()
        self._source: Source = Here(state)
        self._set_up()

    def _set_up(self) -> None:
        """Begin to use the state: in a new object, and in a fork of its process."""

    # --- asking and telling ---------------------------------------------------------------------

    def _place(self) -> Source:
        """Where the state is."""
        if self._generation != generation():
            self._source = after_fork(self._source, self._generation)
            self._generation = generation()
            self._set_up()
        return self._source

    async def _ask(self, op: Op, wait: AsyncWait) -> Any:
        """Ask, and wait for the answer. A cancelled request is undone."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        source = self._place()
        try:
            source.ask(op, wait)
            await wait.wait()
        except BaseException as error:
            source.give_up(wait, error)
            raise
        return wait.result()

    def _ask_sync(self, op: Op, wait: ThreadWait, timeout: float | None) -> Any:
        """The same in a thread."""
        seconds = check_timeout(timeout)
        source = self._place()
        try:
            source.ask(op, wait)
            if not wait.wait(seconds):
                raise TimeoutError(f"{type(self).__name__}: no answer in {timeout:g} seconds")
        except BaseException:
            source.cancel(wait)
            raise
        return wait.result()

    def _tell(self, op: Op, number: int = 0, holder: int = 0, body: Section | None = None) -> None:
        self._place().tell(op, number, holder, [] if body is None else body)

    async def _statistics(self) -> dict[str, Any]:
        found: dict[str, Any] = await self._ask(Op.STATISTICS, AsyncWait())
        return found

    def _statistics_sync(self, timeout: float | None) -> dict[str, Any]:
        found: dict[str, Any] = self._ask_sync(Op.STATISTICS, ThreadWait(), timeout)
        return found

    # --- passing it on --------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        ref, obj = self._place().refer()
        with _lock:
            _handles.setdefault((ref, obj), self)
        return _find, (type(self), ref, obj)

    def __del__(self) -> None:
        # A request to stop may have struck before __init__ was over.
        source = getattr(self, "_source", None)
        if isinstance(source, Here) and self._generation == generation():
            source.leave()


_handles: weakref.WeakValueDictionary[tuple[HubRef, int], Shared] = weakref.WeakValueDictionary()
_lock = threading.RLock()  # reentrant: the garbage collector may run in between


def _find(kind: type[Shared], ref: HubRef, obj: int) -> Shared:
    """Unpickle: the very object, where there is one in this process."""
    with _lock:
        handle = _handles.get((ref, obj))
        if handle is None:
            handle = kind.__new__(kind)
            handle._generation = generation()
            handle._source = There(ref, obj)
            handle._set_up()
            _handles[ref, obj] = handle
        return handle


def _forget() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
