"""In a child: unwinding the function when the parent asks the process to stop."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from ._platform import (
    SignalThread,
    default_stop_request,
    on_missed_stop_request,
    on_stop_request,
    raise_in_main_thread,
    take_back,
)

__all__ = ["StopRequested"]


class StopRequested(BaseException):
    """Raised in a child, at the next bytecode of a plain function, when its process is stopped.

    It derives from :class:`BaseException`, like ``KeyboardInterrupt`` and the cancellation
    exceptions of asyncio and Trio, so that ``except Exception`` does not swallow it. Let it pass;
    use ``try`` / ``finally`` to clean up. A function that catches it and goes on is killed when the
    grace period is over.
    """


class Cancellation(Protocol):
    """How an async function is stopped that runs in the event loop of another thread."""

    @property
    def is_here(self) -> bool:
        """Whether that is the calling thread."""
        ...

    def deferring(self) -> AbstractContextManager[None]: ...


class StopListener:
    """Turns the parent's request into a reaction of what runs just now.

    Between :meth:`listen` and the first ``reacting`` block, and between two blocks, a request is
    remembered and takes effect when the next block begins. There is one reaction at most: a second
    request must not interrupt the clean-up that the first one began.
    """

    def __init__(self) -> None:
        self._requested = False
        self._react: Callable[[], object] | None = None
        # Reentrant: a signal handler interrupts whatever the main thread does.
        self._lock = threading.RLock()
        self._raising = False
        self._swallowed = False
        self._thread: SignalThread | None = None
        self._main_thread = threading.main_thread().ident
        self.cancellation: Cancellation | None = None

    def listen(self, *, forked: bool) -> None:
        on_stop_request(self._request, self._remind)
        if forked:
            self._thread = on_missed_stop_request(self._request_from_thread)
        self._notice_when_swallowed()

    def check(self) -> None:
        """Raise what a request was to raise, in case that it was lost.

        The interpreter swallows exceptions in some places, and so does code in others.

        :raises StopRequested: if the parent has asked this process to stop
        """
        if self._requested:
            _raise_stop_requested()

    @property
    def requested(self) -> bool:
        """Whether the parent has asked this process to stop."""
        return self._requested

    def remembering(self) -> AbstractContextManager[None]:
        """Have a request in the block remembered, for :meth:`check`."""
        return self.reacting(_remember)

    def deferring(self) -> AbstractContextManager[None]:
        """Have a request in the block take effect at the end of it, in the main thread.

        Other threads are not interrupted by requests.
        """
        if threading.get_ident() == self._main_thread:
            return _Deferring(self)
        return _NOT_INTERRUPTED

    def deferring_function(self) -> AbstractContextManager[None]:
        """Do the same for what the function does, in whichever thread that is interrupted."""
        cancellation = self.cancellation
        if cancellation is not None and cancellation.is_here:
            return cancellation.deferring()
        return self.deferring()

    def close(self) -> None:
        """The function is over: from here on a request ends the process at once."""
        default_stop_request()

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Have :exc:`StopRequested` raised in the block, which the main thread runs."""
        with self.reacting(_raise_stop_requested):
            yield

    @contextmanager
    def reacting(self, react: Callable[[], object]) -> Iterator[None]:
        """Have ``react`` called, once, while the block runs, instead of what an outer one has."""
        outer, self._react = self._react, react
        try:
            if self._thread is not None:
                self._thread.enable()
            if self._requested:
                self._request()
            yield
        finally:
            self._react = None if self._requested else outer
            if self._thread is not None and self._react is None:
                self._thread.disable()

    def _request(self) -> None:
        """React; called in the main thread, between two bytecodes."""
        with self._lock:
            if self._raising:  # the thread was faster, and its exception is not raised yet
                self._raising = False
                take_back()
            self._requested = True
            react, self._react = self._react, None
        if react is not None:
            react()

    def _notice_when_swallowed(self) -> None:
        """Hear of it when the interpreter drops the exception, as it does with those of finalizers.

        The function knows nothing of the request then, and goes on.
        """
        outer = sys.unraisablehook

        def hook(unraisable: Any) -> None:
            if isinstance(unraisable.exc_value, StopRequested):
                self._swallowed = True
            else:
                outer(unraisable)

        sys.unraisablehook = hook

    def _remind(self) -> None:
        """Raise the exception once more, where it was dropped; called as :meth:`_request` is."""
        if self._swallowed:
            self._swallowed = False
            _raise_stop_requested()

    def _request_from_thread(self) -> None:
        """React to a signal for which :meth:`_request` may or may not be called as well."""
        with self._lock:
            if self._requested:
                return
            # At once, as the main thread may be about to change it.
            react, self._react = self._react, None
            if react is _raise_stop_requested:
                self._raising, self._react = True, react
                raise_in_main_thread(self._make_exception())
                return
            self._requested = True
        if react is not None:
            react()

    def _let_strike(self) -> None:
        """In the main thread: have raised what the other thread was about to raise in it."""
        with self._lock:
            pass
        _remember()  # the interpreter looks for exceptions when it calls a function

    def _make_exception(self) -> type[StopRequested]:
        def on_raised(exception: StopRequested) -> None:
            self._raising = False
            self._requested = True
            self._react = None

        # The interpreter makes the instance when it raises it: that is how we hear of it.
        return type("StopRequested", (StopRequested,), {"__init__": on_raised})


class _Deferring:
    """What :meth:`StopListener.deferring` gives: a class, because it has to be fast."""

    __slots__ = ("_listener", "_outer")

    def __init__(self, listener: StopListener) -> None:
        self._listener = listener

    def __enter__(self) -> None:
        self._outer = outer = self._listener._react
        self._listener._react = None if outer is None else _remember
        if self._listener._thread is not None:
            self._listener._let_strike()  # here, not in the block

    def __exit__(self, *_: object) -> None:
        outer = self._outer
        if outer is None or self._listener._react is not None:
            self._listener._react = outer
        else:  # a request has come
            outer()


_NOT_INTERRUPTED = nullcontext()


def _remember() -> None:
    pass


def _raise_stop_requested() -> None:
    raise StopRequested("the parent asked this process to stop")
