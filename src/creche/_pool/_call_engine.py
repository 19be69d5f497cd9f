"""What calls and maps need of an open pool, wherever its workers are."""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

from .._ctrl_c import is_ctrl_c
from .._errors import ProcessClosedError, ProcessStartError, ProcessStateError
from .._function_names import qualified_name
from .._instruments import ObservedCall
from .._loops import EventLoop, Waiter, current_loop, is_current, waiter_in
from .._runtime import runtime
from .._wire._context import CallInContext
from .._wire._outcomes import Failure, Outcome, cannot_pickle_call, outcome_of
from .._wire._payloads import Payload, TooHeavyError, dump_call, dumps_plain, is_plain
from ._calls import PoolCall
from ._chunk_size import CHUNK_SECONDS
from ._options import PoolOptions
from ._thread_jobs import ThreadJobs


class Stopping(Protocol):
    """What is being stopped because a call was called off."""

    async def wait_gone(self) -> None:
        """Wait until it is gone."""

    def tell_gone(self, callback: Callable[[], object]) -> None:
        """Call back in the event loop of the pool when it is gone."""


class CallEngine(ABC):
    """The calls of a pool that are on their way; lives in one event loop.

    :raises ProcessStateError: if the caller runs in no event loop
    :raises ProcessStartError: if there are no descriptors or threads left
    """

    chunk_seconds = CHUNK_SECONDS
    """How much work of a map should travel together."""

    scheduler: Any
    """What hands out the calls, and counts them."""

    def __init__(self, options: PoolOptions) -> None:
        self.options = options
        self.closed = False
        self.loop: EventLoop = current_loop()
        try:
            self._runtime = runtime()
        except (OSError, RuntimeError) as error:
            raise ProcessStartError(f"cannot open {options.name!r}: {error}") from error
        self.jobs = ThreadJobs(self.loop, self._runtime.picklers)
        self._owner_pid = os.getpid()
        self._calls: set[PoolCall] = set()
        self._picklings: set[_Pickling] = set()
        self.maps: weakref.WeakSet[Any] = weakref.WeakSet()
        """Those that may be under way."""

    # --- calls ----------------------------------------------------------------------------------

    def check_usable(self) -> None:
        """Check that calls can be made.

        :raises ProcessClosedError: if the pool is closed
        :raises ProcessStateError: if it belongs to another event loop or process
        """
        self.check_place()
        if self.closed:
            raise ProcessClosedError(f"pool {self.options.name!r} is closed")

    def check_place(self) -> None:
        """Check that the caller runs in the event loop of the pool.

        :raises ProcessStateError: if it does not
        """
        if self._runtime.forgotten:
            raise ProcessStateError(
                f"pool {self.options.name!r} belongs to the process with pid {self._owner_pid},"
                " not to this one"
            )
        if not is_current(self.loop):
            raise ProcessStateError(
                f"pool {self.options.name!r} belongs to another event loop: the one in which it"
                " was opened"
            )

    def pickle_plain(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Payload | None:
        """Pickle a call with plain arguments, which takes no time; ``None`` if this is none."""
        if isinstance(func, CallInContext) and not is_plain(func.loads):
            return None
        if self.options.serializer is None and is_plain(args):
            try:
                return Payload([[dumps_plain((func, args))]], heavy=False)
            except Exception:
                return None  # pickle() will say why
        return None

    async def pickle(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Payload:
        """Pickle a call: here if that is quickly done, or else in a thread.

        :raises SerializationError: if something cannot be pickled
        :raises ProcessClosedError: if the pool is closed at once meanwhile
        """
        call = func, args
        failure = None
        try:
            return dump_call(call, self.options.serializer, light=True)
        except TooHeavyError:
            pass
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            failure = Failure(error)
        pickled = failure or await self._pickle_in_thread(call)
        if isinstance(pickled, Failure):
            reason = pickled.exception
            raise cannot_pickle_call(self.options.name, func, args, reason) from reason
        return pickled.value  # type: ignore[no-any-return]

    def observe(self, func: Callable[..., Any], items: int = 1) -> ObservedCall:
        """Return what instruments get to see of a call."""
        return ObservedCall(qualified_name(func), self.options.name, items)

    def expect(self, call: PoolCall) -> None:
        """A call is going to be submitted. It is known to the pool until :meth:`forget`."""
        self._calls.add(call)

    @abstractmethod
    def submit(self, call: PoolCall) -> None:
        """Have a call run. It is known to the pool until :meth:`forget`."""

    def forget(self, call: PoolCall) -> None:
        """Nobody waits for the call any more."""
        self._calls.discard(call)
        call.close_payload()
        if self.scheduler.on_change is not None:
            self.scheduler.on_change()

    @abstractmethod
    def call_off(self, call: PoolCall) -> Stopping | None:
        """See to it that a call does not run, or no longer.

        :return: what is being stopped for that
        """

    @abstractmethod
    def call_later(self, seconds: float, method: Callable[[], object]) -> None:
        """Call a bound method in the event loop after some seconds, if its object still lives."""

    # --- the beginning and the end --------------------------------------------------------------

    @abstractmethod
    async def wait_ready(self) -> None:
        """Wait until calls can be served."""

    @abstractmethod
    async def wait_for_calls(self) -> None:
        """Take no more calls, and wait until every one has ended."""

    @abstractmethod
    async def close(self) -> None:
        """End what has nothing to do any more; wait until it is gone."""

    @abstractmethod
    def stop(self) -> None:
        """Stop whatever there is."""

    @abstractmethod
    async def wait_gone(self) -> None:
        """Wait until all is gone."""

    # --- inner workings -------------------------------------------------------------------------

    @property
    def _expects_calls(self) -> bool:
        """Whether there are calls that have not ended, or are yet to be submitted."""
        return bool(self._calls or self._picklings)

    def _close_to_calls(self) -> None:
        """Take no more calls."""
        self.closed = True
        for one in list(self.maps):
            one.pool_closed()

    def _closed_too_early(self) -> ProcessClosedError:
        return ProcessClosedError(
            f"pool {self.options.name!r} was closed before the call had ended"
        )

    def _fail_calls(self) -> None:
        """Nothing of the calls that have not ended will ever run, or come back."""
        error = self._closed_too_early()
        for pickling in self._picklings:
            pickling.finish(None)
        for call in list(self._calls):
            self.jobs.abandon(call)
            if call.observed is not None:
                call.observed._fails("cancelled", error)
                call.observed._finished("cancelled")
            call.fail(error)
        self._calls.clear()
        self.jobs.abandon_all()

    async def _pickle_in_thread(self, call: tuple[Any, ...]) -> Outcome:
        def work() -> Outcome:
            return outcome_of(lambda: dump_call(call, self.options.serializer))

        pickling = _Pickling(waiter_in(self.loop))
        self._picklings.add(pickling)
        self.jobs.run(pickling, work, _Pickling.finish)
        try:
            await pickling.waiter
        finally:
            self.jobs.abandon(pickling)
            self._picklings.discard(pickling)
            if self.scheduler.on_change is not None:
                self.scheduler.on_change()
        if pickling.outcome is None:
            raise self._closed_too_early()
        return pickling.outcome

    async def _wait_for_change(self) -> None:
        waiter = waiter_in(self.loop)
        self.scheduler.on_change = waiter.wake_soon
        try:
            await waiter
        finally:
            self.scheduler.on_change = None


class _Pickling:
    """A call that is being pickled in a thread."""

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter
        self.outcome: Outcome | None = None

    def finish(self, outcome: Outcome | None) -> None:
        """:param outcome: ``None`` where the pool is closed, and nothing will come of the call"""
        self.outcome = outcome
        self.waiter.wake_soon()
