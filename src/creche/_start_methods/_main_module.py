"""The application's main module, which a child that is no fork has to import again."""

from __future__ import annotations

import os

from .._multiprocessing import spawn

_KEYS = ("init_main_from_name", "init_main_from_path")


def main_module_settings() -> dict[str, str]:
    """What ``multiprocessing.spawn.prepare`` needs in order to import the main module again.

    Empty where there is nothing to import: in a REPL, a notebook, ``python -c``, or a script that
    is read from standard input.
    """
    settings = spawn.get_preparation_data("")
    path = settings.get("init_main_from_path")
    if path is not None and not os.path.exists(path):
        return {}
    return {key: settings[key] for key in _KEYS if key in settings}


def without_main_module(settings: dict[str, object]) -> dict[str, object]:
    """Preparation data that does not make ``multiprocessing.spawn`` import the main module."""
    return {key: value for key, value in settings.items() if key not in _KEYS}
