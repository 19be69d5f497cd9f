"""The interface of the local pool, on a Dask cluster: ``pip install creche[cluster]``."""

from __future__ import annotations

import importlib as _importlib
import typing as _typing

from ._errors import ClusterError as ClusterError
from ._errors import WorkerLostError as WorkerLostError

if _typing.TYPE_CHECKING:
    from ._cluster_pool import ClusterPool as ClusterPool
    from ._cluster_pool import open_pool as open_pool

__all__ = ["ClusterError", "ClusterPool", "WorkerLostError", "open_pool"]


def __getattr__(name: str) -> _typing.Any:
    # The processes on the far side import this package, and do not need Dask.
    if name not in ("ClusterPool", "open_pool"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = _importlib.import_module(f"{__name__}._cluster_pool")
    except ModuleNotFoundError as error:
        if error.name not in ("distributed", "dask", "cloudpickle"):
            raise
        raise ImportError(
            "creche.cluster needs dask.distributed: pip install creche[cluster]"
        ) from error
    for public in (module.ClusterPool, module.open_pool):
        public.__module__ = __name__
        globals()[public.__name__] = public
    return globals()[name]


def _show_as_public(*values: _typing.Any) -> None:
    for value in values:
        value.__module__ = __name__


_show_as_public(ClusterError, WorkerLostError)
