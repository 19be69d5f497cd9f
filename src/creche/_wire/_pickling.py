"""Turning objects into sections of a frame and back, without holding up anybody.

Pickling a large ``bytes`` object in one piece, or unpickling one, copies it while holding the GIL:
150 to 1,000 ms for 256 MiB, in which no event loop of the process turns. Here a pickler writes to
an object that keeps large payloads by reference, and an unpickler reads from one that fills them
piece by piece and lets go of the GIL in between.
"""

from __future__ import annotations

import io
import mmap
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .._multiprocessing import context, reduction, synchronize
from ._framing import Buffer, Section
from ._handing_over import Parcel, Parcels

# Small enough that a copy into fresh memory (2 GB/s at worst) takes a fraction of a millisecond.
PIECE_BYTES = 256 * 1024

# From here on, fresh pages from the kernel are cheaper than bytearray's zeroed memory, which is
# written once more than needed, under the GIL.
_MMAP_BYTES = 1024 * 1024


# No pickle of this size takes long, however nested what it describes is.
_PLAIN_BYTES = 32


class ArgumentHandles:
    """Collects what arguments refer to outside of their pickle, while they are being pickled.

    ``multiprocessing``'s pipes, queues, locks and sockets can only be pickled while a process is
    being started, and ask that process's ``Popen`` to hand their descriptors over. This object
    takes the place of the ``Popen``, so that pickling can be done, and fail, before anything is
    started. Its ``descriptors`` then go to the child with the process object.

    :param inherited: whether the child is a fork of this process and shares its objects
    :param parcels: takes what moves to the child
    """

    class DupFd:
        """Takes the place of ``multiprocessing``'s object for a descriptor in the pickle."""

        def __init__(self, descriptor: int) -> None:
            self._descriptor = descriptor

        def detach(self) -> int:
            return self._descriptor

    def __init__(self, *, inherited: bool = False, parcels: Parcels | None = None) -> None:
        self.descriptors: list[int] = []
        self.objects: list[object] | None = [] if inherited else None
        self.parcels = Parcels() if parcels is None else parcels
        """What moves to the child."""
        if inherited:
            self.parcels.fork_thread = threading.get_ident()

    def duplicate_for_child(self, descriptor: int) -> _ReceivedDescriptor:
        self.descriptors.append(descriptor)
        return _ReceivedDescriptor(len(self.descriptors) - 1)

    def carry(self, parcel: Parcel) -> None:
        """Have a parcel go to the child."""
        self.parcels.add(parcel)


class _ReceivedDescriptor:
    """Takes the place of a descriptor, or handle, in the pickle; unpickled as what the child got.

    On Windows, ``multiprocessing`` pickles the number itself, that of a semaphore say.
    """

    def __init__(self, index: int) -> None:
        self._index = index

    def __reduce__(self) -> tuple[Callable[[int], int], tuple[int]]:
        return _received_descriptor, (self._index,)


class _Received:
    """What ArgumentHandles collected, as the child that got it sees it."""

    descriptors: Sequence[int] = ()
    objects: Sequence[object] = ()


_received = _Received()


def receive_handles(descriptors: Sequence[int], objects: Sequence[object]) -> None:
    """In the child: make what came with the process object available to :func:`loads`."""
    _received.descriptors = descriptors
    _received.objects = objects


def _received_descriptor(index: int) -> int:
    return _received.descriptors[index]


def _received_object(index: int) -> object:
    return _received.objects[index]


class _Pickler(reduction.ForkingPickler):  # type: ignore[misc]
    """Knows the types that ``multiprocessing`` can send, and buffers that need no copy."""

    def __init__(
        self, file: _SectionWriter, buffers: list[pickle.PickleBuffer], objects: list[object] | None
    ) -> None:
        super().__init__(file, 5, True, buffers.append)
        self._objects = objects

    def reducer_override(self, obj: Any) -> Any:
        # A lock of the "fork" context has no name by which another process could open it: a forked
        # child uses the very object instead.
        if self._objects is not None and isinstance(obj, synchronize.SemLock):
            self._objects.append(obj)
            return _received_object, (len(self._objects) - 1,)
        return NotImplemented


class _SectionWriter:
    """The file a pickler writes to: large payloads arrive by reference and stay that way."""

    def __init__(self) -> None:
        self.section: Section = []

    def write(self, data: Buffer) -> int:
        self.section.append(data)
        return len(data)


class _SectionReader:
    """The file an unpickler reads from: fills large objects piece by piece, freeing what it read.

    An unpickler asks a file that has ``readinto`` to write straight into the memory of the
    ``bytes`` object that it is making.
    """

    def __init__(self, section: Section) -> None:
        self._pieces = deque(memoryview(piece).cast("B") for piece in section)
        section.clear()

    def readinto(self, target: memoryview) -> int:
        filled = 0
        pause_at = PIECE_BYTES
        while filled < len(target) and self._pieces:
            piece = self._take(min(len(target) - filled, PIECE_BYTES))
            target[filled : filled + len(piece)] = piece
            filled += len(piece)
            if filled > pause_at:
                time.sleep(0)  # lets go of the GIL, for which a waiting event loop would need 5 ms
                pause_at = filled + PIECE_BYTES
        return filled

    def read(self, size: int) -> bytes:
        result = bytearray()
        while len(result) < size and self._pieces:
            result += self._take(size - len(result))
        return bytes(result)

    def readline(self) -> bytes:
        # Protocols from 2 on use lines for nothing but GLOBAL, which is short.
        result = bytearray()
        while not result.endswith(b"\n") and self._pieces:
            result += self._take(1)
        return bytes(result)

    def _take(self, size: int) -> memoryview:
        piece = self._pieces.popleft()
        if len(piece) > size:
            self._pieces.appendleft(piece[size:])
        return piece[:size]


def dumps(obj: object, handles: ArgumentHandles | None = None) -> list[Section]:
    """Pickle ``obj`` into sections.

    The sections refer to the memory of large ``bytes`` and buffers in ``obj`` instead of copying
    it, so they are to be sent before that changes.

    :param handles: collects descriptors for a child; without it, objects that can only be handed
        over while a process is being started raise the error that they raise elsewhere
    :raises Exception: whatever the objects' own methods raise
    """
    writer = _SectionWriter()
    buffers: list[pickle.PickleBuffer] = []
    pickler = _Pickler(writer, buffers, handles.objects if handles is not None else None)
    outer = context.get_spawning_popen()
    context.set_spawning_popen(handles)
    try:
        pickler.dump(obj)
    except BaseException:
        if handles is not None:
            handles.parcels.give_back()
        raise
    finally:
        context.set_spawning_popen(outer)
    raw: list[Section] = [[buffer.raw()] for buffer in buffers]
    return [writer.section, *raw]


def loads(sections: list[Section]) -> Any:
    """Unpickle what :func:`dumps` made. Consumes ``sections``, to free memory as it goes.

    :raises Exception: whatever the pickle's own constructors raise
    """
    reader = _SectionReader(sections[0])
    return pickle.Unpickler(reader, buffers=_rebuilt_buffers(sections[1:])).load()


def load_with_buffers(pickled: Section, buffers: Sequence[memoryview]) -> Any:
    """Unpickle what refers to buffers that belong to the object from here on. Consumes the pickle.

    :raises Exception: whatever the pickle's own constructors raise
    """
    return pickle.Unpickler(_SectionReader(pickled), buffers=buffers).load()


def loads_plain(sections: list[Section]) -> Any:
    """Unpickle ``None``, a number or a short string; of all else, say that it is not plain.

    That takes a microsecond and runs nobody's code, so it can be done where :func:`loads` cannot.

    :raises NotPlain: if it is anything else, or may be
    """
    (section,) = sections if len(sections) == 1 else (None,)
    if section is None or sum(memoryview(piece).nbytes for piece in section) > _PLAIN_BYTES:
        raise NotPlain
    try:
        return _PlainUnpickler(io.BytesIO(b"".join(section))).load()
    except Exception as error:
        raise NotPlain from error


class NotPlain(Exception):
    """The object takes more than a microsecond to be unpickled, or is no object."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise NotPlain  # a class or a function, which may do anything


def _rebuilt_buffers(sections: list[Section]) -> Iterator[memoryview]:
    for section in sections:
        size = sum(memoryview(piece).nbytes for piece in section)
        memory = mmap.mmap(-1, size) if size >= _MMAP_BYTES else bytearray(size)
        target = memoryview(memory)
        _SectionReader(section).readinto(target)
        yield target
