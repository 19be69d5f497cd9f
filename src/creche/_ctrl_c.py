"""Where Ctrl-C may strike.

Trio raises ``KeyboardInterrupt`` in whatever a task of the application is at, between any two
instructions: between the taking of a lock and the ``try`` that gives it back, say. It spares its
own functions, and those of whoever asks for it: the main task gets the exception at its next
checkpoint then, as it gets a cancellation. (asyncio cancels the main task, whatever is running.)
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, Protocol, TypeVar


class _HasCode(Protocol):
    __code__: CodeType


F = TypeVar("F", bound=_HasCode)

_PACKAGE = __name__.partition(".")[0]

_modules = 0  # in sys.modules, when it was last looked through
_known: set[str | type | CodeType] = set()  # modules, by their names, classes and functions
_interruptible: set[CodeType] = set()


def is_ctrl_c(error: BaseException) -> bool:
    """Whether ``error`` is for the application, whatever code it has struck."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    return in_main_thread and isinstance(error, KeyboardInterrupt)


def interruptible(func: F) -> F:
    """Let Ctrl-C strike in this function: the application's code may block in there for long."""
    _interruptible.add(func.__code__)
    return func


def trio_lowlevel() -> Any:
    """``trio.lowlevel``, or ``None`` where Trio is not imported, or another thread is at it."""
    return getattr(sys.modules.get("trio"), "lowlevel", None)


def postpone_ctrl_c(lowlevel: Any) -> None:
    """Have Trio spare all that is imported of creche by now. Takes no time when called again.

    :param lowlevel: ``trio.lowlevel``
    """
    global _modules
    if len(sys.modules) == _modules:
        return
    _modules = len(sys.modules)
    for name, module in sys.modules.copy().items():
        if _is_ours(name) and _is_new(name):
            for code in _codes_in(vars(module)):
                if code in _interruptible:
                    lowlevel.disable_ki_protection(_Function(code))
                else:
                    lowlevel.enable_ki_protection(_Function(code))


def postpone_ctrl_c_in_children() -> None:
    """Do that in a server, for all that it forks: it takes a multiple of the time of a fork."""
    lowlevel = trio_lowlevel()
    if lowlevel is not None:
        postpone_ctrl_c(lowlevel)


@dataclass
class _Function:
    """All that Trio wants to know of a function. Those inside of others do not exist yet."""

    __code__: CodeType


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == _PACKAGE


def _is_new(known: str | type | CodeType) -> bool:
    is_new = known not in _known
    _known.add(known)
    return is_new


def _codes_in(namespace: Mapping[str, object]) -> Iterator[CodeType]:
    """Yield the code of what a module or a class defines, as far as it is new."""
    for member in list(namespace.values()):
        if not isinstance(member, type):
            for func in _functions_of(member):
                yield from _codes_of(func.__code__)
        elif _is_ours(member.__module__) and _is_new(member):
            yield from _codes_in(vars(member))


def _functions_of(member: object) -> Iterator[FunctionType]:
    match member:
        case FunctionType():
            yield member
            yield from _functions_of(getattr(member, "__wrapped__", None))
        case staticmethod() | classmethod():
            yield from _functions_of(member.__func__)
        case property():
            for accessor in (member.fget, member.fset):
                yield from _functions_of(accessor)
        case functools.cached_property():
            yield from _functions_of(member.func)
        case _:
            pass


def _codes_of(code: CodeType) -> Iterator[CodeType]:
    # What wraps a function may be another's: contextlib's, say, which all have in common.
    if not code.co_filename.startswith(_FOLDER) or not _is_new(code):
        return
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_of(constant)


_FOLDER = os.path.join(os.path.dirname(_codes_of.__code__.co_filename), "")
