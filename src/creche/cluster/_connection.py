"""The caller's connection to the cluster: everything in here runs in its own thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import pickle
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from .._errors import reason_of
from .._loops import Latch
from . import _far
from ._address import Address, connect
from ._answers import Answers
from ._dask import distributed
from ._data import ScatteredData
from ._errors import ClusterError, WorkerLostError
from ._requests import CallRequest, Event, PoolSetup, topic_of
from ._scheduler_plugin import make_plugin, task_group
from ._statistics import FarStatistics
from ._versions import check_versions

# What a Dask worker may take longer to stop a call than the stop policy says: it has to hear of it.
_STOP_SECONDS = 10.0

# How long the results of calls that are over may stay in Dask's memory when no call follows. The
# client sends a message each 10 ms at most. One that only releases a result would hold up the next
# call for so long; so it goes with that call.
_RELEASE_SECONDS = 0.1

# How often it is asked whether creche is set up on all workers, while another pool does that.
_SET_UP_SECONDS = 0.02

# How often it is asked which workers there are, while calls begin.
_COUNT_SECONDS = 1.0

Receive = Callable[[Answers | BaseException], object]


class Connection:
    """Makes Dask tasks of calls.

    :param on_workers: called with the addresses of the Dask workers, and how many calls each runs
        at once
    :param on_statistics: called with what one tells about the processes of the pool there
    :param on_event: called with what a worker tells about a call
    :param on_lost: called when the scheduler is gone
    """

    def __init__(
        self,
        setup: PoolSetup,
        retries: int,
        data: ScatteredData,
        on_workers: Callable[[dict[str, int]], object],
        on_statistics: Callable[[FarStatistics], object],
        on_event: Callable[[Event], object],
        on_lost: Callable[[ClusterError], object],
    ) -> None:
        self.address = ""
        self._setup = setup
        self._group = task_group(setup.pool, retries)
        self._data = data
        self._on_workers = on_workers
        self._on_statistics = on_statistics
        self._on_event = on_event
        self._on_lost = on_lost
        self._stack = AsyncExitStack()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._futures: dict[int, Any] = {}
        self._ended: list[Any] = []  # futures that are not released yet
        self._releasing: asyncio.TimerHandle | None = None
        self._to_stop: dict[int, Latch] = {}  # of which the workers have not been told
        self._stopping: dict[int, Latch] = {}
        self._lost: ClusterError | None = None
        self._opened = False
        self._counted = 0.0  # when that began last
        self._counting: asyncio.Task[None] | None = None

    async def open(
        self,
        address: Address,
        scheduler_file: str | os.PathLike[str] | None,
        security: Any,
        workers: int | None,
        timeout: float,
    ) -> None:
        """Connect, and see to it that all workers can serve calls.

        :raises ClusterError: if that cannot be done
        """
        try:
            self._client = await connect(
                address, scheduler_file, security, workers, timeout, self._stack
            )
            self.address = self._client.scheduler.address
            await _within(timeout, self._client.wait_for_workers(1), "no Dask worker has come")
            await _within(timeout, self._set_up(), "not all Dask workers have answered")
            self._opened = True
        except ClusterError:
            await self._stack.aclose()
            raise
        except (OSError, TimeoutError, ValueError) as error:
            await self._stack.aclose()
            where = self.address or scheduler_file or address or "a cluster of its own"
            raise ClusterError(
                f"cannot open {self._setup.name!r} on {where}: {reason_of(error)}"
            ) from error
        except BaseException:
            await self._stack.aclose()
            raise

    async def _set_up(self) -> None:
        await check_versions(self._client)
        await self._client.register_plugin(make_plugin())
        await self._client.register_plugin(_far.CrecheHost())
        # Where it is there already, Dask does not wait: another pool may be at it just now.
        while not await self._are_set_up():  # noqa: ASYNC110
            await asyncio.sleep(_SET_UP_SECONDS)
        self._client.subscribe_topic(topic_of(self._setup.pool), self._receive_event)
        await self.count_workers()

    async def _are_set_up(self) -> bool:
        # A worker that is gone by now gives an error.
        return False not in (await self._client.run(_far.is_set_up, on_error="return")).values()

    async def count_workers(self) -> None:
        """See which workers there are."""
        self._on_workers(dict(await self._client.nthreads()))

    async def close(self) -> None:
        """End the pool's processes on all workers, and the connection."""
        for task in self._tasks.values():
            task.cancel()
        if self._counting is not None:
            self._counting.cancel()
        self._release_ended()
        try:
            # It is closed when it has not found the scheduler again, of which no call has told us.
            running = self._opened and self._client.status == "running"
            if running and self._lost is None:
                await self._on_all(_far.close_pool, self._setup.pool)
        finally:
            self._data.clear()
            await self._stack.aclose()

    # --- calls ----------------------------------------------------------------------------------

    def begin(self, request: CallRequest, receive: Receive) -> None:
        if time.monotonic() > self._counted + _COUNT_SECONDS:
            self._count_soon()
        task = asyncio.ensure_future(self._run(request, receive))
        self._tasks[request.number] = task
        task.add_done_callback(lambda _: self._tasks.pop(request.number, None))

    def stop(self, number: int, stopped: Latch) -> None:
        """See to it that a call does not run any longer; then set the latch."""
        future = self._futures.pop(number, None)
        task = self._tasks.get(number)
        if task is not None:
            task.cancel()
        if future is None or self._lost is not None or future.done():
            stopped.set()
            return
        if not self._to_stop:
            asyncio.get_running_loop().call_soon(self._stop_all)
        self._to_stop[number] = stopped
        self._keep(future.cancel())

    def _stop_all(self) -> None:
        """Tell the workers of all calls that are to be stopped together."""
        numbers = list(self._to_stop)
        self._stopping.update(self._to_stop)
        self._to_stop.clear()

        async def stop() -> None:
            try:
                for answer in await self._on_all(_far.stop_calls, self._setup.pool, numbers):
                    if isinstance(answer, FarStatistics):
                        self._on_statistics(answer)
            finally:
                for number in numbers:
                    self._stopped(number)

        self._keep(stop())

    def _stopped(self, number: int) -> None:
        stopped = self._stopping.pop(number, None)
        if stopped is not None:
            stopped.set()

    async def _run(self, request: CallRequest, receive: Receive) -> None:
        number = request.number
        try:
            if self._lost is not None:
                raise self._lost
            if self._client.status != "running":
                raise self._lose()
            key = self._group, number
            parts = await self._data.of(self._client, request.frame)
            self._release_ended()
            future = self._client.submit(_far.run_call, request, key, *parts, key=key, pure=False)
            self._futures[number] = future
            answers, statistics = await future
            self._on_statistics(statistics)
        except asyncio.CancelledError as error:
            if number in self._futures:  # or else it was called off
                receive(self._explain(error))
        except BaseException as error:
            receive(self._explain(error))
        else:
            receive(answers)
        finally:
            if (ended := self._futures.pop(number, None)) is not None:
                self._release_soon(ended)

    def _release_soon(self, future: Any) -> None:
        self._ended.append(future)
        if self._releasing is None:
            loop = asyncio.get_running_loop()
            self._releasing = loop.call_later(_RELEASE_SECONDS, self._release_ended)

    def _release_ended(self) -> None:
        if self._releasing is not None:
            self._releasing.cancel()
            self._releasing = None
        for future in self._ended:
            future.release()
        self._ended.clear()

    def _explain(self, error: BaseException) -> BaseException:
        if isinstance(error, distributed.KilledWorker):
            killed: Any = error
            self._count_soon()
            return WorkerLostError(killed.last_worker.address)
        if isinstance(error, ClusterError):
            return error
        if isinstance(error, asyncio.CancelledError | concurrent.futures.CancelledError):
            if getattr(error, "reason", None) != "scheduler-connection-lost":
                return ClusterError(
                    f"Dask has cancelled a call of {self._setup.name!r} on {self.address}: {error}"
                )
            return self._lose()
        return ClusterError(
            f"a Dask worker of {self.address} could not run a call of {self._setup.name!r}"
            f" ({reason_of(error)})"
        )

    def _lose(self) -> ClusterError:
        if self._lost is None:
            self._lost = ClusterError(
                f"the scheduler at {self.address} of {self._setup.name!r} has gone away. What ran"
                " is stopped; open another pool when there is a scheduler again"
            )
            self._on_lost(self._lost)
        return self._lost

    # --- workers --------------------------------------------------------------------------------

    def reply(self, worker: str, *args: Any) -> None:
        """Give a worker the reply to what it has asked for."""
        self._keep(
            self._client.run(
                _far.reply, self._setup.pool, *args, workers=[worker], on_error="return"
            )
        )

    async def _on_all(self, func: Callable[..., Any], *args: Any) -> list[Any]:
        """Call something on all workers; return what has come back, be it an error."""
        policy = self._setup.stop
        seconds = policy.grace + policy.kill_timeout + _STOP_SECONDS
        run: Any = self._client.run(func, *args, on_error="return")
        try:
            return list((await asyncio.wait_for(run, seconds)).values())
        except (OSError, TimeoutError, ValueError):
            return []  # the worker is gone, and what ran on it; or it hangs
        except Exception:
            if self._client.status == "running":
                raise
            return []  # a client that has closed itself raises what comes

    def _count_soon(self) -> None:
        async def count() -> None:
            # Where the scheduler is gone, the calls will say so.
            with contextlib.suppress(OSError, RuntimeError):
                await self.count_workers()

        if self._counting is None or self._counting.done():
            self._counted = time.monotonic()
            self._counting = asyncio.ensure_future(count())

    def _receive_event(self, event: tuple[float, Event]) -> None:
        message = event[1]
        if "stopped" in message:
            self._on_statistics(pickle.loads(message["statistics"]))
            self._stopped(message["stopped"])
        else:
            self._on_event(message)

    def _keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        _kept.add(task)
        task.add_done_callback(_kept.discard)


async def _within(seconds: float, work: Awaitable[object], otherwise: str) -> None:
    try:
        await asyncio.wait_for(work, seconds)
    except TimeoutError as error:
        raise TimeoutError(f"{otherwise} within {seconds:g} seconds") from error


_kept: set[Any] = set()
