"""Waiting for descriptors in the event loop itself, with no thread between.

The two classes have the interface of :class:`creche._platform.Poller`, as far as a wire uses it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from ._loops import EventLoop

_Callback = Callable[[], None]


class AsyncioPoller:
    """Calls back from an asyncio loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def watch(self, descriptor: int, callback: _Callback) -> None:
        self._loop.add_reader(descriptor, callback)

    def watch_writable(self, descriptor: int, callback: _Callback) -> None:
        self._loop.add_writer(descriptor, callback)

    def unwatch(self, descriptor: int) -> None:
        if not self._loop.is_closed():
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)

    def unwatch_writable(self, descriptor: int) -> None:
        if not self._loop.is_closed():
            self._loop.remove_writer(descriptor)


class TrioPoller:
    """Calls back from system tasks of Trio, one for each descriptor and direction."""

    def __init__(self) -> None:
        self._trio = sys.modules["trio"]
        self._scopes: dict[tuple[int, bool], Any] = {}

    def watch(self, descriptor: int, callback: _Callback) -> None:
        self._watch(descriptor, False, callback)

    def watch_writable(self, descriptor: int, callback: _Callback) -> None:
        self._watch(descriptor, True, callback)

    def unwatch(self, descriptor: int) -> None:
        known = [self._scopes.pop((descriptor, write), None) for write in (False, True)]
        if any(known):
            # Now, not when the tasks get to run: the descriptor is about to be closed.
            self._trio.lowlevel.notify_closing(descriptor)
            for scope in filter(None, known):
                scope.cancel()

    def unwatch_writable(self, descriptor: int) -> None:
        scope = self._scopes.pop((descriptor, True), None)
        if scope is not None:
            scope.cancel()

    def _watch(self, descriptor: int, write: bool, callback: _Callback) -> None:
        if (descriptor, write) not in self._scopes:
            scope = self._scopes[descriptor, write] = self._trio.CancelScope()
            wait = self._trio.lowlevel.wait_writable if write else self._trio.lowlevel.wait_readable
            self._trio.lowlevel.spawn_system_task(
                self._call_back, wait, descriptor, callback, scope, name="creche-poller"
            )

    async def _call_back(
        self, wait: Callable[[int], Any], descriptor: int, callback: _Callback, scope: Any
    ) -> None:
        with scope:
            # Whoever cancels closes the descriptor, which need not wake this task, nor come first.
            while not scope.cancel_called:
                try:
                    await wait(descriptor)
                except self._trio.ClosedResourceError:
                    return
                if not scope.cancel_called:
                    callback()


def loop_poller(loop: EventLoop) -> AsyncioPoller | TrioPoller:
    """Return a poller of the event loop that the caller runs in."""
    return AsyncioPoller(loop) if isinstance(loop, asyncio.AbstractEventLoop) else TrioPoller()
