"""The monitor: a thread that looks at the processes and draws them, every so often."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO, final

import anyio
import anyio.to_thread

from .._instruments import add_instrument, remove_instrument
from ._watching import GroupStatus, Watching

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_SHARE = 0.05
"""Of a CPU, the part that measuring and drawing may take: with many processes, it is done less
often."""


def monitor(
    *, console: Console | None = None, interval: float = 0.5, title: str = "creche"
) -> Monitor:
    """Show a table of all processes that creche has started, for the time of a block::

        with creche.monitor.monitor():
            anyio.run(main)

    There is a row for each worker and each process, with what it is at, the CPU and the memory
    that it uses, how many calls it has served, and how often it was restarted. What the application
    prints meanwhile appears above the table.

    Where there is no terminal, nothing is written but one table when the block ends.

    :param console: what to draw on; by default a console for standard error, or, if that is no
        terminal and standard output is, for the latter
    :param interval: seconds from one look to the next, or more where there are so many processes
        that it would cost more than a twentieth of a CPU
    :param title: what is written first
    :raises ImportError: if rich or psutil is not installed
    :raises ValueError: if ``interval`` is not positive
    """
    return Monitor(console=console, interval=interval, title=title)


@final
class Monitor:
    """A live table of processes; made by :func:`monitor`.

    A context manager, for ``with`` and, in an event loop, for ``async with`` as well, which does
    not hold up the loop while the last table is drawn. It uses one thread.
    """

    def __init__(
        self, *, console: Console | None = None, interval: float = 0.5, title: str = "creche"
    ) -> None:
        if not 0 < interval < math.inf:
            raise ValueError(f"interval must be a positive number of seconds, not {interval}")
        rich = _import("rich.console")
        from ._sampling import Sampler

        self._sampler = Sampler(_import("psutil"))
        self._own: TextIO | None = None
        self._console: Console = self._make_console(rich) if console is None else console
        self._interval = interval
        self._title = title
        self._watching = Watching()
        self._live: Live | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._measuring = threading.Lock()
        self._began = time.monotonic()
        self._last: tuple[float, int] | None = None
        self._rate: float | None = None

    def snapshot(self) -> tuple[GroupStatus, ...]:
        """Look at the processes now: return what the table is drawn from, those that are no
        workers first, then pool by pool.

        May take some milliseconds for each hundred processes. From any thread.
        """
        with self._measuring:
            return self._sampler.measure(self._watching.groups())

    def start(self) -> None:
        """Begin. The ``with`` block does it.

        :raises RuntimeError: if it has begun already
        """
        if self._thread is not None:
            raise RuntimeError("this monitor has been started before: make another")
        self._began = time.monotonic()
        add_instrument(self._watching)
        try:
            if self._console.is_terminal:
                self._live = self._start_live()
        except BaseException:  # rich has another live display at work, say
            remove_instrument(self._watching)
            raise
        # A thread, not a task: it shows what the processes do even while the event loop does not
        # turn, and in any number of event loops.
        self._thread = threading.Thread(target=self._run, name="creche-monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Draw the table a last time, with those that have ended, and leave it where it is."""
        thread = self._thread
        if thread is None or self._stopping.is_set():
            return
        self._stopping.set()
        thread.join()
        remove_instrument(self._watching)
        _live_ones.discard(self)
        # The terminal may be gone: that is not the application's error.
        with contextlib.suppress(OSError, ValueError):
            last = self._picture(over=True)
            if self._live is not None:
                self._live.update(last)
                self._live.stop()
            else:
                self._console.print(last)
            self._console.file.flush()
        if self._own is not None:
            with contextlib.suppress(OSError):
                self._own.close()

    def __enter__(self) -> Monitor:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Monitor:
        self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        with anyio.CancelScope(shield=True):
            # A limiter of its own: the application's may be full.
            await anyio.to_thread.run_sync(self.stop, limiter=anyio.CapacityLimiter(1))

    # --- in the thread ---

    def _run(self) -> None:
        pause = self._interval
        while not self._stopping.wait(pause):
            began = time.thread_time()
            picture = self._picture()
            if self._live is not None:
                try:
                    self._live.update(picture, refresh=True)
                except (OSError, ValueError):  # the terminal is gone; the application is not
                    return
            pause = max(self._interval, (time.thread_time() - began) / _SHARE)

    def _picture(self, *, over: bool = False) -> RenderableType:
        from ._table import draw

        groups = self.snapshot()
        now = time.monotonic()
        tasks = sum(group.tasks for group in groups)
        if over:
            self._rate = tasks / max(1e-9, now - self._began)
        elif self._last is not None:
            self._rate = (tasks - self._last[1]) / max(1e-9, now - self._last[0])
        self._last = now, tasks
        return draw(
            groups,
            title=self._title,
            seconds=now - self._began,
            rate=self._rate,
            most_lines=self._console.height - 1 if self._live is not None else None,
            over=over,
        )

    # --- the terminal ---

    def _make_console(self, rich: Any) -> Console:
        stream = sys.stderr
        if not _is_terminal(stream) and _is_terminal(sys.stdout):
            stream = sys.stdout
        if not _is_terminal(stream):
            return rich.Console(file=stream, width=120)  # type: ignore[no-any-return]
        # A file of its own for the same terminal. A fork that is made while this thread writes
        # would else inherit standard output with its lock held.
        self._own = open(  # noqa: SIM115
            os.dup(stream.fileno()), "w", encoding=stream.encoding, errors="replace"
        )
        return rich.Console(file=self._own)  # type: ignore[no-any-return]

    def _start_live(self) -> Live:
        from rich.live import Live

        live = Live(
            self._picture(),
            console=self._console,
            auto_refresh=False,
            redirect_stdout=_is_terminal(sys.stdout),
            redirect_stderr=_is_terminal(sys.stderr),
        )
        live.start()
        _live_ones.add(self)
        return live


_live_ones: weakref.WeakSet[Monitor] = weakref.WeakSet()
"""Those who have standard output and standard error in hand."""


def _after_fork_in_child() -> None:
    """The terminal is the parent's: a child prints past its table."""
    if not _live_ones:
        return
    _live_ones.clear()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        setattr(sys, name, getattr(stream, "rich_proxied_file", stream))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _import(name: str) -> Any:
    with _explained():
        return importlib.import_module(name)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        message = f"creche.monitor needs {name}: pip install creche[monitor]"
        raise ImportError(message, name=name) from error


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # None under pythonw; closed
        return False
