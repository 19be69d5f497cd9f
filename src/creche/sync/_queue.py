"""A queue of objects."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Generic, TypeVar

import anyio

from .._hub._items import (
    is_light,
    pickle_item,
    pickle_item_sync,
    unpickle_item_apart,
    unpickle_item_sync,
)
from .._hub._protocol import Op
from .._hub._queue_state import QueueState
from .._hub._shared import Shared
from .._hub._waits import AsyncWait, ThreadWait, Wait
from .._wire._framing import Section
from .._wire._outcomes import Outcome, Value
from ._statistics import QueueStatistics

T = TypeVar("T")


class Queue(Shared, Generic[T]):
    """A queue that any process puts items into, and any process gets them from, each one once.

    Items wait in the process that made the queue; they travel as pickles. An item that a process
    has been given and dies before :meth:`get` returns goes back to the front, for another one; so
    does that of a ``get`` that is cancelled. Iterating, with ``async for`` or ``for``, gets items
    until the queue is closed and empty.

    :param maxsize: how many items wait in it before :meth:`put` has to; 0 for no limit
    """

    def __init__(self, maxsize: int = 0) -> None:
        if isinstance(maxsize, bool) or not isinstance(maxsize, int):
            raise TypeError(f"maxsize must be an integer, not {maxsize!r}")
        if maxsize < 0:
            raise ValueError(f"maxsize must be zero or more, not {maxsize}")
        super().__init__(QueueState(maxsize))

    async def put(self, item: T) -> None:
        """Put an item into the queue; wait for room.

        Cancellation takes the item out again, unless somebody has got it already.

        :param item: anything that can be pickled. What is large is pickled in a thread
        :raises SerializationError: if it cannot be pickled
        :raises anyio.ClosedResourceError: if the queue is closed, or gets closed meanwhile
        :raises anyio.BrokenResourceError: if the process that made it has ended, or does not keep
            it any more
        :raises ProcessStateError: if this process is a fork that has inherited it, of one that has
            not made use of creche
        """
        await self._ask(Op.PUT, AsyncWait(body=await pickle_item(item)))

    async def put_nowait(self, item: T) -> None:
        """Put an item into the queue if there is room.

        It is ``async``, because another process has to be asked.

        :raises anyio.WouldBlock: if there is none
        :raises Exception: as :meth:`put`
        """
        await self._ask(Op.TRY_PUT, AsyncWait(body=await pickle_item(item)))

    def put_sync(self, item: T, timeout: float | None = None) -> None:
        """:meth:`put` in a plain function: blocks the thread.

        :param timeout: at most so many seconds; ``None`` for no limit
        :raises TimeoutError: if they have passed
        :raises Exception: as :meth:`put`
        """
        self._ask_sync(Op.PUT, ThreadWait(body=pickle_item_sync(item)), timeout)

    def put_nowait_sync(self, item: T) -> None:
        """:meth:`put_nowait` in a plain function: blocks the thread until there is an answer.

        :raises anyio.WouldBlock: if there is no room
        :raises Exception: as :meth:`put`
        """
        self._ask_sync(Op.TRY_PUT, ThreadWait(body=pickle_item_sync(item)), None)

    async def get(self) -> T:
        """Get the next item; wait for it. Whoever waits first gets it first.

        Cancellation loses no item. (A large item that is being unpickled just then is returned
        nevertheless. Where asyncio's own cancellation comes, as by ``asyncio.wait_for``, it goes
        back to the front, and whoever gets it unpickles it again.)

        :raises anyio.EndOfStream: if the queue is closed, and no item is left
        :raises SerializationError: if the item cannot be unpickled here; the queue goes on
        :raises anyio.BrokenResourceError: as :meth:`put`
        :raises ProcessStateError: as :meth:`put`
        """
        return await self._get(Op.GET)

    async def get_nowait(self) -> T:
        """Get the next item if there is one.

        It is ``async``, because another process has to be asked.

        :raises anyio.WouldBlock: if there is none
        :raises Exception: as :meth:`get`
        """
        return await self._get(Op.TRY_GET)

    def get_sync(self, timeout: float | None = None) -> T:
        """:meth:`get` in a plain function: blocks the thread.

        :param timeout: at most so many seconds; ``None`` for no limit
        :raises TimeoutError: if they have passed
        :raises Exception: as :meth:`get`
        """
        return self._get_sync(Op.GET, timeout)

    def get_nowait_sync(self) -> T:
        """:meth:`get_nowait` in a plain function: blocks the thread until there is an answer.

        :raises anyio.WouldBlock: if there is no item
        :raises Exception: as :meth:`get`
        """
        return self._get_sync(Op.TRY_GET, None)

    async def _get(self, op: Op) -> T:
        wait = AsyncWait()
        body = await self._ask(op, wait)
        item: T
        if is_light(body):
            item = self._unpickle(wait, body)
        else:
            item = await self._unpickle_apart(wait, body)
        return item

    def _get_sync(self, op: Op, timeout: float | None) -> T:
        wait = ThreadWait()
        body = self._ask_sync(op, wait, timeout)
        item: T = self._unpickle(wait, body)
        return item

    def _unpickle(self, wait: Wait, body: Section) -> Any:
        # Before it is unpickled: one that kills whoever does so must not go on to kill the next.
        with contextlib.suppress(anyio.BrokenResourceError):  # the item is here all the same
            self._tell(Op.GOT, wait.number)
        return unpickle_item_sync(body)

    async def _unpickle_apart(self, wait: Wait, body: Section) -> Any:
        source = self._place()
        with contextlib.suppress(anyio.BrokenResourceError):
            source.tell(Op.UNPICKLING, wait.number, 0, [])
        outcome: Outcome = Value(None)
        try:
            with anyio.CancelScope(shield=True):
                outcome = await unpickle_item_apart(body)
        except BaseException as error:
            # In spite of the shield, by asyncio's own means, as a rule: somebody else gets it.
            source.give_up(wait, error)
            raise
        with contextlib.suppress(anyio.BrokenResourceError):  # the item is here all the same
            source.tell(Op.GOT, wait.number, 0, [])
        return outcome.take()

    def close(self) -> None:
        """Have it take no more items: those that are in it are got, then it is at its end.

        Never waits. May be called again.

        :raises anyio.BrokenResourceError: as :meth:`put`
        """
        self._tell(Op.CLOSE)

    async def qsize(self) -> int:
        """Ask how many items are in it.

        :raises anyio.BrokenResourceError: as :meth:`put`
        """
        return (await self.statistics()).qsize

    def qsize_sync(self, timeout: float | None = None) -> int:
        """:meth:`qsize` in a plain function: blocks the thread.

        :raises TimeoutError: if there was no answer in so many seconds
        """
        return self.statistics_sync(timeout).qsize

    async def statistics(self) -> QueueStatistics:
        """Ask how it is at the moment.

        :raises anyio.BrokenResourceError: as :meth:`put`
        """
        return QueueStatistics(**await self._statistics())

    def statistics_sync(self, timeout: float | None = None) -> QueueStatistics:
        """:meth:`statistics` in a plain function: blocks the thread.

        :raises TimeoutError: if there was no answer in so many seconds
        """
        return QueueStatistics(**self._statistics_sync(timeout))

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.get()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            return self.get_sync()
        except anyio.EndOfStream:
            raise StopIteration from None
