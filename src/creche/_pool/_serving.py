"""What a worker runs: it takes calls from its pool, one after the other."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Coroutine, Iterator
from types import CoroutineType
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from .._child import ChildContext, ChildProgram
from .._errors import WorkerMemoryError
from .._platform import (
    ChildWire,
    Segment,
    SegmentReader,
    SegmentSocket,
    buffer_in_segment,
    limit_memory,
    write_segment,
)
from .._stop_request import StopListener, StopRequested
from .._wire._framing import Buffer, FrameKind, Section
from .._wire._messages import (
    BUFFERS,
    HEAVY,
    LAST,
    SEGMENT,
    SLOT_BYTES,
    lengths_in,
    offsets_of,
    pack_answer,
    sections_of,
    size_of,
    table_of,
    unpack_call,
)
from .._wire._outcomes import bad_value_message, exception_message, failure_message
from .._wire._payloads import Payload, Serializer, dump, load, load_from, loader


# Larger payloads go through shared memory, where there is such a thing.
INLINE_BYTES = 64 * 1024

# What a worker has worked on for so long, it sends.
_ANSWER_SECONDS = 0.01


class WorkerProgram(ChildProgram):
    """Serves the calls of one pool.

    :param wire: the worker's end of the wire over which they come
    :param segments: its end of the socket for shared memory
    :param memory_limit: bytes
    """

    def __init__(
        self,
        wire: ChildWire,
        segments: SegmentSocket | None,
        serializer: Serializer | None,
        memory_limit: int | None,
    ) -> None:
        self._wire = wire
        self._segments = segments
        self._serializer = serializer
        self._memory_limit = memory_limit

    def __call__(
        self,
        context: ChildContext,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        finalizer: Callable[[], object] | None,
    ) -> None:
        with contextlib.ExitStack() as stack:
            caller = Caller(context, stack)
            if self._memory_limit is not None:
                limit_memory(self._memory_limit)
            with context.stop.raising():
                if initializer is not None:
                    caller.call(initializer, initargs)
                if finalizer is not None:
                    stack.callback(caller.call_at_end, finalizer)
                connection = PoolConnection(
                    self._wire, self._segments, self._serializer, self._memory_limit
                )
                connection.send_empty(FrameKind.READY)
                _serve(connection, caller)


def _serve(connection: PoolConnection, caller: Caller) -> None:
    clock = time.perf_counter
    load_small = loader(connection.serializer)
    while (slot := connection.receive_slot()) is not None:
        kind, flags, payload, missing = unpack_call(slot)
        if kind == FrameKind.STOP:
            return
        try:
            if flags or missing:
                call = connection.receive_large(flags, payload, missing)
            else:
                call = load_small(payload)
        except Exception as error:
            connection.send_report(*failure_message(FrameKind.BAD_CALL, error), LAST)
            continue
        if kind == FrameKind.CHUNK:
            ChunkRun(connection, caller, *call).run()
            continue
        func, args = call
        del call, slot, payload
        begin = clock()
        try:
            value = func(*args)
            if type(value) is CoroutineType:
                value = caller.await_value(value)
        except (SystemExit, StopRequested):
            raise
        except BaseException as error:
            connection.send_exception(error, LAST, clock() - begin)
        else:
            connection.send_value(value, clock() - begin)
            del value
        # What a call has got must not live until the next one comes.
        del func, args


class ChunkRun:
    """Runs one function on many items.

    Answers when all is done, or when :data:`_ANSWER_SECONDS` have passed, whatever comes first: a
    worker that dies takes little with it. What it has not begun after ``budget`` seconds, it gives
    back.
    """

    def __init__(
        self,
        connection: PoolConnection,
        caller: Caller,
        func: Callable[..., Any],
        star: bool,
        budget: float,
        items: list[Any],
    ) -> None:
        self._connection = connection
        self._caller = caller
        self._func: Callable[[Any], Any] = func if not star else lambda item: func(*item)
        self._budget = budget
        self._items = items
        self._values: list[Any] = []

    def run(self) -> None:
        clock = time.perf_counter
        begin = last = clock()
        items = iter(self._items)
        left = len(self._items)
        while left:
            left -= self._run_until(items, min(last + _ANSWER_SECONDS, begin + self._budget))
            now = clock()
            done = not left or now - begin > self._budget
            self._answer(now - last, done)
            last = now
            if done:
                return

    def _run_until(self, items: Iterator[Any], deadline: float) -> int:
        """Run items until there is a reason to answer; return how many were begun."""
        clock, func, values = time.perf_counter, self._func, self._values
        append = values.append
        self._error: BaseException | None = None
        try:
            for item in items:
                value = func(item)
                if type(value) is CoroutineType:
                    value = self._caller.await_value(value)
                append(value)
                if clock() > deadline:
                    break
        except (SystemExit, StopRequested):
            raise
        except BaseException as error:
            self._error = error
        return len(values) + (self._error is not None)

    def _answer(self, seconds: float, done: bool) -> None:
        values, error = self._values, self._error
        self._values, self._error = [], None
        if values:
            self._connection.send_values(values, LAST if done and error is None else 0, seconds)
        if error is not None:
            self._connection.send_exception(error, LAST if done else 0, seconds)


class Caller:
    """Calls functions, plain ones and async ones, which share one event loop.

    The loop runs in a thread of its own, from the first async function on, as what they make (a
    session, a connection) belongs to it and may live longer than a call.
    """

    def __init__(self, context: ChildContext, stack: contextlib.ExitStack) -> None:
        self._context = context
        self._stack = stack
        self._portal: BlockingPortal | None = None

    def call(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        value = func(*args)
        return self.await_value(value) if inspect.iscoroutine(value) else value

    def call_at_end(self, func: Callable[[], Any]) -> None:
        """Call the function that cleans up, which a request to stop does not interrupt."""
        value = func()
        if inspect.iscoroutine(value):
            self._open_portal().call(_await, value)

    def await_value(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the event loop. A request to stop cancels it."""
        portal = self._open_portal()
        scope = portal.call(anyio.CancelScope)
        with self._context.stop.reacting(lambda: portal.start_task_soon(scope.cancel)):
            stopped, value = portal.call(_await_in_scope, scope, coroutine)
        if stopped:
            raise StopRequested
        return value

    def _open_portal(self) -> BlockingPortal:
        if self._portal is None:
            self._portal = self._stack.enter_context(start_blocking_portal(self._context.backend))
        return self._portal


async def _await(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return await coroutine


async def _await_in_scope(
    scope: anyio.CancelScope, coroutine: Coroutine[Any, Any, Any]
) -> tuple[bool, Any]:
    with scope:
        return False, await coroutine
    return True, None


class PoolConnection:
    """The worker's connection to its pool."""

    def __init__(
        self,
        wire: ChildWire,
        segments: SegmentSocket | None,
        serializer: Serializer | None,
        memory_limit: int | None,
    ) -> None:
        self.serializer = serializer
        self._wire = wire
        self._segments = segments
        self._memory_limit = memory_limit

    def receive_slot(self) -> bytes | None:
        """Wait for the next call; ``None`` when the pool has closed the connection."""
        slot = self._wire.receive_exactly(SLOT_BYTES)
        return slot if len(slot) == SLOT_BYTES else None

    def receive_large(self, flags: int, payload: bytes, missing: int) -> Any:
        """Receive the rest of a call that is more than fits a slot; unpickle it."""
        pieces: list[Buffer] = [payload]
        while missing:
            pieces.append(self._wire.receive_exactly(min(missing, INLINE_BYTES)))
            if not pieces[-1]:
                raise EOFError("the pool closed the connection in the middle of a call")
            missing -= len(pieces[-1])
        if not flags & SEGMENT:
            return load(sections_of(pieces, flags), self.serializer)
        assert self._segments is not None
        return load_segment(self._segments.receive(), pieces, self.serializer)

    def send_empty(self, kind: int) -> None:
        self._wire.write(pack_answer(kind, 0, 0.0, 0))

    def send_report(
        self, kind: int, sections: list[Section], flags: int, seconds: float = 0.0
    ) -> None:
        self._send(kind, Payload(sections, heavy=False), flags, seconds)

    def send_exception(self, error: BaseException, flags: int, seconds: float) -> None:
        if self._memory_limit is not None and isinstance(error, MemoryError):
            error = WorkerMemoryError(self._memory_limit).with_traceback(error.__traceback__)
        message = exception_message(error, lambda obj: dump(obj, self.serializer).sections)
        self.send_report(*message, flags, seconds)

    def send_value(self, value: object, seconds: float) -> None:
        try:
            payload = dump(value, self.serializer)
        except BaseException as error:
            if isinstance(error, StopRequested):
                raise
            self.send_report(*bad_value_message(value, error), LAST, seconds)
        else:
            self._send(FrameKind.VALUE, payload, LAST, seconds)

    def send_values(self, values: list[Any], flags: int, seconds: float) -> None:
        """Answer for the next items of a chunk."""
        try:
            payload = dump(values, self.serializer)
        except BaseException as error:
            if isinstance(error, StopRequested):
                raise
            if len(values) == 1:
                self.send_report(*bad_value_message(values[0], error), flags, seconds)
                return
            # One of them it is: each on its own.
            for value in values[:-1]:
                self.send_values([value], 0, seconds / len(values))
            self.send_values(values[-1:], flags, seconds / len(values))
        else:
            self._send(FrameKind.VALUES, payload, flags, seconds)

    def _send(self, kind: int, payload: Payload, flags: int, seconds: float) -> None:
        sections = payload.sections
        size = sum(map(size_of, sections))
        if payload.heavy:
            flags |= HEAVY
        if size > INLINE_BYTES and self._segments is not None:
            try:
                segment = write_segment(sections, offsets_of(list(map(size_of, sections))))
            except OSError:  # no memory of that kind left
                pass
            else:
                self._segments.send(segment)
                table = table_of(sections)
                self._wire.write(pack_answer(kind, flags | SEGMENT, seconds, len(table)) + table)
                return
        if len(sections) > 1:
            sections = [[table_of(sections)], *sections]
            size += size_of(sections[0])
            flags |= BUFFERS
        header = pack_answer(kind, flags, seconds, size)
        if size <= INLINE_BYTES:
            self._wire.write(header + b"".join(piece for section in sections for piece in section))
        else:
            self._wire.send([header, *(piece for section in sections for piece in section)])


def load_segment(
    segment: Segment, table: Buffer | list[Buffer], serializer: Serializer | None
) -> Any:
    """Unpickle a payload in shared memory."""
    with contextlib.closing(segment):
        lengths, _ = lengths_in(table)
        places = list(zip(offsets_of(lengths), lengths, strict=False))
        buffers = [buffer_in_segment(segment, *place) for place in places[1:]]
        return load_from(SegmentReader(segment, *places[0]), lengths[0], buffers, serializer)


def load_sections(segment: Segment, table: Buffer | list[Buffer]) -> list[Section]:
    """Copy the sections of a payload in shared memory."""
    with contextlib.closing(segment):
        lengths, _ = lengths_in(table)
        sections: list[Section] = []
        for offset, length in zip(offsets_of(lengths), lengths, strict=False):
            data = bytearray(length)
            SegmentReader(segment, offset, length).readinto(memoryview(data))
            sections.append([data])
        return sections
