"""Dask clusters of separate processes on the loopback interface."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from cluster_targets import sleep_in_first_run
from dask_apart import distributed as distributed
from support import TIMEOUT

import creche
import creche.cluster

TESTS = Path(__file__).parent

MARKS = [
    pytest.mark.anyio,
    # Dask's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(autouse=True)
def nothing_left_over(machinery: None) -> Iterator[None]:
    """What Dask keeps is its own affair, and what creche keeps on its workers goes with them.

    In modules that import it, it takes the place of the one of ``conftest``.
    """
    yield
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("creche-cluster")]


class TestCluster:
    """A scheduler and its workers.

    :param tls: arguments of Dask's for TLS
    :param host: the address of the machine that the scheduler is on
    :param settings: of Dask's, for the scheduler and the workers
    """

    __test__ = False

    def __init__(
        self,
        folder: Path,
        workers: int = 2,
        *,
        nanny: bool = False,
        tls: Any = (),
        host: str = "127.0.0.1",
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.file = folder / "scheduler.json"
        self._folder = folder
        self._nanny = nanny
        self._tls = list(tls)
        self.workers: list[subprocess.Popen[bytes]] = []
        # As environment variables: https://docs.dask.org/en/stable/configuration.html
        self._settings = {
            f"DASK_{name.upper().replace('.', '__').replace('-', '_')}": str(value)
            for name, value in (settings or {}).items()
        }
        self.scheduler = self._start("dask_scheduler", "--host", host, "--port", "0")
        for _ in range(workers):
            self.add_worker()

    def add_worker(self, host: str = "127.0.0.1", path: Sequence[str | Path] = ()) -> None:
        """Add a worker.

        :param path: where it finds packages first
        """
        worker = self._start(
            "dask_worker",
            *("--nthreads", "1", "--host", host),
            *("--nanny" if self._nanny else "--no-nanny", "--local-directory", str(self._folder)),
            path=path,
        )
        self.workers.append(worker)

    def _start(
        self, program: str, *arguments: str, path: Sequence[str | Path] = ()
    ) -> subprocess.Popen[bytes]:
        code = f"from distributed.cli.{program} import main; main()"
        command = [sys.executable, "-c", code, "--no-dashboard"]
        command += ["--scheduler-file", str(self.file), *self._tls, *arguments]
        folders = [*map(str, path), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        with (self._folder / f"{program}-{len(self.workers)}.log").open("wb") as log:
            return subprocess.Popen(
                command,
                env={**os.environ, **self._settings, "PYTHONPATH": os.pathsep.join(folders)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    async def warm_up(self) -> None:
        """Start what creche keeps on the workers, so that no test waits for it."""
        async with creche.cluster.open_pool(scheduler_file=self.file) as pool:
            await self.wait_for_workers(pool)
            await pool.map(time.sleep, [0.1] * 4, chunksize=1)

    async def wait_for_workers(self, pool: creche.cluster.ClusterPool) -> None:
        engine: Any = pool._engine
        with anyio.fail_after(TIMEOUT):
            while pool.statistics().workers_alive < len(self.workers):
                await engine._thread.run(engine._connection.count_workers)

    def worker_of(self, pid: int) -> subprocess.Popen[bytes]:
        """The Dask worker that a process of creche's belongs to."""
        above = {process.pid for process in psutil.Process(pid).parents()}
        return next(worker for worker in self.workers if worker.pid in above)


def pool_on(cluster: TestCluster, **options: Any) -> creche.cluster.ClusterPool:
    options.setdefault("stop", creche.StopPolicy(grace=1))
    return creche.cluster.open_pool(scheduler_file=cluster.file, **options)


async def check_retried(cluster: TestCluster, path: Path, lose: Callable[[int], object]) -> int:
    """Check that a call is run again whose process is lost; return which that was."""
    values: list[int] = []

    async def call() -> None:
        values.append(await pool.run(sleep_in_first_run, str(path)))

    async with pool_on(cluster, retries=1) as pool:
        await cluster.wait_for_workers(pool)
        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                (pid,) = await pids_in(path)
                lose(pid)
    assert values == [2]
    return pid


async def pids_in(path: Path, number: int = 1) -> list[int]:
    """Wait until so many functions have said that they run."""
    with anyio.fail_after(TIMEOUT):
        while not path.exists() or len(path.read_text().split()) < number:
            await anyio.sleep(0.005)
    return [int(pid) for pid in path.read_text().split()]


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until_gone(pid: int, seconds: float = TIMEOUT) -> None:
    with anyio.fail_after(seconds):
        while runs(pid):
            await anyio.sleep(0.005)
