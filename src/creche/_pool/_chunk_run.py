"""A chunk of a map in a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import CoroutineType
from typing import Any

from .._stop_request import StopRequested
from .._wire._messages import BEGUN_ITEMS, LAST
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
    """

    def __init__(
        self,
        connection: PoolConnection,
        caller: Caller,
        func: Callable[..., Any],
        star: bool,
        budget: float,
        items: Sequence[Any],
    ) -> None:
        self._connection = connection
        self._caller = caller
        self._shared = connection.shared
        self._func: Callable[[Any], Any] = func if not star else lambda item: func(*item)
        self._budget = budget
        self._count = len(items)
        self._unbegun = iter(items)
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
            over = self._is_over(now - begin)
            if self._errors or not self._send_together(self._values, over, now - last):
                # A function may give coroutines among other values: they cannot be pickled. To look
                # for them takes as long as a tiny item does, so it is only done here.
                self._await_from(0)
                now = clock()
                over = self._is_over(now - begin)
                self._send_with_errors(over, now - last)
            self._values, self._errors = [], {}
            last = now
        self._shared[BEGUN_ITEMS] = 0  # another number is of the chunk that runs

    def _is_over(self, seconds: float) -> bool:
        return self._done == self._count or seconds > self._budget or self._connection.out_of_memory

    def _run_until(self, deadline: float) -> float:
        """Run items, one at least, until there is a reason to answer; return what time it is."""
        clock, func, shared = time.perf_counter, self._func, self._shared
        values, done = self._values, self._done
        append = values.append
        last, block, look = clock(), 1, done + 1
        try:
            for item in self._unbegun:
                done += 1
                shared[BEGUN_ITEMS] = done
                append(func(item))
                if done < look:  # looking at the clock takes as long as a tiny item does
                    continue
                if type(values[-1]) is CoroutineType:
                    self._await_from(len(values) - block)
                now = clock()
                if now > deadline or self._errors:
                    break
                block = min(2 * block, self._max_block) if now - last < _SHORT else 1
                last, look = now, done + block
        except (SystemExit, StopRequested):
            raise
        except BaseException as error:
            # Told at once: a worker that dies does not take it with it.
            append(None)
            self._fail(len(values) - 1, error)
        self._done = done
        return clock()

    def _await_from(self, start: int) -> None:
        """Put the values of coroutines in their places."""
        for index, value in enumerate(self._values[start:], start):
            if type(value) is CoroutineType:
                self._max_block = 1  # from here on each is awaited before the next item begins
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

    def _send_with_errors(self, over: bool, seconds: float) -> None:
        """Answer where there are errors among the values, or what cannot be pickled."""
        values, errors = self._values, self._errors
        each = seconds / len(values)
        start = 0
        for index in sorted(errors):
            if index > start:
                self._send_values(values[start:index], False, each)
            start = index + 1
            last = LAST if over and start == len(values) else 0
            self._connection.send_exception(errors[index], last, each)
        if start < len(values):
            self._send_values(values[start:], over, each)

    def _send_values(self, values: list[Any], last: bool, each: float) -> None:
        """Answer for each on its own where there is one that cannot be pickled."""
        if not self._send_together(values, last, each * len(values)):
            for value in values[:-1]:
                self._send_together([value], False, each)
            self._send_together(values[-1:], last, each)

    def _send_together(self, values: list[Any], last: bool, seconds: float) -> bool:
        """Answer with one message; return whether that could be done."""
        return self._connection.send_values(values, LAST if last else 0, seconds)
