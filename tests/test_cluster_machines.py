"""Machines that are cut off: the kernel of nobody says so, as it does when a process dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import machines
import pytest
from cluster_targets import double, sleep, sleep_and_clean_up, wait_for
from clusters import MARKS, TIMEOUT, TestCluster, check_retried, pids_in, pool_on, runs, until_gone
from clusters import nothing_left_over as nothing_left_over
from dask_apart import dask
from machines import Machine, Network

import creche
from creche.cluster import WorkerLostError

pytestmark = [*MARKS, pytest.mark.slow, pytest.mark.timeout(300)]

# The least that Dask accepts. It is 30 by default.
TCP_SECONDS = 11
SETTINGS = {"distributed.comm.timeouts.tcp": f"{TCP_SECONDS}s"}

# Within which time somebody hears of it. The kernel's timers add some, and so does a busy machine.
NOTICED_SECONDS = 3 * TCP_SECONDS


@pytest.fixture
def network() -> Iterator[Network]:
    """The scheduler's machine, on which the test runs as well."""
    reason = machines.why_not()
    if reason is not None:
        pytest.skip(reason)
    network = Network()
    yield network
    network.close()


@pytest.fixture
def far(network: Network) -> list[Machine]:
    return [network.add_machine(), network.add_machine()]


@pytest.fixture
def cluster(network: Network, far: list[Machine], tmp_path: Path) -> Iterator[TestCluster]:
    cluster = TestCluster(tmp_path, 0, host=network.address, settings=SETTINGS)
    try:
        for machine in far:
            with machine.inside():
                cluster.add_worker(machine.address)
        with dask.config.set(SETTINGS):
            yield cluster
    finally:
        cluster.close()


def machine_of(pid: int, among: list[Machine]) -> Machine:
    return next(machine for machine in among if machine.runs(pid))


async def test_machine_that_is_cut_off(
    cluster: TestCluster, far: list[Machine], tmp_path: Path
) -> None:
    path, go_on = tmp_path / "pids", tmp_path / "go-on"
    seen: list[str] = []
    lost: list[WorkerLostError] = []

    async def call() -> None:
        try:
            seen.append(await pool.run(wait_for, str(path), str(go_on)))
        except WorkerLostError as error:
            lost.append(error)
            go_on.touch()

    async with pool_on(cluster) as pool:
        await cluster.wait_for_workers(pool)
        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                for _ in far:
                    tasks.start_soon(call)
                pids = await pids_in(path, 2)
                assert [sum(map(machine.runs, pids)) for machine in far] == [1, 1]
                (pid,) = filter(far[0].runs, pids)
                began = time.monotonic()
                far[0].unplug()
        assert time.monotonic() - began < NOTICED_SECONDS
        assert seen == ["seen"]
        assert lost[0].worker.startswith(f"tcp://{far[0].address}:")
        assert await pool.run(double, 1) == 2
        # Nobody can tell the machine; it finds out by itself, and stops what it runs.
        await until_gone(pid, NOTICED_SECONDS)
    assert len(pids) == len(path.read_text().split())  # nothing was run again


async def test_retries(cluster: TestCluster, far: list[Machine], tmp_path: Path) -> None:
    pid = await check_retried(cluster, tmp_path / "pids", lambda pid: machine_of(pid, far).unplug())
    await until_gone(pid, NOTICED_SECONDS)


async def test_short_break(cluster: TestCluster, far: list[Machine], tmp_path: Path) -> None:
    path, go_on = tmp_path / "pids", tmp_path / "go-on"
    seen: list[str] = []

    async def call() -> None:
        seen.append(await pool.run(wait_for, str(path), str(go_on)))

    async with pool_on(cluster) as pool:
        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                (pid,) = await pids_in(path)
                machine = machine_of(pid, far)
                machine.unplug()
                go_on.touch()
                while not (Path(f"{path}.over").exists() and machine.repeats_itself()):
                    await anyio.sleep(0.01)
                machine.plug_in()
    assert seen == ["seen"]


async def test_cancellation(cluster: TestCluster, far: list[Machine], tmp_path: Path) -> None:
    path = tmp_path / "pids"
    async with pool_on(cluster, stop=creche.StopPolicy(grace=TIMEOUT)) as pool:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run, sleep_and_clean_up, str(path))
            (pid,) = await pids_in(path)
            assert any(machine.runs(pid) for machine in far)
            tasks.cancel_scope.cancel()
        assert not runs(pid)
        assert Path(f"{path}.clean").exists()


async def test_cancellation_while_another_machine_is_cut_off(
    cluster: TestCluster, far: list[Machine], tmp_path: Path
) -> None:
    lost: list[WorkerLostError] = []

    async def call_until_lost(path: Path) -> None:
        with pytest.raises(WorkerLostError) as caught:
            await pool.run(sleep, str(path))
        lost.append(caught.value)

    async with pool_on(cluster) as pool:
        await cluster.wait_for_workers(pool)
        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as outer:
                outer.start_soon(call_until_lost, tmp_path / "first")
                (first,) = await pids_in(tmp_path / "first")
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(pool.run, sleep, str(tmp_path / "second"))
                    (second,) = await pids_in(tmp_path / "second")
                    machine_of(first, far).unplug()
                    tasks.cancel_scope.cancel()
                assert not runs(second)
                assert not lost  # it has not taken so long
        assert lost


async def test_cancellation_where_nobody_hears_of_it(
    cluster: TestCluster, far: list[Machine], tmp_path: Path
) -> None:
    path = tmp_path / "pids"
    async with pool_on(cluster, stop=creche.StopPolicy(grace=0, kill_timeout=0)) as pool:
        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.run, sleep, str(path))
                (pid,) = await pids_in(path)
                began = time.monotonic()
                machine_of(pid, far).unplug()
                tasks.cancel_scope.cancel()
            assert time.monotonic() - began < NOTICED_SECONDS
        # The machine finds out by itself.
        await until_gone(pid, NOTICED_SECONDS)


CALLER = """
import sys
import anyio
from cluster_targets import sleep
from creche.cluster import ClusterError, open_pool

async def main():
    async with open_pool(scheduler_file=sys.argv[1]) as pool:
        try:
            await pool.run(sleep, sys.argv[2])
        except ClusterError as error:
            assert "has gone away" in str(error)
        else:
            sys.exit("the call has ended")

if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[3])
"""


@pytest.mark.parametrize("how", ["killed", "cut off"])
async def test_caller_that_is_lost(
    network: Network, cluster: TestCluster, tmp_path: Path, anyio_backend: str, how: str
) -> None:
    path = tmp_path / "pids"
    home = network.add_machine()
    with home.inside():
        caller = subprocess.Popen(
            [sys.executable, "-c", CALLER, str(cluster.file), str(path), anyio_backend],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{TCP_SECONDS}s",
            },
        )
    try:
        (pid,) = await pids_in(path)
        assert not home.runs(pid)
        if how == "killed":
            caller.kill()
            await until_gone(pid)
        else:
            home.unplug()
            await until_gone(pid, NOTICED_SECONDS)
            with anyio.fail_after(TIMEOUT):
                while caller.poll() is None:
                    await anyio.sleep(0.05)
            assert caller.returncode == 0
    finally:
        caller.kill()
        caller.wait()
