"""The lines that a process writes, as log records."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from ._output_lines import LineSplitter
from ._own_log import log_exception
from ._thread_queue import ThreadQueue
from ._worker_threads import WorkerThreads

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
        self._queue: ThreadQueue[bytes | None]
        self._size = 0
        self._limit = _BUFFER_BYTES
        self._full = False

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
        self._name = name
        self._pid = pid
        self._queue = ThreadQueue(threads, call_soon, self._log, self._logged, on_idle)

    @property
    def busy(self) -> bool:
        """Whether there is something that is not logged yet."""
        return self._queue.busy

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; return whether there is room for more."""
        self._size += len(data)
        self._full = self._size >= self._limit
        self._queue.add(data)
        return not self._full

    def end(self) -> None:
        """There is nothing more to come."""
        self._queue.add(None)

    def take_more(self, size: int) -> None:
        """Make room for so many bytes."""
        self._limit += size
        self._make_room()

    def _logged(self, chunks: deque[bytes | None]) -> None:
        self._size -= sum(len(chunk) for chunk in chunks if chunk is not None)
        if self._size < self._limit:
            self._make_room()

    def _make_room(self) -> None:
        if self._full:
            self._full = False
            self.on_room()

    def _log(self, chunk: bytes | None) -> None:
        lines = self._splitter.finish() if chunk is None else self._splitter.feed(chunk)
        for line in lines:
            try:
                self._log_line(line)
            except BaseException:  # in the application's record factory, filters or handlers
                log_exception("cannot log a line of the output of %r", self._name)

    def _log_line(self, line: str) -> None:
        logger, level = self._logger, self._level
        if logger.isEnabledFor(level):
            record = logger.makeRecord(logger.name, level, f"<{self._source}>", 0, line, (), None)
            record.process = self._pid
            record.processName = self._name
            logger.handle(record)
