"""How the tests of the supervisor wait for what happens."""

from __future__ import annotations

from typing import TypeVar

import anyio
from support import TIMEOUT

from creche import SupervisorEvent, SupervisorEvents

EventT = TypeVar("EventT", bound=SupervisorEvent)


async def next_event(
    events: SupervisorEvents, kind: type[EventT], child: str | None = None
) -> EventT:
    """Wait for the next event of a kind, of a child or of any."""
    with anyio.fail_after(TIMEOUT):
        async for event in events:
            if isinstance(event, kind) and child in (None, getattr(event, "child", None)):
                return event
    raise AssertionError(f"the supervisor has ended without a {kind.__name__}")


async def all_events(events: SupervisorEvents) -> list[SupervisorEvent]:
    with anyio.fail_after(TIMEOUT):
        return [event async for event in events]


def brief(event: SupervisorEvent) -> str:
    """An event in two words."""
    kind = type(event).__name__.removeprefix("Child").removeprefix("Supervisor")
    return f"{kind} {getattr(event, 'child', event.supervisor)}"
