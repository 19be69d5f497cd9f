"""Items as records of the ring, and back."""

from __future__ import annotations

import copyreg
import io
import pickle
from collections import ChainMap
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

from .._platform import fresh_memory
from .._wire._framing import BadFrameError, Buffer, Section
from .._wire._messages import lengths_in, size_of, table_of
from .._wire._payloads import Payload, dump
from .._wire._pickling import load_with_buffers

# Copying that takes longer than a millisecond is not for an event loop: a larger item is cut.
WHOLE_BYTES = 1536 * 1024
PIECE_BYTES = 512 * 1024

# From here on, making objects of a pickle takes longer than an event loop can wait.
_HEAVY_BYTES = 128 * 1024

# A pickle refers to large ``bytes``, instead of having a copy of them, from here on.
_LARGE_BYTES = 64 * 1024

# A table of more buffers would not fit into a piece.
_MANY_BUFFERS = 1024

_MAX_BYTES = 1 << 48

_AT_ONCE = frozenset({int, float, complex, bool, type(None), str})
_BYTES = frozenset({bytes, bytearray})


class ItemPickler:
    """Pickles one item after the other."""

    def __init__(self) -> None:
        # Used again and again, as making them takes longer than pickling a small item does.
        self._file = io.BytesIO()
        self._buffers: list[pickle.PickleBuffer] = []
        self._pickler = _Pickler(self._file, 5, buffer_callback=self._buffers.append)

    def encode(self, item: Any) -> bytes | Payload:
        """Pickle an item: what is small and simple in one piece.

        :raises Exception: whatever the item's own methods raise
        """
        kind = type(item)
        if kind in _AT_ONCE:
            data = pickle.dumps(item, 5)
            return data if len(data) <= WHOLE_BYTES else Payload([[data]], heavy=False)
        if kind in _BYTES and len(item) > _LARGE_BYTES:
            return dump(item, None)  # refers to its memory
        self._buffers.clear()
        self._file.seek(0)
        self._file.truncate()
        self._pickler.clear_memo()
        try:
            self._pickler.dump(item)
        finally:
            self._pickler.clear_memo()  # which keeps alive what is in it
        data = self._file.getvalue()
        buffers = self._buffers
        if len(buffers) > _MANY_BUFFERS:
            buffers.clear()
            data = pickle.dumps(item, 5)
        heavy = len(data) > _HEAVY_BYTES
        if not buffers and not heavy:
            return data
        sections: list[Section] = [[data]]
        sections.extend([buffer.raw()] for buffer in buffers)
        return Payload(sections, heavy)


def _refuse(connection: Any) -> Any:
    """A connection is a number in its process. (:mod:`multiprocessing` can send it, with a thread
    from which the receiver fetches it, which would hold up the event loop.)"""
    raise TypeError(f"a {type(connection).__name__} belongs to its process")


_REFUSED = [
    getattr(connection, name)
    for name in ("Connection", "PipeConnection")  # the other is for Windows
    if hasattr(connection, name)
]


_KNOWN: Any = copyreg.dispatch_table
_REDUCERS = ChainMap(dict.fromkeys(_REFUSED, _refuse), _KNOWN)


class _Pickler(pickle.Pickler):
    dispatch_table = _REDUCERS


def lay_out(payload: Payload) -> tuple[list[memoryview], int]:
    """Return the pieces of a payload in the order in which they are written, and their size."""
    sections = payload.sections
    pieces: list[Buffer] = [table_of(sections)]
    pieces += [piece for section in sections for piece in section]
    return [memoryview(piece).cast("B") for piece in pieces], size_of(pieces)


def cut(pieces: list[memoryview]) -> list[list[memoryview]]:
    """Cut what is too large for one record."""
    records: list[list[memoryview]] = [[]]
    room = PIECE_BYTES
    for piece in pieces:
        while len(piece) > room:
            records[-1].append(piece[:room])
            piece = piece[room:]
            records.append([])
            room = PIECE_BYTES
        records[-1].append(piece)
        room -= len(piece)
    return records


class Parcel:
    """An item that does not come as a small pickle: takes in its records, and unpickles it.

    :raises BadFrameError: if there is no table of lengths in its first record
    """

    def __init__(self, first: memoryview) -> None:
        lengths, rest = _read_table(first)
        self._missing = sum(lengths)
        if self._missing > _MAX_BYTES:
            raise BadFrameError(f"an item of {self._missing} bytes")
        self._error: BaseException | None = None
        self._memory: list[memoryview] = []
        self._at = 0, 0  # in which of them the next byte belongs, and where
        try:
            self._memory = [fresh_memory(length) for length in lengths]
        except (MemoryError, OverflowError, ValueError) as error:
            self._error = error
        self.add(rest)

    @property
    def complete(self) -> bool:
        return not self._missing

    def add(self, data: Buffer) -> None:
        """Take in the next bytes.

        :raises BadFrameError: if there are too many
        """
        view = memoryview(data)
        self._missing -= len(view)
        if self._missing < 0:
            raise BadFrameError("an item with more bytes than its table tells")
        if self._error is not None:
            return
        index, offset = self._at
        while len(view):
            room = len(self._memory[index]) - offset
            part = view[:room]
            self._memory[index][offset : offset + len(part)] = part
            view = view[len(part) :]
            offset += len(part)
            if offset == len(self._memory[index]):
                index, offset = index + 1, 0
        self._at = index, offset

    def load(self) -> Any:
        """Unpickle the item, in any thread.

        :raises Exception: whatever the pickle's own constructors raise
        """
        if self._error is not None:
            raise self._error
        memory, self._memory = self._memory, []
        pickled: Section = [memory[0]]
        return load_with_buffers(pickled, memory[1:])


def load_whole(record: memoryview, load: Callable[..., Any] = pickle.loads) -> Any:
    """Unpickle an item that lies in one record, and does not take long.

    :raises BadFrameError: if there is no table of lengths in it
    :raises Exception: whatever the pickle's own constructors raise
    """
    lengths, view = _read_table(record)
    if sum(lengths) != len(view):
        raise BadFrameError("an item whose table does not tell its length")
    buffers: list[bytearray] = []
    at = lengths[0]
    for length in lengths[1:]:
        buffers.append(bytearray(view[at : at + length]))
        at += length
    return load(view[: lengths[0]], buffers=buffers)


def _read_table(record: memoryview) -> tuple[list[int], memoryview]:
    """Return the lengths of the pickle and the buffers in a record, and what follows the table."""
    try:
        lengths, (rest,) = lengths_in(record)
        if not lengths:
            raise ValueError("it is empty")
    except Exception as error:  # of many kinds
        raise BadFrameError(f"an item without a table of lengths: {error}") from None
    return lengths, memoryview(rest)
