"""What a child finds around it: as it is in the application now, not when the server started.

The server takes it on itself, so that its children are born with it and no child spends time on
it. It is sent only when it has changed.
"""

from __future__ import annotations

import contextlib
import errno
import locale
import os
import pickle
import sys
import time
import warnings
from dataclasses import dataclass
from multiprocessing import process
from typing import TYPE_CHECKING, Any

assert sys.platform == "linux" or not TYPE_CHECKING

_Filter = tuple[Any, ...]


@dataclass(frozen=True)
class Surroundings:
    """The state of an interpreter that children share with their parent."""

    environment: dict[bytes, bytes]
    directory: str
    original_directory: str | None
    path: list[str]
    arguments: list[str]
    locale: str
    warning_filters: tuple[_Filter, ...]

    @classmethod
    def take(cls) -> Surroundings:
        """Look at this process.

        :raises OSError: if the working directory is gone
        """
        original_directory: str | None = process.ORIGINAL_DIR  # type: ignore[attr-defined]
        return cls(
            # A copy in one step, which no other thread can disturb.
            environment=dict(os.environb._data),  # type: ignore[attr-defined]
            directory=os.getcwd(),
            original_directory=original_directory,
            # An empty string is where the interpreter was started, as in spawned children.
            path=[entry or original_directory or entry for entry in sys.path],
            arguments=list(sys.argv),
            locale=locale.setlocale(locale.LC_ALL),
            warning_filters=tuple(warnings.filters),
        )

    def pack(self) -> bytes:
        state = {**self.__dict__, "warning_filters": _pack_filters(self.warning_filters)}
        return pickle.dumps(state)


def apply(packed: bytes) -> tuple[bytes, ...]:
    """Make this process, which is the server, look as the application does.

    :return: the warning filters, for :func:`apply_filters` in the children: making them may import
        modules of the application's
    :raises OSError: if it cannot be done, as the working directory is gone, say
    """
    state = pickle.loads(packed)
    zone = os.environb.get(b"TZ")
    os.environb.clear()
    os.environb.update(state["environment"])
    if os.environb.get(b"TZ") != zone:
        time.tzset()
    os.chdir(state["directory"])
    process.ORIGINAL_DIR = state["original_directory"]  # type: ignore[attr-defined]
    sys.path[:] = state["path"]
    sys.argv[:] = state["arguments"]
    if state["locale"] != locale.setlocale(locale.LC_ALL):
        try:
            locale.setlocale(locale.LC_ALL, state["locale"])
        except locale.Error as error:
            raise OSError(errno.EINVAL, f"locale {state['locale']!r}: {error}") from error
    filters: tuple[bytes, ...] = state["warning_filters"]
    return () if filters == _pack_filters(tuple(warnings.filters)) else filters


def apply_filters(packed: tuple[bytes, ...]) -> None:
    """In a child: warn of what the application warns of."""
    filters = []
    for one in packed:
        # Whoever cannot import a category cannot warn with it.
        with contextlib.suppress(Exception):
            filters.append(pickle.loads(one))
    warnings.resetwarnings()  # tells the interpreter to forget what it has looked up
    warnings.filters[:] = filters  # type: ignore[index]


def _pack_filters(filters: tuple[_Filter, ...]) -> tuple[bytes, ...]:
    packed = []
    for one in filters:
        with contextlib.suppress(Exception):  # a category that is local to a function
            packed.append(pickle.dumps(one))
    return tuple(packed)
