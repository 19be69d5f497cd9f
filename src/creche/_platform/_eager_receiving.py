"""Receiving what is expected soon without going to sleep for it.

A process that blocks takes 20 to 50 microseconds to wake, in a virtual machine above all, where a
CPU with nothing to do is given back. Whoever expects something soon looks for it again and again
before it blocks, and gives way to whoever else wants the CPU: warm calls take half as long. One
that has looked in vain three times expects nothing, until something comes that soon.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

T = TypeVar("T")

# Some systems have no such call, and schedule anew when somebody sleeps for no time.
_give_way: Callable[[], object] = getattr(os, "sched_yield", partial(time.sleep, 0))

_EXPECTED_WITHIN = 0.0002  # seconds
_TRIES_IN_VAIN = 3


class EagerReceiver:
    """Remembers whether what is received uses to come soon."""

    def __init__(self) -> None:
        self._in_vain = 0

    def receive(self, receive_now: Callable[[], T], receive: Callable[[], T]) -> T:
        """Receive something; block where nothing comes soon.

        :param receive_now: raises :exc:`BlockingIOError` where there is nothing
        :param receive: blocks until there is something
        """
        begin = time.perf_counter()
        while self._in_vain < _TRIES_IN_VAIN:
            try:
                received = receive_now()
            except BlockingIOError:
                if time.perf_counter() - begin > _EXPECTED_WITHIN:
                    self._in_vain += 1
                    break
                _give_way()
            else:
                self._in_vain = 0
                return received
        received = receive()
        if time.perf_counter() - begin < _EXPECTED_WITHIN:
            self._in_vain = 0
        return received
