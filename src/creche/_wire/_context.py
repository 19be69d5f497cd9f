"""A function that runs in the context that its caller had."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from importlib import import_module
from types import CoroutineType
from typing import Any, Protocol

NOTHING: Any = object()
"""What a carrier has where there is nothing to carry."""


class Carrier(Protocol):
    """Takes one thing from the context of the caller to that of the function."""

    @property
    def key(self) -> str:
        """``module:attribute``, where both sides find the carrier, or its context variable."""
        ...

    @property
    def name(self) -> str:
        """What it carries, for errors."""
        ...

    def take(self) -> Any:
        """What there is in the current context, or :data:`NOTHING`."""
        ...

    def put(self, load: Any) -> Callable[[], object]:
        """Put what was taken elsewhere into the current context; return what takes it back."""
        ...


class VariableCarrier:
    """Carries the value of a context variable."""

    def __init__(self, key: str, variable: ContextVar[Any]) -> None:
        self.key = key
        self._variable = variable

    @property
    def name(self) -> str:
        return f"the value of the context variable {self.key.replace(':', '.')}"

    def take(self) -> Any:
        return self._variable.get(NOTHING)

    def put(self, load: Any) -> Callable[[], object]:
        return functools.partial(self._variable.reset, self._variable.set(load))


class CallInContext:
    """Calls a function, plain or ``async``, with what was taken from the caller's context.

    :param func: the function
    :param carriers: who has taken something
    :param loads: what each of them has taken
    """

    __slots__ = ("carriers", "func", "loads")

    def __init__(
        self, func: Callable[..., Any], carriers: tuple[Carrier, ...], loads: tuple[Any, ...]
    ) -> None:
        self.func = func
        self.carriers = carriers
        self.loads = loads

    def __reduce__(self) -> Any:
        return _rebuild, (self.func, tuple([c.key for c in self.carriers]), self.loads)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        undo: list[Callable[[], object]] = []
        try:
            self._put(undo)
            value = self.func(*args, **kwargs)
        finally:
            _take_back(undo)
        return self._await(value) if type(value) is CoroutineType else value

    async def _await(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        # In the task in which it runs, and for as long as it does.
        undo: list[Callable[[], object]] = []
        try:
            self._put(undo)
            return await coroutine
        finally:
            coroutine.close()
            _take_back(undo)

    def _put(self, undo: list[Callable[[], object]]) -> None:
        for carrier, load in zip(self.carriers, self.loads, strict=True):
            undo.append(carrier.put(load))


def _take_back(undo: list[Callable[[], object]]) -> None:
    while undo:
        undo.pop()()


def _rebuild(
    func: Callable[..., Any], keys: tuple[str, ...], loads: tuple[Any, ...]
) -> CallInContext:
    return CallInContext(func, find_carriers(keys), loads)


@functools.cache
def find_carriers(keys: tuple[str, ...]) -> tuple[Carrier, ...]:
    """Return the carriers with these keys."""
    return tuple(map(_find_carrier, keys))


def _find_carrier(key: str) -> Carrier:
    module_name, _, attribute = key.partition(":")
    module = sys.modules.get(module_name) or import_module(module_name)
    found: Any = getattr(module, attribute)
    return VariableCarrier(key, found) if isinstance(found, ContextVar) else found
