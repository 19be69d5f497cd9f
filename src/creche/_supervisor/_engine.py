"""What an open supervisor consists of."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from .._errors import ProcessStateError
from . import _failures
from ._backoff import Backoff
from ._changes import Changes
from ._child import Life, SupervisedChild
from ._event_log import log_event
from ._events import (
    ChildExited,
    ChildReady,
    ChildRestarting,
    ChildStarted,
    SupervisorEvent,
    SupervisorGaveUp,
)
from ._intensity import Intensity
from ._lives import LifeListener
from ._mending import Mender
from ._states import ChildState, Step
from ._strategies import Strategy, is_restarted


class Spec(Protocol):
    """What all lives of a child have in common."""

    def make_life(self, child: SupervisedChild, listener: LifeListener) -> Life: ...

    def close(self) -> None:
        """There will be no more of them."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a supervisor supervises."""

    strategy: Strategy
    intensity: int
    period: float
    backoff: Backoff


class Engine:
    """Starts, watches, brings back and stops the children of one supervisor.

    Everything in here runs in one event loop. Nobody who waits owns a process: lives are tasks that
    no cancellation reaches, and end when their processes do. So it does not matter where a task
    that started, rolled or removed a child is cancelled. Those that are left are stopped, in
    reverse order, when the block of the supervisor is left.

    :param publish: takes events
    """

    def __init__(
        self, name: str, options: EngineOptions, publish: Callable[[SupervisorEvent], None]
    ) -> None:
        self.name = name
        self.options = options
        self.strategy: Strategy = options.strategy
        self.children: dict[str, SupervisedChild] = {}
        self.changes = Changes()
        self.restarts = 0
        self._publish_event = publish
        self._specs: dict[SupervisedChild, Spec] = {}
        self._menders: dict[SupervisedChild, Mender] = {}
        self._rolling: dict[SupervisedChild, Life] = {}
        self._one_mender = Mender(self)
        self._intensity = Intensity(options.intensity, options.period)
        self._failures: list[BaseException] = []
        self._task_group: TaskGroup = anyio.create_task_group()
        self._mending_scopes: set[anyio.CancelScope] = set()
        self._reserved: set[str] = set()
        self._turn = anyio.Lock()
        self._closing = False

    # --- the block ------------------------------------------------------------------------------

    async def __aenter__(self) -> Engine:
        await self._task_group.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        error = exc
        try:
            await self._shut_down()
        except BaseException as interrupt:  # no time left for the right order
            error = interrupt
            for child in self.children.values():
                self._stop(child)
        others: list[BaseException] = []
        swallowed: bool | None = False
        try:
            swallowed = await self._task_group.__aexit__(
                None if error is None else type(error),
                error,
                None if error is None else error.__traceback__,
            )
        except BaseExceptionGroup as group:
            others = list(group.exceptions)
            if not self._failures:
                raise
        finally:
            for spec in self._specs.values():
                spec.close()
        if self._failures:
            raise BaseExceptionGroup(
                f"supervisor {self.name!r} gave up: more than {self.options.intensity} restarts"
                f" within {self.options.period:g} seconds",
                [*self._failures, *others],
            ) from None
        if error is not None and error is not exc and not swallowed:
            raise error
        return bool(swallowed)

    @property
    def cancel_scope(self) -> anyio.CancelScope:
        return self._task_group.cancel_scope

    @property
    def closing(self) -> bool:
        return self._closing or self.cancel_scope.cancel_called

    async def _shut_down(self) -> None:
        """Stop all children, the last one first, and wait until they are gone."""
        self._closing = True
        for scope in self._mending_scopes:
            scope.cancel()
        for mender in (self._one_mender, *self._menders.values()):
            mender.changes.notify()
        with anyio.CancelScope(shield=True):
            await self.stop_children(list(self.children.values()))
        self.changes.notify()

    # --- what users ask for ---------------------------------------------------------------------

    def check_open(self) -> None:
        """
        :raises ProcessStateError: if it is not, or not any more
        """
        if self.closing:
            raise ProcessStateError(
                f"supervisor {self.name!r} is not open: it has no children any more"
            )

    def reserve(self, name: str) -> None:
        """Take a name for a child.

        :raises ProcessStateError: if another one has it
        """
        self.check_open()
        if name in self.children or name in self._reserved:
            raise ProcessStateError(
                f"supervisor {self.name!r} has a child {name!r} already; remove() it first, or use"
                " another name"
            )
        self._reserved.add(name)

    def release(self, name: str) -> None:
        """Give a reserved name back."""
        self._reserved.discard(name)

    async def start(self, child: SupervisedChild, spec: Spec) -> None:
        """Start a child, whose name is reserved, after those that are being started."""
        self._menders[child] = mender = (
            Mender(self) if self.strategy == "one_for_one" else self._one_mender
        )
        self._specs[child] = spec
        try:
            async with self._turn:
                async with mender.lock:
                    self.check_open()
                    self.launch(child)
                    self.children[child.name] = child
                await self._introduce(child, mender)
        finally:
            self._reserved.discard(child.name)
            if self.children.get(child.name) is not child:
                self._forget(child)

    async def _introduce(self, child: SupervisedChild, mender: Mender) -> None:
        """Wait until a new child is ready for the first time; else it is no child."""
        try:
            await mender.changes.wait_until(
                lambda: (
                    not child._introducing
                    or child._start_failure is not None
                    or child._removed
                    or self.closing
                )
            )
            if child._introducing:
                raise child._start_failure or self._not_any_more(child)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.remove(child, at_once=True)
            raise

    async def restart(self, child: SupervisedChild) -> None:
        """Have a child replaced by a new process, and wait for that."""
        mender = self._menders[child]
        before, failures = child._life, child._failed_starts
        mender.request(child)
        await mender.changes.wait_until(
            lambda: (
                (child._life is not before and child._is_ready())
                or child._failed_starts != failures
                or child._removed
                or self.closing
            )
        )
        if child._failed_starts != failures and child._start_failure is not None:
            raise child._start_failure
        if child._removed or self.closing:
            raise self._not_any_more(child)

    async def roll(self, child: SupervisedChild) -> None:
        """Replace the process of a child by a new one as soon as that is ready."""
        mender = self._menders[child]
        async with mender.lock:
            self.check_open()
            old = child._life
            if old is None or not child._is_ready():
                raise ProcessStateError(
                    f"cannot roll child {child.name!r}: it is {child.state.value}, not ready"
                )
            new = self.launch(child, takes_over=False)
            self._rolling[child] = new
            try:
                await mender.changes.wait_until(
                    lambda: (
                        new.ready_at is not None
                        or new.ended
                        or child._removed
                        or self.closing
                        or (mender.called and self.strategy != "one_for_one")
                    )
                )
                if new.ready_at is None:
                    raise new.failure or ProcessStateError(
                        f"child {child.name!r} was stopped while it was being rolled"
                    )
            finally:
                self._rolling.pop(child, None)
                if new.ready_at is None and not new.ended:
                    new.stop(at_once=True)
                    with anyio.CancelScope(shield=True):
                        await mender.changes.wait_until(lambda: new.ended)
            await mender.changes.wait_until(lambda: old.ended)

    async def remove(self, child: SupervisedChild, *, at_once: bool = False) -> None:
        """Stop a child for good, and wait until it is gone."""
        child._removed = True
        if child in self._menders:
            self._menders[child].forget(child)
        self._stop(child, at_once=at_once)
        if not child._lives:
            self.drop(child)
        await self._wait_until_gone(child)

    async def wait(self) -> None:
        """Wait until nothing runs any more, and nothing will."""
        await self.changes.wait_until(
            lambda: (
                (self.closing and not any(child._lives for child in self.children.values()))
                or (
                    not self._reserved
                    and not any(mender.at_work for mender in self._menders.values())
                    and all(child._state is ChildState.ENDED for child in self.children.values())
                )
            )
        )
        await anyio.lowlevel.checkpoint()  # where it has given up, the block does not go on

    def restarts_in_period(self) -> int:
        return self._intensity.count(time.monotonic())

    # --- what happens to lives ------------------------------------------------------------------

    def life_started(self, child: SupervisedChild, life: Life) -> None:
        self._publish(
            ChildStarted(
                supervisor=self.name, time=time.monotonic(), child=child.name, pid=life.pid
            )
        )

    def life_ready(self, child: SupervisedChild, life: Life) -> None:
        if life is child._life:
            child._introducing = False
            child._advance(Step.READY)
        elif life is self._rolling.get(child):
            old, child._life = child._life, life
            child._advance(Step.READY)
            child._restarts += 1
            if old is not None and not old.ended:
                old.stop()
        now = time.monotonic()
        self._publish(
            ChildReady(
                supervisor=self.name,
                time=now,
                child=child.name,
                pid=life.pid,
                seconds=now - life.began_at,
            )
        )
        self._notify(child)

    def life_ended(self, child: SupervisedChild, life: Life) -> None:
        child._lives.discard(life)
        if life is child._life:
            child._advance(Step.END)
        self._publish(
            ChildExited(
                supervisor=self.name,
                time=time.monotonic(),
                child=child.name,
                pid=life.pid,
                exitcode=life.exitcode,
                exception=None if life.stopping else life.failure,
                stopped=life.stopping,
            )
        )
        if child._removed:
            if not child._lives:
                self.drop(child)
        elif not life.stopping and life is child._life:
            if life.ready_at is not None:
                self._ended_by_itself(child, life)
            else:
                child._failed_starts += 1
                child._start_failure = life.failure
        self._notify(child)

    def _ended_by_itself(self, child: SupervisedChild, life: Life) -> None:
        if is_restarted(child.restart, failed=life.failure is not None):
            self.failed(child, life.failure)
        elif child.restart == "temporary":
            self.drop(child)

    # --- for menders ----------------------------------------------------------------------------

    @property
    def order(self) -> Sequence[SupervisedChild]:
        return list(self.children.values())

    def launch(self, child: SupervisedChild, *, takes_over: bool = True) -> Life:
        """Begin to start a process of a child."""
        life = self._specs[child].make_life(child, self)
        child._lives.add(life)
        if takes_over:
            if child._life is not None:
                child._restarts += 1
            child._life = life
            child._advance(Step.LAUNCH)
        life.begin()
        self._task_group.start_soon(life.run, name=f"{self.name}/{child.name}")
        return life

    async def stop_children(self, children: Iterable[SupervisedChild]) -> None:
        for child in reversed(list(children)):
            self._stop(child)
            await self._wait_until_gone(child)

    def drop(self, child: SupervisedChild) -> None:
        if self.children.get(child.name) is child:
            del self.children[child.name]
        if child._state is not ChildState.REMOVED:
            child._removed = True
            child._advance(Step.REMOVE)
            self._menders[child].forget(child)
            self._forget(child)
        self._notify(child)

    def failed(self, child: SupervisedChild, failure: BaseException | None) -> None:
        if self.closing:
            return
        if child.restart == "temporary":
            self.drop(child)
            return
        if failure is None:
            failure = _failures.ended(child.name, child.pid)
        else:
            failure.add_note(f"That was child {child.name!r} of supervisor {self.name!r}.")
        if self._intensity.note(time.monotonic(), failure):
            self.restarts += 1
            self._menders[child].report(child, failure)
        else:
            self._give_up()

    def restarting(
        self, child: SupervisedChild, delay: float, failure: BaseException | None
    ) -> None:
        self._publish(
            ChildRestarting(
                supervisor=self.name,
                time=time.monotonic(),
                child=child.name,
                delay=delay,
                attempt=child._attempts.count,
                exception=failure,
            )
        )

    def spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            with anyio.CancelScope() as scope:
                self._mending_scopes.add(scope)
                try:
                    if not self.closing:
                        await task()
                finally:
                    self._mending_scopes.discard(scope)
            self.changes.notify()

        self._task_group.start_soon(run, name=f"{self.name} mends")

    # --- inner workings -------------------------------------------------------------------------

    def _give_up(self) -> None:
        self._failures = self._intensity.failures
        self._publish(
            SupervisorGaveUp(
                supervisor=self.name, time=time.monotonic(), failures=tuple(self._failures)
            )
        )
        # Now, whatever the block is at, which is cancelled.
        self._task_group.start_soon(self._shut_down, name=f"{self.name} gives up")
        self._closing = True
        self.cancel_scope.cancel()

    def _stop(self, child: SupervisedChild, *, at_once: bool = False) -> None:
        for life in child._lives:
            life.stop(at_once=at_once)
            if life is child._life:
                child._advance(Step.STOP)

    async def _wait_until_gone(self, child: SupervisedChild) -> None:
        await self.changes.wait_until(lambda: not child._lives)

    def _notify(self, child: SupervisedChild) -> None:
        self.changes.notify()
        mender = self._menders.get(child)
        if mender is not None:
            mender.changes.notify()

    def _forget(self, child: SupervisedChild) -> None:
        self._menders.pop(child, None)
        spec = self._specs.pop(child, None)
        if spec is not None:
            spec.close()

    def _publish(self, event: SupervisorEvent) -> None:
        log_event(event)
        self._publish_event(event)

    def _not_any_more(self, child: SupervisedChild) -> ProcessStateError:
        why = "its supervisor was closed" if self.closing else "it was removed"
        return ProcessStateError(f"child {child.name!r} is not started: {why}")
