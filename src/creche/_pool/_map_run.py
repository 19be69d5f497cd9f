"""A map at work: it feeds chunks to its pool, and puts in order what comes back."""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from typing import Any

import anyio
import anyio.lowlevel

from .._ctrl_c import is_ctrl_c
from .._errors import ProcessClosedError
from .._instruments import instruments
from .._loops import Waiter, waiter_in
from .._shielded import shielded
from .._wire._messages import size_of
from .._wire._outcomes import Failure, Outcome, Value, cannot_pickle_call, outcome_of
from .._wire._payloads import Payload, TooHeavyError, dump_chunk
from ._call_engine import CallEngine, Stopping
from ._chunk_size import ChunkSize
from ._chunks import Chunk, Part
from ._deadlines import Deadlines
from ._map_input import MapInput
from ._map_options import MapOptions
from ._observing import announce, tell_outcome

# For each worker: chunks that wait or run; and those and such whose values are waiting, for one
# before them or for the consumer.
_RUNNING_CHUNKS = 3
_ALL_CHUNKS = 16

_MANY_WORKERS = 64  # of more, no more is thought to be busy with one map


class MapRun:
    """Everything in here runs in the event loop of the pool.

    :param star: whether an item is the arguments, not the argument
    """

    def __init__(
        self,
        engine: CallEngine,
        func: Callable[..., Any],
        iterables: tuple[Iterable[Any] | AsyncIterable[Any], ...],
        options: MapOptions,
    ) -> None:
        self.engine = engine
        self.timeout = options.timeout
        self.done = 0  # items that have ended
        self.over = False
        self._func = func
        self._star = len(iterables) > 1
        self._context = contextvars.copy_context()  # for instruments
        self._options = options
        fresh = engine.options.max_tasks_per_worker == 1  # each item has a process of its own
        size = 1 if fresh and options.chunksize is None else options.chunksize
        self._sizes = ChunkSize(size, engine.chunk_seconds)
        self._workers = int(min(engine.options.workers, _MANY_WORKERS))
        self._taken = 0  # from the input
        self._given_back: deque[tuple[int, Sequence[Any]]] = deque()  # by workers
        self._chunks: set[Chunk] = set()
        self._stopping: list[Stopping] = []  # because of the map
        self._parts: dict[int, Part] = {}  # that wait for one before them, by their first index
        self._next_index = 0
        self._ready: deque[Part] = deque()  # to be given out next
        self._unread = 0  # items in parts that were not given out
        self._given_out = 0  # items in the part that was
        self._deadlines: Deadlines[Chunk] | None = None
        if options.timeout is not None:
            self._deadlines = Deadlines(options.timeout, engine.call_later, self._time_out)
        self._error: BaseException | None = None
        self._waiter: Waiter | None = None
        self._input = MapInput(engine.loop, iterables, self._room, self._on_input)
        engine.maps.add(self)

    @property
    def total(self) -> int | None:
        return self._input.total

    # --- for the consumer -----------------------------------------------------------------------

    def check_free(self) -> None:
        """Check that nobody is waiting for values.

        :raises anyio.BusyResourceError: if somebody is
        """
        if self._waiter is not None:
            raise anyio.BusyResourceError("iterating over")

    async def next_values(self) -> list[Any]:
        """Return the values of the next items, at least one.

        :raises StopAsyncIteration: if there are none left
        """
        self._given_out = 0
        self._feed()
        if self._ready:
            await anyio.lowlevel.checkpoint()
        while not self._ready:
            if self._at_end:
                self.over = True
                error = self._error or self._input.error
                if error is not None:
                    self._error = self._input.error = None
                    raise error
                raise StopAsyncIteration
            self._waiter = waiter_in(self.engine.loop)
            try:
                await self._waiter
            finally:
                self._waiter = None
        part = self._ready.popleft()
        self._unread -= len(part)
        self._given_out = len(part)
        self._feed()
        return part.give_out(yields_errors=self._options.yields_errors)

    async def close(self) -> None:
        """Stop what runs; wait until it is gone. Shielded, within what the stop policy allows."""
        workers = self.abandon()

        async def wait_gone() -> None:
            await self._input.wait_stopped()
            for worker in workers:
                await worker.wait_gone()

        await shielded(wait_gone)

    def abandon(self) -> list[Stopping]:
        """Stop what runs; return the workers for which there is to wait."""
        self.over = True
        self._ready.clear()
        self._parts.clear()
        self._given_back.clear()
        self._input.stop()
        self._call_off_chunks()
        self._wake()
        return list(self._stopping)

    def _call_off_chunks(self) -> None:
        chunks, self._chunks = self._chunks, set()
        for chunk in chunks:
            worker = self.engine.call_off(chunk)
            if worker is not None:
                self._stopping.append(worker)

    @property
    def _at_end(self) -> bool:
        if self.over or (self._error is not None and not self._ready):
            return True
        busy = self._chunks or self._given_back or self._parts
        return self._input.exhausted and not busy

    def pool_closed(self) -> None:
        """Fail, if nothing else would tell the map: it waits for its input."""
        if self._waiter is not None and not self._chunks:
            self._feed()
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and (self._ready or self._at_end):
            self._waiter.wake_soon()

    # --- the input ------------------------------------------------------------------------------

    def _room(self) -> int:
        """How many more items may be taken from the input."""
        if self._options.in_flight is not None:
            running = sum(chunk.left for chunk in self._chunks)
            held = running + self._input.buffered + self._unread + self._given_out
            return self._options.in_flight - held
        return self._chunks_left() * self._sizes.next() - self._input.buffered

    def _chunks_left(self) -> int:
        chunks = len(self._chunks) + len(self._ready) + len(self._parts)
        return self._workers * _ALL_CHUNKS - chunks

    def _on_input(self) -> None:
        self._feed()
        self._wake()

    def _feed(self) -> None:
        """Make chunks, as long as there is room for their values and something to make them of."""
        if self.over or self._error is not None:
            return
        if self.engine.closed:
            if not self._given_back and not self._input.take(1) and self._input.exhausted:
                return  # there is nothing to be fed
            name = self.engine.options.name
            self._error = ProcessClosedError(f"pool {name!r} was closed before the map had ended")
            self._input.stop()
            return
        while len(self._chunks) < self._workers * _RUNNING_CHUNKS:
            if self._given_back:
                start, items = self._take_given_back()
            else:
                size = self._next_size()
                start, items = self._taken, self._input.take(size) if size > 0 else []
                self._taken += len(items)
            if not items:
                break
            self._submit(Chunk(self, start, items))
        self._input.tell_room()

    def _take_given_back(self) -> tuple[int, Sequence[Any]]:
        start, items = self._given_back.popleft()
        size = self._sizes.next()
        if len(items) > size:
            self._given_back.appendleft((start + size, items[size:]))
            items = items[:size]
        return start, items

    def _next_size(self) -> int:
        size = self._sizes.next()
        if self._options.in_flight is None:
            return size if self._chunks_left() > 0 else 0
        # Some for each worker, and what is in the buffer is counted already.
        share = -(-self._options.in_flight // (self._workers * _RUNNING_CHUNKS))
        return min(size, share, self._room() + self._input.buffered)

    # --- chunks ---------------------------------------------------------------------------------

    def _submit(self, chunk: Chunk) -> None:
        self._chunks.add(chunk)
        self.engine.expect(chunk)
        options = self.engine.options
        func = self._announced(chunk) if instruments.of_calls else self._func
        call = (func, self._star, self._sizes.budget, chunk.items)

        def pickle(*, light: bool = False) -> Payload:
            return dump_chunk(func, chunk.items, call, options.serializer, light=light)

        try:
            payload = pickle(light=True)
        except TooHeavyError:
            self.engine.jobs.run(chunk, lambda: outcome_of(pickle), self._on_pickled_in_thread)
        except BaseException as error:
            if is_ctrl_c(error):
                self.break_off(error)
            else:
                self._on_pickled(chunk, Failure(error))
        else:
            self._on_pickled(chunk, Value(payload))

    def _announced(self, chunk: Chunk) -> Callable[..., Any]:
        """Tell instruments of a chunk; return what is to be called for its function."""
        chunk.observed = self.engine.observe(self._func, len(chunk.items))
        return self._context.run(announce, chunk.observed, self._func)

    def _on_pickled_in_thread(self, chunk: Chunk, pickled: Outcome) -> None:
        self._on_pickled(chunk, pickled)
        self._feed()  # its items, one by one, if they could not be: no answer will lead to that
        self._wake()

    def _on_pickled(self, chunk: Chunk, pickled: Outcome) -> None:
        if isinstance(pickled, Failure):
            self._not_pickled(chunk, pickled.exception)
            return
        chunk.payload = pickled.value
        self._sizes.sent(len(chunk.items), sum(map(size_of, chunk.payload.sections)))
        chunk.seconds = self._sizes.seconds(len(chunk.items))
        self.engine.submit(chunk)

    def _not_pickled(self, chunk: Chunk, error: BaseException) -> None:
        """Something in a chunk cannot be pickled: find out what, and send the rest."""
        self._chunks.discard(chunk)
        self.engine.forget(chunk)
        if chunk.observed is not None:
            tell_outcome(chunk.observed, Failure(error))
        if len(chunk.items) > 1:
            self.give_back(chunk.start, chunk.items, alone=True)
            return
        args = tuple(chunk.items[0]) if self._star else (chunk.items[0],)
        failure = cannot_pickle_call(self.engine.options.name, self._func, args, error)
        failure.__cause__ = error
        self.add_part(Part(chunk.start, chunk.items, None, failure), 0.0)

    def chunk_sent(self, chunk: Chunk) -> None:
        if self._deadlines is not None:
            self._deadlines.add(chunk)

    def _time_out(self, chunk: Chunk) -> None:
        worker = self.engine.call_off(chunk)
        if worker is None:
            self._timed_out(chunk)
            return
        self._stopping.append(worker)

        def on_gone() -> None:
            self._stopping.remove(worker)
            self._timed_out(chunk)

        worker.tell_gone(on_gone)

    def _timed_out(self, chunk: Chunk) -> None:
        if chunk in self._chunks:  # or its answer was on its way, or the map is over
            chunk.time_out()

    def chunk_died(self) -> None:
        self._sizes.worker_died()

    def chunk_ended(self, chunk: Chunk) -> None:
        self._forget(chunk)
        self._feed()
        self._wake()

    def _forget(self, chunk: Chunk) -> None:
        self._chunks.discard(chunk)
        self.engine.forget(chunk)
        if self._deadlines is not None:
            self._deadlines.discard(chunk)

    def give_back(self, start: int, items: Sequence[Any], *, alone: bool) -> None:
        if alone:
            self._given_back.extend((start + i, [item]) for i, item in enumerate(items))
        else:
            self._given_back.append((start, items))

    def break_off(self, error: BaseException) -> None:
        if not self.over and self._error is None:
            self._error = error
            self._call_off_chunks()
            self._input.stop()
            self._wake()

    def add_part(self, part: Part, seconds: float) -> None:
        if self.over:
            return
        number = len(part)
        self.done += number
        self._unread += number
        if part.error is None:
            self.engine.scheduler.count(done=number)
        else:
            self.engine.scheduler.count(failed=number)
        if seconds:
            self._sizes.answered(number, seconds)
        if not self._options.ordered:
            self._ready.append(part)
        else:
            self._parts[part.start] = part
            while (following := self._parts.pop(self._next_index, None)) is not None:
                self._ready.append(following)
                self._next_index += len(following)
        if self._options.on_progress is not None:
            try:
                self._options.on_progress(self.done, self.total)
            except BaseException as error:
                self.break_off(error)
        self._wake()
