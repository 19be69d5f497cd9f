"""A handler in which the tests look for records."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

from support import TIMEOUT


class Collector(logging.Handler):
    """Keeps the records that reach it, and the threads that bring them."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.threads: set[str] = set()
        self.gate: threading.Event | None = None
        """What it waits for before it takes a record."""
        self.fails = False
        """Whether it raises instead."""

    def emit(self, record: logging.LogRecord) -> None:
        if self.gate is not None:
            assert self.gate.wait(TIMEOUT)
        if self.fails:
            raise LookupError("a handler that fails")
        self.records.append(record)
        self.threads.add(threading.current_thread().name)

    @contextlib.contextmanager
    def failing_on(self, *names: str) -> Iterator[None]:
        """Raise in the block, on whatever those loggers are given."""
        loggers = [logging.getLogger(name) for name in names]
        self.fails = True
        for logger in loggers:
            logger.addHandler(self)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(self)
            self.fails = False

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@contextlib.contextmanager
def failing_record_factory() -> Iterator[None]:
    """Have none of creche's threads make a record in the block."""
    factory = logging.getLogRecordFactory()

    def fail(*args: Any, **fields: Any) -> logging.LogRecord:
        if threading.current_thread().name.startswith("creche"):
            raise LookupError("no request here")
        return factory(*args, **fields)

    logging.setLogRecordFactory(fail)
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)
