"""A worker's connection to its pool, as the worker sees it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from .._errors import WorkerMemoryError
from .._platform import (
    CallReceiver,
    ChildWire,
    SegmentSocket,
    StreamWriter,
    lift_memory_limit,
)
from .._stop_request import StopListener, StopRequested
from .._wire._framing import Buffer, FrameKind, Section
from .._wire._handing_over import received_with_call
from .._wire._messages import (
    CALL_HEADER_BYTES,
    HANDLES,
    HEAVY,
    INLINE_BYTES,
    KEEP,
    KEPT,
    KEPT_IS_UNREAD,
    LAST,
    LEAVING,
    SEGMENT,
    STREAM,
    inline,
    pack_answer,
    sections_of,
    size_of,
    table_of,
)
from .._wire._outcomes import bad_value_message, exception_message, failure_message
from .._wire._payloads import Payload, Serializer, dump, dumps_plain, is_plain, load
from ._segment_payloads import SegmentPort, is_for_stream


class PoolConnection:
    """The worker's connection to its pool."""

    def __init__(
        self,
        wire: ChildWire,
        calls: CallReceiver | None,
        segments: SegmentSocket | None,
        shared: memoryview,
        serializer: Serializer | None,
        memory_limit: int | None,
        stop: StopListener,
    ) -> None:
        self.serializer = serializer
        self.out_of_memory = False
        """Whether a call has run into the memory limit: the worker serves no other."""
        self._pid = os.getpid()
        self._wire = wire
        # Reentrant: a finalizer or a signal handler that reports interrupts whatever a thread does.
        self._sending = threading.RLock()
        self._in_message = False
        self._reports: deque[bytes] = deque()
        self._stop = stop
        self._calls = calls
        self._segments = None if segments is None else SegmentPort(segments, patient=True)
        self.shared = shared
        self._memory_limit = memory_limit

    def send_progress(self, section: Section) -> None:
        """Tell how far the call is that runs, from any thread of the worker.

        What comes while this thread is in the middle of another report is sent after that.
        """
        data = b"".join(section)
        # A request to stop must not strike between the lock and its release.
        with self._stop.deferring(), self._sending:
            self._reports.append(pack_answer(FrameKind.PROGRESS, 0, 0.0, len(data)) + data)
            while self._reports and not self._in_message:
                try:
                    report = self._reports.popleft()
                except IndexError:  # interrupted by one that has sent the others
                    return
                self._write_alone([report])

    def leave_if_forked(self) -> None:
        """The function has made a fork, which came back from it, too: it ends here."""
        if os.getpid() != self._pid:
            os._exit(0)

    def receive_call(self) -> memoryview | bytes:
        """Wait for the next call; nothing when the pool has closed the connection."""
        if self._calls is not None:
            return self._calls.receive()
        return self._wire.receive_exactly(CALL_HEADER_BYTES)

    def receive_large(self, flags: int, payload: memoryview | bytes, size: int) -> Any:
        """Receive the rest of a call, of which the payload has ``size`` bytes; unpickle it."""
        if not flags & HANDLES:
            return self._receive_large(flags, payload, size)
        descriptors = [] if self._segments is None else self._segments.receive_handles()
        with received_with_call(descriptors):
            call = self._receive_large(flags & ~HANDLES, payload, size)
        self.send_empty(FrameKind.RUNNING)
        return call

    def _receive_large(self, flags: int, payload: memoryview | bytes, size: int) -> Any:
        pieces: list[Buffer] = [bytes(payload)] if payload else []
        missing = size - len(payload)
        while missing:
            piece = self._wire.receive_exactly(min(missing, INLINE_BYTES))
            if not piece:
                raise EOFError("the pool closed the connection in the middle of a call")
            pieces.append(piece)
            missing -= len(piece)
        if not flags & (SEGMENT | STREAM):
            return load(sections_of(pieces, flags), self.serializer)
        assert self._segments is not None
        return self._segments.receive(flags, pieces).load(self.serializer)

    def send_empty(self, kind: int) -> None:
        self._write(pack_answer(kind, 0, 0.0, 0))

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
        self.leave_if_forked()
        if self.check_memory(error):
            assert self._memory_limit is not None
            error = WorkerMemoryError(self._memory_limit).with_traceback(error.__traceback__)
            flags |= LEAVING
        message = exception_message(error, lambda obj: dump(obj, self.serializer).sections)
        self.send_report(*message, flags, seconds)

    def send_value(self, value: object, seconds: float) -> None:
        self.leave_if_forked()
        if self.serializer is None and is_plain((value,)):
            data = dumps_plain(value)
            self._write(pack_answer(FrameKind.VALUE, LAST, seconds, len(data)) + data)
            return
        try:
            payload = dump(value, self.serializer)
        except BaseException as error:
            self._send_bad_value(value, error, LAST, seconds)
        else:
            self._send(FrameKind.VALUE, payload, LAST, seconds)

    def send_values(self, values: list[Any], flags: int, seconds: float) -> bool:
        """Answer for the next items of a chunk.

        :return: whether that was done, as it always is for one item: among several there may be one
            that cannot be pickled
        """
        self.leave_if_forked()
        try:
            payload = dump(values, self.serializer)
        except BaseException as error:
            if len(values) > 1 and not isinstance(error, StopRequested):
                return False
            self._send_bad_value(values[0], error, flags, seconds)
        else:
            self._send(FrameKind.VALUES, payload, flags, seconds, len(values))
        return True

    def _send_bad_value(
        self, value: object, error: BaseException, flags: int, seconds: float
    ) -> None:
        if isinstance(error, StopRequested):
            raise error
        if self.check_memory(error):
            self.send_exception(error, flags, seconds)
        else:
            self.send_report(*bad_value_message(value, error), flags, seconds)

    def _send(
        self, kind: int, payload: Payload, flags: int, seconds: float, items: int = 1
    ) -> None:
        sections = payload.sections
        size = sum(map(size_of, sections))
        if payload.heavy:
            flags |= HEAVY
        if size > INLINE_BYTES and self._segments is not None:
            try:
                layout, stream = self._send_apart(self._segments, payload, size)
            except OSError:  # no memory of that kind, or no descriptors, left
                pass
            else:
                table = table_of(sections)
                header = pack_answer(kind, flags | layout, seconds, len(table), items)
                self._write(header + table)
                if stream is not None:
                    with contextlib.closing(stream):
                        stream.write()  # until the pool has it, or does not want it any more
                return
        layout, pieces = inline(sections)
        size = size_of(pieces)
        header = pack_answer(kind, flags | layout, seconds, size, items)
        if size <= INLINE_BYTES:
            self._write(header + b"".join(pieces))
        else:
            self._write_answer([header, *pieces])

    def _send_apart(
        self, port: SegmentPort, payload: Payload, size: int
    ) -> tuple[int, StreamWriter | None]:
        """Send a payload apart from its message; return flags for that, and what has yet to be
        written."""
        if is_for_stream(payload.sections, size):
            return STREAM, port.open_stream(payload.sections)
        # The pool reads what is heavy in a thread, which may take longer than its interest in it.
        may_keep = not payload.heavy and not self.shared[KEPT_IS_UNREAD]
        flags = port.send(port.write(payload.sections, may_keep=may_keep))
        if flags & (KEEP | KEPT):
            self.shared[KEPT_IS_UNREAD] = 1
        return flags, None

    def _write(self, data: bytes) -> None:
        self._write_answer([data])

    def _write_answer(self, pieces: Sequence[Buffer]) -> None:
        with self._sending:  # other threads send reports
            self._write_alone(pieces)
            self._reports.clear()  # of what has interrupted this: the call is over

    def _write_alone(self, pieces: Sequence[Buffer]) -> None:
        try:
            self._in_message = True
            if len(pieces) == 1:
                self._wire.write(pieces[0])
            else:
                self._wire.send(pieces)
        finally:
            self._in_message = False
