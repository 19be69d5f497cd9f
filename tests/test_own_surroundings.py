"""What children under creche's own start method find around them: what is there now.

The server that they are forks of was started some time ago, and has state of its own.
"""

from __future__ import annotations

import contextlib
import locale
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import start_targets as targets
from scripts import Program
from start_targets import server_pid, value_of
from support import TIMEOUT, Announcements, wait_until_gone

import creche
from creche import ProcessStartError, run_in_process

SOON = 10.0


@pytest.fixture
def context() -> Any:
    """The plain one, whose server runs and is warm."""
    context = creche.get_context()
    assert value_of(context, abs, -1) == 1
    return context


# --- surroundings as they are now -----------------------------------------------------------------


@contextlib.contextmanager
def changed_environment(_: Path) -> Iterator[None]:
    variable, other = "CRECHE_TESTS_VARIABLE", "CRECHE_TESTS_OTHER"
    with pytest.MonkeyPatch.context() as patch:
        os.environ[variable] = "to go"
        patch.setenv(variable, "value = ü\n")
        patch.setitem(os.environb, b"CRECHE_TESTS_BYTES", b"\xff\xfe")
        patch.delenv("HOME", raising=False)
        patch.setenv(other, "")
        yield
    del os.environ[variable]


@contextlib.contextmanager
def changed_directory(tmp_path: Path) -> Iterator[None]:
    folder = tmp_path / "a folder with {braces}, 'quotes' and ü"
    folder.mkdir()
    with contextlib.chdir(folder):
        yield


@contextlib.contextmanager
def changed_path(tmp_path: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path[::-1], str(tmp_path), "relative"])
        yield


@contextlib.contextmanager
def changed_arguments(_: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", "--option", "ü", "\udcff", ""])
        yield


@contextlib.contextmanager
def changed_locale(_: Path) -> Iterator[None]:
    before = locale.setlocale(locale.LC_ALL)
    other = "C.UTF-8" if locale.setlocale(locale.LC_CTYPE) == "C" else "C"
    locale.setlocale(locale.LC_ALL, other)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@contextlib.contextmanager
def changed_zone(_: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "XYZ-5:30")
        time.tzset()
        yield
    time.tzset()


CHANGES: dict[str, Callable[[Path], contextlib.AbstractContextManager[None]]] = {
    "environment": changed_environment,
    "directory": changed_directory,
    "path": changed_path,
    "arguments": changed_arguments,
    "locale": changed_locale,
    "zone": changed_zone,
}


@pytest.mark.parametrize("change", CHANGES)
def test_surroundings_change(context: Any, tmp_path: Path, change: str) -> None:
    """And change back. The first child was forked before the change, the others after it."""
    before = targets.surroundings()
    assert value_of(context, targets.surroundings) == before
    with CHANGES[change](tmp_path):
        changed = targets.surroundings()
        assert changed != before
        for _ in range(3):
            assert value_of(context, targets.surroundings) == changed
    assert targets.surroundings() == before
    for _ in range(3):
        assert value_of(context, targets.surroundings) == before


@pytest.mark.anyio
async def test_all_surroundings_change(tmp_path: Path) -> None:
    """All at once, while there are several processes at a time."""
    before = targets.surroundings()
    with anyio.fail_after(TIMEOUT), contextlib.ExitStack() as stack:
        assert await run_in_process(targets.surroundings) == before
        for change in CHANGES.values():
            stack.enter_context(change(tmp_path))
        changed = targets.surroundings()
        async with creche.open_nursery() as nursery:
            processes = [nursery.start_soon(targets.surroundings) for _ in range(5)]
        assert [process.return_value for process in processes] == [changed] * 5
    with anyio.fail_after(TIMEOUT):
        for _ in range(3):
            assert await run_in_process(targets.surroundings) == before


def test_warning_filters_change(context: Any) -> None:
    """Also those of categories that children have to import first."""
    for action, reaction in [("error", "raised"), ("always", "shown"), ("ignore", "ignored")]:
        with warnings.catch_warnings():
            warnings.resetwarnings()
            warnings.simplefilter("ignore", ImportWarning)
            warnings.filterwarnings(action, "of .*", targets.OwnWarning)  # type: ignore[arg-type]
            warnings.filterwarnings("always", category=RuntimeWarning)
            # Cannot be pickled, so nobody else can warn with it.
            warnings.simplefilter("error", type("Local", (UserWarning,), {}))
            for _ in range(3):
                assert value_of(context, targets.reaction_to_warnings) == {
                    "OwnWarning": reaction,
                    "RuntimeWarning": "shown",
                    "ImportWarning": "ignored",
                }
    # As pytest has it.
    assert value_of(context, targets.reaction_to_warnings) == targets.reaction_to_warnings()
    assert value_of(context, targets.reaction_to_warnings)["OwnWarning"] == "raised"


@pytest.mark.anyio
async def test_working_directory_is_gone(tmp_path: Path, context: Any) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with anyio.fail_after(TIMEOUT):
        with contextlib.chdir(folder):
            assert await run_in_process(os.getcwd) == str(folder)
            folder.rmdir()
            with pytest.raises(ProcessStartError, match="No such file or directory"):
                await run_in_process(os.getcwd)
            with pytest.raises(FileNotFoundError):
                value_of(context, os.getcwd)
        # The server, and the spare that it has, are still in there.
        for _ in range(2):
            assert await run_in_process(os.getcwd) == os.getcwd()
            assert value_of(context, os.getcwd) == os.getcwd()


@pytest.mark.anyio
async def test_working_directory_that_children_cannot_enter(tmp_path: Path) -> None:
    """Its path is too long. What else has changed is taken back with it."""
    before = await run_in_process(targets.surroundings)
    with anyio.fail_after(TIMEOUT):
        with contextlib.chdir(tmp_path), pytest.MonkeyPatch.context() as patch:
            for _ in range(25):
                os.mkdir("d" * 200)
                os.chdir("d" * 200)
            patch.setenv("CRECHE_TESTS_VARIABLE", "in a deep directory")
            for _ in range(2):
                with pytest.raises(ProcessStartError, match="too long"):
                    await run_in_process(os.getcwd)
        for _ in range(3):
            assert await run_in_process(targets.surroundings) == before


def test_output_is_redirected(program: Program) -> None:
    """By the descriptors themselves, as test runners and daemons do it."""
    text = """
    import os, subprocess, sys
    import creche

    def speak(text):
        print(text, "printed")
        print(text, "printed to stderr", file=sys.stderr)
        sys.stdout.flush()
        os.write(1, f"{text} written\\n".encode())
        subprocess.run(["echo", text, "from a program"], check=True)

    def run(text):
        process = creche.get_context().Process(target=speak, args=(text,))
        process.start()
        process.join()
        assert process.exitcode == 0

    if __name__ == "__main__":
        run("1")
        original = os.dup(1)
        with open("redirected", "wb") as file:
            os.dup2(file.fileno(), 1)
            run("2")
            run("3")
            os.dup2(original, 1)
        run("4")
        os.dup2(1, 2)
        run("5")
    """
    result = program.run(program.write(text))
    said = {
        number: [f"{number} {how}" for how in ("printed", "written", "from a program")]
        for number in "12345"
    }
    redirected = (program.folder / "redirected").read_text().splitlines()
    assert redirected == said["2"] + said["3"]
    stdout = result.stdout.splitlines()
    assert stdout[:6] == said["1"] + said["4"]
    assert sorted(stdout[6:]) == sorted([*said["5"], "5 printed to stderr"])
    assert result.stderr.splitlines() == [f"{number} printed to stderr" for number in "1234"]


CLOSED = """
import os, signal, sys
import creche, support

def child(path, code):
    try:
        os.write(2, b"a line of text, which nobody gets\\n")
        print("printed")
    except OSError:
        pass
    support.append_line(path, "ran")
    os._exit(code)

def hook(kind, error, traceback):
    support.announce(fifo, f"{kind.__name__}: {error}")

def run(path, code):
    process = creche.get_context().Process(target=child, args=(path, code))
    process.start()
    process.join(60)
    support.append_line(path, process.exitcode)

if __name__ == "__main__":
    path, fifo, closes, *descriptors = sys.argv[1:]
    sys.excepthook = hook
    if closes == "later":
        run(path, 2)
        for descriptor in descriptors:
            os.close(int(descriptor))
    for code in (3, 4):
        run(path, code)
    process = creche.get_context().Process(
        target=support.announce_then, args=(fifo, support.wait_for_ever)
    )
    process.start()
    signal.pause()
"""


@pytest.mark.parametrize("closes", ["before", "later"])
@pytest.mark.parametrize("descriptors", ["1", "2", "12", "012"])
def test_closed_output(program: Program, closes: str, descriptors: str) -> None:
    """As in daemons. What the application opens next has these numbers, and is no output."""
    path = program.folder / "lines"
    fifo = Announcements(program.folder / "announcements")
    script = program.write(CLOSED)
    # A program cannot be started by subprocess without them.
    launcher = program.write(
        f"""
        import os, sys
        if {closes == "before"}:
            for descriptor in {descriptors!r}:
                os.close(int(descriptor))
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
        """,
        "launcher.py",
    )
    arguments = (launcher, script, path, fifo.path, closes, *descriptors)
    with contextlib.closing(fifo), program.running(*arguments) as application:
        announced = fifo.get_blocking()
        assert announced.isdigit(), announced
        application.kill()
        child = int(announced)
        assert wait_until_gone(child, SOON)
    lines = path.read_text().split()
    expected = ["ran", "3", "ran", "4"]
    assert lines == (["ran", "2", *expected] if closes == "later" else expected)


@pytest.mark.anyio
async def test_large_surroundings(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger than any packet, and than all arguments of a program together may be."""
    names = [f"CRECHE_TESTS_LARGE_{number}" for number in range(2)]
    for name in names:
        monkeypatch.setenv(name, 100_000 * "e")
    monkeypatch.setattr(sys, "argv", ["program", *100 * [3_000 * "a"]])
    with anyio.fail_after(TIMEOUT):
        for _ in range(2):
            value = await run_in_process(targets.lengths, *names)
            assert value == (300_007, [100_000, 100_000])
        # A new server is told of them, too.
        server = server_pid()
        os.kill(server, signal.SIGKILL)
        assert wait_until_gone(server)
        for _ in range(2):
            assert await run_in_process(targets.lengths, *names) == value
        assert value_of(context, targets.lengths, *names) == value


# --- descriptors that travel ----------------------------------------------------------------------


@pytest.fixture
def many_connections() -> Iterator[Callable[[int], list[Any]]]:
    opened: list[Any] = []

    def make(count: int) -> list[Any]:
        """Connections from each of which its position can be received."""
        receivers = []
        for number in range(count):
            receiver, sender = multiprocessing.Pipe(duplex=False)
            opened.append(receiver)
            with sender:
                sender.send(number)
            receivers.append(receiver)
        return receivers

    yield make
    for connection in opened:
        connection.close()


@pytest.mark.parametrize("count", [1, 100, 247])
def test_many_descriptors(context: Any, many_connections: Any, count: int) -> None:
    """With the pipe for the value, as many as there can be at most, and a large object besides."""
    receivers = many_connections(count)
    data = bytes(1_000_000)
    value = value_of(context, targets.received_and_length, receivers, data)
    assert value == (list(range(count)), len(data))


@pytest.mark.parametrize("count", [248, 253, 300])
def test_too_many_descriptors(context: Any, many_connections: Any, count: int) -> None:
    with pytest.raises(ValueError, match=rf"248 descriptors at most, not {count + 1}"):
        value_of(context, targets.received, many_connections(count))
    assert multiprocessing.active_children() == []
    assert value_of(context, abs, -1) == 1


@pytest.mark.anyio
async def test_many_descriptors_of_an_async_process(many_connections: Any) -> None:
    with anyio.fail_after(TIMEOUT):
        receivers = many_connections(200)
        assert await run_in_process(targets.received, receivers) == list(range(200))
        with pytest.raises(ProcessStartError, match="descriptors at most"):
            await run_in_process(targets.received, many_connections(300))
        assert await run_in_process(abs, -1) == 1
