"""What is known of a process, without waiting for anything."""

from __future__ import annotations

import logging
import os
from typing import Generic, NoReturn, TypeVar

from anyio.abc import ObjectReceiveStream

from ._errors import ProcessClosedError, ProcessStateError, describe
from ._handle import ProcessHandle
from ._lifecycle import ProcessState
from ._progress_feed import ProgressFeed
from ._wire._outcomes import Failure, Value

_logger = logging.getLogger("creche")

T_co = TypeVar("T_co", covariant=True)


class ProcessFacts(Generic[T_co]):
    """The properties of an ``AsyncProcess``. They can be read from any thread and event loop."""

    def __init__(self, handle: ProcessHandle) -> None:
        self._handle = handle
        self._owner_pid = os.getpid()
        self._closed = False
        self._asked_for_outcome = False

    def is_alive(self) -> bool:
        """Whether the process was started and has not ended yet."""
        self._check_usable()
        return self._handle.state in (ProcessState.STARTED, ProcessState.RUNNING)

    @property
    def state(self) -> ProcessState:
        """Where the process is in its life."""
        self._check_usable()
        return self._handle.state

    @property
    def pid(self) -> int | None:
        """The process id, or ``None`` before the process exists."""
        self._check_usable()
        return self._handle.pid

    ident = pid

    @property
    def exitcode(self) -> int | None:
        """The exit code (see :meth:`join`), or ``None`` while the process has not ended."""
        self._check_usable()
        if not self._handle.finished.is_set():
            return None
        self._asked_for_outcome = True
        return self._handle.exitcode

    @property
    def name(self) -> str:
        """The name of the process. Can be set before it is started."""
        return self._handle.process.name  # type: ignore[no-any-return]

    @name.setter
    def name(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, not {type(name).__name__}")
        self._check_not_started("name")
        self._handle.process.name = name

    @property
    def daemon(self) -> bool:
        """Whether the process may have no ``multiprocessing`` children. Can be set before it is
        started."""
        return self._handle.process.daemon  # type: ignore[no-any-return]

    @daemon.setter
    def daemon(self, daemon: bool) -> None:
        self._check_not_started("daemon")
        self._handle.process.daemon = daemon

    @property
    def authkey(self) -> bytes:
        """The key with which ``multiprocessing`` connections authenticate. Can be set before the
        process is started."""
        return self._handle.process.authkey  # type: ignore[no-any-return]

    @authkey.setter
    def authkey(self, authkey: bytes) -> None:
        self._check_not_started("authkey")
        self._handle.process.authkey = authkey

    @property
    def progress(self) -> ProgressFeed:
        """What the child reports of its progress by :func:`creche.from_process.report`: an async
        iterable, which ends with the process."""
        return self._handle.conversation.progress

    @property
    def sentinel(self) -> int:
        """A descriptor (a handle on Windows) that becomes readable when the process ends.

        It stays open until :meth:`close`.

        :raises ProcessStateError: if the process does not exist yet, or has ended before anybody
            asked for this
        """
        self._check_usable()
        handle = self._handle
        handle.keeps_descriptors = handle.keeps_descriptors or not handle.finished.is_set()
        if handle.pid is None or not handle.keeps_descriptors:
            raise ProcessStateError(f"{self._who()} has no sentinel: it is {handle.state.value}")
        return handle.process.sentinel  # type: ignore[no-any-return]

    @property
    def stdout(self) -> ObjectReceiveStream[str] | None:
        """The lines of standard output, without their newlines, where the process was made with
        ``stdout="stream"``; ``None`` elsewhere.

        A process that writes faster than its lines are received waits. The stream ends with the
        process, whatever its own children do. Closing it does not disturb the process.
        """
        return self._handle.output.stdout

    @property
    def stderr(self) -> ObjectReceiveStream[str] | None:
        """The lines of standard error, where the process was made with ``stderr="stream"``."""
        return self._handle.output.stderr

    @property
    def return_value(self) -> T_co:
        """What the function returned.

        :raises ProcessStateError: if the process has not ended yet, or failed
        """
        outcome = self._known_outcome()
        if isinstance(outcome, Failure):
            raise ProcessStateError(
                f"{self._who()} has no return value: it failed with {outcome.exception!r}"
            ) from outcome.exception
        return outcome.value  # type: ignore[no-any-return]

    @property
    def exception(self) -> BaseException | None:
        """The exception that :meth:`result` raises, or ``None`` if the process ended well.

        :raises ProcessStateError: if the process has not ended yet
        """
        outcome = self._known_outcome()
        return outcome.exception if isinstance(outcome, Failure) else None

    def __repr__(self) -> str:
        state = "closed" if self._closed else self._handle.state.value
        parts = [f"name={self.name!r}", f"pid={self._handle.pid}", state]
        if self._handle.exitcode is not None:
            parts.append(f"exitcode={self._handle.exitcode}")
        return f"<{type(self).__name__} {' '.join(parts)}>"

    def __del__(self) -> None:
        # As asyncio does for tasks: an error that nobody asked for is not lost without a word.
        handle = getattr(self, "_handle", None)
        if handle is None or getattr(self, "_asked_for_outcome", True) or handle.stop_requested:
            return
        if isinstance(handle.outcome, Failure):
            _logger.error(
                "%s failed, and nobody asked for its outcome",
                self._who(),
                exc_info=handle.outcome.exception,
            )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"cannot pickle {self._who()}: an AsyncProcess belongs to the process and the event"
            " loop that started it. Send its name or pid instead"
        )

    def _known_outcome(self) -> Value | Failure:
        self._check_usable()
        self._asked_for_outcome = True
        if self._handle.outcome is None:
            raise ProcessStateError(
                f"{self._who()} has no outcome yet: it is {self._handle.state.value}"
            )
        return self._handle.outcome

    def _check_usable(self) -> None:
        if self._closed:
            raise ProcessClosedError(f"process {self.name!r} is closed")
        if self._owner_pid != os.getpid():
            raise ProcessStateError(
                f"{self._who()} belongs to the process with pid {self._owner_pid}, not to this one"
            )

    def _check_not_started(self, attribute: str) -> None:
        self._check_usable()
        if self._handle.state is not ProcessState.CREATED:
            raise ProcessStateError(f"cannot set the {attribute} of {self._who()}: it was started")

    def _who(self) -> str:
        return describe(self.name, self._handle.pid)
