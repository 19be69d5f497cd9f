"""Context variables that travel to children.

A :class:`~contextvars.ContextVar` says for which request, user or job a task works. Processes do
not share it, so choose those that the work needs, where they are defined::

    import contextvars

    import creche.context

    request_id = contextvars.ContextVar[str]("request_id")
    creche.context.carry(request_id)

From then on the function of every call (``run_in_process``, a nursery's, an ``AsyncProcess``, a
pool's ``run`` and each item of a ``map``, ``to_process``) finds the value that the calling task had
at the moment of the call, which for a process is that of its start.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from importlib import import_module
from types import ModuleType, TracebackType
from typing import Any

from ._carried import carriers
from ._start_methods import main_module_settings
from ._wire._context import NOTHING, Carrier, VariableCarrier

__all__ = ["Carried", "carry", "carry_trace_context", "drop"]


# A child calls it by the second name until it has imported it.
_MAIN = ("__main__", "__mp_main__")


class Carried:
    """What :func:`carry` and :func:`carry_trace_context` return. As a context manager, it takes
    back at the end of its block what the call has added."""

    def __init__(self, keys: list[object]) -> None:
        self._keys = keys

    def __enter__(self) -> Carried:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        carriers.remove(self._keys)


def carry(*variables: ContextVar[Any]) -> Carried:
    """Have the values of context variables travel with every call from now on.

    A variable without a value in the calling task is not touched in the child. What the child sets
    does not come back, and a worker's next call sees nothing of it. A call whose value cannot be
    pickled fails with :exc:`creche.SerializationError`, which names the variable.

    :param variables: each must be an attribute of a module that the child can import. To carry one
        twice has no effect
    :return: what takes it back, as a context manager: for tests
    :raises ValueError: if a variable is not found in any module
    :raises TypeError: if something is not a context variable
    """
    for variable in variables:
        if not isinstance(variable, ContextVar):
            raise TypeError(f"expected a contextvars.ContextVar, not {type(variable).__name__}")
    found: dict[Any, Carrier] = {
        variable: _find(variable) for variable in variables if variable not in carriers
    }
    return Carried(carriers.add(found))


def drop(*variables: ContextVar[Any]) -> None:
    """Have these variables travel no more. One that does not travel is no error."""
    carriers.remove(list(variables))


def carry_trace_context() -> Carried:
    """Have OpenTelemetry's current span travel with every call from now on.

    Spans that a child makes are children of the span in which it was called. What travels, baggage
    say, is up to the propagators of the application (``opentelemetry.propagate``). The child
    exports its own spans: it needs a tracer provider, as every process does. Needs the extra
    ``creche[opentelemetry]``.

    :return: what takes it back, as a context manager
    :raises ImportError: if OpenTelemetry is not installed
    """
    try:
        import_module("opentelemetry.propagate")
    except ImportError as error:
        raise ImportError(
            "carry_trace_context() needs the API of OpenTelemetry: pip install"
            " 'creche[opentelemetry]'"
        ) from error
    return Carried(carriers.add({trace_carrier: trace_carrier}))


class TraceCarrier:
    """Carries what OpenTelemetry's propagators take from the context."""

    key = "creche.context:trace_carrier"
    name = "the trace context"

    def take(self) -> Any:
        from opentelemetry import propagate

        load: dict[str, str] = {}
        propagate.inject(load)
        return load or NOTHING

    def put(self, load: Any) -> Callable[[], object]:
        from opentelemetry import context, propagate

        token = context.attach(propagate.extract(load))
        return lambda: context.detach(token)


trace_carrier = TraceCarrier()


def _find(variable: ContextVar[Any]) -> Carrier:
    """Find the module that has the variable; one that is named as it is rather than another."""
    found: list[tuple[bool, bool, str, str]] = []
    for module_name, module in list(sys.modules.items()):
        with suppress(Exception):  # not everything in there is a module
            for name, value in list(vars(module).items()):
                if value is variable and _can_be_imported(module_name, module):
                    is_main = module_name in _MAIN
                    found_in = _MAIN[0] if is_main else module_name
                    found.append((is_main, name != variable.name, found_in, name))
    if not found:
        raise ValueError(
            f"the context variable {variable.name!r} cannot be carried: it is not an attribute of"
            " any module that a child could import. Define it at the top level of a module"
        )
    _, _, module_name, name = min(found)
    return VariableCarrier(f"{module_name}:{name}", variable)


def _can_be_imported(name: str, module: ModuleType) -> bool:
    if name in _MAIN:
        is_being_imported = module is not sys.modules.get(_MAIN[0])  # in a child
        return is_being_imported or bool(main_module_settings())
    return module.__spec__ is not None
