"""How many items of a map travel together."""

from __future__ import annotations

# A message costs both sides some 100 microseconds in all: a few percent of that.
CHUNK_SECONDS = 0.004

# A worker that has worked on a chunk for so many times that gives the rest of it back.
_BUDGET_CHUNKS = 4

_MAX_ITEMS = 10_000
_MAX_BYTES = 256 * 1024
_MAX_GROWTH = 8

# After the death of a worker, so many items travel alone: the next death, if there is one, loses no
# value but that of the item that it is due to.
_ALONE_AFTER_DEATH = 256


class ChunkSize:
    """Learns from what was measured how many items make a chunk.

    :param fixed: always this many, instead
    :param seconds: how long a worker should take for a chunk
    """

    def __init__(self, fixed: int | None, seconds: float = CHUNK_SECONDS) -> None:
        self._fixed = fixed
        self._chunk_seconds = seconds
        self._largest = 0  # that was answered
        self._alone = 0
        self._seconds: float | None = None  # an item takes
        self._bytes = 0.0  # an item takes

    @property
    def budget(self) -> float:
        """Seconds after which a worker gives back what it has not begun of a chunk."""
        return _BUDGET_CHUNKS * self._chunk_seconds if self._fixed is None else float("inf")

    def next(self) -> int:
        """Return how many items the next chunk has."""
        if self._fixed is not None:
            return self._fixed
        if self._seconds is None or self._alone:
            return 1
        size = self._chunk_seconds / max(self._seconds, 1e-9)
        size = min(size, _MAX_ITEMS, _MAX_GROWTH * self._largest)
        if self._bytes:
            size = min(size, _MAX_BYTES / self._bytes)
        return max(1, int(size))

    def seconds(self, items: int) -> float:
        """Return how long a worker will take for a chunk, as far as anybody knows."""
        return items * (1.0 if self._seconds is None else self._seconds)

    def sent(self, items: int, size: int) -> None:
        """A chunk was pickled: so many items into so many bytes."""
        self._bytes = max(size / items, 0.7 * self._bytes)

    def answered(self, items: int, seconds: float) -> None:
        """A worker took so many seconds for so many items."""
        self._largest = max(self._largest, items)
        self._alone = max(0, self._alone - items)
        each = seconds / items
        if self._seconds is None or each > self._seconds:
            self._seconds = each  # quick to see that items have become slow, slow to forget it
        else:
            self._seconds = 0.7 * self._seconds + 0.3 * each

    def worker_died(self) -> None:
        """A worker has died of an item."""
        self._alone = _ALONE_AFTER_DEATH
