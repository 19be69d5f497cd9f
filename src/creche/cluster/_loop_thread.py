"""A thread with an asyncio event loop, in which Dask's client lives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from .._loops import Latch

T = TypeVar("T")


class LoopThread:
    """One thread a pool: the application's event loop may be Trio's, and Dask's work never holds it
    up.

    :param name: of the thread
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._ended = Latch()
        self._tasks: set[asyncio.Task[object]] = set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, callback: Callable[[], object]) -> None:
        """Call something in the thread, soon."""
        self.loop.call_soon_threadsafe(callback)

    async def run(self, func: Callable[[], Awaitable[T]]) -> T:
        """Run an async function in the thread. Cancellation cancels it, and waits for its end."""
        done = Latch()
        task: asyncio.Task[T] | None = None
        cancelled = False

        async def work() -> T:
            return await func()

        def start() -> None:
            nonlocal task
            task = self.loop.create_task(work())
            task.add_done_callback(lambda _: done.set())
            if cancelled:
                task.cancel()

        def cancel() -> None:
            nonlocal cancelled
            cancelled = True
            if task is not None:
                task.cancel()

        self.call(start)
        try:
            await done.wait()
        except BaseException:
            self.call(cancel)
            with anyio.CancelScope(shield=True):
                await done.wait()
            assert task is not None
            if not task.cancelled():
                task.exception()  # nobody is interested
            raise
        assert task is not None
        return task.result()

    def spawn(self, work: Awaitable[object]) -> asyncio.Task[object]:
        """In the thread: run something in a task that nobody waits for."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """End the thread; wait until it is gone. Shielded."""
        self.call(self.loop.stop)
        with anyio.CancelScope(shield=True):
            await self._ended.wait()
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            self._ended.set()
