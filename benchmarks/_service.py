"""The example's web service, with creche's pool and with what else its handlers could use.

python -m benchmarks._service serve KIND WORKERS | alone KIND WORKERS | load PORT | probe PORT
are the processes that a measurement consists of.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import io
import logging
import multiprocessing
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from ._measuring import Row, Table

ROOT = Path(__file__).parent.parent
NICENESS = 10  # of processes that work; the example's default
CLIENTS = 4  # for each worker: enough that there is always one that waits
SECONDS = 3.0
PROBES = 200  # a second
LEAST_SHARE = 0.9
MOST_RATIO = 3.0

KINDS = {
    "creche": "asyncio",
    "creche-trio": "trio",
    "creche-not-nice": "asyncio",
    "executor": "asyncio",
    "threads": "asyncio",
}
NAMES = {
    "creche": "creche, asyncio",
    "creche-trio": "creche, Trio",
    "creche-not-nice": "creche, asyncio, workers with the service's priority",
    "executor": "ProcessPoolExecutor",
    "threads": "threads (anyio.to_thread)",
}


# --- what the handlers call ---------------------------------------------------------------------


@dataclass
class NoStatistics:
    """Of peers, which keep none."""

    workers: tuple[()] = ()
    workers_starting: int = 0
    workers_idle: int = 0
    workers_busy: int = 0
    calls_queued: int = 0
    calls_running: int = 0
    calls_done: int = 0
    calls_failed: int = 0
    calls_cancelled: int = 0
    restarts: int = 0


class Threads(AsyncExitStack):
    """As many threads as a pool would have workers."""

    def __init__(self, workers: int) -> None:
        super().__init__()
        self._workers = workers

    async def run(self, func: Callable[..., Any], *args: Any) -> Any:
        return await anyio.to_thread.run_sync(func, *args, limiter=self._limiter())

    @cache  # noqa: B019
    def _limiter(self) -> anyio.CapacityLimiter:
        return anyio.CapacityLimiter(self._workers)

    def statistics(self) -> NoStatistics:
        return NoStatistics()


class Executor(AsyncExitStack):
    """The standard library's pool of processes."""

    def __init__(self, workers: int) -> None:
        super().__init__()
        self._executor = concurrent.futures.ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("forkserver"),
            initializer=import_example("pictures").prepare,
            initargs=(NICENESS,),
        )
        self.callback(self._executor.shutdown)

    async def run(self, func: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, func, *args)

    def statistics(self) -> NoStatistics:
        return NoStatistics()


def open_pool(kind: str, workers: int) -> Any:
    if kind == "threads":
        import_example("pictures").prepare(0)
        return Threads(workers)
    if kind == "executor":
        return Executor(workers)
    web_service = import_example("web_service")
    niceness = 0 if kind == "creche-not-nice" else NICENESS
    return web_service.open_pool(web_service.Settings(workers=workers, niceness=niceness))


def import_example(name: str) -> Any:
    folder = str(ROOT / "examples")
    if folder not in sys.path:
        sys.path.insert(0, folder)  # which is that of the workers, too
    return import_module(name)


@cache
def photo() -> bytes:
    """A photo of three megapixels, about 600 kB, which takes a worker about 20 ms."""
    from PIL import Image, ImageFilter

    noise = Image.effect_noise((500, 375), 60).convert("RGB").resize((2000, 1500))
    file = io.BytesIO()
    noise.filter(ImageFilter.GaussianBlur(2)).save(file, "JPEG", quality=88)
    return file.getvalue()


# --- the processes of a measurement -------------------------------------------------------------


def serve(kind: str, workers: int) -> None:
    web_service = import_example("web_service")
    service = web_service.Service(web_service.Settings(workers=workers), open_pool(kind, workers))
    logging.basicConfig(level=logging.INFO)
    backend = KINDS[kind]
    anyio.run(web_service.serve, service, backend, "127.0.0.1:0", backend=backend)


def alone(kind: str, workers: int) -> float:
    """Call the pool as the service does, without a service; return calls a second."""
    done = 0
    describe = import_example("pictures").describe

    async def call(pool: Any) -> None:
        nonlocal done
        while True:
            await pool.run(describe, photo())
            done += 1

    async def main() -> float:
        nonlocal done
        async with open_pool(kind, workers) as pool, anyio.create_task_group() as tasks:
            for _ in range(CLIENTS * workers):
                tasks.start_soon(call, pool)
            await anyio.sleep(1)
            began, done = time.perf_counter(), 0
            await anyio.sleep(SECONDS)
            rate = done / (time.perf_counter() - began)
            tasks.cancel_scope.cancel()
        return rate

    return anyio.run(main, backend=KINDS[kind])


def exchange(connection: socket.socket, request: bytes) -> None:
    """Send a request over a connection that is kept, and take the answer."""
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert head.startswith(b"HTTP/1.1 200"), answer
    assert length is not None
    left = int(length[1]) - len(body)
    while left:
        left -= len(connection.recv(min(left, 65536)))


def load(port: int, clients: int) -> float:
    """Keep a service busy; return its answers a second."""
    head = f"POST /thumbnails HTTP/1.1\r\nHost: test\r\nContent-Length: {len(photo())}\r\n\r\n"
    request = head.encode() + photo()
    counts = [0] * clients
    over = threading.Event()

    def ask(number: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            while not over.is_set():
                exchange(connection, request)
                counts[number] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    print("loaded", flush=True)
    began, before = time.perf_counter(), sum(counts)
    time.sleep(SECONDS)
    rate = (sum(counts) - before) / (time.perf_counter() - began)
    over.set()
    return rate


def probe(port: int) -> float:
    """Ask for /healthz at a steady pace; return the 99th percentile of seconds for an answer."""
    request = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n"
    samples = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        exchange(connection, request)
        due = time.perf_counter()
        end = due + SECONDS
        while due < end:
            due += 1 / PROBES
            time.sleep(max(0.0, due - time.perf_counter()))
            began = time.perf_counter()
            exchange(connection, request)
            samples.append(time.perf_counter() - began)
    return statistics.quantiles(samples, n=100)[-1]


# --- measuring ----------------------------------------------------------------------------------


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "benchmarks._service", *map(str, arguments)]


def figure_of(*arguments: object) -> float:
    done = subprocess.run(
        command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout.split()[-1])


@contextmanager
def running(kind: str, workers: int) -> Iterator[int]:
    """Run a service; gives its port."""
    with subprocess.Popen(
        command("serve", kind, workers), cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"Running on http://127.0.0.1:(\d+)", line):
                break
        else:
            raise RuntimeError(f"the service with {kind} did not start")
        try:
            yield int(found[1])
        finally:
            process.terminate()
            process.stderr.read()


@dataclass
class Figures:
    """Of one contender, in one round."""

    alone: float
    served: float
    idle: float
    saturated: float


def one_round(kind: str, workers: int) -> Figures:
    clients = CLIENTS * workers
    with running(kind, workers) as port:
        idle = figure_of("probe", port)
        served = figure_of("load", port, clients)
        with subprocess.Popen(
            command("load", port, clients), cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as loading:
            assert loading.stdout is not None
            assert loading.stdout.readline() == "loaded\n"
            saturated = figure_of("probe", port)
    return Figures(figure_of("alone", kind, workers), served, idle, saturated)


def measure(rounds: int, workers: int = 1) -> list[Table]:
    found: dict[str, list[Figures]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind, samples in found.items():
            samples.append(one_round(kind, workers))

    def median(kind: str, value: Callable[[Figures], float]) -> float:
        return statistics.median(map(value, found[kind]))

    throughput, latency = [], []
    for kind, name in NAMES.items():
        ours = kind in ("creche", "creche-trio")
        rate = median(kind, lambda figures: figures.served)
        share = median(kind, lambda figures: figures.served / figures.alone)
        throughput.append(
            Row(
                name,
                rate,
                "/s",
                share,
                f"at least {LEAST_SHARE:g} of the pool alone" if ours else "",
                share >= LEAST_SHARE if ours else None,
            )
        )
        late = median(kind, lambda figures: figures.saturated)
        ratio = median(kind, lambda figures: figures.saturated / figures.idle)
        latency.append(
            Row(
                name,
                1e3 * late,
                "ms",
                ratio,
                f"at most {MOST_RATIO:g} times idle" if ours else "",
                ratio <= MOST_RATIO if ours else None,
            )
        )
    plural = "" if workers == 1 else "s"
    setting = (
        f"`examples/web_service.py` with {workers} worker{plural}, {CLIENTS * workers} clients that"
        " send a photo of 600 kB again and again, and the same handlers with other pools."
    )
    return [
        Table(
            "A web service: uploads answered a second",
            f"{setting} The ratio is to what the pool does without a service.",
            throughput,
        ),
        Table(
            "A web service: 99th percentile of a light endpoint while its workers are saturated",
            f"{setting} Meanwhile another client asks for `/healthz` {PROBES} times a second. The"
            " ratio is to when nobody else asks for anything: it has in it what the operating"
            " system makes of more processes than CPUs.",
            latency,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks._service")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("serve", "alone"):
        of_kind = commands.add_parser(name)
        of_kind.add_argument("kind", choices=KINDS)
        of_kind.add_argument("workers", type=int)
    loading = commands.add_parser("load")
    loading.add_argument("port", type=int)
    loading.add_argument("clients", type=int)
    commands.add_parser("probe").add_argument("port", type=int)
    options = vars(parser.parse_args())
    result = {"serve": serve, "alone": alone, "load": load, "probe": probe}[options.pop("command")](
        **options
    )
    if result is not None:
        print(result, flush=True)


if __name__ == "__main__":
    from benchmarks import _service  # by the name under which processes find its functions

    _service.main()
