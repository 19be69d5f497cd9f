"""What runs in the child of a stream: it sends on what a generator yields."""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any

import anyio
import anyio.lowlevel

from .._child import ChildContext, ChildProgram, call_async
from .._platform import SharedNumbers
from .._stop_request import StopListener, StopRequested
from ._doorbell import Doorbell
from ._outlet import Outlet

# Seconds that a generator may run in an event loop without letting others run.
_SLICE = 0.001


class StreamProgram(ChildProgram):
    """Calls a function, and sends what it yields, or what is in the iterable that it returns.

    :param memory: what the ring is in
    :param doorbell: the child's end
    """

    def __init__(self, memory: SharedNumbers, doorbell: Doorbell) -> None:
        self._memory = memory
        self._doorbell = doorbell

    def __call__(self, context: ChildContext, *args: Any) -> None:
        """:param args: the function, and its arguments"""
        outlet = Outlet(self._memory, self._doorbell)
        source = _Source(args[0], args[1:], outlet)
        with context.stop.raising():
            items = source.call()
            if not source.is_async(items):
                source.items = iter(source.checked(items))
        if source.items is None:
            call_async(source.send_async, (items,), {}, context.backend, context.stop)
        else:
            source.send_all(context.stop)

    def function(self, args: tuple[Any, ...]) -> Callable[..., Any]:
        return args[0]  # type: ignore[no-any-return]


class _Source:
    def __init__(self, func: Callable[..., Any], args: tuple[Any, ...], outlet: Outlet) -> None:
        self.items: Iterator[Any] | None = None
        self._func = func
        self._args = args
        self._outlet = outlet

    def call(self) -> Any:
        return self._func(*self._args)

    def is_async(self, items: Any) -> bool:
        return inspect.isawaitable(items) or hasattr(items, "__aiter__")

    def checked(self, items: Any) -> Iterable[Any]:
        if not hasattr(items, "__iter__") and not hasattr(items, "__getitem__"):
            name = getattr(self._func, "__qualname__", None) or repr(self._func)
            raise TypeError(
                f"{name} must yield items, or return an iterable; it returned"
                f" {type(items).__name__}"
            )
        return items  # type: ignore[no-any-return]

    # --- in a plain generator -------------------------------------------------------------------

    def send_all(self, stop: StopListener) -> None:
        items = self.items
        assert items is not None
        try:
            with stop.raising():
                self._send_all(items, stop)
        finally:
            if isinstance(items, Generator):
                items.close()

    def _send_all(self, items: Iterator[Any], stop: StopListener) -> None:
        outlet = self._outlet
        may_send, encode, send_small = outlet.may_send, outlet.encode, outlet.send_small
        try:
            while True:
                if not may_send():
                    self._wait(outlet.wait_turn(), stop)
                item = next(items)
                stop.check()  # a generator that has caught the exception is not asked for more
                if outlet.forked:
                    outlet.leave_if_forked()
                while True:
                    try:
                        data = encode(item)
                        break
                    except Exception as error:
                        item = _throw(items, outlet.unpicklable(item, error))
                if type(data) is not bytes or not send_small(data):
                    self._wait(outlet.send(data), stop)
                del item, data  # nothing lives until the next one comes
        except StopIteration:
            pass

    def _wait(self, steps: Iterator[None], stop: StopListener) -> None:
        for _ in steps:
            stop.check()
            try:
                self._outlet.doorbell.wait()
            except EOFError:
                raise StopRequested("the parent has closed the stream") from None

    # --- in an event loop -----------------------------------------------------------------------

    async def send_async(self, items: Any) -> None:
        """:param items: an async iterable, or what gives one, or an iterable, when it is awaited"""
        if inspect.isawaitable(items):
            items = await items
        if not hasattr(items, "__aiter__"):
            items = _iterate(self.checked(items))
        iterator = aiter(items)
        rung = _Rung()
        stop_listening = self._outlet.doorbell.listen(rung.set)
        try:
            await self._send_async(iterator, rung)
        finally:
            try:
                if isinstance(iterator, AsyncGenerator):
                    with anyio.CancelScope(shield=True):
                        await iterator.aclose()
            finally:
                stop_listening()

    async def _send_async(self, items: AsyncIterator[Any], rung: _Rung) -> None:
        outlet = self._outlet
        clock = time.monotonic
        slice_end = clock() + _SLICE
        try:
            while True:
                if not outlet.may_send():
                    for _ in outlet.wait_turn():
                        await rung.wait()
                if clock() > slice_end:
                    await anyio.lowlevel.checkpoint()
                    slice_end = clock() + _SLICE
                item = await anext(items)
                outlet.leave_if_forked()
                while True:
                    try:
                        data = outlet.encode(item)
                        break
                    except Exception as error:
                        item = await _throw_async(items, outlet.unpicklable(item, error))
                if type(data) is not bytes or not outlet.send_small(data):
                    for _ in outlet.send(data):
                        await rung.wait()
                del item, data
        except StopAsyncIteration:
            pass


class _Rung:
    """Whether the doorbell was rung since it was waited for last."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = anyio.Event()


async def _iterate(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


def _throw(items: Iterator[Any], error: BaseException) -> Any:
    """Raise an error where a generator has yielded; return what it yields next."""
    if isinstance(items, Generator):
        return items.throw(error)
    raise error


async def _throw_async(items: AsyncIterator[Any], error: BaseException) -> Any:
    if isinstance(items, AsyncGenerator):
        return await items.athrow(error)
    raise error
