"""A ring in shared memory, through which one process writes items, and one other reads them.

Nobody locks anything, so it does not matter when either of them is stopped or killed. The first
page has numbers, each of which one of the two writes, and the other reads:

============= ========== =========================================================================
WRITTEN       writer     how many bytes it has written in all
READ          reader     how many bytes it has read in all
ALLOWED       reader     how many items the writer may have written in all
READER_WAITS  reader     how often it was about to wait for an item
ROOM_AWAITED  writer     how often it was about to wait for room
TURN_AWAITED  writer     how often it was about to wait until it is allowed to write an item
============= ========== =========================================================================

Who is about to wait counts that, and looks once more before it does. The other, when it has done
what may be waited for, looks at that number, and rings if it has changed.

After that page come records: a number that tells their length and what they are, and so many bytes.
A record lies in one piece. What does not fit in before the end of the ring begins at its start.
An item is one record; or, where it is large, several.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Generator
from typing import Any

from .._platform import STORES_IN_ORDER, make_fence

NUMBERS_BYTES = mmap.PAGESIZE
WRITTEN, READ, ALLOWED, READER_WAITS, ROOM_AWAITED, TURN_AWAITED = range(0, 48, 8)
# Each in a cache line of its own: two CPUs write to them all the time.

PLAIN = 0
"""A pickle."""
TABLE = 1 << 40
"""A table of lengths, a pickle, and the buffers that it refers to."""
HEAVY = 1 << 41
"""The item takes long to unpickle."""
MORE = 1 << 42
"""The item goes on in the next record."""
_GAP = 1 << 43
"""Nothing: the next record is at the start of the ring."""
_LENGTH = TABLE - 1

_HEADER_BYTES = 8
_SMALL = 4096


class BadRingError(Exception):
    """The writer has written something that is no record."""


def largest_record(ring_bytes: int) -> int:
    """How many bytes a record may have, so that the writer can write one while another is read.

    :param ring_bytes: how large the ring is, without the numbers
    """
    return ring_bytes // 2 - 2 * _HEADER_BYTES


class RingWriter:
    """The end that writes. One thread uses it.

    :param memory: the numbers and the ring, of which the size is a power of two
    :param ring_bell: called to wake the reader
    """

    def __init__(self, memory: memoryview, ring_bell: Callable[[], object]) -> None:
        self._cells = memory[:NUMBERS_BYTES].cast("Q")
        self._bytes = memory[NUMBERS_BYTES:]
        self._words = self._bytes.cast("Q")
        self._size = len(self._bytes)
        self._mask = self._size - 1
        self._ring_bell = ring_bell
        self._fence = make_fence()
        self._written: int = self._cells[WRITTEN]
        self._end = self._cells[READ] + self._size  # how far it may write
        self._items = 0
        self._allowed: int = 0
        self._answered: int = 0

    def may_write(self) -> bool:
        """Whether it is allowed to write another item."""
        if self._items < self._allowed:
            return True
        self._allowed = self._cells[ALLOWED]
        return self._items < self._allowed

    def write(self, data: Any, kind: int = PLAIN) -> bool:
        """Write a record; return whether there was room for it.

        :param data: at most :func:`largest_record` bytes
        """
        size = len(data)
        needed = (size + 15) & ~7
        position = self._written & self._mask
        if self._written + needed > self._end or position + needed > self._size:
            if not self._make_room(needed):
                return False
            position = self._written & self._mask
        begin = position + _HEADER_BYTES
        self._words[position >> 3] = size | kind
        self._bytes[begin : begin + size] = data
        if not kind & MORE:
            self._items += 1
        # As _publish() does: a call would take as long as all of this.
        self._written += needed
        if not STORES_IN_ORDER:
            self._fence()
        cells = self._cells
        cells[WRITTEN] = self._written
        self._fence()
        if cells[READER_WAITS] != self._answered:
            self._answer()
        return True

    def write_pieces(self, pieces: list[memoryview], kind: int) -> bool:
        """Write a record that consists of pieces; return whether there was room for it."""
        size = sum(map(len, pieces))
        needed = (size + 15) & ~7
        if not self._make_room(needed):
            return False
        position = self._written & self._mask
        self._words[position >> 3] = size | kind
        begin = position + _HEADER_BYTES
        for piece in pieces:
            self._bytes[begin : begin + len(piece)] = piece
            begin += len(piece)
        if not kind & MORE:
            self._items += 1
        self._publish(self._written + needed)
        return True

    def await_turn(self) -> None:
        """Have the bell rung when another item may be written; look once more before waiting."""
        self._cells[TURN_AWAITED] += 1
        self._fence()

    def await_room(self) -> None:
        """Have the bell rung when more was read; look once more before waiting."""
        self._cells[ROOM_AWAITED] += 1
        self._fence()

    def close(self) -> None:
        for view in (self._words, self._cells, self._bytes):
            view.release()

    def _make_room(self, needed: int) -> bool:
        """See to it that there is room in one piece; return whether there is."""
        position = self._written & self._mask
        gap = self._size - position if position + needed > self._size else 0
        if self._written + gap + needed > self._end:
            self._end = self._cells[READ] + self._size
            if not STORES_IN_ORDER:
                self._fence()
            if self._written + gap + needed > self._end:
                return False
        if gap:
            self._words[position >> 3] = _GAP | (gap - _HEADER_BYTES)
            self._publish(self._written + gap)
        return True

    def _publish(self, written: int) -> None:
        if not STORES_IN_ORDER:
            self._fence()
        self._written = written
        self._cells[WRITTEN] = written
        self._fence()
        if self._cells[READER_WAITS] != self._answered:
            self._answer()

    def _answer(self) -> None:
        self._answered = self._cells[READER_WAITS]
        self._ring_bell()


class RingReader:
    """The end that reads. It relies on nothing that it reads. One thread uses it.

    :param memory: the numbers and the ring, of which the size is a power of two
    :param ahead: how many items the writer may write ahead of those that were taken
    :param ring_bell: called to wake the writer
    """

    def __init__(self, memory: memoryview, ahead: int, ring_bell: Callable[[], object]) -> None:
        self._cells = memory[:NUMBERS_BYTES].cast("Q")
        self._bytes = memory[NUMBERS_BYTES:]
        self._words = self._bytes.cast("Q")
        self._size = len(self._bytes)
        self._mask = self._size - 1
        self._ring_bell = ring_bell
        self._fence = make_fence()
        self._read = 0
        self._room_answered: int = 0
        self._turn_answered: int = 0
        self.allowed = ahead
        """How many items the writer may write in all."""
        self._cells[ALLOWED] = ahead

    @property
    def empty(self) -> bool:
        """Whether there is nothing to read just now."""
        return self._cells[WRITTEN] == self._read

    def records(self, most_bytes: int) -> Generator[tuple[int, memoryview], None, None]:
        """Read what is there: the kind and the bytes of each record.

        The bytes are good until the next one is asked for. Ends when so many bytes were read, and
        the writer has room again when it ends, or is closed.

        :raises BadRingError: if it is no record
        """
        written = self._how_far()
        read = self._read
        stop = min(written, read + most_bytes)
        try:
            while read < stop:
                position = read & self._mask
                header = self._words[position >> 3]
                size = header & _LENGTH
                needed = (size + 15) & ~7
                if read + needed > written or position + needed > self._size:
                    raise BadRingError(f"a record of {size} bytes")
                read += needed
                if not header & _GAP:
                    begin = position + _HEADER_BYTES
                    yield header - size, self._bytes[begin : begin + size]
        finally:
            self._has_read(read)

    def read_plain(
        self, load: Callable[[Any], Any], items: list[Any], most: int, most_bytes: int
    ) -> None:
        """Read what :meth:`records` would give, as far as it is plain and small; load it.

        :param load: makes an item of a record
        :param items: what is made is appended to it
        :param most: how many items
        :param most_bytes: after how many bytes no further item is read
        :raises BadRingError: if it is no record
        :raises BaseException: what ``load`` raises; that record is read then
        """
        written = self._how_far()
        words, memory, mask, size = self._words, self._bytes, self._mask, self._size
        read = self._read
        stop = min(written, read + most_bytes)
        try:
            for _ in range(most):
                if read >= stop:
                    break
                position = read & mask
                length = words[position >> 3]
                if length > _SMALL:
                    break
                needed = (length + 15) & ~7
                if read + needed > written or position + needed > size:
                    raise BadRingError(f"a record of {length} bytes")
                read += needed
                begin = position + _HEADER_BYTES
                items.append(load(memory[begin : begin + length]))
        finally:
            self._has_read(read)

    def take(self) -> None:
        """An item was taken: the writer may write another."""
        self.allowed += 1
        self._cells[ALLOWED] = self.allowed

    def writer_awaits_turn(self) -> bool:
        """Whether the writer waits for its turn, and was not rung for that."""
        self._fence()
        return self._cells[TURN_AWAITED] != self._turn_answered

    def give_turn(self) -> None:
        """Wake the writer, which waits for its turn."""
        self._turn_answered = self._cells[TURN_AWAITED]
        self._ring_bell()

    def about_to_wait(self) -> None:
        """Have the bell rung when there is something to read; look once more before waiting."""
        self._cells[READER_WAITS] += 1
        self._fence()

    def close(self) -> None:
        for view in (self._words, self._cells, self._bytes):
            view.release()

    def _how_far(self) -> int:
        written: int = self._cells[WRITTEN]
        if not STORES_IN_ORDER:
            self._fence()
        if not 0 <= written - self._read <= self._size:
            raise BadRingError(f"{written} bytes written and {self._read} bytes read")
        return written

    def _has_read(self, read: int) -> None:
        if read != self._read:
            self._read = read
            if not STORES_IN_ORDER:
                self._fence()
            self._cells[READ] = read
            self._fence()
            awaited = self._cells[ROOM_AWAITED]
            if awaited != self._room_answered:
                self._room_answered = awaited
                self._ring_bell()
