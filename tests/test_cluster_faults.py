"""Machines, schedulers and callers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from cluster_targets import double, sleep, summed
from clusters import MARKS, TIMEOUT, TestCluster, check_retried, pids_in, pool_on, runs, until_gone
from clusters import nothing_left_over as nothing_left_over
from support import until

import creche
from creche.cluster import ClusterError, WorkerLostError

pytestmark = MARKS


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[TestCluster]:
    cluster = TestCluster(tmp_path)
    yield cluster
    cluster.close()


async def test_worker_that_is_killed(cluster: TestCluster, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    errors: list[WorkerLostError] = []

    async def call() -> None:
        with pytest.raises(WorkerLostError, match="tcp://") as caught:
            await pool.run(sleep, str(path))
        errors.append(caught.value)

    async with pool_on(cluster) as pool:
        await cluster.wait_for_workers(pool)
        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                (pid,) = await pids_in(path)
                cluster.worker_of(pid).kill()
        assert isinstance(errors[0], creche.ProcessDied)
        await until_gone(pid)
        assert await pool.run(double, 1) == 2
        assert len(path.read_text().split()) == 1  # it was not run again
        # Its processes are not listed any more, and its place is not counted.
        assert all(errors[0].worker not in worker.name for worker in pool.statistics().workers)
        with anyio.fail_after(TIMEOUT):
            while pool.statistics().workers_alive != 1:
                await pool.run(double, 1)


async def test_worker_that_joins(tmp_path: Path) -> None:
    cluster = TestCluster(tmp_path, 1)
    try:
        async with pool_on(cluster) as pool:
            assert pool.statistics().workers_alive == 1
            cluster.add_worker()
            with anyio.fail_after(TIMEOUT):
                while pool.statistics().workers_alive != 2:
                    await pool.run(double, 1)
            await pool.map(sleep, [str(tmp_path / "pids")] * 4, [0.2] * 4, chunksize=1)
            assert len(set(await pids_in(tmp_path / "pids", 4))) == 2
    finally:
        cluster.close()


async def test_worker_of_another_version_that_joins_later(tmp_path: Path) -> None:
    other = tmp_path / "creche-9.9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: creche\nVersion: 9.9\n")
    cluster = TestCluster(tmp_path, 1)
    try:
        async with pool_on(cluster) as pool:
            assert await pool.run(double, 1) == 2
            cluster.add_worker(path=[tmp_path])
            with (
                anyio.fail_after(TIMEOUT),
                pytest.raises(ClusterError, match=r"has creche 9\.9, and this side has creche 0"),
            ):
                while True:  # until Dask gives it one
                    await pool.map(sleep, [str(tmp_path / "pids")] * 4, [0.1] * 4, chunksize=1)
            with pytest.raises(ClusterError, match=r"the Dask worker tcp://.* has creche 9\.9"):
                async with pool_on(cluster):
                    pass
    finally:
        cluster.close()


async def test_worker_that_is_killed_under_a_map(cluster: TestCluster, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    async with pool_on(cluster) as pool:
        await cluster.wait_for_workers(pool)
        async with anyio.create_task_group() as tasks:

            async def kill() -> None:
                (pid,) = await pids_in(path)
                cluster.worker_of(pid).kill()

            tasks.start_soon(kill)
            with anyio.fail_after(TIMEOUT):
                outcomes = await pool.map(
                    sleep,
                    [str(path), *[str(tmp_path / "others")] * 9],
                    [600, *[0.01] * 9],
                    chunksize=1,
                    on_error="yield",
                )
    assert isinstance(outcomes[0].exception, WorkerLostError)
    failures = [outcome.exception for outcome in outcomes if outcome.exception is not None]
    assert all(isinstance(failure, WorkerLostError) for failure in failures)
    # Up to two tasks a thread, Dask gives them out at once, perhaps all of them to this worker.
    assert len(failures) <= 4, failures


async def test_retries(cluster: TestCluster, tmp_path: Path) -> None:
    await check_retried(cluster, tmp_path / "pids", lambda pid: cluster.worker_of(pid).kill())


async def test_worker_that_is_shut_down(cluster: TestCluster, tmp_path: Path) -> None:
    path = tmp_path / "pids"

    async def call() -> None:
        with pytest.raises(creche.ProcessError):
            await pool.run(sleep, str(path))

    async with pool_on(cluster) as pool:
        await cluster.wait_for_workers(pool)
        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                (pid,) = await pids_in(path)
                cluster.worker_of(pid).terminate()
        await until_gone(pid)
        assert len(path.read_text().split()) == 1


@pytest.mark.slow
async def test_worker_that_hangs(tmp_path: Path) -> None:
    # Dask takes five seconds for the least, whatever it is told.
    cluster = TestCluster(tmp_path, settings={"distributed.scheduler.worker-ttl": "1s"})
    path = tmp_path / "pids"

    async def call() -> None:
        with pytest.raises(WorkerLostError, match="tcp://"):
            await pool.run(sleep, str(path))

    try:
        async with pool_on(cluster) as pool:
            await cluster.wait_for_workers(pool)
            with anyio.fail_after(TIMEOUT):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(call)
                    (pid,) = await pids_in(path)
                    worker = cluster.worker_of(pid)
                    worker.send_signal(signal.SIGSTOP)
            assert await pool.run(double, 1) == 2
        # When it goes on, it hears that it is not wanted any more.
        worker.send_signal(signal.SIGCONT)
        await until_gone(pid)
    finally:
        cluster.close()


async def test_opening_where_a_worker_hangs(cluster: TestCluster) -> None:
    async with pool_on(cluster) as pool:
        await cluster.wait_for_workers(pool)
    cluster.workers[0].send_signal(signal.SIGSTOP)
    with pytest.raises(ClusterError, match="have answered within 5 seconds"):
        async with pool_on(cluster, connect_timeout=5):
            pass


async def test_worker_that_is_killed_with_a_large_argument(tmp_path: Path) -> None:
    cluster = TestCluster(tmp_path, 1)
    data = bytes(3 * 1024 * 1024)
    try:
        with anyio.fail_after(TIMEOUT):
            async with pool_on(cluster) as pool:
                assert await pool.run(summed, data, 1) == len(data) + 1
                cluster.workers[0].kill()
                engine: Any = pool._engine
                (sent,) = engine._connection._data._futures.values()
                await until(lambda: sent.result().status != "finished")
                cluster.add_worker()
                for number in range(3):
                    assert await pool.run(summed, data, number) == len(data) + number
    finally:
        cluster.close()


async def test_scheduler_that_is_killed(cluster: TestCluster, tmp_path: Path) -> None:
    path = tmp_path / "pids"

    async def call() -> None:
        with pytest.raises(ClusterError, match="has gone away"):
            await pool.run(sleep, str(path))

    async with pool_on(cluster) as pool:
        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                (pid,) = await pids_in(path)
                cluster.scheduler.kill()
        with pytest.raises(ClusterError, match="has gone away"):
            await pool.run(double, 1)
        await until_gone(pid)


async def test_leaving_when_an_idle_pool_has_lost_its_scheduler(cluster: TestCluster) -> None:
    async with pool_on(cluster) as pool:
        await cluster.wait_for_workers(pool)  # which take longer to start than to answer
    with anyio.fail_after(TIMEOUT):
        async with pool_on(cluster, connect_timeout=5) as pool:
            assert await pool.run(double, 1) == 2
            cluster.scheduler.kill()
            engine: Any = pool._engine
            connection = engine._connection
            await until(lambda: connection._client.status == "closed")
            # As where it closes itself when the workers are to be told of something.
            assert await engine._thread.run(lambda: connection._on_all(print)) == []


@pytest.mark.slow
async def test_scheduler_that_hangs(cluster: TestCluster, tmp_path: Path) -> None:
    stop = creche.StopPolicy(grace=0, kill_timeout=0)
    with anyio.fail_after(TIMEOUT):
        async with pool_on(cluster, stop=stop) as pool:
            assert await pool.run(double, 1) == 2
            cluster.scheduler.send_signal(signal.SIGSTOP)
            with pytest.raises(creche.ProcessTimeout):
                await pool.run(double, 1, timeout=0.1)


CALLER = """
import sys
import anyio
from cluster_targets import sleep
from creche.cluster import open_pool

async def main():
    async with open_pool(scheduler_file=sys.argv[1]) as pool:
        await pool.run(sleep, sys.argv[2])

if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[3])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_caller_that_dies(
    cluster: TestCluster, tmp_path: Path, anyio_backend: str, number: signal.Signals
) -> None:
    path = tmp_path / "pids"
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, str(cluster.file), str(path), anyio_backend],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stderr=subprocess.DEVNULL,
    )
    (pid,) = await pids_in(path)
    assert runs(pid)
    caller.send_signal(number)
    await until_gone(pid)
    assert caller.wait(TIMEOUT) != 0
