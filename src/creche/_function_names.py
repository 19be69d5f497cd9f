"""What a function is called that may be wrapped in others."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any


def call_wrapped(wrapper: Any, /, *args: Any, **kwargs: Any) -> Any:
    """In a child: call the function that a decorator of creche's has wrapped.

    The name of the function means the wrapper, so it is the wrapper that can be pickled; the child
    looks behind it.
    """
    return wrapper.__wrapped__(*args, **kwargs)


def unwrapped(func: Any) -> Any:
    """Return the function that a chain of partial ones, and such of creche's, ends with."""
    while True:
        if isinstance(func, functools.partial) and func.func is call_wrapped:
            func = func.args[0]
        elif hasattr(func, "func"):
            func = func.func
        else:
            return func


def simple_name(func: Callable[..., Any]) -> str:
    """Return the name of a function, for that of a process."""
    func = unwrapped(func)
    return getattr(func, "__name__", type(func).__name__)


def qualified_name(func: Callable[..., Any]) -> str:
    """Return the full name of a function; of an object that can be called, that of its type."""
    if type(func) is types.FunctionType:  # as most are
        return f"{func.__module__}.{func.__qualname__}"
    func = unwrapped(func)
    if not isinstance(getattr(func, "__qualname__", None), str):
        func = type(func)
    module = getattr(func, "__module__", None)
    if module is None:  # a method of a built-in type
        owner = getattr(func, "__self__", None)
        module = None if owner is None else type(owner).__module__
    return f"{module}.{func.__qualname__}" if isinstance(module, str) else func.__qualname__
