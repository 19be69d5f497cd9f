"""Modules that children find imported, and what there is to know of the servers that have them."""

from __future__ import annotations

import contextlib
from types import TracebackType

from ._start_methods import (
    ForkServerStatistics,
    preloaded,
    retire_servers,
    server_statistics,
    set_preloaded,
)

__all__ = ["ForkServerStatistics", "Preloaded", "fork_server_statistics", "preload"]


class Preloaded(contextlib.AbstractContextManager["Preloaded", None]):
    """What :func:`preload` returns: a context manager that takes it back, for tests."""

    def __init__(self, added: tuple[str, ...]) -> None:
        self._added = added

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        _set_preloaded(tuple(module for module in preloaded() if module not in self._added))


def preload(*modules: str) -> Preloaded:
    """Have modules imported once, in the fork server, and not again by each process::

        creche.preload("numpy", "myapp.models")

    Holds for all processes that are started from here on, by whatever function. The main module,
    and what it imports, needs no mention. A server that runs already is replaced at the next start,
    and ends after its last child. Nothing is imported in this process.

    A module that starts threads is left to the children, with one :exc:`RuntimeWarning` that names
    it, as no thread survives a fork; so is one that ends the server. One that cannot be imported is
    named in a warning, too. The warnings are given when the server starts, with the first process.

    There are fork servers under the start methods ``"creche"`` and ``"forkserver"``. Under others
    this changes nothing.

    In a ``with`` block, which tests have use for, it is taken back at the end::

        with creche.preload("numpy"):
            ...

    :param modules: absolute names of modules
    :raises TypeError: if a name is not a string
    :raises ValueError: if a name is empty or relative
    """
    for module in modules:
        if not isinstance(module, str):
            raise TypeError(f"names of modules must be strings, not {type(module).__name__}")
        if not module or module.startswith("."):
            raise ValueError(f"{module!r} is not the absolute name of a module")
    before = preloaded()
    added = tuple(module for module in dict.fromkeys(modules) if module not in before)
    _set_preloaded(before + added)
    return Preloaded(added)


def fork_server_statistics() -> list[ForkServerStatistics]:
    """What the fork servers of start method ``"creche"`` have imported, and how large they are.

    Those that run, without starting any. There is one after the first process was started, and one
    more for each pool with a ``preload`` of its own.
    """
    return server_statistics()


def _set_preloaded(modules: tuple[str, ...]) -> None:
    if modules != preloaded():
        set_preloaded(modules)
        retire_servers()
