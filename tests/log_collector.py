"""A handler in which the tests look for records."""

from __future__ import annotations

import logging
import threading

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

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]
