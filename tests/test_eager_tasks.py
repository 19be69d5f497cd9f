"""All of it in an event loop whose tasks begin to run before `create_task()` returns."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import anyio
import pytest
import stream_targets
import support
import talk_targets as targets
from backends import in_asyncio
from support import TIMEOUT, Announcements

import creche
from creche import (
    ProcessTimeout,
    create_channel,
    open_nursery,
    open_pool,
    open_stream,
    open_supervisor,
    run_in_process,
)

pytestmark = [
    pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12"),
    pytest.mark.anyio,
    in_asyncio,
]


@pytest.fixture(autouse=True)
async def eager_tasks(anyio_backend: str) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    factory = loop.get_task_factory()
    loop.set_task_factory(asyncio.eager_task_factory)
    yield
    loop.set_task_factory(factory)


async def test_calls() -> None:
    assert await run_in_process(support.double, 2) == 4
    with pytest.raises(ProcessTimeout):
        await run_in_process(support.wait_for_ever, timeout=0.1)
    async with open_pool(2) as pool:
        assert await pool.run(support.double, 2) == 4
        assert await pool.map(support.double, range(1000)) == list(range(0, 2000, 2))
        assert [value async for value in pool.map(support.double, range(3))] == [0, 2, 4]
    assert await creche.to_process.run_sync(support.double, 2) == 4


async def test_requests(announcements: Announcements) -> None:
    targets.noted.clear()
    async with open_pool(1) as pool:
        for run in (run_in_process, pool.run):
            for func in (targets.add_at_once, targets.give_async):
                args = (1, 2) if func is targets.add_at_once else (targets.add, 1, 2)
                assert await run(targets.run, func, *args) == 3
            assert await run(targets.run_sync, targets.add, 1, 2) == 3
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run, targets.wait_in_parent, announcements.path)
            assert await announcements.get() == "begun"
            tasks.cancel_scope.cancel()
    assert targets.noted == ["begun", "cancelled"]


async def test_streams_and_channels() -> None:
    async with open_stream(stream_targets.count, 100) as items:
        assert [item async for item in items] == list(range(100))
    send, receive = create_channel[int](2)
    async with send, receive, anyio.create_task_group() as tasks:
        tasks.start_soon(send.send, 1)
        with anyio.fail_after(TIMEOUT):
            assert await receive.receive() == 1
    async with creche.sync.Lock():
        pass


async def test_nursery_and_supervisor() -> None:
    async with open_nursery() as nursery:
        process = nursery.start_soon(support.double, 2)
        await nursery.start(support.started_then, support.wait_for_ever)
        assert await process == 4
        nursery.cancel_scope.cancel()
    async with open_supervisor() as supervisor:
        child = await supervisor.start(support.started_then, support.wait_for_ever, name="child")
        await supervisor.restart("child")
        await supervisor.roll("child")
        assert child.state is creche.ChildState.READY
