"""Small inventories of what the documentation links to, so that building it needs no network."""

from __future__ import annotations

import zlib
from pathlib import Path

PYTHON = "https://docs.python.org/3"
ANYIO = "https://anyio.readthedocs.io/en/stable"
TRIO = "https://trio.readthedocs.io/en/stable"
DASK = "https://distributed.dask.org/en/stable"
OPENTELEMETRY = "https://opentelemetry-python.readthedocs.io/en/stable"
CLOUDPICKLE = "https://github.com/cloudpipe/cloudpickle/blob/master"
RICH = "https://rich.readthedocs.io/en/stable"

OBJECTS: dict[str, dict[str, dict[str, str]]] = {
    PYTHON: {
        "py:class": {
            **dict.fromkeys(
                ["bool", "bytes", "dict", "float", "frozenset", "int", "str", "tuple", "type"],
                "library/stdtypes.html#$",
            ),
            "object": "library/functions.html#$",
            "multiprocessing.Process": "library/multiprocessing.html#$",
            "multiprocessing.process.BaseProcess": (
                "library/multiprocessing.html#multiprocessing.Process"
            ),
            "multiprocessing.context.BaseContext": (
                "library/multiprocessing.html#multiprocessing.get_context"
            ),
            "contextvars.ContextVar": "library/contextvars.html#$",
            "logging.Logger": "library/logging.html#$",
            "contextlib.AbstractContextManager": "library/contextlib.html#$",
            "collections.abc.AsyncIterable": "library/collections.abc.html#$",
            "collections.abc.AsyncIterator": "library/collections.abc.html#$",
            "collections.abc.Awaitable": "library/collections.abc.html#$",
            "collections.abc.Callable": "library/collections.abc.html#$",
            "collections.abc.Coroutine": "library/collections.abc.html#$",
            "collections.abc.Generator": "library/collections.abc.html#$",
            "collections.abc.Iterable": "library/collections.abc.html#$",
            "collections.abc.Mapping": "library/collections.abc.html#$",
            "collections.abc.Sequence": "library/collections.abc.html#$",
            "BaseProcess": "library/multiprocessing.html#multiprocessing.Process",
            "Callable": "library/collections.abc.html#collections.abc.Callable",
            "Coroutine": "library/collections.abc.html#collections.abc.Coroutine",
            "Generator": "library/collections.abc.html#collections.abc.Generator",
            "Iterable": "library/collections.abc.html#collections.abc.Iterable",
            "Mapping": "library/collections.abc.html#collections.abc.Mapping",
            "TracebackType": "library/types.html#types.TracebackType",
            "types.TracebackType": "library/types.html#$",
            "typing.Any": "library/typing.html#$",
            "typing.Generic": "library/typing.html#$",
            "typing.NoReturn": "library/typing.html#$",
            "Any": "library/typing.html#typing.Any",
            "enum.Enum": "library/enum.html#$",
            "Enum": "library/enum.html#enum.Enum",
            "os.PathLike": "library/os.html#$",
            "threading.Barrier": "library/threading.html#$",
        },
        "py:data": {
            "math.inf": "library/math.html#$",
        },
        "py:exception": {
            "threading.BrokenBarrierError": "library/threading.html#$",
            **dict.fromkeys(
                [
                    "BaseException",
                    "Exception",
                    "ExceptionGroup",
                    "KeyboardInterrupt",
                    "MemoryError",
                    "OSError",
                    "RuntimeError",
                    "RuntimeWarning",
                    "TimeoutError",
                    "TypeError",
                    "ValueError",
                ],
                "library/exceptions.html#$",
            ),
        },
        "py:function": {
            "functools.partial": "library/functools.html#$",
            "os.fork": "library/os.html#$",
        },
        "py:module": {
            "multiprocessing": "library/multiprocessing.html#module-$",
            "concurrent.futures": "library/concurrent.futures.html#module-$",
            "asyncio": "library/asyncio.html#module-$",
            "pickle": "library/pickle.html#module-$",
        },
    },
    ANYIO: {
        "py:class": {
            "anyio.CancelScope": "api.html#$",
            "anyio.CapacityLimiter": "api.html#$",
            "anyio.Event": "api.html#$",
            "anyio.Lock": "api.html#$",
            "anyio.abc.ObjectReceiveStream": "api.html#$",
            "anyio.abc.ObjectSendStream": "api.html#$",
            "anyio.abc.ObjectStream": "api.html#$",
            "anyio.abc.TaskGroup": "api.html#$",
            "CancelScope": "api.html#anyio.CancelScope",
            "CapacityLimiter": "api.html#anyio.CapacityLimiter",
        },
        "py:exception": {
            "anyio.BrokenResourceError": "api.html#$",
            "anyio.BrokenWorkerProcess": "api.html#$",
            "anyio.BusyResourceError": "api.html#$",
            "anyio.ClosedResourceError": "api.html#$",
            "anyio.EndOfStream": "api.html#$",
            "anyio.WouldBlock": "api.html#$",
        },
        "py:function": {
            "anyio.run": "api.html#$",
            "anyio.move_on_after": "api.html#$",
            "anyio.fail_after": "api.html#$",
            "anyio.create_task_group": "api.html#$",
            "anyio.to_process.run_sync": "api.html#$",
        },
    },
    TRIO: {
        "py:function": {
            "trio.run": "reference-core.html#$",
            "trio.open_nursery": "reference-core.html#$",
        },
    },
    DASK: {
        "py:class": {
            "distributed.Client": "api.html#$",
            "distributed.LocalCluster": "api.html#$",
            "distributed.Security": "tls.html#$",
            "distributed.security.Security": "tls.html#distributed.security.Security",
        },
    },
    CLOUDPICKLE: {"py:module": {"cloudpickle": "README.md#$"}},
    OPENTELEMETRY: {
        "py:class": {"opentelemetry.trace.TracerProvider": "api/trace.html#$"},
    },
    RICH: {
        "py:class": {
            "rich.console.Console": "reference/console.html#$",
            "Console": "reference/console.html#rich.console.Console",
        },
    },
}


def write(folder: Path) -> dict[str, tuple[str, str]]:
    """Write the inventories; return what ``intersphinx_mapping`` has to be."""
    folder.mkdir(parents=True, exist_ok=True)
    mapping: dict[str, tuple[str, str]] = {}
    for url, kinds in OBJECTS.items():
        name = url.removeprefix("https://").partition(".")[0]
        name = {"docs": "python"}.get(name, name)
        lines = [
            f"{object_name} {kind} 1 {place} -\n"
            for kind, objects in kinds.items()
            for object_name, place in objects.items()
        ]
        head = f"# Sphinx inventory version 2\n# Project: {name}\n# Version: \n"
        head += "# The remainder of this file is compressed using zlib.\n"
        file = folder / f"{name}.inv"
        file.write_bytes(head.encode() + zlib.compress("".join(lines).encode()))
        mapping[name] = (url, str(file))
    return mapping
