"""Bringing back what has failed, one thing after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import anyio

from ._changes import Changes
from ._child import Life, SupervisedChild
from ._states import ChildState, Step
from ._strategies import Strategy, affected


class Crew(Protocol):
    """What a mender has to know of the supervisor."""

    @property
    def strategy(self) -> Strategy: ...

    @property
    def closing(self) -> bool:
        """Whether nothing is to be started any more."""
        ...

    @property
    def order(self) -> Sequence[SupervisedChild]:
        """All children, in the order in which they were started."""
        ...

    def launch(self, child: SupervisedChild) -> Life: ...

    async def stop_children(self, children: Iterable[SupervisedChild]) -> None:
        """Stop them, and wait until they are gone."""

    def drop(self, child: SupervisedChild) -> None:
        """It is no child any more."""

    def failed(self, child: SupervisedChild, failure: BaseException | None) -> None:
        """A child that should run does not: count that, and tell its mender or give up."""

    def restarting(
        self, child: SupervisedChild, delay: float, failure: BaseException | None
    ) -> None: ...

    def spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task until it is over, or the supervisor closes."""


class Mender:
    """Looks after children whose restarts must not overlap.

    Under ``one_for_one`` each child has a mender of its own, so that none waits for another; under
    the other strategies all have one. What is to be done is kept in three sets, and done by one
    task, which looks at them again whenever something has happened meanwhile. So it does not matter
    at which moment the next child fails, or is removed.
    """

    def __init__(self, crew: Crew) -> None:
        self.lock = anyio.Lock()
        """Held by whoever starts or replaces processes of these children."""
        self.roll_lock = anyio.Lock()
        """Held by whoever rolls one of them, from before the new process to the end of the old."""
        self.changes = Changes()
        self._crew = crew
        self._failed: dict[SupervisedChild, tuple[BaseException, float]] = {}
        self._requested: dict[SupervisedChild, None] = {}
        self._down: dict[SupervisedChild, None] = {}  # were stopped, and are to come back
        self.at_work = False

    @property
    def called(self) -> bool:
        """Whether something has failed, or was asked for, that nobody has looked at yet."""
        return bool(self._failed or self._requested)

    def report(self, child: SupervisedChild, failure: BaseException) -> None:
        """A child has failed, and is to be started again."""
        self._failed[child] = failure, child._next_delay()
        child._advance(Step.RETRY)
        self._begin()

    def request(self, child: SupervisedChild) -> None:
        """Somebody wants a child to be started again."""
        self._requested[child] = None
        self._begin()

    def forget(self, child: SupervisedChild) -> None:
        """A child is not to come back."""
        for kept in (self._failed, self._requested, self._down):
            kept.pop(child, None)
        self.changes.notify()

    def _begin(self) -> None:
        self.changes.notify()
        if not self.at_work:
            self.at_work = True
            self._crew.spawn(self._work)

    async def _work(self) -> None:
        try:
            async with self.lock:
                while (self.called or self._down) and not self._crew.closing:
                    await self._mend()
        finally:
            self.at_work = False
            self.changes.notify()

    async def _mend(self) -> None:
        crew = self._crew
        failed, self._failed = self._failed, {}
        requested, self._requested = self._requested, {}
        if crew.strategy == "one_for_one":  # it was being rolled, and its new process serves by now
            failed = {child: why for child, why in failed.items() if not child._is_ready()}
        concerned = {*affected(crew.strategy, crew.order, failed), *requested, *self._down}
        self._down = {
            child: None for child in crew.order if child in concerned and not child._removed
        }

        # One that has failed while what it took over from was on its way out does not wait for it.
        await crew.stop_children([child for child in self._down if child._runs()])
        for child in list(self._down):
            if child.restart == "temporary" and child not in requested:
                crew.drop(child)  # as OTP does: nobody else would start it again
        delays = {
            child: delay
            for child, (_, delay) in failed.items()
            if child in self._down and child not in requested
        }
        delay = max(delays.values(), default=0.0)
        for child in self._down:
            if child._state is ChildState.ENDED:
                child._advance(Step.RETRY)
            failure = failed.get(child)
            crew.restarting(child, delay, None if failure is None else failure[0])
        if delay > 0:
            await self.changes.wait_until(
                lambda: self.called or not any(child in self._down for child in delays), delay
            )
        await self._launch_all()

    async def _launch_all(self) -> None:
        """Start what is down, in order; leave the rest for later when something happens."""
        for child in list(self._down):
            if self.called or self._crew.closing:
                return
            if child not in self._down:
                continue  # it was removed meanwhile
            life = self._crew.launch(child)
            await self._wait_for(life)
            if life.ready_at is not None:
                self._down.pop(child, None)
            elif not life.ended:
                return
            elif child in self._down:
                del self._down[child]
                if not child._introducing:  # or else whoever starts it hears of it
                    self._crew.failed(child, life.failure)

    async def _wait_for(self, life: Life) -> None:
        await self.changes.wait_until(
            lambda: life.ready_at is not None or life.ended or self.called
        )
