"""Log records on their way from a child to the logging tree of its parent."""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ._own_log import log_exception
from ._parent_connection import ParentConnection
from ._thread_queue import ThreadQueue
from ._wire._framing import Buffer, Frame, FrameKind, Section
from ._wire._payloads import dump, load
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
    """Sends records to the parent, as long as it handles them as fast as they come."""

    def __init__(self, connection: ParentConnection) -> None:
        super().__init__()
        self._connection = connection
        self._room = threading.Semaphore(_WINDOW)
        self._sent = 0

    def emit(self, record: logging.LogRecord) -> None:
        if self._connection.pid != record.process:  # a fork, which has no connection
            return
        try:
            section = _encode(record)
        except Exception:
            self.handleError(record)
            return
        self._sent += 1
        if self._sent == _WINDOW // 2:
            self._connection.listen(self._on_frame)
        self._room.acquire()
        self._connection.send((FrameKind.LOG, [section]))

    def _on_frame(self, frame: Frame | None) -> None:
        if frame is None:  # nobody will say any more that there is room
            self._room.release(_WINDOW)
        elif frame.kind is FrameKind.LOGGED:
            self._room.release(decode_number(frame.sections[0]))


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
        return _pieces(fields)
    except Exception:
        return _pieces({key: _picklable(value) for key, value in fields.items()})


_formatter = logging.Formatter()


def _pieces(fields: dict[str, Any]) -> list[Buffer]:
    (section,) = dump(fields, None).sections
    return section


def _picklable(value: object) -> object:
    try:
        pickle.dumps(value)
    except Exception:
        return repr(value)
    return value
