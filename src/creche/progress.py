"""A progress bar over a map, a stream, or anything else that is iterated over asynchronously.

An extra: it draws with `rich <https://rich.readthedocs.io>`_, which
``pip install creche[progress]`` brings along, and which is imported when the first bar is made.

No thread draws. A bar is drawn by the event loop that iterates over it, whenever a value has
arrived, and while the next one is waited for, by one small task; about ten times a second at most.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio

from ._loops import EventLoop, current_loop, post, spawn

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Task, TaskID

__all__ = ["Track", "track"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_INTERVAL = 0.1
"""Seconds from one drawing to the next."""


def track(
    source: AsyncIterable[T],
    *,
    description: str = "",
    total: int | None = None,
    console: Console | None = None,
    transient: bool = False,
) -> Track[T]:
    """Iterate over ``source``, and show how far it is::

        async for page in track(pool.map(render, pages), description="rendering"):
            ...

    Nothing at all is written where standard output is no terminal. Several bars at once are drawn
    below each other, and what is printed meanwhile appears above them.

    :param source: any async iterable. Where it has the numbers ``total`` and ``done``, as what
        :meth:`creche.ProcessPool.map` returns and :attr:`creche.AsyncProcess.progress` have, the
        bar shows these, so that items count when they have ended, not when their turn has come
    :param description: a text to the left of the bar
    :param total: how many items there are, where the source does not tell. If nobody knows, the
        bar pulses and counts
    :param console: what to draw on, instead of rich's own console for standard output. It is drawn
        on if it says that it is an interactive terminal
    :param transient: remove the bar when it ends
    :raises ImportError: if rich is not installed
    :raises TypeError: if ``source`` is no async iterable
    :raises ValueError: if ``total`` is negative
    """
    if total is not None and total < 0:
        raise ValueError(f"total must be 0 or more, not {total}")
    iterator = aiter(source)
    try:
        from rich import get_console
    except ImportError as error:
        message = "creche.progress needs rich: pip install creche[progress]"
        raise ImportError(message, name="rich") from error
    if console is None:
        console = get_console()
        # FORCE_COLOR makes rich take anything for a terminal.
        shown = console.is_interactive and _is_terminal(console.file)
    else:
        shown = console.is_interactive
    bar = _Bar(source, description, total, console, transient) if shown else None
    return Track(iterator, bar)


class Track(Generic[T_co]):
    """The values of an async iterable, with a progress bar; made by :func:`track`.

    An async iterator. The bar appears when the first value is asked for, and ends when the loop is
    left, whichever way that is. ``async with`` or :meth:`aclose` close the source as well, and wait
    for it::

        async with track(pool.map(render, pages)) as rendered:
            async for page in rendered:
                if page.is_blank:
                    break
    """

    _bar: _Bar | None = None

    def __init__(self, iterator: AsyncIterator[T_co], bar: _Bar | None) -> None:
        self._iterator = iterator
        self._bar = bar
        self._closed = False

    def __aiter__(self) -> Track[T_co]:
        return self

    async def __anext__(self) -> T_co:
        """Return the next value of the source.

        Cancellation ends the bar; what it does to the source is the source's own affair.

        :raises Exception: whatever the source raises. The bar is over then
        """
        if self._closed:
            raise StopAsyncIteration
        bar = self._bar
        if bar is None:
            return await self._iterator.__anext__()
        try:
            bar.wait()
            value = await self._iterator.__anext__()
            bar.advance()
        except StopAsyncIteration:
            self._end(exhausted=True)
            raise
        except BaseException:
            self._end()
            raise
        return value

    async def aclose(self) -> None:
        """End the bar, and close the source, if that has an ``aclose()``.

        More values there are none. Cancellation ends the bar all the same.
        """
        self._closed = True
        self._end()
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()

    async def __aenter__(self) -> Track[T_co]:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._end()  # the loop was left early; whoever collects this may be any thread

    def _end(self, *, exhausted: bool = False) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.end(exhausted)


class _Bar:
    """What is known about one source, and when to draw it."""

    def __init__(
        self,
        source: object,
        description: str,
        total: int | None,
        console: Console,
        transient: bool,
    ) -> None:
        self.description = description
        self.transient = transient
        self._source = source
        self._total = total
        self._given_out = 0
        self._console = console
        self._display: _Display | None = None
        self._loop: EventLoop | None = None
        self._stop_ticking: Callable[[], None]
        self._waiting = False
        self._ended = False

    @property
    def total(self) -> int | None:
        return self._total if self._total is not None else _integer(self._source, "total")

    @property
    def done(self) -> int:
        done = _integer(self._source, "done")
        return self._given_out if done is None else done

    def wait(self) -> None:
        """The next value is waited for from now on."""
        self._waiting = True
        if self._loop is None:
            self._begin()

    def advance(self) -> None:
        """The next value has arrived."""
        self._waiting = False
        self._given_out += 1
        self._draw()

    def end(self, exhausted: bool) -> None:
        """From any thread, and any number of times."""
        if self._ended:
            return
        self._ended = True
        # The source may go from now on.
        self._given_out, self._total = self.done, self.total
        self._source = None
        if exhausted and self._total is None:
            self._total = self._given_out
        if self._loop is not None:
            post(self._loop, self._stop_ticking)
            _alone(self._disappear)

    def _begin(self) -> None:
        self._loop = current_loop()
        self._stop_ticking = spawn(self._loop, self._tick)
        _alone(self._appear)

    def _appear(self) -> None:
        self._display = _displays.get(self._console)
        if self._display is None:
            self._display = _displays[self._console] = _Display(self._console)
        self._display.add(self)

    def _disappear(self) -> None:
        if self._display is not None:
            self._display.remove(self)

    async def _tick(self) -> None:
        """Draw while a value is waited for: time passes, and a map's items end out of order.

        Nothing is drawn while the body of the loop runs, which may want the terminal for itself.
        """
        while not self._ended:
            await anyio.sleep(_INTERVAL)
            try:
                if self._waiting:
                    self._draw()
            except Exception:  # whoever iterates gets it when a value arrives
                return

    def _draw(self) -> None:
        if self._display is not None and time.monotonic() >= self._display.due:
            _alone(self._display.draw)


class _Display:
    """The bars on one console, which has room for a single live display of rich's.

    Ended bars stay above the others until all have ended.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        self.due = 0.0
        self._console = console
        self._bars: dict[_Bar, TaskID] = {}
        self._open = False
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", style="progress.remaining"),
            console=console,
            auto_refresh=False,
            redirect_stdout=_share_a_terminal(console, sys.stdout),
            redirect_stderr=_share_a_terminal(console, sys.stderr),
        )

    def add(self, bar: _Bar) -> None:
        from rich.errors import LiveError

        self._bars[bar] = self._progress.add_task(
            bar.description, total=bar.total, completed=bar.done, left=""
        )
        if self._open:
            self.draw()
            return
        self._open = True
        self.due = time.monotonic() + _INTERVAL
        try:
            self._progress.start()
        except LiveError:  # rich before 14.1: the application has a live display of its own there
            self._progress.disable = True

    def draw(self) -> None:
        self.due = time.monotonic() + _INTERVAL
        for bar in self._bars:
            self._update(bar)
        self._progress.refresh()

    def remove(self, bar: _Bar) -> None:
        if bar not in self._bars:  # stopped at exit, or in a fork
            return
        self._update(bar)
        task = self._bars.pop(bar)
        self._progress.update(task, left="")
        self._progress.stop_task(task)
        if bar.transient:
            self._progress.remove_task(task)
        if self._bars:
            self.draw()
        else:
            self.stop()

    def stop(self) -> None:
        """Leave the bars as they are, and give the cursor back."""
        for bar in self._bars:
            self._update(bar)
        self.forget()
        self._progress.live.transient = not self._progress.tasks
        self._progress.stop()

    def forget(self) -> None:
        self._bars.clear()
        if _displays.get(self._console) is self:
            del _displays[self._console]

    def _update(self, bar: _Bar) -> None:
        progress, task_id = self._progress, self._bars[bar]
        progress.update(task_id, total=bar.total, completed=bar.done)
        (task,) = (task for task in progress.tasks if task.id == task_id)
        progress.update(task_id, left=_time_left(task))


# --- the displays of the application ------------------------------------------------------------

_displays: dict[Console, _Display] = {}
_lock = threading.Lock()
_waiting: deque[Callable[[], object]] = deque()


def _alone(action: Callable[[], object]) -> None:
    """Run what draws, alone.

    Nobody waits for the lock: another event loop may draw just now, or the garbage collector have
    come by in the middle of a drawing. Whoever has the lock runs the action after their own.
    """
    _waiting.append(action)
    while _waiting and _lock.acquire(blocking=False):
        try:
            while _waiting:
                _waiting.popleft()()
        finally:
            _lock.release()


def _stop_all() -> None:
    for display in list(_displays.values()):
        _alone(display.stop)


def _after_fork_in_child() -> None:
    """The terminal is the parent's: a child prints past its bars."""
    global _lock
    _lock = threading.Lock()
    _waiting.clear()
    for display in list(_displays.values()):
        display.forget()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        setattr(sys, name, getattr(stream, "rich_proxied_file", stream))


# For bars that somebody still holds when the interpreter exits, in a traceback, say.
atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# --- helpers ------------------------------------------------------------------------------------


def _integer(source: object, name: str) -> int | None:
    """Return an attribute of a source, whatever others mean by its name."""
    value = getattr(source, name, None)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value)


def _time_left(task: Task) -> str:
    seconds = None if task.finished else task.time_remaining
    return "" if seconds is None else f"{timedelta(seconds=math.ceil(seconds))} left"


def _share_a_terminal(console: Console, stream: Any) -> bool:
    """Whether what is printed to a stream would land in the middle of the console's bars."""
    return stream is console.file or (_is_terminal(console.file) and _is_terminal(stream))


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # None under pythonw; closed
        return False
