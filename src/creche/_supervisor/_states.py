"""The life of a supervised child as a table: which event leads from which state to which."""

from __future__ import annotations

import enum

from .._errors import ProcessStateError

__all__ = ["ChildState"]


class ChildState(enum.Enum):
    """Where a child of a supervisor is in its life."""

    STARTING = "starting"
    """Its process is being started, or has not said yet that it is ready."""

    READY = "ready"
    """It serves."""

    STOPPING = "stopping"
    """Its process is being stopped: the supervisor wants that, or found that it is not as it should
    be."""

    WAITING = "waiting"
    """It will be started again: after its back-off, or when it is its turn."""

    ENDED = "ended"
    """It has ended, and is not started again unless somebody asks for it."""

    REMOVED = "removed"
    """The supervisor does not know it any more."""


class Step(enum.Enum):
    """What happens to a child."""

    LAUNCH = "launch"
    READY = "be ready"
    STOP = "stop"
    END = "end"
    RETRY = "wait for its restart"
    REMOVE = "remove"


_TRANSITIONS: dict[tuple[ChildState, Step], ChildState] = {
    (ChildState.WAITING, Step.LAUNCH): ChildState.STARTING,
    (ChildState.ENDED, Step.LAUNCH): ChildState.STARTING,
    (ChildState.STARTING, Step.READY): ChildState.READY,
    (ChildState.STARTING, Step.STOP): ChildState.STOPPING,
    (ChildState.STARTING, Step.END): ChildState.ENDED,
    (ChildState.READY, Step.STOP): ChildState.STOPPING,
    (ChildState.READY, Step.END): ChildState.ENDED,
    (ChildState.STOPPING, Step.STOP): ChildState.STOPPING,
    (ChildState.STOPPING, Step.END): ChildState.ENDED,
    (ChildState.WAITING, Step.RETRY): ChildState.WAITING,
    (ChildState.ENDED, Step.RETRY): ChildState.WAITING,
    # A roll: the process that has become ready takes the place of the one that serves, or of one
    # that has died meanwhile, or is found to hang.
    (ChildState.READY, Step.READY): ChildState.READY,
    (ChildState.STOPPING, Step.READY): ChildState.READY,
    (ChildState.WAITING, Step.READY): ChildState.READY,
    (ChildState.ENDED, Step.READY): ChildState.READY,
    (ChildState.WAITING, Step.REMOVE): ChildState.REMOVED,
    (ChildState.ENDED, Step.REMOVE): ChildState.REMOVED,
}


def next_child_state(state: ChildState, step: Step, name: str) -> ChildState:
    """Return the state that ``step`` leads to.

    :raises ProcessStateError: if ``step`` cannot happen in ``state``
    """
    try:
        return _TRANSITIONS[state, step]
    except KeyError:
        raise ProcessStateError(
            f"cannot {step.value} child {name!r}: it is {state.value}"
        ) from None
