"""The end of the parent, by whatever means, is the end of everything that it started."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import Program
from support import SERVER_METHODS, TIMEOUT, Announcements, wait_until_gone

# Generous: it takes milliseconds, and one second is promised.
SOON = 10.0


@pytest.fixture
def program_announcements(program: Program) -> Iterator[Announcements]:
    fifo = Announcements(program.folder / "announcements")
    yield fifo
    fifo.close()


# --- killed by SIGKILL ----------------------------------------------------------------------------

# What runs when the parent is killed. Each announces that it has got there: its own pid.
STAGES = {
    "nothing-started": """
        async def run():
            support.announce(path)
            await anyio.sleep_forever()
    """,
    "between-children": """
        async def run():
            await run_in_process(support.double, 1)
            support.announce(path)
            await anyio.sleep_forever()
    """,
    "sync": """
        async def run():
            await run_in_process(support.announce_then, path, support.wait_for_ever)
    """,
    "async": """
        async def run():
            await run_in_process(support.clean_up_async, path)
    """,
    "busy-loop": """
        async def run():
            await run_in_process(support.announce_then, path, support.busy_loop)
    """,
    "holds-the-GIL": """
        async def run():
            await run_in_process(support.announce_then, path, support.hold_the_gil)
    """,
    "ignores-SIGTERM": """
        async def run():
            await run_in_process(support.ignore_sigterm, path)
    """,
    "stopped": """
        async def run():
            await run_in_process(support.announce_then, path, support.send_signal, signal.SIGSTOP)
    """,
    "grandchild": """
        async def run():
            await run_in_process(support.spawn_grandchild_and_wait, path)
    """,
    "hangs-at-exit": """
        async def run():
            stop = creche.StopPolicy(exit_timeout=600)
            await run_in_process(support.announce_at_exit_and_hang, path, stop=stop)
    """,
    "big-result": """
        async def run():
            await run_in_process(
                support.announce_then, path, support.payload, 1024**3
            )
            await anyio.sleep_forever()
    """,
    "big-argument": """
        async def run():
            # A fork server runs by then: a death while it is started has a test of its own.
            await run_in_process(support.double, 1)
            async with anyio.create_task_group() as group:
                group.start_soon(run_in_process, len, bytes(1024**3))
                for _ in range(3):
                    await anyio.lowlevel.checkpoint()
                support.announce(path)
            await anyio.sleep_forever()
    """,
    "nested": """
        async def run():
            await run_in_process(
                support.nested, method, support.announce_then, path, support.hold_the_gil
            )
    """,
    "grace-period": """
        async def run():
            stop = creche.StopPolicy(grace=600)
            async with creche.open_nursery(start_method=method, stop=stop) as nursery:
                await nursery.start(support.announce_when_stopped, path)
                nursery.cancel_scope.cancel()
    """,
    "many": """
        async def run():
            async with creche.open_nursery(start_method=method) as nursery:
                for _ in range(10):
                    await nursery.start(support.started_then, support.hold_the_gil)
                support.announce(path)
    """,
    "default-signal-handling-of-the-application": """
        async def run():
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            await run_in_process(support.announce_then, path, support.hold_the_gil)
    """,
}

MAIN = """
import functools, os, signal, sys
import anyio, creche, support
from creche import run_in_process
{main_head}

path, method, backend = sys.argv[1:]
run_in_process = functools.partial(run_in_process, start_method=method)
{run}

if __name__ == "__main__":
    try:
        anyio.run(run, backend=backend)
    except* KeyboardInterrupt:
        print("interrupted")
"""


def write_main(program: Program, run: str, main_head: str = "") -> str:
    import textwrap

    text = MAIN.format(run=textwrap.dedent(run), main_head=textwrap.dedent(main_head))
    return str(program.write(text))


def check_nobody_left(program: Program) -> None:
    """Check that all processes go soon after the parent has gone."""
    left = program.wait_until_gone(SOON)
    assert not left, f"left over: {left}; {program.output()}"


def check_nothing_left(program: Program) -> None:
    """Check that they leave no files, either."""
    check_nobody_left(program)
    assert not program.files_left()


@pytest.mark.either_backend
@pytest.mark.parametrize("stage", STAGES)
def test_killed(
    program: Program,
    program_announcements: Announcements,
    start_method: str,
    anyio_backend: str,
    stage: str,
) -> None:
    main = write_main(program, STAGES[stage])
    path = program_announcements.path
    with program.running(main, path, start_method, anyio_backend) as parent:
        announced = int(program_announcements.get_blocking())
        # The child has ended where all of a big result has come already.
        assert {parent.pid, parent.pid if stage == "big-result" else announced} <= (
            program.processes()
        )
        parent.kill()
        parent.wait(TIMEOUT)
        check_nothing_left(program)


# Where a child is when it imports the main module: in the fork server, or in itself.
IMPORTING = """
if __name__ != "__main__":
    support.announce(sys.argv[1])
    {hang}
"""


@pytest.mark.parametrize("hang", ["support.wait_for_ever()", "support.hold_the_gil()"])
@pytest.mark.parametrize("method", [*SERVER_METHODS, "spawn"])
def test_killed_while_a_child_imports_main(
    program: Program,
    program_announcements: Announcements,
    method: str,
    anyio_backend: str,
    hang: str,
) -> None:
    main = write_main(program, STAGES["sync"], IMPORTING.format(hang=hang))
    path = program_announcements.path
    with program.running(main, path, method, anyio_backend) as parent:
        program_announcements.get_blocking()
        parent.kill()
        parent.wait(TIMEOUT)
        check_nothing_left(program)


def test_killed_at_any_moment(
    program: Program,
    program_announcements: Announcements,
    start_method: str,
    anyio_backend: str,
) -> None:
    """Before start() returns, and from there on: moments spread over the life of some children."""
    run = """
    async def run():
        support.announce(path)
        async with creche.open_nursery(start_method=method) as nursery:
            for _ in range(3):
                nursery.start_soon(support.hold_the_gil)
    """
    main = write_main(program, run)
    path = program_announcements.path
    for delay in (0, 0.003, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15):
        with program.running(main, path, start_method, anyio_backend) as parent:
            program_announcements.get_blocking()
            select.select([], [], [], delay)  # spreads the moments; nothing depends on them
            parent.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, parent.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            has_server = runs_library_server(program)
            parent.kill()
            parent.wait(TIMEOUT)
            check_nobody_left(program)
            if start_method == "forkserver" and not has_server:
                # It may have made the socket of a server, and not yet that, which would remove it.
                program.remove_files_left()
            assert not program.files_left()


def runs_library_server(program: Program) -> bool:
    """Whether a program has a server of the standard library's kind, be it about to begin."""
    for pid in program.processes():
        with contextlib.suppress(OSError):  # it has just ended
            if b"multiprocessing.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return True
    return False


def test_thread_that_started_ends(
    program: Program, program_announcements: Announcements, start_method: str, anyio_backend: str
) -> None:
    """A child is tied to its parent's process, and not to the thread that forked it."""
    run = """
    async def run():
        def other_loop():
            anyio.run(start, backend=backend)

        async def start():
            process = creche.AsyncProcess(
                target=support.announce_then,
                args=(path, support.hold_the_gil),
                start_method=method,
            )
            await process.start()
            processes.append(process)

        processes = []
        await anyio.to_thread.run_sync(other_loop)
        support.announce(path, "loop ended")
        assert processes[0].is_alive()
        await processes[0].join()
    """
    main = write_main(program, run)
    path = program_announcements.path
    with program.running(main, path, start_method, anyio_backend) as parent:
        announced = {program_announcements.get_blocking() for _ in range(2)}
        (child,) = (int(line) for line in announced - {"loop ended"})
        assert child in program.processes()
        parent.kill()
        parent.wait(TIMEOUT)
        check_nothing_left(program)


# --- in order -------------------------------------------------------------------------------------

ENDS = {
    # The loop is closed with processes alive: nobody awaits them, until the interpreter ends.
    "loop-closed": """
        async def run():
            await start()
    """,
    "sys.exit": """
        async def run():
            await start()
            sys.exit(0)
    """,
    "exception": """
        async def run():
            await start()
            raise LookupError("the end")
    """,
    "sys.exit-in-block": """
        async def run():
            async with creche.AsyncProcess(
                target=support.swallow_stop, args=(path,), start_method=method, stop=stop
            ):
                sys.exit(0)
    """,
    "os._exit": """
        async def run():
            await start()
            os._exit(0)
    """,
    "os.abort": """
        async def run():
            import resource
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            await start()
            os.abort()
    """,
    "exec": """
        async def run():
            await start()
            os.execv(sys.executable, [sys.executable, "-c", "print('another program')"])
    """,
}

START = """
stop = creche.StopPolicy(grace=0.1)

async def start():
    for _ in range(3):
        process = creche.AsyncProcess(
            target=support.swallow_stop, args=(path,), start_method=method, stop=stop
        )
        await process.start()
"""


@pytest.mark.either_backend
@pytest.mark.parametrize("end", ENDS)
def test_end_with_processes_alive(
    program: Program,
    program_announcements: Announcements,
    start_method: str,
    anyio_backend: str,
    end: str,
) -> None:
    main = write_main(program, ENDS[end], START)
    path = program_announcements.path
    with program.running(main, path, start_method, anyio_backend) as parent:
        assert parent.wait(TIMEOUT) == {"exception": 1, "os.abort": -signal.SIGABRT}.get(end, 0)
        check_nothing_left(program)
    output = program.output()
    assert output.count("Traceback") == (end == "exception"), output


def test_children_clean_up_at_the_end_of_the_interpreter(
    program: Program, program_announcements: Announcements, start_method: str, anyio_backend: str
) -> None:
    run = """
    async def run():
        process = creche.AsyncProcess(target=support.clean_up, args=(path,), start_method=method)
        await process.start()
        while process.state is not creche.ProcessState.RUNNING:
            await anyio.sleep(0.01)
        with open(gate) as file:
            file.read()
    """
    gate = program.folder / "gate"
    os.mkfifo(gate)
    main = write_main(program, run, f"gate = {str(gate)!r}")
    path = program_announcements.path
    with program.running(main, path, start_method, anyio_backend) as parent:
        program_announcements.get_blocking()
        gate.write_text("")
        assert parent.wait(TIMEOUT) == 0
        assert program_announcements.get_blocking() == "cleaned up"
        check_nothing_left(program)


# --- fork -----------------------------------------------------------------------------------------


def test_fork_of_a_parent(
    program: Program, program_announcements: Announcements, start_method: str, anyio_backend: str
) -> None:
    """A fork of a parent with live children can use creche itself, and leaves these alone."""
    run = """
    async def run():
        async with creche.AsyncProcess(
            target=support.announce_then, args=(path, support.wait_for_ever), start_method=method
        ) as process:
            with open(gate) as file:
                file.read()
            forked = os.fork()
            if forked == 0:
                try:
                    threading.Thread(target=in_fork, args=(process,)).start()
                except BaseException as error:
                    traceback.print_exception(error)
                    os._exit(1)
                threading.Event().wait()
            with anyio.fail_after(30):
                while os.waitpid(forked, os.WNOHANG) == (0, 0):
                    await anyio.sleep(0.01)
            assert process.is_alive()
            print("fork ended; child still runs:", process.is_alive(), flush=True)
            await process.terminate()

    def in_fork(process):
        # Another thread, because this one is inside of a loop that is not the fork's.
        async def use():
            try:
                process.is_alive()
            except creche.ProcessStateError:
                return await run_in_process(support.double, 21)

        try:
            print("in fork:", anyio.run(use, backend=backend), flush=True)
        except BaseException as error:
            traceback.print_exception(error)
        finally:
            os._exit(0)
    """
    gate = program.folder / "gate"
    os.mkfifo(gate)
    head = f"""
    import threading, traceback, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, as intended here
    gate = {str(gate)!r}
    """
    main = write_main(program, run, head)
    path = program_announcements.path
    with program.running(main, path, start_method, anyio_backend) as parent:
        program_announcements.get_blocking()
        gate.write_text("")
        assert parent.wait(TIMEOUT) == 0, program.output()
        check_nothing_left(program)
    assert program.output() == "in fork: 42\nfork ended; child still runs: True\n"


def test_fork_with_held_locks(
    program: Program, program_announcements: Announcements, anyio_backend: str
) -> None:
    """A child forked in the middle of what creche's threads do is not caught by their locks."""
    run = """
    async def run():
        async with creche.open_nursery(start_method="fork") as nursery:
            processes = [nursery.start_soon(support.double, i) for i in range(30)]
            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(run_in_process, support.payload, 10**6)
        assert [process.return_value for process in processes] == [2 * i for i in range(30)]
        support.announce(path, "done")
    """
    main = write_main(program, run)
    path = program_announcements.path
    with program.running(main, path, "fork", anyio_backend) as parent:
        assert program_announcements.get_blocking() == "done"
        assert parent.wait(TIMEOUT) == 0, program.output()
        check_nothing_left(program)


def test_fork_keeps_no_child_alive(
    program: Program, program_announcements: Announcements, start_method: str, anyio_backend: str
) -> None:
    """A fork that outlives the parent holds copies of its descriptors, but not of the lifeline."""
    run = """
    async def run():
        async with creche.AsyncProcess(
            target=support.announce_then, args=(path, support.hold_the_gil), start_method=method
        ):
            with open(gate) as file:
                file.read()
            if os.fork() == 0:
                support.announce(path)
                support.wait_for_ever()
            await anyio.sleep_forever()
    """
    gate = program.folder / "gate"
    os.mkfifo(gate)
    main = write_main(program, run, f"gate = {str(gate)!r}")
    path = program_announcements.path
    with program.running(main, path, start_method, anyio_backend) as parent:
        child = int(program_announcements.get_blocking())
        gate.write_text("")
        forked = int(program_announcements.get_blocking())
        parent.kill()
        parent.wait(TIMEOUT)
        assert wait_until_gone(child, SOON)
        assert forked in program.processes()
        os.kill(forked, signal.SIGKILL)
        left = program.wait_until_gone(SOON)
        assert not left
        # The server takes the fork for its application, and removes its files when that ends.


# --- Ctrl-C ---------------------------------------------------------------------------------------


class Terminal:
    """A program in the foreground of a terminal of its own."""

    def __init__(self, program: Program, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _TAKE_TERMINAL, sys.executable, *arguments],
                cwd=program.folder,
                env=program.environment,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
            )
        finally:
            os.close(slave)

    def interrupt(self) -> None:
        os.write(self._master, b"\x03")

    def read_to_end(self) -> str:
        output = b""
        deadline = time.monotonic() + TIMEOUT
        while select.select([self._master], [], [], max(0, deadline - time.monotonic()))[0]:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # EIO: nobody has it open any more
                break
            output += data
        return output.decode().replace("\r\n", "\n")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT)
        os.close(self._master)


# Makes the terminal the controlling one of the new session, and becomes the program.
_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""

INTERRUPTED = {
    "sync": STAGES["sync"],
    "async": STAGES["async"],
    "stopped": STAGES["stopped"],
    "grandchild": STAGES["grandchild"],
    "many": """
        async def run():
            async with creche.open_nursery(start_method=method) as nursery:
                for _ in range(5):
                    await nursery.start(support.started_then, support.wait_for_ever)
                support.announce(path)
                await anyio.sleep_forever()
    """,
    "starting": """
        async def run():
            async with creche.open_nursery(start_method=method) as nursery:
                for _ in range(20):
                    nursery.start_soon(support.wait_for_ever)
                await anyio.lowlevel.checkpoint()
                support.announce(path)
                await anyio.sleep_forever()
    """,
    "start-and-stop": """
        async def run():
            support.announce(path)
            while True:
                await run_in_process(support.double, 1)
    """,
}


NEVER_AWAITED = r"(?<=\^C)\S+: RuntimeWarning: coroutine .* was never awaited\n(.*\n){2}"


@pytest.mark.either_backend
@pytest.mark.parametrize("stage", INTERRUPTED)
def test_interrupted_in_a_terminal(
    program: Program,
    program_announcements: Announcements,
    start_method: str,
    anyio_backend: str,
    stage: str,
) -> None:
    main = write_main(program, INTERRUPTED[stage])
    terminal = Terminal(program, main, program_announcements.path, start_method, anyio_backend)
    try:
        program_announcements.get_blocking()
        terminal.interrupt()
        output = terminal.read_to_end()
        assert terminal.process.wait(TIMEOUT) == 0, output
    finally:
        terminal.close()
    # And nothing of the children. Between the making of a coroutine and its await, it is lost.
    assert re.sub(NEVER_AWAITED, "", output) == "^Cinterrupted\n"
    left = program.wait_until_gone(SOON)
    assert not left
    assert not program.files_left()


# --- many times -----------------------------------------------------------------------------------

CYCLES = """
async def run():
    def count():
        gc.collect()
        threads = [t for t in threading.enumerate() if t.name.startswith("creche-")]
        return len(os.listdir("/proc/self/fd")), len(threads) <= 4

    async def cycle(number):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(run_in_process, support.wait_for_ever)
                # Cancelled before it starts, while it starts, and while it runs.
                for _ in range(number % 10):
                    await anyio.lowlevel.checkpoint()
                if number % 3 == 0:
                    await anyio.sleep(0.001 * (number % 13))
                scope.cancel()

    await run_in_process(support.double, 1)
    before = count()
    with anyio.fail_after(300):
        for number in range(cycles):
            await cycle(number)
    assert count() == before, (before, count(), os.listdir("/proc/self/fd"))
    children = psutil.Process().children(recursive=True)
    left = [child for child in children if not support.is_server(child.pid)]
    assert not left, left
    support.announce(path, "done")
"""

CYCLES_HEAD = """
import gc, threading
import psutil
cycles = {cycles}
"""


@pytest.mark.parametrize(
    ("method", "cycles"),
    [("creche", 500), ("forkserver", 200), ("fork", 100), ("spawn", 30)],
)
def test_start_and_cancel_cycles(
    program: Program,
    program_announcements: Announcements,
    method: str,
    cycles: int,
    anyio_backend: str,
) -> None:
    main = write_main(program, CYCLES, CYCLES_HEAD.format(cycles=cycles))
    path = program_announcements.path
    with program.running(main, path, method, anyio_backend) as parent:
        assert parent.wait(300) == 0, program.output()
        assert program_announcements.get_blocking() == "done"
        check_nothing_left(program)
