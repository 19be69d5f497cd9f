"""Fixtures of all tests, and the check after each of them that nothing is left over."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import gc
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import types
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from types import FrameType

import anyio
import pytest
import pytest_timeout
from hypothesis import HealthCheck, settings
from scripts import Program
from support import NOT_OURS, START_METHODS, Announcements, Timeouts, double, sockets_and_pipes

import creche
from creche._hub._sources import open_hub
from creche._leftovers import Inventory, mark_children
from creche._pool import _process_pool, _scheduler

mark_children()  # whoever is started from here on is the tests', whatever becomes of its parent

# What multiprocessing calls the semaphores that it makes from here on, here and in children. The
# machine may have other users.
_SEMAPHORES = f"mp-{os.getpid()}"
_config: dict[str, object] = vars(multiprocessing.current_process())["_config"]
_config["semprefix"] = f"/{_SEMAPHORES}"

# The connections of whoever runs these tests: pytest's own and those of its workers.
os.environ[NOT_OURS] = " ".join(sockets_and_pipes().values())

# Other processes keep the machine busy meanwhile.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

BACKENDS = ("asyncio", "trio")

STDERR = pytest.StashKey[int]()

# The watcher, the starter, two picklers and the logs, however many processes there are.
CRECHE_THREADS = 5
# Threads that anyio, asyncio and Trio keep for a while: Trio for ten seconds.
OTHER_THREADS = 8

# Seconds that what is ending may take, on a busy machine.
TIME_TO_GO = 30


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run every case on both backends")


def pytest_configure(config: pytest.Config) -> None:
    # Later it is a file of pytest's own, which is lost with this process.
    assert sys.__stderr__ is not None
    config.stash[STDERR] = os.dup(sys.__stderr__.fileno())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked as ``either_backend`` and is the other one's turn.

    Backends take turns like the colors of a chessboard, whose rows are the start methods and whose
    columns the cases of a test: each of them has both. The test's name decides who begins.
    """
    if config.getoption("--full"):
        return
    cases: Counter[tuple[object, ...]] = Counter()
    left_out = set()
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("either_backend"):
            backend, method = map(item.callspec.params.get, ("anyio_backend", "start_method"))
            column = cases[item.function, method, backend]
            cases[item.function, method, backend] += 1
            row = START_METHODS.index(method)
            first = zlib.crc32(item.originalname.encode())
            if (first + row + column + BACKENDS.index(backend)) % 2:
                left_out.add(item)
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=list(left_out))


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(
    item: pytest.Item, settings: pytest_timeout.Settings
) -> Generator[None, object, object]:
    """End the process whose test goes on for as long again after it was told to fail.

    The exception that pytest-timeout raises may be swallowed, as by asyncio where a callback runs;
    and what hangs may hang again when it is cancelled. The dump of all threads names the place.
    """
    result = yield
    if settings.method != "signal":  # a thread ends the process at once, where there is no SIGALRM
        return result
    fail = signal.getsignal(signal.SIGALRM)
    assert callable(fail)

    def fail_once(signum: int, frame: FrameType | None) -> None:
        __tracebackhide__ = True
        signal.signal(signum, signal.SIG_DFL)
        # From here on without Python, which may be unable to run a handler.
        faulthandler.register(signum, file=item.config.stash[STDERR], chain=True)
        signal.setitimer(signal.ITIMER_REAL, settings.timeout)
        fail(signum, frame)

    signal.signal(signal.SIGALRM, fail_once)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_timeout_cancel_timer() -> Generator[None, object, object]:
    if hasattr(signal, "SIGALRM"):
        faulthandler.unregister(signal.SIGALRM)
    return (yield)


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=START_METHODS)
def start_method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def announcements(tmp_path: Path) -> Iterator[Announcements]:
    """A FIFO in which a test waits for what children write to it."""
    fifo = Announcements(tmp_path / "announcements")
    yield fifo
    fifo.close()


@pytest.fixture
def timeouts(monkeypatch: pytest.MonkeyPatch) -> Timeouts:
    """Have timeouts of calls strike when something has happened, however long that takes."""
    timeouts = Timeouts()
    ours = types.SimpleNamespace(move_on_after=timeouts.move_on_after)
    monkeypatch.setattr(_process_pool, "anyio", ours)
    return timeouts


@pytest.fixture
def no_worker_is_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take no worker for one that was stopped by a signal, however long it waits for a CPU.

    Or else it would be replaced, if it had calls that another one could run.
    """
    monkeypatch.setattr(_scheduler, "_DEAF_SECONDS", math.inf)


@pytest.fixture
def program() -> Iterator[Program]:
    """A program of its own, of which nothing may be left when the test ends."""
    # Not in tmp_path, which is too long for the path of a socket.
    with tempfile.TemporaryDirectory(prefix="creche-") as folder:
        program = Program(Path(folder))
        yield program
        left = program.wait_until_gone(TIME_TO_GO)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, f"processes left over: {left}"
        assert not program.files_left()


@pytest.fixture(scope="session")
def machinery() -> None:
    """Bring up what creche keeps as long as the process lives: that is not a leak."""

    async def use(*methods: str) -> None:
        for method in methods:
            assert await creche.run_in_process(double, 1, start_method=method) == 2

    plain = multiprocessing.get_context("forkserver").Process()
    plain.start()
    plain.join()
    plain.close()
    anyio.run(use, "spawn", "fork", backend="trio")
    anyio.run(use, "creche", "forkserver", backend="asyncio")
    open_hub()


@pytest.fixture(autouse=True)
def nothing_left_over(machinery: None) -> Iterator[None]:
    """Fail a test that leaves processes, zombies, descriptors, threads or shared memory behind."""
    before = Inventory.take()
    threads = threading.active_count()
    yield
    # What was killed and never awaited, such as a grandchild, may take a moment to go; so may a
    # thread that was told to end.
    deadline = time.monotonic() + TIME_TO_GO
    now = Inventory.take()
    while (left := _left_over(now, before, threads)) and time.monotonic() < deadline:
        gc.collect()  # a failed test's traceback keeps objects alive
        time.sleep(0.01)
        now = now.later()
    assert not left, f"left over: {left}"


def _left_over(now: Inventory, before: Inventory, threads: int) -> list[str]:
    # Threads are counted: those of libraries may stay for a while, and creche's must not grow more.
    segments = {name for name in now.segments if name.startswith(("psm_", f"sem.{_SEMAPHORES}-"))}
    now = dataclasses.replace(now, threads=before.threads, segments=frozenset(segments))
    found = now.beyond(before)
    names = [thread.name for thread in threading.enumerate()]
    ours = [name for name in names if name.startswith("creche-")]
    if len(ours) > CRECHE_THREADS:
        found.append(f"threads, now running: {ours}")
    if len(names) > threads + OTHER_THREADS:
        found.append(f"threads, {threads} before and now {names}")
    return found
