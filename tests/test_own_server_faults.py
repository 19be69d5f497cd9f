"""The server of creche's own start method, and its spare, where somebody kills or stops them.

What all start methods have in common is in :mod:`test_start_faults`.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
import start_targets as targets
import support
from scripts import Program, Result
from start_targets import server_pid, value_of
from support import TIMEOUT, Announcements, until, wait_until_gone

import creche
from creche import AsyncProcess, ProcessDied, ProcessStartError, StopPolicy, run_in_process
from creche._start_methods._server import _popen, _server_process

EAGAIN_TEXT = os.strerror(11)


@pytest.fixture
def context() -> Any:
    """The plain one, whose server runs."""
    context = creche.get_context()
    assert value_of(context, abs, -1) == 1
    return context


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def spare_of(server: int) -> int:
    """Wait until the server has a spare: a child that is still in the server's process group."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        for child in psutil.Process(server).children():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getpgid(child.pid) == server and child.status() != psutil.STATUS_ZOMBIE:
                    return child.pid
        time.sleep(0.001)
    raise TimeoutError("the server makes no spare")


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)
    assert wait_until_gone(pid)


def printed_lines(result: Result) -> list[str]:
    report = f"{result.stdout}\n--- stderr ---\n{result.stderr}"
    assert result.returncode == 0, report
    return result.stdout.splitlines()


# --- killed and stopped ---------------------------------------------------------------------------


@pytest.mark.anyio
async def test_spare_killed_while_idle(context: Any, tmp_path: Path) -> None:
    """Somebody's cleaning up, or the OOM killer. The next request makes another one."""
    path = str(tmp_path / "ran")
    server = server_pid()
    with anyio.fail_after(TIMEOUT):
        for number in range(6):
            kill(spare_of(server))
            if number % 2:
                assert await run_in_process(support.note, path, number) == number
            else:
                assert value_of(context, support.note, path, number) == number
    assert server_pid() == server
    assert Path(path).read_text().split() == list("012345")


@pytest.mark.parametrize(
    "stopped", [("spare",), ("server",), ("server", "spare")], ids="-and-".join
)
def test_stopped_by_somebody(context: Any, tmp_path: Path, stopped: tuple[str, ...]) -> None:
    """A start has them continue. Nothing runs twice."""
    path = str(tmp_path / "ran")
    server = server_pid()
    spare = spare_of(server)
    for who in stopped:
        os.kill(spare if who == "spare" else server, signal.SIGSTOP)
    try:
        for number in range(3):
            assert value_of(context, support.note, path, number) == number
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server, signal.SIGCONT)
    assert server_pid() == server
    assert Path(path).read_text().split() == list("012")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_server_killed(context: Any, tmp_path: Path, number: int) -> None:
    """Its spare, which could still take requests, goes as well."""
    path = str(tmp_path / "ran")
    server = server_pid()
    spare = spare_of(server)
    kill(server, number)
    for turn in range(3):
        assert value_of(context, support.note, path, turn) == turn
    assert server_pid() != server
    assert wait_until_gone(spare)
    assert Path(path).read_text().split() == list("012")


def test_server_killed_and_spare_stopped(context: Any) -> None:
    """The spare holds the other end of the socket, which so does not end."""
    server = server_pid()
    spare = spare_of(server)
    os.kill(spare, signal.SIGSTOP)
    kill(server)
    assert value_of(context, abs, -3) == 3
    assert server_pid() != server
    with contextlib.suppress(ProcessLookupError):
        os.kill(spare, signal.SIGCONT)
    assert wait_until_gone(spare)


def test_server_that_takes_a_moment_to_end(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is at the other end of its socket any more, and it is not asked once more."""
    server = server_pid()
    spare = spare_of(server)
    kill(server)
    assert wait_until_gone(spare)
    has_ended = _server_process.ServerProcess.has_ended
    with monkeypatch.context() as patch:
        patch.setattr(
            _server_process.ServerProcess,
            "has_ended",
            lambda process: process.pid != server and has_ended(process),
        )
        assert value_of(context, abs, -3) == 3
    assert server_pid() != server


def test_exit_code_after_the_server(context: Any, announcements: Announcements, gate: Path) -> None:
    """The kernel tells it, from Linux 6.15 on. A join ends, whatever it knows."""
    process = context.Process(target=targets.hold_and_exit, args=(announcements.path, str(gate), 7))
    process.start()
    announcements.get_blocking()
    kill(server_pid())
    assert process.is_alive()
    gate.write_text("")
    process.join(TIMEOUT)
    assert process.exitcode in (7, 255)
    process.close()


def test_stop_after_the_server(context: Any, announcements: Announcements, gate: Path) -> None:
    processes = [
        context.Process(target=targets.hold, args=(announcements.path, str(gate))) for _ in range(2)
    ]
    for process in processes:
        process.start()
        announcements.get_blocking()
    kill(server_pid())
    processes[0].terminate()
    processes[1].kill()
    for process, expected in zip(processes, (-15, -9), strict=True):
        process.join(TIMEOUT)
        assert process.exitcode in (expected, 255)
        assert wait_until_gone(process.pid)
        process.close()


@pytest.mark.parametrize("retired", [False, True], ids=["in-use", "retired"])
def test_join_while_the_server_is_stopped(
    context: Any, announcements: Announcements, gate: Path, retired: bool
) -> None:
    """The server knows the exit code, and is woken up to tell it."""
    process = context.Process(target=targets.hold_and_exit, args=(announcements.path, str(gate), 7))
    process.start()
    announcements.get_blocking()
    server = server_pid()
    with creche.preload("colorsys") if retired else contextlib.nullcontext():
        assert value_of(context, abs, -1) == 1  # from another server, where this one is retired
        os.kill(server, signal.SIGSTOP)
        try:
            gate.write_text("")
            process.join(TIMEOUT)
            assert process.exitcode == 7
        finally:
            os.kill(server, signal.SIGCONT)
    process.close()
    assert not retired or wait_until_gone(server)
    settle(context)


# --- ended, and not reaped yet --------------------------------------------------------------------

PTRACE_SEIZE = 0x4206
WALL = 0x40000000  # from <linux/wait.h>


class Debugger:
    """Keeps a process from being reaped when it ends, as does a CPU that it has to wait for."""

    def __init__(self, pid: int) -> None:
        ptrace = ctypes.CDLL(None, use_errno=True).ptrace
        ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        if ptrace(PTRACE_SEIZE, pid, None, None):
            pytest.skip(f"no debugger may attach here: {os.strerror(ctypes.get_errno())}")
        self._pid = pid

    def let_go(self) -> None:
        """Have the process reaped, which has ended."""
        os.waitpid(self._pid, WALL)


async def end_under_debugger(
    announcements: Announcements, gate: Path
) -> tuple[AsyncProcess[Any], Debugger]:
    """Start a process, and have it end with exit code 7; it is not reaped."""
    process = AsyncProcess(target=targets.hold_and_exit, args=(announcements.path, str(gate), 7))
    await process.start()
    await announcements.get()
    assert process.pid is not None
    debugger = Debugger(process.pid)
    await anyio.to_thread.run_sync(gate.write_text, "")
    return process, debugger


@pytest.mark.anyio
async def test_exit_code_that_comes_late(
    context: Any, announcements: Announcements, gate: Path
) -> None:
    """Between its end and its reaping, a process is not taken for one whose exit code is lost."""
    with anyio.fail_after(TIMEOUT):
        process, debugger = await end_under_debugger(announcements, gate)
        assert process.pid is not None
        assert await anyio.to_thread.run_sync(wait_until_gone, process.pid)
        assert await process.join(0.3) is None
        debugger.let_go()
        assert await process.join() == 7


@pytest.mark.anyio
async def test_exit_code_that_never_comes(
    context: Any, announcements: Announcements, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_popen, "_EXIT_CODE_LOST", 0.1)
    with anyio.fail_after(TIMEOUT):
        process, debugger = await end_under_debugger(announcements, gate)
        with pytest.raises(ProcessDied) as raised:
            await process.result()
        assert raised.value.exitcode is None
    debugger.let_go()


@pytest.mark.parametrize("comes", [True, False])
def test_exit_code_that_comes_late_to_a_plain_process(
    context: Any,
    announcements: Announcements,
    gate: Path,
    monkeypatch: pytest.MonkeyPatch,
    comes: bool,
) -> None:
    monkeypatch.setattr(_popen, "_EXIT_CODE_LOST", TIMEOUT if comes else 0.1)
    process = context.Process(target=targets.hold_and_exit, args=(announcements.path, str(gate), 7))
    process.start()
    announcements.get_blocking()
    debugger = Debugger(process.pid)
    gate.write_text("")
    assert wait_until_gone(process.pid)
    assert process.is_alive()  # as far as is known
    assert process.exitcode is None
    joining = threading.Thread(target=process.join)
    joining.start()
    if comes:
        joining.join(0.3)
        assert joining.is_alive()
        debugger.let_go()
    joining.join(TIMEOUT)
    assert process.exitcode == (7 if comes else 255)
    if not comes:
        debugger.let_go()
    process.close()


# --- killed all the time --------------------------------------------------------------------------


class Killer:
    """Kills or stops the server, or its spare, at any moment for as long as the block takes."""

    ENOUGH = 3
    """How often it has to have done so."""

    MOST_STOPS = 3
    """How often it stops one for whoever waits: after ten such seconds it would count as hung."""

    def __init__(self, victim: str, number: int) -> None:
        self._victim = victim
        self._number = number
        self._stops = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.kills = 0

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(TIMEOUT)

    def turns(self, least: int) -> Iterator[int]:
        """Count the turns that something takes, so many at least, until it was killed enough."""
        for turn in itertools.count():
            if turn >= least and self.kills >= self.ENOUGH:
                return
            self._stops = 0
            yield turn

    def _run(self) -> None:
        moments = random.Random(4711)
        while not self._ended.wait(moments.uniform(0, 0.03)):
            for server in creche.fork_server_statistics():
                with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                    self._attack(server.pid)

    def _attack(self, server: int) -> None:
        if self._victim == "spare":
            for child in psutil.Process(server).children():
                if os.getpgid(child.pid) == server:
                    self._hit(child.pid)
        elif self._number != signal.SIGSTOP:
            self._hit(server)
        elif (
            self._stops < self.MOST_STOPS
            and psutil.Process(server).status() != psutil.STATUS_STOPPED
        ):
            self._stops += 1
            self._hit(server)

    def _hit(self, pid: int) -> None:
        os.kill(pid, self._number)
        self.kills += 1


def settle(context: Any) -> None:
    """Start processes until none of the servers that were killed is left to be reaped."""
    deadline = time.monotonic() + TIMEOUT
    others = support.library_servers()  # which other tests may have killed
    while True:
        assert value_of(context, abs, -1) == 1
        statuses = [c.status() for c in psutil.Process().children() if c.pid not in others]
        if psutil.STATUS_ZOMBIE not in statuses:
            return
        assert time.monotonic() < deadline, statuses


def check_runs(path: Path, ran: list[int], total: int) -> None:
    """Nothing ran twice, and what says that it ran did."""
    counts = Counter(map(int, path.read_text().split())) if path.exists() else Counter[int]()
    assert set(counts) <= set(range(total))
    assert [number for number, count in counts.items() if count > 1] == []
    assert set(ran) <= set(counts)


@pytest.mark.anyio
@pytest.mark.parametrize("victim", ["server", "spare"])
async def test_killed_all_the_time(tmp_path: Path, victim: str) -> None:
    path = tmp_path / "ran"
    ran: list[int] = []
    failures: list[BaseException] = []

    async def run(number: int) -> None:
        try:
            ran.append(await run_in_process(support.note, str(path), number))
        except (ProcessStartError, ProcessDied) as error:
            failures.append(error)

    with anyio.fail_after(2 * TIMEOUT):
        with Killer(victim, signal.SIGKILL) as killer:
            for turn in killer.turns(10):
                total = 5 * (turn + 1)
                async with anyio.create_task_group() as group:
                    for number in range(total - 5, total):
                        group.start_soon(run, number)
        assert await run_in_process(abs, -1) == 1
    assert len(ran) + len(failures) == total
    check_runs(path, ran, total)
    await anyio.to_thread.run_sync(settle, creche.get_context())


@pytest.mark.parametrize("victim", ["server", "spare"])
def test_killed_all_the_time_under_plain_processes(
    context: Any, tmp_path: Path, victim: str
) -> None:
    path = tmp_path / "ran"
    ran: list[int] = []
    failures: list[object] = []
    with Killer(victim, signal.SIGKILL) as killer:
        for number in killer.turns(50):
            process = context.Process(target=support.note, args=(str(path), number))
            try:
                process.start()
            except OSError as error:
                failures.append(error)
                continue
            process.join(TIMEOUT)
            if process.exitcode == 0:
                ran.append(number)
            else:
                failures.append(process.exitcode)
            process.close()
    assert len(ran) + len(failures) == number + 1
    # 255: the server took the exit code with it.
    assert [
        code for code in failures if not isinstance(code, OSError) and code not in (255, -9)
    ] == []
    check_runs(path, ran, number + 1)
    settle(context)


@pytest.mark.anyio
async def test_server_stopped_all_the_time(tmp_path: Path) -> None:
    """Whoever starts something has it continue, and all of it ends well."""
    path = tmp_path / "ran"
    await run_in_process(abs, -1)
    server = server_pid()
    with anyio.fail_after(2 * TIMEOUT):
        with Killer("server", signal.SIGSTOP) as killer:
            for number in killer.turns(4):
                assert await run_in_process(support.note, str(path), number) == number
        os.kill(server, signal.SIGCONT)
        assert await run_in_process(abs, -1) == 1
    assert server_pid() == server
    check_runs(path, list(range(number + 1)), number + 1)


def stop_new_servers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have servers stopped as soon as they are there; return a list of those that were."""
    stopped: list[int] = []
    spawn = _server_process._spawn

    def spawn_and_stop(sock: int, lifeline: int, path: list[str]) -> int:
        pid = spawn(sock, lifeline, path)
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)
        return pid

    monkeypatch.setattr(_server_process, "_spawn", spawn_and_stop)
    return stopped


async def cancel_when(condition: Callable[[], object], scope: anyio.CancelScope) -> None:
    await until(condition)
    scope.cancel()


@pytest.mark.anyio
async def test_server_stopped_before_it_serves(
    context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(server_pid())
    stopped = stop_new_servers(monkeypatch)
    with anyio.fail_after(TIMEOUT):
        assert await run_in_process(abs, -1) == 1
    assert stopped == [server_pid()]


@pytest.mark.anyio
async def test_server_that_stays_stopped_before_it_serves(
    context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed for whoever is stopped himself, though it has no process group yet."""
    kill(server_pid())
    policy = StopPolicy(grace=0, kill_timeout=0.2)
    with monkeypatch.context() as patch, anyio.fail_after(TIMEOUT):
        patch.setattr(_server_process, "WAKING_SECONDS", TIMEOUT)
        stopped = stop_new_servers(patch)
        async with anyio.create_task_group() as tasks:
            # Where the server is not gone by the time that whoever was cancelled hears of it.
            stuck = contextlib.suppress(creche.ProcessStuckError)
            with stuck, anyio.CancelScope() as scope:
                tasks.start_soon(cancel_when, lambda: stopped, scope)
                await run_in_process(abs, -1, stop=policy)
    assert wait_until_gone(stopped[0])
    with anyio.fail_after(TIMEOUT):
        assert await run_in_process(abs, -1) == 1


# --- what the system has no more of ---------------------------------------------------------------

ATTEMPTS = """
import os, sys
import anyio, creche, support

{head}

async def main():
    for number in range({attempts}):
        try:
            value = await creche.run_in_process(support.note, "ran", number, timeout=60)
        except creche.ProcessError as error:
            print(f"{{type(error).__name__}}: {{error}}")
        else:
            print("value:", value)

if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1])
"""

# Makes something fail in the server or its forks, as often as the file has bytes left.
COUNTED = """
def count():
    with open("count", "r+b") as file:
        left = int(file.read() or b"0")
        file.seek(0)
        file.truncate()
        file.write(b"%d" % max(0, left - 1))
    return left > 0
"""

NO_PROCESS_IDS = f"""
import errno
{COUNTED}
original_fork = os.fork

def fork():
    if count():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return original_fork()

if __name__ == "__mp_main__":
    os.fork = fork
"""

STILLBORN = f"""
{COUNTED}
if __name__ == "__mp_main__":
    os.register_at_fork(after_in_child=lambda: os._exit(5) if count() else None)
"""

# The first fork is a trial of what the kernel tells, the second the first spare.
GONE_BEFORE_IT_IS_WATCHED = """
import contextlib
forks = 0

def before():
    global forks
    forks += 1

def after_in_child():
    if forks == 2:
        os._exit(5)

def after_in_parent():
    if forks == 2:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)

if __name__ == "__mp_main__":
    os.register_at_fork(
        before=before, after_in_child=after_in_child, after_in_parent=after_in_parent
    )
"""


def run_attempts(
    program: Program, backend: str, head: str, failures: int, attempts: int
) -> list[str]:
    (program.folder / "count").write_text(str(failures))
    path = program.write(ATTEMPTS.format(head=head, attempts=attempts))
    lines = printed_lines(program.run(path, backend))
    ran = program.folder / "ran"
    values = [line.removeprefix("value: ") for line in lines if line.startswith("value: ")]
    assert (ran.read_text().split() if ran.exists() else []) == values
    return lines


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_no_process_ids_in_the_server(program: Program, anyio_backend: str, failures: int) -> None:
    """The spare cannot be made, which nobody hears of; and then neither for a request.

    Before that, the server forks once to see what the kernel tells of children.
    """
    lines = run_attempts(program, anyio_backend, NO_PROCESS_IDS, failures, 6)
    errors = [line for line in lines if not line.startswith("value: ")]
    assert all(line.startswith("ProcessStartError: ") and EAGAIN_TEXT in line for line in errors)
    assert lines[len(errors) :] == [f"value: {number}" for number in range(len(errors), 6)]
    assert (failures - 1) // 2 <= len(errors) <= failures


SERVER_REAPS = """
import os, signal, sys
import anyio, creche, support
from creche._start_methods._server import _serving

if __name__ == "__mp_main__":
    _serving.let_kernel_reap = lambda: False  # as before Linux 6.15

def end(how):
    if how < 0:
        os.kill(os.getpid(), -how)
    sys.exit(how)

async def main():
    assert await creche.run_in_process(abs, -3) == 3
    for how in (0, 7, -9, -15, -11):
        process = creche.AsyncProcess(target=end, args=(how,))
        await process.start()
        assert await process.join() == how, (process.exitcode, how)
    async with creche.open_nursery() as nursery:
        children = [nursery.start_soon(abs, -number) for number in range(30)]
    assert [child.return_value for child in children] == list(range(30))
    async with creche.AsyncProcess(target=support.wait_for_ever) as process:
        assert await process.terminate() == -15

if __name__ == "__main__":
    context = creche.get_context()
    for how in (0, 7, -9):
        process = context.Process(target=end, args=(how,))
        process.start()
        process.join()
        assert process.exitcode == how, (process.exitcode, how)
    anyio.run(main, backend=sys.argv[1])
    print("done")
"""


def test_server_that_has_to_reap(program: Program, anyio_backend: str) -> None:
    """Where the kernel does not tell exit codes, the server does."""
    result = program.run(program.write(SERVER_REAPS), anyio_backend)
    assert (result.returncode, result.stdout) == (0, "done\n"), result


@pytest.mark.parametrize("failures", [1, 2, 3, 4, 7])
def test_spares_that_die_at_once(program: Program, anyio_backend: str, failures: int) -> None:
    lines = run_attempts(program, anyio_backend, STILLBORN, failures, 6)
    errors = [line for line in lines if not line.startswith("value: ")]
    assert all(
        line.startswith("ProcessStartError: ") and "end as soon as they are forked" in line
        for line in errors
    )
    assert lines[len(errors) :] == [f"value: {number}" for number in range(len(errors), 6)]
    assert len(errors) <= failures // 2


def test_spare_that_has_died_before_it_is_watched(program: Program, anyio_backend: str) -> None:
    """The server, which cannot wait for its end, hears the next request nevertheless."""
    lines = run_attempts(program, anyio_backend, GONE_BEFORE_IT_IS_WATCHED, 0, 2)
    assert lines == ["value: 0", "value: 1"]


def test_spares_that_always_die_at_once(program: Program, anyio_backend: str) -> None:
    lines = run_attempts(program, anyio_backend, STILLBORN, 1_000_000, 4)
    assert len(lines) == 4
    assert all(line.startswith("ProcessStartError: ") for line in lines)


PLAIN_NO_DESCRIPTORS = """
import errno, gc, os, resource, sys
import creche, support

def count():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))

def attempt(path, number):
    process = creche.get_context().Process(target=support.append_line, args=(path, number))
    try:
        process.start()
    except OSError as error:
        assert error.errno == errno.EMFILE, error
        return False
    process.join()
    assert process.exitcode == 0
    process.close()
    return True

if __name__ == "__main__":
    path, start = sys.argv[1:]
    _, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, highest))
    before = None
    if start == "warm":
        assert attempt(path, -1)
        before = count()
    succeeded = []
    for free in range(16):
        fillers = []
        try:
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            assert error.errno == errno.EMFILE
        for _ in range(free):
            os.close(fillers.pop())
        if attempt(path, free):
            succeeded.append(free)
        for filler in fillers:
            os.close(filler)
        assert attempt(path, 100 + free)
        if before is None:
            before = count()
        assert count() <= before, os.listdir("/proc/self/fd")
    print(*succeeded)
"""


@pytest.mark.parametrize("start", ["warm", "cold"])
def test_no_descriptors_for_plain_processes(program: Program, start: str) -> None:
    path = program.folder / "ran"
    (line,) = printed_lines(program.run(program.write(PLAIN_NO_DESCRIPTORS), path, start))
    succeeded = list(map(int, line.split()))
    assert 0 not in succeeded
    assert 15 in succeeded
    counts = Counter(map(int, path.read_text().split()))
    assert set(counts.values()) == {1}
    assert {number for number in counts if number >= 100} == set(range(100, 116))
    # One whose end nobody could have heard of may have begun before it was killed.
    assert {number for number in counts if 0 <= number < 100} >= set(succeeded)


def test_server_that_is_being_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may ask for it, or signal it, at any moment."""
    server = _server_process.ServerProcess.__new__(_server_process.ServerProcess)
    server._killed = server._reaped = False
    server.sock, other_end = socket.socketpair()
    other_end.close()
    server.pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ, setpgroup=0)
    server._pidfd = os.pidfd_open(server.pid)
    close = os.close
    ended: list[bool] = []

    def close_and_look(descriptor: int) -> None:
        close(descriptor)
        if descriptor == server._pidfd and not ended:
            server.signal(signal.SIGCONT)
            ended.append(server.has_ended())

    monkeypatch.setattr(os, "close", close_and_look)
    server.reap()
    assert ended == [True]
    with pytest.raises(ChildProcessError):
        os.waitpid(server.pid, 0)
