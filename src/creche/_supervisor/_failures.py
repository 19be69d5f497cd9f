"""What goes wrong with a child, other than what its process says itself."""

from __future__ import annotations

from .._errors import ProcessError, ProcessStartError, ProcessTimeout, describe

__all__ = ["ChildEnded", "ChildUnhealthy"]


class ChildEnded(ProcessError):
    """A permanent child of a supervisor has returned, or exited with exit code 0.

    It was to run for ever, so this counts as a failure, and it is started again.
    """


class ChildUnhealthy(ProcessError):
    """A child of a supervisor failed its health check, or gave no sign of life for too long.

    Where the check raised an exception, that is the ``__cause__``.
    """


def ended(name: str, pid: int | None) -> ChildEnded:
    return ChildEnded(f"{describe(name, pid)} has ended in order, but is to run for ever")


def never_started(name: str, pid: int | None) -> ProcessStartError:
    return ProcessStartError(
        f"{describe(name, pid)} ended without calling creche.from_process.started(), for which its"
        " supervisor waits; use ready=False for a function that does not call it"
    )


def not_ready_in_time(name: str, pid: int | None, seconds: float) -> ProcessTimeout:
    return ProcessTimeout(
        f"{describe(name, pid)} did not call creche.from_process.started() within its"
        f" start_timeout of {seconds:g} seconds"
    )


def silent(name: str, pid: int | None, seconds: float) -> ChildUnhealthy:
    return ChildUnhealthy(
        f"{describe(name, pid)} gave no sign of life by creche.from_process.report() for"
        f" {seconds:g} seconds"
    )


def unhealthy(name: str, pid: int | None, failures: int, cause: BaseException) -> ChildUnhealthy:
    times = "once" if failures == 1 else f"{failures} times in a row"
    error = ChildUnhealthy(
        f"{describe(name, pid)} failed its health check {times}:"
        f" {str(cause) or type(cause).__name__}"
    )
    error.__cause__ = cause
    return error


def not_set_up_in_time(name: str, seconds: float) -> ProcessTimeout:
    return ProcessTimeout(
        f"the children of supervisor {name!r} were not started within its start_timeout of"
        f" {seconds:g} seconds"
    )


def cancelled_before_set_up(name: str) -> ProcessStartError:
    return ProcessStartError(f"supervisor {name!r} was cancelled before its children were started")
