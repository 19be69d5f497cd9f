"""The page of memory in which the ends of a channel count items, on Linux.

The kernel bounds a socket's buffer in bytes. How many items are in it, the ends count: each that
sends counts what it has sent, each that receives what it has received, in a cell that nobody else
writes, so that there is nothing to lock and nothing for a killed process to leave locked. What is
in the buffer is the sum of the first less the sum of the others.

A cell belongs to a row, and a row to one end. An end owns its row by a lock on one byte of the
page's file, which belongs to the *open file description* (``F_OFD_SETLK``): it travels with the
descriptor to another process, lasts while the descriptor is on its way, and is gone when the last
copy is closed, whoever is killed. The next owner of the row goes on counting where the last one
stopped, so nothing has to be settled when an end goes.

What a killed process has counted is off by at most the one item in its hands: see the order in
:mod:`._packet_channel`.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import time
from typing import TYPE_CHECKING

assert sys.platform == "linux" or not TYPE_CHECKING

from ._mapping import map_descriptor

MAX_ENDS = 512
"""How many ends of a kind a channel can have at a time."""

# Cells, of 8 bytes. A row that was ever used has its mark set, and so have all rows before it.
_SENT = 0
_RECEIVED = MAX_ENDS
_SENDER_USED = 2 * MAX_ENDS
_RECEIVER_USED = 3 * MAX_ENDS
_ALONE = 4 * MAX_ENDS
_CELLS = 5 * MAX_ENDS
_BYTES = 8 * _CELLS

# Bytes of the file, as locks: one for each row of senders and of receivers, and this one.
_SENDING = 2 * MAX_ENDS

# How long a sender waits for another one that is about to send. It takes a few microseconds, unless
# that one was stopped by a signal, or somebody else runs on its CPU: then nobody waits for it.
_PATIENCE = 0.0005


class ChannelPage:
    """One end's view of the page.

    :param descriptor: the file, opened for this end; owned by this object
    :param row: the row that the end owns, in the column of senders or of receivers
    """

    def __init__(self, descriptor: int, row: int, *, sends: bool) -> None:
        self.descriptor = descriptor
        self.row = row
        self._sends = sends
        self._memory = map_descriptor(descriptor, _BYTES)
        self.cells: memoryview = memoryview(self._memory).cast("q")
        self.cell = row + (_SENT if sends else _RECEIVED)
        """Which of the cells this end counts in."""
        self.alone = row + _ALONE
        """Of an end that sends: the cell that is 0 when others may send, too."""
        self._columns = {_SENT: self.cells[:0], _RECEIVED: self.cells[:0]}

    @classmethod
    def create(cls) -> ChannelPage:
        """Make the page of a new channel, for the first end that sends.

        :raises OSError: if there are no descriptors left
        """
        descriptor = os.memfd_create("creche", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, _BYTES)
            return cls._claim(descriptor, sends=True)
        finally:
            os.close(descriptor)

    def add_end(self, *, sends: bool) -> ChannelPage:
        """Return the view of one more end.

        :raises OSError: if there are no descriptors left, or there are :data:`MAX_ENDS` already
        """
        return self._claim(self.descriptor, sends=sends)

    @classmethod
    def _claim(cls, descriptor: int, *, sends: bool) -> ChannelPage:
        # Not a duplicate: that would share the description, and with it the locks.
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        try:
            page = cls(own, _claim_row(own, sends=sends), sends=sends)
        except BaseException:
            os.close(own)
            raise
        used = _SENDER_USED if sends else _RECEIVER_USED
        for row in range(page.row + 1):
            # The owner of a lower row may not have come so far yet. All write the same.
            page.cells[used + row] = 1
        if sends:
            for row in range(MAX_ENDS):
                if not page.cells[used + row]:
                    break
                page.cells[_ALONE + row] = 0
        return page

    def check_alone(self) -> bool:
        """Of an end that sends: whether no other end does. :attr:`alone` tells when one comes."""
        # First this, then the look at the locks; a new end locks first, and then writes here. So
        # either the lock is seen here, or what is written there comes last.
        self.cells[self.alone] = 1
        if _is_locked(self.descriptor, _row_byte(0, sends=True), MAX_ENDS):
            self.cells[self.alone] = 0
            return False
        return True

    def in_flight(self) -> int:
        """How many items are in the buffer: what was sent and not received."""
        return self._total(_SENT, _SENDER_USED) - self._total(_RECEIVED, _RECEIVER_USED)

    def open_ends(self) -> tuple[int, int]:
        """How many ends there are that send, and that receive, on their way or in use."""
        return self._owned_rows(sends=True), self._owned_rows(sends=False)

    def lock_sending(self) -> bool:
        """Keep other ends from sending; return whether they do not."""
        deadline = time.perf_counter() + _PATIENCE
        while not _lock(self.descriptor, _SENDING):
            if time.perf_counter() > deadline:
                return False
            os.sched_yield()
        return True

    def unlock_sending(self) -> None:
        fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLK, _lock_of(fcntl.F_UNLCK, _SENDING))

    def close(self) -> None:
        descriptor = self.descriptor
        if descriptor >= 0:
            self.leave()
            os.close(descriptor)

    def leave(self) -> None:
        """Close all but the descriptor, which somebody else owns. (Before Python 3.13 the mapping
        has a duplicate of it, and with that the locks.)"""
        self.descriptor = -1
        for column in self._columns.values():
            column.release()
        self.cells.release()
        self._memory.close()

    def _total(self, column: int, used: int) -> int:
        cells = self._columns[column]
        rows = len(cells)
        if rows < MAX_ENDS and self.cells[used + rows]:
            while rows < MAX_ENDS and self.cells[used + rows]:
                rows += 1
            self._columns[column] = cells = self.cells[column : column + rows]
        return cells[0] if rows == 1 else sum(cells)

    def _owned_rows(self, *, sends: bool) -> int:
        used = _SENDER_USED if sends else _RECEIVER_USED
        owned = 0
        for row in range(MAX_ENDS):
            if not self.cells[used + row]:
                break
            if sends == self._sends and row == self.row:
                owned += 1  # a lock of one's own is in nobody's way
            else:
                owned += _is_locked(self.descriptor, _row_byte(row, sends=sends))
        return owned


def _claim_row(descriptor: int, *, sends: bool) -> int:
    for row in range(MAX_ENDS):
        if _lock(descriptor, _row_byte(row, sends=sends)):
            return row
    kind = "send" if sends else "receive"
    raise OSError(f"a channel cannot have more than {MAX_ENDS} ends that {kind} at a time")


def _row_byte(row: int, *, sends: bool) -> int:
    return row if sends else MAX_ENDS + row


def _lock_of(kind: int, byte: int, count: int = 1) -> bytes:
    """Make a ``struct flock``, for some bytes of a file."""
    return struct.pack("@hhqqi4x", kind, os.SEEK_SET, byte, count, 0)


def _lock(descriptor: int, byte: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _lock_of(fcntl.F_WRLCK, byte))
    except BlockingIOError:
        return False
    return True


def _is_locked(descriptor: int, byte: int, count: int = 1) -> bool:
    """Whether another open file description has locked one of these bytes."""
    found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _lock_of(fcntl.F_WRLCK, byte, count))
    return bool(struct.unpack_from("@h", found)[0] != fcntl.F_UNLCK)
