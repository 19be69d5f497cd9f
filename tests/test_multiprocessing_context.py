"""creche's start method as what plain ``multiprocessing`` code takes it for: one more context."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection, resource_sharer, shared_memory
from pathlib import Path
from typing import Any

import anyio
import pytest
import start_targets as targets
import support
from scripts import Program
from start_targets import value_of
from support import TIMEOUT, Announcements

import creche
from creche import AsyncProcess, ProcessDied, ProcessStateError

PLAIN_METHODS = ("creche", "spawn", "forkserver", "fork")


@pytest.fixture(scope="module", autouse=True)
def shared_heap() -> None:
    """What multiprocessing keeps for good once there was a value in shared memory."""
    multiprocessing.get_context("creche").RawValue("i", 0)


@pytest.fixture
def context() -> Any:
    return multiprocessing.get_context("creche")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A FIFO that children read, and which ends when the test has written to it."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


@pytest.fixture
def holding(context: Any, announcements: Announcements, gate: Path) -> Iterator[Any]:
    """A process that runs, until somebody opens the gate."""
    process = context.Process(target=targets.hold, args=(announcements.path, str(gate)))
    process.start()
    announcements.get_blocking()
    yield process
    with contextlib.suppress(ValueError):  # closed by the test
        process.kill()
        process.join(TIMEOUT)
        process.close()


def start_all(processes: list[Any]) -> None:
    for process in processes:
        process.start()


def join_all(processes: list[Any]) -> None:
    for process in processes:
        process.join(TIMEOUT)
    assert [process.exitcode for process in processes] == [0] * len(processes)
    for process in processes:
        process.close()


def run_in_threads(count: int, func: Callable[[int], object]) -> list[Any]:
    """Call ``func`` in several threads at once, and return what it gave in each."""
    results: list[Any] = [None] * count
    together = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            together.wait(TIMEOUT)
            results[number] = func(number)
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    start_all(threads)
    for thread in threads:
        thread.join(TIMEOUT)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


# --- a process ------------------------------------------------------------------------------------


def test_context_by_name() -> None:
    context = creche.get_context()
    assert context is multiprocessing.get_context("creche")
    assert context.get_start_method() == "creche"
    with pytest.raises(ValueError, match="nosuch"):
        multiprocessing.get_context("nosuch")


def test_life_of_a_process(
    context: Any, announcements: Announcements, gate: Path, holding: Any
) -> None:
    assert holding.is_alive()
    assert holding.exitcode is None
    assert holding in multiprocessing.active_children()
    assert connection.wait([holding.sentinel], 0) == []
    holding.join(0)
    holding.join(0.01)
    assert holding.exitcode is None
    with pytest.raises(ValueError, match="still running"):
        holding.close()
    pid = holding.pid
    gate.write_text("")
    assert connection.wait([holding.sentinel], TIMEOUT) == [holding.sentinel]
    holding.join()
    holding.join(0)
    assert (holding.exitcode, holding.is_alive(), holding.pid) == (0, False, pid)
    assert holding not in multiprocessing.active_children()
    holding.terminate()  # nothing is there to be terminated
    holding.close()
    with pytest.raises(ValueError, match="closed"):
        holding.join()


@pytest.mark.parametrize(("how", "expected"), [("terminate", -15), ("kill", -9)])
def test_stopped_process(holding: Any, how: str, expected: int) -> None:
    getattr(holding, how)()
    holding.join(TIMEOUT)
    assert holding.exitcode == expected
    assert support.wait_until_gone(holding.pid, 1)


@pytest.mark.parametrize(
    ("func", "args", "expected"),
    [
        (targets.nothing, (), 0),
        (targets.exit_with, (None,), 0),
        (targets.exit_with, (7,), 7),
        (targets.exit_with, ("with a reason",), 1),
        (support.exit_at_once, (5,), 5),
        (support.send_signal, (signal.SIGKILL,), -9),
        (support.send_signal, (signal.SIGUSR1,), -10),
        (support.segfault, (), -11),
        (support.exit_from_thread, (), 5),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_exit_code(context: Any, func: Any, args: tuple[Any, ...], expected: int) -> None:
    process = context.Process(target=func, args=args)
    process.start()
    process.join(TIMEOUT)
    assert process.exitcode == expected
    process.close()


def test_uncaught_exception(context: Any, capfd: pytest.CaptureFixture[str]) -> None:
    process = context.Process(
        target=targets.fail_deep_inside, args=("not there",), name="unfortunate"
    )
    process.start()
    process.join(TIMEOUT)
    assert process.exitcode == 1
    stderr = capfd.readouterr().err
    assert "Process unfortunate:" in stderr
    assert "in inner_function" in stderr
    assert stderr.rstrip().endswith("LookupError: not there")


def test_what_cannot_be_pickled(context: Any) -> None:
    process = context.Process(target=lambda: None)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        process.start()
    assert multiprocessing.active_children() == []
    assert value_of(context, abs, -3) == 3


def test_what_cannot_be_unpickled(context: Any, capfd: pytest.CaptureFixture[str]) -> None:
    process = context.Process(target=support.ignore, args=(support.RefusesUnpickling(),))
    process.start()
    process.join(TIMEOUT)
    assert process.exitcode == 1
    assert "RuntimeError: not in here" in capfd.readouterr().err
    assert value_of(context, abs, -3) == 3


def test_large_argument(context: Any) -> None:
    """The process object itself is large, and travels to a child that waits for it."""
    data = os.urandom(1024) * 10_240
    assert value_of(context, len, data) == 10 * 1024**2
    assert value_of(context, targets.digest, data) == targets.digest(data)


def test_joined_from_many_threads(gate: Path, holding: Any) -> None:
    def wait(number: int) -> int:
        if number == 0:
            gate.write_text("")
        if number % 2:
            while holding.is_alive():
                holding.join(0.001)
        else:
            holding.join(TIMEOUT)
        return int(holding.exitcode)

    assert run_in_threads(8, wait) == [0] * 8
    holding.join()
    assert holding.exitcode == 0


def test_started_and_polled_from_many_threads(context: Any) -> None:
    """Each start, and ``active_children``, polls the children of all threads."""

    def run(number: int) -> list[int]:
        exitcodes = []
        for turn in range(8):
            process = context.Process(target=targets.exit_with, args=(10 * number + turn,))
            process.start()
            multiprocessing.active_children()
            process.join(TIMEOUT)
            exitcodes.append(process.exitcode)
            process.close()
        return exitcodes

    results = run_in_threads(4, run)
    assert results == [[10 * number + turn for turn in range(8)] for number in range(4)]


def test_terminated_while_another_thread_joins(holding: Any) -> None:
    def run(number: int) -> int | None:
        if number == 0:
            holding.terminate()
        holding.join(TIMEOUT)
        exitcode: int | None = holding.exitcode
        return exitcode

    assert run_in_threads(4, run) == [-15] * 4


def test_identity(context: Any, announcements: Announcements) -> None:
    authkey = b"of this process only"
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        name="named",
        daemon=True,
        target=targets.call_and_send,
        args=(sender, targets.describe_process, ()),
    )
    process.authkey = authkey
    process.start()
    sender.close()
    assert receiver.poll(TIMEOUT)
    with receiver:
        described = receiver.recv()
    process.join(TIMEOUT)
    assert described == {
        "name": "named",
        "daemon": True,
        "authkey": authkey,
        "pid": process.pid,
        "own pid": process.pid,
        "parent's pid": os.getpid(),
        "parent's name": multiprocessing.current_process().name,
        "parent is alive": True,
        "siblings": [],
        "start method": "creche",
    }
    process.close()


def test_two_names_that_nobody_gave(context: Any) -> None:
    processes = [context.Process(), context.Process()]
    assert all(process.name.startswith("CrecheProcess-") for process in processes)
    assert processes[0].name != processes[1].name


@pytest.mark.parametrize("text", ["hello", "fail"])
def test_process_with_a_run_of_its_own(
    announcements: Announcements, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    process = targets.SaysHello(announcements.path, text)
    process.start()
    assert announcements.get_blocking() == f"says-hello {text}"
    process.join(TIMEOUT)
    assert process.exitcode == (1 if text == "fail" else 0)
    assert ("as it was told" in capfd.readouterr().err) == (text == "fail")
    process.close()


@pytest.mark.parametrize("method", PLAIN_METHODS)
def test_children_of_a_child(context: Any, method: str) -> None:
    """Children of all other start methods are told the name of this one, too."""
    assert value_of(context, targets.value_in_child_of_child, method, abs, -3) == 3


# --- what processes share -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "target"),
    [("Lock", targets.increment_with), ("RLock", targets.increment_twice_with)],
)
def test_locks(context: Any, kind: str, target: Any) -> None:
    lock = getattr(context, kind)()
    counter = context.RawValue("i", 0)
    processes = [context.Process(target=target, args=(lock, counter, 200)) for _ in range(3)]
    start_all(processes)
    join_all(processes)
    assert counter.value == 600


@pytest.mark.parametrize("kind", ["Semaphore", "BoundedSemaphore"])
def test_semaphores(context: Any, kind: str) -> None:
    semaphore = getattr(context, kind)(2)
    inside, most = context.Value("i", 0), context.Value("i", 0)
    processes = [
        context.Process(target=targets.enter, args=(semaphore, inside, most, 100)) for _ in range(4)
    ]
    start_all(processes)
    join_all(processes)
    assert inside.value == 0
    assert 1 <= most.value <= 2


def test_event(context: Any) -> None:
    asked, answered = context.Event(), context.Event()
    processes = [context.Process(target=targets.answer_event, args=(asked, answered))]
    start_all(processes)
    assert not answered.is_set()
    asked.set()
    assert answered.wait(TIMEOUT)
    join_all(processes)


def test_condition(context: Any, tmp_path: Path) -> None:
    path = tmp_path / "turns"
    condition, turn = context.Condition(), context.RawValue("i", 0)
    processes = [
        context.Process(target=targets.take_turn, args=(condition, turn, number, str(path)))
        for number in (2, 0, 1)
    ]
    start_all(processes)
    join_all(processes)
    assert path.read_text().split() == ["0", "1", "2"]


def test_barrier(context: Any, tmp_path: Path) -> None:
    path = tmp_path / "passed"
    barrier = context.Barrier(3)
    processes = [
        context.Process(target=targets.pass_barrier, args=(barrier, str(path))) for _ in range(3)
    ]
    start_all(processes)
    join_all(processes)
    lines = path.read_text().splitlines()
    assert lines[:3] == ["arrived"] * 3
    assert lines[3:] == ["passed with True"] * 3


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue", "JoinableQueue"])
def test_queues(context: Any, kind: str) -> None:
    tasks, results = getattr(context, kind)(), getattr(context, kind)()
    processes = [
        context.Process(target=targets.double_until_none, args=(tasks, results)) for _ in range(2)
    ]
    start_all(processes)
    for number in range(50):
        tasks.put(number)
    assert sorted(results.get() for _ in range(50)) == list(range(0, 100, 2))
    for _ in processes:
        tasks.put(None)
    if kind == "JoinableQueue":
        tasks.join()
        for _ in range(50):
            results.task_done()
    join_all(processes)
    for queue in (tasks, results):
        queue.close()
        if kind != "SimpleQueue":
            queue.join_thread()


def test_queue_that_a_child_fills_before_it_ends(context: Any) -> None:
    """More than fits into a pipe: its feeder thread has to be waited for at the child's end."""
    queue = context.Queue()
    items = [os.urandom(1000) for _ in range(500)]
    process = context.Process(target=targets.put_all, args=(queue, items))
    process.start()
    assert [queue.get(timeout=TIMEOUT) for _ in items] == items
    join_all([process])
    queue.close()
    queue.join_thread()


def test_pipe_in_both_directions(context: Any) -> None:
    ours, theirs = context.Pipe()
    process = context.Process(target=targets.echo_over, args=(theirs,))
    process.start()
    theirs.close()
    with ours:
        for value in ("text", list(range(1000)), bytes(200_000), {"nested": (1, 2)}):
            ours.send(value)
            assert ours.poll(TIMEOUT)
            assert ours.recv() == value
        ours.send(None)
        assert ours.poll(TIMEOUT)  # its end, as nobody else holds the child's end
        with pytest.raises(EOFError):
            ours.recv()
    join_all([process])


def test_connection_passed_while_the_child_runs(context: Any) -> None:
    outer, outer_theirs = context.Pipe()
    inner, inner_theirs = context.Pipe()
    process = context.Process(target=targets.receive_connection_over, args=(outer_theirs,))
    process.start()
    outer_theirs.close()
    with outer, inner:
        outer.send(inner_theirs)
        assert inner.poll(TIMEOUT)
        assert inner.recv() == process.pid
        inner_theirs.close()
    join_all([process])
    resource_sharer.stop(TIMEOUT)


def test_value_and_array(context: Any) -> None:
    array, value = context.Array("i", 5), context.Value("i", 10)
    process = context.Process(target=targets.fill, args=(array, value))
    process.start()
    join_all([process])
    assert list(array) == [10, 11, 12, 13, 14]


def test_shared_memory(context: Any) -> None:
    """The child attaches itself to it: there is one resource tracker for both."""
    memory = shared_memory.SharedMemory(create=True, size=1000)
    try:
        process = context.Process(
            target=targets.write_to_shared_memory, args=(memory.name, b"from the child")
        )
        process.start()
        join_all([process])
        assert bytes(memory.buf[:14]) == b"from the child"
        with contextlib.closing(shared_memory.SharedMemory(memory.name)):
            pass  # it was not unlinked by the child's end
    finally:
        memory.close()
        memory.unlink()


def test_manager(context: Any) -> None:
    with context.Manager() as manager:
        values, items, lock = manager.dict(), manager.list(), manager.Lock()
        processes = [
            context.Process(target=targets.fill_managed, args=(values, items, lock))
            for _ in range(2)
        ]
        start_all(processes)
        pids = [process.pid for process in processes]
        join_all(processes)
        assert values["pid"] in pids
        assert list(items) == ["from the child"] * 2


def test_pool(context: Any) -> None:
    with context.Pool(2, initializer=targets.initialize, initargs=("value",)) as pool:
        assert pool.map(support.double, range(10)) == list(range(0, 20, 2))
        assert pool.apply(targets.initialized) == "value"
        assert os.getpid() not in pool.map(targets.identity, range(4), chunksize=1)
        with pytest.raises(LookupError, match="to the parent"):
            pool.apply(targets.fail_deep_inside, ("to the parent",))
        pool.close()
        pool.join()


def test_pool_replaces_workers(context: Any) -> None:
    with context.Pool(1, maxtasksperchild=1) as pool:
        assert len({pool.apply(targets.identity) for _ in range(4)}) == 4
        pool.close()
        pool.join()


def test_executor(context: Any) -> None:
    with ProcessPoolExecutor(
        2, mp_context=context, initializer=targets.initialize, initargs=("value",)
    ) as executor:
        assert list(executor.map(support.double, range(10))) == list(range(0, 20, 2))
        assert executor.submit(targets.initialized).result(TIMEOUT) == "value"
        assert executor.submit(targets.identity).result(TIMEOUT) != os.getpid()
        failed = executor.submit(targets.fail_deep_inside, "to the parent")
        assert isinstance(failed.exception(TIMEOUT), LookupError)


def test_executor_whose_worker_dies(context: Any) -> None:
    from concurrent.futures.process import BrokenProcessPool

    with ProcessPoolExecutor(1, mp_context=context) as executor:
        died = executor.submit(support.exit_at_once, 3)
        assert isinstance(died.exception(TIMEOUT), BrokenProcessPool)


def test_listening_socket(context: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = context.Process(target=targets.accept_one, args=(listener,))
        process.start()
        address = listener.getsockname()
    with socket.create_connection(address, TIMEOUT) as client:
        assert client.recv(100) == b"from the child"
        assert client.recv(100) == b""
    join_all([process])


def test_connected_socket(context: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = context.Process(target=targets.shout, args=(theirs,))
            process.start()
        ours.settimeout(TIMEOUT)
        ours.sendall(b"text")
        assert ours.recv(100) == b"TEXT"
    join_all([process])


# --- wrapped --------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_wrapped_before_its_start(announcements: Announcements) -> None:
    async with AsyncProcess.wrap(targets.SaysHello(announcements.path, "hello")) as process:
        assert await announcements.get() == "says-hello hello"
        assert await process.join() == 0
    failing = AsyncProcess.wrap(targets.SaysHello(announcements.path, "fail"))
    with anyio.fail_after(TIMEOUT), pytest.raises(LookupError, match="as it was told"):
        await failing


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["ends", "fails", "stopped", "cancelled"])
async def test_wrapped_while_it_runs(holding: Any, gate: Path, how: str) -> None:
    process = AsyncProcess.wrap(holding)
    assert (process.pid, process.is_alive()) == (holding.pid, True)
    with anyio.fail_after(TIMEOUT):
        if how == "ends":
            await anyio.to_thread.run_sync(gate.write_text, "")
            assert await process.result() is None  # type: ignore[func-returns-value]
        elif how == "fails":
            os.kill(holding.pid, signal.SIGKILL)
            with pytest.raises(ProcessDied, match="SIGKILL"):
                await process.result()
        elif how == "stopped":
            assert await process.terminate() == -15
        else:
            with anyio.move_on_after(0.01) as scope:
                await process.result()
            assert scope.cancelled_caught
        assert not process.is_alive()
        assert holding.exitcode == process.exitcode
    process.close()


@pytest.mark.anyio
@pytest.mark.parametrize("joined", [True, False])
async def test_wrapped_after_its_end(context: Any, joined: bool) -> None:
    plain = context.Process(target=targets.exit_with, args=(3,))
    plain.start()
    if joined:
        plain.join(TIMEOUT)
    else:
        assert connection.wait([plain.sentinel], TIMEOUT)
    process = AsyncProcess.wrap(plain)
    with anyio.fail_after(TIMEOUT):
        assert await process.join() == 3
        with pytest.raises(ProcessDied, match="exit code 3"):
            await process.result()
    process.close()
    with pytest.raises(ProcessStateError):
        AsyncProcess.wrap(plain)


# --- programs -------------------------------------------------------------------------------------

DEFAULT_METHOD = """
import multiprocessing, os, sys
import anyio, creche
import start_targets as targets

def of_main(number):
    return 2 * number

async def main():
    for method in ("creche", "spawn", "forkserver", "fork"):
        print(await creche.run_in_process(of_main, 3, start_method=method))

if __name__ == "__main__":
    multiprocessing.set_start_method("creche")
    assert multiprocessing.get_start_method() == "creche"
    for method in ("creche", "spawn", "forkserver", "fork"):
        context = multiprocessing.get_context(method)
        print(targets.value_of(context, of_main, 1))
        print(targets.value_of(context, targets.value_in_child_of_child, None, of_main, 2))
    anyio.run(main, backend=sys.argv[1])
    with multiprocessing.Pool(2) as pool:
        print(pool.map(of_main, range(3)))
        pool.close()
        pool.join()
    with multiprocessing.Manager() as manager:
        print(manager.list([1]))
    queue = multiprocessing.Queue()
    process = multiprocessing.Process(target=queue.put, args=("put",))
    process.start()
    print(queue.get(timeout=60))
    process.join()
    print(type(process).__name__, process._popen.method)
"""


def test_default_start_method(program: Program, anyio_backend: str) -> None:
    result = program.run(program.write(DEFAULT_METHOD), anyio_backend)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[:-4] == ["2", "4"] * 4 + ["6"] * 4
    assert lines[-4:] == ["[0, 2, 4]", "[1]", "put", "Process creche"]


def test_end_of_the_application(program: Program) -> None:
    """It joins its processes, and terminates those that are daemons, as with any start method."""
    text = """
    import os, sys, time
    import creche, support

    def ends_later(gate):
        with open(gate) as file:
            file.read()
        print("the other is joined", flush=True)

    if __name__ == "__main__":
        gate = sys.argv[1]
        context = creche.get_context()
        context.Process(target=support.wait_for_ever, daemon=True).start()
        context.Process(target=ends_later, args=(gate,)).start()
        context.Process(target=open, args=(gate, "w")).start()
        print("the end of main", flush=True)
    """
    gate = program.folder / "gate"
    os.mkfifo(gate)
    result = program.run(program.write(text), gate)
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(result.stdout.splitlines()) == ["the end of main", "the other is joined"]


def test_sentinel_of_the_parent(program: Program) -> None:
    """It ends with the parent. Only what has left the group of the child lives to see it."""
    text = """
    import multiprocessing, os, signal, sys
    from multiprocessing import connection
    import creche, support

    def child(path):
        parent = multiprocessing.parent_process()
        assert connection.wait([parent.sentinel], 0) == []
        if os.fork() == 0:
            os.setsid()
            support.announce(path, "waits")
            ended = connection.wait([parent.sentinel], 60) == [parent.sentinel]
            support.announce(path, f"ended: {ended}, alive: {parent.is_alive()}")
            os._exit(0)
        support.wait_for_ever()

    if __name__ == "__main__":
        process = creche.get_context().Process(target=child, args=(sys.argv[1],))
        process.start()
        support.wait_for_ever()
    """
    fifo = Announcements(program.folder / "announcements")
    with contextlib.closing(fifo):
        with program.running(program.write(text), fifo.path) as application:
            assert fifo.get_blocking() == "waits"
            application.kill()
            assert fifo.get_blocking() == "ended: True, alive: False"
        assert not program.wait_until_gone(10)
