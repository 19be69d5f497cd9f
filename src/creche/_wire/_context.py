"""A function that runs in the context that its caller had."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from contextvars import ContextVar
from importlib import import_module
from types import CoroutineType
from typing import Any, Protocol

NOTHING: Any = object()
"""What a carrier has where there is nothing to carry."""


class Carrier(Protocol):
    """Takes one thing from the context of the caller to that of the function; can be pickled."""

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
    """Carries the value of a context variable, which both sides find as a module's attribute."""

    __slots__ = ("_module", "_name", "_variable")

    def __init__(self, module: str, name: str, variable: ContextVar[Any] | None = None) -> None:
        self._module = module
        self._name = name
        self._variable = variable

    def __reduce__(self) -> Any:
        return _variable_carrier, (self._module, self._name)

    @property
    def name(self) -> str:
        return f"the value of the context variable {self._module}.{self._name}"

    def take(self) -> Any:
        assert self._variable is not None
        return self._variable.get(NOTHING)

    def put(self, load: Any) -> Callable[[], object]:
        variable = self._variable
        if variable is None:
            module = sys.modules.get(self._module) or import_module(self._module)
            variable = self._variable = getattr(module, self._name)
        token = variable.set(load)
        return lambda: variable.reset(token)


_carriers: dict[tuple[str, str], VariableCarrier] = {}  # that came in a pickle


def _variable_carrier(module: str, name: str) -> VariableCarrier:
    return _carriers.setdefault((module, name), VariableCarrier(module, name))


class CallInContext:
    """Calls a function, plain or ``async``, with what was taken from the caller's context.

    :param func: the function
    :param loads: what was taken, and by whom
    """

    __slots__ = ("func", "loads")

    def __init__(self, func: Callable[..., Any], loads: tuple[tuple[Carrier, Any], ...]) -> None:
        self.func = func
        self.loads = loads

    def __reduce__(self) -> Any:
        return CallInContext, (self.func, self.loads)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            self._put(stack)
            value = self.func(*args, **kwargs)
        return self._await(value) if type(value) is CoroutineType else value

    async def _await(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        # In the task in which it runs, and for as long as it does.
        with ExitStack() as stack:
            stack.callback(coroutine.close)
            self._put(stack)
            return await coroutine

    def _put(self, stack: ExitStack) -> None:
        for carrier, load in self.loads:
            stack.callback(carrier.put(load))
