"""In which order another process sees what this one writes to shared memory.

Two processes that share memory without a lock rely on two orders. What was written first must be
seen first: data before the number that says that it is there. And who says that it is about to wait
must look once more *after* the other can see that it said so, as the other looks whether somebody
waits after it has written: or each may miss what the other wrote, and both wait for ever.

CPUs of the x86 family keep the first order, and no CPU keeps the second by itself. Python has no
operation for that, but it has locks, and taking one is such an operation in the CPU.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable

STORES_IN_ORDER = platform.machine().lower() in {"x86_64", "amd64", "x86", "i386", "i686"}
"""Whether other processes see what this one writes in the order in which it does, and the other way
round, without a fence."""


def make_fence() -> Callable[[], None]:
    """Make a function that sees to it that what its caller wrote before is seen by all, before the
    caller reads anything after; and, where there is need of that, keeps the order of all else.

    :return: for one thread: another one might give back the lock that this one has taken
    """
    lock = threading.Lock()
    acquire, release = lock.acquire, lock.release

    if STORES_IN_ORDER:

        def fence() -> None:
            acquire(False)  # an exception in between may have left it taken
            release()

    else:

        def fence() -> None:
            # Taking a lock keeps what comes after it, and giving it back what comes before: what is
            # before this release cannot change places with what is after the next acquire.
            acquire(False)
            release()
            acquire(False)
            release()

    return fence
