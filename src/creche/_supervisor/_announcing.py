"""Saying what happens under a supervisor: as events, and as log records."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ._child import Life, SupervisedChild
from ._event_log import log_event
from ._events import (
    ChildExited,
    ChildReady,
    ChildRestarting,
    ChildStarted,
    SupervisorEvent,
    SupervisorGaveUp,
)


class Announcer:
    """Says it for one supervisor.

    :param supervisor: its name
    :param publish: takes events
    """

    def __init__(self, supervisor: str, publish: Callable[[SupervisorEvent], None]) -> None:
        self._supervisor = supervisor
        self._publish = publish

    def started(self, child: SupervisedChild, life: Life) -> None:
        self._say(
            ChildStarted(
                supervisor=self._supervisor, time=time.monotonic(), child=child.name, pid=life.pid
            )
        )

    def ready(self, child: SupervisedChild, life: Life) -> None:
        now = time.monotonic()
        self._say(
            ChildReady(
                supervisor=self._supervisor,
                time=now,
                child=child.name,
                pid=life.pid,
                seconds=now - life.began_at,
            )
        )

    def exited(self, child: SupervisedChild, life: Life) -> None:
        self._say(
            ChildExited(
                supervisor=self._supervisor,
                time=time.monotonic(),
                child=child.name,
                pid=life.pid,
                exitcode=life.exitcode,
                exception=life.failure,
                stopped=life.stopping,
            )
        )

    def restarting(
        self, child: SupervisedChild, delay: float, failure: BaseException | None
    ) -> None:
        self._say(
            ChildRestarting(
                supervisor=self._supervisor,
                time=time.monotonic(),
                child=child.name,
                delay=delay,
                attempt=child._attempts.count,
                exception=failure,
            )
        )

    def gave_up(self, failures: Sequence[BaseException]) -> None:
        self._say(
            SupervisorGaveUp(
                supervisor=self._supervisor, time=time.monotonic(), failures=tuple(failures)
            )
        )

    def _say(self, event: SupervisorEvent) -> None:
        log_event(event)
        self._publish(event)
