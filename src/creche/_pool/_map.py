"""The values of a function for a stream of items."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from .._loops import post
from ._map_run import MapRun

__all__ = ["ProcessMap"]

T_co = TypeVar("T_co", covariant=True)

_END: Any = object()


class ProcessMap(Generic[T_co]):
    """The values of a function for a stream of items, as they come; made by
    :meth:`ProcessPool.map`.

    An async iterator, for one task at a time; awaited, it gives a list of all values, which takes
    less time where they are many and tiny. Items are taken from the input as there is room for
    them, so the input may be infinite. Leaving the loop early stops what runs as soon as nobody
    refers to the map any more; to do it at once, and to wait until it is gone, use ``async with``,
    or :meth:`aclose`.
    """

    def __init__(self, run: MapRun) -> None:
        self._run = run
        self._values: Iterator[Any] = iter(())

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
            return value  # type: ignore[no-any-return]
        self._run.engine.check_place()
        self._run.check_free()
        try:
            while True:
                self._values = iter(await self._run.next_values())
                for value in self._values:
                    return value  # type: ignore[no-any-return]
        except BaseException:
            await self.aclose()
            raise

    def __await__(self) -> Generator[Any, Any, list[T_co]]:
        """Return all values, or those that are left, as a list.

        Cancellation and errors as for the next value.
        """
        return self._collect().__await__()

    async def _collect(self) -> list[T_co]:
        self._run.engine.check_place()
        self._run.check_free()
        values: list[T_co] = list(self._values)
        try:
            while True:
                values.extend(await self._run.next_values())
        except StopAsyncIteration:
            return values
        except BaseException:
            await self.aclose()
            raise

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
