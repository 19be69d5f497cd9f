"""What is acquired and released."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import anyio

from .._hub._protocol import Op, json_bytes
from .._hub._shared import Shared
from .._hub._states import LimiterState, LockState, SemaphoreState, check_tokens, not_held
from .._hub._waits import AsyncWait, ThreadWait, Wait, current_holder
from .._parent_connection import deferring_stop
from ._statistics import CapacityLimiterStatistics, LockStatistics, SemaphoreStatistics


class _Tokens(Shared):
    """Something that is acquired and released."""

    async def acquire(self) -> None:
        """Acquire it; wait for that as long as need be. Whoever waits first gets it first.

        Cancellation leaves nothing acquired.

        :raises anyio.BrokenResourceError: if the process that made it has ended, or does not keep
            it any more
        :raises ProcessStateError: if this process is a fork that has inherited it, of one that has
            not made use of creche
        """
        await self._acquire(Op.ACQUIRE)

    async def acquire_nowait(self) -> None:
        """Acquire it if that is possible at once.

        Other than anyio's it is ``async``, because another process has to be asked. Cancellation
        leaves nothing acquired.

        :raises anyio.WouldBlock: if it is not
        :raises Exception: as :meth:`acquire`
        """
        await self._acquire(Op.TRY_ACQUIRE)

    def acquire_sync(self, timeout: float | None = None) -> None:
        """:meth:`acquire` in a plain function: blocks the thread.

        :param timeout: at most so many seconds; ``None`` for no limit
        :raises TimeoutError: if they have passed
        :raises Exception: as :meth:`acquire`
        """
        self._acquire_sync(Op.ACQUIRE, timeout)

    def acquire_nowait_sync(self) -> None:
        """:meth:`acquire_nowait` in a plain function: blocks the thread until there is an answer.

        :raises anyio.WouldBlock: if it is not possible at once
        :raises Exception: as :meth:`acquire`
        """
        self._acquire_sync(Op.TRY_ACQUIRE, None)

    def release(self) -> None:
        """Release it; whoever waits first has it then. Never waits.

        :raises anyio.BrokenResourceError: as :meth:`acquire`
        """
        with deferring_stop():
            self._tell(Op.RELEASE)

    async def _acquire(self, op: Op) -> None:
        holder, task = self._holder()
        wait = AsyncWait(holder)
        self._took(wait, task, await self._ask(op, wait))

    def _acquire_sync(self, op: Op, timeout: float | None) -> None:
        holder, task = self._holder()
        wait = ThreadWait(holder)
        took = False
        try:
            value = self._ask_sync(op, wait, timeout)
            with deferring_stop():
                self._took(wait, task, value)
                took = True
        except BaseException:  # a request to stop, which comes at any moment
            if took:
                self.release()
            else:
                self._place().cancel(wait)
            raise

    def _holder(self) -> tuple[int, object]:
        """Identify who is to own what is acquired: 0 for nobody, and the task, if it is one."""
        return 0, None

    def _took(self, wait: Wait, task: object, value: Any) -> None:
        """Note that something was acquired.

        :param wait: by which request
        :param value: what the answer was
        """
        raise NotImplementedError

    def _release_after(self, error: BaseException | None) -> None:
        try:
            self.release()
        except anyio.BrokenResourceError:
            # There is nothing to be released any more. What went wrong first is of more interest.
            if error is None:
                raise

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._release_after(exc)

    def __enter__(self) -> None:
        self.acquire_sync()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._release_after(exc)


class _OwnTokens(_Tokens):
    """Tokens that belong to the task or thread that has acquired them."""

    _name: str

    def _set_up(self) -> None:
        # The tasks (none for threads), by their ids: so that no other gets the same id meanwhile.
        self._holders: dict[int, object] = {}

    def _holder(self) -> tuple[int, object]:
        return current_holder()

    def _took(self, wait: Wait, task: object, value: Any) -> None:
        self._holders[wait.holder] = task

    def release(self) -> None:
        """Release it; whoever waits first has it then. Never waits.

        :raises RuntimeError: if this task, or this thread outside of tasks, has not acquired it
        :raises anyio.BrokenResourceError: as :meth:`acquire`
        """
        with deferring_stop():
            self._place()  # a fork has acquired nothing
            holder, _ = current_holder()
            if holder not in self._holders:
                raise not_held(self._name)
            try:
                self._tell(Op.RELEASE, holder=holder)
            finally:
                del self._holders[holder]


class Lock(_OwnTokens):
    """A lock that one task, or thread, of all processes can hold at a time.

    Acquiring it twice, or releasing it in another task or thread, raises :exc:`RuntimeError`, as
    with :class:`anyio.Lock`. Whoever waits first gets it first.

    If the process that holds it dies, the next one gets it, and :attr:`abandoned_by` says so: what
    the lock protects may have been left half done.
    """

    _name = "lock"

    def __init__(self) -> None:
        super().__init__(LockState())

    def _set_up(self) -> None:
        super()._set_up()
        self._abandoned_by: int | None = None

    @property
    def abandoned_by(self) -> int | None:
        """For whoever holds the lock: the id of the process that has died with it just before.

        ``None`` if the last one has released it. It is forgotten when the lock is released.
        """
        return self._abandoned_by

    def _took(self, wait: Wait, task: object, value: Any) -> None:
        super()._took(wait, task, value)
        self._abandoned_by = value

    async def statistics(self) -> LockStatistics:
        """Ask how it is at the moment.

        :raises anyio.BrokenResourceError: as :meth:`acquire`
        """
        return LockStatistics(**await self._statistics())

    def statistics_sync(self, timeout: float | None = None) -> LockStatistics:
        """:meth:`statistics` in a plain function: blocks the thread.

        :raises TimeoutError: if there was no answer in so many seconds
        """
        return LockStatistics(**self._statistics_sync(timeout))


class Semaphore(_Tokens):
    """A number of tokens: acquiring takes one, or waits until there is one; releasing gives one.

    Any task or thread of any process may release it, whoever has acquired it; and without it having
    been acquired, there is one token more then. A release gives back a token that the same process
    has acquired, if it has one; otherwise the one that was acquired first. What a process has not
    given back when it dies is given back then.

    :param initial_value: how many tokens there are at first
    """

    def __init__(self, initial_value: int) -> None:
        if isinstance(initial_value, bool) or not isinstance(initial_value, int):
            raise TypeError(f"initial_value must be an integer, not {initial_value!r}")
        if initial_value < 0:
            raise ValueError(f"initial_value must be zero or more, not {initial_value}")
        super().__init__(SemaphoreState(initial_value))

    def _took(self, wait: Wait, task: object, value: Any) -> None:
        self._place().tell_later(Op.GOT, wait.number)

    async def statistics(self) -> SemaphoreStatistics:
        """Ask how it is at the moment.

        :raises anyio.BrokenResourceError: as :meth:`acquire`
        """
        return SemaphoreStatistics(**await self._statistics())

    def statistics_sync(self, timeout: float | None = None) -> SemaphoreStatistics:
        """:meth:`statistics` in a plain function: blocks the thread.

        :raises TimeoutError: if there was no answer in so many seconds
        """
        return SemaphoreStatistics(**self._statistics_sync(timeout))


class CapacityLimiter(_OwnTokens):
    """Bounds how many tasks and threads, of all processes, do something at once.

    A task or thread has one token at most, and releases it itself; all else raises
    :exc:`RuntimeError`, as with :class:`anyio.CapacityLimiter`.

    :param total_tokens: how many there are; :data:`math.inf` for no limit
    """

    _name = "limiter"

    def __init__(self, total_tokens: float) -> None:
        super().__init__(LimiterState(check_tokens(total_tokens)))

    def set_total_tokens(self, total_tokens: float) -> None:
        """Set how many tokens there are. Never waits, and takes none away from who has one.

        :param total_tokens: :data:`math.inf` for no limit
        :raises anyio.BrokenResourceError: as :meth:`acquire`
        """
        self._tell(Op.SET_TOTAL, body=[json_bytes(check_tokens(total_tokens))])

    async def statistics(self) -> CapacityLimiterStatistics:
        """Ask how it is at the moment.

        :raises anyio.BrokenResourceError: as :meth:`acquire`
        """
        return _limiter_statistics(**await self._statistics())

    def statistics_sync(self, timeout: float | None = None) -> CapacityLimiterStatistics:
        """:meth:`statistics` in a plain function: blocks the thread.

        :raises TimeoutError: if there was no answer in so many seconds
        """
        return _limiter_statistics(**self._statistics_sync(timeout))


def _limiter_statistics(borrowers: dict[str, int], **others: Any) -> CapacityLimiterStatistics:
    # JSON has no keys that are numbers.
    by_pid = {int(pid): tokens for pid, tokens in borrowers.items()}
    return CapacityLimiterStatistics(borrowers=by_pid, **others)
