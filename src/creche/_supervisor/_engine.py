"""What an open supervisor consists of."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from types import TracebackType

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from .._errors import ProcessStateError
from . import _failures
from ._announcing import Announcer
from ._child import Life, SupervisedChild
from ._events import SupervisorEvent
from ._intensity import Intensity
from ._mending import Mender
from ._options import EngineOptions
from ._roster import Roster, Spec
from ._states import ChildState, Step
from ._strategies import Strategy, is_restarted


class Engine(Roster):
    """Starts, watches, brings back and stops the children of one supervisor.

    Everything in here runs in one event loop. Nobody who waits owns a process: lives are tasks that
    no cancellation reaches, and end when their processes do. So it does not matter where a task
    that started, rolled or removed a child is cancelled. Those that are left are stopped when the
    block of the supervisor is left.

    :param publish: takes events
    """

    def __init__(
        self, name: str, options: EngineOptions, publish: Callable[[SupervisorEvent], None]
    ) -> None:
        super().__init__(name, options)
        self.strategy: Strategy = options.strategy
        self.restarts = 0
        self._announcer = Announcer(name, publish)
        self._rolling: dict[SupervisedChild, Life] = {}
        self._one_mender = Mender(self)
        self._intensity = Intensity(options.intensity, options.period)
        self._failures: list[BaseException] = []
        self._task_group: TaskGroup = anyio.create_task_group()
        self._mending_scopes: set[anyio.CancelScope] = set()
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
                self.stop(child)
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
        """Stop all children, and wait until they are gone."""
        self._closing = True
        for scope in self._mending_scopes:
            scope.cancel()
        for mender in (self._one_mender, *self._menders.values()):
            mender.changes.notify()
        with anyio.CancelScope(shield=True):
            await self.stop_children(self.order)
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
        self.check_open()
        super().reserve(name)

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
            self.release(child.name)
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

        def was_ready() -> bool:  # it may have ended since
            life = child._life
            return life is not None and life is not before and life.ready_at is not None

        await mender.changes.wait_until(
            lambda: (
                was_ready() or child._failed_starts != failures or child._removed or self.closing
            )
        )
        if child._failed_starts != failures and child._start_failure is not None:
            raise child._start_failure
        if not was_ready():
            raise self._not_any_more(child)

    async def roll(self, child: SupervisedChild) -> None:
        """Replace the process of a child by a new one as soon as that is ready."""
        mender = self._menders[child]
        async with mender.roll_lock:
            # An earlier roll that was cancelled may have left one to its end.
            await self.changes.wait_until(lambda: child._lives <= {child._life})
            async with mender.lock:
                old = await self._bring_up_another(child, mender)
            await self.changes.wait_until(lambda: old.ended)

    async def _bring_up_another(self, child: SupervisedChild, mender: Mender) -> Life:
        """Start a process beside that of a child; return the old one when the new one is ready."""
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
            if new.ready_at is None and not new.ended:
                new.stop(at_once=True)
                with anyio.CancelScope(shield=True):
                    await self.changes.wait_until(lambda: new.ended)
            self._rolling.pop(child, None)
        return old

    async def remove(self, child: SupervisedChild, *, at_once: bool = False) -> None:
        """Stop a child for good, and wait until it is gone."""
        self.drop(child, at_once=at_once)
        await self.wait_until_gone(child)

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
        self._announcer.started(child, life)

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
        self._announcer.ready(child, life)
        self._notify(child)

    def life_failed(self, child: SupervisedChild, life: Life) -> None:
        if life is child._life:
            child._advance(Step.STOP)

    def life_ended(self, child: SupervisedChild, life: Life) -> None:
        child._lives.discard(life)
        if life is child._life:
            child._advance(Step.END)
        self._announcer.exited(child, life)
        if child._removed:
            self.drop(child)
        elif life is child._life:
            if not life.stopping:
                self._ended_by_itself(child, life)
        elif child.restart == "temporary" and child._has_ended():
            self.drop(child)  # it was being rolled when it ended, and that has failed
        self._notify(child)

    def _ended_by_itself(self, child: SupervisedChild, life: Life) -> None:
        if life.ready_at is None:
            child._failed_starts += 1
            child._start_failure = life.failure
        elif is_restarted(child.restart, failed=life.failure is not None):
            self.failed(child, life.failure)
        elif child.restart == "temporary" and child not in self._rolling:
            self.drop(child)

    # --- for menders ----------------------------------------------------------------------------

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
        self._announcer.restarting(child, delay, failure)

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
        self._announcer.gave_up(self._failures)
        # Now, whatever the block is at, which is cancelled.
        self._task_group.start_soon(self._shut_down, name=f"{self.name} gives up")
        self._closing = True
        self.cancel_scope.cancel()

    def _not_any_more(self, child: SupervisedChild) -> ProcessStateError:
        why = "its supervisor was closed" if self.closing else "it was removed"
        return ProcessStateError(f"child {child.name!r} is not started: {why}")
