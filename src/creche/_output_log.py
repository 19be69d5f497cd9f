"""The lines that a process writes, as log records."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable

from ._output_lines import LineSplitter
from ._worker_threads import WorkerThreads

_logger = logging.getLogger("creche")

# Bytes that wait for their turn. What a process writes beyond that stays in its pipe, and then it
# waits.
_BUFFER_BYTES = 256 * 1024


class LineLogger:
    """Logs lines in a thread: handlers write to files and sockets, and may take long.

    Everything but the logging itself is done in the watcher.

    :param logger: gets the records
    :param level: their level
    :param source: ``"stdout"`` or ``"stderr"``
    """

    def __init__(self, logger: logging.Logger, level: int, source: str) -> None:
        self.on_room: Callable[[], object]
        self._logger = logger
        self._level = level
        self._source = source
        self._splitter = LineSplitter()  # used in the thread alone
        self._chunks: deque[bytes | None] = deque()
        self._size = 0
        self._limit = _BUFFER_BYTES
        self._full = False
        self._working = False

    def attach(
        self,
        threads: WorkerThreads,
        call_soon: Callable[[Callable[[], None]], None],
        name: str,
        pid: int,
        on_idle: Callable[[], object],
    ) -> None:
        """Begin to log.

        :param threads: where; one thread, so that all records come in order
        :param call_soon: calls in the watcher
        :param name: the name of the process
        :param on_idle: called when everything that has come is logged
        """
        self._threads = threads
        self._call_soon = call_soon
        self._name = name
        self._pid = pid
        self._on_idle = on_idle

    @property
    def busy(self) -> bool:
        """Whether there is something that is not logged yet."""
        return self._working

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; return whether there is room for more."""
        self._size += len(data)
        self._full = self._size >= self._limit
        self._add(data)
        return not self._full

    def end(self) -> None:
        """There is nothing more to come."""
        self._add(None)

    def take_more(self, size: int) -> None:
        """Make room for so many bytes."""
        self._limit += size
        self._make_room()

    def _add(self, chunk: bytes | None) -> None:
        self._chunks.append(chunk)
        if not self._working:
            self._working = True
            self._work_soon()

    def _work_soon(self) -> None:
        # One job at a time, for all that is there: processes that write a lot take turns.
        chunks, self._chunks = self._chunks, deque()
        size = sum(len(chunk) for chunk in chunks if chunk is not None)

        def work() -> None:
            for chunk in chunks:
                lines = self._splitter.finish() if chunk is None else self._splitter.feed(chunk)
                self._log(lines)
            self._call_soon(lambda: self._worked(size))

        try:
            self._threads.submit(work)
        except RuntimeError:  # no thread, and none to be had
            work()

    def _worked(self, size: int) -> None:
        self._size -= size
        if self._size < self._limit:
            self._make_room()
        if self._chunks:
            self._work_soon()
        else:
            self._working = False
            self._on_idle()

    def _make_room(self) -> None:
        if self._full:
            self._full = False
            self.on_room()

    def _log(self, lines: Iterable[str]) -> None:
        logger, level = self._logger, self._level
        if not logger.isEnabledFor(level):
            return
        for line in lines:
            record = logger.makeRecord(logger.name, level, f"<{self._source}>", 0, line, (), None)
            record.process = self._pid
            record.processName = self._name
            try:
                logger.handle(record)
            except Exception:  # a filter of the application's; handlers report their own errors
                with contextlib.suppress(Exception):
                    _logger.exception("cannot log a line of the output of %r", self._name)
