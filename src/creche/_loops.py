"""All that differs between asyncio and Trio, and the one way from a thread into an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from ._ctrl_c import postpone_ctrl_c, trio_lowlevel
from ._errors import ProcessStateError

T = TypeVar("T")

EventLoop = Any
"""An ``asyncio.AbstractEventLoop`` or a ``trio.lowlevel.TrioToken``: both identify a running loop
and can be compared with ``is``. (Trio may be missing, so there is no closer type.)"""


def current_loop() -> EventLoop:
    """Return the event loop that the caller runs in.

    :raises ProcessStateError: if there is none
    """
    # Trio first: in its guest mode an asyncio or a GUI loop is the host of the same thread.
    lowlevel = _trio_lowlevel()
    if lowlevel is not None:
        return lowlevel.current_trio_token()
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ProcessStateError(
            "this must be called from a task of a running asyncio or Trio event loop"
        ) from None


def is_current(loop: EventLoop) -> bool:
    """Whether the caller runs in ``loop``. Takes a fraction of the time of :func:`current_loop`."""
    lowlevel = _trio_lowlevel()
    if lowlevel is not None:
        return loop is lowlevel.current_trio_token()
    return loop is asyncio._get_running_loop()


def current_task() -> object | None:
    """Return the task that the caller runs in, or ``None`` where it runs in none."""
    lowlevel = _trio_lowlevel()
    if lowlevel is not None and lowlevel.in_trio_task():
        return lowlevel.current_task()  # type: ignore[no-any-return]
    return None if asyncio._get_running_loop() is None else asyncio.current_task()


def runs_in_loop() -> bool:
    """Whether the calling thread runs an event loop, which waits for as long as the caller does."""
    return _trio_lowlevel() is not None or asyncio._get_running_loop() is not None


def _trio_lowlevel() -> Any:
    """``trio.lowlevel``, if the calling thread runs Trio."""
    lowlevel = trio_lowlevel()
    if lowlevel is None or not lowlevel.in_trio_run():
        return None
    postpone_ctrl_c(lowlevel)
    return lowlevel


def backend_of(loop: EventLoop) -> str:
    """Return anyio's name of the loop's backend: ``"asyncio"`` or ``"trio"``."""
    return "asyncio" if isinstance(loop, asyncio.AbstractEventLoop) else "trio"


def post(loop: EventLoop, callback: Callable[[], object]) -> bool:
    """Run ``callback`` soon in ``loop``, from any thread or signal handler.

    :return: ``False`` where the loop is closed by now: nobody is left who waits, so that is no
        error
    """
    try:
        if isinstance(loop, asyncio.AbstractEventLoop):
            loop.call_soon_threadsafe(callback)
        else:
            loop.run_sync_soon(callback)
    except RuntimeError:  # "Event loop is closed"; trio.RunFinishedError
        return False
    return True


def loop_context(loop: EventLoop) -> contextvars.Context:
    """Return a copy of the caller's context, in which callbacks of ``loop`` can run."""
    context = contextvars.copy_context()
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None and isinstance(loop, asyncio.AbstractEventLoop):
        # It does not take a callback for a part of asyncio, as that runs in no task.
        context.run(sniffio.current_async_library_cvar.set, "asyncio")
    return context


def post_in(loop: EventLoop, context: contextvars.Context, callback: Callable[[], object]) -> bool:
    """Do what :func:`post` does, in a context."""
    return post(loop, lambda: context.run(callback))


def run_to_end(main: Callable[[], Awaitable[T]], backend: str) -> T:
    """Run an async function in a new event loop of ``backend``."""
    return anyio.run(main, backend=backend)


def spawn(
    loop: EventLoop,
    run: Callable[[], Awaitable[None]],
    *,
    on_end: Callable[[], object] | None = None,
) -> Callable[[], None]:
    """Run an async function in a task of its own in ``loop``, in which the caller runs.

    :param run: does not raise
    :param on_end: called in the loop when the task has ended; even where it has never begun, as
        nothing runs of an asyncio task that is cancelled before its first step
    :return: what cancels it
    """
    scope = anyio.CancelScope()

    async def task() -> None:
        with scope:
            await run()

    if isinstance(loop, asyncio.AbstractEventLoop):
        # Not create_task(): an eager factory would run it before anybody knows what cancels it.
        running = asyncio.Task(task(), loop=loop)
        _tasks.add(running)
        running.add_done_callback(_tasks.discard)
        if on_end is not None:
            running.add_done_callback(lambda _: on_end())
    else:

        async def trio_task() -> None:
            try:
                await task()
            finally:
                if on_end is not None:
                    on_end()

        sys.modules["trio"].lowlevel.spawn_system_task(
            trio_task, context=contextvars.copy_context(), name="creche-task"
        )
    return scope.cancel


_tasks: set[asyncio.Task[None]] = set()  # a loop keeps but weak references


class Latch:
    """An event that is set once, from any thread, and awaited by any number of event loops.

    This is the only bridge from creche's threads to its callers. Waiters cost a dictionary entry
    each and no thread.
    """

    __slots__ = ("_lock", "_set", "_waiters")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = False
        self._waiters: dict[Callable[[], object], EventLoop | None] | None = None

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        with self._lock:
            self._set = True
            waiters, self._waiters = self._waiters, None
        for wake, loop in (waiters or {}).items():
            if loop is None:
                wake()
            else:
                post(loop, wake)

    def tell(self, callback: Callable[[], object], loop: EventLoop | None) -> None:
        """Have ``callback`` called when the latch is set, or at once where it is.

        :param loop: where it is called; ``None`` for the thread that sets the latch
        """
        if not self._add_waiter(callback, loop):
            if loop is None:
                callback()
            else:
                post(loop, callback)

    async def wait(self) -> None:
        """Wait until the latch is set. Cancellation leaves nothing behind."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        event = anyio.Event()
        if self._add_waiter(event.set, current_loop()):
            try:
                await event.wait()
            finally:
                self._discard_waiter(event.set)
        else:
            await anyio.lowlevel.cancel_shielded_checkpoint()

    def wait_in_thread(self, timeout: float | None) -> bool:
        """Block the calling thread for at most ``timeout`` seconds; return whether it is set."""
        event = threading.Event()
        if not self._add_waiter(event.set, None):
            return True
        try:
            return event.wait(timeout)
        finally:
            self._discard_waiter(event.set)

    def _add_waiter(self, wake: Callable[[], object], loop: EventLoop | None) -> bool:
        with self._lock:
            if self._set:
                return False
            if self._waiters is None:
                self._waiters = {}
            self._waiters[wake] = loop
            return True

    def _discard_waiter(self, wake: Callable[[], object]) -> None:
        with self._lock:
            if self._waiters is not None:
                self._waiters.pop(wake, None)


class _AsyncioWaiter:
    """A future that can resume its task at once when it is woken, not in the loop's next round.

    Tasks accept anything that behaves as a future, which ``_asyncio_future_blocking`` tells them.

    :meth:`cancel` may come in the middle of anything here: at a Ctrl-C, asyncio cancels its main
    task in the signal handler.
    """

    __slots__ = ("_asyncio_future_blocking", "_awake", "_cancelled", "_context", "_loop", "_wakeup")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self._awake = False
        self._cancelled: asyncio.CancelledError | None = None
        self._wakeup: Callable[[Any], object] | None = None

    def wake(self) -> None:
        """Resume the task, which may run before this returns."""
        if asyncio.current_task(self._loop) is not None:
            self.wake_soon()  # one task cannot run inside of another
            return
        self._awake = True
        wakeup, self._wakeup = self._wakeup, None
        if wakeup is not None:
            self._context.run(wakeup, self)

    def wake_soon(self) -> None:
        """Resume the task when the caller is done."""
        self._awake = True
        wakeup, self._wakeup = self._wakeup, None
        if wakeup is not None:
            self._loop.call_soon(wakeup, self, context=self._context)

    def __await__(self) -> Generator[Any, None, None]:
        if not self._awake:
            self._asyncio_future_blocking = True
            yield self
        else:
            yield None  # others run, as they do where there is something to wait for

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(
        self, wakeup: Callable[[Any], object], *, context: contextvars.Context
    ) -> None:
        self._wakeup = wakeup
        self._context = context

    def cancel(self, msg: object = None) -> bool:
        wakeup, self._wakeup = self._wakeup, None
        if wakeup is None:
            return False
        self._cancelled = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        self._loop.call_soon(wakeup, self, context=self._context)
        return True

    def done(self) -> bool:
        return self._wakeup is None

    def result(self) -> None:
        if self._cancelled is not None:
            cancelled, self._cancelled = self._cancelled, None
            raise cancelled


class _TrioWaiter:
    __slots__ = ("_awake", "_lowlevel", "_task")

    def __init__(self) -> None:
        self._lowlevel: Any = sys.modules["trio"].lowlevel
        self._task: Any = None
        self._awake = False

    def wake(self) -> None:
        self._awake = True
        if self._task is not None:
            task, self._task = self._task, None
            self._lowlevel.reschedule(task)

    wake_soon = wake

    def __await__(self) -> Generator[Any, Any, None]:
        if self._awake:
            yield from self._lowlevel.checkpoint().__await__()
        else:
            self._task = self._lowlevel.current_task()
            yield from self._lowlevel.wait_task_rescheduled(self._abort).__await__()

    def _abort(self, _raise_cancel: Any) -> Any:
        self._task = None
        return self._lowlevel.Abort.SUCCEEDED


Waiter = _AsyncioWaiter | _TrioWaiter
"""Awaited once by one task, and woken from its own event loop. :class:`anyio.Event` does more, and
costs a multiple."""


def waiter_in(loop: EventLoop) -> Waiter:
    return _AsyncioWaiter(loop) if isinstance(loop, asyncio.AbstractEventLoop) else _TrioWaiter()
