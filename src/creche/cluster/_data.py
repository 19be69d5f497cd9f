"""Large arguments, on the workers once for any number of calls."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from ._errors import ClusterError
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
            future = self._futures.get(digest)
            if future is None or not _is_usable(future):
                self._pickled[digest] = pickled
            else:
                self._futures[digest] = self._futures.pop(digest)

    async def of(self, client: Any, frame: bytes) -> list[Any]:
        """Return the Dask futures of the parts of a call.

        :raises ClusterError: if there is one that is neither there any more nor here
        """
        parts = parts_of(frame)
        if not parts:
            return []
        with self._lock:
            futures = [self._get(client, *part) for part in parts]
            self._drop_oldest()
        return await asyncio.gather(*map(asyncio.shield, futures))

    def _get(self, client: Any, digest: bytes, size: int) -> asyncio.Future[Any]:
        future = self._futures.pop(digest, None)
        pickled = self._pickled.pop(digest, None)
        if future is None or not _is_usable(future):
            if pickled is None:
                self._sizes.pop(digest, None)
                raise ClusterError(
                    "a large argument of a call was lost while the call was on its way: the Dask"
                    " worker that had it is gone, or it had to make room for others. The next call"
                    " with it sends it again"
                )
            future = asyncio.ensure_future(_scatter(client, digest, pickled, future))
        self._futures[digest] = future
        self._sizes[digest] = size
        return future

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


def _is_usable(future: asyncio.Future[Any]) -> bool:
    """Whether a part is on a worker, or on its way there."""
    if not future.done():
        return True
    if future.cancelled() or future.exception() is not None:
        return False
    # Dask says so when it is lost, with its worker or as the connection broke.
    return future.result().status in ("pending", "finished")


async def _scatter(
    client: Any, digest: bytes, pickled: bytes, lost: asyncio.Future[Any] | None
) -> Any:
    """Send a part to a worker.

    :param lost: what there was of it. When the last Dask future of a key is dropped, Dask tells the
        scheduler to release it, which could come after what is sent here; so it is kept until then
    """
    key = f"creche-data-{digest.hex()}"
    return (await client.scatter({key: pickled}))[key]
