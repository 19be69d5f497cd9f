"""creche's start method as a ``multiprocessing`` context."""

from __future__ import annotations

import multiprocessing.context
import sys
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

assert sys.platform == "linux" or not TYPE_CHECKING

from ..._multiprocessing import context
from ._popen import ServedPopen, SharedServedPopen


class _StartMethodName(str):
    """A name that brings with it what it names.

    ``multiprocessing`` tells children of all start methods the name of the default one. Where that
    is creche's, a spawned child has not heard of it; it does when it unpickles this.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return _start_method_name, ()


def _start_method_name() -> str:
    return START_METHOD


START_METHOD = _StartMethodName("creche")


class CrecheProcess(BaseProcess):
    """A ``multiprocessing`` process that creche's server starts."""

    _start_method = START_METHOD
    server_modules: tuple[str, ...] = ()

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> ServedPopen:
        return SharedServedPopen(process_obj)


class OwnedCrecheProcess(CrecheProcess):
    """One that creche itself starts: its main module is imported by :mod:`creche._child`."""

    imports_main_later = True


class CrecheContext(multiprocessing.context.BaseContext):
    """What ``multiprocessing.get_context("creche")`` gives."""

    _name = START_METHOD
    Process = CrecheProcess


CONTEXT = CrecheContext()

# multiprocessing looks methods up by name: here for its users, in children for itself.
context._concrete_contexts[START_METHOD] = CONTEXT
