"""Waiting for what comes in any case."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import anyio


async def shielded(wait: Callable[[], Awaitable[object]]) -> None:
    """Wait, whatever is cancelled meanwhile.

    A scope shields from other scopes, but not from asyncio's own cancellation (``task.cancel()``).
    That is raised when the wait is over.

    :param wait: what to await; called again where a cancellation has ended it
    """
    cancelled: asyncio.CancelledError | None = None
    while True:
        try:
            with anyio.CancelScope(shield=True):
                await wait()
                break
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
