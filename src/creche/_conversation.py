"""What a child says while it runs, other than its outcome, and what its parent does about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ._log_forwarding import LogReceiver, LogSettings, LogTarget, log_settings
from ._loops import EventLoop
from ._platform import ParentWire
from ._progress_feed import ProgressFeed, decode_progress
from ._request_server import RequestServer
from ._watcher import Watcher
from ._wire._framing import BadFrameError, Frame, FrameKind, pack
from ._wire._outcomes import Message
from ._wire._requests import encode_number
from ._worker_threads import WorkerThreads


class Threads(Protocol):
    """Of the runtime: those who do what would hold up others."""

    watcher: Watcher
    picklers: WorkerThreads
    loggers: WorkerThreads


class Conversation:
    """Between one child and its parent. Lives in the watcher, but for what says otherwise.

    :param logs: what is to become of the child's log records
    """

    def __init__(self, logs: LogTarget) -> None:
        self.progress = ProgressFeed()
        self._log_target = logs
        self._threads: Threads
        self._wire: ParentWire | None = None
        self._requests: RequestServer | None = None
        self._logs: LogReceiver | None = None
        self._on_idle: Callable[[], None]
        self._given_up = False

    def begin(self, loop: EventLoop, threads: Threads) -> None:
        """In the event loop: the process is going to be started."""
        self._threads = threads
        self._requests = RequestServer(
            loop, threads.picklers, lambda reply: self._send((FrameKind.REPLY, [[reply]]))
        )

    def log_settings(self) -> LogSettings | None:
        """In any thread: what log records the child is to send."""
        return log_settings(self._log_target)

    def open(self, wire: ParentWire, on_idle: Callable[[], None]) -> None:
        """The process exists.

        :param on_idle: called when nothing that it has said waits for anybody any more
        """
        self._wire = wire
        self._on_idle = on_idle
        if self._log_target is not False:
            self._logs = LogReceiver(
                self._log_target,
                self._threads.loggers,
                self._threads.watcher.call_soon,
                lambda count: self._send((FrameKind.LOGGED, [encode_number(count)])),
                on_idle,
            )

    @property
    def busy(self) -> bool:
        """Whether something that the child has said is still to be dealt with."""
        return self._logs is not None and self._logs.busy and not self._given_up

    def give_up(self) -> None:
        """Whatever is still to be dealt with, nobody waits for it any more."""
        if self.busy:
            self._given_up = True
            self._on_idle()

    def receive(self, frame: Frame) -> bool:
        """Take in a frame; return whether it is part of the conversation.

        :raises BadFrameError: if something is wrong with it
        """
        try:
            return self._receive(frame)
        except BadFrameError:
            raise
        except Exception as error:  # a frame without sections, say
            raise BadFrameError(f"a broken frame of kind {frame.kind.name}") from error

    def _receive(self, frame: Frame) -> bool:
        assert self._requests is not None
        match frame.kind:
            case FrameKind.LINE:
                line = None if self._wire is None else self._wire.take_line()
                if line is not None:
                    self._requests.open_line(line)
            case FrameKind.REQUEST:
                self._requests.receive(frame.sections[0])
            case FrameKind.PROGRESS:
                self.progress._report(decode_progress(frame.sections[0]))
            case FrameKind.LOG:
                if self._logs is None:
                    raise BadFrameError("the child has sent log records that nobody asked for")
                self._logs.receive(frame.sections[0])
            case _:
                return False
        return True

    def close(self) -> None:
        """The process has ended."""
        self._wire = None
        if self._requests is not None:
            self._requests.close()

    async def wait_over(self) -> None:
        """In the event loop: wait until nothing runs on behalf of the process, which has ended."""
        if self._requests is not None:
            await self._requests.wait_over()

    def forget(self) -> None:
        """In a fork of this process: close our copies of what belongs to its parent."""
        if self._requests is not None:
            self._requests.forget()

    def _send(self, message: Message) -> None:
        """From any thread: send something to the child."""

        def send() -> None:
            if self._wire is not None:
                self._wire.send(pack(*message))

        self._threads.watcher.call_soon(send)
