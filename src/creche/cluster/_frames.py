"""Calls and values as bytes, which pass a Dask worker on their way without being unpickled there.

A frame has a header, a pickle and *parts*: large arguments, pickled apart, to which the pickle
refers. The parts are missing in what goes to the scheduler; they travel as scattered data, each
once for any number of calls, and come back to their frame on the Dask worker.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import threading
from collections.abc import Callable, Iterable
from importlib import import_module
from types import ModuleType
from typing import Any

from .._wire._payloads import Serializer

_COUNT = struct.Struct("<IQ")  # of the parts; bytes of the pickle
_PART = struct.Struct("<16sQ")  # its digest; its bytes

LARGE_BYTES = 1024 * 1024
"""What is larger does not pass through the scheduler with its call."""


class PartTable:
    """What large arguments are found by while a frame is unpickled, in one thread."""

    def __init__(self) -> None:
        self._local = threading.local()

    def load(self, frame: bytes, load: Callable[[bytes], Any]) -> Any:
        """Unpickle a frame that has all its parts."""
        view = memoryview(frame)
        parts = parts_of(frame)
        size = _COUNT.unpack_from(frame)[1]
        position = _COUNT.size + len(parts) * _PART.size
        pickled = bytes(view[position : position + size])
        position += size
        found: list[Callable[[], Any]] = []
        for _, length in parts:
            data = view[position : position + length]
            found.append(functools.cache(functools.partial(_load_part, load, data)))
            position += length
        self._local.found = found
        try:
            return load(pickled)
        finally:
            self._local.found = None

    def get(self, index: int) -> Any:
        return self._local.found[index]()


_table = PartTable()


class PartReference:
    """Stands for a part in the pickle of a frame, which gives the part when it is unpickled."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __reduce__(self) -> Any:
        return get_part, (self._index,)


def _load_part(load: Callable[[bytes], Any], data: memoryview) -> Any:
    return load(bytes(data))


def get_part(index: int) -> Any:
    return _table.get(index)


def parts_of(frame: bytes) -> list[tuple[bytes, int]]:
    """Return the digests of the parts of a frame, and their lengths."""
    count = _COUNT.unpack_from(frame)[0]
    at = (_COUNT.size + index * _PART.size for index in range(count))
    return [_PART.unpack_from(frame, position) for position in at]


def make_frame(pickled: bytes, parts: Iterable[tuple[bytes, int]] = ()) -> bytes:
    table = [_PART.pack(*part) for part in parts]
    return b"".join([_COUNT.pack(len(table), len(pickled)), *table, pickled])


class ModuleSerializer:
    """A module with ``dumps`` and ``loads``, which can be pickled.

    :param module: the module, or its name
    """

    def __init__(self, module: ModuleType | str) -> None:
        self._module: Any = import_module(module) if isinstance(module, str) else module
        self.dumps: Callable[[Any], bytes] = self._module.dumps
        self.loads: Callable[[bytes], Any] = self._module.loads

    def __reduce__(self) -> Any:
        return ModuleSerializer, (self._module.__name__,)


class CallerSerializer:
    """Makes frames of calls, and values of what comes back: on the side of the caller.

    :param serializer: what pickles
    :param keep: called with the digest and the bytes of each part, from any thread
    """

    def __init__(self, serializer: Serializer, keep: Callable[[bytes, bytes], object]) -> None:
        self._serializer = serializer
        self._keep = keep

    def dumps(self, obj: Any, /) -> bytes:
        parts: list[tuple[bytes, int]] = []

        def apart(pickled: bytes) -> PartReference:
            digest = hashlib.blake2b(pickled, digest_size=16).digest()
            self._keep(digest, pickled)
            parts.append((digest, len(pickled)))
            return PartReference(len(parts) - 1)

        def take_out(value: Any) -> Any:
            if type(value) is functools.partial:
                return functools.partial(
                    value.func,
                    *map(take_out, value.args),
                    **{name: take_out(arg) for name, arg in value.keywords.items()},
                )
            return apart(self._serializer.dumps(value)) if is_large(value) else value

        def take_out_all(value: Any) -> Any:
            if type(value) in (tuple, list):  # arguments, or items
                return type(value)(map(take_out_all, value))
            return take_out(value)

        pickled = self._serializer.dumps(take_out_all(obj))
        if len(pickled) > LARGE_BYTES:
            pickled = self._serializer.dumps(apart(pickled))
        return make_frame(pickled, parts)

    def loads(self, data: bytes, /) -> Any:
        return self._serializer.loads(data)


class Relayed(Exception):
    """A value or an exception, still pickled, on a Dask worker that only passes it on."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data


class RelayingSerializer:
    """Unpickles nothing: on the Dask worker. In the processes that it is sent to, it does.

    :param serializer: what pickles there
    """

    def __init__(self, serializer: Serializer) -> None:
        self._serializer = serializer

    def __reduce__(self) -> Any:
        return FrameSerializer, (self._serializer,)

    def dumps(self, obj: Any, /) -> bytes:
        return make_frame(self._serializer.dumps(obj))

    def loads(self, data: bytes, /) -> Relayed:
        return Relayed(data)


class FrameSerializer:
    """Takes frames, and answers with plain pickles: in the process that runs the call."""

    def __init__(self, serializer: Serializer) -> None:
        self._serializer = serializer

    def dumps(self, obj: Any, /) -> bytes:
        return self._serializer.dumps(obj)

    def loads(self, data: bytes, /) -> Any:
        return _table.load(data, self._serializer.loads)


def is_large(value: object) -> bool:
    """Whether a value alone is so large that it travels apart from its call."""
    size = getattr(value, "nbytes", None)
    if size is None and isinstance(value, bytes | bytearray | str):
        size = len(value)
    return isinstance(size, int) and size > LARGE_BYTES
