"""Every error of creche's own.

The hierarchy is small: all derive from :class:`ProcessError`, so ``except ProcessError`` means
"something went wrong with the process, not with what my function did". All of them can be pickled,
because a child may use creche itself and fail with one of them.
"""

from __future__ import annotations

import signal as _signal

__all__ = [
    "ProcessClosedError",
    "ProcessDied",
    "ProcessError",
    "ProcessStartError",
    "ProcessStateError",
    "ProcessStuckError",
    "ProcessTimeout",
    "RemoteError",
    "RemoteTraceback",
    "SerializationError",
    "WorkerMemoryError",
]


class ProcessError(Exception):
    """Base class of every error that creche itself raises."""


class ProcessDied(ProcessError):
    """The process ended without an outcome: it gave neither a value nor an exception.

    Raised where a process was killed by a signal, crashed, or left through ``os._exit`` or
    ``sys.exit``.
    """

    exitcode: int | None
    """What ``multiprocessing`` calls the exit code: ``-N`` where signal *N* ended the process.
    ``None`` where nobody could learn it, because the fork server died first or another part of the
    program waited for the process; its ``exitcode`` is 255 then."""

    signal: int | None
    """The number of the signal that ended the process, or ``None``."""

    name: str
    """The name of the process."""

    pid: int | None
    """The process id that it had."""

    detail: str
    """What else is known, such as the message given to ``sys.exit``; may be empty."""

    def __init__(
        self,
        exitcode: int | None,
        signal: int | None = None,
        *,
        name: str = "",
        pid: int | None = None,
        detail: str = "",
    ) -> None:
        if signal is None and exitcode is not None and exitcode < 0:
            signal = -exitcode
        super().__init__(exitcode, signal)
        self.exitcode = exitcode
        self.signal = signal
        self.name = name
        self.pid = pid
        self.detail = detail

    def __str__(self) -> str:
        if self.signal is not None:
            end = f"was killed by {signal_name(self.signal)}"
        elif self.exitcode is None:
            end = "ended with an unknown exit code and without a result"
        else:
            end = f"ended with exit code {self.exitcode} and without a result"
        text = f"{describe(self.name, self.pid)} {end}"
        return f"{text}: {self.detail}" if self.detail else text


class ProcessTimeout(ProcessError, TimeoutError):
    """The process was stopped because its ``timeout`` ran out.

    Where the function raised an exception of its own while it was being stopped, that exception is
    the ``__cause__``.
    """


class ProcessStartError(ProcessError):
    """The process could not be started, or ended before it could run its function.

    The operating system had no process ids, descriptors or memory left; the main module lacks its
    ``if __name__ == "__main__":`` guard or cannot be imported again in the child; or a child given
    to :meth:`ProcessNursery.start` ended without calling :func:`creche.from_process.started`.
    """


class SerializationError(ProcessError):
    """Something could not travel between the processes.

    The function, an argument, the value or the exception could not be pickled or unpickled, or the
    child sent something that is not a creche message. The message says which and why.
    """


class RemoteError(ProcessError):
    """Stands for an exception of the function that cannot be raised in the parent as it is.

    Either the exception cannot be pickled or rebuilt, or its type steers the interpreter or an
    event loop (``KeyboardInterrupt``, ``GeneratorExit``, ``StopIteration``, a cancellation) and
    would be taken for such an event of the parent's own.
    """

    type_name: str
    """The qualified name of the exception's type, such as ``"builtins.KeyboardInterrupt"``."""

    message: str
    """What ``str()`` of the exception gave in the child."""

    traceback: str
    """The traceback as the child would have printed it."""

    def __init__(self, type_name: str, message: str = "", traceback: str = "") -> None:
        super().__init__(type_name, message, traceback)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


class RemoteTraceback(Exception):
    """The ``__cause__`` of an exception that came from a child: the child's traceback as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class WorkerMemoryError(ProcessError, MemoryError):
    """A call asked for more memory than the ``memory_limit`` of its pool lets a worker have.

    The worker is replaced; no other call notices. Where code in C ends the process instead of
    reporting that there is no memory, the call fails with :exc:`ProcessDied`.
    """

    limit: int
    """The limit in bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"the worker's memory_limit of {self.limit} bytes was exceeded"


class ProcessStateError(ProcessError, RuntimeError):
    """The call does not fit the state of the process, or the place it was made from.

    Starting twice, joining before starting, asking for the value of a process that still runs,
    using an :class:`AsyncProcess` from another event loop or another process than its own.
    """


class ProcessClosedError(ProcessStateError, ValueError):
    """The process object was closed. (A ``ValueError`` too, as in ``multiprocessing``.)"""


class ProcessStuckError(ProcessError):
    """The process was sent SIGKILL and is still there after ``StopPolicy.kill_timeout`` seconds.

    It sits in an uninterruptible wait inside the kernel, on a dead network disk for instance. No
    signal can end it before the kernel lets go; creche reaps it whenever that happens.
    """


def describe(name: str, pid: int | None) -> str:
    """Name a process in an error message: ``process 'parse-3' (pid 4711)``."""
    return f"process {name!r}" if pid is None else f"process {name!r} (pid {pid})"


def reason_of(error: BaseException) -> str:
    """Say in a line what ``error`` is, for the message of another."""
    return f"{type(error).__name__}: {text_of(error)}"


def text_of(obj: object) -> str:
    """Do what ``str(obj)`` does, even where that is code of the application's which fails."""
    try:
        return str.__str__(str(obj))  # str() may give an instance of a subclass
    except BaseException as failed:
        return f"(str() of it raised {type(failed).__name__})"


def signal_name(number: int) -> str:
    """``SIGSEGV`` for 11; ``signal 99`` for a number without a name."""
    try:
        return _signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
