"""Calls that are too large for one message, or with which descriptors move."""

from __future__ import annotations

from collections.abc import Callable

from .._platform import KeptSegment, Segment, StreamWriter
from .._wire._messages import (
    HANDLES,
    INLINE_BYTES,
    STREAM,
    inline,
    pack_call,
    size_of,
    table_of,
)
from ._calls import PoolCall
from ._channel import WorkerChannel
from ._segment_payloads import COPY_IN_LOOP_BYTES, SegmentPort, is_for_stream
from ._thread_jobs import ThreadJobs


class LargeCallSender:
    """Sends large calls to one worker: through a stream or shared memory, where there are such
    things.

    One at a time, to a worker that has no other: what is sent of such a call cannot be taken back.

    :param on_failed: called where a call that was to be sent cannot be
    """

    def __init__(
        self, channel: WorkerChannel, jobs: ThreadJobs, on_failed: Callable[[], object]
    ) -> None:
        self.call: PoolCall | None = None  # that the worker has, or is to have
        self._channel = channel
        self._jobs = jobs
        self._on_failed = on_failed
        self._unsent = False
        self._flags = 0
        self._stream: StreamWriter | None = None  # that the call travels through
        self._waits_for_worker = False

    def send(self, call: PoolCall) -> bool:
        """Begin to send a call; return whether that could be begun."""
        sections = call.payload.sections
        size = sum(map(size_of, sections))
        self.call = call
        self._unsent = True
        self._flags = 0
        port = self._channel.segments
        if call.payload.handles is not None:
            descriptors = call.payload.handles.descriptors
            if descriptors if port is None else not port.send_handles(descriptors):
                self.call = None
                return False
            self._flags = HANDLES
        if size <= INLINE_BYTES or port is None:
            begun = self._send_inline(call)
        elif is_for_stream(sections, size):
            begun = self._send_stream(call, port)
        elif size <= COPY_IN_LOOP_BYTES:
            begun = self._send_segment(call, self._write(call, may_keep=True))
        else:
            begun = True
            self._jobs.run(call, lambda: self._write(call, may_keep=False), self._on_written)
        if not begun:
            self.call = None
        return begun

    def withdraw(self, call: PoolCall, *, worker_gone: bool = False) -> bool:
        """Send nothing more of a call; return whether nothing of it has been sent yet.

        :param worker_gone: whether nobody is left to receive what was sent
        """
        if self.call is not call:
            return False
        self._close_stream()
        if not self._unsent:
            return False
        if self._flags and not worker_gone:  # the descriptors are on their way
            return False
        self.call = None
        self._jobs.abandon(call)
        return True

    def received(self) -> None:
        """The worker says that it has received the call, with the descriptors."""
        if self.call is not None:
            self.call.received()

    def done(self, call: PoolCall) -> None:
        """The worker is done with a call."""
        if self.call is call:
            self.call = None
            self._close_stream()

    def close(self) -> None:
        """The worker has ended."""
        self._close_stream()

    def _on_written(self, call: PoolCall, segment: Segment | KeptSegment | None) -> None:
        if not self._send_segment(call, segment):
            self._on_failed()

    def _write(self, call: PoolCall, *, may_keep: bool) -> Segment | KeptSegment | None:
        assert self._channel.segments is not None
        try:
            return self._channel.segments.write(call.payload.sections, may_keep=may_keep)
        except OSError:  # no shared memory left: the wire will do
            return None

    def _send_segment(self, call: PoolCall, segment: Segment | KeptSegment | None) -> bool:
        if segment is None:
            return self._send_inline(call)
        assert self._channel.segments is not None
        try:
            flags = self._channel.segments.send(segment)
        except OSError:  # nobody is there to receive it
            return False
        table = table_of(call.payload.sections)
        header = pack_call(call.kind, flags | self._flags, call.number, len(table))
        return self._sent(self._channel.send(header + table))

    def _send_stream(self, call: PoolCall, port: SegmentPort) -> bool:
        sections = call.payload.sections
        try:
            self._stream = port.open_stream(sections)
        except OSError:  # no descriptors left, or nobody is there, which the wire will find out
            return self._send_inline(call)
        table = table_of(sections)
        header = pack_call(call.kind, STREAM | self._flags, call.number, len(table))
        if not self._sent(self._channel.send(header + table)):
            self._close_stream()
            return False
        self._write_stream(self._stream)
        return True

    def _write_stream(self, stream: StreamWriter) -> None:
        if stream is self._stream:  # or it was closed meanwhile
            self._waits_for_worker = False
            self._jobs.run(stream, stream.write, self._on_stream_written, call_off=stream.close)

    def _on_stream_written(self, stream: StreamWriter, done: bool) -> None:
        if stream is not self._stream:
            return
        if done:
            self._stream = None
        else:
            # The worker imports something first, or was stopped. No thread waits for that.
            self._waits_for_worker = True
            self._channel.when_writable(stream, lambda: self._write_stream(stream))

    def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        waits, self._waits_for_worker = self._waits_for_worker, False
        if stream is None:
            return
        if waits:
            self._channel.give_up(stream)
        else:
            self._jobs.abandon(stream)
            stream.close()

    def _send_inline(self, call: PoolCall) -> bool:
        flags, pieces = inline(call.payload.sections)
        header = pack_call(call.kind, flags | self._flags, call.number, size_of(pieces))
        return self._sent(self._channel.send_large(header, pieces))

    def _sent(self, succeeded: bool) -> bool:
        self._unsent = not succeeded
        return succeeded
