"""The live table of processes."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import anyio
import pytest
import timeline_targets as targets
from rich.console import Console
from rich.errors import LiveError
from rich.live import Live
from scripts import Program
from support import TIMEOUT, Announcements
from timeline_data import call, process

import creche
import creche.monitor
from creche._instruments import instruments
from creche.monitor import GroupStatus, Monitor
from creche.monitor._table import draw, duration, size
from creche.monitor._watching import Watching


def console(*, terminal: bool = False, height: int = 40) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=140, height=height)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def group(monitor: Monitor, pool: str | None = None) -> GroupStatus:
    return next(group for group in monitor.snapshot() if group.pool == pool)


@pytest.mark.anyio
async def test_pool(announcements: Announcements) -> None:
    out = console()
    async with creche.monitor.monitor(console=out, title="a title") as monitor:
        async with creche.open_pool(workers=1, name="own") as pool:
            assert await pool.run(targets.double, 1) == 2
            with pytest.raises(ValueError, match="no"):
                await pool.run(targets.fail, "no")
            (idle,) = group(monitor, "own").processes
            assert (idle.state, idle.tasks, idle.failed) == ("idle", 2, 1)
            with pytest.raises(creche.ProcessDied):
                await pool.run(targets.crash)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.run, targets.announce_and_wait, announcements.path)
                pid = await announcements.get_pid()
                tasks.start_soon(pool.run, targets.double, 1)
                await anyio.wait_all_tasks_blocked()
                own = group(monitor, "own")
                (busy,) = own.processes
                assert (busy.pid, busy.state) == (pid, "busy")
                assert busy.func == "timeline_targets.announce_and_wait"
                assert busy.memory is not None
                assert busy.memory > 1_000_000
                assert busy.uptime > 0
                assert (own.waiting, own.tasks, own.failed, own.restarts) == (1, 3, 2, 1)
                assert own.started == 2
                assert [status.exitcode for status in own.ended] == [-9]
                tasks.cancel_scope.cancel()
        assert group(monitor, "own").processes == ()
        assert group(monitor, "own").tasks == 5
    text = written(out)
    assert text.startswith("a title · ")
    assert "pool own" in text
    assert "exit code -9" in text
    assert text.count("a title") == 1


@pytest.mark.anyio
async def test_processes(announcements: Announcements) -> None:
    out = console()
    with creche.monitor.monitor(console=out) as monitor:
        async with creche.open_nursery() as nursery:
            await nursery.start(targets.serve, announcements.path)
            (ready,) = group(monitor).processes
            assert ready.state == "ready"
            assert ready.func == "timeline_targets.serve"
            await announcements.get_pid()
            nursery.cancel_scope.cancel()
        for _ in range(2):
            process = creche.AsyncProcess(target=targets.double, args=(1,), name="again")
            assert await process == 2
    *_, again = group(monitor).ended
    assert (again.name, again.restarts, again.state) == ("again", 1, "ended")
    assert group(monitor).restarts == 1
    assert group(monitor).failed == 0
    assert "exit code -15" in written(out)


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out = console(terminal=True)
    drawn = threading.Event()
    monitor = creche.monitor.monitor(console=out, interval=0.01)
    picture = monitor._picture

    def signal(*, over: bool = False) -> object:
        if threading.current_thread().name == "creche-monitor":
            drawn.set()
        return picture(over=over)

    monkeypatch.setattr(monitor, "_picture", signal)
    with monitor:
        assert drawn.wait(TIMEOUT)
        out.print("above")
    text = written(out)
    assert "above\n" in text
    assert text.count("0 processes") > 1
    assert "creche-monitor" not in [thread.name for thread in threading.enumerate()]


def test_start_and_stop() -> None:
    monitor = creche.monitor.monitor(console=console())
    monitor.stop()  # it has not begun
    monitor.start()
    with pytest.raises(RuntimeError, match="started before"):
        monitor.start()
    monitor.stop()
    monitor.stop()
    with pytest.raises(RuntimeError, match="make another"):
        monitor.start()
    for interval in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="interval must be a positive number of seconds"):
            creche.monitor.monitor(interval=interval)


def test_a_block_that_fails() -> None:
    out = console(terminal=True)
    stdout = sys.stdout
    with pytest.raises(LookupError), creche.monitor.monitor(console=out):
        raise LookupError
    assert sys.stdout is stdout
    assert "0 processes" in written(out)


def test_live_display_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where rich has another one, in versions that allow for one alone."""

    def refuse(self: Live) -> None:
        raise LiveError("Only one live display may be active at once")

    monitor = creche.monitor.monitor(console=console(terminal=True))
    with monkeypatch.context() as patch:
        patch.setattr(Live, "start", refuse)
        with pytest.raises(LiveError):
            monitor.start()
    assert monitor._watching not in instruments.all
    with monitor:
        assert monitor._watching in instruments.all
    assert monitor._watching not in instruments.all


def test_a_terminal_that_goes_away() -> None:
    class Gone(io.StringIO):
        gone = False

        def write(self, text: str) -> int:
            if self.gone:
                raise OSError(5, "Input/output error")
            return super().write(text)

    file = Gone()
    monitor = creche.monitor.monitor(
        console=Console(file=file, force_terminal=True, width=140, height=40), interval=0.01
    )
    monitor.start()
    file.gone = True
    assert monitor._thread is not None
    monitor._thread.join(TIMEOUT)
    stdout = sys.stdout
    monitor.stop()
    assert sys.stdout is stdout


def test_many_processes_fit_on_the_screen() -> None:
    watching = Watching()
    for number in range(300):
        made = process(f"process-{number}", 100 + number, func="module.func")
        watching.process_created(made)
        watching.process_started(made)
    for number in range(5):
        made = process(f"w-{number}", 1000 + number, kind="worker", pool="pool")
        watching.process_created(made)
    out = console(height=30)
    out.print(
        draw(watching.groups(), title="t", seconds=1, rate=None, most_lines=29),
    )
    lines = written(out).splitlines()
    assert len(lines) <= 29
    assert "305 processes" in lines[0]
    assert any("w-4" in line for line in lines)
    assert any(re.match(r"  and 28\d more", line) for line in lines)


def test_names_with_markup() -> None:
    watching = Watching()
    watching.process_created(process("[red]name[/red]", func="[bold]f"))
    out = console()
    out.print(draw(watching.groups(), title="[i]t", seconds=1, rate=3.0, most_lines=None))
    assert "[red]name[/red]" in written(out)
    assert "[i]t" in written(out)


def test_calls_that_overlap() -> None:
    """A large result is under way while the worker has the next call."""
    watching = Watching()
    made = process("w", 1, kind="worker", pool="pool")
    watching.process_created(made)
    watching.process_started(made)
    watching.process_ready(made)
    first, second = call(), call("module.second")
    for each in (first, second):
        watching.call_queued(each)
        each.process = made
        watching.call_started(each)
    first.status = "ok"
    watching.call_finished(first)
    (status,) = watching.groups()[0].processes
    assert (status.state, status.func, status.tasks) == ("busy", "module.second", 1)
    second.status = "killed"
    watching.call_finished(second)
    (status,) = watching.groups()[0].processes
    assert (status.state, status.tasks, status.failed) == ("idle", 2, 1)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (2048, "2 KiB"), (5 << 20, "5 MiB"), (3 << 29, "1.50 GiB")],
)
def test_sizes(number: int, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (12.6, "13 s"), (75, "1:15 min"), (7260, "2:01 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --- as a program ---------------------------------------------------------------------------------

SCRIPT = """
    import sys
    import anyio, creche

    def speak():
        print("from a fork", flush=True)
        return sys.stdout is sys.__stdout__

    async def main():
        print("above the table")
        async with creche.open_pool(workers=1, name="own", start_method="fork") as pool:
            print("not redirected:", await pool.run(speak))
        if "fail" in sys.argv:
            raise LookupError("no such thing")

    if __name__ == "__main__":
        anyio.run(main)
"""


def test_program(program: Program) -> None:
    script = program.write(SCRIPT)
    done = program.run("-m", "creche", "monitor", script)
    assert done.returncode == 0, done.stderr
    assert "above the table\n" in done.stdout
    assert "not redirected: True" in done.stdout
    assert done.stderr.startswith("program.py · ")
    assert "own-worker-1" in done.stderr
    done = program.run("-m", "creche", "monitor", script, "fail")
    assert done.returncode == 1
    assert "own-worker-1" in done.stderr
    assert done.stderr.endswith("LookupError: no such thing\n")


def run_on_a_terminal(program: Program, *arguments: object) -> str:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    try:
        running = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=program.folder,
            env={**program.environment, "TERM": "xterm-256color"},
        )  # fmt: skip
    finally:
        os.close(theirs)
    output = b""
    try:
        while data := os.read(ours, 65536):
            output += data
    except OSError:  # everybody has closed it
        pass
    finally:
        os.close(ours)
    assert running.wait(TIMEOUT) == 0, output.decode()
    return output.decode()


def test_program_on_a_terminal(program: Program) -> None:
    output = run_on_a_terminal(program, "-m", "creche", "monitor", program.write(SCRIPT))
    assert "above the table\r\n" in output
    assert "from a fork" in output
    assert "not redirected: True" in output  # a fork prints past the table
    assert "own-worker-1" in output
    assert output.count("\x1b[?25l") == output.count("\x1b[?25h") > 0  # the cursor is back


def test_without_the_extra(program: Program) -> None:
    script = program.write(SCRIPT)
    for name in ("rich", "psutil"):
        program.write(f"raise ImportError('no', name={name!r})", f"{name}.py")
        program.environment["PYTHONPATH"] = os.pathsep.join(
            [str(program.folder), program.environment["PYTHONPATH"]]
        )
        done = program.run("-m", "creche", "monitor", script)
        assert done.returncode == 2
        assert (
            done.stderr
            == f"python -m creche: creche.monitor needs {name}: pip install creche[monitor]\n"
        )
        Path(program.folder / f"{name}.py").unlink()
