"""The instrument that records.

Its hooks run in the event loop for each call, so they do as little as can be: they read the clock
and keep a small list. What it all means is worked out when somebody looks.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, final

from .._instruments import (
    Instrument,
    ObservedCall,
    ObservedProcess,
    add_instrument,
    remove_instrument,
)
from ._page import page
from ._spans import CallSpan, ProcessSpan, Recording, Status
from ._trace import trace

_clock = time.perf_counter

_LONGEST_ERROR = 400
"""Characters of an error's text that are kept."""


def record(*, max_spans: int | None = None) -> Timeline:
    """Make a :class:`Timeline`, which records for the time of a ``with`` block.

    :param max_spans: how many processes, and how many calls, that are over to keep: beyond that,
        the oldest are forgotten, so that a service can record for as long as it likes. By default,
        all are kept, at about 300 bytes each
    :raises ValueError: if ``max_spans`` is not positive
    """
    return Timeline(max_spans=max_spans)


@final
class Timeline(Instrument):
    """Records processes and calls, of all event loops and pools of the application::

        with creche.timeline.record() as timeline:
            anyio.run(main)
        timeline.write_html("timeline.html")

    It can be looked at while it records, from any thread. Entered again, it goes on. Memory is
    bounded by ``max_spans``, if that is given, and by what is alive.

    :param max_spans: see :func:`record`
    """

    def __init__(self, *, max_spans: int | None = None) -> None:
        if max_spans is not None and max_spans < 1:
            raise ValueError(f"max_spans must be 1 or more, not {max_spans}")
        self.began = time.time()
        """When the recording began, in seconds since the epoch."""
        self.pid = os.getpid()
        """The process id of the application."""
        self._origin = _clock()
        self._stopped: float | None = None
        # Each of these is changed by one operation at a time, which needs no lock. What is alive is
        # by its id; the lists in there belong to the hooks, which are never called for the same
        # process or call in two threads at once.
        self._processes: dict[int, _Process] = {}
        self._calls: dict[int, _Call] = {}
        self._ended_processes: deque[ProcessSpan] = deque(maxlen=max_spans)
        self._ended_calls: deque[tuple[Any, ...]] = deque(maxlen=max_spans)
        self._counter = itertools.count(1)
        self._ended = 0

    # --- the hooks ---

    def process_created(self, process: ObservedProcess) -> None:
        self._processes[process.id] = _Process(process, _clock())

    def process_started(self, process: ObservedProcess) -> None:
        self._known(process).started = _clock()

    def process_ready(self, process: ObservedProcess) -> None:
        self._known(process).ready = _clock()

    def process_stop_requested(self, process: ObservedProcess) -> None:
        self._known(process).stop_requested = _clock()

    def process_exited(self, process: ObservedProcess) -> None:
        known = self._known(process)
        known.exited = _clock()
        self._ended_processes.append(known.span(self._origin))
        self._processes.pop(process.id, None)
        self._ended = next(self._counter)

    def call_queued(self, call: ObservedCall) -> None:
        self._calls[call.id] = [call, _clock(), None]

    def call_started(self, call: ObservedCall) -> None:
        known = self._calls.get(call.id)
        if known is not None:
            known[2] = _clock()

    def call_finished(self, call: ObservedCall) -> None:
        now = _clock()
        known = self._calls.pop(call.id, None)
        if known is not None:  # not one that was made before the recording began
            self._ended_calls.append(_ended_call(known, now))
            self._ended = next(self._counter)

    # --- for the application ---

    def start(self) -> None:
        """Begin to record, or go on. The ``with`` block does it."""
        self._stopped = None
        add_instrument(self)

    def stop(self) -> None:
        """Record no more. What is not over by then is shown as running."""
        remove_instrument(self)
        if self._stopped is None:
            self._stopped = _clock()

    def __enter__(self) -> Timeline:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def seconds(self) -> float:
        """How long the recording has taken."""
        return (_clock() if self._stopped is None else self._stopped) - self._origin

    @property
    def dropped(self) -> int:
        """How many processes and calls were forgotten because of ``max_spans``."""
        return max(0, self._ended - len(self._ended_processes) - len(self._ended_calls))

    @property
    def processes(self) -> tuple[ProcessSpan, ...]:
        """The processes, in the order in which they were created."""
        # Those alive first: one that ends meanwhile is in both, and not in neither.
        alive = self._processes.copy()
        spans = {id: known.span(self._origin) for id, known in alive.items()}
        spans |= {span.id: span for span in self._ended_processes.copy()}
        return tuple(sorted(spans.values(), key=lambda span: (span.created, span.id)))

    @property
    def calls(self) -> tuple[CallSpan, ...]:
        """The calls, in the order in which they were made."""
        alive = self._calls.copy()
        rows = {id: _call_row(known) for id, known in alive.items()}
        rows |= {row[0]: row for row in self._ended_calls.copy()}
        spans = (_call_span(row, self._origin) for row in rows.values())
        return tuple(sorted(spans, key=lambda span: (span.queued, span.id)))

    def trace(self) -> dict[str, Any]:
        """Return the recording in the Chrome trace event format, for ``json.dump``."""
        return trace(self._recording())

    def html(self, *, title: str | None = None) -> str:
        """Return the recording as an HTML page.

        :param title: by default, the name of the program
        """
        return page(self._recording(), _program() if title is None else title)

    def write_trace(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file in the Chrome trace event format, which `Perfetto
        <https://ui.perfetto.dev>`_, ``chrome://tracing`` and Speedscope open.

        Calls are bars in the lane of their worker, with what is known of them in ``args``; waiting
        in the queue is an asynchronous event of its own, and the length of each queue a counter.
        Times are microseconds since the recording began. Blocks until the file is written.

        :raises OSError: if the file cannot be written
        """
        Path(path).write_text(json.dumps(self.trace(), separators=(",", ":")), encoding="utf-8")

    def write_html(self, path: str | os.PathLike[str], *, title: str | None = None) -> None:
        """Write the recording as one HTML page, which needs nothing else and no network.

        Blocks until the file is written.

        :param title: by default, the name of the program
        :raises OSError: if the file cannot be written
        """
        # A name may have halves of characters in it, which come from the names of files.
        Path(path).write_text(self.html(title=title), encoding="utf-8", errors="xmlcharrefreplace")

    def __repr__(self) -> str:
        state = "records" if self._stopped is None else "stopped"
        return (
            f"<Timeline {state} {self.seconds:.3f} s"
            f" processes={len(self._processes) + len(self._ended_processes)}"
            f" calls={len(self._calls) + len(self._ended_calls)}>"
        )

    def _recording(self) -> Recording:
        # The end is read last: nothing has happened after it.
        calls, processes = self.calls, self.processes
        return Recording(self.began, self.pid, self.seconds, processes, calls, self.dropped)

    def _known(self, process: ObservedProcess) -> _Process:
        known = self._processes.get(process.id)
        if known is None:  # created before the recording began
            known = self._processes[process.id] = _Process(process, self._origin)
        return known


class _Process:
    """A process that is alive."""

    __slots__ = ("created", "exited", "process", "ready", "started", "stop_requested")

    def __init__(self, process: ObservedProcess, created: float) -> None:
        self.process = process
        self.created = created
        self.started: float | None = None
        self.ready: float | None = None
        self.stop_requested: float | None = None
        self.exited: float | None = None

    def span(self, origin: float) -> ProcessSpan:
        process = self.process
        error = process.exception
        return ProcessSpan(
            id=process.id,
            name=process.name,
            pid=process.pid,
            kind=process.kind,
            pool=process.pool,
            start_method=process.start_method,
            func=process.func,
            created=self.created - origin,
            started=_since(self.started, origin),
            ready=_since(self.ready, origin),
            stop_requested=_since(self.stop_requested, origin),
            exited=_since(self.exited, origin),
            exitcode=process.exitcode,
            status=_status(self),
            error=None if error is None else _in_words(error),
        )


_Call = list[Any]
"""A call that is not over: itself, when it was queued, when it was started or ``None``."""


def _status(known: _Process) -> Status:
    process = known.process
    if known.exited is None:
        return "running"
    code = process.exitcode
    if process.stop_requested:
        if code == -9:  # it did not stop in time
            return "killed"
        return "ok" if process.exception is None and code == 0 else "cancelled"
    if code is not None and code < 0:
        return "killed"
    return "ok" if process.exception is None and not code else "error"


# A call that is over is kept as a tuple of what a CallSpan has: that costs the least.
def _ended_call(known: _Call, finished: float) -> tuple[Any, ...]:
    call, queued, started = known
    process = call.process
    error = call.exception
    return (
        call.id,
        call.func,
        call.pool,
        call.items,
        None if started is None or process is None else process.id,
        queued,
        started,
        finished,
        call.seconds,
        call.status,
        # The exception itself would keep all that its frames refer to.
        None if error is None else _in_words(error),
    )


def _call_row(known: _Call) -> tuple[Any, ...]:
    call, queued, started = known
    process = call.process
    id = None if started is None or process is None else process.id
    return call.id, call.func, call.pool, call.items, id, queued, started, None, None, None, None


def _call_span(row: tuple[Any, ...], origin: float) -> CallSpan:
    id, func, pool, items, process, queued, started, finished, seconds, status, error = row
    return CallSpan(
        id=id,
        func=func,
        pool=pool,
        items=items,
        process=process,
        queued=queued - origin,
        started=_since(started, origin),
        finished=_since(finished, origin),
        seconds=seconds,
        status="running" if status is None else status,
        error=error,
    )


def _since(time: float | None, origin: float) -> float | None:
    return None if time is None else time - origin


def _in_words(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    except Exception:  # it is somebody else's __str__
        text = type(error).__name__
    return text if len(text) <= _LONGEST_ERROR else f"{text[: _LONGEST_ERROR - 1]}…"


def _program() -> str:
    return os.path.basename(sys.argv[0] if sys.argv else "") or "creche"
