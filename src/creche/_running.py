"""Running a program within this interpreter as if it had been started by itself."""

from __future__ import annotations

import builtins
import importlib.util
import os
import sys
import types
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from typing import Any


def check_program(program: str, *, is_module: bool = False) -> None:
    """Check that there is such a program, before anything is done for it.

    :raises ImportError: if there is no such module
    :raises FileNotFoundError: if there is no such script
    """
    if is_module:
        _find_spec(program)
    elif not os.path.exists(program):
        raise FileNotFoundError(f"there is no file {program}")


def run_program(program: str, arguments: Sequence[str], *, is_module: bool = False) -> None:
    """Run a script, or a module as ``python -m`` does, as the main program.

    It is the main module from then on, which children import as they do when it is started by
    itself.

    :param program: the path of a script, or the name of a module
    :param arguments: what it finds in ``sys.argv``
    :raises ImportError: if there is no such module
    :raises FileNotFoundError: if there is no such script
    :raises BaseException: whatever leaves the program
    """
    if is_module:
        spec, code = _find_module(program)
        path, loader, package = spec.origin or program, spec.loader, spec.parent
    else:
        spec, path, package = None, program, None
        with open(program, "rb") as file:
            code = compile(file.read(), program, "exec", dont_inherit=True)
        loader = SourceFileLoader("__main__", program)
        if not sys.flags.safe_path:
            # In place of the current directory, which `python -m` has put there.
            sys.path[0] = os.path.dirname(os.path.abspath(program))
    sys.argv[:] = [path, *arguments]
    main = types.ModuleType("__main__")
    main.__dict__.update(
        __builtins__=builtins,
        __file__=path,
        __cached__=None,
        __loader__=loader,
        __package__=package,
        __spec__=spec,
    )
    before = sys.modules["__main__"]
    # multiprocessing's name for it, by which children call what it defines.
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    _kept.append(before)
    exec(code, main.__dict__)


_kept: list[types.ModuleType] = []
"""Main modules of which something runs still, and which nothing else refers to."""


def _find_spec(name: str) -> ModuleSpec:
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:  # a package
            name = f"{name}.__main__"
            spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:  # a package above it
        raise ImportError(f"there is no module {name}: {error}", name=name) from None
    if spec is None:
        raise ImportError(f"there is no module {name}", name=name)
    return spec


def _find_module(name: str) -> tuple[ModuleSpec, Any]:
    spec = _find_spec(name)
    get_code = getattr(spec.loader, "get_code", None)
    code = None if get_code is None else get_code(spec.name)
    if code is None:
        raise ImportError(f"there is no module {spec.name} that can be run", name=spec.name)
    return spec, code


def without_own_frames(error: BaseException) -> BaseException:
    """Take what started the program out of a traceback, as if it had been started by itself."""
    traceback = error.__traceback__
    own = (__file__, os.path.join(os.path.dirname(__file__), "__main__.py"))
    while traceback is not None and traceback.tb_frame.f_code.co_filename in own:
        traceback = traceback.tb_next
    return error.with_traceback(traceback)
