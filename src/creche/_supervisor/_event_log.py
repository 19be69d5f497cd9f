"""Events as log records, whose fields are attributes of the record."""

from __future__ import annotations

import dataclasses
import logging

from .._errors import text_of
from .._own_log import log
from ._events import (
    ChildExited,
    ChildReady,
    ChildRestarting,
    ChildStarted,
    SupervisorEvent,
    SupervisorGaveUp,
)

_logger = logging.getLogger("creche.supervisor")


def log_event(event: SupervisorEvent) -> None:
    """Log an event. The exception in it, with the child's traceback, is that of the record."""
    level, text = _describe(event)
    if _logger.isEnabledFor(level):
        fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
        exception = fields.pop("exception", None)
        # Once for each failure: where the child has ended.
        exc_info = exception if isinstance(event, ChildExited) else None
        extra = {"event": type(event).__name__, **fields}
        log(_logger, level, "%s: %s", event.supervisor, text, exc_info=exc_info, extra=extra)


def _describe(event: SupervisorEvent) -> tuple[int, str]:
    match event:
        case ChildStarted():
            return logging.DEBUG, f"{_child(event)} was started"
        case ChildReady():
            return logging.INFO, f"{_child(event)} is ready after {event.seconds:.3f} seconds"
        case ChildExited(stopped=True, exception=None):
            how = ", by SIGKILL" if event.exitcode == -9 else ""
            return logging.INFO, f"{_child(event)} was stopped{how}"
        case ChildExited(stopped=True):
            return (
                logging.WARNING,
                f"{_child(event)} was stopped, and failed at that: {text_of(event.exception)}",
            )
        case ChildExited(exception=None):
            return logging.INFO, f"{_child(event)} has ended"
        case ChildExited():
            return logging.WARNING, f"{_child(event)} has failed: {text_of(event.exception)}"
        case ChildRestarting():
            when = "at once" if event.delay == 0 else f"in {event.delay:.3f} seconds"
            return logging.WARNING, f"child {event.child!r} is started again {when}"
        case SupervisorGaveUp():
            return logging.ERROR, "gave up, as there were too many restarts"
        case _:
            return logging.INFO, type(event).__name__


def _child(event: ChildStarted | ChildReady | ChildExited) -> str:
    pid = "" if event.pid is None else f" (pid {event.pid})"
    return f"child {event.child!r}{pid}"
