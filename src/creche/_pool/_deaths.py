"""Why a call that ran has no outcome."""

from __future__ import annotations

from typing import Any

from .. import _failures
from .._errors import ProcessDied, WorkerMemoryError
from .._wire._outcomes import Failure


def death_of(handle: Any, *, cut_off: bool, limit: int | None) -> BaseException:
    """Say how a worker ended.

    :param handle: that of its process, which is gone
    :param cut_off: whether what came last is the beginning of something
    :param limit: bytes of memory that it might have
    """
    name = handle.process.name
    if handle.stuck and not handle.finished.is_set():
        return _failures.killed_in_vain(name, handle.pid, handle.policy.kill_timeout)
    error = handle.outcome.exception if isinstance(handle.outcome, Failure) else None
    if limit is not None and isinstance(error, MemoryError):
        return WorkerMemoryError(limit)
    if error is not None and not isinstance(error, ProcessDied):
        return error
    details = [error.detail] if error is not None and error.detail else []
    if cut_off:
        details.append("it died while sending its result")
    if limit is not None:
        details.append(f"it had a memory_limit of {limit} bytes")
    exitcode = handle.exitcode if error is None else error.exitcode
    return ProcessDied(exitcode, name=name, pid=handle.pid, detail=", and ".join(details))
