"""The errors that say how the life of a process went wrong."""

from __future__ import annotations

from signal import SIGTERM

from ._errors import (
    ProcessDied,
    ProcessError,
    ProcessStartError,
    ProcessStuckError,
    ProcessTimeout,
    RemoteError,
    SerializationError,
    describe,
    text_of,
)

_SIGKILL = 9  # Windows has no name for it


def comes_of_stopping(error: BaseException, *, was_killed: bool) -> bool:
    """Whether a process that was asked to stop may have failed like that for no other reason."""
    if isinstance(error, ProcessDied):
        return error.signal in (None, SIGTERM) or (was_killed and error.signal == _SIGKILL)
    return isinstance(error, ProcessError) and not isinstance(error, RemoteError)


def stopped_before_start(name: str) -> ProcessStartError:
    return ProcessStartError(f"{describe(name, None)} was stopped before it was started")


def not_started(name: str, cause: BaseException) -> ProcessError:
    """What the caller hears of ``cause``; an error of creche's own says enough."""
    if isinstance(cause, ProcessError):
        return cause
    reason = text_of(cause) or type(cause).__name__
    error = ProcessStartError(f"{describe(name, None)} could not be started: {reason}")
    error.__cause__ = cause
    return error


def not_started_in_time(
    name: str, timeout: float | None, cause: BaseException | None = None
) -> ProcessTimeout:
    error = ProcessTimeout(
        f"{describe(name, None)} could not be started within its timeout of {timeout:g} seconds"
    )
    error.__cause__ = cause
    return error


def still_starting(name: str) -> ProcessStuckError:
    return ProcessStuckError(
        f"{describe(name, None)} was to be stopped, but is still being started"
    )


def killed_in_vain(name: str, pid: int, kill_timeout: float) -> ProcessStuckError:
    return ProcessStuckError(
        f"{describe(name, pid)} is still there {kill_timeout:g} seconds after it was sent SIGKILL:"
        " it waits inside the kernel, perhaps for a disk or a network file system. It will be"
        " reaped when the kernel lets go of it."
    )


def died(
    name: str,
    pid: int | None,
    exitcode: int | None,
    *,
    ran: bool,
    garbage: Exception | None,
    cut_off: bool,
) -> ProcessError:
    """Say how a process ended that gave no outcome.

    :param ran: whether it may have got as far as to its function
    :param garbage: what was wrong with what it has sent
    :param cut_off: whether what came last is the beginning of something
    """
    if garbage is not None:
        return wrote_garbage(name, pid, garbage)
    if not ran and exitcode is not None and exitcode > 0:
        return ProcessStartError(
            f"{describe(name, pid)} ended with exit code {exitcode} before it could run its"
            " function; it wrote the reason to stderr"
        )
    detail = "it died while sending its result" if cut_off else ""
    return ProcessDied(exitcode, name=name, pid=pid, detail=detail)


def wrote_garbage(name: str, pid: int | None, garbage: Exception) -> SerializationError:
    return SerializationError(
        f"{describe(name, pid)} was killed because something in it wrote to creche's connection:"
        f" {garbage}"
    )


def unpickling_never_ends(name: str, pid: int | None, kill_timeout: float) -> SerializationError:
    return SerializationError(
        f"the result of {describe(name, pid)} was still being unpickled {kill_timeout:g} seconds"
        " after it was to be stopped"
    )


def timed_out(
    name: str, pid: int | None, timeout: float | None, last_word: BaseException | None
) -> ProcessTimeout:
    """:param last_word: what the function raised while it was being stopped"""
    error = ProcessTimeout(
        f"{describe(name, pid)} was stopped after its timeout of {timeout:g} seconds"
    )
    if not isinstance(last_word, ProcessDied):
        error.__cause__ = last_word
    return error
