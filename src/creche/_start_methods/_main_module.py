"""The application's main module, which a child that is no fork has to import again."""

from __future__ import annotations

import io
import os
from multiprocessing.process import BaseProcess
from typing import Any

from .._multiprocessing import context, reduction, spawn

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


def pickle_preparation(popen: Any, process: BaseProcess) -> bytes:
    """Pickle what ``multiprocessing.spawn`` reads first in a child: settings, and the process.

    The settings of a process that ``imports_main_later`` lack the main module.

    :param popen: takes the descriptors or handles that are pickled with the process object
    """
    settings = spawn.get_preparation_data(process.name)
    if getattr(process, "imports_main_later", False):
        settings = {key: value for key, value in settings.items() if key not in _KEYS}
    buffer = io.BytesIO()
    context.set_spawning_popen(popen)
    try:
        reduction.dump(settings, buffer)
        reduction.dump(process, buffer)
    finally:
        context.set_spawning_popen(None)
    return buffer.getvalue()
