"""Plain functions in warm worker processes, with the signatures of ``anyio.to_process``.

Changing the import is the whole migration::

    from creche import to_process          # instead of: from anyio import to_process

    await to_process.run_sync(crunch, data)

What is better: a cancelled call is stopped politely first, large arguments and results go through
shared memory, and errors say what became of the worker.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.lowlevel

from ._errors import ProcessDied
from ._loops import current_loop, spawn
from ._pool._process_pool import ProcessPool, open_pool

__all__ = ["current_default_process_limiter", "run_sync"]

T = TypeVar("T")
PosArgsT = TypeVarTuple("PosArgsT")

_default_limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar(
    "_creche_default_process_limiter"
)
_default_pool: anyio.lowlevel.RunVar[ProcessPool] = anyio.lowlevel.RunVar("_creche_default_pool")


class BrokenWorkerError(ProcessDied, anyio.BrokenWorkerProcess):
    """The worker died while it ran the call. (An ``anyio.BrokenWorkerProcess``, too.)"""


async def run_sync(
    func: Callable[[Unpack[PosArgsT]], T],
    *args: *PosArgsT,
    cancellable: bool = False,
    limiter: anyio.CapacityLimiter | None = None,
) -> T:
    """Call ``func(*args)`` in a warm worker process; return its value or raise its error.

    The workers belong to a pool of the event loop's own, which is made on first use and ends with
    the event loop. One that has had nothing to do for 300 seconds ends. (An asyncio loop that is
    closed without its tasks having been cancelled, as ``asyncio.run`` does it, leaves them until
    then, or until the application ends.)

    Cancellation has no effect while the call runs, unless ``cancellable`` is true: then it stops
    the worker, politely first, and waits until it is gone.

    :param func: anything that can be called and pickled; an ``async`` function, too
    :param args: its positional arguments
    :param cancellable: whether the call can be cancelled while it runs
    :param limiter: bounds how many calls run at once. By default, all calls in an event loop share
        :func:`current_default_process_limiter`
    :raises anyio.BrokenWorkerProcess: if the worker died; it is a :exc:`creche.ProcessDied` as well
    :raises Exception: whatever ``func`` raises, and all else that :meth:`creche.ProcessPool.run`
        raises
    """
    async with current_default_process_limiter() if limiter is None else limiter:
        with anyio.CancelScope(shield=not cancellable):
            try:
                return await _pool().run(func, *args)
            except ProcessDied as died:
                raise _as_broken_worker(died) from died.__cause__
    raise AssertionError("nobody cancels that scope")


def current_default_process_limiter() -> anyio.CapacityLimiter:
    """Return the limiter that :func:`run_sync` uses in this event loop by default.

    It has as many tokens as there are CPUs. Set its ``total_tokens`` to change that for the event
    loop.
    """
    try:
        return _default_limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(os.cpu_count() or 2)
        _default_limiter.set(limiter)
        return limiter


def _pool() -> ProcessPool:
    try:
        return _default_pool.get()
    except LookupError:
        pool = open_pool(math.inf, name="to_process")  # as many workers as the limiters let in
        pool._open()

        async def stop_with_loop() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                await pool._stop()

        spawn(current_loop(), stop_with_loop)
        _default_pool.set(pool)
        return pool


def _as_broken_worker(died: ProcessDied) -> ProcessDied:
    """A ``ProcessDied`` that the function itself raised, with a process of its own, is another."""
    if type(died) is not ProcessDied or not died.name.startswith("to_process-"):
        return died
    return BrokenWorkerError(
        died.exitcode, died.signal, name=died.name, pid=died.pid, detail=died.detail
    )
