"""The life of a process as a table: which event leads from which state to which."""

from __future__ import annotations

import enum

from ._errors import ProcessStateError

__all__ = ["ProcessState"]


class ProcessState(enum.Enum):
    """Where a process is in its life."""

    CREATED = "created"
    """It is an object only."""

    STARTED = "started"
    """It was started. It has a pid once :meth:`AsyncProcess.start` has returned, but does not run
    its function yet."""

    RUNNING = "running"
    """The child has said that it runs the function."""

    TERMINATED = "terminated"
    """It has ended and was reaped, or could not be started."""


class Event(enum.Enum):
    """What happens to a process."""

    START = "start"
    RUN = "run"
    END = "end"


_TRANSITIONS: dict[tuple[ProcessState, Event], ProcessState] = {
    (ProcessState.CREATED, Event.START): ProcessState.STARTED,
    (ProcessState.STARTED, Event.RUN): ProcessState.RUNNING,
    (ProcessState.STARTED, Event.END): ProcessState.TERMINATED,
    (ProcessState.RUNNING, Event.END): ProcessState.TERMINATED,
}


def next_state(state: ProcessState, event: Event, name: str) -> ProcessState:
    """Return the state that ``event`` leads to.

    :raises ProcessStateError: if ``event`` cannot happen in ``state``
    """
    try:
        return _TRANSITIONS[state, event]
    except KeyError:
        raise ProcessStateError(
            f"cannot {event.value} process {name!r}: it is {state.value} already"
        ) from None
