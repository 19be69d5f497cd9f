"""How creche waits and talks on Windows, exercised here: the poller, the wire, and whole processes.

What is Windows' own (handles, jobs, the way of a request into the main thread) is not in here.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import anyio
import pytest
from support import (
    TIMEOUT,
    Announcements,
    busy_loop,
    clean_up,
    clean_up_async,
    payload,
    swallow_stop,
    use_poller,
    wait_for_ever,
)
from targets import add, add_async, echo, fail, put, start_server, start_server_async, with_lock

import creche
from creche import _launching
from creche._parent_connection import parent_connection
from creche._platform._connection_poller import ConnectionPoller
from creche._platform._connection_wire import ChildWire, ParentWire, wire_pair
from creche._wire._framing import FrameKind, FrameReader, Section, pack

MEBIBYTE = 1024 * 1024

PATIENT = creche.StopPolicy(grace=TIMEOUT)
"""For what is to end by itself when it is asked to, however long that takes on a busy machine."""


# --- the poller -----------------------------------------------------------------------------------


@pytest.fixture(params=[60, 3])
def poller(request: pytest.FixtureRequest) -> Iterator[ConnectionPoller]:
    """With few waitables to a batch, every test has several batches."""
    poller = ConnectionPoller(batch_size=request.param)
    yield poller
    poller.close()


@pytest.fixture
def pipes() -> Iterator[list[tuple[Connection, Connection]]]:
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(100)]
    yield pipes
    for ends in pipes:
        for end in ends:
            end.close()


def test_poller_calls_back_for_what_is_ready(
    poller: ConnectionPoller, pipes: list[tuple[Connection, Connection]]
) -> None:
    called: list[int] = []

    def take(number: int) -> None:
        called.append(number)
        pipes[number][0].recv_bytes()

    for number, (receiver, _) in enumerate(pipes):
        poller.watch(receiver, functools.partial(take, number))
    for number in (0, 61, 99, 3, 0):
        pipes[number][1].send_bytes(b"x")
        poller.poll(TIMEOUT)
        assert called.pop() == number
        assert not called
    for _, sender in pipes:
        sender.send_bytes(b"x")
    while len(called) < len(pipes):
        poller.poll(TIMEOUT)
    assert sorted(called) == list(range(len(pipes)))


def test_poller_takes_descriptors_too(
    poller: ConnectionPoller, pipes: list[tuple[Connection, Connection]]
) -> None:
    called: list[int] = []
    for number, (receiver, _) in enumerate(pipes):
        poller.watch(receiver.fileno(), functools.partial(called.append, number))
    pipes[80][1].close()  # its end counts as well
    poller.poll(TIMEOUT)
    assert called == [80]


def test_callback_may_unwatch_and_close_others(
    poller: ConnectionPoller, pipes: list[tuple[Connection, Connection]]
) -> None:
    called: list[int] = []

    def close_the_others(number: int) -> None:
        called.append(number)
        for i, (receiver, sender) in enumerate(pipes):
            if i != number:
                poller.unwatch(receiver)
                receiver.close()
                sender.close()

    for number, (receiver, sender) in enumerate(pipes):
        poller.watch(receiver, functools.partial(close_the_others, number))
        sender.send_bytes(b"x")
    poller.poll(TIMEOUT)
    assert len(called) == 1
    poller.poll(TIMEOUT)
    assert called == [called[0]] * 2


def test_poller_is_woken_from_another_thread(
    poller: ConnectionPoller, pipes: list[tuple[Connection, Connection]]
) -> None:
    for receiver, _ in pipes:
        poller.watch(receiver, lambda: pytest.fail("nothing is ready"))
    thread = threading.Thread(target=poller.wake)
    thread.start()
    poller.poll(None)
    thread.join()
    poller.wake()  # before the wait
    poller.wake()
    poller.poll(None)


def test_poller_returns_in_time(poller: ConnectionPoller) -> None:
    poller.poll(0)
    started = time.monotonic()
    poller.poll(0.05)
    assert 0.05 <= time.monotonic() - started < TIMEOUT


def test_poller_bears_a_timeout_beyond_what_the_system_counts(poller: ConnectionPoller) -> None:
    poller.wake()
    poller.poll(1e12)


def test_poller_does_not_turn_idly(
    poller: ConnectionPoller, pipes: list[tuple[Connection, Connection]]
) -> None:
    """Waking and interrupting leave nothing behind that would end later waits."""
    received: list[bytes] = []
    for receiver, _ in pipes:
        poller.watch(receiver, lambda r=receiver: received.append(r.recv_bytes()))  # type: ignore[misc]
    for _ in range(20):
        for _, sender in pipes[::7]:
            sender.send_bytes(b"x")
        while len(received) < len(pipes[::7]):
            poller.poll(TIMEOUT)
        received.clear()
    for _ in range(3):  # a helper may have said that it was ready just when that was known
        poller.poll(0)
    started = time.monotonic()
    poller.poll(0.05)
    assert time.monotonic() - started >= 0.05


def test_helpers_end_with_the_poller(pipes: list[tuple[Connection, Connection]]) -> None:
    before = set(threading.enumerate())
    poller = ConnectionPoller(batch_size=10)
    for receiver, _ in pipes:
        poller.watch(receiver, lambda: None)
    poller.poll(0)
    helpers = set(threading.enumerate()) - before
    assert len(helpers) == 9
    poller.close()
    for helper in helpers:
        helper.join(TIMEOUT)
        assert not helper.is_alive()


def test_error_of_one_batch_does_not_confuse_the_others(
    poller: ConnectionPoller, pipes: list[tuple[Connection, Connection]]
) -> None:
    called: list[int] = []
    for number, (receiver, _) in enumerate(pipes):
        poller.watch(receiver, functools.partial(called.append, number))
    broken = pipes[70][0]
    broken.close()
    with pytest.raises((OSError, ValueError)):
        poller.poll(TIMEOUT)
    poller.unwatch(broken)
    pipes[90][1].send_bytes(b"x")
    while not called:  # the wake-up of the failed round may be left
        poller.poll(TIMEOUT)
    assert called == [90]


# --- the wire -------------------------------------------------------------------------------------


@pytest.fixture
def wire() -> Iterator[tuple[ParentWire, ChildWire]]:
    parent, child = wire_pair()
    yield parent, child
    parent.close()
    assert_no_threads("creche-wire")  # which must not be closed under the hands of its reader
    child.close()
    assert_no_threads("creche-sender")


def assert_no_threads(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(TIMEOUT)
            assert not thread.is_alive()


def receive_frames(wire: ParentWire, number: int) -> list[tuple[FrameKind, list[bytes]]]:
    """Turn a poller until that many frames are here."""
    poller = ConnectionPoller()
    reader = FrameReader()
    frames = []

    def receive(data: bytes) -> None:
        assert data
        frames.extend((f.kind, [joined(s) for s in f.sections]) for f in reader.feed(data))

    wire.attach(poller, receive)
    while len(frames) < number:
        poller.poll(TIMEOUT)
    poller.close()
    return frames


def joined(section: Section) -> bytes:
    return b"".join(bytes(piece) for piece in section)


def in_thread(func: Callable[..., Any], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=func, args=args, daemon=True)
    thread.start()
    return thread


SECTIONS: list[list[Section]] = [
    [],
    [[b""]],
    [[b"small"]],
    [[b"x" * 10] * 1000, [b"y" * (5 * MEBIBYTE + 1)], [], [b"z"] * 3],
    [[bytearray(b"w" * MEBIBYTE), memoryview(b"v" * (64 * 1024)), b"u" * (64 * 1024 + 1)]],
]


@pytest.mark.parametrize("sections", SECTIONS, ids=range(len(SECTIONS)))
def test_frames_travel_both_ways(
    wire: tuple[ParentWire, ChildWire], sections: list[Section]
) -> None:
    parent, child = wire
    expected = [joined(section) for section in sections]

    sender = in_thread(lambda: [child.send(pack(FrameKind.VALUE, sections)) for _ in range(2)])
    assert receive_frames(parent, 2) == [(FrameKind.VALUE, expected)] * 2
    sender.join()

    child.listen()
    parent.send(pack(FrameKind.CALL, sections))
    reader = FrameReader()
    frames = []
    while not frames:
        frames = [(f.kind, [joined(s) for s in f.sections]) for f in reader.feed(child.receive())]
    assert frames == [(FrameKind.CALL, expected)]


def test_messages_are_of_limited_size(wire: tuple[ParentWire, ChildWire]) -> None:
    parent, child = wire
    parent.send(pack(FrameKind.CALL, [[b"x" * (3 * MEBIBYTE)], [b"y"] * 100]))
    total = 0
    while total < 3 * MEBIBYTE + 100:
        size = len(child._connection.recv_bytes())
        assert 0 < size <= MEBIBYTE
        total += size


def test_sending_does_not_wait_for_the_receiver(wire: tuple[ParentWire, ChildWire]) -> None:
    parent, _ = wire
    parent.send(pack(FrameKind.CALL, [[bytes(64 * MEBIBYTE)]]))  # returns: that is the test


def test_end_of_the_child_is_told_once(wire: tuple[ParentWire, ChildWire]) -> None:
    parent, child = wire
    poller = ConnectionPoller()
    received: list[bytes] = []
    parent.attach(poller, received.append)
    child.send(pack(FrameKind.STOPPED))
    child.close()
    while b"" not in received:
        poller.poll(TIMEOUT)
    assert received == [b"".join(bytes(piece) for piece in pack(FrameKind.STOPPED)), b""]
    parent.drain()
    poller.poll(0)
    assert len(received) == 2
    poller.close()


def test_drain_takes_what_a_dead_child_left(wire: tuple[ParentWire, ChildWire]) -> None:
    parent, child = wire
    received: list[bytes] = []
    poller = ConnectionPoller()
    parent.attach(poller, received.append)
    for _ in range(20):
        child.send(pack(FrameKind.RUNNING))
    child.close()
    parent.drain()
    assert len(received) == 21
    assert received[-1] == b""
    poller.close()


def test_message_that_is_cut_off_is_the_end(wire: tuple[ParentWire, ChildWire]) -> None:
    parent, child = wire
    received: list[bytes] = []
    poller = ConnectionPoller()
    parent.attach(poller, received.append)
    os.write(child._connection.fileno(), (1000).to_bytes(4, "big") + b"only this")
    child.close()
    poller.poll(TIMEOUT)
    assert received == [b""]
    poller.close()


def test_message_that_is_none_of_ours_is_the_end(wire: tuple[ParentWire, ChildWire]) -> None:
    parent, child = wire
    received: list[bytes] = []
    poller = ConnectionPoller()
    parent.attach(poller, received.append)
    child._connection.send_bytes(b"")  # says nothing
    os.write(child._connection.fileno(), b"print() gone astray")
    while not received:
        poller.poll(TIMEOUT)
    assert received == [b""]
    poller.close()


def test_closing_while_something_is_on_its_way() -> None:
    parent, child = wire_pair()
    parent.send(pack(FrameKind.CALL, [[bytes(64 * MEBIBYTE)]]))
    parent.close()
    child.close()  # the end of the child, which breaks the pipe
    assert_no_threads("creche-sender")
    assert parent._connection.closed
    assert parent.ask_to_stop()  # too late, and no error


def test_child_hears_the_end_of_its_parent(wire: tuple[ParentWire, ChildWire]) -> None:
    parent, child = wire
    child.listen()
    parent.close()
    assert child.receive() == b""


@pytest.fixture
def stop_requests() -> Iterator[list[str]]:
    """What the signal handlers of this process see: the child's main thread, for once."""
    seen: list[str] = []
    before = [
        (number, signal.signal(number, lambda number, _: seen.append(signal.Signals(number).name)))
        for number in (signal.SIGTERM, signal.SIGCONT)
    ]
    yield seen
    for number, handler in before:
        signal.signal(number, handler)


def test_request_to_stop_reaches_the_main_thread(
    wire: tuple[ParentWire, ChildWire], stop_requests: list[str]
) -> None:
    parent, child = wire
    child.listen()
    parent.ask_to_stop()
    while not stop_requests:
        select.select([], [], [], 0.01)
    assert stop_requests == ["SIGTERM"]
    parent.ask_to_stop()  # reminds it, and asks no second time
    while len(stop_requests) < 2:
        select.select([], [], [], 0.01)
    assert stop_requests == ["SIGTERM", "SIGCONT"]


def test_request_to_stop_ends_the_wait_for_the_call(
    wire: tuple[ParentWire, ChildWire],
) -> None:
    parent, child = wire

    class StopForTest(Exception):
        pass

    def stop(_number: int, _frame: object) -> None:
        raise StopForTest

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(StopForTest):
            child.listen()
            parent.ask_to_stop()
            while child.receive():  # the frame itself may be received before the signal comes
                pass
    finally:
        signal.signal(signal.SIGTERM, before)


# --- whole processes ------------------------------------------------------------------------------


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch, machinery: None) -> Iterator[list[ParentWire]]:
    """Have creche wait and talk as it does on Windows; gives the wires that were made."""
    wires: list[ParentWire] = []

    def make_wire(**_: bool) -> tuple[ParentWire, ChildWire]:
        pair = wire_pair()
        wires.append(pair[0])
        return pair

    monkeypatch.setattr(_launching, "wire_pair", make_wire)
    original = use_poller(ConnectionPoller(batch_size=3))
    yield wires
    use_poller(original).close()
    assert wires
    deadline = time.monotonic() + TIMEOUT  # a wire is closed by the thread that uses it last
    while not (closed := all(wire._connection.closed for wire in wires)):
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    assert closed


def in_processes(test: Callable[..., Any]) -> Callable[..., Any]:
    return pytest.mark.anyio(pytest.mark.usefixtures("connections")(test))


@in_processes
async def test_values_and_exceptions(start_method: str) -> None:
    assert await creche.run_in_process(add, 1, 2, start_method=start_method) == 3
    assert await creche.run_in_process(add_async, 1, 2, start_method=start_method) == 3
    with pytest.raises(LookupError, match="wrong"):
        await creche.run_in_process(fail, "wrong", start_method=start_method)


@in_processes
async def test_large_arguments_and_results(start_method: str) -> None:
    value = {"number": 1, "bytes": os.urandom(MEBIBYTE) * 20, "list": list(range(100_000))}
    assert await creche.run_in_process(echo, value, start_method=start_method) == value
    result = await creche.run_in_process(payload, 100 * MEBIBYTE, start_method=start_method)
    assert len(result) == 100 * MEBIBYTE


@in_processes
async def test_many_processes_at_once() -> None:
    results: list[int] = []

    async def run(number: int) -> None:
        results.append(await creche.run_in_process(add, number, number))

    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(run, number)
    assert sorted(results) == [2 * number for number in range(40)]


@in_processes
@pytest.mark.parametrize("target", [clean_up, clean_up_async])
async def test_stop_unwinds(
    target: Callable[..., Any], start_method: str, announcements: Announcements
) -> None:
    process = creche.AsyncProcess(
        target=target, args=(announcements.path,), start_method=start_method, stop=PATIENT
    )
    await process.start()
    assert await announcements.get_pid() == process.pid
    await process.terminate()
    assert await announcements.get() == "cleaned up"
    assert await process.join() == -signal.SIGTERM


@in_processes
async def test_stop_unwinds_a_busy_function(start_method: str) -> None:
    process = creche.AsyncProcess(target=busy_loop, start_method=start_method, stop=PATIENT)
    await process.start()
    await process.terminate()
    assert await process.join() == -signal.SIGTERM


@in_processes
async def test_what_does_not_stop_is_killed(
    start_method: str, announcements: Announcements
) -> None:
    process = creche.AsyncProcess(
        target=swallow_stop,
        args=(announcements.path,),
        start_method=start_method,
        stop=creche.StopPolicy(grace=0.2),
    )
    await process.start()
    await announcements.get()
    await process.terminate()
    assert await process.join() == -signal.SIGKILL


@in_processes
async def test_cancellation_stops_and_reaps(
    start_method: str, announcements: Announcements
) -> None:
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await creche.run_in_process(
                clean_up, announcements.path, start_method=start_method, stop=PATIENT
            )

        tasks.start_soon(run)
        pid = await announcements.get_pid()
        tasks.cancel_scope.cancel()
    assert await announcements.get() == "cleaned up"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@in_processes
async def test_child_killed_while_it_receives_its_arguments(start_method: str) -> None:
    """What is on its way to it ends with it."""
    arguments = (bytes(64 * MEBIBYTE),)
    process = creche.AsyncProcess(target=echo, args=arguments, start_method=start_method)
    await process.start()
    await process.kill()
    assert await process.join() == -signal.SIGKILL
    assert_no_threads("creche-sender")


@in_processes
async def test_child_dies_halfway_through_its_result(start_method: str) -> None:
    with pytest.raises(creche.ProcessDied, match="while sending its result"):
        await creche.run_in_process(die_while_sending, start_method=start_method)


def die_while_sending() -> None:
    connection: Any = parent_connection()
    frame = b"".join(bytes(piece) for piece in pack(FrameKind.VALUE, [[b"x" * 100]]))
    connection._wire._connection.send_bytes(frame[:-1])
    os._exit(0)


@in_processes
async def test_what_is_no_frame_ends_the_process(start_method: str) -> None:
    with pytest.raises(creche.SerializationError, match="wrote to creche's"):
        await creche.run_in_process(send_garbage, start_method=start_method)


def send_garbage() -> None:
    connection: Any = parent_connection()
    connection._wire._connection.send_bytes(b"print() gone astray")
    wait_for_ever()


@in_processes
async def test_started(start_method: str) -> None:
    async with creche.open_nursery(start_method=start_method) as nursery:
        assert await nursery.start(start_server, 80) == 80
        assert await nursery.start(start_server_async, 81) == 81
        nursery.cancel_scope.cancel()


@in_processes
async def test_queues_and_locks_as_arguments(
    start_method: str, announcements: Announcements
) -> None:
    context: Any = multiprocessing.get_context(start_method)
    queue = context.SimpleQueue()
    await creche.run_in_process(put, queue, "hello", start_method=start_method)
    assert queue.get() == "hello"
    queue.close()
    lock = context.Lock()
    assert await creche.run_in_process(
        with_lock, lock, announcements.path, start_method=start_method
    )
