"""The output of one process, line by line: where it goes, and who reads it.

The watcher reads it, for loggers and streams alike, and passes it on. Where what is passed on is
not taken it stops reading, and the process waits when its pipe is full.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from ._child_output import ChildOutput
from ._output_log import LineLogger
from ._output_stream import LineStream
from ._platform import OutputReceiver, OutputSender, output_pipe
from ._watcher import Timer, Watcher
from ._worker_threads import WorkerThreads

Output = logging.Logger | Literal["stream"] | None
"""Where standard output goes: lines to a logger or a stream; ``None``: the application's own."""

ErrorOutput = logging.Logger | Literal["stream", "stdout"] | None
"""Where standard error goes; ``"stdout"``: where standard output does."""

# What a process may still write that was asked to stop, or has given its outcome, so that it comes
# to its end when nobody reads.
_LAST_BYTES = 1024 * 1024


def check_output(stdout: object, stderr: object, *, no_stream: str = "") -> None:
    """Check the options that say where output goes.

    :param no_stream: why there can be no streams
    :raises ValueError: if one is a string that means nothing
    :raises TypeError: if one is of a wrong type
    """
    _check("stdout", stdout, ("stream",), no_stream)
    _check("stderr", stderr, ("stream", "stdout"), no_stream)


def _check(name: str, value: object, words: tuple[str, ...], no_stream: str) -> None:
    if value is None or isinstance(value, logging.Logger):
        return
    expected = " or ".join(["a logging.Logger", *map(repr, words), "None"])
    if not isinstance(value, str):
        raise TypeError(f"{name} must be {expected}, not {type(value).__name__}")
    if value not in words:
        raise ValueError(f"{name} must be {expected}, not {value!r}")
    if value == "stream" and no_stream:
        raise ValueError(f"{name} cannot be 'stream' here: {no_stream}")


class OutputCapture:
    """What becomes of the output of one process.

    Its methods are called in the watcher, where nothing else is said.

    :param stdout: where standard output goes
    :param stderr: where standard error goes
    """

    def __init__(self, stdout: Output, stderr: ErrorOutput) -> None:
        self._merged = stderr == "stdout"
        self._stdout = _reader("stdout", logging.INFO, stdout)
        self._stderr = None if stderr == "stdout" else _reader("stderr", logging.WARNING, stderr)
        self._given_up = False
        self._timer: Timer | None = None
        self._readers = [reader for reader in (self._stdout, self._stderr) if reader is not None]

    @property
    def stdout(self) -> LineStream | None:
        """The stream of the lines of standard output, if it was asked for."""
        return None if self._stdout is None else self._stdout.stream

    @property
    def stderr(self) -> LineStream | None:
        """The stream of the lines of standard error, if it was asked for."""
        return None if self._stderr is None else self._stderr.stream

    @property
    def busy(self) -> bool:
        """Whether lines are still to be logged."""
        return not self._given_up and any(reader.busy for reader in self._readers)

    def open(self) -> ChildOutput | None:
        """In the starter: make what the child needs; ``None`` where nothing is captured.

        :raises OSError: if there are no descriptors left
        """
        if not self._readers and not self._merged:
            return None
        stdout = None if self._stdout is None else self._stdout.open()
        try:
            stderr = None if self._stderr is None else self._stderr.open()
        except OSError:
            if stdout is not None:
                stdout.close()
            raise
        return ChildOutput(stdout, stderr, self._merged)

    def attach(
        self,
        watcher: Watcher,
        loggers: WorkerThreads,
        name: str,
        pid: int,
        on_idle: Callable[[], object],
    ) -> None:
        """Begin to read.

        :param loggers: the thread in which lines are logged
        :param name: the name of the process
        :param on_idle: called when it is not :attr:`busy` any more
        """
        self._call_later = watcher.call_later
        self._on_idle = on_idle
        for reader in self._readers:
            reader.attach(watcher, loggers, name, pid, self._idle)

    def expect_end(self) -> None:
        """The process is about to end, and must not wait for a reader who may never come."""
        for reader in self._readers:
            reader.sink.take_more(_LAST_BYTES)

    def process_ended(self, patience: float) -> None:
        """Take in what the dead process has left; a descendant may still write.

        :param patience: seconds after which it is not :attr:`busy` any more, although a handler
            still logs
        """
        for reader in self._readers:
            reader.drain()
        if self.busy:
            self._timer = self._call_later(patience, self.give_up)

    def give_up(self) -> None:
        """Whatever is still to be logged, nobody waits for it any more."""
        if self.busy:
            self._given_up = True
            self._on_idle()

    def _idle(self) -> None:
        if not self._given_up and not self.busy:
            if self._timer is not None:
                self._timer.cancel()
            self._on_idle()

    def end_streams(self) -> None:
        """From any thread: the process has ended, will never be started, or does not die."""
        for reader in self._readers:
            if reader.stream is not None:
                reader.stream.end()

    def close(self) -> None:
        """There is no process, or this is a fork of its parent."""
        for reader in self._readers:
            reader.close()


class _Reader:
    """Reads one output of a process, and passes it on."""

    def __init__(self, sink: LineStream | LineLogger) -> None:
        self.sink = sink
        self._receiver: OutputReceiver | None = None
        self._watcher: Watcher | None = None
        self._ended = False

    @property
    def stream(self) -> LineStream | None:
        return self.sink if isinstance(self.sink, LineStream) else None

    @property
    def busy(self) -> bool:
        return isinstance(self.sink, LineLogger) and self.sink.busy

    def open(self) -> OutputSender:
        self._receiver, sender = output_pipe()
        return sender

    def attach(
        self,
        watcher: Watcher,
        loggers: WorkerThreads,
        name: str,
        pid: int,
        on_idle: Callable[[], object],
    ) -> None:
        self._watcher = watcher
        self.sink.on_room = lambda: watcher.call_soon(self._watch)
        if isinstance(self.sink, LineLogger):
            self.sink.attach(loggers, watcher.call_soon, name, pid, on_idle)
        self._watch()

    def drain(self) -> None:
        if self._receiver is None or self._ended:
            return
        # No more than there is now: a descendant that has the other end could go on for ever.
        left = self._receiver.left()
        while left > 0 and (data := self._receiver.receive()):
            left -= len(data)
            self.sink.feed(data)
        self._end()

    def close(self) -> None:
        if self._receiver is not None:
            self._receiver.close()

    def _watch(self) -> None:
        if self._receiver is not None and self._watcher is not None and not self._ended:
            self._receiver.watch(self._watcher.poller, self._read)

    def _read(self) -> None:
        assert self._receiver is not None
        assert self._watcher is not None
        data = self._receiver.receive()
        if data is None:
            return
        if not data:
            self._end()
        elif not self.sink.feed(data):
            self._receiver.unwatch(self._watcher.poller)

    def _end(self) -> None:
        assert self._receiver is not None
        assert self._watcher is not None
        self._ended = True
        self._receiver.unwatch(self._watcher.poller)
        self._receiver.close()
        self.sink.end()


def _reader(name: str, level: int, output: Output) -> _Reader | None:
    if output is None:
        return None
    if isinstance(output, logging.Logger):
        return _Reader(LineLogger(output, level, name))
    return _Reader(LineStream())
