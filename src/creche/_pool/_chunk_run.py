"""A chunk of a map in a worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import CoroutineType
from typing import Any

from .._stop_request import StopRequested
from .._wire._messages import BEGUN, LAST
from ._caller import Caller
from ._pool_connection import PoolConnection

# What a worker has worked on for so long, it sends.
_ANSWER_SECONDS = 0.01

# So many items run between two looks at the clock, if they take no longer than that.
_MAX_BLOCK = 8
_SHORT = 0.00005


class ChunkRun:
    """Runs one function on many items.

    Answers when all is done, or when :data:`_ANSWER_SECONDS` have passed, whatever comes first: a
    worker that dies takes little with it. What it has not begun after ``budget`` seconds, it gives
    back.

    :param star: whether an item is the arguments
    :param items: pickled as a whole
    """

    def __init__(
        self,
        connection: PoolConnection,
        caller: Caller,
        func: Callable[..., Any],
        star: bool,
        budget: float,
        items: list[Any],
    ) -> None:
        self._connection = connection
        self._caller = caller
        self._shared = connection.shared
        self._func: Callable[[Any], Any] = func if not star else lambda item: func(*item)
        self._budget = budget
        self._items = items
        self._values: list[Any] = []  # not yet told
        self._errors: dict[int, BaseException] = {}  # in place of some of them
        self._done = 0
        self._max_block = _MAX_BLOCK

    def run(self) -> None:
        clock = time.perf_counter
        begin = last = clock()
        over = False
        while not over:
            now = self._run_until(min(last + _ANSWER_SECONDS, begin + self._budget))
            over = (
                self._done == len(self._items)
                or now - begin > self._budget
                or self._connection.out_of_memory
            )
            self._answer(now - last, over)
            last = now
        self._shared[BEGUN] = 0  # another number is of the chunk that runs

    def _run_until(self, deadline: float) -> float:
        """Run items, one at least, until there is a reason to answer; return what time it is."""
        clock, func, shared = time.perf_counter, self._func, self._shared
        items, values, done = self._items, self._values, self._done
        append = values.append
        now, block = clock(), 1
        while True:
            last, start = now, len(values)
            try:
                for item in items[done : done + block]:
                    done += 1
                    shared[BEGUN] = done
                    append(func(item))
            except (SystemExit, StopRequested):
                raise
            except BaseException as error:
                append(None)
                self._fail(len(values) - 1, error)
            if type(values[-1]) is CoroutineType:
                self._await_from(start)
            now = clock()
            # An error is told at once: a worker that dies does not take it with it.
            if now > deadline or done == len(items) or self._errors:
                # Where the function has given some among other values.
                if CoroutineType in set(map(type, values)):
                    self._await_from(0)
                    now = clock()
                self._done = done
                return now
            # Looking at the clock takes as long as a tiny item does.
            block = min(2 * block, self._max_block) if now - last < _SHORT else 1

    def _await_from(self, start: int) -> None:
        """Put the values of coroutines in their places."""
        self._max_block = 1  # from here on each is awaited before the next item begins
        for index, value in enumerate(self._values[start:], start):
            if type(value) is CoroutineType:
                self._values[index] = None
                try:
                    self._values[index] = self._caller.await_value(value)
                except (SystemExit, StopRequested):
                    raise
                except BaseException as error:
                    self._fail(index, error)

    def _fail(self, index: int, error: BaseException) -> None:
        self._errors[index] = error
        self._connection.check_memory(error)

    def _answer(self, seconds: float, over: bool) -> None:
        values, errors = self._values, self._errors
        self._values, self._errors = [], {}
        each = seconds / max(1, len(values))
        start = 0
        for index in sorted(errors):
            if index > start:
                self._connection.send_values(values[start:index], 0, each * (index - start))
            start = index + 1
            last = LAST if over and start == len(values) else 0
            self._connection.send_exception(errors[index], last, each)
        if start < len(values):
            last = LAST if over else 0
            self._connection.send_values(values[start:], last, each * (len(values) - start))
