"""What the tests of ``from_process`` and of logs run in children, and in the parent for these."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import logging
import os
import pickle
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import util
from typing import Any, ClassVar, NoReturn, SupportsIndex
from unittest import mock

import anyio
import anyio.to_thread
from support import RefusesUnpickling, announce, until

from creche import ProcessStateError, StopRequested, _parent_requests, from_process, in_process
from creche._parent_connection import ParentConnection, parent_connection
from creche._pool._pool_connection import PoolConnection

REQUEST_ID: contextvars.ContextVar[str] = contextvars.ContextVar("REQUEST_ID", default="none")

# --- called in the parent -------------------------------------------------------------------------

noted: list[Any] = []
"""What functions that children have called have left, in the parent."""


def where(value: Any = None) -> tuple[int, str, Any]:
    return os.getpid(), threading.current_thread().name, value


async def where_async(value: Any = None) -> tuple[int, str, Any]:
    await anyio.sleep(0)
    return where(value)


def note(value: Any) -> int:
    noted.append(value)
    return len(noted)


def add(left: int, right: int) -> int:
    return left + right


async def add_at_once(left: int, right: int) -> int:
    """Ends without having waited."""
    return left + right


def request_id() -> str:
    return REQUEST_ID.get()


async def request_id_async() -> str:
    await anyio.sleep(0)
    return REQUEST_ID.get()


def make_event() -> str:
    """Needs to know which event loop it runs in."""
    return type(anyio.Event()).__name__


def fail(text: str) -> NoReturn:
    raise LookupError(text)


async def fail_async(text: str) -> NoReturn:
    await anyio.sleep(0)
    raise LookupError(text)


def leave() -> NoReturn:
    raise SystemExit(3)


def give(kind: Callable[..., Any], *args: Any) -> Any:
    return kind(*args)


async def give_async(kind: Callable[..., Any], *args: Any) -> Any:
    await anyio.sleep(0)
    return kind(*args)


async def wait_noting_the_end(path: str | None = None) -> None:
    """Wait for ever; tell when that begins and when it ends."""
    noted.append("begun")
    if path is not None:
        announce(path, "begun")
    try:
        await anyio.sleep_forever()
    finally:
        noted.append("cancelled")
        if path is not None:
            announce(path, "cancelled")


async def wait_for_note(value: str) -> str:
    """Tell when that begins and when it ends."""
    noted.append(f"{value} begun")
    while value not in noted:
        await anyio.sleep(0.001)
    noted.append(f"{value} over")
    return value


async def end_slowly() -> None:
    noted.append("begun")
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.05)
        noted.append("over")


async def echo_after(seconds: float, value: Any) -> Any:
    await anyio.sleep(seconds)
    return value


# --- run in children ------------------------------------------------------------------------------


def run(func: Callable[..., Any], *args: Any) -> Any:
    return from_process.run(func, *args)


def run_sync(func: Callable[..., Any], *args: Any) -> Any:
    return from_process.run_sync(func, *args)


async def arun(func: Callable[..., Any], *args: Any) -> Any:
    return await from_process.arun(func, *args)


async def arun_sync(func: Callable[..., Any], *args: Any) -> Any:
    return await from_process.arun_sync(func, *args)


async def run_in_event_loop(func: Callable[..., Any], *args: Any) -> Any:
    """Block the event loop of the child; which is allowed."""
    return from_process.run(func, *args)


async def block_while_another_task_waits() -> list[Any]:
    """A blocking request in an event loop that reads the line for another task."""
    values: list[Any] = []

    async def wait() -> None:
        values.append(await from_process.arun(echo_after, 0.05, "first"))

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(wait)
        await anyio.sleep(0.01)
        values.append(from_process.run_sync(add, 1, 2))
    return values


def run_in_threads(count: int, rounds: int) -> int:
    """Call from many threads at once; return how many answers were right."""
    right = 0
    lock = threading.Lock()

    def work(number: int) -> None:
        nonlocal right
        for index in range(rounds):
            value = from_process.run_sync(add, number, index)
            waited = from_process.run(echo_after, 0.0, index)
            with lock:
                right += value == number + index and waited == index

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return right


async def arun_in_tasks(count: int, rounds: int) -> int:
    right = 0

    async def work(number: int) -> None:
        nonlocal right
        for index in range(rounds):
            value = await from_process.arun_sync(add, number, index)
            waited = await from_process.arun(echo_after, 0.0, index)
            right += value == number + index and waited == index

    async with anyio.create_task_group() as task_group:
        for number in range(count):
            task_group.start_soon(work, number)
    return right


async def mix_threads_and_tasks(count: int, rounds: int) -> int:
    right = 0

    async def work_in_thread() -> None:
        nonlocal right
        in_threads = await anyio.to_thread.run_sync(run_in_threads, count, rounds)
        right += in_threads

    async def work_in_tasks() -> None:
        nonlocal right
        in_tasks = await arun_in_tasks(count, rounds)
        right += in_tasks

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(work_in_thread)
        task_group.start_soon(work_in_tasks)
    return right


async def give_up_waiting(path: str) -> str:
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(from_process.arun, wait_noting_the_end, path)
            while not await from_process.arun_sync(give, was_noted, "begun"):
                await anyio.sleep(0.001)
            scope.cancel()
    # The connection is as good as before.
    return await from_process.arun(echo_after, 0.0, "still there")


class UnpicklesWhenTold:
    """Says when it is being unpickled, and waits for somebody to open the gate, a FIFO."""

    def __init__(self, path: str, gate: str) -> None:
        self._args = path, gate

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle_when_told, self._args


def _unpickle_when_told(path: str, gate: str) -> None:
    announce(path, "unpickling")
    with open(gate, "rb"):
        pass


async def begin(*_: object) -> None:
    noted.append("begun")


async def give_up_what_is_being_unpickled(path: str, gate: str, give_up: str, end: str) -> None:
    async with anyio.create_task_group() as task_group:
        argument = UnpicklesWhenTold(path, gate), list(range(200_000))  # too heavy for the loop
        task_group.start_soon(from_process.arun, begin, argument)
        await anyio.to_thread.run_sync(wait_until_opened, give_up)
        # Or it is withdrawn by the thread that has sent it, which may come after what is next.
        await until(lambda: not requests_to_parent()._under_way)
        task_group.cancel_scope.cancel()
    await from_process.arun_sync(note, "given up")
    # Nothing is called on behalf of a process that has ended.
    await anyio.to_thread.run_sync(wait_until_opened, end)


def wait_until_opened(gate: str) -> None:
    """Wait until somebody opens this FIFO, too. To be used once: it may be open for a while."""
    with open(gate, "rb"):
        pass


def was_noted(value: Any) -> bool:
    return value in noted


def leave_request_behind(path: str) -> str:
    """Return while a thread still waits for the parent."""
    threading.Thread(target=from_process.run, args=(wait_noting_the_end, path), daemon=True).start()
    while not from_process.run_sync(was_noted, "begun"):
        time.sleep(0.001)
    return "returned"


def leave_slow_request_behind(gate: str) -> None:
    threading.Thread(target=from_process.run, args=(end_slowly,), daemon=True).start()
    with open(gate, "rb"):
        pass


def ask_for_ever(path: str) -> None:
    """Be always in the middle of a request."""
    announce(path)
    while True:
        from_process.run_sync(add, 1, 2)


def ask_while_unwinding(path: str) -> None:
    try:
        ask_for_ever(path)
    finally:
        announce(path, from_process.run_sync(add, 20, 3))


def ask_when_alarmed() -> list[str]:
    """Ask in a signal handler, which interrupts this while it waits for a reply."""
    values: list[str] = []

    def ask(*_: object) -> None:
        try:
            from_process.run_sync(note, "outer")
        except ProcessStateError:  # the request was still being sent, though the parent has it
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            return
        values.append(from_process.run(wait_for_note, "outer over"))  # its reply comes before this

    signal.signal(signal.SIGALRM, ask)
    values.append(from_process.run(wait_for_note, "outer"))
    return values


async def block_over_waiting_task(path: str) -> list[str]:
    """A thread reads the line for a task, and for a blocking request in the task's event loop."""
    values: list[str] = []

    def ask() -> None:
        values.append(from_process.run(wait_for_note, "thread"))
        announce(path, "the thread has left")

    async def wait() -> None:
        values.append(await from_process.arun(wait_for_note, "task"))

    thread = threading.Thread(target=ask)
    thread.start()
    while not from_process.run_sync(was_noted, "thread begun"):
        time.sleep(0.001)
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(wait)
        while not await from_process.arun_sync(was_noted, "task begun"):
            await anyio.sleep(0.001)
        values.append(from_process.run(wait_for_note, "blocking"))
    thread.join()
    return values


async def take_replies_from_the_event_loop(rounds: int) -> list[int]:
    """Block the event loop when it has seen that a reply is there, and has not received it."""
    values: list[int] = []
    from_process.run_sync(add, 1, 2)

    async def wait(number: int) -> None:
        values.append(await from_process.arun_sync(add, number, number))

    for number in range(rounds):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(wait, number)
            while not requests_to_parent()._waiting:
                await anyio.sleep(0)
            poller = select.poll()
            poller.register(requests_to_parent()._line, select.POLLIN)
            poller.poll()
            await anyio.sleep(0)
            from_process.run_sync(add, 1, 2)
    return values


def requests_to_parent() -> Any:
    requests = _parent_requests._requests
    assert requests is not None
    return requests[1]


def ask_while_asking(where: str) -> list[str]:
    """Be interrupted in the middle of something by what asks the parent, too."""
    errors: list[str] = []
    interrupting = True

    def interrupted(func: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            nonlocal interrupting
            if interrupting:
                interrupting = False
                try:
                    from_process.run_sync(add, 1, 2)
                except ProcessStateError as error:
                    errors.append(str(error))
            return func(*args)

        return wrapper

    connection: Any = connection_to_parent()
    if where == "opening":
        connection.open_line = interrupted(connection.open_line)
    else:
        assert from_process.run_sync(add, 1, 2) == 3
        interrupting = True
        if where == "wire":
            connection._wire.send = interrupted(connection._wire.send)
        else:
            line, (attribute, method) = requests_to_parent()._line, where.split(".")
            inner = getattr(line, attribute)
            outer = mock.Mock(wraps=inner, **{method: interrupted(getattr(inner, method))})
            setattr(line, attribute, outer)
    assert from_process.run_sync(add, 1, 2) == 3
    return errors


def wait_in_parent(path: str) -> None:
    from_process.run(wait_noting_the_end, path)


def call_outside(name: str) -> str:
    """Call in a fork of a child, which is none of creche's."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            getattr(from_process, name)()
        except BaseException as error:
            os.write(writer, type(error).__name__.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        return file.read()


def facts() -> from_process.CurrentProcess:
    return from_process.current_process()


async def facts_async() -> from_process.CurrentProcess:
    await anyio.sleep(0)
    return from_process.current_process()


# --- stopping -------------------------------------------------------------------------------------


def defer_then_work(path: str, *, check: bool) -> None:
    """Work on in spite of a request to stop, up to a point that it can be left at."""
    try:
        with from_process.deferred_cancellation():
            announce(path, "working")
            while not from_process.cancelled():
                time.sleep(0.001)
            announce(path, "cancelled")
            if check:
                from_process.check_cancelled()
            announce(path, "finished")
        announce(path, "not reached")
    except StopRequested:
        announce(path, "unwound")
        raise


async def defer_async(path: str) -> None:
    try:
        with from_process.deferred_cancellation():
            announce(path, "working")
            while not from_process.cancelled():
                await anyio.sleep(0.001)
            await anyio.sleep(0.01)
            announce(path, "finished")
        await anyio.sleep_forever()
    finally:
        announce(path, "unwound")


def work_in_thread(path: str) -> None:
    """A thread is not interrupted: it asks. The main thread waits for it."""

    def work() -> None:
        announce(path, "working")
        try:
            while True:
                from_process.check_cancelled()
                time.sleep(0.001)
        except StopRequested:
            announce(path, "thread unwound")

    thread = threading.Thread(target=work)
    with from_process.deferred_cancellation():
        thread.start()
        thread.join()


def not_cancelled() -> bool:
    from_process.check_cancelled()
    with from_process.deferred_cancellation():
        from_process.check_cancelled()
    return from_process.cancelled()


def fail_deferred() -> None:
    with from_process.deferred_cancellation():
        raise LookupError("oh")


# --- progress -------------------------------------------------------------------------------------


def report_all(count: int) -> str:
    for index in range(count):
        from_process.report(index + 1, count, f"item {index + 1}")
    return "done"


def report_from_threads(count: int) -> str:
    threads = [threading.Thread(target=report_all, args=(count,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return "done"


def report_step_by_step(gate: str, count: int) -> None:
    """Report whenever something comes through the gate."""
    with open(gate, "rb", buffering=0) as file:
        for index in range(count):
            file.read(1)
            from_process.report(index + 0.5)


def report_then_wait(count: int) -> None:
    report_all(count)
    time.sleep(60)


def report_and_die(count: int) -> None:
    report_all(count)
    os._exit(3)


def interrupt_before(obj: Any, name: str, interruption: Callable[[], object]) -> None:
    """Have a method call ``interruption`` first, which may call the method, too."""
    method = getattr(obj, name)
    interrupting = False

    def interrupted(data: Any) -> None:
        nonlocal interrupting
        interrupting = not interrupting  # or there would be no end
        if interrupting:
            interruption()
        method(data)

    setattr(obj, name, interrupted)


def report_while_sending(count: int) -> str:
    """In a worker: be interrupted in the middle of each report by what reports, too."""
    (connection,) = (obj for obj in gc.get_objects() if isinstance(obj, PoolConnection))
    interrupt_before(connection._wire, "write", lambda: from_process.report(-1))
    return report_all(count)  # so is the answer


def report_wrongly(*args: Any) -> str:
    try:
        from_process.report(*args)
    except TypeError as error:
        return str(error)
    return "no error"


def start_twice() -> None:
    from_process.started(1)
    from_process.started(2)


def start_once(value: int) -> int:
    from_process.started(value)
    return value


# --- logs -----------------------------------------------------------------------------------------

logger = logging.getLogger("talk.child")


def log_all(count: int) -> None:
    for index in range(count):
        logger.info("record %d", index)


@in_process(logs=True)
def log_decorated(count: int) -> None:
    log_all(count)


def log_and_yield() -> Iterator[str]:
    log_all(1)
    yield "item"


async def log_async(count: int) -> None:
    for index in range(count):
        logger.info("record %d", index)
        await anyio.sleep(0)


def log_and_die(count: int) -> None:
    log_all(count)
    os._exit(3)


def log_levels() -> bool:
    logger.debug("debug")
    logger.info("info")
    logging.getLogger("talk.loud").debug("loud debug")
    logging.getLogger("talk.quiet").warning("quiet warning")
    logging.getLogger("talk.quiet").error("quiet error")
    return logger.isEnabledFor(logging.DEBUG)


def log_then(func: Callable[..., Any], *args: Any) -> Any:
    log_all(3)
    return func(*args)


class HasABuffer:
    """Keeps its data out of the pickle, where it is asked to, as the arrays of NumPy do."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return bytes, (pickle.PickleBuffer(b"data"),)


def log_exception() -> None:
    try:
        fail("oh")
    except LookupError:
        extra = {"answer": 42, "odd": threading.Lock(), "array": HasABuffer()}
        logger.exception("it failed", extra=extra)


def log_what_cannot_be_unpickled() -> None:
    logger.info("before")
    logger.info("bad", extra={"bad": RefusesUnpickling()})
    logger.info("after")


def log_in_fork() -> None:
    if os.fork() == 0:
        with contextlib.suppress(BaseException):
            logger.info("from the fork")
        os._exit(0)
    os.wait()
    logger.info("from the child")


def log_from_threads(count: int) -> None:
    threads = [threading.Thread(target=log_all, args=(count,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def log_after_the_end(count: int) -> str:
    """Leave a thread behind that logs and reports when the outcome has been sent."""

    def work() -> None:
        threading.main_thread().join()
        log_all(count)
        from_process.report(count)

    threading.Thread(target=work).start()
    return "returned"


def log_at_exit(count: int) -> None:
    util.Finalize(None, log_all, args=(count,), exitpriority=0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1000)


def log_before_dying(announcements: str, count: int) -> None:
    log_all(count)
    announce(announcements)
    time.sleep(1000)


class LogsItsEnd:
    """Can be freed by the garbage collector alone, which runs at any point of anything."""

    freed: ClassVar[list[None]] = []

    def __init__(self) -> None:
        self.cycle = self

    def __del__(self) -> None:
        logger.info("freed")
        self.freed.append(None)


def log_and_collect(count: int) -> None:
    for index in range(count):
        LogsItsEnd()
        gc.set_threshold(1 + index % 50)  # so that it runs everywhere
        logger.info("record %d", index)
    while len(LogsItsEnd.freed) < count:
        gc.collect()  # which does nothing where another thread is at it


def connection_to_parent() -> ParentConnection:
    connection = parent_connection()
    assert connection is not None
    return connection


def log_while_sending(count: int) -> None:
    """Be interrupted in the middle of each record by what logs something."""
    wire: Any = connection_to_parent()._wire
    interrupt_before(wire, "send", lambda: logger.info("interruption"))
    for index in range(count):
        logger.info("record %d", index)
    del wire.send


def log_while_room_is_made(count: int) -> None:
    """Log in the thread that hears of room, when the main thread waits for that."""
    connection = connection_to_parent()
    room: Any = connection_handler()._room
    heard = False

    def on_frame(_frame: object) -> None:
        nonlocal heard
        if not heard:
            heard = True
            while not room.empty():
                time.sleep(0.001)
            logger.info("interruption")

    connection.listen(on_frame)
    log_all(count)


def connection_handler() -> Any:
    (handler,) = logging.getLogger().handlers
    return handler


def log_without_threads(count: int) -> int:
    """Return how many listen to the parent in a process that could not have another thread."""

    def fail(_thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    start, threading.Thread.start = threading.Thread.start, fail  # type: ignore[method-assign]
    log_all(count)
    threading.Thread.start = start  # type: ignore[method-assign]
    return len(connection_to_parent()._listeners)


def log_without_descriptors(count: int) -> NoReturn:
    log_all(1)
    os.closerange(3, 4096)
    log_all(count)
    os._exit(7)


def handlers() -> list[str]:
    return [type(handler).__name__ for handler in logging.getLogger().handlers]


# --- large requests -------------------------------------------------------------------------------


class Traced:
    """Large, and keeps the threads that have pickled and unpickled it."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.padding = bytes(200_000)

    def __getstate__(self) -> tuple[list[str], bytes]:
        return [*self.threads, threading.current_thread().name], self.padding

    def __setstate__(self, state: tuple[list[str], bytes]) -> None:
        threads, self.padding = state
        self.threads = [*threads, threading.current_thread().name]


def give_back(value: Any) -> Any:
    return value


async def send_there_and_back() -> list[str]:
    traced: Traced = await from_process.arun_sync(give_back, Traced())
    return traced.threads


def block_until(go: str) -> None:
    """Block the event loop."""
    with open(go, "rb") as file:
        file.read()


async def give_up_a_large_request(go: str) -> list[Any]:
    """Send it to a parent that does not read, and give it up; return what others come back with."""
    results: list[Any] = []

    async def ask(func: Callable[..., Any], *args: Any) -> None:
        results.append(await from_process.arun_sync(func, *args))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, block_until, go)
        async with anyio.create_task_group() as given_up:
            given_up.start_soon(ask, len, bytes(16 * 1024**2))
            await anyio.wait_all_tasks_blocked()
            async with anyio.create_task_group() as before_its_turn:
                before_its_turn.start_soon(ask, len, bytes(16 * 1024**2))
                await anyio.wait_all_tasks_blocked()
                before_its_turn.cancel_scope.cancel()
            given_up.cancel_scope.cancel()
        tasks.start_soon(ask, abs, -3)  # which waits for its turn
        await anyio.wait_all_tasks_blocked()
        with open(go, "wb"):
            pass
    await until(lambda: not requests_to_parent()._under_way)
    return results
