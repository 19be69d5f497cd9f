"""The values of a function for a stream of items."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from .._loops import post
from ._map_run import MapRun

__all__ = ["ProcessMap"]

T_co = TypeVar("T_co", covariant=True)


class ProcessMap(Generic[T_co]):
    """The values of a function for a stream of items, as they come; made by
    :meth:`ProcessPool.map`.

    An async iterator, for one task at a time. Where values are many and tiny, :meth:`batches` takes
    less time, and so does awaiting the map, which gives a list of all of them. Items are taken from
    the input as there is room for them, so the input may be infinite. Leaving the loop early stops
    what runs as soon as nobody refers to the map any more; to do it at once, and to wait until it
    is gone, use ``async with``, or :meth:`aclose`.
    """

    def __init__(self, run: MapRun) -> None:
        self._run = run
        self._values: Iterator[T_co] = iter(())

    @property
    def total(self) -> int | None:
        """How many items there are in all, where the input tells."""
        return self._run.total

    @property
    def done(self) -> int:
        """How many items have ended, whether their values were asked for or not."""
        return self._run.done

    def __aiter__(self) -> ProcessMap[T_co]:
        return self

    async def __anext__(self) -> T_co:
        """Return the next value.

        Cancellation stops the map, and waits until what ran is gone.

        :raises Exception: what the function raised for the next item, the input, or
            ``on_progress``; or whatever :meth:`ProcessPool.run` raises. The map is over then
        :raises anyio.BusyResourceError: if another task is waiting for the next value
        """
        for value in self._values:
            return value
        batch = iter(await self._next_batch())
        first = next(batch)
        self._values = batch
        return first

    def batches(self) -> AsyncIterator[list[T_co]]:
        """Return an async iterator over lists of values: those that are left, as they come.

        It spares the cost of ``async for`` for each value, some 100 ns. How many values there are
        in a list, at least one, depends on how long they take. In all else it is as iterating over
        the map: the lists keep the order of the map, the input is held up while a list is in use,
        cancellation and errors are as for the next value, and :meth:`aclose` ends it.
        """
        return _Batches(self)

    async def _next_batch(self) -> list[T_co]:
        self._run.engine.check_place()
        self._run.check_free()
        batch = list(self._values)
        try:
            return batch or await self._run.next_values()
        except BaseException:
            await self.aclose()
            raise

    def __await__(self) -> Generator[Any, Any, list[T_co]]:
        """Return all values, or those that are left, as a list.

        Cancellation and errors as for the next value.
        """
        return self._collect().__await__()

    async def _collect(self) -> list[T_co]:
        values: list[T_co] = []
        async for batch in self.batches():
            values += batch
        return values

    async def aclose(self) -> None:
        """End the map: stop what runs, and wait until it is gone.

        Cancellation does not cut that short; it ends within the time that the pool's stop policy
        allows.
        """
        self._values = iter(())
        await self._run.close()

    async def __aenter__(self) -> ProcessMap[T_co]:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # The loop was left early. Whoever collects this may be any thread.
        run = getattr(self, "_run", None)
        if run is not None and not run.over:
            post(run.engine.loop, run.abandon)


class _Batches(Generic[T_co]):
    """The values of a map, many at a time."""

    def __init__(self, values: ProcessMap[T_co]) -> None:
        self._map = values

    def __aiter__(self) -> _Batches[T_co]:
        return self

    async def __anext__(self) -> list[T_co]:
        return await self._map._next_batch()
