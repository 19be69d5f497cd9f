"""Starting where something is missing: descriptors, process ids, a main module, the fork server."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import support
from scripts import Program, Result
from support import SERVER_METHODS, START_METHODS, TIMEOUT, Announcements

from creche import (
    AsyncProcess,
    ProcessDied,
    ProcessError,
    ProcessStartError,
    ProcessStuckError,
    ProcessTimeout,
    StopPolicy,
    open_nursery,
    run_in_process,
)
from creche._loops import Latch
from creche._runtime import runtime
from creche._start_methods import _fork_server
from creche._start_methods._server._servers import server_for

pytestmark = pytest.mark.anyio

GUARD = 'if __name__ == "__main__":'

# A program that runs one function and prints what came out. Its head and its call are the test's.
PROGRAM = """
import os, signal, sys, threading
import anyio, creche
{head}

async def main():
    try:
        value = await creche.run_in_process({call}, start_method={method!r}, timeout={timeout},
                                            stop=creche.StopPolicy(grace=0.1, kill_timeout=5))
    except creche.ProcessError as error:
        if __name__ != "__main__":
            raise
        # The application itself has to hear of it: what children write to stderr may be lost.
        print(f"{{type(error).__name__}}: {{error}}")
    else:
        print("value:", value)

{guard}
    anyio.run(main, backend={backend!r})
"""


def source(
    method: str,
    backend: str,
    *,
    call: str = "abs, -3",
    head: str = "",
    guard: str = GUARD,
    timeout: float = TIMEOUT / 2,
) -> str:
    return PROGRAM.format(
        method=method, backend=backend, call=call, head=head, guard=guard, timeout=timeout
    )


def check_output(result: Result, *expected: str) -> None:
    """Check that a program ended in order, and printed one line that begins as expected."""
    report = f"{result.stdout}\n--- stderr ---\n{result.stderr}"
    assert result.returncode == 0, report
    assert result.stdout.count("\n") == 1, report
    assert result.stdout.startswith(expected), report


# --- the main module ------------------------------------------------------------------------------


@pytest.mark.either_backend
def test_missing_guard(program: Program, start_method: str, anyio_backend: str) -> None:
    path = program.write(source(start_method, anyio_backend, guard="if True:"))
    result = program.run(path)
    if start_method == "fork":
        check_output(result, "value: 3")
    else:
        check_output(result, "ProcessStartError: ")
        assert GUARD in result.stdout


MAIN_FAILS = {
    "raises": ('raise ImportError("needs a terminal")', "ImportError: needs a terminal"),
    "sys.exit": ('sys.exit("not twice")', "not twice"),
    "interrupted": ("raise KeyboardInterrupt", ""),
    "os._exit": ("os._exit(7)", ""),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", ""),
}


@pytest.mark.either_backend
@pytest.mark.parametrize("how", MAIN_FAILS)
def test_main_fails_in_the_child(
    program: Program, start_method: str, anyio_backend: str, how: str
) -> None:
    head, expected = MAIN_FAILS[how]
    guarded = f'if __name__ != "__main__":\n    {head}'
    path = program.write(source(start_method, anyio_backend, head=guarded))
    result = program.run(path)
    if start_method == "fork":
        check_output(result, "value: 3")
    elif expected:
        check_output(result, "ProcessStartError: ")
        assert expected in result.stdout
    else:
        check_output(result, "ProcessStartError: ", "ProcessDied: ", "RemoteError: ")


@pytest.mark.either_backend
def test_main_hangs_in_the_child(program: Program, start_method: str, anyio_backend: str) -> None:
    head = 'if __name__ != "__main__":\n    threading.Event().wait()'
    if start_method == "fork":
        path = program.write(source(start_method, anyio_backend, head=head))
        check_output(program.run(path), "value: 3")
    else:
        path = program.write(source(start_method, anyio_backend, head=head, timeout=0.5))
        check_output(program.run(path), "Process")


def test_killed_fork_server_is_not_replaced_for_whoever_gave_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The successor would come up while the program ends, and leave its socket behind.
    server = _fork_server.PreloadingForkServer()
    asked = 0

    def killed_while_asked(descriptors: list[int]) -> tuple[int, int]:
        nonlocal asked
        asked += 1
        server.kill()
        raise ConnectionResetError

    monkeypatch.setattr(server, "connect_to_new_process", killed_while_asked)
    with pytest.raises(ConnectionResetError):
        server.request_child([])
    server.forget()  # its descriptors
    assert asked == 1


@pytest.mark.either_backend
def test_program_on_the_command_line(
    program: Program, start_method: str, anyio_backend: str
) -> None:
    check_output(program.run("-c", source(start_method, anyio_backend)), "value: 3")


@pytest.mark.either_backend
def test_program_on_stdin(program: Program, start_method: str, anyio_backend: str) -> None:
    text = source(start_method, anyio_backend)
    check_output(program.run("-", stdin=text), "value: 3")


DEFINES_FUNCTION = "def function():\n    return 3\n"


@pytest.mark.either_backend
@pytest.mark.parametrize("where", ["-c", "stdin", "REPL"])
def test_function_of_an_interactive_main(
    program: Program, start_method: str, anyio_backend: str, where: str
) -> None:
    text = source(start_method, anyio_backend, call="function", head=DEFINES_FUNCTION)
    if where == "-c":
        result = program.run("-c", text)
    elif where == "stdin":
        result = program.run("-", stdin=text)
    else:
        # As a user types it: each statement followed by an empty line.
        result = program.run("-i", "-q", "-c", "", stdin=f"exec({text!r})\n")
    if start_method == "fork":
        check_output(result, "value: 3")
    else:
        check_output(result, "SerializationError: ")
        assert "move it to a module" in result.stdout


@pytest.mark.either_backend
def test_function_under_the_guard(program: Program, start_method: str, anyio_backend: str) -> None:
    guard = f"{GUARD}\n    def function(): return 3"
    path = program.write(source(start_method, anyio_backend, call="function", guard=guard))
    result = program.run(path)
    if start_method == "fork":
        check_output(result, "value: 3")
    else:
        check_output(result, "SerializationError: ")
        assert "guard" in result.stdout


@pytest.mark.either_backend
def test_module_of_a_package_as_main(
    program: Program, start_method: str, anyio_backend: str
) -> None:
    program.write("", "package/__init__.py")
    program.write(
        source(start_method, anyio_backend, call="function", head=DEFINES_FUNCTION),
        "package/module.py",
    )
    check_output(program.run("-m", "package.module"), "value: 3")


@pytest.mark.either_backend
def test_package_as_main(program: Program, start_method: str, anyio_backend: str) -> None:
    program.write(DEFINES_FUNCTION, "package/__init__.py")
    program.write(
        source(start_method, anyio_backend, call="function", head="from package import function"),
        "package/__main__.py",
    )
    check_output(program.run("-m", "package"), "value: 3")


@pytest.mark.either_backend
def test_zipped_program(program: Program, start_method: str, anyio_backend: str) -> None:
    archive = program.folder / "program.pyz"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("inside.py", DEFINES_FUNCTION)
        file.writestr(
            "__main__.py",
            source(
                start_method, anyio_backend, call="function", head="from inside import function"
            ),
        )
    check_output(program.run(archive), "value: 3")


def test_main_is_imported_once(program: Program, anyio_backend: str) -> None:
    """In the fork server, and not again in each child."""
    text = """
    import os, sys
    import anyio, creche

    def importer():
        return imported_in

    async def main():
        first = await creche.run_in_process(importer)
        second = await creche.run_in_process(importer)
        print(first == second != os.getpid())

    imported_in = os.getpid()
    if __name__ == "__main__":
        anyio.run(main, backend=sys.argv[1])
    """
    check_output(program.run(program.write(text), anyio_backend), "True")


@pytest.mark.either_backend
@pytest.mark.parametrize("when", ["before", "after the first"])
def test_deleted_working_directory(
    program: Program, start_method: str, anyio_backend: str, when: str
) -> None:
    folder = program.folder / "folder"
    folder.mkdir()
    text = f"""
    import os, shutil, sys
    import anyio, creche

    async def run():
        try:
            return f"value: {{await creche.run_in_process(abs, -3, start_method={start_method!r})}}"
        except creche.ProcessError as error:
            return f"{{type(error).__name__}}: {{error}}"

    async def main():
        if {when == "before"}:
            shutil.rmtree({str(folder)!r})
            print(await run())
        else:
            assert await run() == "value: 3"
            shutil.rmtree({str(folder)!r})
            print(await run())

    if __name__ == "__main__":
        anyio.run(main, backend={anyio_backend!r})
    """
    result = program.run(program.write(text), cwd=folder)
    check_output(result, "value: 3", "ProcessStartError: ")


# --- what the system has no more of ---------------------------------------------------------------

NO_DESCRIPTORS = """
import errno, functools, gc, os, resource, sys
import anyio, creche

def count():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))

async def attempt(method):
    try:
        with anyio.fail_after(30):
            assert await creche.run_in_process(abs, -3, start_method=method) == 3
    except creche.ProcessError:
        return False
    return True

async def main(method, warm, lowest, highest):
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    if warm:
        assert await attempt(method)
    succeeded = []
    for free in range(lowest, highest + 1):
        fillers = []
        try:
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            assert error.errno == errno.EMFILE
        for filler in fillers[len(fillers) - free:]:
            os.close(filler)
        del fillers[len(fillers) - free:]
        succeeded.append(await attempt(method))
        for filler in fillers:
            os.close(filler)
        assert await attempt(method)  # there are enough again
        if free == lowest:
            before = count()
        assert count() <= before, os.listdir("/proc/self/fd")
    if lowest == 0:
        assert not succeeded[0]
    print("done", succeeded)

if __name__ == "__main__":
    method, backend, warm, lowest, highest = sys.argv[1:]
    anyio.run(main, method, warm == "warm", int(lowest), int(highest), backend=backend)
"""


@pytest.mark.either_backend
def test_no_descriptors(program: Program, start_method: str, anyio_backend: str) -> None:
    path = program.write(NO_DESCRIPTORS)
    # Forty starts, for some methods at half a second each.
    result = program.run(path, start_method, anyio_backend, "warm", 0, 20, timeout=100)
    check_output(result, "done")


@pytest.mark.either_backend
@pytest.mark.parametrize("free", [0, 1, 2, 4, 6, 8, 10, 12, 15])
def test_no_descriptors_for_the_machinery(
    program: Program, start_method: str, anyio_backend: str, free: int
) -> None:
    path = program.write(NO_DESCRIPTORS)
    check_output(program.run(path, start_method, anyio_backend, "cold", free, free), "done")


NO_PROCESS_IDS = """
import errno, os, sys
from multiprocessing import util
import anyio, creche

def no_process_ids(*_):
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

async def main(method):
    try:
        value = await creche.run_in_process(abs, -3, start_method=method)
    except creche.ProcessStartError as error:
        print(f"ProcessStartError: {{error}}")
    else:
        print(f"value: {{value}}")
    os.fork, util.spawnv_passfds = fork, spawnv_passfds
    os.environ["ENOUGH"] = "yes"
    assert await creche.run_in_process(abs, -3, start_method=method) == 3

if "ENOUGH" not in os.environ:
    fork, spawnv_passfds = os.fork, util.spawnv_passfds
    if __name__ == "{where}":
        os.fork = util.spawnv_passfds = no_process_ids
if __name__ == "__main__":
    anyio.run(main, sys.argv[1], backend=sys.argv[2])
"""


@pytest.mark.either_backend
def test_no_process_ids(program: Program, start_method: str, anyio_backend: str) -> None:
    path = program.write(NO_PROCESS_IDS.format(where="__main__"))
    result = program.run(path, start_method, anyio_backend)
    check_output(result, "ProcessStartError: ")
    assert os.strerror(11) in result.stdout


def test_no_process_ids_in_the_fork_server(program: Program, anyio_backend: str) -> None:
    path = program.write(NO_PROCESS_IDS.format(where="__mp_main__"))
    check_output(program.run(path, "forkserver", anyio_backend), "ProcessStartError: ")


# --- inside a child -------------------------------------------------------------------------------


@pytest.mark.either_backend
@pytest.mark.parametrize("inner", START_METHODS)
async def test_inside_a_child(start_method: str, inner: str, anyio_backend_name: str) -> None:
    with anyio.fail_after(TIMEOUT):
        assert (
            await run_in_process(
                support.nested_sync,
                anyio_backend_name,
                inner,
                support.double,
                21,
                start_method=start_method,
            )
            == 42
        )


@pytest.mark.either_backend
@pytest.mark.parametrize("inner", START_METHODS)
async def test_inside_an_async_child(start_method: str, inner: str) -> None:
    with anyio.fail_after(TIMEOUT):
        result = await run_in_process(
            support.nested, inner, support.double, 21, start_method=start_method
        )
    assert result == 42


async def test_failure_inside_a_child(start_method: str) -> None:
    with anyio.fail_after(TIMEOUT), pytest.raises(ProcessDied) as caught:
        await run_in_process(
            support.nested, "forkserver", support.exit_at_once, 7, start_method=start_method
        )
    assert caught.value.exitcode == 7


@pytest.mark.either_backend
@pytest.mark.parametrize("how", ["cancel", "kill"])
@pytest.mark.parametrize("inner", START_METHODS)
async def test_child_of_a_child_goes_with_it(
    announcements: Announcements, start_method: str, inner: str, how: str
) -> None:
    with anyio.fail_after(TIMEOUT):
        async with AsyncProcess(
            target=support.nested,
            args=(inner, support.announce_then, announcements.path, support.wait_for_ever),
            start_method=start_method,
            stop=StopPolicy(grace=TIMEOUT),  # its own child may take as long as its own grace
        ) as outer:
            pid = await announcements.get_pid()
            if how == "kill":
                await outer.kill()
            else:
                await outer.terminate()
        assert outer.exitcode == (-9 if how == "kill" else -15)
    assert support.wait_until_gone(pid, 10)


@pytest.mark.either_backend
@pytest.mark.parametrize("inner", START_METHODS)
async def test_inside_a_daemonic_child(start_method: str, inner: str) -> None:
    process: AsyncProcess[Any] = AsyncProcess(
        target=support.nested,
        args=(inner, support.double, 21),
        daemon=True,
        start_method=start_method,
    )
    with anyio.fail_after(TIMEOUT), pytest.raises(ProcessStartError, match="daemonic"):
        await process.result()


# --- the fork server ------------------------------------------------------------------------------

BRIEF = StopPolicy(grace=0.2, exit_timeout=0.2, kill_timeout=0.5)


@pytest.fixture(params=SERVER_METHODS)
def server_method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def server_pid(method: str) -> int:
    if method == "creche":
        return server_for().processes()[-1].pid
    pid = _fork_server.fork_server()._forkserver_pid
    assert pid is not None
    return pid


def wait_and_then(ready: str, go: str, func: Callable[..., Any], *args: Any) -> Any:
    """In a child: say that it runs, wait until a file can be read, and go on."""
    support.announce(ready)
    with open(go) as file:
        file.read()
    return func(*args)


@pytest.fixture
def go(tmp_path: Path) -> Path:
    path = tmp_path / "go"
    os.mkfifo(path)
    return path


@contextlib.asynccontextmanager
async def stopped_server(method: str) -> AsyncIterator[None]:
    """Have the fork server stopped, and continued in the end, unless it was killed.

    With it its spare, which is in its process group, and would take one request more.
    """
    # Another test may have killed the server, whose successor comes with the next start.
    assert await run_in_process(support.double, 1, start_method=method) == 2
    group = os.getpgid(server_pid(method))
    os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGCONT)


async def kill_server(method: str) -> None:
    pid = server_pid(method)
    os.kill(pid, signal.SIGKILL)
    assert support.wait_until_gone(pid)


async def test_server_killed_between_children(server_method: str) -> None:
    with anyio.fail_after(TIMEOUT):
        assert await run_in_process(support.double, 1, start_method=server_method) == 2
        await kill_server(server_method)
        assert await run_in_process(support.double, 2, start_method=server_method) == 4


async def test_server_killed_while_a_child_runs(
    server_method: str, announcements: Announcements, go: Path
) -> None:
    """The child lives on, and its outcome counts."""
    with anyio.fail_after(TIMEOUT):
        async with AsyncProcess(
            start_method=server_method,
            target=wait_and_then,
            args=(announcements.path, str(go), support.double, 21),
        ) as process:
            await announcements.get()
            await kill_server(server_method)
            # From a new server.
            assert await run_in_process(support.double, 1, start_method=server_method) == 2
            go.write_text("")
        assert process.return_value == 42
        assert process.pid is not None
        assert support.wait_until_gone(process.pid, 1)


async def test_server_killed_while_a_child_crashes(
    server_method: str, announcements: Announcements, go: Path
) -> None:
    """Nobody is left who knows the exit code, but the kernel, from Linux 6.15 on."""
    with anyio.fail_after(TIMEOUT):
        async with AsyncProcess(
            start_method=server_method,
            target=wait_and_then,
            args=(announcements.path, str(go), support.exit_at_once, 7),
        ) as process:
            await announcements.get()
            await kill_server(server_method)
            go.write_text("")
        assert isinstance(process.exception, ProcessDied)
        if server_method == "creche" and process.exception.exitcode is not None:
            assert process.exception.exitcode == 7
        else:
            assert process.exception.exitcode is None
            assert "unknown exit code" in str(process.exception)


@pytest.mark.parametrize("how", ["terminate", "kill", "cancel"])
async def test_child_is_stopped_after_its_server(
    server_method: str, announcements: Announcements, how: str
) -> None:
    with anyio.fail_after(TIMEOUT), anyio.CancelScope() as scope:
        async with AsyncProcess(
            start_method=server_method,
            target=support.announce_then,
            args=(announcements.path, support.busy_loop),
            stop=StopPolicy(grace=TIMEOUT),
        ) as process:
            pid = await announcements.get_pid()
            await kill_server(server_method)
            if how == "cancel":
                scope.cancel()
            else:
                await getattr(process, how)()
                assert not process.is_alive()
    assert support.wait_until_gone(pid, 1)


async def test_server_killed_with_many_children(
    server_method: str, announcements: Announcements
) -> None:
    with anyio.fail_after(TIMEOUT):
        processes = [
            AsyncProcess[Any](
                start_method=server_method,
                target=support.announce_then,
                args=(announcements.path, support.wait_for_ever),
            )
            for _ in range(10)
        ]
        pids = []
        for process in processes:
            await process.start()
            pids.append(await announcements.get_pid())
        await kill_server(server_method)
        async with anyio.create_task_group() as group:
            for process in processes:
                group.start_soon(process.terminate)
    assert not any(process.is_alive() for process in processes)
    assert all(support.wait_until_gone(pid, 1) for pid in pids)


async def test_server_killed_while_starting(server_method: str) -> None:
    """Whatever comes of the starts that are under way, none of them is left half done."""
    outcomes: list[object] = []

    async def run() -> None:
        try:
            outcomes.append(await run_in_process(support.double, 21, start_method=server_method))
        except ProcessError as error:
            outcomes.append(error)

    with anyio.fail_after(TIMEOUT):
        for _ in range(10):
            await run_in_process(support.double, 1, start_method=server_method)
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(run)
                await anyio.lowlevel.checkpoint()
                await kill_server(server_method)
        assert await run_in_process(support.double, 2, start_method=server_method) == 4
    assert len(outcomes) == 40
    for outcome in outcomes:
        assert outcome == 42 or isinstance(outcome, (ProcessStartError, ProcessDied)), outcome


async def test_server_stopped_while_a_child_ends(
    server_method: str, announcements: Announcements, go: Path
) -> None:
    """Nobody can say that the child has ended, and yet the wait for it does."""
    with anyio.fail_after(TIMEOUT):
        process = AsyncProcess(
            start_method=server_method,
            target=wait_and_then,
            args=(announcements.path, str(go), support.double, 21),
            stop=BRIEF,
        )
        await process.start()
        pid = await announcements.get_pid()
        os.kill(server_pid(server_method), signal.SIGSTOP)
        try:
            go.write_text("")
            with contextlib.suppress(ProcessStuckError):
                assert await process.result() == 42
        finally:
            os.kill(server_pid(server_method), signal.SIGCONT)
        await process.join()
        assert not process.is_alive()
        assert process.return_value == 42
    assert support.wait_until_gone(pid, 1)


async def test_cancel_after_server_was_stopped(
    server_method: str, announcements: Announcements
) -> None:
    process = AsyncProcess(
        start_method=server_method,
        target=support.announce_then,
        args=(announcements.path, support.wait_for_ever),
        stop=BRIEF,
    )
    with anyio.fail_after(TIMEOUT):
        await process.start()
        pid = await announcements.get_pid()
        os.kill(server_pid(server_method), signal.SIGSTOP)
        try:
            with anyio.move_on_after(0):
                with contextlib.suppress(ProcessStuckError):
                    await process.result()
        finally:
            os.kill(server_pid(server_method), signal.SIGCONT)
        await process.join()
        assert not process.is_alive()
    assert support.wait_until_gone(pid, 1)


async def until_starting(process: AsyncProcess[Any]) -> None:
    """Wait until the thread that starts processes is at it: a stop no longer forestalls that."""
    await support.until(lambda: not process._handle._start_claim._left)


async def test_timeout_while_server_is_stopped(server_method: str) -> None:
    process = AsyncProcess[None](
        target=support.wait_for_ever, start_method=server_method, timeout=2 * TIMEOUT, stop=BRIEF
    )

    async def time_out() -> None:
        await until_starting(process)
        support.time_out(process)

    with anyio.fail_after(TIMEOUT):
        async with stopped_server(server_method):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(time_out)
                with pytest.raises(ProcessTimeout, match="its timeout of 120 seconds"):
                    await process.result()
            assert await run_in_process(support.double, 2, start_method=server_method) == 4
        await process.join()  # where the server was continued so early that there is one


async def test_cancel_while_server_is_stopped(server_method: str) -> None:
    process = AsyncProcess[None](
        target=support.wait_for_ever, start_method=server_method, stop=BRIEF
    )

    async def cancel(scope: anyio.CancelScope) -> None:
        await until_starting(process)
        scope.cancel()

    with anyio.fail_after(TIMEOUT):
        async with stopped_server(server_method):
            async with anyio.create_task_group() as tasks:
                with anyio.CancelScope() as scope:
                    tasks.start_soon(cancel, scope)
                    with contextlib.suppress(ProcessStuckError):
                        await process.result()
            assert await run_in_process(support.double, 2, start_method=server_method) == 4
        await process.join()


async def test_without_waitid(
    start_method: str, announcements: Announcements, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS before Python 3.13."""
    monkeypatch.delattr(os, "waitid")
    with anyio.fail_after(TIMEOUT):
        assert await run_in_process(support.double, 1, start_method=start_method) == 2
        process = AsyncProcess(
            target=support.announce_then,
            args=(announcements.path, support.wait_for_ever),
            start_method=start_method,
        )
        async with process:
            await announcements.get()
            assert await process.terminate() == -signal.SIGTERM


@pytest.mark.either_backend
def test_reaped_by_somebody_else(program: Program, start_method: str, anyio_backend: str) -> None:
    """Code that calls waitpid(-1), or ignores SIGCHLD, takes exit codes away, but no outcome."""
    text = """
    import signal, sys
    import anyio, creche

    async def main(method):
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with anyio.fail_after(30):
            for number in range(5):
                assert await creche.run_in_process(abs, -number, start_method=method) == number
            print("done")

    if __name__ == "__main__":
        anyio.run(main, sys.argv[1], backend=sys.argv[2])
    """
    check_output(program.run(program.write(text), start_method, anyio_backend), "done")


# --- a start that hangs ---------------------------------------------------------------------------


class HangingStart:
    """An argument that is pickled when the test lets it be."""

    def __init__(self) -> None:
        self.begun = Latch()
        self.go_on = threading.Event()

    def __reduce__(self) -> tuple[Any, ...]:
        self.begun.set()
        assert self.go_on.wait(TIMEOUT)
        return int, ()


@pytest.fixture
def hanging() -> Iterator[HangingStart]:
    argument = HangingStart()
    yield argument
    argument.go_on.set()


async def test_kill_while_a_patient_stop_waits_for_the_start(hanging: HangingStart) -> None:
    process = AsyncProcess(
        target=support.call_and_wait,  # or it might have ended before it is killed
        args=(support.ignore, hanging),
        start_method="spawn",  # of which nothing is killed because it hangs
        stop=StopPolicy(grace=math.inf, kill_timeout=0.01),
    )

    async def start() -> None:
        with pytest.raises(ProcessStuckError, match="still being started"):
            await process.start()

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            await hanging.begun.wait()
            process._handle.stop(process._handle.policy)
            with pytest.raises(ProcessStuckError, match="still being started"):
                await process.kill()
        hanging.go_on.set()
        assert await process.join() == -signal.SIGKILL


@pytest.mark.parametrize("how", ["start", "block"])
async def test_timeout_of_a_start_that_hangs(hanging: HangingStart, how: str) -> None:
    process = AsyncProcess(
        target=print, args=(hanging,), start_method="spawn", timeout=0.01, stop=BRIEF
    )
    with anyio.fail_after(TIMEOUT):
        with pytest.raises(ProcessTimeout, match="could not be started within its timeout"):
            await (process.start() if how == "start" else process.__aenter__())
        hanging.go_on.set()
        await process.join()
    assert isinstance(process.exception, ProcessTimeout)


async def test_timeout_of_a_start_that_hangs_in_a_nursery(hanging: HangingStart) -> None:
    handle: Any = None

    async def time_out() -> None:
        nonlocal handle
        await hanging.begun.wait()  # or it would never begin, if the time was over before
        (handle,) = runtime().live
        runtime().watcher.call_soon(handle._on_timeout)

    with anyio.fail_after(TIMEOUT):
        async with (
            open_nursery(start_method="spawn", stop=BRIEF) as nursery,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(time_out)
            with pytest.raises(ProcessTimeout, match="could not be started within its timeout"):
                await nursery.start(print, hanging, timeout=2 * TIMEOUT)
        hanging.go_on.set()
        await handle.gone.wait()
        await support.until(lambda: handle not in runtime().live)


async def test_start_that_comes_through_when_it_is_about_to_be_given_up(
    announcements: Announcements,
) -> None:
    """The process is killed then, instead of being called stuck."""
    process = AsyncProcess(
        target=support.ignore_sigterm,
        args=(announcements.path,),
        stop=StopPolicy(grace=TIMEOUT),
    )
    handle = process._handle
    with anyio.fail_after(TIMEOUT):
        await process.start()
        await announcements.get()
        handle.stop(handle.policy)
        runtime().watcher.call_soon(lambda: handle._give_up_start(handle.policy))
        assert await process.terminate() == -signal.SIGKILL
