"""Generators that the tests of streams run in children."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import anyio
import anyio.lowlevel
import support
from support import announce

import creche
from creche import SerializationError, StopRequested
from creche._stream import _outlet, _ring

# --- items ----------------------------------------------------------------------------------------


def count(number: int) -> Iterator[int]:
    yield from range(number)


async def count_async(number: int) -> AsyncIterator[int]:
    for i in range(number):
        yield i


def count_for_ever() -> Iterator[int]:
    yield from itertools.count()


async def count_for_ever_async() -> AsyncIterator[int]:
    for i in itertools.count():
        yield i


class Numbers:
    """An iterable that is no generator."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.number))


class AsyncNumbers:
    """An async iterable that is no generator."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.next = 0

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        await anyio.lowlevel.checkpoint()
        if self.next == self.number:
            raise StopAsyncIteration
        self.next += 1
        return self.next - 1


def a_list(number: int) -> list[int]:
    return list(range(number))


def an_iterable(number: int) -> Iterable[int]:
    return Numbers(number)


async def a_list_later(number: int) -> list[int]:
    await anyio.lowlevel.checkpoint()
    return list(range(number))


async def an_async_iterable_later(number: int) -> AsyncIterator[int]:
    await anyio.lowlevel.checkpoint()
    return AsyncNumbers(number)


def no_iterable() -> int:
    return 5


def each(items: list[Any]) -> Iterator[Any]:
    yield from items


def blocks(sizes: Iterable[int]) -> Iterator[bytes]:
    for i, size in enumerate(sizes):
        yield bytes([i % 251]) * size


def blocks_for_ever(sizes: list[int]) -> Iterator[bytes]:
    return blocks(itertools.cycle(sizes))


def large_objects(number: int) -> Iterator[list[dict[str, int]]]:
    for i in range(number):
        yield support.many_objects(20_000 + i)


class Buffers:
    """Pickled as buffers, as arrays are."""

    def __init__(self, parts: list[bytearray]) -> None:
        self.parts = parts

    def __reduce_ex__(self, protocol: Any) -> Any:
        import pickle

        return Buffers.of, (list(map(pickle.PickleBuffer, self.parts)),)

    @classmethod
    def of(cls, parts: list[Any]) -> Buffers:
        return cls([bytearray(part) for part in parts])


def arrays(shapes: list[tuple[int, int]]) -> Iterator[Buffers]:
    for number, size in shapes:
        yield Buffers([bytearray([i % 251]) * size for i in range(number)])


# --- how far it runs ahead ------------------------------------------------------------------------


def count_telling(path: str) -> Iterator[int]:
    """Announces each number before it is yielded."""
    for i in itertools.count():
        announce(path, i)
        yield i


async def count_telling_async(path: str) -> AsyncIterator[int]:
    for i in itertools.count():
        announce(path, i)
        yield i


def one_then_busy() -> Iterator[int]:
    yield 1
    support.busy_loop()


def one_then_hold_the_gil() -> Iterator[int]:
    yield 1
    deque(itertools.repeat(None), maxlen=0)


def one_then_wait() -> Iterator[int]:
    yield 1
    support.wait_for_ever()


def one_when_told(path: str, number: int) -> Iterator[int]:
    """Yields after each line that it reads."""
    with open(path) as lines:
        for i, _ in zip(range(number), lines, strict=False):
            yield i


# --- ends -----------------------------------------------------------------------------------------


class TargetError(Exception):
    pass


class ThreeArguments(Exception):
    """Cannot be rebuilt from its ``args``."""

    def __init__(self, one: int, two: int, three: int) -> None:
        super().__init__(f"{one} {two} {three}")


def count_then_raise(number: int, error: BaseException) -> Iterator[int]:
    yield from range(number)
    raise error


async def count_then_raise_async(number: int, error: BaseException) -> AsyncIterator[int]:
    for i in range(number):
        yield i
    raise error


def raise_cannot_be_rebuilt() -> Iterator[int]:
    yield 1
    raise ThreeArguments(1, 2, 3)


def raise_at_once(error: BaseException) -> NoReturn:
    raise error


def count_then_exit(number: int, code: Any) -> Iterator[int]:
    yield from range(number)
    raise SystemExit(code)


def count_then_die(number: int, how: int) -> Iterator[int]:
    yield from range(number)
    os.kill(os.getpid(), how)
    support.wait_for_ever()


def count_then_hang_at_exit(number: int) -> Iterator[int]:
    threading.Thread(target=threading.Event().wait).start()
    yield from range(number)


def clean_up(path: str, number: int) -> Iterator[int]:
    """Announces that its ``finally`` has run; waits after so many numbers."""
    try:
        announce(path)
        yield from range(number)
        support.wait_for_ever()
    finally:
        announce(path, "cleaned up")


async def clean_up_async(path: str, number: int) -> AsyncIterator[int]:
    try:
        announce(path)
        for i in range(number):
            yield i
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
        announce(path, "cleaned up")


def clean_up_busy(path: str) -> Iterator[int]:
    try:
        announce(path)
        support.busy_loop()
        yield 1
    finally:
        announce(path, "cleaned up")


def fail_to_clean_up() -> Iterator[int]:
    try:
        yield 1
        support.wait_for_ever()
    finally:
        raise TargetError("in the clean-up")


def swallow_and_go_on(path: str) -> Iterator[int]:
    """Catches the request to stop, and yields more."""
    for i in itertools.count():
        try:
            announce(path)
            time.sleep(support.TIMEOUT)
        except StopRequested:
            pass
        try:
            yield i
        finally:
            announce(path, "yielded")


def swallow_for_ever(path: str) -> Iterator[int]:
    yield 1
    with contextlib.suppress(StopRequested):
        announce(path)
        support.wait_for_ever()
    support.wait_for_ever()


def ignore_exit() -> Iterator[int]:
    # One block around all of it: the request may come at any bytecode, but only once.
    with contextlib.suppress(GeneratorExit, StopRequested):
        while True:
            yield 1
    while True:
        with contextlib.suppress(GeneratorExit):
            yield 2


# --- items that do not travel ---------------------------------------------------------------------


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("this is not for you")


def _cannot_be_made(reason: str) -> NoReturn:
    raise ValueError(reason)


class Ununpicklable:
    """Can be pickled, and not unpickled.

    :param padding: bytes that make it larger
    """

    def __init__(self, padding: int = 0) -> None:
        self.padding = padding

    def __reduce__(self) -> Any:
        return _cannot_be_made, ("not here" + " " * self.padding,)


class ExitsWhenMade:
    def __reduce__(self) -> Any:
        return raise_at_once, (SystemExit(3),)


def unpicklable_in_between(told: bool) -> Iterator[Any]:
    yield 1
    try:
        yield Unpicklable()
    except SerializationError as error:
        if not told:
            raise
        yield str(error)
    yield 2


async def unpicklable_in_between_async(told: bool) -> AsyncIterator[Any]:
    yield 1
    try:
        yield Unpicklable()
    except SerializationError as error:
        if not told:
            raise
        yield str(error)
    yield 2


def unpicklable_many(number: int) -> Iterator[Any]:
    """Each is replaced by another that cannot be pickled either; then come as many that can."""
    for i in range(number):
        try:
            yield lambda: None
        except SerializationError:
            pass
        else:
            raise AssertionError("it could be pickled")
        if i % 2:
            yield i


def unpicklable_in_a_list() -> list[Any]:
    return [1, Unpicklable(), 2]


def ununpicklable_in_between(padding: int) -> Iterator[Any]:
    yield 1
    yield Ununpicklable(padding)
    yield 2


def exits_when_made() -> Iterator[Any]:
    yield 1
    yield ExitsWhenMade()
    yield 2


def connections() -> Iterator[Any]:
    """What belongs to its process, where it has a number."""
    with contextlib.closing(socket.socket()) as sock, open("/dev/null") as file:
        for thing in (sock, file, *multiprocessing.Pipe(), multiprocessing.Queue()):
            try:
                yield thing
            except SerializationError as error:
                yield str(error)


class SlowToMake:
    """Takes long to unpickle, and is made to be heavy."""

    def __init__(self, gate: str) -> None:
        self.gate = gate

    def __reduce__(self) -> Any:
        return _wait_for_gate, (self.gate, " " * 200_000)


def _wait_for_gate(gate: str, _padding: str) -> str:
    return Path(gate).read_text()


def slow_to_make(gate: str) -> Iterator[Any]:
    yield 1
    yield SlowToMake(gate)
    yield 2


# --- garbage --------------------------------------------------------------------------------------


def _outlet_of_this_process() -> Any:
    import gc

    (outlet,) = (obj for obj in gc.get_objects() if isinstance(obj, _outlet.Outlet))
    return outlet


def write_garbage(kind: str) -> Iterator[int]:
    """Writes what is no item to the ring."""
    writer = _outlet_of_this_process()._writer
    yield 1
    while not writer._cells[_ring.READ]:  # so that it is read before
        time.sleep(0.001)
    position = writer._written & writer._mask
    match kind:
        case "too much":
            writer._publish(1 << 50)
        case "backwards":
            writer._publish(0)
        case "length":
            writer._words[position >> 3] = 1 << 30
            writer._publish(writer._written + 64)
        case "kind":
            writer._words[position >> 3] = 1 << 60
            writer._publish(writer._written + 8)
        case "table":
            writer.write(b"\xff" * 64, _ring.TABLE)
        case "large table":
            writer.write(b"\xff" * 64, _ring.TABLE | _ring.MORE)
        case "unasked":
            writer.write(b"\x80\x05K\x02.", _ring.MORE)
        case "bell":
            outlet = _outlet_of_this_process()
            while True:
                outlet.doorbell.ring()
        case _:
            raise AssertionError(kind)
    support.wait_for_ever()


def huge_item() -> Iterator[int]:
    """Announces an item for which there is no memory."""
    import struct

    yield 1
    writer = _outlet_of_this_process()._writer
    size = 1 << 47
    writer.write(struct.pack("<IQ", 1, size) + bytes(64), _ring.TABLE | _ring.MORE)
    support.wait_for_ever()


def die_in_the_middle() -> Iterator[bytes]:
    """Is killed when some of a large item is written."""
    yield b"first"
    writer = _outlet_of_this_process()._writer
    original = writer.write_pieces

    def write_pieces(pieces: Any, kind: int) -> bool:
        done: bool = original(pieces, kind)
        if done:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    writer.write_pieces = write_pieces
    yield bytes(50_000_000)


def fork_and_go_on(path: str) -> Iterator[int]:
    """Comes back twice from a fork."""
    yield 1
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        announce(path, "forked")
    yield 2
    yield 3


# --- in other places ------------------------------------------------------------------------------


def sum_of_stream(number: int) -> int:
    """A stream in a child."""

    async def main() -> int:
        async with creche.open_stream(count, number) as items:
            return sum([item async for item in items])

    return anyio.run(main)


def relay(number: int) -> Iterator[int]:
    """A stream of a stream."""

    async def main() -> list[int]:
        async with creche.open_stream(count, number) as items:
            return [item async for item in items]

    yield from anyio.run(main)


async def relay_async(number: int) -> AsyncIterator[int]:
    async with creche.open_stream(count, number) as items:
        async for item in items:
            yield item


def backend_in_use() -> str:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return "trio"
    return "asyncio"


async def tell_backend() -> AsyncIterator[str]:
    await anyio.lowlevel.checkpoint()
    yield backend_in_use()


async def ticks(number: int) -> AsyncIterator[int]:
    """Other tasks of the child run while it yields without end."""
    ticked = 0

    async def tick() -> None:
        nonlocal ticked
        while True:
            ticked += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        while ticked < number:
            yield ticked
        group.cancel_scope.cancel()


def print_and_yield(count: int) -> Iterator[int]:
    for number in range(count):
        print(f"line {number}")
        yield number
