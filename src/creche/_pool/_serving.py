"""What a worker runs: it takes calls from its pool, one after the other."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from .._child import ChildContext, ChildProgram
from .._errors import WorkerMemoryError
from .._platform import (
    CallReceiver,
    ChildWire,
    Segment,
    SegmentReader,
    SegmentSocket,
    SharedCounter,
    buffer_in_segment,
    lift_memory_limit,
    limit_memory,
    write_segment,
)
from .._stop_request import StopRequested
from .._wire._framing import Buffer, FrameKind, Section
from .._wire._messages import (
    BUFFERS,
    CALL_HEADER_BYTES,
    HEAVY,
    INLINE_BYTES,
    LAST,
    LEAVING,
    SEGMENT,
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

# What a worker has worked on for so long, it sends.
_ANSWER_SECONDS = 0.01

# So many items run between two looks at the clock, if they take no longer than that.
_MAX_BLOCK = 32
_SHORT = 0.00005


class WorkerProgram(ChildProgram):
    """Serves the calls of one pool.

    :param wire: the worker's end of the wire over which it answers
    :param calls: its end of the socket over which calls come; ``None`` where that is the wire
    :param segments: its end of the socket for shared memory
    :param begun: where it counts the items of a chunk that it has begun
    :param memory_limit: bytes
    """

    def __init__(
        self,
        wire: ChildWire,
        calls: CallReceiver | None,
        segments: SegmentSocket | None,
        begun: SharedCounter,
        serializer: Serializer | None,
        memory_limit: int | None,
    ) -> None:
        self._wire = wire
        self._calls = calls
        self._segments = segments
        self._begun = begun
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
                    self._wire, self._calls, self._segments, self._serializer, self._memory_limit
                )
                connection.send_empty(FrameKind.READY)
                _serve(connection, caller, self._begun.cell)


def _serve(connection: PoolConnection, caller: Caller, begun: memoryview) -> None:
    clock = time.perf_counter
    load_small = loader(connection.serializer)
    while message := connection.receive_call():
        kind, flags, size = unpack_call(message)
        if kind == FrameKind.STOP:
            return
        payload = message[CALL_HEADER_BYTES:]
        try:
            if flags or len(payload) < size:
                call = connection.receive_large(flags, payload, size)
            else:
                call = load_small(payload)
        except Exception as error:
            connection.send_bad_call(error)
            if connection.out_of_memory:
                return
            continue
        if kind == FrameKind.CHUNK:
            ChunkRun(connection, caller, begun, *call).run()
        else:
            begin = clock()
            try:
                value = call[0](*call[1])
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
        del call, message, payload
        if connection.out_of_memory:
            return


class ChunkRun:
    """Runs one function on many items.

    Answers when all is done, or when :data:`_ANSWER_SECONDS` have passed, whatever comes first: a
    worker that dies takes little with it. What it has not begun after ``budget`` seconds, it gives
    back.

    :param begun: holds how many items were begun, for when this process dies of one of them
    :param star: whether an item is the arguments
    :param items: pickled as a whole
    """

    def __init__(
        self,
        connection: PoolConnection,
        caller: Caller,
        begun: memoryview,
        func: Callable[..., Any],
        star: bool,
        budget: float,
        items: list[Any],
    ) -> None:
        self._connection = connection
        self._caller = caller
        self._begun = begun
        self._func: Callable[[Any], Any] = func if not star else lambda item: func(*item)
        self._budget = budget
        self._items = items
        self._values: list[Any] = []  # not yet told
        self._errors: dict[int, BaseException] = {}  # in place of some of them
        self._done = 0
        self._max_block = _MAX_BLOCK

    def run(self) -> None:
        clock = time.perf_counter
        begin = last = clock()
        over = False
        while not over:
            now = self._run_until(min(last + _ANSWER_SECONDS, begin + self._budget))
            over = (
                self._done == len(self._items)
                or now - begin > self._budget
                or self._connection.out_of_memory
            )
            self._answer(now - last, over)
            last = now
        self._begun[0] = 0  # whoever reads another number knows that it is of the chunk that runs

    def _run_until(self, deadline: float) -> float:
        """Run items until there is a reason to answer; return what time it is."""
        clock, func, begun = time.perf_counter, self._func, self._begun
        items, values, done = self._items, self._values, self._done
        append = values.append
        now, block = clock(), 1
        while now < deadline and done < len(items) and not self._connection.out_of_memory:
            last, start = now, len(values)
            try:
                for item in items[done : done + block]:
                    done += 1
                    begun[0] = done
                    append(func(item))
            except (SystemExit, StopRequested):
                raise
            except BaseException as error:
                append(None)
                self._fail(len(values) - 1, error)
            if CoroutineType in map(type, values[start:]):
                self._await_from(start)
            now = clock()
            # Looking at the clock takes as long as a tiny item does.
            block = min(2 * block, self._max_block) if now - last < _SHORT else 1
        self._done = done
        return now

    def _await_from(self, start: int) -> None:
        """Put the values of coroutines in their places."""
        self._max_block = 1  # from here on each is awaited before the next item begins
        for index, value in enumerate(self._values[start:], start):
            if type(value) is CoroutineType:
                try:
                    self._values[index] = self._caller.await_value(value)
                except (SystemExit, StopRequested):
                    raise
                except BaseException as error:
                    self._fail(index, error)

    def _fail(self, index: int, error: BaseException) -> None:
        self._errors[index] = error
        self._connection.check_memory(error)

    def _answer(self, seconds: float, over: bool) -> None:
        values, errors = self._values, self._errors
        self._values, self._errors = [], {}
        each = seconds / max(1, len(values))
        start = 0
        for index in sorted(errors):
            if index > start:
                self._connection.send_values(values[start:index], 0, each * (index - start))
            start = index + 1
            last = LAST if over and start == len(values) else 0
            self._connection.send_exception(errors[index], last, each)
        if start < len(values):
            last = LAST if over else 0
            self._connection.send_values(values[start:], last, each * (len(values) - start))


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
        calls: CallReceiver | None,
        segments: SegmentSocket | None,
        serializer: Serializer | None,
        memory_limit: int | None,
    ) -> None:
        self.serializer = serializer
        self.out_of_memory = False
        """Whether a call has run into the memory limit: the worker serves no other."""
        self._wire = wire
        self._calls = calls
        self._segments = segments
        self._memory_limit = memory_limit

    def receive_call(self) -> memoryview | bytes:
        """Wait for the next call; nothing when the pool has closed the connection."""
        if self._calls is not None:
            return self._calls.receive()
        return self._wire.receive_exactly(CALL_HEADER_BYTES)

    def receive_large(self, flags: int, payload: memoryview | bytes, size: int) -> Any:
        """Receive the rest of a call, of which the payload has ``size`` bytes; unpickle it."""
        pieces: list[Buffer] = [bytes(payload)] if payload else []
        missing = size - len(payload)
        while missing:
            piece = self._wire.receive_exactly(min(missing, INLINE_BYTES))
            if not piece:
                raise EOFError("the pool closed the connection in the middle of a call")
            pieces.append(piece)
            missing -= len(piece)
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

    def check_memory(self, error: BaseException) -> bool:
        """Return whether ``error`` says that the memory limit was reached."""
        if self._memory_limit is not None and isinstance(error, MemoryError):
            if not self.out_of_memory:
                self.out_of_memory = True
                lift_memory_limit()  # telling it takes memory, too
            return True
        return False

    def send_bad_call(self, error: Exception) -> None:
        """Say that a call could not be unpickled."""
        if self.check_memory(error):
            self.send_exception(error, LAST)
        else:
            self.send_report(*failure_message(FrameKind.BAD_CALL, error), LAST)

    def send_exception(self, error: BaseException, flags: int, seconds: float = 0.0) -> None:
        if self.check_memory(error):
            assert self._memory_limit is not None
            error = WorkerMemoryError(self._memory_limit).with_traceback(error.__traceback__)
            flags |= LEAVING
        message = exception_message(error, lambda obj: dump(obj, self.serializer).sections)
        self.send_report(*message, flags, seconds)

    def send_value(self, value: object, seconds: float) -> None:
        try:
            payload = dump(value, self.serializer)
        except BaseException as error:
            self._send_bad_value(value, error, LAST, seconds)
        else:
            self._send(FrameKind.VALUE, payload, LAST, seconds)

    def send_values(self, values: list[Any], flags: int, seconds: float) -> None:
        """Answer for the next items of a chunk."""
        try:
            payload = dump(values, self.serializer)
        except BaseException as error:
            if len(values) == 1 or isinstance(error, StopRequested):
                self._send_bad_value(values[0], error, flags, seconds)
                return
            # One of them it is: each on its own.
            for value in values[:-1]:
                self.send_values([value], 0, seconds / len(values))
            self.send_values(values[-1:], flags, seconds / len(values))
        else:
            self._send(FrameKind.VALUES, payload, flags, seconds)

    def _send_bad_value(
        self, value: object, error: BaseException, flags: int, seconds: float
    ) -> None:
        if isinstance(error, StopRequested):
            raise error
        if self.check_memory(error):
            self.send_exception(error, flags, seconds)
        else:
            self.send_report(*bad_value_message(value, error), flags, seconds)

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
