"""The interface of the local pool, on a Dask cluster: ``pip install creche[cluster]``."""

from __future__ import annotations

from typing import Any

try:
    import distributed as _distributed  # noqa: F401
except ImportError as error:
    raise ImportError(
        "creche.cluster needs dask.distributed: pip install creche[cluster]"
    ) from error

from ._cluster_pool import ClusterPool as ClusterPool
from ._cluster_pool import open_pool as open_pool
from ._errors import ClusterError as ClusterError
from ._errors import WorkerLostError as WorkerLostError

__all__ = ["ClusterError", "ClusterPool", "WorkerLostError", "open_pool"]


def _show_as_public(*values: Any) -> None:
    for value in values:
        value.__module__ = __name__


_show_as_public(ClusterPool, open_pool, ClusterError, WorkerLostError)
