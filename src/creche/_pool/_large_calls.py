"""Calls that are too large for one message."""

from __future__ import annotations

from collections.abc import Callable

from .._platform import Segment
from .._wire._messages import (
    INLINE_BYTES,
    inline,
    pack_call,
    size_of,
    table_of,
)
from ._calls import PoolCall
from ._channel import WorkerChannel
from ._segment_payloads import COPY_IN_LOOP_BYTES
from ._thread_jobs import ThreadJobs


class LargeCallSender:
    """Sends large calls to one worker, through shared memory where there is such a thing.

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

    def send(self, call: PoolCall) -> bool:
        """Begin to send a call; return whether that could be begun."""
        sections = call.payload.sections
        size = sum(map(size_of, sections))
        self.call = call
        self._unsent = True
        if size <= INLINE_BYTES or self._channel.segments is None:
            begun = self._send_inline(call)
        elif size <= COPY_IN_LOOP_BYTES:
            begun = self._send_segment(call, self._write(call, may_keep=True))
        else:
            begun = True
            self._jobs.run(call, lambda: self._write(call, may_keep=False), self._on_written)
        if not begun:
            self.call = None
        return begun

    def withdraw(self, call: PoolCall) -> bool:
        """Do not send a call, if nothing of it has been sent yet; return whether that is so."""
        if not self._unsent or self.call is not call:
            return False
        self.call = None
        self._jobs.abandon(call)
        return True

    def done(self, call: PoolCall) -> None:
        """The worker is done with a call."""
        if self.call is call:
            self.call = None

    def _on_written(self, call: PoolCall, segment: Segment | None) -> None:
        if not self._send_segment(call, segment):
            self._on_failed()

    def _write(self, call: PoolCall, *, may_keep: bool) -> Segment | None:
        assert self._channel.segments is not None
        try:
            return self._channel.segments.write(call.payload.sections, may_keep=may_keep)
        except OSError:  # no shared memory left: the wire will do
            return None

    def _send_segment(self, call: PoolCall, segment: Segment | None) -> bool:
        if segment is None:
            return self._send_inline(call)
        assert self._channel.segments is not None
        try:
            flags = self._channel.segments.send(segment)
        except OSError:  # nobody is there to receive it
            return False
        table = table_of(call.payload.sections)
        header = pack_call(call.kind, flags, call.number, len(table))
        return self._sent(self._channel.send(header + table))

    def _send_inline(self, call: PoolCall) -> bool:
        flags, pieces = inline(call.payload.sections)
        header = pack_call(call.kind, flags, call.number, size_of(pieces))
        return self._sent(self._channel.send_large(header, pieces))

    def _sent(self, succeeded: bool) -> bool:
        self._unsent = not succeeded
        return succeeded
