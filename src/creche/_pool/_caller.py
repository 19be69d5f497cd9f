"""Calling functions in a worker, plain ones and async ones."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from .._child import ChildContext
from .._stop_request import StopRequested
from .._wire._outcomes import Failure, Outcome, Value


class Caller:
    """Calls functions, plain ones and async ones, which share one event loop.

    The loop runs in a thread of its own, from the first async function on, as what they make (a
    session, a connection) belongs to it and may live longer than a call.
    """

    def __init__(self, context: ChildContext) -> None:
        self._context = context
        self._stack = contextlib.ExitStack()
        self._portal: BlockingPortal | None = None

    def close(self) -> None:
        """End the event loop."""
        self._stack.close()

    def call(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        value = func(*args)
        return self.await_value(value) if inspect.iscoroutine(value) else value

    def call_at_end(self, func: Callable[[], Any]) -> None:
        """Call the function that cleans up, which a request to stop does not interrupt."""
        value = func()
        if inspect.iscoroutine(value):
            self._open_portal().call(_outcome_of, value).take()

    def await_value(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the event loop. A request to stop cancels it."""
        stop = self._context.stop
        try:
            with stop.remembering():  # which must not interrupt what concerns the loop's thread
                portal = self._open_portal()
                cancellation = portal.call(_Cancellation)
            stop.check()
        except BaseException:
            coroutine.close()
            raise
        try:
            stop.cancellation = cancellation
            with stop.reacting(lambda: portal.start_task_soon(cancellation.request)):
                outcome = portal.call(_outcome_in_scope, cancellation.scope, coroutine)
        finally:
            stop.cancellation = None
        if outcome is None:
            raise StopRequested
        return outcome.take()

    def _open_portal(self) -> BlockingPortal:
        if self._portal is None:
            self._portal = self._stack.enter_context(start_blocking_portal(self._context.backend))
        return self._portal


class _Cancellation:
    """Cancels an async function, in its event loop, or puts that off."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self._thread = threading.get_ident()
        self._blocks = 0  # that put it off
        self._requested = False

    @property
    def is_here(self) -> bool:
        return threading.get_ident() == self._thread

    def request(self) -> None:
        self._requested = True
        if not self._blocks:
            self.scope.cancel()

    @contextlib.contextmanager
    def deferring(self) -> Iterator[None]:
        self._blocks += 1
        try:
            yield
        finally:
            self._blocks -= 1
            if self._requested and not self._blocks:
                self.scope.cancel()


async def _outcome_of(coroutine: Coroutine[Any, Any, Any]) -> Outcome:
    """Await the coroutine. What would end the event loop, if it was raised there, is no exception
    to that: the loop goes on, with what other functions have in it."""
    try:
        return Value(await coroutine)
    except (Exception, anyio.get_cancelled_exc_class()):
        raise
    except BaseException as error:
        return Failure(error)


async def _outcome_in_scope(
    scope: anyio.CancelScope, coroutine: Coroutine[Any, Any, Any]
) -> Outcome | None:
    with scope:
        return await _outcome_of(coroutine)
    return None
