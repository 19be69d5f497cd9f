"""Log records on their way from a child to the logging tree of its parent."""

from __future__ import annotations

import itertools
import logging
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from ._own_log import log_exception
from ._parent_connection import ParentConnection
from ._thread_queue import ThreadQueue
from ._wire._framing import Frame, FrameKind, Section
from ._wire._payloads import load
from ._wire._requests import decode_number
from ._worker_threads import WorkerThreads

# A child that logs faster than the parent handles the records waits for it.
_WINDOW = 1024
_ACKNOWLEDGED = 256  # at once


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Which records are wanted: what the parent's loggers are set to, at the start of the child.

    :param levels: by the names of the loggers; ``""`` for the root
    :param disabled: the level at and below which :func:`logging.disable` drops everything
    """

    levels: dict[str, int]
    disabled: int

    def apply(self) -> None:
        """In a child: let through what is wanted."""
        logging.disable(self.disabled)
        for name, level in self.levels.items():
            logging.getLogger(name or None).setLevel(level)


LogTarget = bool | logging.Logger
"""``True`` for the logger that has the name of the one in the child; or one logger for all."""


def check_log_target(logs: LogTarget) -> LogTarget:
    """Check a ``logs`` option.

    :raises TypeError: if it is neither a boolean nor a logger
    """
    if not isinstance(logs, bool | logging.Logger):
        raise TypeError(f"logs must be True, False or a logging.Logger, not {logs!r}")
    return logs


def log_settings(target: LogTarget) -> LogSettings | None:
    """In the parent: what the child is to send."""
    if isinstance(target, logging.Logger):
        return LogSettings({"": target.getEffectiveLevel()}, logging.root.manager.disable)
    if not target:
        return None
    levels = {"": logging.root.level}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level != logging.NOTSET:
            levels[name] = logger.level
    return LogSettings(levels, logging.root.manager.disable)


def forward_logs(settings: LogSettings, connection: ParentConnection) -> None:
    """In a child: have all log records sent to the parent, which deals with them.

    Handlers that the child has got, as a fork or from its main module, would handle them twice.
    """
    handler = ParentHandler(connection)
    settings.apply()
    loggers = list(logging.root.manager.loggerDict.values())
    for logger in [logging.root, *loggers]:
        if isinstance(logger, logging.Logger):
            logger.handlers = [] if logger.propagate and logger is not logging.root else [handler]


class ParentHandler(logging.Handler):
    """Sends records to the parent, as long as it handles them as fast as they come.

    Finalizers and signal handlers log, too, and interrupt any thread in the middle of this. So
    nothing in here waits for what the thread that was interrupted may hold.
    """

    def __init__(self, connection: ParentConnection) -> None:
        super().__init__()
        self._connection = connection
        # Has something in it for each record that may be sent. (A semaphore is not reentrant.)
        self._room: SimpleQueue[None] = SimpleQueue()
        self._unpaid: list[None] = []  # for each record that was sent without waiting for room
        self._make_room(_WINDOW)
        self._numbers = itertools.count(1)
        self._emitting: set[int] = set()  # threads
        self._unlimited = False

    def handle(self, record: logging.LogRecord) -> bool:
        """Do what others do, but without their lock.

        A thread that waits for room would hold it; and where the one that is to hear of room wants
        to log something, it would wait for that lock.
        """
        kept: Any = self.filter(record)  # since Python 3.12 a filter may give another record
        if kept:
            self.emit(kept if isinstance(kept, logging.LogRecord) else record)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        if self._connection.pid != record.process:  # a fork, which has no connection
            return
        try:
            section = _encode(record)
        except Exception:
            self.handleError(record)
            return
        thread = threading.get_ident()
        if thread in self._emitting or self._connection.listens_here:
            if not self._unlimited:
                self._unpaid.append(None)
            self._send(section)
            return
        try:
            self._emitting.add(thread)
            if not self._unlimited:
                self._wait_for_room()
            self._send(section)
        finally:
            self._emitting.discard(thread)

    def _send(self, section: Section) -> None:
        if not self._connection.send((FrameKind.LOG, [section])):
            self._lift_limit()

    def _wait_for_room(self) -> None:
        if next(self._numbers) == _WINDOW // 2:
            try:
                self._connection.listen(self._on_frame)
            except RuntimeError:  # no thread to be had
                self._lift_limit()
        self._room.get()

    def _on_frame(self, frame: Frame | None) -> None:
        if frame is None:
            self._lift_limit()
        elif frame.kind is FrameKind.LOGGED:
            handled = decode_number(frame.sections[0])
            while handled and self._unpaid:
                self._unpaid.pop()
                handled -= 1
            self._make_room(handled)

    def _make_room(self, count: int) -> None:
        for _ in range(count):
            self._room.put(None)

    def _lift_limit(self) -> None:
        """Nobody will say any more that there is room."""
        if not self._unlimited:
            self._unlimited = True
            self._make_room(_WINDOW)  # for those that wait


class LogReceiver:
    """In the parent: hands a child's records to the logging tree, in a thread.

    Handlers may take their time, and write to disks and networks: not in an event loop, nor in the
    watcher. Everything else in here runs in the watcher.

    :param threads: one thread, for all children, so that records stay in order
    :param call_soon: calls in the watcher
    :param acknowledge: called, in the thread, with a number of records that have been handled
    :param on_idle: called when all that has come has been handled
    """

    def __init__(
        self,
        target: LogTarget,
        threads: WorkerThreads,
        call_soon: Callable[[Callable[[], None]], None],
        acknowledge: Callable[[int], object],
        on_idle: Callable[[], object],
    ) -> None:
        self._target = target
        self._acknowledge = acknowledge
        self._handled = 0
        self._queue: ThreadQueue[Section] = ThreadQueue(
            threads, call_soon, self._take, lambda _: None, on_idle
        )

    @property
    def busy(self) -> bool:
        """Whether something has come that is not handled yet."""
        return self._queue.busy

    def receive(self, section: Section) -> None:
        """Take in a record."""
        self._queue.add(section)

    def _take(self, section: Section) -> None:
        try:
            self._handle(section)
        except BaseException:  # in the application's handlers, or its objects
            log_exception("a log record of a child could not be handled")
        self._handled += 1
        if self._handled == _ACKNOWLEDGED:
            self._acknowledge(self._handled)
            self._handled = 0

    def _handle(self, section: Section) -> None:
        record = logging.makeLogRecord(load([section], None))
        if isinstance(self._target, logging.Logger):
            self._target.handle(record)
        else:
            logging.getLogger(record.name).handle(record)


def _encode(record: logging.LogRecord) -> Section:
    """Pickle a record, with what cannot be pickled as text.

    As :class:`logging.handlers.QueueHandler` does, the message and the traceback are made here.
    """
    fields = dict(record.__dict__)
    fields["msg"] = record.getMessage()
    fields["args"] = None
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = _formatter.formatException(record.exc_info)
    fields["exc_info"] = None
    try:
        return [pickle.dumps(fields, 5)]  # with the buffers of arrays in it
    except Exception:
        return [pickle.dumps({key: _picklable(value) for key, value in fields.items()}, 5)]


_formatter = logging.Formatter()


def _picklable(value: object) -> object:
    try:
        pickle.dumps(value, 5)
    except Exception:
        return repr(value)
    return value
