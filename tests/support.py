"""What the tests run in children, and how they wait for them.

It is a module of its own because children import what they run: nothing in here may depend on
pytest or be expensive to import.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import faulthandler
import functools
import gc
import itertools
import os
import resource
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from typing import Any, NoReturn

import anyio

from creche import PoolStatistics, ProcessDied, ProcessPool, from_process
from creche._pool._pool_connection import PoolConnection
from creche._runtime import runtime
from creche._start_methods import _fork_server
from creche._start_methods._server import _servers as creche_servers
from creche._wire._messages import LAST, pack_answer

TIMEOUT = 60.0
"""Seconds that every wait of the tests may take: far more than any needs."""

START_METHODS = ("creche", "forkserver", "spawn", "fork")
SERVER_METHODS = ("creche", "forkserver")


# --- saying and hearing what runs -----------------------------------------------------------------


class Announcements:
    """A FIFO to which any process writes lines, and in which a test waits for them."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        # Open for writing as well: it never ends, however many writers come and go.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._received = b""

    def close(self) -> None:
        os.close(self._descriptor)

    async def get(self) -> str:
        """Wait for the next line."""
        with anyio.fail_after(TIMEOUT):
            while b"\n" not in self._received:
                await wait_readable(self._descriptor)
                self._receive()
        return self._take()

    async def get_pid(self) -> int:
        return int(await self.get())

    def get_blocking(self) -> str:
        """Wait for the next line in a test without an event loop."""
        deadline = time.monotonic() + TIMEOUT
        while b"\n" not in self._received:
            if not _readable(self._descriptor, deadline - time.monotonic()):
                raise TimeoutError(f"nothing was announced in {TIMEOUT:g} seconds")
            self._receive()
        return self._take()

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._received += os.read(self._descriptor, 4096)

    def _take(self) -> str:
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()


def announce(path: str, text: object = None) -> None:
    """Write a line to the :class:`Announcements` at ``path``: by default this process's id."""
    line = f"{os.getpid() if text is None else text}\n".encode()
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, line)  # short enough to be atomic
    finally:
        os.close(descriptor)


def announce_then(path: str, func: Callable[..., Any], *args: Any) -> Any:
    announce(path)
    return func(*args)


def started_then(func: Callable[..., Any], *args: Any) -> Any:
    """What a function that fails after it was ready looks like to ``ProcessNursery.start``."""
    from_process.started("ready")
    return func(*args)


def wait_until_gone(pid: int, timeout: float = TIMEOUT) -> bool:
    """Wait until a process, of whatever parent, runs no more."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return _readable(pidfd, timeout)
    finally:
        os.close(pidfd)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what there is no event for."""
    with anyio.fail_after(TIMEOUT):
        while not condition():
            await anyio.sleep(0.002)


@contextlib.contextmanager
def killed_in_vain(process: Any) -> Iterator[None]:
    """Have no signal end a process while the block runs, as in uninterruptible sleep."""
    from unittest import mock  # which children that import this module do without

    def do_nothing(*_: object) -> None:
        pass

    popen = type(process._handle._popen)
    with mock.patch.multiple(popen, send_signal=do_nothing, kill_group=do_nothing):
        yield


def time_out(process: Any) -> None:
    """Have the time of a process be over, whatever its timer says."""
    runtime().watcher.call_soon(process._handle._on_timeout)


async def until_statistics(
    pool: ProcessPool, condition: Callable[[PoolStatistics], bool]
) -> PoolStatistics:
    """Wait until the statistics of a pool, of which nobody is told, are such."""
    try:
        with anyio.fail_after(TIMEOUT):
            while not condition(statistics := pool.statistics()):
                await anyio.sleep(0.002)
    except TimeoutError:
        raise TimeoutError(f"in the end: {pool.statistics()}") from None
    return statistics


class Timeouts:
    """The timeouts of calls of pools, long ones, which are over as soon as a test says so."""

    def __init__(self) -> None:
        self._scopes: list[anyio.CancelScope] = []

    def move_on_after(self, seconds: float) -> anyio.CancelScope:
        self._scopes.append(anyio.move_on_after(seconds))
        return self._scopes[-1]

    def strike(self) -> None:
        """The time of every call is over."""
        assert self._scopes
        for scope in self._scopes:
            scope.deadline = anyio.current_time()


def use_poller(poller: Any) -> Any:
    """Have the watcher, which has nothing to do just now, use another poller."""
    watcher = runtime().watcher
    original = watcher.poller
    swapped = threading.Event()

    def swap() -> None:
        watcher.poller = poller
        watcher.call_soon(swapped.set)  # when the new one turns

    watcher.call_soon(swap)
    assert swapped.wait(TIMEOUT)
    return original


def _readable(descriptor: int, timeout: float) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(max(0.0, timeout) * 1000))


def open_descriptors() -> Iterator[int]:
    """The descriptors that this process has open, in a list that closing them does not disturb."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            os.fstat(int(name))
            yield int(name)


@contextlib.contextmanager
def descriptors_left(number: int) -> Iterator[None]:
    """Nothing can open more descriptors than that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + number + 2, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        for _ in range(number):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


# --- plain work ----------------------------------------------------------------------------------


def double(number: int) -> int:
    return 2 * number


def call(func: Callable[..., Any], *args: Any) -> Any:
    return func(*args)


def payload(size: int) -> bytes:
    return bytes(size)


def many_objects(number: int) -> list[dict[str, int]]:
    return [{"number": i} for i in range(number)]


# --- ends without an outcome ----------------------------------------------------------------------


def _end_without_a_trace() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()  # pytest's, under fork


def segfault() -> NoReturn:
    _end_without_a_trace()
    ctypes.string_at(0)
    raise AssertionError("unreachable")


def abort() -> NoReturn:
    _end_without_a_trace()
    os.abort()


def exit_at_once(code: int) -> NoReturn:
    os._exit(code)


def exit_in_order(*code: Any) -> NoReturn:
    sys.exit(*code)


async def exit_in_order_async(*code: Any) -> NoReturn:
    await anyio.lowlevel.checkpoint()
    sys.exit(*code)


def exit_from_thread() -> None:
    """Another thread ends the process while the main one waits."""
    threading.Thread(target=os._exit, args=(5,)).start()
    wait_for_ever()


def send_signal(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(TIMEOUT)


class UnprintableReason:
    def __str__(self) -> str:
        raise ValueError("no text for this")


def exit_with_unprintable_reason() -> NoReturn:
    sys.exit(UnprintableReason())  # type: ignore[arg-type]


# --- never ends by itself -------------------------------------------------------------------------


def wait_for_ever() -> None:
    while True:
        signal.pause()


async def wait_for_ever_async() -> None:
    await anyio.sleep_forever()


def busy_loop() -> None:
    while True:
        pass


def hold_the_gil() -> None:
    """C code that neither lets go of the GIL nor looks for signals, ever."""
    deque(itertools.repeat(None), maxlen=0)


def ignore_sigterm(ready: str | None = None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if ready is not None:
        announce(ready)
    wait_for_ever()


def swallow_stop(ready: str | None = None) -> None:
    """Catch the request to stop, and go on."""
    while True:
        try:
            if ready is not None:
                path, ready = ready, None
                announce(path)
            wait_for_ever()
        except BaseException:
            continue


def hang_in_finally(ready: str | None = None) -> None:
    try:
        if ready is not None:
            announce(ready)
        wait_for_ever()
    finally:
        wait_for_ever()


def announce_when_stopped(path: str) -> None:
    try:
        from_process.started()
        wait_for_ever()
    finally:
        announce(path)
        wait_for_ever()


def raise_in_finally(ready: str) -> None:
    try:
        announce(ready)
        wait_for_ever()
    finally:
        raise ValueError("while cleaning up")


def clean_up(ready: str) -> None:
    try:
        announce(ready)
        wait_for_ever()
    finally:
        announce(ready, "cleaned up")


async def clean_up_async(ready: str) -> None:
    try:
        announce(ready)
        await anyio.sleep_forever()
    finally:
        announce(ready, "cleaned up")


# --- exceptions -----------------------------------------------------------------------------------


class TwoArguments(Exception):
    """Cannot be rebuilt: its ``args`` do not fit its ``__init__``."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} because of {why}")


class HoldsALock(Exception):
    """Cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text for this")


class RefusesPickling(Exception):
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("not me")


class ExitsOnPickling(Exception):
    def __reduce__(self) -> NoReturn:
        sys.exit(9)


class BecomesANumber(Exception):
    """Unpickles to something that cannot be raised."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("7",)


class ExitsOnUnpickling(Exception):
    """Would end the thread that unpickles it in the parent."""

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, ("unpickled",)


class HasDefaults(Exception):
    """Keeps more than its ``args``."""

    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class CustomBaseException(BaseException):
    pass


def raise_it(error: BaseException) -> NoReturn:
    raise error


async def raise_it_async(error: BaseException) -> NoReturn:
    await anyio.lowlevel.checkpoint()
    raise error


def raise_type(kind: type[BaseException], *args: Any, **kwargs: Any) -> NoReturn:
    raise kind(*args, **kwargs)


def raise_local_type() -> NoReturn:
    class Local(Exception):
        pass

    raise Local("nobody else knows this type")


def raise_with_note() -> NoReturn:
    error = HasDefaults("with a note", code=7)
    error.add_note("see the manual")
    raise error


def raise_from() -> NoReturn:
    try:
        raise LookupError("the reason")
    except LookupError as error:
        raise ValueError("the consequence") from error


def raise_group() -> NoReturn:
    raise ExceptionGroup("two", [ValueError("one"), ExceptionGroup("more", [KeyError("two")])])


def raise_cancelled() -> NoReturn:
    raise asyncio.CancelledError("not by the parent")


def raise_process_died() -> NoReturn:
    """What a function that uses creche itself may fail with."""
    raise ProcessDied(-9, name="inner", pid=4711, detail="seen in a child")


def recurse() -> None:
    recurse()


def run_out_of_memory() -> bytes:
    soft = 2 * 1024**3
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    return bytes(4 * 1024**3)


def fill_memory() -> NoReturn:
    """Fail when there is next to nothing left, with the traceback holding on to all of it."""
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit += 64 * 1024**2
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # It grows piece by piece, and is taken apart without recursion, for which there is no stack.
    hoard: deque[Any] = deque()
    for size in (1 << 20, 1 << 16, 1 << 12, 1 << 8):
        with contextlib.suppress(MemoryError):
            while True:
                hoard.append(bytearray(size))
    while True:
        hoard.append(bytearray(64))


# --- values and arguments -------------------------------------------------------------------------


class RefusesUnpickling:
    def __reduce__(self) -> tuple[Any, ...]:
        return raise_it, (RuntimeError("not in here"),)


class LeavesOnUnpickling:
    """Calls ``leave(*args)`` wherever it is unpickled."""

    def __init__(self, leave: Callable[..., Any], *args: Any) -> None:
        self._call = leave, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


class LeavesOnPickling:
    def __init__(self, leave: Callable[..., Any], *args: Any) -> None:
        self._call = leave, args

    def __reduce__(self) -> NoReturn:
        leave, args = self._call
        leave(*args)
        raise AssertionError("unreachable")


def ignore(*_: object) -> None:
    pass


def make(kind: Callable[..., Any], *args: Any) -> Any:
    """Return what could not be passed as an argument."""
    return kind(*args)


def open_file() -> Any:
    return open(os.devnull)


def make_lambda() -> Callable[[], int]:
    return lambda: 1


def make_deep_list() -> list[Any]:
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    return deep


async def make_async(kind: Callable[..., Any], *args: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return kind(*args)


async def wait_readable(descriptor: int) -> None:
    """``anyio.wait_readable``, which the lowest supported version lacks."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio  # costs a child 100 ms

        await trio.lowlevel.wait_readable(descriptor)
    else:
        readable = asyncio.Event()
        loop.add_reader(descriptor, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(descriptor)


# --- descriptors ----------------------------------------------------------------------------------


NOT_OURS = "CRECHE_TESTS_NOT_OURS"


def sockets_and_pipes() -> dict[int, str]:
    """All open ones, and what identifies each of them in whatever process has it open."""
    found = {}
    for descriptor in open_descriptors():
        status = os.fstat(descriptor)
        if stat.S_ISSOCK(status.st_mode) or stat.S_ISFIFO(status.st_mode):
            found[descriptor] = f"{status.st_dev}:{status.st_ino}"
    return found


def _to_attack() -> list[int]:
    # Under fork, a child inherits the test runner's own connections as well: what is written to
    # those breaks not creche but the run.
    not_ours = os.environ[NOT_OURS].split()
    return [
        descriptor
        for descriptor, identity in sockets_and_pipes().items()
        if descriptor > 2 and identity not in not_ours
    ]


def write_garbage(data: bytes = b"\xff garbage \x00\n" * 100) -> str:
    """Write to everything inherited that somebody else may read from."""
    for descriptor in _to_attack():
        with contextlib.suppress(OSError):
            os.set_blocking(descriptor, False)
            os.write(descriptor, data)
    return "garbage was written"


def _write_to_sockets(data: bytes) -> None:
    for descriptor in _to_attack():
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            with contextlib.suppress(OSError):
                os.write(descriptor, data)


VALUE_FRAME = 5


def _frame_header(length: int) -> bytes:
    return struct.pack("!4sBIQ", b"crch", VALUE_FRAME, 1, length)


def die_while_sending() -> NoReturn:
    """End in the middle of what looks like a result."""
    _write_to_sockets(_frame_header(1000) + b"only the beginning")
    os._exit(0)


def die_while_answering() -> NoReturn:
    """In a worker of a pool: end in the middle of the answer to a call."""
    write_to_pool(pack_answer(VALUE_FRAME, LAST, 0.0, 1000) + b"only the beginning")
    os._exit(0)


def write_to_pool(data: bytes) -> None:
    """In a worker: write to the wire over which it answers, and to no other."""
    (connection,) = (obj for obj in gc.get_objects() if isinstance(obj, PoolConnection))
    connection._wire.write(data)


def announce_enormous_result() -> None:
    """Begin a result that says to be larger than any memory, and return normally."""
    _write_to_sockets(_frame_header(1 << 62))


def forge_result() -> None:
    """Send a well-formed result that is not a pickle."""
    data = b"this is not a pickle"
    _write_to_sockets(_frame_header(len(data)) + data)


def close_descriptors() -> str:
    os.closerange(0, 4096)
    return "cannot be told"


def close_standard_streams() -> str:
    for stream in (sys.stdout, sys.stderr):
        stream.close()
    os.closerange(0, 3)
    return "no streams"


# --- hangs at exit --------------------------------------------------------------------------------


def leave_thread_behind() -> str:
    threading.Thread(target=wait_in_thread, daemon=False).start()
    return "a thread is left"


def wait_in_thread() -> None:
    threading.Event().wait()


def hang_in_finalizer() -> str:
    util.Finalize(None, wait_in_thread, exitpriority=1)
    atexit.register(wait_in_thread)
    return "hangs"


def announce_at_exit_and_hang(path: str) -> None:
    util.Finalize(None, announce_then, (path, wait_in_thread), exitpriority=1)


def stop_in_finalizer() -> str:
    util.Finalize(None, os.kill, (os.getpid(), signal.SIGSTOP), exitpriority=1)
    return "stopped"


def crash_in_finalizer() -> str:
    util.Finalize(None, os._exit, (7,), exitpriority=1)
    return "crashes"


def raise_and_hang() -> NoReturn:
    hang_in_finalizer()
    raise ValueError("and hangs")


def exit_and_hang() -> NoReturn:
    hang_in_finalizer()
    sys.exit("and hangs")


# --- descendants ----------------------------------------------------------------------------------


def spawn_grandchild(ready: str | None = None, *, new_session: bool = False) -> int:
    """Start a process that keeps every descriptor of this one, and outlives it."""
    for descriptor in list(open_descriptors()):
        os.set_inheritable(descriptor, True)
    code = "import time; time.sleep(600)"
    if ready is not None:
        code = f"import os; open({ready!r}, 'w').write(f'{{os.getpid()}}\\n'); {code}"
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code],
        close_fds=False,
        start_new_session=new_session,
    )
    process.returncode = 0  # keeps subprocess from complaining that it still runs
    return process.pid


spawn_grandchild_in_new_session = functools.partial(spawn_grandchild, new_session=True)


def spawn_grandchild_and_wait(ready: str) -> None:
    spawn_grandchild(ready)
    wait_for_ever()


def spawn_grandchild_and_crash() -> None:
    spawn_grandchild()
    os.kill(os.getpid(), signal.SIGKILL)


def fork_and_return() -> str:
    """Return from here twice: in the child, and in a fork of it."""
    forked = os.fork()
    if forked:
        os.waitpid(forked, 0)
        return "the child"
    return "its fork"


def steal_socket_pair() -> str:
    """Open descriptors where closed ones were: nothing of creche's may write to them."""
    os.closerange(3, 4096)
    pairs = [socket.socketpair() for _ in range(8)]
    del pairs
    return "cannot be told"


# --- calls of a pool ------------------------------------------------------------------------------


def append_line(path: str, text: object) -> None:
    """Leave a trace of a call: a line in a file, whole whoever else writes there."""
    with open(path, "ab", buffering=0) as file:
        file.write(f"{text}\n".encode())


def note(path: str, number: int) -> int:
    """Note down that the call ran."""
    append_line(path, number)
    return number


def note_or_die(path: str, deadly: tuple[int, ...], number: int) -> int:
    """Note down that the call ran; some numbers end the process."""
    append_line(path, number)
    if number in deadly:
        os._exit(3)
    return number


def note_and_die_when_told(path: str, ready: str, gate: str) -> None:
    append_line(path, "deadly")
    announce(ready)
    with open(gate) as file:
        file.read()
    os._exit(3)


def note_pid(path: str, number: int) -> int:
    append_line(path, os.getpid())
    if number % 5 == 4:
        os._exit(3)
    return number


def wait_for_gate(ready: str, gate: str) -> str:
    announce(ready)
    with open(gate) as file:
        file.read()
    return "went through"


class WaitsOnUnpickling:
    """Announces that it is being unpickled, and never is."""

    def __init__(self, ready: str) -> None:
        self._ready = ready

    def __reduce__(self) -> tuple[Any, ...]:
        return announce_then, (self._ready, wait_for_ever)


class DiesInWorkers:
    """Ends a process that unpickles it, other than the one that it comes from."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (4,)


def slow_to_pickle(opened: threading.Event) -> list[Any]:
    """What is pickled in a thread, which waits until it may go on."""
    return [*map(str, range(100_000)), OpensSlowly(opened)]


class OpensSlowly:
    def __init__(self, opened: threading.Event) -> None:
        self.begun = threading.Event()
        self._opened = opened

    def __reduce__(self) -> Any:
        self.begun.set()
        self._opened.wait(TIMEOUT)
        return int, ()


class WaitsOnPickling:
    def __init__(self, ready: str) -> None:
        self._ready = ready

    def __reduce__(self) -> NoReturn:
        announce_then(self._ready, wait_for_ever)
        raise AssertionError("unreachable")


class GrowsOnPickling:
    """Takes no memory to speak of before it is pickled."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (bytes(self._size),)


class GrowsOnUnpickling:
    """Takes no memory to speak of before it is unpickled."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (self._size,)


def allocate(size: int) -> int:
    return len(bytearray(size))


def allocate_array(size: int) -> int:
    import numpy as np

    return int(np.ones(size, dtype=np.uint8).nbytes)


# --- initializers ---------------------------------------------------------------------------------


def note_and_exit(path: str) -> NoReturn:
    append_line(path, os.getpid())
    os._exit(3)


def fail_at_first(path: str, times: int) -> None:
    """Fail in the first workers, of however many that call this one after the other."""
    append_line(path, os.getpid())
    if len(Path(path).read_text().splitlines()) <= times:
        raise ValueError("not yet")


def fail_but_once(path: str) -> None:
    """Fail in all workers but the first."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        raise ValueError("one is enough") from None


def die_when_ready(path: str) -> None:
    """Have the worker end when it has said that it is ready."""
    append_line(path, os.getpid())

    def die(_: PoolConnection) -> NoReturn:
        os._exit(6)

    PoolConnection.receive_call = die  # type: ignore[method-assign]


def die_on_receipt(path: str) -> None:
    """Have the first worker be killed when it has received a call, and begun nothing of it."""
    receive_call = PoolConnection.receive_call

    def receive_and_die(connection: PoolConnection) -> memoryview | bytes:
        message = receive_call(connection)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)
        return message

    PoolConnection.receive_call = receive_and_die  # type: ignore[method-assign]


# --- creche within creche -------------------------------------------------------------------------


async def nested(start_method: str, func: Callable[..., Any], *args: Any) -> Any:
    from creche import run_in_process

    return await run_in_process(func, *args, start_method=start_method)


def nested_sync(backend: str, start_method: str, func: Callable[..., Any], *args: Any) -> Any:
    return anyio.run(functools.partial(nested, start_method, func, *args), backend=backend)


# --- transports, to_process and programs ----------------------------------------------------------


def fail_every(step: int, number: int) -> int:
    """Fail for every number that is a multiple of ``step``."""
    if number % step == 0:
        raise LookupError(f"{number} is a multiple of {step}")
    return 2 * number


async def run_sync_some(number: int) -> list[int]:
    """Use ``creche.to_process``: the pids of this process and of a worker, and a value."""
    from creche import to_process

    pid = await to_process.run_sync(os.getpid)
    return [os.getpid(), pid, await to_process.run_sync(double, number)]


def call_and_wait(func: Callable[..., Any], *args: Any) -> NoReturn:
    func(*args)
    wait_for_ever()
    raise AssertionError("unreachable")


def busy_for(seconds: float, value: Any) -> Any:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return value


def library_servers() -> set[int | None]:
    """The servers of the standard library's kind, which are reaped by the next start."""
    standard: Any = forkserver
    tracker: Any = resource_tracker
    return {
        standard._forkserver._forkserver_pid,
        *(server._forkserver_pid for server in _fork_server._servers.values()),
        tracker._resource_tracker._pid,
    }


def is_server(pid: int) -> bool:
    """Whether this is a server that lives as long as the application, or a spare of one."""
    own = {process.pid for process in creche_servers.server_processes()}
    try:
        return pid in library_servers() or os.getpgid(pid) in own
    except ProcessLookupError:
        return False
