"""In a child: unwinding the function when the parent asks the process to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ._platform import default_stop_request, on_stop_request

__all__ = ["StopRequested"]


class StopRequested(BaseException):
    """Raised in a child, at the next bytecode of a plain function, when its process is stopped.

    It derives from :class:`BaseException`, like ``KeyboardInterrupt`` and the cancellation
    exceptions of asyncio and Trio, so that ``except Exception`` does not swallow it. Let it pass;
    use ``try`` / ``finally`` to clean up. A function that catches it and goes on is killed when the
    grace period is over.
    """


class StopListener:
    """Turns the parent's request into a reaction of what runs just now.

    Between :meth:`listen` and the first :meth:`reacting` block, and between two blocks, a request
    is remembered and takes effect when the next block begins.
    """

    def __init__(self) -> None:
        self._requested = False
        self._react: Callable[[], None] | None = None

    def listen(self) -> None:
        on_stop_request(self.request)

    def close(self) -> None:
        """The function is over: from here on a request ends the process at once."""
        default_stop_request()

    def request(self) -> None:
        self._requested = True
        # Once only: a second request must not interrupt the clean-up that the first one began.
        react, self._react = self._react, None
        if react is not None:
            react()

    @contextmanager
    def reacting(self, react: Callable[[], None]) -> Iterator[None]:
        """Have ``react`` called, once, in the main thread between two bytecodes."""
        self._react = react
        try:
            if self._requested:
                self.request()
            yield
        finally:
            self._react = None


def raise_stop_requested() -> None:
    raise StopRequested("the parent asked this process to stop")
