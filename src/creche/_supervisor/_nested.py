"""One life of a nested supervisor: it opens, starts its children, and ends when it gives up."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import anyio

from . import _failures
from ._child import Life, SupervisedChild
from ._engine import Engine
from ._events import SupervisorEvent
from ._lives import LifeListener
from ._options import EngineOptions


class Face(Protocol):
    """The supervisor as users hold it, through all of its lives."""

    @property
    def name(self) -> str: ...

    def _be(self, engine: Engine) -> None:
        """This is what it consists of from now on."""


@dataclass(frozen=True, kw_only=True)
class NestedSpec:
    """What the lives of a nested supervisor have in common."""

    face: Face
    setup: Callable[[Any], Awaitable[object]]
    options: EngineOptions
    start_timeout: float | None
    publish: Callable[[SupervisorEvent], None]
    on_close: Callable[[], None]

    def make_life(self, child: SupervisedChild, listener: LifeListener) -> Life:
        return NestedRun(self, child, listener)

    def close(self) -> None:
        self.on_close()


class NestedRun(Life):
    """One life of a nested supervisor. It ends when it gives up, or was told to stop."""

    def __init__(self, spec: NestedSpec, child: SupervisedChild, listener: LifeListener) -> None:
        super().__init__()
        self.supervisor = spec.face
        self._spec = spec
        self._child = child
        self._listener = listener
        self._block = anyio.CancelScope()

    def begin(self) -> None:
        pass

    def stop(self, *, at_once: bool = False) -> None:
        self.stopping = True
        self._block.cancel()

    async def run(self) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await self._live()
        finally:
            self.ended = True
            self._listener.life_ended(self._child, self)

    async def _live(self) -> None:
        spec = self._spec
        engine = Engine(spec.face.name, spec.options, spec.publish)
        try:
            async with engine:
                spec.face._be(engine)
                self._listener.life_started(self._child, self)
                with self._block:
                    if await self._set_up():
                        await anyio.sleep_forever()
            if self.ready_at is None and self.failure is None and not self.stopping:
                # By its own scope, whose cancellation comes no further than this.
                self.failure = _failures.cancelled_before_set_up(self._child.name)
        except (Exception, BaseExceptionGroup) as error:
            if _interrupts(error):
                raise
            self.failure = error  # it gave up

    async def _set_up(self) -> bool:
        """Start its children; return whether that went well."""
        spec = self._spec
        try:
            with anyio.move_on_after(spec.start_timeout) as scope:
                await spec.setup(spec.face)
        except Exception as error:
            self.failure = error
            return False
        if scope.cancelled_caught:
            assert spec.start_timeout is not None
            self.failure = _failures.not_set_up_in_time(self._child.name, spec.start_timeout)
            return False
        if not self.stopping:
            self.ready_at = time.monotonic()
            self._listener.life_ready(self._child, self)
        return True


def _interrupts(error: BaseException) -> bool:
    """Whether something in here ends the program, which no exception of a child does."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup((KeyboardInterrupt, SystemExit)) is not None
    return False
