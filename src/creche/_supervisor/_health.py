"""Finding out that a child hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio

from .._durations import check_duration
from .._loops import current_task
from .._process import AsyncProcess
from .._progress_feed import ProgressFeed
from . import _failures
from ._failures import ChildUnhealthy

__all__ = ["Health", "HealthCheck", "Heartbeat"]

ChildT = TypeVar("ChildT")


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A child is healthy as long as it calls :func:`creche.from_process.report` now and then.

    Whatever it reports is a sign of life, from the moment at which it is ready. A child that gives
    none for too long (because it waits for something for ever, was stopped by SIGSTOP, or sits in
    C code) is stopped by its ``shutdown`` policy, and has failed with
    :exc:`creche.ChildUnhealthy`. Time in which the event loop of the supervisor did not run does
    not count, unless the loop is late again and again.

    :param within: seconds between two signs of life, at most
    :raises ValueError: if it is not more than 0
    :raises TypeError: if it is not a number
    """

    within: float

    def __post_init__(self) -> None:
        if check_duration("within", self.within) == 0:
            raise ValueError("within must be more than 0 seconds")


@dataclass(frozen=True, slots=True)
class HealthCheck(Generic[ChildT]):
    """A child is healthy as long as an async function says so.

    It is called with the :class:`creche.SupervisedChild`, in the event loop of the supervisor, from
    ``interval`` seconds after the child is ready. The check has failed where the function returns
    ``False``, raises, or takes longer than ``timeout``. A child that has failed several checks in a
    row is stopped by its ``shutdown`` policy, and has failed with :exc:`creche.ChildUnhealthy`.

    :param check: the async function
    :param interval: seconds from one check to the next
    :param timeout: seconds that a check may take
    :param failures: how many failed checks in a row are too many
    :raises ValueError: if a value is out of its range
    :raises TypeError: if a value is of a wrong type
    """

    check: Callable[[ChildT], Awaitable[object]]
    interval: float = 5.0
    timeout: float = 5.0
    failures: int = 3

    def __post_init__(self) -> None:
        if not callable(self.check):
            raise TypeError(f"check must be an async function, not {type(self.check).__name__}")
        check_duration("interval", self.interval)
        check_duration("timeout", self.timeout)
        if isinstance(self.failures, bool) or not isinstance(self.failures, int):
            raise TypeError(f"failures must be a number, not {type(self.failures).__name__}")
        if self.failures < 1:
            raise ValueError(f"failures must be at least 1, not {self.failures}")


Health = Heartbeat | HealthCheck[ChildT]


async def watch(
    health: Health[ChildT], child: ChildT, process: AsyncProcess[object]
) -> ChildUnhealthy:
    """Return what is wrong, as soon as something is."""
    if isinstance(health, Heartbeat):
        await _wait_for_silence(process.progress, health.within)
        return _failures.silent(process.name, process.pid, health.within)
    failure = await _wait_for_failures(health, child)
    return _failures.unhealthy(process.name, process.pid, health.failures, failure)


async def _wait_for_silence(feed: ProgressFeed, within: float) -> None:
    began = time.monotonic()
    tolerance = within / 2
    while True:
        last = max(began, feed._latest_at)
        due = last + within
        await anyio.sleep(max(0.0, due - time.monotonic()))
        if feed._latest_at > last:
            tolerance = within / 2
            continue
        # Reports come by way of a thread, but this loop has to look in time: one that was blocked,
        # as in a process that was stopped, blames nobody. One that is late each time lets the
        # thread run in between: it may be ever later, or it would never blame anybody.
        now = time.monotonic()
        if now - due < tolerance:
            return
        began = now
        tolerance *= 2


async def _wait_for_failures(health: HealthCheck[ChildT], child: ChildT) -> BaseException:
    failures = 0
    while True:
        await anyio.sleep(health.interval)
        failure = await _failure_of(health, child)
        failures = 0 if failure is None else failures + 1
        if failure is not None and failures >= health.failures:
            return failure


async def _failure_of(health: HealthCheck[ChildT], child: ChildT) -> BaseException | None:
    try:
        with anyio.move_on_after(health.timeout) as scope:
            if await health.check(child) is False:
                return ValueError("the check returned False")
    except Exception as error:
        return error
    except asyncio.CancelledError as error:
        # Maybe of something else, for which the check has waited.
        task = current_task()
        if not isinstance(task, asyncio.Task) or task.cancelling():
            raise
        return error
    if scope.cancelled_caught:
        return TimeoutError(f"it took more than {health.timeout:g} seconds")
    return None
