"""Large arguments, on the workers once for any number of calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Iterator
from typing import Any

from ._frames import parts_of

# Of the parts that no call needs just now, the newest are kept, up to so many bytes.
_KEPT_BYTES = 1 << 30


class ScatteredData:
    """The parts of calls, by their digests.

    They are kept here until they have been sent to a worker, and there as long as they are known
    here: the least recently used go first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pickled: dict[bytes, bytes] = {}  # not yet sent
        self._futures: dict[bytes, asyncio.Future[Any]] = {}  # in order of use
        self._sizes: dict[bytes, int] = {}

    def keep(self, digest: bytes, pickled: bytes) -> None:
        """A call has such a part. From any thread."""
        with self._lock:
            if digest not in self._futures:
                self._pickled[digest] = pickled

    def of(self, client: Any, frame: bytes) -> Iterator[Awaitable[Any]]:
        """Return what gives the Dask futures of the parts of a call."""
        for digest, size in parts_of(frame):
            yield self._get(client, digest, size)

    async def _get(self, client: Any, digest: bytes, size: int) -> Any:
        with self._lock:
            future = self._futures.pop(digest, None)
            pickled = self._pickled.pop(digest, None)
            if future is None:
                assert pickled is not None
                future = asyncio.ensure_future(_scatter(client, digest, pickled))
            self._futures[digest] = future
            self._sizes[digest] = size
            self._drop_oldest()
        return await asyncio.shield(future)

    def _drop_oldest(self) -> None:
        total = sum(self._sizes.values())
        for digest in list(self._futures)[:-1]:
            if total <= _KEPT_BYTES:
                break
            # Dask keeps it as long as a call needs it.
            del self._futures[digest]
            total -= self._sizes.pop(digest)

    def clear(self) -> None:
        with self._lock:
            self._pickled.clear()
            self._futures.clear()
            self._sizes.clear()


async def _scatter(client: Any, digest: bytes, pickled: bytes) -> Any:
    key = f"creche-data-{digest.hex()}"
    return (await client.scatter({key: pickled}))[key]
