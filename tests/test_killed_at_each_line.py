"""A child is killed at one line of creche's code after another, whatever it does with creche.

Everybody else goes on, and nobody waits for ever. That nothing is left over is seen to by the
fixture ``nothing_left_over``.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import channel_targets
import pytest
import support
import sweep_targets as targets
from support import TIMEOUT

from creche import (
    AsyncProcess,
    ProcessDied,
    create_channel,
    create_duplex_channel,
    open_pool,
    open_stream,
    sync,
)

pytestmark = pytest.mark.anyio

# Lines at which it is killed, which are spread over all of them.
LINES = 12

NEVER = 0

MEBIBYTE = 1024**2


async def was_killed(process: AsyncProcess[Any]) -> bool:
    try:
        await process
    except ProcessDied as error:
        return error.signal == signal.SIGKILL
    return False


async def produces(line: int, path: str) -> bool:
    """The others' items all come, and those of the killed one up to where it was killed."""
    send, receive = create_channel[Any](3)
    items = [0, 1, bytes(2 * MEBIBYTE), *range(3, 10)]
    killed = AsyncProcess(
        target=targets.killed_at, args=(line, path, targets.send_all_sync, send.clone(), items)
    )
    other = AsyncProcess(target=targets.send_all_sync, args=(send, range(100, 120)))
    async with receive, killed, other:
        received = [item if isinstance(item, int) else 2 async for item in receive]
    assert [item for item in received if item >= 100] == list(range(100, 120))
    of_killed = [item for item in received if item < 100]
    assert of_killed == list(range(len(of_killed)))
    return await was_killed(killed) or len(of_killed) < len(items)


async def consumes(line: int, path: str) -> bool:
    """It takes along one item at most, and one that it was passing on."""
    send, to_consumers = create_channel[Any](3)
    from_consumers, receive = create_channel[Any](3)
    killed = AsyncProcess(
        target=targets.killed_at,
        args=(line, path, channel_targets.forward, to_consumers.clone(), from_consumers.clone()),
    )
    other = AsyncProcess(target=channel_targets.forward, args=(to_consumers, from_consumers))
    async with receive, killed, other, anyio.create_task_group() as tasks:
        tasks.start_soon(targets.send_all_and_close, send, range(30))
        received = [item async for item in receive]
    assert len(set(received)) == len(received)
    assert len(received) >= 30 - 2
    return await was_killed(killed) or len(received) < 30


async def converses(line: int, path: str) -> bool:
    here, there = create_duplex_channel[int, int](2)
    killed = AsyncProcess(
        target=targets.killed_at, args=(line, path, channel_targets.double_all, there)
    )
    answers = []
    async with killed, here:
        try:
            for number in range(10):
                await here.send(number)
                answers.append(await here.receive())
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass
    assert answers == [2 * number for number in range(len(answers))]
    return await was_killed(killed) or len(answers) < 10


async def synchronises(line: int, path: str) -> bool:
    """What it held is free, and the other process has not noticed."""
    lock, semaphore, limiter = sync.Lock(), sync.Semaphore(1), sync.CapacityLimiter(1)
    queue, event = sync.Queue[int](3), sync.Event()
    arguments = (lock, semaphore, limiter, queue, event)
    killed = AsyncProcess(target=targets.killed_at, args=(line, path, targets.use_all, *arguments))
    other = AsyncProcess(target=targets.use_all, args=arguments)
    async with killed, other:
        await other
    async with lock, semaphore, limiter:
        pass
    await event.wait()
    while (await queue.statistics()).qsize:
        await queue.get()
    await queue.put(5)
    assert await queue.get() == 5
    return await was_killed(killed)


async def asks(line: int, path: str) -> bool:
    killed = AsyncProcess(
        target=targets.killed_at, args=(line, path, targets.ask_parent, 3), logs=True
    )
    async with killed:
        async for _ in killed.progress:
            pass
    return await was_killed(killed)


async def asks_in_a_task(line: int, path: str) -> bool:
    async with AsyncProcess(
        target=targets.killed_at_async, args=(line, path, targets.ask_parent_async, 3)
    ) as killed:
        pass
    return await was_killed(killed)


async def prints(line: int, path: str) -> bool:
    arguments = (line, path, targets.report_and_print, 5)
    async with AsyncProcess(
        target=targets.killed_at, args=arguments, stdout="stream", logs=True
    ) as killed:
        assert killed.stdout is not None
        lines = [line async for line in killed.stdout]
    assert lines == [str(number) for number in range(len(lines))]
    return await was_killed(killed) or len(lines) < 5


async def generates(line: int, path: str) -> bool:
    sizes = [0, 10, 200_000, 2 * MEBIBYTE, 10]
    died = False
    received = []
    async with open_stream(targets.generate_until_killed, line, path, sizes) as items:
        try:
            async for item in items:
                received.append(len(item))  # noqa: PERF401 # what has come before it died counts
        except ProcessDied:
            died = True
    assert received == sizes[: len(received)]
    return died or len(received) < len(sizes)


async def works(line: int, path: str) -> bool:
    """In a pool, which replaces it."""
    died = False
    async with open_pool(1) as pool:
        try:
            assert await pool.run(targets.killed_at, line, path, support.double, 2) == 4
            assert await pool.run(len, bytes(2 * MEBIBYTE)) == 2 * MEBIBYTE
            assert len(await pool.run(bytes, 2 * MEBIBYTE)) == 2 * MEBIBYTE
            assert await pool.map(support.double, [1, 2, 3]) == [2, 4, 6]
        except ProcessDied:
            died = True
            assert await pool.run(support.double, 2) == 4
    return died


@pytest.mark.parametrize(
    "use",
    [
        produces,
        consumes,
        converses,
        synchronises,
        asks,
        asks_in_a_task,
        prints,
        generates,
        works,
    ],
)
async def test_child(use: Callable[[int, str], Coroutine[Any, Any, bool]], tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with anyio.fail_after(2 * TIMEOUT):
        assert not await use(NEVER, str(path))
        lines = int(path.read_text())
        deaths = [await use(1 + i * (lines - 1) // LINES, str(path)) for i in range(LINES)]
    # It does not always come as far: there is less to do where nobody had to wait.
    assert deaths.count(True) > 1
