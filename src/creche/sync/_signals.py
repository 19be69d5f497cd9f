"""What is waited for."""

from __future__ import annotations

import weakref

import anyio.lowlevel

from .._hub._protocol import Op
from .._hub._shared import Shared
from .._hub._sources import Here, There
from .._hub._states import BarrierState, EventState
from .._hub._waits import AsyncWait, ThreadWait, Wait
from .._loops import runs_in_loop
from ._statistics import BarrierStatistics, EventStatistics


class Event(Shared):
    """Set once, by any process, and waited for by any number of tasks and threads in all of them.

    As :class:`anyio.Event` it stays set. If the process that set it dies, it stays so, too.
    """

    def __init__(self) -> None:
        super().__init__(EventState())

    def _set_up(self) -> None:
        self._known = False
        self._subscription: _Subscription | None = None

    def set(self) -> None:
        """Set it, and wake whoever waits for it. Never waits.

        :raises anyio.BrokenResourceError: if the process that made it has ended, or does not keep
            it any more
        :raises ProcessStateError: if this process is a fork that has inherited it, of one that has
            not made use of creche
        """
        self._tell(Op.SET)
        self._known = True

    def is_set(self) -> bool:
        """Whether it is set, as far as this process has heard.

        In the process that made it, and in a plain function elsewhere, that is exact the first
        time: there it blocks the thread for the time of an answer. In an event loop of another
        process, the first call begins to listen, and returns ``False``. From the first call on, it
        takes no time, and the process hears of :meth:`set` within a moment. To be sure in an event
        loop, use :meth:`wait` with a timeout, or :meth:`statistics`.

        :raises anyio.BrokenResourceError: as :meth:`set`; not where it is known to be set
        """
        source = self._place()
        if isinstance(source, Here):
            state = source.state
            return isinstance(state, EventState) and state.is_set
        if self._known:
            return True
        if self._subscription is None:
            subscription = _Subscription(self)
            source.ask(Op.WAIT, subscription)
            self._subscription = subscription
            if not runs_in_loop() and self._statistics_sync(None)["is_set"]:
                self._known = True
        self._subscription.check()
        return self._known

    async def wait(self) -> None:
        """Wait until it is set. Cancellation leaves nothing behind.

        :raises anyio.BrokenResourceError: as :meth:`set`
        """
        if self._known:
            await anyio.lowlevel.checkpoint()
        else:
            await self._ask(Op.WAIT, AsyncWait())
            self._known = True

    def wait_sync(self, timeout: float | None = None) -> None:
        """:meth:`wait` in a plain function: blocks the thread.

        :param timeout: at most so many seconds; ``None`` for no limit
        :raises TimeoutError: if they have passed
        :raises Exception: as :meth:`wait`
        """
        if not self._known:
            self._ask_sync(Op.WAIT, ThreadWait(), timeout)
            self._known = True

    async def statistics(self) -> EventStatistics:
        """Ask how it is at the moment.

        :raises anyio.BrokenResourceError: as :meth:`set`
        """
        return EventStatistics(**await self._statistics())

    def statistics_sync(self, timeout: float | None = None) -> EventStatistics:
        """:meth:`statistics` in a plain function: blocks the thread.

        :raises TimeoutError: if there was no answer in so many seconds
        """
        return EventStatistics(**self._statistics_sync(timeout))

    def __del__(self) -> None:
        subscription = getattr(self, "_subscription", None)
        source = getattr(self, "_source", None)
        if subscription is not None and not subscription.is_done and isinstance(source, There):
            source.cancel_soon(subscription)
        super().__del__()


class _Subscription(Wait):
    """Waits for an event on behalf of nobody; does not keep it alive."""

    __slots__ = ("_event",)

    def __init__(self, event: Event) -> None:
        super().__init__()
        self._event = weakref.ref(event)

    def check(self) -> None:
        """Raise the error that is the answer, if it is one."""
        if self._error is not None:
            raise type(self._error)(*self._error.args)

    def _wake(self) -> bool:
        event = self._event()
        if event is not None and self._error is None:
            event._known = True
        return True


class Barrier(Shared):
    """Opens when enough tasks and threads, of all processes, wait at it; then it closes again.

    If a process dies while it waits, the barrier is *broken*: whoever waits, and whoever comes
    later, gets a :exc:`threading.BrokenBarrierError`, because that party will not come. (A process
    that dies before it comes is not known to the barrier: wait with a timeout.)

    :param parties: how many tasks and threads it takes
    """

    def __init__(self, parties: int) -> None:
        if isinstance(parties, bool) or not isinstance(parties, int):
            raise TypeError(f"parties must be an integer, not {parties!r}")
        if parties < 1:
            raise ValueError(f"parties must be 1 or more, not {parties}")
        super().__init__(BarrierState(parties))

    async def wait(self) -> int:
        """Wait until the barrier opens.

        Cancellation takes this party away, and the others go on waiting for another one; other than
        with :class:`threading.Barrier`, a party that gives up does not break it.

        :return: a number from 0 on, another one for each party
        :raises threading.BrokenBarrierError: if it is broken, or gets broken or reset meanwhile
        :raises anyio.BrokenResourceError: if the process that made it has ended, or does not keep
            it any more
        :raises ProcessStateError: if this process is a fork that has inherited it, of one that has
            not made use of creche
        """
        index: int = await self._ask(Op.WAIT, AsyncWait())
        return index

    def wait_sync(self, timeout: float | None = None) -> int:
        """:meth:`wait` in a plain function: blocks the thread.

        :param timeout: at most so many seconds; ``None`` for no limit
        :raises TimeoutError: if they have passed: this party is taken away
        :raises Exception: as :meth:`wait`
        """
        index: int = self._ask_sync(Op.WAIT, ThreadWait(), timeout)
        return index

    def abort(self) -> None:
        """Break the barrier. Never waits.

        :raises anyio.BrokenResourceError: as :meth:`wait`
        """
        self._tell(Op.ABORT)

    def reset(self) -> None:
        """Make the barrier as new: not broken. Whoever waits gets an error. Never waits.

        :raises anyio.BrokenResourceError: as :meth:`wait`
        """
        self._tell(Op.RESET)

    async def statistics(self) -> BarrierStatistics:
        """Ask how it is at the moment.

        :raises anyio.BrokenResourceError: as :meth:`wait`
        """
        return BarrierStatistics(**await self._statistics())

    def statistics_sync(self, timeout: float | None = None) -> BarrierStatistics:
        """:meth:`statistics` in a plain function: blocks the thread.

        :raises TimeoutError: if there was no answer in so many seconds
        """
        return BarrierStatistics(**self._statistics_sync(timeout))
