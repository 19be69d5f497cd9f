"""What a worker runs: it takes calls from its pool, one after the other."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Sequence
from types import CoroutineType, ModuleType
from typing import Any

from .._child import ChildContext, ChildProgram
from .._platform import CallReceiver, ChildWire, SegmentSocket, SharedNumbers, limit_memory
from .._stop_request import StopListener, StopRequested
from .._wire._framing import FrameKind
from .._wire._messages import BEGUN_CALL, CALL_HEADER_BYTES, LAST, unpack_call
from .._wire._payloads import Serializer, loader
from ._caller import Caller
from ._chunk_run import ChunkRun
from ._pool_connection import PoolConnection


class WorkerProgram(ChildProgram):
    """Serves the calls of one pool.

    :param wire: the worker's end of the wire over which it answers
    :param calls: its end of the socket over which calls come; ``None`` where that is the wire
    :param segments: its end of the socket for shared memory
    :param shared: memory that both ends read and write
    :param memory_limit: bytes
    :param preload: names of modules to import first
    """

    def __init__(
        self,
        wire: ChildWire,
        calls: CallReceiver | None,
        segments: SegmentSocket | None,
        shared: SharedNumbers,
        *,
        serializer: Serializer | None,
        memory_limit: int | None,
        preload: Sequence[str],
    ) -> None:
        self._wire = wire
        self._calls = calls
        self._segments = segments
        self._shared = shared
        self._serializer = serializer
        self._memory_limit = memory_limit
        self._preload = preload

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if isinstance(self._serializer, ModuleType):  # modules cannot be pickled
            state["_serializer"] = ImportedSerializer(self._serializer.__name__)
        return state

    def __call__(self, context: ChildContext, *args: Any) -> None:
        """:param args: the initializer, its arguments, and its counterpart; or all in one pickle"""
        if self._serializer is not None:
            args = self._serializer.loads(args[0])
        initializer, initargs, finalizer = args
        with contextlib.ExitStack() as stack:
            for end in (self._calls, self._segments):
                if end is not None:
                    stack.callback(end.close)
            caller = Caller(context)
            stack.callback(caller.close)
            if self._memory_limit is not None:
                limit_memory(self._memory_limit)
            with context.stop.raising():
                for module in self._preload:  # where the fork server has not imported it
                    importlib.import_module(module)
                if initializer is not None:
                    caller.call(initializer, initargs)
                if finalizer is not None:
                    stack.callback(caller.call_at_end, finalizer)
                connection = PoolConnection(
                    self._wire,
                    self._calls,
                    self._segments,
                    self._shared.cells,
                    self._serializer,
                    self._memory_limit,
                    context.stop,
                )
                context.connection.send_progress = connection.send_progress
                connection.send_empty(FrameKind.READY)
                _serve(connection, caller, context.stop)


class ImportedSerializer:
    """A module with ``dumps`` and ``loads``, in a pickle."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (self._name,)


def _serve(connection: PoolConnection, caller: Caller, stop: StopListener) -> None:
    clock = time.perf_counter
    load_small = loader(connection.serializer)
    shared = connection.shared
    while message := _next_call(connection, stop):
        kind, flags, number, size = unpack_call(message)
        if kind == FrameKind.STOP:
            return
        # From here on the call may have effects. A worker that was killed just before has received
        # it perhaps, as the kernel gives a message to a process that it is about to end.
        shared[BEGUN_CALL] = number + 1
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
        stop.check()  # where a module was imported
        if kind == FrameKind.CHUNK:
            ChunkRun(connection, caller, *call).run()
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


def _next_call(connection: PoolConnection, stop: StopListener) -> memoryview | bytes:
    stop.check()  # where an exception was pickled
    return connection.receive_call()
