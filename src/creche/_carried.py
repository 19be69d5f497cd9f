"""What of the caller's context travels with each call."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ._child import ChildProgram
from ._function_names import qualified_name
from ._wire._context import NOTHING, CallInContext, Carrier, find_carriers
from ._wire._outcomes import Call

F = TypeVar("F", bound=Callable[..., Any])


class Carriers:
    """Those that the application has asked for, by what they carry.

    Looked at without a lock, before each call: it is replaced, not changed.
    """

    def __init__(self) -> None:
        self.all: tuple[Carrier, ...] = ()
        self._by_key: dict[object, Carrier] = {}
        self._lock = threading.Lock()

    def add(self, carriers: dict[Any, Carrier]) -> list[object]:
        """Add carriers; return the keys of those that are new."""
        with self._lock:
            new = [key for key in carriers if key not in self._by_key]
            self._by_key = {**carriers, **self._by_key}
            self.all = tuple(self._by_key.values())
        return new

    def remove(self, keys: list[object]) -> None:
        with self._lock:
            self._by_key = {k: carrier for k, carrier in self._by_key.items() if k not in keys}
            self.all = tuple(self._by_key.values())

    def __contains__(self, key: object) -> bool:
        return key in self._by_key


carriers = Carriers()


def in_context(func: F) -> F:
    """Return ``func`` with what it is to find of the caller's context, or as it is."""
    if not carriers.all:
        return func
    taken = [(carrier, carrier.take()) for carrier in carriers.all]
    taken = [(carrier, load) for carrier, load in taken if load is not NOTHING]
    if not taken:
        return func
    call: Any = CallInContext(func, *zip(*taken, strict=True))
    return call  # type: ignore[no-any-return]


def call_in_context(call: Call | None) -> Call | None:
    """The same for the call of a process; creche's own programs find their context elsewhere."""
    if call is None or not carriers.all or isinstance(call.func, ChildProgram):
        return call
    return dataclasses.replace(call, func=in_context(call.func))


def with_loads(func: F, loads: Mapping[str, Any]) -> F:
    """Return ``func`` with loads that are put into its context last, by the keys of their carriers,
    or as it is where there are none."""
    if not loads:
        return func
    carriers, values = find_carriers(tuple(loads)), tuple(loads.values())
    inner: Any = func
    if isinstance(func, CallInContext):
        inner, carriers, values = func.func, func.carriers + carriers, func.loads + values
    call: Any = CallInContext(inner, carriers, values)
    return call  # type: ignore[no-any-return]


def call_with(call: Call | None, loads: Mapping[str, Any]) -> Call | None:
    """The same for the call of a process."""
    if call is None or not loads or isinstance(call.func, ChildProgram):
        return call
    return dataclasses.replace(call, func=with_loads(call.func, loads))


def called_name(call: Call | None) -> str | None:
    """Return the full name of the function that the call of a process is about, if of one."""
    if call is None:
        return None
    func: Any = call.func
    if isinstance(func, ChildProgram):
        func = func.function(call.args)
    return None if func is None else qualified_name(func)
