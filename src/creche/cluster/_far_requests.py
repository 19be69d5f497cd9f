"""In a process on the far side: what it asks its parent, the caller is asked.

The parent of the process is the Dask worker, which passes the request on to the caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from .._parent_requests import Requests
from .._wire._outcomes import cannot_pickle_request
from .._wire._payloads import Serializer
from ._answers import PickledFailure, PickledValue, load_outcome

Relay = Callable[[bytes, bool], Awaitable[PickledValue | PickledFailure]]

relays: dict[str, Relay] = {}
"""On the Dask worker: who passes on the requests of a pool, by the name that it has there."""


async def relay(place: str, request: bytes, awaits: bool) -> PickledValue | PickledFailure:
    """On the Dask worker: have the caller call a function."""
    return await relays[place](request, awaits)


class RelayedRequests:
    """The requests of one process.

    :param requests: those to the Dask worker
    :param place: the name of the pool there
    """

    def __init__(self, requests: Requests, place: str, serializer: Serializer) -> None:
        self._requests = requests
        self._place = place
        self._serializer = serializer

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], *, awaits: bool) -> Any:
        request = self._place, self._pickle(func, args), awaits
        return self._value_of(self._requests.call(relay, request, awaits=True))

    async def acall(self, func: Callable[..., Any], args: tuple[Any, ...], *, awaits: bool) -> Any:
        request = self._place, self._pickle(func, args), awaits
        return self._value_of(await self._requests.acall(relay, request, awaits=True))

    def _pickle(self, func: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
        # A function of the caller's main module is here as a copy: there, it is meant itself.
        name = func.__qualname__ if getattr(func, "__module__", "") == "__main__" else None
        try:
            return self._serializer.dumps((name, func, args))
        except Exception as error:
            raise cannot_pickle_request(func, args, error) from error

    def _value_of(self, reply: PickledValue | PickledFailure) -> Any:
        return load_outcome(reply, self._serializer).take()
