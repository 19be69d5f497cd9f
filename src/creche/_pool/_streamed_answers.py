"""Answers that are received while their worker sends them."""

from __future__ import annotations

from collections.abc import Callable

from .._wire._outcomes import Outcome
from ._answers import Undecodable
from ._calls import PoolCall
from ._stream_payloads import ReceivedStream
from ._thread_jobs import ThreadJobs


class StreamedAnswers:
    """Receives what one worker sends through streams. Lives in the event loop of the pool.

    :param stop: called when the worker has broken off: it is dying, or has to
    """

    def __init__(self, jobs: ThreadJobs, stop: Callable[[], object]) -> None:
        self.cut_off = False
        """Whether the worker has broken off in the middle of an answer."""
        self._jobs = jobs
        self._stop = stop
        self._streams: set[ReceivedStream] = set()
        self._when_received: Callable[[], object] | None = None
        self._death: Callable[[], BaseException] | None = None
        self._wait_for_death: list[Callable[[BaseException], object]] = []

    def expect(self, stream: ReceivedStream) -> None:
        """The worker has begun to send, and is not done with that before :meth:`receive` is."""
        self._streams.add(stream)

    def receive(
        self,
        call: PoolCall,
        stream: ReceivedStream,
        items: int,
        decode: Callable[[], Outcome],
        deliver: Callable[[Outcome], object],
    ) -> None:
        """Receive an answer to a call in a thread.

        :param items: how many items of a chunk it is about
        :param decode: makes an outcome of it
        :param deliver: called with the outcome, unless the call is given up
        """

        def on_received(_call: PoolCall, outcome: Outcome) -> None:
            self._end(stream)
            if stream.cut_off:
                self._on_cut_off(lambda death: deliver(Undecodable(death, items)))
            else:
                deliver(outcome)

        def call_off() -> None:
            stream.close()  # the worker, if it lives, goes on without
            self._end(stream)

        self._jobs.run(call, decode, on_received, call_off=call_off)

    def when_received(self, action: Callable[[], object]) -> None:
        """Do something when the worker has sent all that it has begun to send."""
        self._when_received = action
        self._act_if_received()

    def worker_gone(self, death: Callable[[], BaseException]) -> None:
        """The worker has ended.

        :param death: says how
        """
        self._death = death
        waiting, self._wait_for_death = self._wait_for_death, []
        for deliver in waiting:
            deliver(death())

    def _on_cut_off(self, deliver: Callable[[BaseException], object]) -> None:
        self.cut_off = True
        if self._death is not None:
            deliver(self._death())
        else:
            self._wait_for_death.append(deliver)
            self._stop()

    def _end(self, stream: ReceivedStream) -> None:
        self._streams.discard(stream)
        self._act_if_received()

    def _act_if_received(self) -> None:
        action = self._when_received
        if action is not None and not self._streams:
            self._when_received = None
            action()
