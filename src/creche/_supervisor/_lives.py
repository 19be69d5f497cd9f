"""One life of a child: a process from its start to its end."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import anyio

from .._errors import ProcessDied, ProcessError, ProcessStartError
from .._log_forwarding import LogTarget
from .._output import ErrorOutput, Output
from .._process import AsyncProcess
from .._stop_policy import StopPolicy
from .._wire._handing_over import Lent
from .._wire._outcomes import Failure
from . import _failures
from ._child import Life, SupervisedChild
from ._health import Health, watch
from ._shutdown import bounded


class LifeListener(Protocol):
    """Who wants to know of a life. All calls come from its task, in the event loop."""

    def life_started(self, child: SupervisedChild, life: Life) -> None: ...

    def life_ready(self, child: SupervisedChild, life: Life) -> None: ...

    def life_failed(self, child: SupervisedChild, life: Life) -> None:
        """It is not as it should be, and has been told to end."""

    def life_ended(self, child: SupervisedChild, life: Life) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """What the processes of a child have in common."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    policy: StopPolicy
    says_ready: bool
    start_timeout: float | None
    health: Health[SupervisedChild] | None
    start_method: str | None
    logs: LogTarget
    stdout: Output
    stderr: ErrorOutput
    context: contextvars.Context
    lent: Sequence[Lent]

    def make_life(self, child: SupervisedChild, listener: LifeListener) -> Life:
        return ProcessRun(self, child, listener)

    def close(self) -> None:
        for lent in self.lent:
            lent.close()


class ProcessRun(Life):
    """One process of a child. It ends when it ends, or was told to: no cancellation reaches it."""

    def __init__(self, spec: ProcessSpec, child: SupervisedChild, listener: LifeListener) -> None:
        super().__init__()
        self._spec = spec
        self._child = child
        self._listener = listener
        self.process = self._process = AsyncProcess(
            target=spec.func,
            name=child.name,
            args=spec.args,
            stop=spec.policy,
            start_method=spec.start_method,
            logs=spec.logs,
            stdout=spec.stdout,
            stderr=spec.stderr,
        )
        self._handle = self._process._handle

    def begin(self) -> None:
        try:
            self._spec.context.run(self._process._begin)
        except Exception as error:
            self.failure = error

    def stop(self, *, at_once: bool = False) -> None:
        self.stopping = True
        policy = self._spec.policy
        self._handle.stop(bounded(policy) if at_once else policy)

    async def run(self) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await self._live()
        finally:
            self.ended = True
            self._listener.life_ended(self._child, self)

    async def _live(self) -> None:
        try:
            if self.failure is None:
                self._handle.own()
                await self._get_ready()
                await self._serve()
        finally:
            # Gone already, but where the event loop itself is torn down.
            try:
                await self._process._leave_nothing()
            except ProcessError as error:
                self.failure = error
        await self._handle.conversation.wait_over()
        self._take_outcome()

    async def _get_ready(self) -> None:
        spec, handle = self._spec, self._handle
        with anyio.move_on_after(spec.start_timeout) as scope:
            await handle.wait_for(handle.launched)
            self.pid = handle.pid
            if self.pid is not None:
                self._listener.life_started(self._child, self)
            if spec.says_ready:
                await handle.wait_for(handle.ready)
        said = handle.started_outcome
        if isinstance(said, Failure):
            self._fail(said.exception)
        elif said is not None or (not spec.says_ready and self.pid is not None):
            if not self.stopping:
                self.ready_value = None if said is None else said.value
                self.ready_at = time.monotonic()
                self._listener.life_ready(self._child, self)
        elif scope.cancelled_caught and not handle.gone.is_set() and not handle.ready.is_set():
            assert spec.start_timeout is not None
            self._fail(_failures.not_ready_in_time(self._child.name, self.pid, spec.start_timeout))

    async def _serve(self) -> None:
        health = self._spec.health
        if health is None or self.ready_at is None:
            await self._handle.gone.wait()
            return

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, health)
            await self._handle.gone.wait()
            tasks.cancel_scope.cancel()

    async def _watch(self, health: Health[SupervisedChild]) -> None:
        failure = await watch(health, self._child, self._process)
        if not self.stopping:
            self._fail(failure)

    def _fail(self, failure: BaseException) -> None:
        """Stop a process that is not as it should be."""
        self.failure = failure
        self._handle.stop(bounded(self._spec.policy))
        self._listener.life_failed(self._child, self)

    def _take_outcome(self) -> None:
        handle = self._handle
        if not handle.finished.is_set():
            try:
                handle.check_gone()
            except ProcessError as error:
                self.failure = error
            return
        self.pid, self.exitcode = handle.pid, self._process.exitcode
        exception = self._process.exception  # asked for, so it is not reported as lost
        if self.failure is not None:
            return
        if self.stopping:
            if isinstance(exception, ProcessDied | ProcessStartError):
                exception = None  # as it was to
        elif isinstance(exception, ProcessDied) and exception.exitcode == 0:
            exception = None  # sys.exit(0)
        if exception is None and self.ready_at is None and not self.stopping:
            exception = _failures.never_started(self._child.name, self.pid)
        self.failure = exception
