"""What the fixture and the marker ``creche_no_leaks`` do; imported when a test asks for them.

The plugin that pytest loads is the module ``pytest_creche``, which costs those nothing who do not
use it.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator

import pytest

from ._durations import check_duration
from ._leftovers import Inventory, mark_children
from ._runtime import runtime

__all__ = ["check_no_leaks"]


@contextlib.contextmanager
def check_no_leaks(timeout: float = 5.0) -> Iterator[None]:
    """Fail the test if the block leaves processes, threads, descriptors or segments behind.

    :param timeout: seconds in which what is ending may end: a thread that was told to, say
    :raises pytest.fail.Exception: if something is left, saying what
    :raises ValueError: if ``timeout`` is negative or NaN
    :raises TypeError: if it is no number
    """
    check_duration("timeout", timeout)
    runtime()  # which lasts as long as the application
    mark_children()
    before = Inventory.take()
    yield
    deadline, wait = time.monotonic() + timeout, 0.005
    now = Inventory.take()
    while left := now.beyond(before):
        if time.monotonic() > deadline:
            pytest.fail("left behind:\n" + "\n".join(f"  {text}" for text in left), pytrace=False)
        gc.collect()  # the traceback of a failed test keeps objects alive, and so do cycles
        time.sleep(wait)
        wait = min(2 * wait, 0.1)
        now = now.later()
