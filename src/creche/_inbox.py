"""What a child has said: its frames in, outcomes out.

An :class:`Inbox` runs in the watcher. Unpickling runs the application's own code (constructors,
imports), which may take long or never end, so it goes to threads of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ._conversation import Conversation, Threads
from ._wire._framing import BadFrameError, Frame, FrameKind, FrameReader
from ._wire._outcomes import Failure, Outcome, cannot_unpickle, decode, decode_plain, decode_started
from ._worker_threads import Job

# Their outcome is told together with the exit code, which comes later. There is nothing of the
# application's in them to be unpickled.
_FRAMES_ABOUT_EXITS = (FrameKind.EXITED, FrameKind.STOPPED)


class Listener(Protocol):
    """Who wants to know. All calls come from the watcher."""

    def heard_running(self) -> None:
        """The child runs its function."""

    def heard_ready(self) -> None:
        """What the child gave to ``started()`` is in :attr:`Inbox.started`."""

    def heard_last_word(self) -> None:
        """The child has sent its outcome, or closed the wire."""

    def heard_outcome(self) -> None:
        """The outcome is in :attr:`Inbox.outcome`."""

    def heard_garbage(self) -> None:
        """The child has sent something that is no frame: see :attr:`Inbox.error`."""


class Inbox:
    """Takes in what one child sends."""

    def __init__(
        self,
        listener: Listener,
        threads: Threads,
        conversation: Conversation,
        name: str,
        pid: int,
    ) -> None:
        self.started: Outcome | None = None
        self.outcome: Outcome | None = None
        self.error: BadFrameError | None = None
        self.ended = False
        self._listener = listener
        self._watcher = threads.watcher
        self._picklers = threads.picklers
        self._conversation = conversation
        self._name = name
        self._pid = pid
        self._reader = FrameReader()
        self._last_frame: Frame | None = None
        self._unpickling: set[Job] = set()

    @property
    def has_outcome(self) -> bool:
        """Whether the child has sent an outcome, unpickled or not."""
        return self._last_frame is not None

    @property
    def cut_off(self) -> bool:
        """Whether what came last is the beginning of something."""
        return self._reader.in_frame

    @property
    def busy(self) -> bool:
        """Whether something that has come is not dealt with yet."""
        return bool(self._unpickling) or self._conversation.busy

    def receive(self, data: bytes) -> None:
        """Take in the next bytes; none at the end."""
        if not data:
            self.ended = True
            self._listener.heard_last_word()
        elif self.error is None:
            try:
                for frame in self._reader.feed(data):
                    self._receive_frame(frame)
            except BadFrameError as error:
                self.error = error
                if self._last_frame is None:
                    self._listener.heard_garbage()

    def decode_exit(self, exitcode: int | None) -> None:
        """The process has ended: decode an outcome that is told together with the exit code."""
        frame = self._last_frame
        if frame is not None and frame.kind in _FRAMES_ABOUT_EXITS:
            self.outcome = decode(frame, self._name, self._pid, exitcode)

    def close(self) -> None:
        """Whatever is still being unpickled, nobody wants to know any more."""
        for job in self._unpickling:
            self._picklers.abandon(job)
        self._unpickling.clear()

    def _receive_frame(self, frame: Frame) -> None:
        if self._last_frame is not None:
            # The function is over, but threads of the child, and what runs at its exit, may go on.
            self._conversation.receive(frame)
        elif frame.kind is FrameKind.RUNNING:
            self._listener.heard_running()
        elif frame.kind is FrameKind.STARTED:
            self._unpickle_started(frame)
        elif not self._conversation.receive(frame):
            self._last_frame = frame
            self.outcome = decode_plain(frame)
            if self.outcome is None and frame.kind not in _FRAMES_ABOUT_EXITS:
                self._unpickle_outcome(frame)
            self._listener.heard_last_word()

    def _unpickle_started(self, frame: Frame) -> None:
        def deliver(outcome: Outcome) -> None:
            self.started = outcome
            self._listener.heard_ready()

        self._unpickle(lambda: decode_started(frame, self._name, self._pid), deliver)

    def _unpickle_outcome(self, frame: Frame) -> None:
        def deliver(outcome: Outcome) -> None:
            self.outcome = outcome
            self._listener.heard_outcome()

        self._unpickle(lambda: decode(frame, self._name, self._pid, None), deliver)

    def _unpickle(
        self, unpickle: Callable[[], Outcome], deliver: Callable[[Outcome], None]
    ) -> None:
        def run() -> None:
            outcome = unpickle()
            self._watcher.call_soon(lambda: done(outcome))

        def done(outcome: Outcome) -> None:
            if job in self._unpickling:  # not given up
                self._unpickling.remove(job)
                deliver(outcome)

        try:
            job = self._picklers.submit(run)
        except RuntimeError as error:  # no threads left, or the interpreter ends
            deliver(Failure(cannot_unpickle("result", self._name, self._pid, error)))
        else:
            self._unpickling.add(job)
