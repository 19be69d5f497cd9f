"""The web service of the examples, started for real and used over HTTP by many clients at once."""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
TIMEOUT = 60.0
WORKERS = 2
NICENESS = 10  # of the workers alone, so one recognises them by it

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="needs signals, limits and nice values"),
]


# --- the service --------------------------------------------------------------------------------


class Service:
    """A service that runs, as its clients and the operating system see it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[str] = []
        self.family: set[psutil.Process] = set()
        self._told = threading.Condition()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        address = self.wait_for_line(r"Running on http://([\d.]+:\d+)|running on http://([\d.:]+)")
        self.host, self.port = address.split(":")
        self.url = f"http://{address}"

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._told:
                self.log.append(line)
                self._told.notify_all()

    def wait_for_line(self, pattern: str) -> str:
        """Wait for a line of the log; return what the groups of the pattern match."""

        def find() -> re.Match[str] | None:
            return next((m for line in self.log if (m := re.search(pattern, line))), None)

        with self._told:
            assert self._told.wait_for(find, TIMEOUT), self.log
            match = find()
        assert match is not None
        return "".join(group or "" for group in match.groups())

    def workers(self) -> set[int]:
        """The process ids of the workers that are ready."""
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return set()
        self.family.update(family)
        found = set()
        for process in family:
            try:
                if process.nice() == NICENESS and process.status() != psutil.STATUS_ZOMBIE:
                    found.add(process.pid)
            except psutil.NoSuchProcess:
                continue
        return found

    def wait_for_end(self) -> int:
        """Wait until the service and all that it has started are gone, and the log is complete;
        return its exit code."""
        exitcode = self.process.wait(TIMEOUT)
        _, alive = psutil.wait_procs(self.family, timeout=TIMEOUT)
        assert alive == []
        self._reader.join(TIMEOUT)
        return exitcode


@contextmanager
def running(*command: str) -> Iterator[Service]:
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=EXAMPLES,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            service = Service(process)
            service.workers()
            yield service
        finally:
            process.kill()


@contextmanager
def running_example(backend: str, *options: str) -> Iterator[Service]:
    command = [str(EXAMPLES / "web_service.py"), "--bind", "127.0.0.1:0", "--backend", backend]
    # Workers are the last to get a busy machine's time: no request is to run out of it unawares.
    command += ["--workers", str(WORKERS), "--deadline", str(TIMEOUT)]
    with running(*command, *options) as service:
        yield service


@pytest.fixture(autouse=True)
def nothing_left_over() -> None:
    """The service has processes of its own, which are looked for when it ends."""


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    with running_example(request.param) as service:
        yield service
        service.workers()
        service.process.send_signal(signal.SIGINT)
        assert service.wait_for_end() == 0
        assert "drained" in service.log[-1]
        unexpected = [line for line in service.log if "Traceback" in line or "Error" in line]
        assert unexpected == [], "".join(service.log)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # of the clients; that of the service is another matter


# --- clients ------------------------------------------------------------------------------------


@asynccontextmanager
async def client_of(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=TIMEOUT, verify=False) as client:
        yield client


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(service) as client:
        yield client


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """The metrics of a service, by their names and labels."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


QUEUED = "pool_calls_queued"
RUNNING = "pool_calls_running"
RESTARTS = "pool_worker_restarts_total"
CANCELLED = 'pool_calls_total{outcome="cancelled"}'
GONE = 'http_requests_total{path="/thumbnails",status="499"}'


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again: there is nobody who would call us back."""
    with anyio.fail_after(TIMEOUT):
        while not await condition():
            await anyio.sleep(0.002)


async def until_ready(service: Service, client: httpx.AsyncClient) -> set[int]:
    """Wait until all workers are there and have nothing to do; return their process ids."""

    async def ready() -> bool:
        now = await metrics(client)
        idle = now['pool_workers{state="idle"}']
        return idle == WORKERS == len(service.workers())

    await until(ready)
    return service.workers()


def send_and_leave(
    service: Service, upload: bytes, *, missing: int = 0, headers: str = ""
) -> socket.socket:
    """Send a request, and return the connection without waiting for an answer.

    :param missing: how many bytes are yet to come
    """
    connection = socket.create_connection((service.host, int(service.port)), TIMEOUT)
    headers += f"Host: test\r\nContent-Length: {len(upload) + missing}\r\n"
    connection.sendall(f"POST /thumbnails HTTP/1.1\r\n{headers}\r\n".encode() + upload)
    return connection


# --- uploads ------------------------------------------------------------------------------------


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def drawing(size: tuple[int, int] = (800, 600), turned: int = 0) -> Image.Image:
    picture = Image.radial_gradient("L").resize(size)
    picture.paste(Image.linear_gradient("L").resize((size[0] // 2, size[1] // 3)))
    return picture.rotate(turned)


def bomb(width: int, height: int) -> bytes:
    """A PNG file that says how large it is, and has nothing else."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    file = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    file.seek(0, io.SEEK_END)
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(name + data))
        file.write(struct.pack(">I", len(data)) + name + data + checksum)
    return file.getvalue()


@pytest.fixture(scope="module")
def photo() -> bytes:
    return encoded(drawing(), "JPEG")


@pytest.fixture(scope="module")
def large_photo() -> bytes:
    """One that keeps a worker busy for a while."""
    return encoded(drawing((5000, 5000)), "PNG", compress_level=1)


@pytest.fixture(scope="module")
def memory_bomb() -> bytes:
    """A picture with few enough pixels, but several copies of them do not fit into a worker."""
    return encoded(Image.new("RGBA", (7000, 7000)), "PNG", compress_level=1)


# --- what is answered ---------------------------------------------------------------------------


async def test_thumbnails(client: httpx.AsyncClient, photo: bytes) -> None:
    answer = await client.post("/thumbnails", content=photo)
    assert answer.status_code == 200
    found = answer.json()
    assert (found["format"], found["width"], found["height"]) == ("JPEG", 800, 600)
    for size, expected in (("256", (256, 192)), ("64", (64, 48))):
        head, _, data = found["thumbnails"][size].partition(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.size == expected


async def hash_of(client: httpx.AsyncClient, upload: bytes) -> int:
    answer = await client.post("/thumbnails", content=upload)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["hash"], 16)


async def test_hash(client: httpx.AsyncClient, photo: bytes) -> None:
    """It differs little between pictures that look alike, and a lot between others."""
    original = await hash_of(client, photo)
    smaller = await hash_of(client, encoded(drawing((400, 300)), "WEBP", quality=60))
    turned = await hash_of(client, encoded(drawing(turned=90), "PNG"))
    assert (original ^ smaller).bit_count() <= 8
    assert (original ^ turned).bit_count() >= 16


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for i in range(0, len(data), 65536):
        yield data[i : i + 65536]


async def test_refused(
    service: Service, client: httpx.AsyncClient, photo: bytes, memory_bomb: bytes
) -> None:
    """Each of the bad ones has its status, and the good ones between them do not notice."""
    await until_ready(service, client)
    before = await metrics(client)
    statuses: dict[str, list[int]] = {}

    async def ask(what: str, upload: Any, **headers: str) -> None:
        answer = await client.post("/thumbnails", content=upload, headers=headers)
        statuses.setdefault(what, []).append(answer.status_code)

    too_large = bytes(11 * 1024 * 1024)
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(ask, "photo", photo)
            tasks.start_soon(ask, "cut off", photo[: len(photo) // 2])
            tasks.start_soon(ask, "photo", photo)
            tasks.start_soon(ask, "text", b"no picture at all")
            tasks.start_soon(ask, "nothing", b"")
            tasks.start_soon(ask, "bomb", bomb(30_000, 30_000))
            tasks.start_soon(ask, "photo", photo)
            tasks.start_soon(ask, "too large", too_large)
            tasks.start_soon(ask, "too large, in chunks", chunks(too_large))
            tasks.start_soon(ask, "memory bomb", memory_bomb)
            tasks.start_soon(ask, "photo", photo)
    assert statuses == {
        "photo": [200] * 8,
        "cut off": [422] * 2,
        "text": [422] * 2,
        "nothing": [422] * 2,
        "bomb": [422] * 2,
        "too large": [413] * 2,
        "too large, in chunks": [413] * 2,
        "memory bomb": [422] * 2,
    }
    # A worker that ran out of memory is replaced. Nothing else costs one.
    await until_ready(service, client)
    assert (await metrics(client))[RESTARTS] - before[RESTARTS] == 2


async def test_other_requests(client: httpx.AsyncClient, photo: bytes) -> None:
    for wanted in ("soon", "-1", "0", "nan"):
        answer = await client.post("/thumbnails", content=photo, headers={"X-Deadline": wanted})
        assert answer.status_code == 400
    assert (await client.get("/thumbnails")).status_code == 405
    assert (await client.post("/thumbnail", content=photo)).status_code == 404
    answer = await client.get("/healthz")
    assert (answer.status_code, answer.text) == (200, "ok\n")
    found = await metrics(client)
    assert found['http_requests_total{path="other",status="404"}'] >= 1
    assert found['http_request_seconds_count{path="/healthz"}'] >= 1


# --- load ---------------------------------------------------------------------------------------


async def test_many_clients(service: Service, photo: bytes) -> None:
    answers: list[bytes] = []

    async def ask() -> None:
        async with client_of(service) as client:
            for _ in range(5):
                answer = await client.post("/thumbnails", content=photo)
                assert answer.status_code == 200
                answers.append(answer.content)

    async with anyio.create_task_group() as tasks:
        for _ in range(24):
            tasks.start_soon(ask)
    assert len(answers) == 120
    assert len(set(answers)) == 1


async def test_overload(service: Service, client: httpx.AsyncClient, photo: bytes) -> None:
    """What there is no room for is refused at once, with when to come back."""
    answers: list[httpx.Response] = []

    async def ask() -> None:
        answers.append(await client.post("/thumbnails", content=photo))

    await until_ready(service, client)
    for pid in (workers := service.workers()):
        os.kill(pid, signal.SIGSTOP)
    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(ask)
            with anyio.fail_after(TIMEOUT):
                while len(answers) < 18:
                    await anyio.sleep(0.002)
            assert {answer.status_code for answer in answers} == {503}
            assert (await client.get("/healthz")).status_code == 200
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    assert Counter(answer.status_code for answer in answers) == {503: 18, 200: 32}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers[:18])


# --- what goes wrong while work runs ------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


@asynccontextmanager
async def stopped_in_work(
    service: Service, client: httpx.AsyncClient, connect: Callable[[], Awaitable[None]]
) -> AsyncIterator[set[int]]:
    """Have all workers stand still in the middle of their work; gives their process ids.

    :param connect: sends a request that takes long
    """
    workers = await until_ready(service, client)
    before = {pid: cpu_seconds(pid) for pid in workers}
    moving = set(workers)

    async def all_stopped() -> bool:
        # A call counts as running when it was sent; this one takes more, and receiving it less.
        # Each is stopped as soon as it is at work: one may be done when another has just begun.
        for pid in list(moving):
            if cpu_seconds(pid) - before[pid] >= 0.03:
                os.kill(pid, signal.SIGSTOP)
                moving.remove(pid)
        return not moving

    try:
        for _ in range(WORKERS):
            await connect()
        await until(all_stopped)
        assert (await metrics(client))[RUNNING] == WORKERS
        yield workers
    finally:
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def test_dropped_clients(
    service: Service, client: httpx.AsyncClient, photo: bytes, large_photo: bytes
) -> None:
    """The work of a client that has gone is stopped: its worker is, if need be by force."""
    before = await metrics(client)
    connections: list[socket.socket] = []

    async def connect() -> None:
        connections.append(await anyio.to_thread.run_sync(send_and_leave, service, large_photo))

    async with stopped_in_work(service, client, connect) as workers:
        waiting = await anyio.to_thread.run_sync(send_and_leave, service, photo)

        async def queued() -> bool:
            return (await metrics(client))[QUEUED] == 1

        await until(queued)

        async def gone(count: int) -> bool:
            return (await metrics(client)).get(GONE, 0) - before.get(GONE, 0) == count

        waiting.close()  # no worker has begun with it
        await until(lambda: gone(1))
        assert service.workers() == workers
        connections[0].close()
        await until(lambda: gone(2))
        assert len(workers & service.workers()) == WORKERS - 1
        # Its place is taken, and others are served.
        assert (await client.post("/thumbnails", content=photo)).status_code == 200
        connections[1].close()
        await until(lambda: gone(3))
    assert not workers & await until_ready(service, client)
    after = await metrics(client)
    assert after[RESTARTS] - before[RESTARTS] == WORKERS
    assert after[CANCELLED] - before[CANCELLED] == WORKERS + 1


async def test_client_drops_while_it_sends(
    service: Service, client: httpx.AsyncClient, photo: bytes
) -> None:
    before = await metrics(client)
    with socket.create_connection((service.host, int(service.port)), TIMEOUT) as connection:
        connection.sendall(
            b"POST /thumbnails HTTP/1.1\r\nHost: test\r\nContent-Length: 999\r\n\r\n"
        )
        connection.sendall(photo[:500])

    async def gone() -> bool:
        return (await metrics(client)).get(GONE, 0) == before.get(GONE, 0) + 1

    await until(gone)


async def test_deadline(
    service: Service, client: httpx.AsyncClient, photo: bytes, large_photo: bytes
) -> None:
    statuses: list[int] = []

    async def ask(upload: bytes, seconds: float) -> None:
        headers = {"X-Deadline": str(seconds)}
        answer = await client.post("/thumbnails", content=upload, headers=headers)
        statuses.append(answer.status_code)

    async with anyio.create_task_group() as tasks:

        async def connect() -> None:
            tasks.start_soon(ask, large_photo, 8.0)  # more than it takes to begin with it

        async with stopped_in_work(service, client, connect) as workers:
            await ask(photo, 0.5)  # which waits for a worker until then
            assert statuses == [504]
            assert service.workers() == workers
            while len(statuses) < 1 + WORKERS:
                await anyio.sleep(0.01)
    assert statuses == [504] * (1 + WORKERS)
    assert not workers & await until_ready(service, client)


async def test_slow_upload(service: Service, photo: bytes) -> None:
    """One that never comes is not waited for."""
    connection = await anyio.to_thread.run_sync(
        lambda: send_and_leave(service, photo[:1000], missing=1000, headers="X-Deadline: 0.1\r\n")
    )
    with connection:
        answer = await anyio.to_thread.run_sync(connection.recv, 65536)
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_killed_worker(
    service: Service, client: httpx.AsyncClient, photo: bytes, large_photo: bytes
) -> None:
    """Only the request that it worked on fails."""
    before = await metrics(client)
    large: list[int] = []
    statuses: list[int] = []

    async def ask(upload: bytes, to: list[int]) -> None:
        to.append((await client.post("/thumbnails", content=upload)).status_code)

    async with anyio.create_task_group() as tasks:

        async def connect() -> None:
            tasks.start_soon(ask, large_photo, large)

        async with stopped_in_work(service, client, connect) as workers:
            for _ in range(20):
                tasks.start_soon(ask, photo, statuses)
            os.kill(min(workers), signal.SIGKILL)
    assert sorted(large) == [200] * (WORKERS - 1) + [500]
    assert statuses == [200] * 20
    assert len(workers & await until_ready(service, client)) == WORKERS - 1
    assert (await metrics(client))[RESTARTS] - before[RESTARTS] == 1


# --- the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_sigterm_under_load(backend: str, photo: bytes) -> None:
    """No accepted request is lost, and what comes later is refused."""
    statuses: Counter[int] = Counter()
    refused = 0

    async def ask(upload: bytes) -> None:
        nonlocal refused
        try:
            while True:
                async with client_of(service) as client:
                    answer = await client.post("/thumbnails", content=upload)
                statuses[answer.status_code] += 1
                if answer.status_code == 503:
                    assert answer.headers["Connection"] == "close"
                    return
        except httpx.TransportError:  # nobody listens any more
            refused += 1

    with running_example(backend) as service:
        idle = socket.create_connection((service.host, int(service.port)), TIMEOUT)
        async with anyio.create_task_group() as tasks:
            for _ in range(24):
                tasks.start_soon(ask, photo)
            async with client_of(service) as client:

                async def loaded() -> bool:
                    return (await metrics(client))[RUNNING] == WORKERS and statuses[200] > 20

                await until(loaded)
                service.workers()
                service.process.send_signal(signal.SIGTERM)
                await anyio.to_thread.run_sync(service.wait_for_line, r"draining: \d+ requests")
        idle.close()
        exitcode = await anyio.to_thread.run_sync(service.wait_for_end)
    assert exitcode == 0, service.log
    assert set(statuses) <= {200, 503}
    assert statuses[503] + refused == 24
    assert f"drained; {statuses[200]} uploads were answered" in service.log[-1]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_second_signal(backend: str, large_photo: bytes) -> None:
    """It ends what would still take long; clients hear of it."""
    statuses: list[int] = []
    with running_example(backend) as service:
        async with client_of(service) as client, anyio.create_task_group() as tasks:

            async def ask() -> None:
                statuses.append((await client.post("/thumbnails", content=large_photo)).status_code)

            async def connect() -> None:
                tasks.start_soon(ask)

            async with stopped_in_work(service, client, connect):
                service.process.send_signal(signal.SIGINT)
                await anyio.to_thread.run_sync(service.wait_for_line, "draining: 2 requests")
                assert (await client.get("/healthz")).status_code == 503
                service.process.send_signal(signal.SIGINT)
                exitcode = await anyio.to_thread.run_sync(service.wait_for_end)
    assert exitcode == 0, service.log
    assert statuses == [503] * WORKERS
    assert "drained; 0 uploads were answered" in service.log[-1]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_clients_that_take_nothing(backend: str) -> None:
    """They cannot keep a service from ending, nor can those that never finish a request."""
    with running_example(backend, "--goodbye", "0.5") as service:
        address = service.host, int(service.port)
        with (
            socket.create_connection(address) as deaf,
            socket.create_connection(address) as slow,
        ):
            slow.sendall(b"POST /healthz HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\n")
            deaf.settimeout(0.5)
            with pytest.raises(OSError):  # a timeout; or the server has had enough of it
                while True:
                    deaf.sendall(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n" * 100)
            service.process.send_signal(signal.SIGTERM)
            assert service.wait_for_end() == 0, service.log


async def test_uvicorn(photo: bytes, large_photo: bytes) -> None:
    pytest.importorskip("uvicorn")
    command = ["-m", "uvicorn", "--factory", "web_service:app", "--port", "0"]
    with running(*command) as service:
        async with client_of(service) as client:
            assert (await client.post("/thumbnails", content=photo)).status_code == 200
            connections: list[socket.socket] = []

            async def connect() -> None:
                connections.append(
                    await anyio.to_thread.run_sync(send_and_leave, service, large_photo)
                )

            async with stopped_in_work(service, client, connect) as workers:
                for connection in connections:
                    connection.close()

                async def gone() -> bool:
                    return (await metrics(client)).get(GONE, 0) == WORKERS

                await until(gone)
            assert not workers & await until_ready(service, client)
        service.process.send_signal(signal.SIGTERM)
        assert service.wait_for_end() in (0, -signal.SIGTERM)
