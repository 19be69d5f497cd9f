"""The child's end of a stream."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from .._errors import SerializationError, reason_of
from .._platform import SharedNumbers
from .._wire._payloads import Payload
from ._doorbell import Doorbell
from ._parcels import WHOLE_BYTES, ItemPickler, cut, lay_out
from ._ring import HEAVY, MORE, PLAIN, TABLE, RingWriter


class Outlet:
    """Writes items into the ring.

    Where that takes waiting for the parent, it gives an iterator, and whoever runs it waits for the
    doorbell whenever that yields: a thread in one way, a task in another.
    """

    def __init__(self, memory: SharedNumbers, doorbell: Doorbell) -> None:
        self.doorbell = doorbell
        self.forked = False
        """Whether this process is a fork that the generator has made, and came back from."""
        self.encode = ItemPickler().encode
        """Pickles an item. What it raises is told by :meth:`unpicklable`."""
        self._writer = RingWriter(memory.bytes, doorbell.ring)
        self.may_send = self._writer.may_write
        """Whether there is room for another item."""
        self.send_small = self._writer.write
        """Sends a pickle, if there is room in the ring; returns whether there was."""
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._on_fork)

    def leave_if_forked(self) -> None:
        """The ring has one writer: a fork that the generator has made ends here."""
        if self.forked:
            os._exit(0)

    def wait_turn(self) -> Iterator[None]:
        """Wait until there is room for another item."""
        while not self.may_send():
            self._writer.await_turn()
            if not self.may_send():
                yield

    @staticmethod
    def unpicklable(item: Any, error: Exception) -> SerializationError:
        """What the generator is told of an item that cannot be pickled."""
        kind = type(item)
        failure = SerializationError(
            f"an item of type {kind.__module__}.{kind.__qualname__} cannot be pickled"
            f" ({reason_of(error)}). Yield plain data instead."
        )
        failure.__cause__ = error
        return failure

    def send(self, data: bytes | Payload) -> Iterator[None]:
        """Send a pickled item of any size."""
        if isinstance(data, bytes):
            yield from self._write([memoryview(data)], PLAIN)
            return
        pieces, size = lay_out(data)
        kind = TABLE | HEAVY if data.heavy else TABLE
        records = [pieces] if size <= WHOLE_BYTES else cut(pieces)
        for record in records[:-1]:
            yield from self._write(record, kind | MORE)
        yield from self._write(records[-1], kind)

    def _write(self, pieces: list[memoryview], kind: int) -> Iterator[None]:
        while not self._writer.write_pieces(pieces, kind):
            # Once more when the parent is sure to see that this process is about to wait.
            self._writer.await_room()
            if self._writer.write_pieces(pieces, kind):
                return
            yield

    def _on_fork(self) -> None:
        self.forked = True
