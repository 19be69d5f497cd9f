"""Running what takes long in a thread, on behalf of a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ._loops import Latch
from ._wire._outcomes import Failure, Outcome, Value
from ._worker_threads import WorkerThreads

T = TypeVar("T")


async def in_thread(threads: WorkerThreads, run: Callable[[], T]) -> T:
    """Run something in a thread. Cancellation gives it up: it is not waited for.

    :raises Exception: what ``run`` raises
    """
    outcome = await outcome_in_thread(threads, run)
    if isinstance(outcome, Failure):
        raise outcome.exception
    result: T = outcome.take()
    return result


async def outcome_in_thread(threads: WorkerThreads, run: Callable[[], object]) -> Outcome:
    """Do the same; what ``run`` raises is returned."""
    done = Latch()
    outcomes: list[Outcome] = []

    def job() -> None:
        try:
            outcomes.append(Value(run()))
        except BaseException as error:
            outcomes.append(Failure(error))
        finally:
            done.set()

    try:
        submitted = threads.submit(job)
    except RuntimeError:  # no thread, and none to be had: the event loop has to wait for it
        job()
        return outcomes[0]
    try:
        await done.wait()
    except BaseException:
        threads.abandon(submitted)
        raise
    return outcomes[0]
