"""Telling instruments what becomes of calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .._carried import with_loads
from .._errors import SerializationError
from .._instruments import ObservedCall
from .._wire._outcomes import Failure, Outcome
from ._answers import Undecodable

F = TypeVar("F", bound=Callable[..., Any])


def announce(observed: ObservedCall, func: F) -> F:
    """Tell that a call was made; return what is to be called for its function.

    It is not pickled yet, as what an instrument has to say may travel with it.
    """
    observed._queued()
    return with_loads(func, observed._loads)


def tell_not_sent(observed: ObservedCall, error: BaseException) -> None:
    """Tell that nothing has come of a call, as it cannot be pickled, or is not wanted any more."""
    if isinstance(error, SerializationError):
        tell_failure(observed, Failure(error))
    observed._finished("cancelled" if observed.exception is None else "error")


def tell_outcome(observed: ObservedCall, outcome: Outcome) -> None:
    """Tell how a call has ended."""
    if isinstance(outcome, Failure):
        tell_failure(observed, outcome)
    observed._finished("ok")


def tell_failure(observed: ObservedCall, failure: Failure) -> None:
    """Tell that a call has failed, or an item of a chunk has."""
    error = failure.exception
    cut_off = isinstance(failure, Undecodable) and not isinstance(error, SerializationError)
    observed._fails("killed" if cut_off else "error", error)
