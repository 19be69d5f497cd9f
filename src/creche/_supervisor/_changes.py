"""Waiting until something is so, in one event loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import anyio
import anyio.lowlevel


class Changes:
    """Wakes all who wait for a condition whenever it may have come true."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def notify(self) -> None:
        event, self._event = self._event, None
        if event is not None:
            event.set()

    async def wait_until(
        self, condition: Callable[[], object], timeout: float | None = None
    ) -> None:
        """Wait until ``condition`` holds, for ``timeout`` seconds at most."""
        if condition():
            await anyio.lowlevel.checkpoint()
            return
        with anyio.move_on_after(math.inf if timeout is None else timeout):
            while not condition():
                if self._event is None:
                    self._event = anyio.Event()
                await self._event.wait()
