"""Where the cluster is, in all the ways in which that can be said."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from .._platform import usable_cpus
from ._dask import Client, distributed

Address = Any
"""An address, or several of which one is enough; a ``Client``; a cluster object such as
``LocalCluster``; ``None`` for a cluster of the pool's own."""


def check_address(address: Address, scheduler_file: str | os.PathLike[str] | None) -> None:
    """Check what was given.

    :raises TypeError: if it is no address
    :raises ValueError: if there are several, or none in a sequence
    """
    if address is None or _is_cluster(address) or isinstance(address, str | distributed.Client):
        pass
    elif isinstance(address, Sequence) and all(isinstance(one, str) for one in address):
        if not address:
            raise ValueError("address is an empty sequence")
    else:
        raise TypeError(
            "address must be an address or a sequence of them, a distributed.Client or a cluster"
            f" such as LocalCluster, not {type(address).__name__}"
        )
    if address is not None and scheduler_file is not None:
        raise ValueError("address and scheduler_file were given: one of them is enough")


async def connect(
    address: Address,
    scheduler_file: str | os.PathLike[str] | None,
    security: Any,
    workers: int | None,
    timeout: float,
    stack: AsyncExitStack,
) -> Client:
    """Return a client of the pool's own, in the event loop of the caller.

    :param stack: closes what was made
    :raises OSError: if there is no scheduler
    """
    arguments: dict[str, Any] = {"asynchronous": True, "timeout": timeout, "set_as_default": False}
    if scheduler_file is not None:
        found = [{"scheduler_file": os.fspath(scheduler_file), "security": security}]
    elif address is None:
        cluster = _own_cluster(workers, security)
        stack.push_async_callback(cluster.close)
        await _start(cluster)
        found = [{"address": cluster.scheduler_address, "security": cluster.security}]
    elif isinstance(address, str):
        found = [{"address": address, "security": security}]
    elif isinstance(address, distributed.Client):
        if address.scheduler is None:
            raise OSError("the Client is not connected")
        where = address.scheduler.address
        found = [{"address": where, "security": security or address.security}]
    elif _is_cluster(address):
        where = address.scheduler_address
        found = [{"address": where, "security": security or address.security}]
    else:
        found = [{"address": one, "security": security} for one in address]
    errors: list[OSError] = []
    for one in found:
        try:
            client: Any = distributed.Client(**one, **arguments)
            stack.push_async_callback(client.close)
            return await client
        except OSError as error:
            errors.append(error)
    raise errors[-1]


async def _start(cluster: Any) -> None:
    """Start a cluster; wait for that where it is cancelled: Dask closes none that is half started,
    and would leave its workers behind."""

    async def start() -> None:
        await cluster.__aenter__()

    starting = asyncio.ensure_future(start())
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait([starting])
        raise


def _own_cluster(workers: int | None, security: Any) -> Any:
    # One Dask worker for all: it makes processes enough.
    return distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=workers or usable_cpus(),
        processes=True,
        dashboard_address=":0",
        asynchronous=True,
        security=security,
    )


def _is_cluster(address: Any) -> bool:
    return hasattr(address, "scheduler_address") and hasattr(address, "security")
