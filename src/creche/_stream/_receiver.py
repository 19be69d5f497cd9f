"""The parent's end of a stream: takes items out of the ring, in the event loop."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from pickle import loads
from typing import Any

from .._loops import EventLoop, Waiter, post, waiter_in
from .._pool._thread_jobs import ThreadJobs
from .._wire._framing import BadFrameError
from .._wire._outcomes import Failure, Outcome, Value
from ._link import StreamLink
from ._parcels import Parcel, load_whole
from ._ring import HEAVY, MORE, PLAIN, TABLE, BadRingError, RingReader

# Small items are unpickled so many at a time, which takes a fraction of a millisecond.
_BATCH_ITEMS = 128
_BATCH_BYTES = 32 * 1024

# A record, however large it is.
_ONE = 1


class Receiver:
    """Everything in here runs in the event loop of the stream, and returns at once.

    Small items are unpickled a batch at a time. The child is told of each that is handed out.

    :param ahead: how many items may have been sent and not handed out
    :param cannot_unpickle: makes the error of an item that could not be unpickled
    :param on_garbage: called where the child has written what is no item
    """

    def __init__(
        self,
        loop: EventLoop,
        link: StreamLink,
        jobs: ThreadJobs,
        ahead: int,
        cannot_unpickle: Callable[[BaseException], BaseException],
        on_garbage: Callable[[], object],
    ) -> None:
        self.values: Iterator[Any] = iter(())
        """What is unpickled, and to be handed out next; see :attr:`take`."""
        self.garbage: Exception | None = None
        """Why nothing more can be read."""
        self._loop = loop
        self._link = link
        self._jobs = jobs
        self._cannot_unpickle = cannot_unpickle
        self._on_garbage = on_garbage
        self._half = ahead // 2
        self._reader = RingReader(link.memory.bytes, ahead, link.doorbell.ring)
        self.take = self._reader.take
        """To be called for each item that is handed out, and :meth:`look_soon` if nobody looks."""
        self.looking = False
        """Whether somebody will look soon whether the child waits for items to be handed out."""
        self._first_look = self._last_look = 0  # how many were allowed then
        self._outcome: Outcome | None = None  # of the item after these values
        self._parcel: Parcel | None = None  # that has not all come, or is being unpickled
        self._unpickling = False
        self._waiter: Waiter | None = None
        self._stop_listening = link.doorbell.listen(self.wake)
        self._closed = False

    @property
    def empty(self) -> bool:
        """Whether nothing more is to be read, or being unpickled."""
        return self.garbage is not None or (not self._unpickling and self._reader.empty)

    @property
    def cut_off(self) -> bool:
        """Whether what came last is the beginning of something."""
        return self._parcel is not None

    @property
    def waits(self) -> bool:
        """Whether there is nothing to :meth:`take_in` before it is woken."""
        return self._unpickling or self.garbage is not None or self._reader.empty

    def next_outcome(self) -> Outcome | None:
        """Hand out what is there: an item, or why there is none."""
        for value in self.values:
            outcome: Outcome = Value(value)
            break
        else:
            if self._outcome is None:
                return None
            outcome, self._outcome = self._outcome, None
        self.take()
        if not self.looking:
            self.look_soon()
        return outcome

    def take_in(self) -> bool:
        """Take in some of what is there; return whether there is something to hand out.

        To be called when everything was handed out.
        """
        if self._unpickling or self.garbage is not None:
            return False
        values: list[Any] = []
        try:
            if self._parcel is None:
                self._reader.read_plain(loads, values, _BATCH_ITEMS, _BATCH_BYTES)
            if not values:
                self._take_one(values)
        except (BadRingError, BadFrameError) as error:
            self._let_go(error)
            self.garbage = error
            self._parcel = None
            self._on_garbage()
        except BaseException as error:  # an object that raises SystemExit while it is made, say
            self._fail(error)
        self.values = iter(values)
        return bool(values) or self._outcome is not None

    async def wait(self, go_on: Callable[[], bool]) -> None:
        """Wait until something comes, or :meth:`wake` is called.

        :param go_on: whether there is no need to wait
        """
        waiter = waiter_in(self._loop)
        if not self._unpickling:
            self._reader.about_to_wait()
        if not self.waits or self._outcome is not None or go_on():
            return
        self._waiter = waiter
        try:
            await waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Have the task that waits look at things again."""
        if self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            waiter.wake()

    def look_soon(self) -> None:
        """Look when the event loop turns whether the child waits for items to be handed out."""
        self.looking = True
        self._first_look = self._last_look = -1
        post(self._loop, self._look)

    def _look(self) -> None:
        """Wake the child when half of the items were handed out, or no more are just now.

        Waking it for each of them would take longer than they do.
        """
        if self._closed or not self._reader.writer_awaits_turn():
            self.looking = False
            return
        allowed = self._reader.allowed
        if self._first_look < 0:
            self._first_look = allowed
        if allowed == self._last_look or allowed - self._first_look >= self._half:
            self._reader.give_turn()
            self.looking = False
        else:
            self._last_look = allowed
            post(self._loop, self._look)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.values = iter(())
            self._outcome = self._parcel = None
            self._jobs.abandon_all()
            self._stop_listening()
            self._reader.close()
            self._link.close()

    def _take_one(self, values: list[Any]) -> None:
        """Take in a record of any kind."""
        records = self._reader.records(_ONE)
        try:
            for kind, record in records:
                try:
                    if kind == PLAIN and self._parcel is None:
                        values.append(loads(record))
                    else:
                        self._take_large(kind, record)
                finally:
                    with contextlib.suppress(BufferError):
                        record.release()  # or the memory could not be closed
        finally:
            records.close()

    def _take_large(self, kind: int, record: memoryview) -> None:
        parcel = self._parcel
        more, heavy = kind & MORE, kind & HEAVY
        if kind & ~(MORE | HEAVY) != TABLE:
            raise BadFrameError(f"a record of kind {kind:#x}")
        if parcel is None and not more and not heavy:
            self._outcome = Value(load_whole(record))
            return
        if parcel is None:
            parcel = self._parcel = Parcel(record)
        else:
            parcel.add(record)
        if more:
            return
        if not parcel.complete:
            raise BadFrameError("an item that ends too early")
        self._unpickling = True
        self._jobs.run(parcel, lambda: self._load(parcel), self._on_loaded)

    def _load(self, parcel: Parcel) -> Outcome:
        """Unpickle an item in a thread."""
        try:
            return Value(parcel.load())
        except BaseException as error:
            return Failure(self._cannot_unpickle(error))

    def _on_loaded(self, _parcel: Parcel, outcome: Outcome) -> None:
        self._unpickling = False
        self._parcel = None
        self._outcome = outcome
        self.wake()

    def _fail(self, error: BaseException) -> None:
        self._let_go(error)
        self._outcome = Failure(self._cannot_unpickle(error))

    def _let_go(self, error: BaseException) -> None:
        """Have the traceback of an error keep no part of the memory, which is to be closed."""
        traceback.clear_frames(error.__traceback__)
        if error.__cause__ is not None:
            traceback.clear_frames(error.__cause__.__traceback__)
