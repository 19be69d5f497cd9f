"""On the side of the caller: calling functions on behalf of calls on the far side."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import anyio

from .._errors import SerializationError
from .._loops import EventLoop, loop_context, spawn
from .._wire._payloads import Serializer
from ._answers import PickledFailure, PickledValue, pickle_exception

Reply = Callable[[str, int, PickledValue | PickledFailure], object]


class RequestServer:
    """Calls functions in the event loop of the pool, in the context of the task that opened it.

    :param reply: sends what became of a request: to which worker, which one, what
    """

    def __init__(self, loop: EventLoop, serializer: Serializer, reply: Reply) -> None:
        self._loop = loop
        self._context = loop_context(loop)
        self._serializer = serializer
        self._reply = reply
        self._running: dict[tuple[str, int], Callable[[], None]] = {}
        self._idle = anyio.Event()

    def serve(self, worker: str, number: int, data: bytes, awaits: bool) -> None:
        """Call a function; in the event loop."""
        self._context.run(self._serve, worker, number, data, awaits)

    def withdraw(self, worker: str, number: int) -> None:
        """Nobody waits for what comes of a request any more."""
        cancel = self._running.get((worker, number))
        if cancel is not None:
            cancel()

    async def close(self) -> None:
        """Cancel what runs, and wait for its end."""
        for cancel in list(self._running.values()):
            cancel()
        while self._running:
            self._idle = anyio.Event()
            await self._idle.wait()

    def _serve(self, worker: str, number: int, data: bytes, awaits: bool) -> None:
        try:
            name, func, args = self._serializer.loads(data)
            func = _in_main(name) or func
        except BaseException as error:
            failure = SerializationError(
                "the caller could not unpickle the function that it was to call, or its arguments"
                f" ({type(error).__name__}: {error})"
            )
            self._reply(worker, number, pickle_exception(failure))
            return
        if not awaits:
            try:
                value = func(*args)
            except BaseException as error:
                self._reply(worker, number, pickle_exception(error))
            else:
                self._reply_value(worker, number, value)
            return

        async def run() -> None:
            try:
                value = await func(*args)
            except BaseException as error:
                self._reply(worker, number, pickle_exception(error))
                if isinstance(error, anyio.get_cancelled_exc_class()):
                    raise
            else:
                self._reply_value(worker, number, value)
            finally:
                del self._running[worker, number]
                self._idle.set()

        self._running[worker, number] = spawn(self._loop, run)

    def _reply_value(self, worker: str, number: int, value: object) -> None:
        try:
            data = self._serializer.dumps(value)
        except BaseException as error:
            failure = SerializationError(
                "the result of the function that the caller called, of type"
                f" {type(value).__qualname__}, cannot be pickled ({type(error).__name__}: {error})"
            )
            self._reply(worker, number, pickle_exception(failure))
        else:
            self._reply(worker, number, PickledValue(data))


def _in_main(name: str | None) -> Any:
    found: Any = sys.modules.get("__main__") if name is not None else None
    for part in name.split(".") if name is not None else ():
        found = getattr(found, part, None)
    return found
