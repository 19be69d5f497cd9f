"""The modules that fork servers are to have, under whatever start method."""

from __future__ import annotations

_modules: tuple[str, ...] = ()


def preloaded() -> tuple[str, ...]:
    """Their names, in the order in which they are imported."""
    return _modules


def set_preloaded(modules: tuple[str, ...]) -> None:
    """Have them imported by servers that start from here on."""
    global _modules
    _modules = modules
