"""Objects as payloads of a pool's messages, and back."""

from __future__ import annotations

import copyreg
import pickle
from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .._multiprocessing import reduction
from ._framing import Buffer, Section
from ._handing_over import CallHandles, carrying
from ._pickling import loads as _loads

# What is larger is copied, or unpickled, in a thread where there is an event loop: up to this, it
# takes no time, whatever it is.
LIGHT_BYTES = 64 * 1024

# An object that takes more writes than that to pickle, of 64 KiB each, is large. What is written
# by reference, such as a long ``bytes``, counts as one.
_LIGHT_PIECES = 4

_PLAIN = frozenset({int, float, complex, bool, type(None)})
_STRINGS = frozenset({str, bytes})
_SHORT = 4096


class Serializer(Protocol):
    """Anything that turns objects into bytes and back: the modules ``pickle`` and ``cloudpickle``,
    say."""

    def dumps(self, obj: Any, /) -> bytes: ...

    def loads(self, data: bytes, /) -> Any: ...


class TooHeavyError(Exception):
    """Pickling the object would take too long for an event loop."""


@dataclass(slots=True)
class Payload:
    """A pickled object: the pickle, and the buffers that it refers to."""

    sections: list[Section]
    heavy: bool
    handles: CallHandles | None = None
    """What moves to the worker with a call."""

    def close(self) -> None:
        """The call has been received, or never will be: close our copies of what moves with it."""
        if self.handles is not None:
            self.handles.parcels.close()


_REDUCERS: Any = ChainMap(reduction.ForkingPickler._extra_reducers, copyreg.dispatch_table)


class _Pickler(pickle.Pickler):
    """Knows the types that ``multiprocessing`` can send, without a table for each pickle."""

    dispatch_table = _REDUCERS


class _Writer:
    """The file a pickler writes to."""

    __slots__ = ("limit", "pieces")

    def __init__(self, limit: int | None) -> None:
        self.pieces: list[Buffer] = []
        self.limit = limit

    def write(self, data: Buffer) -> int:
        self.pieces.append(data)
        if self.limit is not None and len(self.pieces) > self.limit:
            raise TooHeavyError
        return len(data)


def dump(obj: object, serializer: Serializer | None, *, light: bool = False) -> Payload:
    """Pickle ``obj``. The payload refers to the memory of large ``bytes`` and buffers in it.

    :param serializer: what to do it with, instead of :mod:`pickle` with protocol 5
    :param light: do it only if it does not take long
    :raises TooHeavyError: if it would
    :raises Exception: whatever the objects' own methods raise
    """
    if serializer is not None:
        if light:
            raise TooHeavyError  # nothing is known of how long it takes
        data = serializer.dumps(obj)
        return Payload([[data]], heavy=True)
    writer = _Writer(_LIGHT_PIECES if light else None)
    buffers: list[pickle.PickleBuffer] = []
    _Pickler(writer, 5, True, buffers.append).dump(obj)
    sections: list[Section] = [writer.pieces]
    if buffers:
        sections.extend([buffer.raw()] for buffer in buffers)
    return Payload(sections, heavy=len(writer.pieces) > _LIGHT_PIECES)


def dump_call(call: object, serializer: Serializer | None, *, light: bool = False) -> Payload:
    """Pickle a call, as :func:`dump` does, with what moves to its worker."""
    return _dump_with_handles(call, serializer, light, lambda _handles: None)


def dump_chunk(
    func: object,
    items: Sequence[object],
    call: object,
    serializer: Serializer | None,
    *,
    light: bool = False,
) -> Payload:
    """Pickle a call for some items of a map, as :func:`dump` does.

    An item with which something moves travels alone: it can be sent once, and what a worker gives
    back is sent again.

    :param func: what is called for each
    :param call: all that is to be pickled
    :raises ValueError: if something moves with the function, or with one of several items
    """

    def check(handles: CallHandles) -> None:
        if len(items) > 1:
            raise ValueError("an item with which something moves travels alone")
        of_func = CallHandles()
        with carrying(of_func):
            dump(func, serializer)
        moves = bool(of_func.parcels)
        of_func.parcels.give_back()
        if moves:
            raise ValueError(
                "what moves to another process cannot move with the function of a map, which is"
                " sent again and again: let the items have it, or the pool's initargs"
            )

    return _dump_with_handles(call, serializer, light, check)


def _dump_with_handles(
    call: object,
    serializer: Serializer | None,
    light: bool,
    check: Callable[[CallHandles], None],
) -> Payload:
    handles = CallHandles()
    try:
        with carrying(handles):
            payload = dump(call, serializer, light=light)
        if handles.parcels:
            check(handles)
    except BaseException:
        handles.parcels.give_back()
        raise
    if handles.parcels:
        handles.parcels.take()
        payload.handles = handles
    return payload


def is_plain(objects: Sequence[object]) -> bool:
    """Whether pickling the objects takes no time: the check is made before each small call."""
    for obj in objects:
        kind = type(obj)
        if kind not in _PLAIN and not (kind in _STRINGS and len(obj) <= _SHORT):  # type: ignore[arg-type]
            return False
    return True


def dumps_plain(obj: object) -> bytes:
    """Pickle what is plain, in half the time that :func:`dump` takes.

    :raises Exception: if a function cannot be found by its name
    """
    return pickle.dumps(obj, 5)


def load(sections: list[Section], serializer: Serializer | None) -> Any:
    """Make an object of sections that are here. Consumes them.

    :raises Exception: whatever the pickle's own constructors raise
    """
    if serializer is not None:
        return serializer.loads(b"".join(sections[0]))
    if len(sections) == 1 and sum(memoryview(piece).nbytes for piece in sections[0]) <= _SHORT:
        return pickle.loads(b"".join(sections[0]))
    return _loads(sections)


def load_from(
    file: Any, size: int, buffers: list[memoryview], serializer: Serializer | None
) -> Any:
    """Make an object of a pickle in a file, and the buffers that it refers to."""
    if serializer is not None:
        data = bytearray(size)
        file.readinto(memoryview(data))
        return serializer.loads(bytes(data))
    return pickle.Unpickler(file, buffers=buffers).load()


def load_at_once(
    pickled: memoryview, buffers: list[bytearray], serializer: Serializer | None
) -> Any:
    """Make an object of a pickle that does not take long, and the buffers that it refers to."""
    if serializer is not None:
        return serializer.loads(bytes(pickled))
    return pickle.loads(pickled, buffers=buffers)


def loader(serializer: Serializer | None) -> Callable[[Any], Any]:
    """What makes an object of a small payload that is all here."""
    return pickle.loads if serializer is None else lambda data: serializer.loads(bytes(data))
