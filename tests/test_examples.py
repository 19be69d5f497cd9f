"""The examples, run as a user runs them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
TIMEOUT = 100.0

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs signals or resource limits")


def run_example(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A small folder to survey."""
    for i in range(130):
        (tmp_path / f"module_{i}.py").write_text(f"def f_{i}():\n    if 1:\n        return {i}\n")
    (tmp_path / "broken.py").write_text("def oops(:\n")
    (tmp_path / "big.py").write_text("class C:\n    pass\n" + "x = 1\n" * 1000)
    return tmp_path


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_stdlib_survey(modules: Path, backend: str) -> None:
    output = run_example("stdlib_survey.py", str(modules), "--backend", backend, "--workers", "2")
    assert "parsing 132 files" in output
    assert "132 files, 1,392 lines, 1 classes, 130 functions; 1 files do not parse" in output
    assert "1,002  big.py" in output
    assert "creche.RemoteTraceback" in output
    assert "SyntaxError: invalid syntax" in output
    assert "was killed by SIGSEGV" in output


@contextmanager
def interactive_survey(backend: str) -> Iterator[subprocess.Popen[bytes]]:
    """The survey of the standard library, in a session of its own, as in a terminal."""
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / "stdlib_survey.py"), "--backend", backend],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@posix_only
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_survey_is_left_by_interrupt(backend: str) -> None:
    with interactive_survey(backend) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], TIMEOUT)[0]
        first = os.read(process.stdout.fileno(), 65536)
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(TIMEOUT) == 130, rest.decode()
        assert b"parsing" in first
        assert b"interrupted; every process is gone" in rest
        assert b"Traceback" not in rest
        # The fork server and the resource tracker end when they notice that nobody needs them.
        _, alive = psutil.wait_procs(family, timeout=TIMEOUT)
        assert alive == []


@posix_only
def test_deadline() -> None:
    output = run_example("deadline.py")
    assert "matches\n" in output
    assert "was stopped after its timeout of 6 seconds" in output


def test_racing() -> None:
    assert "1000003 * 998244353" in run_example("racing.py").replace(
        "998244353 * 1000003", "1000003 * 998244353"
    )


@posix_only
def test_readiness() -> None:
    output = run_example("readiness.py")
    assert "hello from process" in output
    assert "the server cleans up" in output
    assert "exit code -15" in output


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not enforce RLIMIT_AS")
def test_memory_limit() -> None:
    output = run_example("memory_limit.py")
    assert "   100 MiB: fine" in output
    assert " 10000 MiB: too much" in output


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not keep a memory limit")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_thumbnails(tmp_path: Path, backend: str) -> None:
    sheet = tmp_path / "sheet.png"
    output = run_example("thumbnails.py", "--backend", backend, str(sheet))
    assert "drew 62 pictures of " in output
    assert "cut-off.jpg: OSError: image file is truncated" in output
    assert "bomb.png: WorkerMemoryError: the worker's memory_limit of 419430400 bytes" in output
    assert "made 62 thumbnails of 64 files" in output
    assert f"the contact sheet is {sheet}" in output
    with Image.open(sheet) as picture:
        assert picture.size == (1772, 1356)
        assert len(picture.getcolors(picture.width * picture.height) or ()) > 10_000


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_pipeline(backend: str) -> None:
    output = run_example("pipeline.py", "--lines", "4000", "--parsers", "3", "--backend", backend)
    hits = [line.split() for line in output.splitlines() if " hits " in line]
    assert sum(int(words[1]) for words in hits) == 4000
    parsed = output[output.index("parsed by each:") :].splitlines()[0].partition(": ")[2]
    assert sum(map(int, parsed.split(", "))) == 4000


def test_cluster_map() -> None:
    output = run_example("cluster_map.py", "--backend", "trio")
    assert "664579 primes below 10000000" in output
    assert "given up after a second; 9592 primes" in output
