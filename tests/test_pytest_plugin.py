"""The pytest plugin, in runs of pytest of its own."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest

pytest_plugins = ["pytester"]

HEADER = """
import multiprocessing, os, subprocess, sys, threading, time
from multiprocessing import shared_memory
import anyio
import pytest
import creche

pytestmark = pytest.mark.creche_no_leaks(timeout=0.5)
kept = []
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    source = str(Path(__file__).parent.parent / "src")
    monkeypatch.setenv("PYTHONPATH", source)

    def run(text: str, *args: str, header: str = HEADER) -> pytest.RunResult:
        pytester.makepyfile(header + text)
        plugins = ("-p", "pytest_creche", "-p", "anyio.pytest_plugin")
        return pytester.runpytest_subprocess(*plugins, *args, "-p", "no:cacheprovider")

    return run


LEAKS = """
def test_process():
    kept.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"]))

def sleep():
    time.sleep(99)

def test_multiprocessing():
    process = multiprocessing.get_context("spawn").Process(target=sleep, name="sleeper")
    process.start()
    kept.append(process)

def test_zombie():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    kept.append(process)

def test_orphan():
    sleep = [sys.executable, "-c", "import time; time.sleep(99)", "orphan", os.environ["ORPHAN"]]
    code = f"import subprocess; subprocess.Popen({sleep!r})"
    subprocess.run([sys.executable, "-c", code], check=True)

def test_thread():
    threading.Thread(target=time.sleep, args=(99,), name="sleeper", daemon=True).start()

def test_descriptor(tmp_path):
    kept.append(open(tmp_path / "open.txt", "w"))

segments = []

def test_segment():
    segment = shared_memory.SharedMemory(create=True, size=10)
    segments.append(segment)
    segment.close()

@pytest.fixture(scope="module", autouse=True)
def clean_up():
    yield
    for process in kept[:-1]:
        process.kill()
        process.wait() if isinstance(process, subprocess.Popen) else process.join()
    for segment in segments:  # and no other: somebody may be using that
        segment.unlink()
"""

MESSAGES = [
    r".*process \(pid \d+\): .*import time; time.sleep",
    r".*process 'sleeper' \(pid \d+\):",
    r".*process \(pid \d+\): a zombie: .* has ended, and nobody has waited for it",
    r".*process \(pid \d+\): .*import time; time.sleep\(99\) orphan",
    r".*thread 'sleeper' \(a daemon\)",
    r".*descriptor \d+ -> .*open\.txt",
    r".*shared memory /dev/shm/psm_",
]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc here")
def test_leaks(run: object, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ["orphan", uuid.uuid4().hex]  # not that of another run
    monkeypatch.setenv("ORPHAN", ours[1])
    result = run(LEAKS)  # type: ignore[operator]
    result.assert_outcomes(passed=len(MESSAGES), errors=len(MESSAGES))
    for message in MESSAGES:
        result.stdout.re_match_lines([r".*left behind:", message])
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [])[-2:] == ours:
            process.kill()


CLEAN = """
@pytest.fixture(params=["asyncio"])
def anyio_backend(request):
    return request.param

@pytest.fixture(scope="module")
def for_all():
    process = subprocess.Popen(["sleep", "100"])
    yield
    process.kill()
    process.wait()

@pytest.fixture
def for_one():
    process = subprocess.Popen(["sleep", "100"])
    yield
    process.kill()
    process.wait()

def test_fixtures(for_one, for_all, tmp_path):
    pass

METHODS = [None, *multiprocessing.get_all_start_methods()]

@pytest.mark.anyio
@pytest.mark.parametrize("method", METHODS)
async def test_pool(method):
    async with creche.open_pool(2, start_method=method, preload=["colorsys"]) as pool:
        assert await pool.map(abs, range(10)) == list(range(10))
        assert await pool.run(len, bytes(10_000_000)) == 10_000_000
        with anyio.move_on_after(0.1):
            await pool.run(time.sleep, 100)
    assert await creche.run_in_process(abs, -1, start_method=method) == 1
    await anyio.to_thread.run_sync(time.sleep, 0)

@pytest.mark.anyio
async def test_stream():
    async with creche.open_stream(range, 10) as numbers:
        async for _ in numbers:
            break

@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_multiprocessing(method):
    process = multiprocessing.get_context(method).Process(target=abs, args=(1,))
    process.start()
    process.join()
    process.close()
    lock = multiprocessing.get_context(method).Lock()

def test_ends_soon():
    threading.Thread(target=time.sleep, args=(0.2,)).start()
"""


def test_nothing_is_left(run: object) -> None:
    header = HEADER.replace("0.5", "10")
    result = run(CLEAN, "-q", header=header)  # type: ignore[operator]
    outcomes = result.parseoutcomes()
    assert "errors" not in outcomes, result.stdout.str()
    assert "failed" not in outcomes, result.stdout.str()
    assert outcomes["passed"] >= 10


def test_fixture_and_not_asked_for(run: object) -> None:
    text = """
import threading, time
import pytest

def leave():
    threading.Thread(target=time.sleep, args=(99,), daemon=True, name="sleeper").start()

@pytest.mark.creche_no_leaks(0.5)
def test_with(creche_no_leaks):
    leave()

def test_without():
    leave()
"""
    result = run(text, header="")  # type: ignore[operator]
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.re_match_lines([".*ERROR at teardown of test_with", ".*left behind"])


def test_a_failed_test_is_checked_as_well(run: object) -> None:
    text = """
def test(tmp_path):
    file = open(tmp_path / "open.txt", "w")
    raise KeyError
"""
    result = run(text, "--tb=native")  # type: ignore[operator]
    result.assert_outcomes(failed=1, errors=1)


def test_wrong_timeout(run: object) -> None:
    text = """
@pytest.mark.creche_no_leaks(timeout=-1)
def test():
    pass
"""
    result = run(text)  # type: ignore[operator]
    result.assert_outcomes(errors=1)
    result.stdout.re_match_lines([".*ValueError: timeout"])


def test_marker_is_known(run: object) -> None:
    result = run("def test(): pass", "--strict-markers", "--markers")  # type: ignore[operator]
    result.stdout.fnmatch_lines(["@pytest.mark.creche_no_leaks(timeout=5.0): *"])


def test_costs_nothing_unless_used() -> None:
    code = (
        "import sys; import pytest; before = set(sys.modules); import pytest_creche;"
        "print(set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'pytest_creche'}"
