"""Children under creche's own start method: clean, and many at once.

Nothing in them is the server's that they are forks of, nor that of other children.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import anyio
import pytest
import start_targets as targets
import support
from scripts import Program, Result
from start_targets import value_of
from support import TIMEOUT, Announcements, wait_until_gone

import creche
from creche import run_in_process

SOON = 10.0


@pytest.fixture
def context() -> Any:
    """The plain one, whose server runs and is warm."""
    context = creche.get_context()
    assert value_of(context, abs, -1) == 1
    return context


def succeed(result: Result) -> list[str]:
    """Check that a program ended in order; return the lines that it printed."""
    report = f"{result.stdout}\n--- stderr ---\n{result.stderr}"
    assert (result.returncode, result.stderr) == (0, ""), report
    return result.stdout.splitlines()


# --- a clean process ------------------------------------------------------------------------------


def test_only_the_descriptors_that_were_sent(
    context: Any, announcements: Announcements, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    siblings_own = [context.Pipe() for _ in range(3)]
    siblings = [
        context.Process(target=targets.hold, args=(announcements.path, str(gate), theirs))
        for _, theirs in siblings_own
    ]
    for sibling in siblings:
        sibling.start()
        announcements.get_blocking()
    receiver, sender = context.Pipe(duplex=False)
    sent = os.readlink(f"/proc/self/fd/{sender.fileno()}")
    with receiver:
        with sender:
            process = context.Process(
                target=targets.call_and_send, args=(sender, targets.links_and_sentinel, ())
            )
            process.start()
        assert receiver.poll(TIMEOUT)
        links, sentinel = receiver.recv()
    tracker = os.readlink(f"/proc/self/fd/{resource_tracker.getfd()}")  # type: ignore[attr-defined]
    assert links.pop(1) == os.readlink("/proc/self/fd/1")
    assert links.pop(2) == os.readlink("/proc/self/fd/2")
    links.pop(0)
    # The pipe that ends with the application is open twice: for whoever waits, and for the kernel.
    found = sorted(link for link in links.values() if link != os.devnull)
    assert found == sorted([sentinel, sentinel, tracker, sent])
    for sibling in siblings:
        sibling.kill()
    for each in (*siblings, process):
        each.join(TIMEOUT)
        each.close()
    for pair in siblings_own:
        for end in pair:
            end.close()


@pytest.mark.anyio
async def test_only_the_descriptors_of_an_async_process() -> None:
    async with creche.open_nursery() as nursery:
        for _ in range(3):
            await nursery.start(support.started_then, support.wait_for_ever)
        links = await run_in_process(targets.links)
        nursery.cancel_scope.cancel()
    kinds = [link.split(":")[0] for number, link in links.items() if number > 2]
    others = [kind for kind in kinds if kind not in ("pipe", "/dev/null")]
    assert others == ["socket"]  # the wire
    lifeline, tracker = 2, 1
    assert kinds.count("pipe") == lifeline + tracker


def test_signals(context: Any) -> None:
    """As in a spawned child: nothing of the server's."""
    spawned = value_of(multiprocessing.get_context("spawn"), targets.signals)
    for _ in range(2):
        assert value_of(context, targets.signals) == spawned
    assert spawned["blocked"] == []
    assert spawned["wakeup"] == -1


@pytest.mark.anyio
async def test_signals_of_an_async_process() -> None:
    spawned = await run_in_process(targets.signals, start_method="spawn")
    assert await run_in_process(targets.signals) == spawned


def test_process_group(context: Any) -> None:
    """Of its own, in the session of the application, and not only when creche starts it."""
    pid, group, session, parent = value_of(context, targets.groups)
    assert pid == group
    assert session == os.getsid(0)
    assert parent in [server.pid for server in creche.fork_server_statistics()]


def test_random_numbers(context: Any) -> None:
    drawn = [value_of(context, targets.random_numbers) for _ in range(4)]
    drawn.append(targets.random_numbers())
    for kind in zip(*drawn, strict=True):
        assert len(set(kind)) == len(drawn)


def test_standard_input(program: Program) -> None:
    """Is empty for children, who do not take what is meant for the application."""
    text = """
    import sys
    import creche, start_targets as targets

    if __name__ == "__main__":
        context = creche.get_context()
        print(repr(targets.value_of(context, targets.read_stdin)))
        print(sys.stdin.readline())
        print(repr(targets.value_of(context, targets.read_stdin)))
        print(sys.stdin.readline())
    """
    lines = succeed(program.run(program.write(text), stdin="first\nsecond\n"))
    assert lines == ["''", "first", "", "''", "second", ""]


LIMITS = """
import os, resource, sys
import creche, start_targets as targets

def limit():
    return resource.getrlimit(resource.RLIMIT_NOFILE)

def umask():
    value = os.umask(0)
    os.umask(value)
    return value

if __name__ == "__main__":
    context = creche.get_context()
    _, highest = limit()
    for soft in map(int, sys.argv[1:]):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, highest))
        os.umask(soft % 0o70)
        for _ in range(2):
            print(targets.value_of(context, limit) == limit(), end=" ")
            print(targets.value_of(context, umask) == umask())
"""


def test_limits(program: Program) -> None:
    """The application's, while the server has as many descriptors as it can get."""
    lines = succeed(program.run(program.write(LIMITS), 200))
    assert lines == ["True True"] * 2


def test_limits_change(program: Program) -> None:
    lines = succeed(program.run(program.write(LIMITS), 200, 150, 300))
    assert lines == ["True True"] * 6


def test_no_threads(context: Any) -> None:
    assert value_of(context, targets.threads) == (["MainThread"], 1)


HANDLERS = """
import atexit, os, sys
import creche, support

path = sys.argv[1]

def note(event):
    support.append_line(path, f"{os.getpid()} {event}")

atexit.register(note, "atexit-of-main")
os.register_at_fork(
    before=lambda: note("before"),
    after_in_parent=lambda: note("after_in_parent"),
    after_in_child=lambda: note("after_in_child"),
)

def function():
    atexit.register(note, "atexit-of-function")
    note("function")

if __name__ == "__main__":
    for _ in range(3):
        process = creche.get_context().Process(target=function)
        process.start()
        process.join()
        note(f"exitcode-{process.exitcode}")
"""


def test_handlers_at_forks_and_exits(program: Program) -> None:
    """The server's own are not run by children at their end; what a child registers is."""
    path = program.folder / "events"
    assert succeed(program.run(program.write(HANDLERS), path)) == []
    assert not program.wait_until_gone(SOON)
    events: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        pid, event = line.split()
        events.setdefault(pid, []).append(event)
    (application,) = [found for found in events.values() if "exitcode-0" in found]
    assert application == ["exitcode-0"] * 3 + ["atexit-of-main"]
    children = [found for found in events.values() if "function" in found]
    assert children == [["after_in_child", "function", "atexit-of-function"]] * 3
    (server,) = [found for found in events.values() if "before" in found]
    # At the end of the application it is killed, and may be making a spare just then.
    assert server.count("before") - server.count("after_in_parent") in (0, 1)
    assert server.count("atexit-of-main") <= 1
    # The last spare, which nobody has asked for anything, and what the server tries something with.
    rest = [found for found in events.values() if found not in (application, server, *children)]
    assert rest in ([], [["after_in_child"]], [["after_in_child"]] * 2)


# --- many at once ---------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_many_processes_alive_at_once() -> None:
    with anyio.fail_after(2 * TIMEOUT):
        async with creche.open_nursery() as nursery:
            for _ in range(200):
                await nursery.start(support.started_then, support.wait_for_ever)
            pids = {process.pid for process in nursery.processes}
            assert len(pids) == 200
            assert all(process.is_alive() for process in nursery.processes)
            nursery.cancel_scope.cancel()
    assert all(wait_until_gone(pid, SOON) for pid in pids if pid is not None)


def test_many_plain_processes_alive_at_once(context: Any, tmp_path: Path) -> None:
    """All of them wait at the same gate, and end together."""
    gate = context.Event()
    processes = [context.Process(target=gate.wait, args=(TIMEOUT,)) for _ in range(50)]
    for process in processes:
        process.start()
    assert all(process.is_alive() for process in processes)
    gate.set()
    for process in processes:
        process.join(TIMEOUT)
        assert process.exitcode == 0
        process.close()


def test_event_loops_in_several_threads(program: Program) -> None:
    text = """
    import threading
    import anyio, creche

    def of_main(number):
        return 2 * number

    async def main(number):
        async with creche.open_nursery() as nursery:
            processes = [nursery.start_soon(of_main, 10 * number + turn) for turn in range(8)]
        results[number] = [process.return_value for process in processes]

    if __name__ == "__main__":
        results = {}
        threads = [
            threading.Thread(target=anyio.run, args=(main, number), kwargs={"backend": backend})
            for number, backend in enumerate(["asyncio", "trio", "asyncio", "trio"])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(4):
            assert results[number] == [2 * (10 * number + turn) for turn in range(8)], results
        (server,) = creche.fork_server_statistics()
        print(server.children_started)
    """
    assert succeed(program.run(program.write(text))) == ["32"]


FORKS = """
import os, signal, sys
import anyio, creche, support
import start_targets as targets

def run(func, *args):
    if how == "plain":
        return targets.value_of(creche.get_context(), func, *args)
    return anyio.run(lambda: creche.run_in_process(func, *args), backend=how)

def servers():
    return {server.pid for server in creche.fork_server_statistics()}

def in_fork(path):
    assert servers() == set()
    _, _, _, server = run(targets.groups)
    assert server not in servers_of_parent
    for _ in range(20):
        assert run(os.getppid) == server
    process = creche.get_context().Process(
        target=support.announce_then, args=(path, support.hold_the_gil)
    )
    process.start()
    support.announce(path, "done")
    signal.pause()

if __name__ == "__main__":
    how, path = sys.argv[1:]
    _, _, _, server = run(targets.groups)
    servers_of_parent = servers()
    assert servers_of_parent == {server}
    fork = os.fork()
    if fork == 0:
        try:
            in_fork(path)
        except BaseException as error:
            support.announce(path, f"failed {error!r}")
        finally:
            os._exit(1)
    for _ in range(20):
        assert run(os.getppid) == server
    support.announce(path, f"fork {fork}")
    if how == "plain":
        creche.get_context().Process(target=support.hold_the_gil).start()
    signal.pause()
"""


@pytest.mark.parametrize("how", ["plain", "asyncio", "trio"])
def test_fork_of_the_application(program: Program, how: str) -> None:
    """Has a server of its own, and children that go with it."""
    fifo = Announcements(program.folder / "announcements")
    with contextlib.closing(fifo):
        with program.running(program.write(FORKS), how, fifo.path) as application:
            lines: dict[str, Any] = {}
            while not {"fork", "done", "pid"} <= lines.keys():
                word, *rest = fifo.get_blocking().split()
                lines["pid" if word.isdigit() else word] = rest or word
                assert "failed" not in lines, lines
            os.kill(int(lines["fork"][0]), signal.SIGKILL)
            assert wait_until_gone(int(lines["pid"]), SOON)
            assert application.poll() is None
        assert not program.wait_until_gone(SOON), program.output()


@pytest.mark.parametrize("how", ["plain", "asyncio", "trio"])
def test_application_is_killed(program: Program, how: str) -> None:
    """The kernel ends server, spare and children, whatever these do just now."""
    text = """
    import os, signal, sys
    import anyio, creche, support

    def hang_at_exit(path):
        support.announce(path)
        support.hang_in_finalizer()

    TARGETS = [
        support.wait_for_ever, support.busy_loop, support.hold_the_gil, support.stop_self,
        support.ignore_sigterm,
    ]

    async def main():
        patient = creche.StopPolicy(exit_timeout=600)
        async with creche.open_nursery(stop=patient) as nursery:
            for target in TARGETS:
                nursery.start_soon(support.announce_then, path, target)
            nursery.start_soon(hang_at_exit, path)

    if __name__ == "__main__":
        how, path = sys.argv[1:]
        if how == "plain":
            context = creche.get_context()
            for target in TARGETS:
                context.Process(target=support.announce_then, args=(path, target)).start()
            context.Process(target=hang_at_exit, args=(path,)).start()
            signal.pause()
        anyio.run(main, backend=how)
    """
    text = text.replace("support.stop_self", "functools.partial(os.kill, 0, signal.SIGSTOP)")
    text = text.replace("import os, signal", "import functools, os, signal")
    fifo = Announcements(program.folder / "announcements")
    with contextlib.closing(fifo):
        with program.running(program.write(text), how, fifo.path) as application:
            pids = {int(fifo.get_blocking()) for _ in range(6)}
            assert pids < program.processes()
            application.kill()
        assert not program.wait_until_gone(SOON), program.output()
