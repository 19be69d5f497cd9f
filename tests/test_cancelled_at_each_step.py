"""A task is cancelled at one of its steps after another, whatever it does with creche.

A step goes from one moment where the task sleeps to the next. Cancellation comes when it has just
gone to sleep, or when it has been woken, but does not run yet. That nothing is left over is seen to
by the fixture ``nothing_left_over``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import anyio
import pytest
import support
import sweep_targets as targets
import trio
from backends import in_asyncio
from stream_targets import blocks
from support import TIMEOUT

import creche
from creche import (
    AsyncProcess,
    create_channel,
    open_nursery,
    open_pool,
    open_stream,
    open_supervisor,
    run_in_process,
)
from creche._loops import _AsyncioWaiter

pytestmark = pytest.mark.anyio

Use = Callable[[], Coroutine[Any, Any, None]]
When = Literal["asleep", "awake"]

# Steps at which a task is cancelled: all of them, where there are no more.
STEPS = 25

MEBIBYTE = 1024**2


# --- what is cancelled ----------------------------------------------------------------------------


async def calls() -> None:
    async with open_pool(1) as pool:
        for number in range(3):
            assert await pool.run(support.double, number) == 2 * number
        assert await pool.run(len, bytes(3 * MEBIBYTE)) == 3 * MEBIBYTE


async def maps() -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(10):
            await anyio.sleep(0)
            yield number

    async with open_pool(2) as pool:
        assert await pool.map(support.double, [1, 2, 3]) == [2, 4, 6]
        async for _ in pool.map(support.double, numbers()):
            pass


async def processes() -> None:
    assert await run_in_process(support.double, 2) == 4
    async with AsyncProcess(target=support.double, args=(2,)) as process:
        assert await process == 4


async def nurseries() -> None:
    async with open_nursery() as nursery:
        nursery.start_soon(support.double, 2)
        assert await nursery.start(targets.start, 5) == 5


async def requests() -> None:
    assert await run_in_process(targets.ask_parent, 3) == [0, 1, 2, 300_000]


async def progress_and_output() -> None:
    process = AsyncProcess(target=targets.report_and_print, args=(3,), stdout="stream", logs=True)
    async with process:
        assert process.stdout is not None
        assert [line async for line in process.stdout] == ["0", "1", "2"]
        async for _ in process.progress:
            pass


async def streams() -> None:
    async with open_stream(range, 100) as items:
        assert [item async for item in items] == list(range(100))
    async with open_stream(blocks, 3 * [3 * MEBIBYTE]) as items:
        assert [len(item) async for item in items] == 3 * [3 * MEBIBYTE]


async def channels() -> None:
    send, receive = create_channel[Any](2)
    items = [1, bytes(3 * MEBIBYTE), 2, 3, bytes(200_000)]
    async with send, receive, anyio.create_task_group() as tasks:
        tasks.start_soon(targets.send_all, send, items)
        for item in items:
            assert await receive.receive() == item


async def channels_to_processes() -> None:
    send, receive = create_channel[int](2)
    async with open_nursery() as nursery, receive:
        nursery.start_soon(targets.send_all_sync, send, range(20))
        assert [number async for number in receive] == list(range(20))


async def synchronisation() -> None:
    lock, semaphore, limiter = (
        creche.sync.Lock(),
        creche.sync.Semaphore(2),
        creche.sync.CapacityLimiter(2),
    )
    event, barrier, queue = creche.sync.Event(), creche.sync.Barrier(2), creche.sync.Queue[int](3)

    async def contend() -> None:
        async with lock, semaphore, limiter:
            await anyio.sleep(0)

    try:
        async with lock, semaphore, limiter:
            await queue.put(1)
            assert await queue.get() == 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(event.wait)
            tasks.start_soon(contend)
            tasks.start_soon(contend)
            await contend()
            event.set()
            await event.wait()
            tasks.start_soon(barrier.wait)
            await barrier.wait()
    finally:
        with anyio.CancelScope(shield=True):
            await check_nothing_is_held(lock, semaphore, limiter)


async def check_nothing_is_held(
    lock: creche.sync.Lock,
    semaphore: creche.sync.Semaphore,
    limiter: creche.sync.CapacityLimiter,
) -> None:
    lock_statistics = await lock.statistics()
    assert not lock_statistics.locked
    assert lock_statistics.tasks_waiting == 0
    assert (await limiter.statistics()).borrowed_tokens == 0
    for _ in range(2):
        await semaphore.acquire_nowait()


async def supervisors() -> None:
    async with open_supervisor() as supervisor:
        await supervisor.start(support.wait_for_ever, name="child", ready=False)
        await supervisor.restart("child")
        await supervisor.remove("child")
        supervisor.cancel_scope.cancel()


USES = [
    calls,
    maps,
    processes,
    nurseries,
    requests,
    progress_and_output,
    streams,
    channels,
    channels_to_processes,
    synchronisation,
    supervisors,
]


# --- cancelling -----------------------------------------------------------------------------------


class Steps:
    """Awaits ``use()``, and calls ``strike`` at its steps from number ``first`` to ``last``."""

    def __init__(
        self, use: Use, strike: Callable[[], object], first: int, last: int, when: When
    ) -> None:
        self.count = 0
        self.armed = False
        self._use = use
        self._strike = strike
        self._first = first
        self._last = last
        self._when = when

    def strike_if_armed(self) -> None:
        if self.armed:
            self.armed = False
            self._strike()

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._use().__await__()
        step: Callable[[Any], Any] = steps.send
        value = None
        while True:
            try:
                slept_for = step(value)
            except StopIteration:
                return
            self.count += 1
            if self._first <= self.count <= self._last:
                if self._when == "asleep":
                    self._strike()
                else:
                    self._arm(slept_for)
            try:
                value = yield slept_for
                step = steps.send
            except BaseException as error:
                value, step = error, steps.throw

    def _arm(self, slept_for: Any) -> None:
        self.armed = True
        if isinstance(slept_for, asyncio.Future):
            slept_for.add_done_callback(lambda _: self.strike_if_armed())
        elif isinstance(slept_for, _AsyncioWaiter):
            _struck_when_woken[slept_for] = self.strike_if_armed


_struck_when_woken: dict[_AsyncioWaiter, Callable[[], None]] = {}


@pytest.fixture(autouse=True)
def strikes_at_waking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a waiter resumes its task, or after it has had the event loop do so."""
    wake, wake_soon = _AsyncioWaiter.wake, _AsyncioWaiter.wake_soon

    def strike(waiter: _AsyncioWaiter) -> None:
        _struck_when_woken.pop(waiter, lambda: None)()

    def strike_and_wake(waiter: _AsyncioWaiter) -> None:
        strike(waiter)
        wake(waiter)

    def wake_soon_and_strike(waiter: _AsyncioWaiter) -> None:
        wake_soon(waiter)
        strike(waiter)

    monkeypatch.setattr(_AsyncioWaiter, "wake", strike_and_wake)
    monkeypatch.setattr(_AsyncioWaiter, "wake_soon", wake_soon_and_strike)


async def run_in_scope(use: Use, first: int = 0, when: When = "asleep") -> int:
    """Use creche in a scope that is cancelled at step ``first``; return the number of steps."""
    with anyio.fail_after(TIMEOUT), anyio.CancelScope() as scope:
        steps = Steps(use, scope.cancel, first, first, when)
        with _telling_when_woken(steps):
            await steps
    return steps.count


@contextmanager
def _telling_when_woken(steps: Steps) -> Iterator[None]:
    """Under Trio; where asyncio is the loop, ``Steps`` asks what its task sleeps for."""
    if asyncio._get_running_loop() is not None:
        yield
        return
    task = trio.lowlevel.current_task()

    class StrikeWhenWoken(trio.abc.Instrument):
        # Not in task_scheduled(), where whoever wakes the task is in the middle of something.
        def before_task_step(self, woken: trio.lowlevel.Task) -> None:
            if woken is task:
                steps.strike_if_armed()

    instrument = StrikeWhenWoken()
    trio.lowlevel.add_instrument(instrument)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(instrument)


async def run_in_task(use: Use, first: int, last: int, when: When) -> None:
    """Do that in a task that is cancelled by asyncio's own means, which no scope shields from."""

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        await Steps(use, task.cancel, first, last, when)

    task = asyncio.create_task(run())
    with anyio.fail_after(TIMEOUT):
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def some_of(count: int) -> list[int]:
    return sorted({1 + round(i * (count - 1) / (STEPS - 1)) for i in range(STEPS)})


@pytest.mark.parametrize("when", ["asleep", "awake"])
@pytest.mark.parametrize("use", USES)
async def test_scope(use: Use, when: When) -> None:
    for step in some_of(await run_in_scope(use)):
        await run_in_scope(use, step, when)
    await run_in_scope(use)


@in_asyncio
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("when", ["asleep", "awake"])
@pytest.mark.parametrize("use", USES)
async def test_task(anyio_backend: str, use: Use, when: When, times: int) -> None:
    """Once, and again when it cleans up."""
    for step in some_of(await run_in_scope(use)):
        await run_in_task(use, step, step + times - 1, when)
    await run_in_scope(use)
