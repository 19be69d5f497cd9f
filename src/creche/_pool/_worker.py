"""One worker, as its pool sees it."""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from .. import _failures
from .._loops import EventLoop, Latch, post
from .._process import AsyncProcess
from .._stop_policy import StopPolicy
from .._wire._framing import BadFrameError, FrameKind
from .._wire._messages import (
    HEAVY,
    LAST,
    LEAVING,
    SEGMENT,
    STREAM,
    Message,
    pack_call,
)
from .._wire._outcomes import Outcome, Value
from .._wire._payloads import loader
from ._answers import AnswerDecoder, Undecodable
from ._calls import CallState, PoolCall
from ._channel import WorkerChannel
from ._deaths import death_of
from ._large_calls import LargeCallSender
from ._observing import tell_outcome
from ._options import PoolOptions
from ._segment_payloads import ReceivedPayload, is_long_copy
from ._stream_payloads import ReceivedStream
from ._streamed_answers import StreamedAnswers
from ._thread_jobs import ThreadJobs

_VALUE = int(FrameKind.VALUE)  # compared with each message: comparing an enum takes longer


class WorkerState(enum.Enum):
    STARTING = "starting"
    READY = "ready"
    RETIRING = "retiring"
    STOPPING = "stopping"
    GONE = "gone"


class WorkerListener(Protocol):
    """The scheduler, which hears of everything that happens to a worker."""

    def worker_ready(self, worker: Worker) -> None: ...

    def worker_finished(self, worker: Worker, call: PoolCall, seconds: float) -> None:
        """``worker`` is done with ``call``, after so many seconds of work."""

    def worker_ending(self, worker: Worker) -> None:
        """``worker`` serves no more calls."""

    def worker_gone(self, worker: Worker, unbegun: list[PoolCall], *, running: bool) -> None:
        """``worker`` has ended.

        :param unbegun: calls that it had not begun
        :param running: whether it ran one
        """


class Worker:
    """A process, the connection to it, and the calls that are on their way to it.

    Everything in here runs in the event loop of the pool.

    :param number: which worker of the pool it is
    :param process: the process, not started
    """

    def __init__(
        self,
        number: int,
        process: AsyncProcess[Any],
        listener: WorkerListener,
        loop: EventLoop,
        options: PoolOptions,
        jobs: ThreadJobs,
    ) -> None:
        self.number = number
        self.process = process
        self.channel: WorkerChannel
        self.state = WorkerState.STARTING
        self.calls: deque[PoolCall] = deque()
        self.made = time.monotonic()
        self.begun = self.made  # when the first of them was, or when the worker became idle
        self.load = 0.0  # seconds that they are thought to take
        self.tasks = 0
        self.assigned = 0
        self.seconds_busy = 0.0
        self.was_ready = False
        self.retired = False
        self.reserved = 0  # by how many that may have to stop it: it is not given anything to do
        self._listener = listener
        self._loop = loop
        self._options = options
        self._answers = AnswerDecoder(process, options.serializer)
        self._load = loader(options.serializer)
        self._jobs = jobs
        self._next_number = 0
        self._large_calls: LargeCallSender
        self._garbage: BadFrameError | None = None
        self._messages: deque[Message] = deque()  # that came and are yet to be handled
        self._streamed = StreamedAnswers(jobs, self.stop)
        # The process's own latch is set by the watcher, before the pool has heard of that.
        self._gone = Latch()

    @property
    def handle(self) -> Any:
        return self.process._handle

    @property
    def failed_to_start(self) -> bool:
        """Whether it has sent garbage before it was ready."""
        return self._garbage is not None and not self.was_ready

    @property
    def accepts_ahead(self) -> bool:
        """Whether a call can be sent while others are on their way, and be taken back."""
        return (
            self.state is WorkerState.READY
            and not self.reserved
            and self.channel.can_take_back
            and self._large_calls.call is None
        )

    def start(self, channel: WorkerChannel) -> None:
        """Begin to start the process.

        :raises ProcessStartError: if that cannot even be begun
        """
        self.channel = channel
        self._large_calls = LargeCallSender(channel, self._jobs, self.stop)
        self.process._asked_for_outcome = True  # its pool deals with how it ends
        self.process._begin()
        handle = self.handle
        handle.on_forget = lambda: channel.forget(child_exists=handle.launched.is_set())
        handle.own()  # it must exit once it has said its last word
        channel.open(self.on_messages, self.on_garbage)
        handle.launched.tell(lambda: post(self._loop, self._on_launched), None)
        handle.gone.tell(lambda: channel.drain_dead(self._on_gone), None)

    def _on_launched(self) -> None:
        if self.state is not WorkerState.GONE:
            self.channel.release_child_ends()

    # --- calls ----------------------------------------------------------------------------------

    def send(self, call: PoolCall) -> bool:
        """Send a call; return whether the worker could be given it."""
        call.number = self._next_number
        message = call.message()
        if message is None or not self.channel.send(message):
            if self.calls:
                return False  # what is large could not be taken back; or there is no room now
            if not self._large_calls.send(call):
                return False
        self._next_number = (self._next_number + 1) % (1 << 32)
        call.state = CallState.SENT
        if not self.calls:
            self.begun = time.monotonic()
            if call.observed is not None:
                call.observed._started(self.handle.observed)
        self.calls.append(call)
        self.load += call.seconds
        self.assigned += 1
        call.sent()
        return True

    def take_back(self) -> list[PoolCall]:
        """Take back the calls that the worker has not begun; they are queued again then."""
        if not self.calls or not self.channel.can_take_back or self._large_calls.call is not None:
            return []
        taken = self._taken_back()
        self.assigned -= len(taken)
        for call in taken:
            self.load -= call.seconds
        return taken

    def _taken_back(self) -> list[PoolCall]:
        numbers = self.channel.take_back()
        taken = [call for call in self.calls if call.number in numbers and not call.done]
        if numbers:
            self.calls = deque(call for call in self.calls if call.number not in numbers)
            for call in taken:
                call.state = CallState.QUEUED
        return taken

    def cancel(self, call: PoolCall) -> bool:
        """Call off a call that is running, or that is on its way and cannot be taken back.

        :return: whether the worker had to be stopped for that
        """
        if self._large_calls.withdraw(call):
            self.tasks -= 1
            self._finished(self.calls.popleft())
            return False
        if self.channel.can_take_back:
            self.channel.drain()
        self._handle_messages()
        if call not in self.calls:  # it is being unpickled, or done
            return False
        self.stop()
        return True

    # --- the process ----------------------------------------------------------------------------

    def retire(self, seconds: float) -> None:
        """Let the worker end, which it does in order, and stop it unless it does so in time."""
        if self.state in (WorkerState.STARTING, WorkerState.READY):
            self.state = WorkerState.RETIRING
            self._listener.worker_ending(self)
            self.retired = True
            self.channel.send(pack_call(FrameKind.STOP, 0, self._next_number, 0))
            self._expect_end(seconds)

    def stop(self, policy: StopPolicy | None = None) -> None:
        """Begin to stop the process, whatever it does."""
        if self.state is not WorkerState.GONE:
            self.state = WorkerState.STOPPING
            self._listener.worker_ending(self)
            self.handle.stop(self.handle.policy if policy is None else policy)

    async def wait_gone(self) -> None:
        """Wait until the process has ended, and the pool knows; :raises ProcessStuckError: if it
        does not."""
        await self._gone.wait()
        await self.handle.conversation.wait_over()
        self.handle.check_gone()

    def tell_gone(self, callback: Callable[[], object]) -> None:
        """Call back in the event loop of the pool when the process has ended."""
        self._gone.tell(callback, self._loop)

    # --- what the worker says -------------------------------------------------------------------

    def on_messages(self, messages: list[Message]) -> None:
        self._messages.extend(messages)
        self._handle_messages()

    def _handle_messages(self) -> None:
        """Handle what came, in order.

        Whoever is told of an answer may have more taken in meanwhile, by calling off another call,
        and that is handled by whoever comes first.
        """
        pending = self._messages
        try:
            while pending:
                message = pending.popleft()
                if message[0] == _VALUE and message[1] == LAST and self.calls:
                    self._on_value(message)
                elif message[0] == FrameKind.READY:
                    self._on_ready()
                elif self.calls and message[0] == FrameKind.PROGRESS:
                    self.calls[0].report(message[4])
                elif message[0] == FrameKind.RUNNING:
                    self._large_calls.received()
                elif self.calls:
                    self._on_answer(message)
        except BaseException:
            # A task that was resumed has left through SystemExit, say.
            post(self._loop, self._handle_messages)
            raise

    def _on_ready(self) -> None:
        if not self.handle.launched.is_set():  # faster than the thread that has started it
            self.handle.launched.tell(self._on_ready, self._loop)
        elif self.state is WorkerState.STARTING:
            self.state = WorkerState.READY
            self.was_ready = True
            self.begun = time.monotonic()
            self.handle.observed._became_ready()
            self._listener.worker_ready(self)

    def _on_value(self, message: Message) -> None:
        """Take the small result of a call: what happens most, and has to be fast."""
        payload = message[4]
        if type(payload) is not bytes:
            self._on_answer(message)
            return
        call = self.calls.popleft()
        try:
            outcome: Outcome = Value(self._load(payload))
        except BaseException as error:
            outcome = self._answers.cannot_unpickle(error, 1)
        if call.observed is not None:  # before the worker begins another
            call.observed._ran(message[2])
            tell_outcome(call.observed, outcome)
        self._finished(call, message[2])
        call.finish(outcome)

    def on_garbage(self, error: BadFrameError) -> None:
        self._garbage = error
        policy = self.handle.policy
        self.stop(StopPolicy(grace=0, group=policy.group, kill_timeout=policy.kill_timeout))

    def _on_answer(self, message: Message) -> None:
        call = self.calls[0]
        _, flags, seconds, items, payload = message
        number, last = call.answers, bool(flags & LAST)
        call.answers += 1
        if call.observed is not None:
            call.observed._ran(seconds)
        received = self._receive_apart(message)
        if flags & LEAVING:
            self._on_leaving()
        if last:
            self._finished(self.calls.popleft(), seconds)
        else:
            self.seconds_busy += seconds

        def deliver(outcome: Outcome) -> None:
            call.deliver(number, last, seconds, outcome)

        if isinstance(received, Undecodable):
            deliver(received)
            return

        def decode() -> Outcome:
            return self._answers.decode(message, received)

        if isinstance(received, ReceivedStream):
            self._streamed.receive(call, received, items, decode, deliver)
        elif flags & HEAVY or is_long_copy(payload, received):
            self._jobs.run(call, decode, lambda _call, outcome: deliver(outcome))
        else:
            outcome = decode()
            if received is not None and received.kept:
                self.channel.has_read_kept()
            deliver(outcome)

    def _receive_apart(self, message: Message) -> ReceivedPayload | Undecodable | None:
        """Receive what comes apart from a message, if that is so."""
        _, flags, _, items, table = message
        if not flags & (SEGMENT | STREAM):
            return None
        assert self.channel.segments is not None
        try:
            received = self.channel.segments.receive(flags, table, self._jobs.give_way)
        except (OSError, EOFError) as error:  # no descriptor left: ours, or for it
            return self._answers.cannot_unpickle(error, items)
        if isinstance(received, ReceivedStream):
            self._streamed.expect(received)
        return received

    def _on_leaving(self) -> None:
        """The worker ends of its own accord."""
        if self.state is WorkerState.READY:
            self.state = WorkerState.RETIRING
            self._listener.worker_ending(self)
            self._expect_end(self.handle.policy.exit_timeout)

    def _expect_end(self, seconds: float) -> None:
        """Stop the process unless it ends by itself, in so many seconds after its last word."""
        self._streamed.when_received(lambda: self.handle.expect_end(seconds))

    def _finished(self, call: PoolCall, seconds: float = 0.0) -> None:
        """The worker is done with the call."""
        self._large_calls.done(call)
        self.tasks += 1
        self.seconds_busy += seconds
        self.load = self.load - call.seconds if self.calls else 0.0
        self.begun = time.monotonic()
        if self.calls and (following := self.calls[0].observed) is not None:
            following._started(self.handle.observed)
        self._listener.worker_finished(self, call, seconds)

    # --- its end --------------------------------------------------------------------------------

    def _on_gone(self) -> None:
        try:
            self._handle_messages()
        finally:
            self._on_last_message()

    def _on_last_message(self) -> None:
        self._large_calls.close()
        unbegun = self._taken_back()
        begun_call, begun_items = self.channel.begun_call(), self.channel.begun_items()
        self.channel.close()
        self.state = WorkerState.GONE
        received, self.calls = list(self.calls), deque()
        numbers = [call.number for call in received]
        begun = numbers.index(begun_call) + 1 if begun_call in numbers else 0
        running = received[:begun]
        for call in reversed(received[begun:]):
            self._large_calls.withdraw(call, worker_gone=True)
            if not call.done:
                call.state = CallState.QUEUED
                unbegun.insert(0, call)
        try:
            self._listener.worker_gone(self, unbegun, running=bool(running))
            for call in running:
                call.died(self._death(), begun_items if call is running[0] else 0)
        finally:
            self._gone.set()
            self._streamed.worker_gone(self._death)

    def _death(self) -> BaseException:
        """Say why a call that ran has no outcome."""
        if self._garbage is not None:
            return _failures.wrote_garbage(self.process.name, self.handle.pid, self._garbage)
        cut_off = self.channel.cut_off or self._streamed.cut_off
        return death_of(self.handle, cut_off=cut_off, limit=self._options.memory_limit)
