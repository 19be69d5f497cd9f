"""On a Dask worker: runs calls in processes of creche's, and stops them when nobody wants them."""

from __future__ import annotations

import logging
import multiprocessing
from typing import Any

from ._answers import Answers, PickledFailure, PickledValue
from ._dask import DaskWorker, distributed
from ._far_pool import FarPool
from ._requests import PLUGIN_NAME, CallRequest
from ._statistics import FarStatistics
from ._versions import check_late_comer

_logger = logging.getLogger("creche")

# Numbers of calls that were stopped before they came. Newer ones are remembered.
_MAX_STOPPED = 10_000


async def is_set_up(*, dask_worker: DaskWorker) -> bool:
    """Return whether calls can be run here."""
    return dask_worker.id in _hosts


async def run_call(request: CallRequest, key: Any, *parts: bytes) -> tuple[Answers, FarStatistics]:
    """What Dask runs for each call of a pool, in the event loop of the worker."""
    return await _host().run(request, key, parts)


async def stop_calls(
    pool: str, numbers: list[int], *, dask_worker: DaskWorker
) -> FarStatistics | None:
    """Stop calls that run here, and never begin them; return when they are gone."""
    host = _hosts.get(dask_worker.id)
    return None if host is None else await host.stop_calls(pool, numbers)


async def close_pool(pool: str, *, dask_worker: DaskWorker) -> None:
    """End the processes of a pool here; return when they are gone."""
    host = _hosts.get(dask_worker.id)
    if host is not None:
        await host.close_pool(pool)


async def reply(
    pool: str, request: int, outcome: PickledValue | PickledFailure, *, dask_worker: DaskWorker
) -> None:
    """The caller has run what a call has asked it for."""
    host = _hosts.get(dask_worker.id)
    if host is not None and (found := host.pools.get(pool)) is not None:
        found.replied(request, outcome)


class CrecheHost(distributed.WorkerPlugin):  # type: ignore[misc]
    """The pools on one Dask worker. Lives in its event loop.

    Dask tells it when a task is released: because it was cancelled, or because its client is gone.
    Dask itself would let the task run on.
    """

    name = PLUGIN_NAME
    idempotent = True  # one for all pools: another would close those of the one before

    def __init__(self) -> None:
        self.pools: dict[str, FarPool] = {}
        self._keys: dict[Any, tuple[FarPool, int]] = {}
        self._stopped: dict[tuple[str, int], None] = {}  # by age

    def __reduce__(self) -> Any:
        return CrecheHost, ()

    def setup(self, worker: DaskWorker) -> None:
        self.worker = worker
        # A nanny makes its worker a daemonic process. That means that it goes with the nanny, which
        # it does by itself, and that it may have no children, of which creche takes care.
        process = multiprocessing.current_process()
        if process.daemon:
            process.daemon = False
        _hosts[worker.id] = self

    async def teardown(self, worker: DaskWorker) -> None:
        _hosts.pop(worker.id, None)
        for pool in list(self.pools):
            await self.close_pool(pool)

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        if start in ("executing", "long-running") and finish == "released" and key in self._keys:
            pool, number = self._keys[key]
            pool.stop_soon(number)

    async def run(
        self, request: CallRequest, key: Any, parts: tuple[bytes, ...]
    ) -> tuple[Answers, FarStatistics]:
        pool = self.pools.get(request.setup.pool)
        if pool is None:
            check_late_comer(self.worker.address, request.setup.versions)
            pool = FarPool(self.worker, request.setup)
            self.pools[request.setup.pool] = pool
        if (request.setup.pool, request.number) in self._stopped:
            return [], pool.statistics()
        self._keys[key] = pool, request.number
        try:
            answers = await pool.run(request, parts)
            return answers, pool.statistics()
        finally:
            del self._keys[key]

    async def stop_calls(self, name: str, numbers: list[int]) -> FarStatistics | None:
        # Of a pool, too, whose first call is on its way here.
        for number in numbers:
            self._stopped[name, number] = None
            if len(self._stopped) > _MAX_STOPPED:
                del self._stopped[next(iter(self._stopped))]
        pool = self.pools.get(name)
        if pool is None:
            return None
        await pool.stop_calls(numbers)
        return pool.statistics()

    async def close_pool(self, name: str) -> None:
        pool = self.pools.pop(name, None)
        if pool is not None:
            try:
                await pool.close()
            except Exception:
                _logger.exception("a pool on a Dask worker could not be closed")


_hosts: dict[str, CrecheHost] = {}


def _host() -> CrecheHost:
    worker = distributed.get_worker()
    host = _hosts.get(worker.id)
    if host is None:  # it has joined without the plugin: an older scheduler, say
        raise RuntimeError(f"creche is not set up on the Dask worker {worker.address}")
    return host
