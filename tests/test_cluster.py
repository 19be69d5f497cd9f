"""The pool's interface on a Dask cluster."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import pickle
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import psutil
import pytest
from cluster_targets import (
    ask_caller,
    ask_caller_to_fail,
    async_ask_caller,
    async_double,
    double,
    exit_at,
    fail,
    fail_at,
    get_state,
    initialize,
    log,
    report_up_to,
    sleep,
    sleep_and_clean_up,
    summed,
    wait_for,
)
from clusters import MARKS, TestCluster, distributed, pids_in, pool_on, runs
from clusters import nothing_left_over as nothing_left_over
from support import TIMEOUT, until

import creche
from creche._pool._chunks import Chunk, Part
from creche._wire._outcomes import Value
from creche._wire._payloads import Payload
from creche.cluster import ClusterError, _data, open_pool
from creche.cluster._data import ScatteredData
from creche.cluster._far import CrecheHost, stop_calls
from creche.cluster._far_calls import FarCall, FarChunk
from creche.cluster._far_pool import FarPool
from creche.cluster._frames import Relayed, make_frame
from creche.cluster._requests import CallRequest
from creche.cluster._versions import check_found

pytestmark = MARKS


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCluster]:
    cluster = TestCluster(tmp_path_factory.mktemp("cluster"))
    try:
        anyio.run(cluster.warm_up)
        yield cluster
    finally:
        cluster.close()


async def test_calls(cluster: TestCluster, anyio_backend: str) -> None:
    async with pool_on(cluster) as pool:
        assert await pool.run(double, 21) == 42
        assert await pool.run(async_double, 21) == (42, anyio_backend)
        assert await pool.run(lambda: 3) == 3
        with pytest.raises(LookupError, match="that") as caught:
            await pool.run(fail, "that")
        assert "in fail" in str(caught.value.__cause__)
        statistics = pool.statistics()
        assert (statistics.calls_done, statistics.calls_failed) == (3, 1)
    with pytest.raises(creche.ProcessClosedError):
        await pool.run(double, 1)


async def test_two_pools_at_once(cluster: TestCluster, tmp_path: Path) -> None:
    path, other = tmp_path / "pids", tmp_path / "other"
    seen: list[str] = []

    async def call() -> None:
        seen.append(await first.run(wait_for, str(path), str(other)))

    with anyio.fail_after(TIMEOUT):
        async with pool_on(cluster) as first, anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await pids_in(path)
            async with pool_on(cluster) as second:
                assert await second.run(double, 1) == 2
            other.touch()
    assert seen == ["seen"]


async def test_opening_while_another_pool_sets_the_workers_up(cluster: TestCluster) -> None:
    async def remove(dask_worker: Any) -> None:
        await dask_worker.plugin_remove(name=CrecheHost.name)

    async def add(dask_worker: Any) -> None:
        await dask_worker.plugin_add(CrecheHost(), name=CrecheHost.name)

    async def call() -> None:
        async with pool_on(cluster) as pool:
            opened.set()
            assert await pool.run(double, 1) == 2

    async with pool_on(cluster) as pool:
        address = pool._engine._connection.address  # type: ignore[attr-defined]
    opened = anyio.Event()
    with distributed.Client(address, set_as_default=False) as client, anyio.fail_after(TIMEOUT):
        await anyio.to_thread.run_sync(client.run, remove)  # the scheduler knows nothing of that
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            with anyio.move_on_after(0.5):
                await opened.wait()
            too_early = opened.is_set()
            await anyio.to_thread.run_sync(client.run, add)
    assert not too_early


async def test_statistics_of_processes(cluster: TestCluster, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    async with pool_on(cluster, name="pool") as pool:
        assert pool.statistics().workers == ()
        await pool.map(sleep, [str(path)] * 4, [0.1] * 4, chunksize=1)
        workers = pool.statistics().workers
        assert {worker.pid for worker in workers} == set(await pids_in(path, 4))
        assert sum(worker.tasks for worker in workers) == 4
        for worker in workers:
            assert re.fullmatch(r"pool-worker-\d on tcp://127\.0\.0\.1:\d+", worker.name)
            assert worker.state == "idle"
            assert worker.seconds_busy > 0.1

        with pytest.raises(creche.ProcessDied):
            await pool.run(os._exit, 1)
        assert pool.statistics().restarts == 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run, sleep, str(path))
            await pids_in(path, 5)
            tasks.cancel_scope.cancel()
        assert pool.statistics().restarts == 2


async def test_many_calls_at_once(cluster: TestCluster) -> None:
    results: list[int] = []

    async def call(number: int) -> None:
        results.append(await pool.run(double, number))

    async with pool_on(cluster) as pool, anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(call, number)
    assert sorted(results) == [2 * number for number in range(50)]


async def test_map(cluster: TestCluster) -> None:
    async with pool_on(cluster) as pool:
        assert await pool.map(double, range(30_000)) == [2 * n for n in range(30_000)]
        assert await pool.map(pow, [2, 3], [3, 2]) == [8, 9]
        values = [value async for value in pool.map(async_double, range(3))]
        assert [value for value, _ in values] == [0, 2, 4]


async def test_map_with_failures(cluster: TestCluster) -> None:
    async with pool_on(cluster) as pool:
        with pytest.raises(LookupError, match="70"):
            await pool.map(functools.partial(fail_at, 70), range(100))
        outcomes = await pool.map(functools.partial(exit_at, 70), range(100), on_error="yield")
        assert outcomes[70].index == 70
        assert isinstance(outcomes[70].exception, creche.ProcessDied)
        assert outcomes[70].exception.exitcode == 7
        # What was done shortly before goes with the process, and says so; nothing else does.
        assert [outcome.value for outcome in outcomes[71:]] == list(range(71, 100))


async def test_map_that_is_left_early(cluster: TestCluster, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    async with pool_on(cluster) as pool:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.map(sleep, [str(path)] * 5, chunksize=1).__anext__)
            pids = await pids_in(path, 2)
            tasks.cancel_scope.cancel()
        assert not any(map(runs, pids))
        assert await pool.run(double, 1) == 2


async def test_loss_of_the_scheduler_under_a_map(cluster: TestCluster, tmp_path: Path) -> None:
    async def take() -> None:
        with pytest.raises(ClusterError, match="as if"):
            await pool.map(sleep, [str(path)] * 6, chunksize=1)

    async def call() -> None:
        with pytest.raises(ClusterError, match="as if"):
            await pool.run(sleep, str(path))

    path = tmp_path / "pids"
    async with pool_on(cluster) as pool:
        engine: Any = pool._engine
        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take)
                await pids_in(path, 2)
                chunks = len(engine.running)
                assert chunks > 1
                tasks.start_soon(call)
                await until(lambda: len(engine.running) > chunks)
                engine._on_lost(ClusterError("as if"))
        assert not engine.running


class MapOwner:
    """A map that only keeps account."""

    timeout = None

    def __init__(self) -> None:
        self.outcomes: list[Any] = []

    def add_part(self, part: Part, seconds: float) -> None:
        self.outcomes += part.give_out(yields_errors=True)

    def give_back(self, start: int, items: Sequence[Any], *, alone: bool) -> None:
        raise NotImplementedError

    def chunk_sent(self, chunk: Chunk) -> None:
        raise NotImplementedError

    def break_off(self, error: BaseException) -> None:
        raise error

    def chunk_died(self) -> None:
        pass

    def chunk_ended(self, chunk: Chunk) -> None:
        pass


async def test_large_answer_that_comes_after_the_death() -> None:
    far = FarChunk(Payload([], heavy=False), bool, bool, bool, "there")
    far.answers = 1  # a thread copies it
    far.died(creche.ProcessDied(1), 2)
    far.deliver(0, False, 0.1, Value(Relayed(pickle.dumps(["here"]))))
    assert far.done

    pool = open_pool("tcp://127.0.0.1:1")
    pool._open()
    try:
        engine: Any = pool._engine
        owner = MapOwner()
        engine._deliver(Chunk(owner, 0, ["a", "b"]), engine._load(far.gathered))
    finally:
        await pool._stop()
    first, second = owner.outcomes
    assert (first.value, first.exception) == ("here", None)
    assert isinstance(second.exception, creche.ProcessDied)


def test_timeout_of_an_item_that_is_sent_twice() -> None:
    class Engine:
        """Sends a call to a process that dies before it begins, and then to another one."""

        def submit(self, call: FarCall) -> None:
            call.sent()
            call.sent()
            states.append([timer.cancelled() for timer in timers])
            call.deliver(0, True, 0.1, Value(Relayed(b"")))

        def forget(self, call: FarCall) -> None:
            pass

    def call_later(seconds: float, *callback: Any) -> asyncio.TimerHandle:
        timers.append(asyncio.get_running_loop().call_later(seconds, *callback))
        return timers[-1]

    async def check() -> None:
        state = SimpleNamespace(nthreads=1)
        worker: Any = SimpleNamespace(address="there", id="worker", state=state)
        caller: Any = open_pool("tcp://127.0.0.1:1")._make_engine()
        pool: Any = FarPool(worker, caller._setup)
        engine, pool._engine = pool._engine, Engine()
        pool._loop = SimpleNamespace(call_later=call_later)
        await pool.run(CallRequest(caller._setup, 1, True, 600.0, False, make_frame(b"")), ())
        pool._engine = engine
        await pool.close()

    timers: list[asyncio.TimerHandle] = []
    states: list[list[bool]] = []
    asyncio.run(check())
    assert states == [[True, False]]
    assert timers[1].cancelled()


async def test_timeout_of_items(cluster: TestCluster, tmp_path: Path) -> None:
    async with pool_on(cluster) as pool:
        outcomes = await pool.map(
            # The second one has as much time: on a busy machine, that may be no moment.
            sleep,
            [str(tmp_path / "pids")] * 2,
            [600, 0],
            timeout=4,
            on_error="yield",
        )
    assert isinstance(outcomes[0].exception, creche.ProcessTimeout)
    assert outcomes[1].exception is None


async def test_cancellation(cluster: TestCluster, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    async with pool_on(cluster, stop=creche.StopPolicy(grace=TIMEOUT)) as pool:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run, sleep_and_clean_up, str(path))
            (pid,) = await pids_in(path)
            tasks.cancel_scope.cancel()
        assert not runs(pid)
        assert Path(f"{path}.clean").exists()
        # Its slot is free, and so are those of calls that had not begun.
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(pool.run, sleep, str(path))
            pids = await pids_in(path, 3)
            tasks.cancel_scope.cancel()
        assert not any(map(runs, pids))
        assert await pool.run(double, 1) == 2
        assert len(path.read_text().split()) == 3
        assert pool.statistics().calls_cancelled == 11


async def test_first_call_of_a_pool_that_comes_after_it_was_stopped(cluster: TestCluster) -> None:
    async with pool_on(cluster) as pool:
        connection: Any = pool._engine._connection  # type: ignore[attr-defined]
        name = connection._setup.pool
        with distributed.Client(connection.address, set_as_default=False) as client:
            await anyio.to_thread.run_sync(client.run, stop_calls, name, [1])
        with anyio.fail_after(TIMEOUT):
            with pytest.raises(ClusterError, match="was lost"):  # there is no answer
                await pool.run(double, 1)
            assert await pool.run(double, 2) == 4


async def test_timeout(cluster: TestCluster, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    async with pool_on(cluster) as pool:
        # Start the processes, which may take longer than that.
        await pool.map(sleep, [str(tmp_path / "others")] * 4, [0.2] * 4, chunksize=1)
        with pytest.raises(creche.ProcessTimeout):
            await pool.run(sleep, str(path), timeout=1)
        # On a busy machine, it may not even have begun.
        pids = await pids_in(path) if path.exists() else []
        assert not any(map(runs, pids))


async def test_leaving_by_an_error_stops_what_runs(cluster: TestCluster, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    failed = False

    async def call() -> None:
        nonlocal failed
        with pytest.raises(creche.ProcessClosedError):
            await pool.run(sleep, str(path))
        failed = True

    async with anyio.create_task_group() as tasks:
        with pytest.raises(ZeroDivisionError):
            async with pool_on(cluster) as pool:
                tasks.start_soon(call)
                (pid,) = await pids_in(path)
                raise ZeroDivisionError
        assert not runs(pid)
    assert failed


async def test_death_of_the_process(cluster: TestCluster) -> None:
    async with pool_on(cluster) as pool:
        with pytest.raises(creche.ProcessDied, match="exit code 5"):
            await pool.run(os._exit, 5)
        assert await pool.run(double, 1) == 2


async def test_progress(cluster: TestCluster) -> None:
    reported: list[creche.Progress] = []
    async with pool_on(cluster) as pool:
        await pool.run(report_up_to, 1000, on_progress=reported.append)
    assert reported[-1] == creche.Progress(1000, 1000)


async def test_logs(cluster: TestCluster) -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append((record.name, record.getMessage()))

    messages: list[tuple[str, str]] = []
    logger = logging.Logger("here")
    logger.addHandler(Handler())
    async with pool_on(cluster, logs=logger) as pool:
        await pool.run(log, "from afar")
        with anyio.fail_after(TIMEOUT):
            while not messages:
                await anyio.sleep(0.01)
    assert messages == [("far", "from afar")]


async def test_instruments(cluster: TestCluster, tmp_path: Path) -> None:
    class Listener(creche.Instrument):
        def __init__(self) -> None:
            self.ended: list[tuple[str, str | None]] = []

        def call_finished(self, call: creche.ObservedCall) -> None:
            self.ended.append((call.func, call.status))

    listener = Listener()
    creche.add_instrument(listener)
    try:
        async with pool_on(cluster) as pool:
            assert await pool.run(double, 1) == 2
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.run, sleep, str(tmp_path / "pids"))
                await pids_in(tmp_path / "pids")
                tasks.cancel_scope.cancel()
    finally:
        creche.remove_instrument(listener)
    assert listener.ended == [
        ("cluster_targets.double", "ok"),
        ("cluster_targets.sleep", "cancelled"),
    ]


async def test_requests_to_the_caller(cluster: TestCluster) -> None:
    async with pool_on(cluster) as pool:
        assert await pool.run(ask_caller, 1) == (2, os.getpid())
        assert await pool.run(async_ask_caller, 2) == (3, os.getpid())
        assert await pool.run(ask_caller_to_fail) == "in the caller"


async def test_initializer(cluster: TestCluster) -> None:
    async with pool_on(cluster, initializer=initialize, initargs=(4,)) as pool:
        assert await pool.run(get_state) == [4]
    async with pool_on(cluster, initializer=fail, initargs=("no start",)) as pool:
        with pytest.raises(creche.ProcessStartError, match="no start"):
            await pool.run(double, 1)


async def test_large_arguments_are_scattered_once(cluster: TestCluster) -> None:
    data = bytes(3 * 1024 * 1024)
    async with pool_on(cluster) as pool:
        for number in range(3):
            assert await pool.run(summed, data, number) == len(data) + number
        sizes = await pool.map(functools.partial(summed, data), range(10))
        assert sizes == [len(data) + number for number in range(10)]
        connection: Any = pool._engine._connection  # type: ignore[attr-defined]
        assert len(connection._data._futures) == 1
        assert not connection._data._pickled
        assert len(await pool.run(bytes, len(data))) == len(data)


DIGEST = bytes(range(16))


class ScatteringClient:
    """As much of a Dask client as sends large arguments."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.scattered: list[Any] = []

    async def scatter(self, data: dict[str, bytes]) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        (key,) = data
        self.scattered.append(SimpleNamespace(key=key, status="finished"))
        return {key: self.scattered[-1]}


def test_large_arguments_that_are_lost() -> None:
    async def check() -> None:
        data, client = ScatteredData(), ScatteringClient()
        frame = make_frame(b"", [(DIGEST, 3)])

        client.error = OSError("expected")
        data.keep(DIGEST, b"abc")
        with pytest.raises(OSError, match="expected"):
            await data.of(client, frame)
        client.error = None
        data.keep(DIGEST, b"abc")
        (first,) = await data.of(client, frame)

        for status in ("lost", "cancelled"):
            first.status = status
            data.keep(DIGEST, b"abc")
            (second,) = await data.of(client, frame)
            assert second is not first
            first = second

        # While a call with it is on its way.
        data.keep(DIGEST, b"abc")
        first.status = "lost"
        with pytest.raises(ClusterError, match="a large argument of a call was lost"):
            await data.of(client, frame)
        data.keep(DIGEST, b"abc")
        assert await data.of(client, frame) == client.scattered[-1:]
        assert len(client.scattered) == 4

    asyncio.run(check())


def test_large_arguments_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        monkeypatch.setattr(_data, "_KEPT_BYTES", 3)
        data, client = ScatteredData(), ScatteringClient()
        old, new = (DIGEST, 3), (DIGEST[::-1], 3)
        data.keep(DIGEST, b"old")
        kept = await data.of(client, make_frame(b"", [old]))

        # Not while a call is made that has both.
        data.keep(DIGEST, b"old")
        data.keep(DIGEST[::-1], b"new")
        assert (await data.of(client, make_frame(b"", [new, old])))[1:] == kept

        data.keep(DIGEST[::-1], b"new")
        await data.of(client, make_frame(b"", [new]))
        with pytest.raises(ClusterError, match="had to make room"):
            await data.of(client, make_frame(b"", [old]))
        data.keep(DIGEST, b"old")
        assert await data.of(client, make_frame(b"", [old])) == client.scattered[-1:]

    asyncio.run(check())


async def test_what_cannot_travel(cluster: TestCluster, tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text("def func(): pass")
    sys.path.insert(0, str(tmp_path))
    try:
        import only_here  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    async with pool_on(cluster) as pool:
        with pytest.raises(creche.SerializationError, match="cannot be pickled"):
            await pool.run(double, threading.Lock())
        with pytest.raises(creche.SerializationError, match="only_here") as caught:
            await pool.run(only_here.func)
    assert "the Dask worker tcp://" in str(caught.value)
    assert "the call came from" in str(caught.value)


async def test_addresses(cluster: TestCluster) -> None:
    async with pool_on(cluster) as pool:
        address = pool._engine._connection.address  # type: ignore[attr-defined]
    async with open_pool(["tcp://127.0.0.1:1", address], connect_timeout=5) as pool:
        assert await pool.run(double, 2) == 4
    with distributed.Client(address, set_as_default=False) as client:
        async with open_pool(client) as pool:
            assert await pool.run(double, 3) == 6


async def test_results_do_not_stay_on_the_cluster(cluster: TestCluster) -> None:
    def results(client: distributed.Client) -> int:
        held = client.run(lambda dask_worker: len(dask_worker.data))
        return sum(held.values())

    async with pool_on(cluster) as pool:
        address = pool._engine._connection.address  # type: ignore[attr-defined]
        assert len(await pool.run(bytes, 1_000_000)) == 1_000_000
        with pytest.raises(LookupError):
            await pool.run(fail, "expected")
        with distributed.Client(address, set_as_default=False) as client, anyio.fail_after(TIMEOUT):
            while await anyio.to_thread.run_sync(results, client):
                await anyio.sleep(0.01)


async def test_nobody_there() -> None:
    with pytest.raises(ClusterError, match=r"tcp://127\.0\.0\.1:1"):
        async with open_pool("tcp://127.0.0.1:1", connect_timeout=0.5):
            pass


async def test_cluster_of_its_own() -> None:
    async with open_pool(workers=2) as pool:  # under a nanny, of which the worker is daemonic
        assert await pool.map(double, range(10)) == [2 * n for n in range(10)]
        assert pool.statistics().workers_alive == 2


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.4])
async def test_cancelled_while_its_own_cluster_starts(seconds: float) -> None:
    def workers() -> set[int]:
        found = set()
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):  # it has just ended
                if "spawn_main" in " ".join(child.cmdline()):
                    found.add(child.pid)
        return found

    before = workers()
    with anyio.move_on_after(seconds) as scope:
        async with open_pool(workers=1):
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert workers() <= before


async def test_tls(tmp_path: Path) -> None:
    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    ca, pem = tmp_path / "ca.pem", tmp_path / "cert.pem"
    authority.cert_pem.write_to_path(ca)
    certificate.private_key_and_cert_chain_pem.write_to_path(pem)
    files = ("--tls-ca-file", str(ca), "--tls-cert", str(pem), "--tls-key", str(pem))
    security = distributed.Security(
        tls_ca_file=str(ca),
        tls_client_cert=str(pem),
        tls_client_key=str(pem),
        require_encryption=True,
    )
    cluster = TestCluster(tmp_path, 1, tls=("--protocol", "tls", *files))
    try:
        async with pool_on(cluster, security=security) as pool:
            assert pool._engine._connection.address.startswith("tls://")  # type: ignore[attr-defined]
            assert await pool.run(double, 4) == 8
    finally:
        cluster.close()


def test_versions() -> None:
    ours = {"python": "3.12.1", "creche": "1.0", "distributed": "2026.1"}
    packages = {"creche": "1.0", "distributed": "2026.1"}
    side = {"host": {"python": "3.12.7.final.0"}, "packages": packages}
    check_found({"scheduler": side, "workers": {"tcp://a:1": side}}, ours)
    check_found({"scheduler": {**side, "packages": {"distributed": "2026.1"}}, "workers": {}}, ours)
    for changed, words in (
        ({"packages": {**packages, "creche": "0.9"}}, "tcp://a:1 has creche 0.9, and this side"),
        ({"packages": {**packages, "creche": None}}, "tcp://a:1 has no creche; this side has"),
        ({"host": {"python": "3.11.2.final.0"}}, "has python 3.11, and this side has python 3.12"),
    ):
        with pytest.raises(ClusterError, match=words):
            check_found({"scheduler": side, "workers": {"tcp://a:1": {**side, **changed}}}, ours)


def test_options() -> None:
    with pytest.raises(TypeError, match="address must be"):
        open_pool(3)
    with pytest.raises(ValueError, match="one of them is enough"):
        open_pool("tcp://a:1", scheduler_file="file")
    with pytest.raises(ValueError, match="empty"):
        open_pool([])
    with pytest.raises(ValueError, match="retries"):
        open_pool(retries=-1)
