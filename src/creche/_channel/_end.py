"""What is the same for both kinds of ends."""

from __future__ import annotations

import enum
import math
import threading
import time
import warnings
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.lowlevel

from .._errors import ProcessStateError
from .._loops import runs_in_loop
from .._wire._handing_over import Lent, Movable, Parcel, close_in_forks, no_fork_meanwhile
from ._passing import send_along
from ._transports import Transport

CHECKPOINT_SECONDS = 0.001
"""An end that need not wait lets other tasks run, and looks whether its own is cancelled, so often.
"""


class EndState(enum.Enum):
    OPEN = "open"
    CLOSED = "closed"
    CLAIMED = "claimed"  # by a call that is about to be made
    MOVED = "moved"
    FORKED = "forked"


_REASONS = {
    EndState.CLOSED: "was closed",
    EndState.CLAIMED: "was handed over to another process; clone() it before to keep one here",
    EndState.MOVED: "was handed over to another process; clone() it before to keep one here",
    EndState.FORKED: "belongs to the process that this one is a fork of, which can hand it over as"
    " an argument of a call",
}


@dataclass(frozen=True)
class ChannelStatistics:
    """How things are with a channel just now."""

    max_buffer_size: int
    """How many items the buffer can hold."""

    current_buffer_used: int
    """How many it holds."""

    open_send_streams: int
    """How many ends there are that send, in all processes and on their way between them."""

    open_receive_streams: int
    """How many ends there are that receive."""


class ClosedByWith(ABC):
    """What ``with`` closes in the end."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


class ChannelEnd(ClosedByWith, Movable):
    """One end of a channel, in this process.

    :param transport: what carries its items
    """

    def __init__(self, transport: Transport) -> None:
        self._transport: Any = transport
        self._state = EndState.OPEN
        self._parcel: weakref.ref[_EndParcel] | None = None  # which it was packed into last
        self._checkpoint_at = -math.inf
        close_in_forks(self)

    # --- public -----------------------------------------------------------------------------------

    def statistics(self) -> ChannelStatistics:
        """Return how things are with the channel just now.

        :raises anyio.ClosedResourceError: if this end is closed, or was handed over
        """
        transport = self._open_transport()
        try:
            return ChannelStatistics(transport.max_buffer_size, *transport.statistics())
        except ValueError:
            raise self._closed_error() from None

    def close(self) -> None:
        """Close this end. Tasks and threads that wait for it get ``ClosedResourceError``.

        Without effect on one that is closed, or was handed over.
        """
        if self._state is EndState.OPEN:
            self._close(EndState.CLOSED)

    async def aclose(self) -> None:
        """Close this end, as :meth:`close`. A checkpoint."""
        self.close()
        await anyio.lowlevel.checkpoint()

    # --- moving -----------------------------------------------------------------------------------

    def claim(self) -> None:
        self._open_transport()
        self._set(EndState.CLAIMED)
        self._transport.wake()

    def unclaim(self) -> None:
        if self._state is EndState.CLAIMED:
            self._set(EndState.OPEN)

    def release(self) -> None:
        if self._state is EndState.CLAIMED:
            self._close(EndState.MOVED)

    def lend(self) -> LentEnd:
        with no_fork_meanwhile():
            return LentEnd(type(self), self._move())

    def __reduce__(self) -> tuple[Any, ...]:
        if self._state is not EndState.CLAIMED:
            self._open_transport()
        handle = send_along(self._pack())
        return _rebuild, (type(self), self._transport.pack_up(handle))

    def _pack(self) -> _EndParcel:
        with no_fork_meanwhile():  # nor anything else in another thread
            other = None if self._parcel is None else self._parcel()
            if other is not None and other.is_being_packed_elsewhere:
                raise self._error_of(EndState.CLAIMED)
            parcel = _EndParcel(self)
            self._parcel = weakref.ref(parcel)
            return parcel

    def close_in_fork(self) -> None:
        if self._state in (EndState.OPEN, EndState.CLAIMED):
            self._set(EndState.FORKED)
            self._transport.forget()
        self._transport.forget_waits()

    def _move(self) -> Transport:
        transport: Transport = self._transport
        self._set(EndState.MOVED)
        transport.end_waits()
        return transport

    # --- inner workings ---------------------------------------------------------------------------

    def _open_transport(self) -> Any:
        if self._state is not EndState.OPEN:
            raise self._closed_error()
        return self._transport

    def _closed_error(self) -> anyio.ClosedResourceError:
        return self._error_of(EndState.CLOSED if self._state is EndState.OPEN else self._state)

    def _error_of(self, state: EndState) -> anyio.ClosedResourceError:
        return anyio.ClosedResourceError(f"this end of the channel {_REASONS[state]}")

    async def _checkpoint(self) -> None:
        await anyio.lowlevel.checkpoint()
        self._checkpoint_at = time.perf_counter() + CHECKPOINT_SECONDS

    def _clone_transport(self) -> Any:
        try:
            return self._open_transport().clone()
        except ValueError:
            raise self._closed_error() from None

    def _close(self, state: EndState) -> None:
        with no_fork_meanwhile():
            self._set(state)
            self._transport.close()
        self._transport.end_waits()

    def _set(self, state: EndState) -> None:
        self._state = state
        self._update()

    @abstractmethod
    def _update(self) -> None:
        """The state has changed."""

    def _raise_closed(self, *_args: Any) -> Any:
        raise self._closed_error()

    def __del__(self) -> None:
        state = getattr(self, "_state", None)
        if state in (EndState.OPEN, EndState.CLAIMED):
            text = f"Unclosed {self!r}"
            with no_fork_meanwhile():
                self._set(EndState.CLOSED)
                self._transport.close_soon()
            self._transport.end_waits()
            if state is EndState.OPEN:  # last, as a warning may be an error
                warnings.warn(text, ResourceWarning, stacklevel=1, source=self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} ({self._state.value}) at {id(self):#x}>"


class _TransportParcel(Parcel):
    """What is left of an end, on its way."""

    def __init__(self, transport: Transport | None) -> None:
        self._transport = transport

    def take(self) -> None:
        if self._transport is not None:
            self._transport.hand_over()

    def give_back(self) -> None:
        self.close()

    def started(self) -> None:
        if self._transport is not None:
            self._transport.started()

    def close(self) -> None:
        # The garbage collector may have called.
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close_soon()

    def close_in_fork(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.forget()

    def leave_in_fork(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.leave()


class _EndParcel(_TransportParcel):
    """An end on its way."""

    def __init__(self, end: ChannelEnd) -> None:
        super().__init__(None)
        self._end: ChannelEnd | None = end
        self._thread = threading.get_ident()

    @property
    def is_being_packed_elsewhere(self) -> bool:
        """Whether another thread is at pickling a call that the end goes with."""
        return self._end is not None and self._thread != threading.get_ident()

    def take(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            self._transport = end._move()
            self._transport.hand_over()

    def give_back(self) -> None:
        self._end = None


class LentEnd(Lent):
    """An end that many processes get a clone of."""

    def __init__(self, cls: Any, transport: Transport) -> None:
        self._cls = cls
        self._transport = transport
        close_in_forks(self)

    def __reduce__(self) -> tuple[Any, ...]:
        with no_fork_meanwhile():
            clone = self._transport.clone()
            parcel = _TransportParcel(clone)
            try:
                return _rebuild, (self._cls, clone.pack_up(send_along(parcel)))
            except BaseException:
                parcel.give_back()
                raise

    def close(self) -> None:
        with no_fork_meanwhile():
            self._transport.close()

    def close_in_fork(self) -> None:
        self._transport.forget()

    def __del__(self) -> None:
        with no_fork_meanwhile():
            self._transport.close_soon()


def _rebuild(cls: Any, packed: tuple[Any, ...]) -> Any:
    rebuild, *arguments = packed
    return cls(rebuild(*arguments))


def check_not_in_loop(method: str, instead: str) -> None:
    """Check that the calling thread may wait.

    :raises ProcessStateError: if it runs an event loop, which would wait with it
    """
    if runs_in_loop():
        raise ProcessStateError(
            f"{method}() was called in a thread that runs an event loop, which it would hold up:"
            f" use `await {instead}()` there"
        )
