"""Keeping processes alive: what users hold."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, TypeVarTuple, Unpack, overload

import anyio

from .._durations import check_timeout
from .._errors import ProcessStateError
from .._function_names import simple_name
from .._log_forwarding import LogTarget, check_log_target
from .._loops import EventLoop, current_loop
from .._output import ErrorOutput, Output, check_output
from .._start_methods import check_start_method
from .._stop_policy import StopPolicy, check_stop_policy
from .._wire._handing_over import lend_all
from ._backoff import Backoff, check_backoff
from ._child import SupervisedChild
from ._engine import Engine
from ._events import EventHub, SupervisorEvents
from ._health import Health, HealthCheck, Heartbeat
from ._lives import ProcessSpec
from ._nested import NestedSpec
from ._options import EngineOptions
from ._shutdown import Shutdown, shutdown_policy
from ._states import ChildState
from ._statistics import ChildStatistics, SupervisorStatistics
from ._strategies import RestartType, StopOrder, Strategy, check_restart_type

__all__ = ["Supervisor", "open_supervisor"]

PosArgsT = TypeVarTuple("PosArgsT")

_NO_STREAM = "each restart makes a new process; use a logger"


def open_supervisor(
    *,
    strategy: Strategy = "one_for_one",
    intensity: int = 3,
    period: float = 5.0,
    name: str = "supervisor",
    backoff: Backoff | None = None,
    stop: StopPolicy | None = None,
    stop_order: StopOrder = "reverse",
    start_method: str | None = None,
    logs: LogTarget = False,
    stdout: Output = None,
    stderr: ErrorOutput = None,
) -> Supervisor:
    """Return a :class:`Supervisor`, to be used in ``async with``.

    :param strategy: which children are started again when one has failed: that one alone
        (``"one_for_one"``), all of them (``"one_for_all"``), or that one and those that were
        started after it (``"rest_for_one"``)
    :param intensity: how many restarts within ``period`` seconds are not too many. With one more,
        the supervisor gives up: it stops all of its children, and fails
    :param period: seconds
    :param name: its name, in errors, events and log records
    :param backoff: how long a child that fails again and again waits before it is started again
    :param stop: how its children are stopped
    :param stop_order: where several are stopped, at the end of the block say: one after the other,
        the one that was started last first (``"reverse"``), or all at once (``"together"``)
    :param start_method: as for :class:`AsyncProcess`
    :param logs: as for :class:`AsyncProcess`
    :param stdout: where the standard output of its children goes: to a logger, or by default to the
        application's own
    :param stderr: where their standard error goes: to a logger; ``"stdout"`` for where standard
        output goes
    :raises ValueError: if an argument is out of its range
    :raises TypeError: if an argument is of a wrong type
    """
    check_output(stdout, stderr, no_stream=_NO_STREAM)
    return Supervisor(
        _name=_check_name(name),
        _options=EngineOptions(
            strategy=strategy,
            intensity=intensity,
            period=period,
            backoff=check_backoff(backoff),
            stop_order=stop_order,
        ),
        _defaults=_Defaults(
            stop=check_stop_policy(stop),
            start_method=check_start_method(start_method) if start_method is not None else None,
            logs=check_log_target(logs),
            stdout=stdout,
            stderr=stderr,
        ),
        _hub=EventHub(),
    )


@dataclass(frozen=True, kw_only=True)
class _Defaults:
    """What holds for children that say nothing else."""

    stop: StopPolicy
    start_method: str | None
    logs: LogTarget
    stdout: Output
    stderr: ErrorOutput


class Supervisor:
    """Keeps processes alive; made by :func:`open_supervisor`.

    A child is a function that serves until it is stopped, in a process of its own. It is started
    again when it has failed, by the supervisor's strategy and the child's ``restart`` type. Leaving
    the ``async with`` block stops all children, in the supervisor's ``stop_order``, each by its own
    ``shutdown`` policy, and waits until they are gone: use :meth:`wait`, or
    ``anyio.sleep_forever()``, to stay in it.

    When there are too many restarts, the supervisor cancels its block, stops all children, and
    raises an ``ExceptionGroup`` of what has failed. An exception in the block stops the children as
    well, and comes out in an ``ExceptionGroup``.

    A supervisor belongs to the event loop that it was opened in. Its methods can be called by any
    number of tasks of that loop at once.
    """

    def __init__(
        self, *, _name: str, _options: EngineOptions, _defaults: _Defaults, _hub: EventHub
    ) -> None:
        self._name = _name
        self._options = _options
        self._defaults = _defaults
        self._hub = _hub
        self._engine: Engine | None = None
        self._loop: EventLoop | None = None
        self._counts: dict[str, int] = {}

    # --- children -------------------------------------------------------------------------------

    @overload
    async def start(
        self,
        func: Callable[[Unpack[PosArgsT]], Coroutine[Any, Any, object]],
        *args: *PosArgsT,
        name: str | None = None,
        restart: RestartType = "permanent",
        shutdown: Shutdown | None = None,
        ready: bool = True,
        start_timeout: float | None = 30.0,
        health: Heartbeat | HealthCheck[SupervisedChild] | None = None,
        backoff: Backoff | None = None,
        logs: LogTarget | None = None,
        stdout: Output = None,
        stderr: ErrorOutput = None,
    ) -> SupervisedChild: ...

    @overload
    async def start(
        self,
        func: Callable[[Unpack[PosArgsT]], object],
        *args: *PosArgsT,
        name: str | None = None,
        restart: RestartType = "permanent",
        shutdown: Shutdown | None = None,
        ready: bool = True,
        start_timeout: float | None = 30.0,
        health: Heartbeat | HealthCheck[SupervisedChild] | None = None,
        backoff: Backoff | None = None,
        logs: LogTarget | None = None,
        stdout: Output = None,
        stderr: ErrorOutput = None,
    ) -> SupervisedChild: ...

    async def start(
        self,
        func: Callable[[Unpack[PosArgsT]], Any],
        *args: *PosArgsT,
        name: str | None = None,
        restart: RestartType = "permanent",
        shutdown: Shutdown | None = None,
        ready: bool = True,
        start_timeout: float | None = 30.0,
        health: Health[SupervisedChild] | None = None,
        backoff: Backoff | None = None,
        logs: LogTarget | None = None,
        stdout: Output = None,
        stderr: ErrorOutput = None,
    ) -> SupervisedChild:
        """Start ``func(*args)`` as a child; return when it is ready.

        It is ready when it calls :func:`creche.from_process.started`. Children are started one
        after the other, in the order of the calls. One that fails before it is ready for the first
        time is no child: its error is raised here, and it is not started again.

        Cancellation before the child is ready stops it, and waits until it is gone.

        :param func: what serves: anything that can be called and pickled; ``async`` functions, too
        :param args: its positional arguments. They are pickled for each process anew; each gets
            an end of its own of a channel that is one of them
        :param name: its name, unique in the supervisor; by default ``func``'s name and a number
        :param restart: when it is started again after it has ended by itself: always
            (``"permanent"``), if it has failed (``"transient"``: it raised, was killed, or exited
            with another code than 0), or never (``"temporary"``)
        :param shutdown: how it is stopped, instead of the supervisor's own policy; ``"kill"``: at
            once, by SIGKILL; ``"wait"``: it is asked, and waited for, however long it takes
        :param ready: ``False`` for a function that does not call ``started()``: it is ready when
            its process exists
        :param start_timeout: seconds within which it has to be ready, here and after each restart.
            One that is not is stopped, and has failed; ``None``: no limit
        :param health: a :class:`Heartbeat` or a :class:`HealthCheck`, which find out that it hangs
        :param backoff: how long it waits before it is started again, instead of what is the
            supervisor's
        :param logs: what becomes of its log records, instead of what the supervisor does with them
        :param stdout: where its standard output goes, instead of where that of the supervisor's
            children does
        :param stderr: where its standard error goes
        :return: the child
        :raises Exception: whatever ``func`` raises before it is ready, and all else that
            :meth:`AsyncProcess.result` raises
        :raises ProcessStartError: if it ends without calling ``started()``
        :raises ProcessTimeout: if it is not ready within ``start_timeout`` seconds
        :raises ProcessStateError: if the supervisor is not open, has a child of that name, or stops
            the child meanwhile
        :raises ValueError: if an argument is out of its range
        :raises TypeError: if an argument is of a wrong type
        """
        engine = self._open_engine()
        if not callable(func):
            raise TypeError(f"func must be callable, not {type(func).__name__}")
        check_output(stdout, stderr, no_stream=_NO_STREAM)
        if health is not None and not isinstance(health, Heartbeat | HealthCheck):
            raise TypeError(
                f"health must be a Heartbeat or a HealthCheck, not {type(health).__name__}"
            )
        defaults = self._defaults
        child = SupervisedChild(
            self._next_name(engine, simple_name(func)) if name is None else _check_name(name),
            check_restart_type(restart),
            self._options.backoff if backoff is None else check_backoff(backoff),
        )
        options: dict[str, Any] = {
            "policy": shutdown_policy(shutdown, defaults.stop),
            "start_timeout": check_timeout(start_timeout),
            "logs": defaults.logs if logs is None else check_log_target(logs),
        }
        engine.reserve(child.name)
        try:
            given, lent = lend_all(args)
        except BaseException:
            engine.release(child.name)
            raise
        spec = ProcessSpec(
            func=func,
            args=given,
            says_ready=ready,
            health=health,
            start_method=defaults.start_method,
            stdout=defaults.stdout if stdout is None else stdout,
            stderr=defaults.stderr if stderr is None else stderr,
            context=contextvars.copy_context(),
            lent=lent,
            **options,
        )
        await engine.start(child, spec)
        return child

    async def start_supervisor(
        self,
        setup: Callable[[Supervisor], Awaitable[object]],
        *,
        name: str,
        strategy: Strategy = "one_for_one",
        intensity: int = 3,
        period: float = 5.0,
        restart: RestartType = "permanent",
        backoff: Backoff | None = None,
        stop_order: StopOrder = "reverse",
        start_timeout: float | None = None,
    ) -> Supervisor:
        """Start a supervisor of its own as a child; return when it has started its children.

        It runs in the same event loop. When it gives up, it has failed as any child does: it is
        started again, with all of its children, by calling ``setup`` again; and that counts as one
        restart here. It is stopped by stopping its children, in its own ``stop_order``. Its events
        are events of this one, too.

        Cancellation before it is ready stops its children, and waits until they are gone.

        :param setup: an async function that gets the nested supervisor, and starts its children. It
            must not start children of this one, which would have to wait for it
        :param name: its name, unique in this supervisor
        :param strategy: as for :func:`open_supervisor`
        :param intensity: as for :func:`open_supervisor`
        :param period: as for :func:`open_supervisor`
        :param restart: as for :meth:`start`
        :param backoff: how long it waits before it is started again, and its children do, if they
            say nothing else
        :param stop_order: as for :func:`open_supervisor`
        :param start_timeout: seconds within which ``setup`` has to return; by default there is no
            limit
        :return: the nested supervisor. It is the same object through all of its restarts
        :raises Exception: whatever ``setup`` raises
        :raises ExceptionGroup: if it gives up before ``setup`` has returned
        :raises ProcessStartError: if its :attr:`cancel_scope` is cancelled before that
        :raises ProcessTimeout: if it is not ready within ``start_timeout`` seconds
        :raises ProcessStateError: if this supervisor is not open, or has a child of that name
        :raises ValueError: if an argument is out of its range
        :raises TypeError: if an argument is of a wrong type
        """
        engine = self._open_engine()
        if not callable(setup):
            raise TypeError(f"setup must be an async function, not {type(setup).__name__}")
        backoff = self._options.backoff if backoff is None else check_backoff(backoff)
        options = EngineOptions(
            strategy=strategy,
            intensity=intensity,
            period=period,
            backoff=backoff,
            stop_order=stop_order,
        )
        child = SupervisedChild(_check_name(name), check_restart_type(restart), backoff)
        nested = Supervisor(
            _name=f"{self._name}/{child.name}",
            _options=options,
            _defaults=self._defaults,
            _hub=EventHub(),
        )
        nested._loop = self._loop
        seconds = check_timeout(start_timeout)
        engine.reserve(child.name)
        spec = NestedSpec(
            face=nested,
            setup=setup,
            options=options,
            start_timeout=seconds,
            publish=nested._hub.publish,
            on_close=nested._hub.end,
        )
        nested._hub.outer = self._hub
        await engine.start(child, spec)
        return nested

    @property
    def name(self) -> str:
        """Its name; of a nested supervisor, after those that it is nested in."""
        return self._name

    @property
    def children(self) -> Mapping[str, SupervisedChild]:
        """The children by their names, in the order in which they were started: a live view.

        A ``transient`` child that has ended in order stays in here until it is removed; a
        ``temporary`` one goes with its process.
        """
        return MappingProxyType({} if self._engine is None else self._engine.children)

    async def restart(self, name: str) -> None:
        """Stop a child, if it runs, and start it again; return when it is ready.

        That concerns no other child, and does not count as a restart after a failure. A child that
        waits for the end of its back-off is started at once. If it cannot be started, the
        supervisor goes on trying, as after any failure.

        Cancellation does not call the restart off.

        :param name: the name of the child
        :raises Exception: if the new process fails before it is ready: as for :meth:`start`
        :raises ProcessStateError: if there is no such child, or it is removed meanwhile
        """
        await self._open_engine().restart(self._child(name))

    async def roll(self, name: str) -> None:
        """Replace the process of a child by a new one, and have one that serves at any moment.

        The new one is started beside the old one, which is stopped when the new one is ready. So it
        is for children of which two can run at once: that share a listening socket, say. If the new
        one cannot be started, the old one goes on.

        Cancellation before the new one is ready stops that, and the old one goes on; later, it
        leaves the old one to its end.

        :param name: the name of the child
        :raises Exception: if the new process fails before it is ready: as for :meth:`start`
        :raises ProcessStateError: if there is no such child, it is not ready, is a nested
            supervisor, or is stopped meanwhile
        """
        engine, child = self._open_engine(), self._child(name)
        if child.supervisor is not None:
            raise ProcessStateError(
                f"cannot roll child {name!r}: it is a supervisor; roll its children, or restart it"
            )
        await engine.roll(child)

    async def remove(self, name: str) -> None:
        """Stop a child for good; return when it is gone. Its name is free then.

        A process that even SIGKILL does not end is not waited for: its :class:`ChildExited` event
        has a :exc:`ProcessStuckError`.

        Cancellation does not call that off.

        :param name: the name of the child
        :raises ProcessStateError: if there is no such child
        """
        await self._open_engine().remove(self._child(name))

    # --- all of it ------------------------------------------------------------------------------

    @property
    def cancel_scope(self) -> anyio.CancelScope:
        """Cancelling it stops all children, and the block.

        :raises ProcessStateError: if the supervisor was not opened
        """
        if self._engine is None:
            raise ProcessStateError(f"supervisor {self._name!r} was not opened")
        return self._engine.cancel_scope

    async def wait(self) -> None:
        """Wait until no child runs or will be started again by itself.

        With a permanent child that is when somebody stops the supervisor. Cancellation stops
        nothing.

        :raises ProcessStateError: if the supervisor is not open
        """
        await self._open_engine().wait()

    def events(self, *, buffer: float = 10_000) -> SupervisorEvents:
        """Return an async iterator over what happens from now on, nested supervisors included.

        It ends with the supervisor. Any number of tasks may have one each.

        :param buffer: how many events it keeps for a slow reader. Beyond, it drops the oldest, and
            counts them in :attr:`SupervisorEvents.dropped`. ``math.inf``: it drops none
        :raises ValueError: if ``buffer`` is less than 1
        :raises TypeError: if ``buffer`` is not a whole number
        """
        return self._hub.reader(buffer)

    def statistics(self) -> SupervisorStatistics:
        """Return what the supervisor and its children are at."""
        engine = self._engine
        return SupervisorStatistics(
            name=self._name,
            ready=sum(child.state is ChildState.READY for child in self.children.values()),
            restarts=0 if engine is None else engine.restarts,
            restarts_in_period=0 if engine is None else engine.restarts_in_period(),
            children=tuple(
                ChildStatistics(child.name, child.pid, child.state, child.restarts, child.uptime)
                for child in self.children.values()
            ),
        )

    async def __aenter__(self) -> Supervisor:
        if self._engine is not None:
            raise ProcessStateError(f"supervisor {self._name!r} was opened before")
        self._loop = current_loop()
        self._engine = Engine(self._name, self._options, self._hub.publish)
        await self._engine.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        assert self._engine is not None
        try:
            return await self._engine.__aexit__(exc_type, exc, tb)
        finally:
            self._hub.end()

    def __repr__(self) -> str:
        return f"<Supervisor {self._name!r} children={len(self.children)}>"

    # --- inner workings -------------------------------------------------------------------------

    def _be(self, engine: Engine) -> None:
        self._engine = engine

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise ProcessStateError(
                f"supervisor {self._name!r} is not open: use it in `async with`"
            )
        if self._loop is not current_loop():
            raise ProcessStateError(
                f"supervisor {self._name!r} belongs to another event loop: the one it was opened in"
            )
        self._engine.check_open()
        return self._engine

    def _child(self, name: str) -> SupervisedChild:
        try:
            return self.children[name]
        except KeyError:
            known = ", ".join(map(repr, self.children)) or "none"
            raise ProcessStateError(
                f"supervisor {self._name!r} has no child {name!r}; its children: {known}"
            ) from None

    def _next_name(self, engine: Engine, base: str) -> str:
        while True:
            self._counts[base] = number = self._counts.get(base, 0) + 1
            if not engine.has(name := f"{base}-{number}"):
                return name


def _check_name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {type(name).__name__}")
    if not name:
        raise ValueError("name must not be empty")
    return name
