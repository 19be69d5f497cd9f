"""On the side of the caller: calling functions on behalf of calls on the far side."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from .._errors import SerializationError, reason_of
from .._loops import EventLoop, loop_context
from .._served_calls import ServedCalls
from .._wire._outcomes import Failure, Outcome
from .._wire._payloads import Serializer
from ._answers import PickledFailure, PickledValue, pickle_exception

Reply = Callable[[str, int, PickledValue | PickledFailure], object]


class RequestServer:
    """Calls functions in the event loop of the pool, in the context of the task that opened it.

    :param reply: sends what became of a request: to which worker, which one, what
    """

    def __init__(self, loop: EventLoop, serializer: Serializer, reply: Reply) -> None:
        self._context = loop_context(loop)
        self._serializer = serializer
        self._reply = reply
        self._calls: ServedCalls[tuple[str, int]] = ServedCalls(loop)

    def serve(self, worker: str, number: int, data: bytes, awaits: bool) -> None:
        """Call a function; in the event loop."""
        self._context.run(self._serve, worker, number, data, awaits)

    def withdraw(self, worker: str, number: int) -> None:
        """Nobody waits for what comes of a request any more."""
        self._calls.cancel((worker, number))

    async def close(self) -> None:
        """Cancel what runs, and wait for its end."""
        await self._calls.wait_over()

    def _serve(self, worker: str, number: int, data: bytes, awaits: bool) -> None:
        try:
            name, func, args = self._serializer.loads(data)
            func = _in_main(name) or func
        except BaseException as error:
            failure = SerializationError(
                "the caller could not unpickle the function that it was to call, or its arguments"
                f" ({reason_of(error)})"
            )
            self._reply(worker, number, pickle_exception(failure))
            return
        self._calls.call((worker, number), func, args, self._settle, awaits=awaits)

    def _settle(self, request: tuple[str, int], outcome: Outcome) -> None:
        self._reply(*request, self._pickle(outcome))

    def _pickle(self, outcome: Outcome) -> PickledValue | PickledFailure:
        if isinstance(outcome, Failure):
            return pickle_exception(outcome.exception)
        try:
            return PickledValue(self._serializer.dumps(outcome.value))
        except BaseException as error:
            failure = SerializationError(
                "the result of the function that the caller called, of type"
                f" {type(outcome.value).__qualname__}, cannot be pickled"
                f" ({reason_of(error)})"
            )
            return pickle_exception(failure)


def _in_main(name: str | None) -> Any:
    found: Any = sys.modules.get("__main__") if name is not None else None
    for part in name.split(".") if name is not None else ():
        found = getattr(found, part, None)
    return found
