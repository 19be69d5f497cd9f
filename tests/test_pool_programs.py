"""Programs with a pool: how they end, and what they do where the system has no more of something.

Each has an interpreter of its own, as in :mod:`test_parent_death` and :mod:`test_start_faults`.
"""

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import Iterator

import pytest
from scripts import Program, Result
from support import START_METHODS, TIMEOUT, Announcements, wait_until_gone

# Generous: it takes milliseconds, and one second is promised.
SOON = 10.0

GUARD = 'if __name__ == "__main__":'

MAIN = """
import asyncio, contextlib, functools, gc, os, pathlib, signal, sys, threading
import anyio, creche, support
from creche import to_process
{head}

path, method, backend = sys.argv[1:]
open_pool = functools.partial(creche.open_pool, start_method=method)
BRIEF = creche.StopPolicy(grace=0.2, exit_timeout=0.2)
{run}

if __name__ == "__main__":
    {start}
"""

IN_ORDER = "anyio.run(run, backend=backend)"

INTERRUPTIBLE = """
    try:
        anyio.run(run, backend=backend)
    except* KeyboardInterrupt:
        print("interrupted")
"""


EXITING = """
    try:
        anyio.run(run, backend=backend)
    except* SystemExit as group:
        while isinstance(group, BaseExceptionGroup):
            (group,) = group.exceptions
        raise group from None
"""


@pytest.fixture
def program_announcements(program: Program) -> Iterator[Announcements]:
    fifo = Announcements(program.folder / "announcements")
    yield fifo
    fifo.close()


def write_main(program: Program, run: str, *, head: str = "", start: str = IN_ORDER) -> str:
    text = MAIN.format(run=textwrap.dedent(run), head=textwrap.dedent(head), start=start)
    return str(program.write(text))


def check_nothing_left(program: Program) -> None:
    """Check that all processes go soon after the program has gone, and leave no files."""
    left = program.wait_until_gone(SOON)
    assert not left, f"left over: {left}; {program.output()}"
    assert not program.files_left()


def check_output(result: Result, *expected: str) -> None:
    """Check that a program ended in order, and printed one line that begins as expected."""
    report = f"{result.stdout}\n--- stderr ---\n{result.stderr}"
    assert result.returncode == 0, report
    assert result.stdout.count("\n") == 1, report
    assert result.stdout.startswith(expected), report


# --- ended from outside ---------------------------------------------------------------------------

# What the pool is at. Each announces the pids of its workers, one a line, when it has got there.
STAGES = {
    # One worker turns in Python code, one in C code that holds the GIL, and one has nothing to do.
    "busy": """
        async def run():
            async with (
                open_pool(3, min_workers=3, stop=BRIEF) as pool,
                anyio.create_task_group() as group,
            ):
                for func in (support.busy_loop, support.hold_the_gil):
                    group.start_soon(pool.run, support.announce_then, path, func)
                statistics = await support.until_statistics(
                    pool, lambda statistics: statistics.workers_busy == 2
                )
                assert statistics.workers_idle == 1
                (idle,) = (w.pid for w in statistics.workers if w.state == "idle")
                support.announce(path, idle)
                await anyio.sleep_forever()
    """,
    "async": """
        async def run():
            async with open_pool(2, stop=BRIEF) as pool, anyio.create_task_group() as group:
                for _ in range(2):
                    group.start_soon(pool.run, support.clean_up_async, path)
                pid = await to_process.run_sync(os.getpid)
                support.announce(path, pid)
                await anyio.sleep_forever()
    """,
    "map": """
        async def run():
            async with open_pool(2, min_workers=2, stop=BRIEF) as pool:
                async for value in pool.map(support.double, itertools.count()):
                    if value == 100_000:
                        for worker in pool.statistics().workers:
                            support.announce(path, worker.pid)
                        support.announce(path)  # for the third
    """,
    # Shared memory is made, travels, and is mapped all the time.
    "large-data": """
        async def run():
            async def echo(data):
                for number in itertools.count():
                    assert await pool.run(targets.echo, data) == data
                    if number == 2:
                        support.announce(path, await pool.run(os.getpid))

            async with open_pool(2, stop=BRIEF) as pool, anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(echo, bytes(4 * 1024**2))
    """,
}

# No worker is replaced because it waits for a CPU: these are the ones that were announced.
STAGE_HEAD = """
import itertools, math, targets
from creche._pool import _scheduler
_scheduler._DEAF_SECONDS = math.inf
"""


@pytest.mark.either_backend
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_killed(
    program: Program,
    program_announcements: Announcements,
    start_method: str,
    anyio_backend: str,
    stage: str,
    how: str,
) -> None:
    """SIGTERM has no handler there, and so is as sudden."""
    if stage != "busy" and (how == "SIGTERM" or start_method == "spawn"):
        pytest.skip("makes no difference")
    main = write_main(program, STAGES[stage], head=STAGE_HEAD)
    path = program_announcements.path
    with program.running(main, path, start_method, anyio_backend) as parent:
        pids = {int(program_announcements.get_blocking()) for _ in range(3)}
        assert pids <= program.processes()
        number = signal.Signals[how]
        parent.send_signal(number)
        assert parent.wait(TIMEOUT) == -number
        check_nothing_left(program)
    assert "Traceback" not in program.output()


@pytest.mark.either_backend
@pytest.mark.parametrize("stage", STAGES)
def test_interrupted(
    program: Program,
    program_announcements: Announcements,
    start_method: str,
    anyio_backend: str,
    stage: str,
) -> None:
    """Ctrl-C: the program unwinds, and nothing is heard of the workers."""
    if stage != "busy" and start_method == "spawn":
        pytest.skip("makes no difference")
    main = write_main(program, STAGES[stage], head=STAGE_HEAD, start=INTERRUPTIBLE)
    path = program_announcements.path
    with program.running(main, path, start_method, anyio_backend) as parent:
        for _ in range(3):
            program_announcements.get_blocking()
        parent.send_signal(signal.SIGINT)
        assert parent.wait(TIMEOUT) == 0, program.output()
        check_nothing_left(program)
    assert program.output() == "interrupted\n"


def test_interrupted_while_workers_start(
    program: Program, program_announcements: Announcements, start_method: str, anyio_backend: str
) -> None:
    run = """
    async def run():
        support.announce(path)
        while True:
            async with open_pool(2, min_workers=2) as pool:
                await pool.run(support.double, 1)
    """
    main = write_main(program, run, start=INTERRUPTIBLE)
    path = program_announcements.path
    with program.running(main, path, start_method, anyio_backend) as parent:
        program_announcements.get_blocking()
        parent.send_signal(signal.SIGINT)
        assert parent.wait(TIMEOUT) == 0, program.output()
        check_nothing_left(program)
    assert program.output() == "interrupted\n"


# --- ended from inside ----------------------------------------------------------------------------

ENDS = {
    "sys.exit-in-block": """
        async def run():
            async with open_pool(2) as pool, anyio.create_task_group() as group:
                group.start_soon(pool.run, support.clean_up, path)
                await wait_for_go()
                sys.exit(3)
    """,
    "sys.exit-in-block-with-stubborn-worker": """
        async def run():
            async with open_pool(2, stop=BRIEF) as pool, anyio.create_task_group() as group:
                group.start_soon(pool.run, support.swallow_stop, path)
                await wait_for_go()
                sys.exit(3)
    """,
    "sys.exit-in-a-map": """
        async def run():
            async with open_pool(2) as pool:
                async for value in pool.map(support.double, iter(int, 1)):
                    support.announce(path)
                    await wait_for_go()
                    sys.exit(3)
    """,
    # Nobody leaves the block, until the interpreter ends.
    "pool-left-open": """
        async def run():
            pool = open_pool(2, stop=BRIEF)
            await pool.__aenter__()
            support.announce(path, await pool.run(os.getpid))
            pools.append(pool)
            await wait_for_go()
            sys.exit(3)
    """,
    "to_process": """
        async def run():
            support.announce(path, await to_process.run_sync(os.getpid))
            await wait_for_go()
            sys.exit(3)
    """,
    "os._exit": """
        async def run():
            async with open_pool(2) as pool, anyio.create_task_group() as group:
                group.start_soon(pool.run, support.swallow_stop, path)
                await wait_for_go()
                os._exit(3)
    """,
}

GO = """
async def wait_for_go():
    while not os.path.exists(path + "-go"):
        await anyio.sleep(0.01)
"""


def go(program: Program) -> None:
    """Have a program go on that waits for it."""
    (program.folder / "announcements-go").touch()


@pytest.mark.either_backend
@pytest.mark.parametrize("end", ENDS)
def test_ends_with_open_pool(
    program: Program,
    program_announcements: Announcements,
    start_method: str,
    anyio_backend: str,
    end: str,
) -> None:
    if end != "pool-left-open" and start_method == "spawn":
        pytest.skip("makes no difference")
    main = write_main(program, ENDS[end], head=f"pools = []\n{GO}", start=EXITING)
    path = program_announcements.path
    with program.running(main, path, start_method, anyio_backend) as parent:
        assert int(program_announcements.get_blocking()) in program.processes()
        go(program)
        assert parent.wait(TIMEOUT) == 3, program.output()
        check_nothing_left(program)
    assert program.output() == ""


CLOSED_LOOP = """
async def use():
    pool = open_pool(3, stop=BRIEF)
    await pool.__aenter__()
    kept.append(pool)
    {use}

kept = []

def main():
    loop = asyncio.new_event_loop()
    loop.run_until_complete(use())
    loop.close()
    print("closed", flush=True)
    {after}
"""

IN_CLOSED_LOOP = {
    "idle": """
    support.announce(path, await pool.run(os.getpid))
    """,
    "to_process": """
    support.announce(path, await to_process.run_sync(os.getpid))
    """,
    "both-busy": """
    for func in (support.busy_loop, support.hold_the_gil):
        kept.append(asyncio.create_task(pool.run(support.announce_then, path, func)))
    kept.append(asyncio.create_task(to_process.run_sync(support.clean_up, path)))
    await support.until_statistics(pool, lambda statistics: statistics.workers_busy == 2)
    await wait_for_go()
    """,
    "map": """
    values = pool.map(support.double, iter(int, 1))
    for _ in range(1000):
        assert await anext(values) == 0
    kept.append(values)
    support.announce(path)
    """,
    "starting": """
    for _ in range(3):
        kept.append(asyncio.create_task(pool.run(support.wait_for_ever)))
    kept.append(asyncio.create_task(to_process.run_sync(support.wait_for_ever)))
    await asyncio.sleep(0)
    support.announce(path)
    """,
    "large-call": """
    kept.append(asyncio.create_task(pool.run(len, bytes(256 * 1024**2))))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    support.announce(path)
    """,
}


@pytest.mark.parametrize("after", ["interpreter exits", "pool is collected"])
@pytest.mark.parametrize("use", IN_CLOSED_LOOP)
def test_event_loop_is_closed_with_open_pools(
    program: Program,
    program_announcements: Announcements,
    start_method: str,
    use: str,
    after: str,
) -> None:
    """By ``loop.close()`` on a bare loop, which cancels nothing, as ``asyncio.run`` would."""
    if use not in ("idle", "both-busy") and start_method == "spawn":
        pytest.skip("makes no difference")
    path = program_announcements.path
    text = CLOSED_LOOP.format(
        use=IN_CLOSED_LOOP[use].strip(),
        after="kept.clear(); gc.collect()" if after == "pool is collected" else "",
    )
    main = write_main(program, text, head=GO, start="main()")
    with program.running(main, path, start_method, "asyncio") as parent:
        for _ in range(3 if use == "both-busy" else 1):
            program_announcements.get_blocking()
        if use == "both-busy":
            go(program)
        assert parent.wait(TIMEOUT) == 0, program.output()
        check_nothing_left(program)
    output = program.output()
    assert output.startswith("closed\n"), output
    assert "please report this" not in output
    if use in ("idle", "to_process"):
        assert output == "closed\n"


def test_call_is_left_behind_in_a_closed_event_loop(program: Program, start_method: str) -> None:
    """asyncio itself may tell of the task, and of nothing else is anything told."""
    run = """
    async def use():
        pool = open_pool(1, stop=BRIEF)
        await pool.__aenter__()
        kept.append(pool)
        kept.append(asyncio.create_task(pool.run(support.wait_for_ever)))
        await support.until_statistics(pool, lambda statistics: statistics.workers_busy == 1)

    kept = []

    def main():
        loop = asyncio.new_event_loop()
        loop.run_until_complete(use())
        loop.close()
        print("closed", flush=True)
        kept.clear()
        gc.collect()
    """
    main = write_main(program, run, start="main()")
    result = program.run(main, "", start_method, "asyncio")
    check_output(result, "closed")
    assert "Exception ignored" not in result.stderr
    assert "Traceback" not in result.stderr


def test_event_loop_is_closed_and_another_one_used(program: Program, start_method: str) -> None:
    """Whatever an event loop that was closed has left does not disturb the next one."""
    run = """
    async def use(left_open):
        pool = open_pool(1, stop=BRIEF)
        await pool.__aenter__()
        assert await pool.run(support.double, 21) == 42
        assert await to_process.run_sync(support.double, 4) == 8
        kept.append(pool)
        if not left_open:
            await pool.__aexit__(None, None, None)

    kept = []

    def main():
        for left_open in (True, True, False):
            loop = asyncio.new_event_loop()
            loop.run_until_complete(use(left_open))
            loop.close()
        print("done", flush=True)
    """
    main = write_main(program, run, start="main()")
    check_output(program.run(main, "", start_method, "asyncio"), "done")


# --- what the system has no more of ---------------------------------------------------------------

NO_DESCRIPTORS = """
def count():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))

@contextlib.contextmanager
def few_descriptors(free):
    fillers = []
    try:
        while True:
            fillers.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        assert error.errno == errno.EMFILE
    for _ in range(free):
        os.close(fillers.pop())
    try:
        yield
    finally:
        for filler in fillers:
            os.close(filler)

async def attempt(pool, func, *args):
    "Tell whether a call succeeded, or failed as creche says that calls may."
    try:
        with anyio.fail_after(30):
            value = await pool.run(func, *args)
    except creche.ProcessError as error:
        errors.add(type(error).__name__)
        return False
    assert value == func(*args)
    return True

steps = (0, 1, 2, 3, 4, 6, 8, 10, 12, 15, 18, 24)
if method not in support.SERVER_METHODS:
    steps = steps[::3]

async def open_some():
    "Open pools."
    for free in steps:
        with few_descriptors(free):
            succeeded = False
            for least in (0, 1):
                try:
                    with anyio.fail_after(30):
                        async with open_pool(2, min_workers=least) as pool:
                            succeeded = await attempt(pool, abs, -3)
                except creche.ProcessError as error:
                    errors.add(type(error).__name__)
        if free == 0:
            assert not succeeded
        async with open_pool(2) as pool:
            assert await attempt(pool, abs, -3)
        yield

async def grow():
    "Have an open pool grow, or replace its only worker."
    async with open_pool(2) as pool:
        for free in steps:
            while pool.statistics().workers:
                for worker in pool.statistics().workers:
                    with contextlib.suppress(ProcessLookupError, TypeError):
                        os.kill(worker.pid, signal.SIGKILL)
                await anyio.sleep(0.002)
            with few_descriptors(free):
                succeeded = await attempt(pool, abs, -3)
                if free == 0:
                    assert not succeeded
            assert await attempt(pool, abs, -3)
            with few_descriptors(free):
                async with anyio.create_task_group() as group:
                    for _ in range(20):
                        group.start_soon(attempt, pool, abs, -3)
                    for _ in range(3):
                        group.start_soon(attempt, pool, support.payload, 300_000)
            assert await attempt(pool, abs, -3)
            yield

async def large():
    "Send what takes descriptors of its own."
    async with open_pool(1) as pool:
        assert await attempt(pool, abs, -3)
        for free in range(6 if method in support.SERVER_METHODS else 2):
            with few_descriptors(free):
                for size in (100_000, 300_000, 4 * 1024**2):
                    await attempt(pool, support.payload, size)
                    await attempt(pool, targets.echo, bytes(size))
                    assert await attempt(pool, abs, -3)
            for size in (100_000, 300_000, 4 * 1024**2):
                assert await attempt(pool, targets.echo, bytes(size))
            yield

async def run_map():
    "Run maps, which go on with those workers that there are."
    async with open_pool(2) as pool:
        assert await attempt(pool, abs, -3)
        for free in steps:
            with few_descriptors(free):
                with anyio.fail_after(30):
                    values = [value async for value in pool.map(abs, range(-2000, 0))]
                assert values == list(range(2000, 0, -1))
            yield

async def to_process_too():
    for free in steps:
        with contextlib.suppress(anyio.BrokenWorkerProcess):
            await to_process.run_sync(os._exit, 3)
        with few_descriptors(free):
            try:
                with anyio.fail_after(30):
                    assert await to_process.run_sync(abs, -3) == 3
            except creche.ProcessError as error:
                errors.add(type(error).__name__)
            else:
                assert free > 0
        with anyio.fail_after(30):
            assert await to_process.run_sync(abs, -3) == 3
        yield

errors = set()

async def run():
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    async with open_pool(1) as pool:
        assert await attempt(pool, abs, -3)
    before = count()
    async for _ in globals()[path]():
        pass
    if path != "to_process_too":  # of which the pool is still open
        with anyio.move_on_after(10):  # what the watcher closes it closes in its own time
            while count() > before:
                await anyio.sleep(0.01)
        assert count() <= before, os.listdir("/proc/self/fd")
    print("done", *sorted(errors))
"""


@pytest.mark.either_backend
@pytest.mark.parametrize("what", ["open_some", "grow", "large", "run_map", "to_process_too"])
def test_no_descriptors(program: Program, start_method: str, anyio_backend: str, what: str) -> None:
    """There is a typed error, and when there are descriptors again the pool serves as before."""
    if what != "grow" and start_method == "spawn":
        pytest.skip("makes no difference")
    main = write_main(program, NO_DESCRIPTORS, head="import errno, resource, targets")
    result = program.run(main, what, start_method, anyio_backend)
    check_output(result, "done")
    assert set(result.stdout.split()[1:]) <= {
        "ProcessStartError",
        "ProcessDied",
        "SerializationError",
    }
    assert "please report this" not in result.stderr


NO_PROCESS_IDS = """
import errno, os, sys
from multiprocessing import util
import anyio, creche

def no_process_ids(*_):
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

async def main(method):
    with anyio.fail_after(50):
        for least in {least}:
            try:
                async with creche.open_pool(2, min_workers=least, start_method=method) as pool:
                    value = await pool.run(abs, -3)
            except creche.ProcessStartError as error:
                print(f"<ProcessStartError> {{error}}", end=" ")
            else:
                print(f"value: {{value}}", end=" ")
        async with creche.open_pool(2, start_method=method) as pool:
            try:
                await pool.run(abs, -3)
            except creche.ProcessStartError as error:
                pass
            os.fork, util.spawnv_passfds = fork, spawnv_passfds
            os.environ["ENOUGH"] = "yes"
            assert await pool.run(abs, -3) == 3
            assert [value async for value in pool.map(abs, range(-3, 0))] == [3, 2, 1]
    print()

fork, spawnv_passfds = os.fork, util.spawnv_passfds
if "ENOUGH" not in os.environ and __name__ == "{where}":
    os.fork = util.spawnv_passfds = no_process_ids
if __name__ == "__main__":
    anyio.run(main, sys.argv[1], backend=sys.argv[2])
"""


@pytest.mark.either_backend
def test_no_process_ids(program: Program, start_method: str, anyio_backend: str) -> None:
    path = program.write(NO_PROCESS_IDS.format(where="__main__", least="(0, 1)"))
    result = program.run(path, start_method, anyio_backend)
    check_output(result, "<ProcessStartError> ")
    assert result.stdout.count("<ProcessStartError>") == 2
    assert result.stdout.count(os.strerror(11)) >= 2


def test_no_process_ids_in_the_fork_server(program: Program, anyio_backend: str) -> None:
    path = program.write(NO_PROCESS_IDS.format(where="__mp_main__", least="(0,)"))
    result = program.run(path, "forkserver", anyio_backend)
    check_output(result, "<ProcessStartError> ")
    assert result.stdout.count("<ProcessStartError>") == 1


# --- fork -----------------------------------------------------------------------------------------


@pytest.mark.either_backend
@pytest.mark.parametrize("end", ["collected", "left-alone"])
def test_fork_of_the_application(
    program: Program,
    program_announcements: Announcements,
    start_method: str,
    anyio_backend: str,
    end: str,
) -> None:
    """The fork cannot use the pool, but one of its own, and its parent's does not notice."""
    run = """
    async def run():
        async with open_pool(2) as pool, anyio.create_task_group() as group:

            async def wait_for_gate():
                assert await pool.run(support.wait_for_gate, path, gate) == "went through"

            group.start_soon(wait_for_gate)
            await wait_for_go()
            pid = await pool.run(os.getpid)
            large = await pool.run(support.payload, 10**6)  # whose memory both have
            to_process_pid = await to_process.run_sync(os.getpid)
            forked = os.fork()
            if forked == 0:
                try:
                    threading.Thread(target=in_fork, args=(pool,)).start()
                except BaseException as error:
                    traceback.print_exception(error)
                    os._exit(1)
                threading.Event().wait()
            with anyio.fail_after(30):
                while (ended := os.waitpid(forked, os.WNOHANG)) == (0, 0):
                    assert await pool.run(support.double, 21) == 42
                    await anyio.sleep(0.01)
            assert os.waitstatus_to_exitcode(ended[1]) == 0
            assert await pool.run(os.getpid) == pid
            assert await to_process.run_sync(os.getpid) == to_process_pid
            assert [value async for value in pool.map(support.double, range(3))] == [0, 2, 4]
            statistics = pool.statistics()
            assert statistics.restarts == 0 and statistics.workers_busy == 1
            await anyio.to_thread.run_sync(pathlib.Path(gate).write_text, "")
        print("pool was left", flush=True)

    def in_fork(pool):
        # Another thread, because this one is inside of a loop that is not the fork's.
        async def use():
            for attempt in (
                lambda: pool.run(support.double, 1),
                lambda: pool.run(support.double, 1, timeout=1),
                lambda: anext(pool.map(support.double, [1])),
            ):
                try:
                    await attempt()
                except creche.ProcessStateError as error:
                    assert "belongs to the process" in str(error), error
                else:
                    raise AssertionError("the fork can use its parent's pool")
            async with open_pool(1) as own:
                value = await own.run(support.double, 4)
            return value + await to_process.run_sync(support.double, 5)

        try:
            print("in fork:", anyio.run(use, backend=backend), flush=True)
            del pool
            if end == "collected":
                gc.collect()
        except BaseException as error:
            traceback.print_exception(error)
        finally:
            os._exit(0)
    """
    gate = program.folder / "gate"
    os.mkfifo(gate)
    head = f"""
    import traceback, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, as intended here
    gate, end = {str(gate)!r}, {end!r}
    """
    main = write_main(program, run, head=textwrap.dedent(head) + GO)
    path = program_announcements.path
    with program.running(main, path, start_method, anyio_backend) as parent:
        program_announcements.get_blocking()
        go(program)
        assert parent.wait(TIMEOUT) == 0, program.output()
        check_nothing_left(program)
    assert program.output() == "in fork: 18\npool was left\n"


def test_fork_keeps_no_worker_alive(
    program: Program, program_announcements: Announcements, start_method: str, anyio_backend: str
) -> None:
    """A fork that outlives the program has copies of its descriptors, but not of the lifeline."""
    run = """
    async def run():
        async with open_pool(3, min_workers=3) as pool, anyio.create_task_group() as group:
            group.start_soon(pool.run, support.announce_then, path, support.hold_the_gil)
            group.start_soon(pool.run, support.announce_then, path, support.wait_for_ever)
            statistics = await support.until_statistics(pool, lambda s: s.workers_busy == 2)
            (idle,) = (worker.pid for worker in statistics.workers if worker.state == "idle")
            support.announce(path, idle)
            await wait_for_go()
            if os.fork() == 0:
                support.announce(path)
                support.wait_for_ever()
            await anyio.sleep_forever()
    """
    main = write_main(program, run, head=GO)
    path = program_announcements.path
    with program.running(main, path, start_method, anyio_backend) as parent:
        workers = [int(program_announcements.get_blocking()) for _ in range(3)]
        go(program)
        forked = int(program_announcements.get_blocking())
        parent.kill()
        parent.wait(TIMEOUT)
        assert all(wait_until_gone(worker, SOON) for worker in workers)
        assert forked in program.processes()
        os.kill(forked, signal.SIGKILL)
        assert not program.wait_until_gone(SOON)
        # The server takes the fork for its application, and removes its files when that ends.


# --- in places of its own -------------------------------------------------------------------------


@pytest.mark.either_backend
@pytest.mark.parametrize("outer", START_METHODS)
def test_daemonic_process(
    program: Program, start_method: str, outer: str, anyio_backend: str
) -> None:
    """One of ``multiprocessing``'s own: it may have no children, and that is what it is told."""
    text = f"""
    import multiprocessing, sys
    import anyio, creche

    async def use():
        for least in (0, 1):
            try:
                async with creche.open_pool(
                    1, min_workers=least, start_method={start_method!r}
                ) as pool:
                    await pool.run(abs, -3)
            except creche.ProcessStartError as error:
                assert "daemonic" in str(error), error
                print("ProcessStartError", end=" ")
        try:
            await creche.to_process.run_sync(abs, -3)
        except creche.ProcessStartError as error:
            assert "daemonic" in str(error), error
            print("ProcessStartError", flush=True)

    def main():
        anyio.run(use, backend={anyio_backend!r})

    if __name__ == "__main__":
        process = multiprocessing.get_context({outer!r}).Process(target=main, daemon=True)
        process.start()
        process.join(30)
        assert process.exitcode == 0, process.exitcode
    """
    result = program.run(program.write(text))
    check_output(result, "ProcessStartError ProcessStartError ProcessStartError")


UNGUARDED = """
import os, sys
import anyio, creche
{before}

async def main():
    try:
        {use}
    except creche.ProcessError as error:
        if __name__ != "__main__":
            raise
        # The application itself has to hear of it: what children write to stderr may be lost.
        print(f"{{type(error).__name__}}: {{error}}")
    else:
        print("value:", value)

with open({log!r}, "a") as file:
    print(__name__, file=file)
anyio.run(main, backend={backend!r})
"""

UNGUARDED_USES = {
    "run": """
        async with creche.open_pool(2, start_method={method!r}) as pool:
            value = await pool.run(abs, -3)
    """,
    "min_workers": """
        async with creche.open_pool(2, min_workers=2, start_method={method!r}) as pool:
            value = await pool.run(abs, -3)
    """,
    "map": """
        async with creche.open_pool(2, start_method={method!r}) as pool:
            value = [value async for value in pool.map(abs, [-3])]
            value = value[0]
    """,
}


@pytest.mark.either_backend
@pytest.mark.parametrize("use", UNGUARDED_USES)
def test_missing_guard(program: Program, start_method: str, anyio_backend: str, use: str) -> None:
    if use == "map" and start_method != "creche":
        pytest.skip("makes no difference")
    log = program.folder / "log"
    body = textwrap.indent(
        textwrap.dedent(UNGUARDED_USES[use]).strip().format(method=start_method), " " * 8
    )
    text = UNGUARDED.format(before="", use=body.strip(), log=str(log), backend=anyio_backend)
    result = program.run(program.write(text))
    if start_method == "fork":
        check_output(result, "value: 3")
    else:
        check_output(result, "ProcessStartError: ")
        assert GUARD in result.stdout
    # A few workers have tried, and have not tried to start others.
    assert len(log.read_text().splitlines()) <= 10


@pytest.mark.either_backend
@pytest.mark.parametrize("least", [0, 1])
def test_main_fails_in_the_workers(
    program: Program, start_method: str, anyio_backend: str, least: int
) -> None:
    text = f"""
    import sys
    import anyio, creche

    async def main():
        try:
            async with creche.open_pool(
                2, min_workers={least}, start_method={start_method!r}
            ) as pool:
                value = await pool.run(abs, -3)
        except creche.ProcessError as error:
            print(f"{{type(error).__name__}}: {{error}}")
        else:
            print("value:", value)

    if __name__ == "__main__":
        anyio.run(main, backend={anyio_backend!r})
    else:
        raise ImportError("needs a terminal")
    """
    result = program.run(program.write(text))
    if start_method == "fork":
        check_output(result, "value: 3")
    else:
        check_output(result, "ProcessStartError: ")
        assert "ImportError: needs a terminal" in result.stdout
