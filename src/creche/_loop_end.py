"""Hearing of the end of an event loop."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any


class LoopEnd:
    """Calls back when the event loop in which it was made is about to be closed.

    asyncio and Trio alike close the async generators that are left when all tasks are over.
    (Whoever closes a loop of asyncio's by hand has to ask for that.)
    """

    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback: Callable[[], object] | None = callback
        self._generator = self._generate()
        _run(self._generator.__anext__())  # from here on the loop knows of it

    def forget(self) -> None:
        """Do not call back. In the event loop."""
        if self._callback is not None:
            self._callback = None
            _run(self._generator.aclose())

    async def _generate(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            callback, self._callback = self._callback, None
            if callback is not None:
                callback()


def _run(step: Any) -> None:
    """Run what never waits."""
    with contextlib.suppress(StopIteration):
        step.send(None)
