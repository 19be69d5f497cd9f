"""A pool of processes on a Dask cluster."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

from distributed import Security

from .._durations import check_duration
from .._log_forwarding import LogTarget
from .._pool._call_engine import CallEngine
from .._pool._options import PoolOptions, check_options
from .._pool._process_pool import ProcessPool
from .._stop_policy import StopPolicy
from .._wire._payloads import Serializer
from ._address import Address, check_address
from ._dask import cloudpickle
from ._engine import ClusterEngine, ClusterOptions

__all__ = ["ClusterPool", "open_pool"]

_numbers = itertools.count(1)


def open_pool(
    address: Address = None,
    *,
    scheduler_file: str | os.PathLike[str] | None = None,
    security: Security | None = None,
    workers: int | None = None,
    retries: int = 0,
    connect_timeout: float = 30.0,
    initializer: Callable[..., object] | None = None,
    initargs: Sequence[Any] = (),
    finalizer: Callable[[], object] | None = None,
    max_tasks_per_worker: int | None = None,
    max_idle: float = 300.0,
    memory_limit: int | None = None,
    serializer: Serializer | None = None,
    preload: Sequence[str] = (),
    stop: StopPolicy | None = None,
    logs: LogTarget = False,
    name: str | None = None,
) -> ClusterPool:
    """Return a :class:`ClusterPool`, to be used in ``async with``.

    :param address: where the cluster is: the address of a Dask scheduler (``"tcp://host:8786"``), a
        sequence of addresses of which the first that answers is taken, a ``distributed.Client``, or
        a cluster object such as ``LocalCluster``. With ``None``, and no ``scheduler_file``, the
        pool starts a cluster of its own on this machine, which ends with it
    :param scheduler_file: the path of a file that the scheduler has written its address to
    :param security: TLS settings; by default those of the client or the cluster object
    :param workers: how many calls may run at once in a cluster of the pool's own; by default as
        many as there are CPUs that this process may use. A cluster that is there has as many as its
        Dask workers have threads
    :param retries: how often a call may be run again when the Dask worker that had it is gone. By
        default it fails, as the function may have had effects
    :param connect_timeout: seconds that it may take to find the scheduler, a worker, and until all
        workers have answered
    :param initializer: as for :func:`creche.open_pool`, in each process on each worker; so are all
        that follow
    :param initargs: its arguments
    :param finalizer: its counterpart
    :param max_tasks_per_worker: how many calls a process serves
    :param max_idle: seconds without a call after which a process ends
    :param memory_limit: bytes of memory of its own that a process may have
    :param serializer: by default :mod:`cloudpickle`, which takes along what the main module and
        notebooks define. Everything else has to be importable on the workers
    :param preload: names of modules to import once a machine, in the fork server there
    :param stop: how processes are stopped
    :param logs: ``True`` has the log records of the functions handled here, by the loggers of the
        same names; a logger has all of them handled by that one
    :param name: the name of the pool
    :raises ValueError: if an argument is out of its range
    :raises TypeError: if an argument is of a wrong type

    ``async with`` raises :exc:`ClusterError` if there is no scheduler or no worker at the address,
    if a worker does not answer, or if they have other versions of Python, Dask or creche; and
    :exc:`creche.SerializationError` if ``initializer`` cannot be pickled. Cancelling it leaves
    nothing behind.
    """
    check_address(address, scheduler_file)
    if isinstance(retries, bool) or not isinstance(retries, int):
        raise TypeError(f"retries must be an integer, not {type(retries).__name__}")
    if retries < 0:
        raise ValueError(f"retries must be 0 or more, not {retries}")
    options = check_options(
        workers=workers,
        min_workers=0,
        spares=0,
        initializer=initializer,
        initargs=initargs,
        finalizer=finalizer,
        max_tasks_per_worker=max_tasks_per_worker,
        max_idle=max_idle,
        memory_limit=memory_limit,
        serializer=cloudpickle if serializer is None else serializer,
        preload=preload,
        stop=stop,
        start_method=None,
        logs=logs,
        name=f"cluster-pool-{next(_numbers)}" if name is None else name,
        stdout=None,
        stderr=None,
    )
    cluster = ClusterOptions(
        address=address,
        scheduler_file=scheduler_file,
        security=security,
        workers=workers,
        retries=retries,
        connect_timeout=check_duration("connect_timeout", connect_timeout),
    )
    return ClusterPool(options, cluster)


class ClusterPool(ProcessPool):
    """Warm processes on the machines of a Dask cluster; made by :func:`open_pool`.

    A :class:`creche.ProcessPool`: ``run``, ``map`` and ``statistics`` are the same, and so are
    timeouts, cancellation and errors. What is added: :exc:`ClusterError`, and
    :exc:`WorkerLostError` for a call whose machine has gone away.
    """

    def __init__(self, options: PoolOptions, cluster: ClusterOptions) -> None:
        super().__init__(options)
        self._cluster = cluster

    def _make_engine(self) -> CallEngine:
        return ClusterEngine(self._options, self._cluster)
