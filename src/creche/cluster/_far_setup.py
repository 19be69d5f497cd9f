"""In a process of a pool on a Dask worker: what comes before its first call, and after its last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._parent_requests import relay_requests
from .._wire._payloads import Serializer
from ._far_requests import RelayedRequests
from ._frames import FrameSerializer

_finalizers: list[Callable[[], Any]] = []


def begin(setup: bytes | None, serializer: Serializer, place: str) -> Any:
    """Call the initializer, which only this process unpickles.

    :param place: the name of the pool on the Dask worker
    """
    relay_requests(lambda requests: RelayedRequests(requests, place, serializer))
    if setup is None:
        return None
    initializer, initargs, finalizer = FrameSerializer(serializer).loads(setup)
    if finalizer is not None:
        _finalizers.append(finalizer)
    return initializer(*initargs) if initializer is not None else None


def end() -> Any:
    return _finalizers.pop()() if _finalizers else None
