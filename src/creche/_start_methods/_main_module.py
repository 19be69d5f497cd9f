"""The application's main module, which a child that is no fork has to import again."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import Any

from .._multiprocessing import context, process, reduction, spawn

MAIN = "__main__"

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


class MainModuleExited(Exception):
    """The main module left through ``sys.exit`` while it was being imported."""


@contextlib.contextmanager
def inheriting() -> Iterator[None]:
    """In a child that is not ready yet: have ``multiprocessing`` refuse to start processes."""
    current = process.current_process()
    current._inheriting = True
    try:
        yield
    finally:
        del current._inheriting


_failure: Exception | None = None


def import_main(settings: dict[str, Any]) -> None:
    """In a child: import the main module, unless the fork server has tried before.

    :param settings: for ``multiprocessing.spawn.prepare``
    :raises Exception: whatever the main module raises
    """
    if _failure is not None:
        raise _failure
    try:
        with inheriting():
            spawn.prepare(settings)
    except SystemExit as error:
        raise MainModuleExited(f"sys.exit({error.code!r})") from error


def import_main_in_server(settings: dict[str, Any]) -> None:
    """In a fork server: import the main module once for all children.

    If that fails, the children report it, instead of trying again: a main module without a guard
    would run the whole program once more in each of them.
    """
    global _failure
    try:
        import_main(settings)
    except Exception as error:
        _failure = error


def pickle_preparation(popen: Any, process_obj: BaseProcess) -> bytes:
    """Pickle what ``multiprocessing.spawn`` reads first in a child: settings, and the process.

    The settings of a process that ``imports_main_later`` lack the main module.

    :param popen: takes the descriptors or handles that are pickled with the process object
    """
    settings = spawn.get_preparation_data(process_obj.name)
    if getattr(process_obj, "imports_main_later", False):
        settings = {key: value for key, value in settings.items() if key not in _KEYS}
    return pickle_for_child(popen, settings, process_obj)


def pickle_for_child(popen: Any, settings: dict[str, Any], process_obj: BaseProcess) -> bytes:
    """Pickle settings and a process object, one after the other."""
    buffer = io.BytesIO()
    context.set_spawning_popen(popen)
    try:
        reduction.dump(settings, buffer)
        reduction.dump(process_obj, buffer)
    finally:
        context.set_spawning_popen(None)
    return buffer.getvalue()
