"""What a map is fed from."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Sequence,
    Sized,
)
from itertools import islice
from typing import Any

import anyio

from .._ctrl_c import interruptible
from .._loops import EventLoop, Waiter, spawn, waiter_in

# An input may be a generator that works for its items: it must not hold up the event loop.
_LOOK_AFTER = 64  # items, and then ever less often
_SECONDS = 0.001

# A slice of a range costs nothing, whatever its length; but a chunk that cannot be pickled is taken
# apart, item by item, and that must not hold up the event loop either.
_MAX_SLICE = 100_000

_END: Any = object()


class MapInput:
    """Iterables and async iterables, of which the items are taken in step, like :func:`zip` does.

    An async iterable is read by a task of its own, for as long as there is room for its items.

    :param room: tells how many more items may be read
    :param on_change: called in the event loop when items were read, or the input has ended
    """

    def __init__(
        self,
        loop: EventLoop,
        iterables: tuple[Iterable[Any] | AsyncIterable[Any], ...],
        room: Callable[[], int],
        on_change: Callable[[], None],
    ) -> None:
        self.total = _total(iterables)
        self.error: BaseException | None = None
        self._ended = False
        self._loop = loop
        self._room = room
        self._on_change = on_change
        self._buffer: deque[Any] = deque()
        self._waiting_for_room: Waiter | None = None
        self._finished = anyio.Event()
        self._cancel_reading: Callable[[], None] | None = None
        self._source: Iterator[Any] | range = iter(())
        if any(isinstance(iterable, AsyncIterable) for iterable in iterables):
            self._cancel_reading = spawn(
                loop, lambda: self._read(iterables), on_end=self._finished.set
            )
        else:
            self._source = _zip_plain(iterables)  # type: ignore[arg-type]

    @property
    def buffered(self) -> int:
        """How many items were read that nobody has taken."""
        return len(self._buffer)

    @property
    def exhausted(self) -> bool:
        """Whether there are no more items, and never will be."""
        return self._ended and not self._buffer

    def take(self, size: int) -> Sequence[Any]:
        """Take the next items: at most ``size``, and fewer where they do not come quickly.

        But one at least, if ``size`` is as much, and an iterator has one: that the input is slow is
        no reason for a map to stop, nor is that this process had to wait for a CPU.
        """
        if self._cancel_reading is not None:
            return [self._buffer.popleft() for _ in range(min(size, len(self._buffer)))]
        if type(self._source) is range:
            return self._take_slice(self._source, size)
        items: list[Any] = []
        begin = time.perf_counter()
        try:
            while len(items) < size:
                wanted = min(2 * len(items) + _LOOK_AFTER, size)
                # Item by item into the list: if the input raises, those before are there.
                _take_from(self._source, wanted - len(items), items)
                if len(items) < wanted:
                    self._end(None)
                    break
                if time.perf_counter() - begin > _SECONDS:
                    break
        except BaseException as error:
            self._end(error)
        return items

    def _take_slice(self, source: range, size: int) -> range:
        size = min(size, _MAX_SLICE)
        self._source = source[size:]
        if not self._source:
            self._end(None)
        return source[:size]

    def tell_room(self) -> None:
        """There may be more room than there was."""
        if self._waiting_for_room is not None and self._room() > 0:
            waiter, self._waiting_for_room = self._waiting_for_room, None
            waiter.wake_soon()

    def stop(self) -> None:
        """Take no more items."""
        self._end(None)
        self._buffer.clear()
        if self._cancel_reading is not None:
            self._cancel_reading()

    async def wait_stopped(self) -> None:
        """After :meth:`stop`: wait until nothing of an async input runs."""
        if self._cancel_reading is not None:
            await self._finished.wait()

    def _end(self, error: BaseException | None) -> None:
        self._source = iter(())
        self._ended = True
        self.error = self.error or error

    async def _read(self, iterables: tuple[Iterable[Any] | AsyncIterable[Any], ...]) -> None:
        error: BaseException | None = None
        try:
            # Closed in this task, which has run it: there may be cancel scopes in it.
            async with contextlib.aclosing(_zip_async(iterables)) as items:
                async for item in items:
                    self._buffer.append(item)
                    self._on_change()
                    while self._room() <= 0:
                        self._waiting_for_room = waiter_in(self._loop)
                        await self._waiting_for_room
        except anyio.get_cancelled_exc_class() as raised:
            if not self._ended:  # it was not stopped, so these are not all of its items
                error = RuntimeError("the input of a map was cancelled")
                error.__cause__ = raised
            raise
        except BaseException as raised:
            error = raised
        finally:
            self._end(error)
            self._on_change()


@interruptible
def _take_from(source: Iterator[Any], size: int, items: list[Any]) -> None:
    items.extend(islice(source, size))


def _total(iterables: tuple[Any, ...]) -> int | None:
    if all(isinstance(iterable, Sized) for iterable in iterables):
        with contextlib.suppress(OverflowError):  # ranges can be longer than any list
            return min(len(iterable) for iterable in iterables)
    return None


def _zip_plain(iterables: tuple[Iterable[Any], ...]) -> Iterator[Any] | range:
    if len(iterables) != 1:
        return zip(*iterables, strict=False)
    (iterable,) = iterables
    return iterable if type(iterable) is range else iter(iterable)


async def _zip_async(
    iterables: tuple[Iterable[Any] | AsyncIterable[Any], ...],
) -> AsyncGenerator[Any, None]:
    iterators = [
        aiter(iterable) if isinstance(iterable, AsyncIterable) else iter(iterable)
        for iterable in iterables
    ]
    async with contextlib.AsyncExitStack() as stack:
        for iterator in iterators:
            if isinstance(iterator, AsyncGenerator):
                stack.push_async_callback(iterator.aclose)
        while True:
            items: list[Any] = []
            for iterator in iterators:
                if isinstance(iterator, AsyncIterator):
                    item = await anext(iterator, _END)
                else:
                    item = next(iterator, _END)
                if item is _END:
                    return
                items.append(item)
            yield tuple(items) if len(iterables) > 1 else items[0]
