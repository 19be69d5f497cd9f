"""What type checkers make of the public interface. They check this file; nothing runs it."""

from __future__ import annotations

import contextvars
import logging
import multiprocessing
import pickle
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal, assert_type

from anyio.abc import ObjectReceiveStream

import creche
import creche.context
from creche import sync
from creche.tracing import ProcessTracing, trace_processes


def halve(number: int) -> float:
    return number / 2


async def halve_async(number: int) -> float:
    return number / 2


def no_value() -> None: ...


@creche.in_process()
def decorated(number: int, *, name: str = "") -> str:
    return name * number


@creche.in_process(timeout=1)
async def decorated_async(number: int) -> list[int]:
    return [number]


async def check_run_in_process() -> None:
    assert_type(await creche.run_in_process(halve, 1), float)
    assert_type(await creche.run_in_process(halve_async, 1, timeout=5), float)
    assert_type(await creche.run_in_process(sum, [1, 2]), int)
    await creche.run_in_process(halve, "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await creche.run_in_process(halve)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    await creche.run_in_process(halve, 1, 2)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]


async def check_in_process() -> None:
    assert_type(await decorated(1, name="x"), str)
    assert_type(await decorated_async(1), list[int])
    await decorated("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await decorated(1, nam="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def check_process() -> None:
    process = creche.AsyncProcess(target=halve, args=(1,))
    assert_type(process, creche.AsyncProcess[float])
    assert_type(await process, float)
    assert_type(await process.result(), float)
    assert_type(process.return_value, float)
    assert_type(await process.join(), int | None)
    assert_type(creche.AsyncProcess(target=halve_async, args=(1,)), creche.AsyncProcess[float])
    assert_type(creche.AsyncProcess.wrap(multiprocessing.Process()), creche.AsyncProcess[None])
    async with process as entered:
        assert_type(entered, creche.AsyncProcess[float])


async def check_nursery() -> None:
    async with creche.open_nursery() as nursery:
        assert_type(nursery.start_soon(halve, 1), creche.AsyncProcess[float])
        assert_type(nursery.start_soon(halve_async, 1, name="x"), creche.AsyncProcess[float])
        nursery.start_soon(halve, "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert_type(await nursery.start(no_value), Any)
        for process in nursery.processes:
            assert_type(process, creche.AsyncProcess[Any])


async def check_pool() -> None:
    pool = creche.open_pool(4, initializer=no_value, serializer=pickle)
    assert_type(pool, creche.ProcessPool)
    async with pool as entered:
        assert_type(entered, creche.ProcessPool)
    assert_type(await pool.run(halve, 1), float)
    assert_type(await pool.run(halve_async, 1, timeout=5), float)
    assert_type(await pool.run(sum, [1, 2]), int)
    assert_type(await pool.run(no_value), None)
    await pool.run(halve, "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await pool.run(halve)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    await pool.run(halve, 1, 2)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    assert_type(pool.statistics(), creche.PoolStatistics)
    assert_type(pool.statistics().workers[0], creche.WorkerStatistics)
    creche.open_pool(serializer=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def endless() -> AsyncIterator[int]:
    yield 1


def add(left: int, right: int) -> float:
    return left + right


async def check_map(pool: creche.ProcessPool) -> None:
    assert_type(pool.map(halve, [1, 2]), creche.ProcessMap[float])
    assert_type(pool.map(halve_async, [1, 2]), creche.ProcessMap[float])
    assert_type(pool.map(halve, endless(), ordered=False, chunksize=3), creche.ProcessMap[float])
    assert_type(pool.map(halve_async, endless(), on_error="raise"), creche.ProcessMap[float])
    assert_type(pool.map(add, [1], endless(), in_flight=5), creche.ProcessMap[float])
    assert_type(
        pool.map(halve, [1], on_error="yield"), creche.ProcessMap[creche.ItemOutcome[float]]
    )
    assert_type(
        pool.map(halve_async, endless(), on_error="yield", timeout=1.5),
        creche.ProcessMap[creche.ItemOutcome[float]],
    )
    assert_type(await pool.map(halve, [1]), list[float])
    assert_type(await pool.map(halve_async, [1]), list[float])
    async for number in pool.map(halve, [1]):
        assert_type(number, float)
    async for number in pool.map(halve_async, [1]):
        assert_type(number, float)
    async with pool.map(halve, [1], on_error="yield") as outcomes:
        async for outcome in outcomes:
            assert_type(outcome, creche.ItemOutcome[float])
            assert_type(outcome.value, float)
            assert_type(outcome.exception, BaseException | None)
            assert_type(outcome.index, int)
            assert_type(outcome.item, object)
        assert_type(outcomes.total, int | None)
        assert_type(outcomes.done, int)
    pool.map(halve, 5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    pool.map(halve, [1], on_error="skip")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    pool.map(halve, [1], chunksize="all")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


def count(number: int) -> Iterator[int]:
    yield number


async def count_async(number: int) -> AsyncIterator[str]:
    yield str(number)


async def count_later(number: int) -> list[float]:
    return [number]


async def check_stream() -> None:
    stream = creche.open_stream(count, 5)
    assert_type(stream, creche.ProcessStream[int])
    assert_type(creche.open_stream(count_async, 5, max_buffer_size=1), creche.ProcessStream[str])
    assert_type(creche.open_stream(count_later, 5, timeout=1.5), creche.ProcessStream[float])
    async with stream as entered:
        assert_type(entered, creche.ProcessStream[int])
        assert_type(await entered.receive(), int)
        assert_type(entered.receive_nowait(), int)
        assert_type(entered.process, creche.AsyncProcess[None])
        async for item in entered:
            assert_type(item, int)
    objects: ObjectReceiveStream[int] = stream
    await objects.aclose()
    creche.open_stream(count, "5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    creche.open_stream(halve, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def check_output(log: logging.Logger) -> None:
    process = creche.AsyncProcess(target=halve, args=(1,), stdout="stream", stderr="stdout")
    assert_type(process, creche.AsyncProcess[float])
    assert_type(process.stdout, ObjectReceiveStream[str] | None)
    assert_type(process.stderr, ObjectReceiveStream[str] | None)
    assert_type(await creche.run_in_process(halve, 1, stdout=log, stderr=log), float)
    assert_type(await creche.run_in_process(halve, 1, stdout=log, stderr="stdout"), float)
    async with creche.open_nursery(stdout=log, stderr="stdout") as nursery:
        assert_type(
            nursery.start_soon(halve, 1, stdout="stream", stderr=log), creche.AsyncProcess[float]
        )
        assert_type(await nursery.start(no_value, stderr="stream"), Any)
    creche.open_pool(stdout=log, stderr="stdout")
    creche.open_pool(stdout="stream")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    creche.in_process(stdout="stream")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    creche.AsyncProcess(target=halve, stdout="stdout")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


variable = contextvars.ContextVar("variable", default=1)


def check_context() -> None:
    creche.context.carry(variable, contextvars.ContextVar[str]("other"))
    with creche.context.carry(variable) as carried:
        assert_type(carried, creche.context.Carried)
    with creche.context.carry_trace_context():
        creche.context.drop(variable)
    creche.context.carry("variable")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def check_sync() -> None:
    lock = sync.Lock()
    async with lock as nothing:
        assert_type(nothing, None)
    with lock as nothing:
        assert_type(nothing, None)
    assert_type(lock.abandoned_by, int | None)
    assert_type(await lock.statistics(), sync.LockStatistics)
    lock.acquire_sync(timeout=1.5)
    lock.acquire_sync("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type((await sync.CapacityLimiter(2).statistics()).borrowers, dict[int, int])
    assert_type(sync.Semaphore(1).statistics_sync(), sync.SemaphoreStatistics)
    assert_type(sync.Event().is_set(), bool)
    assert_type(await sync.Barrier(2).wait(), int)
    assert_type(creche.sync.Barrier(2).wait_sync(), int)
    queue = sync.Queue[float](10)
    await queue.put(1)
    await queue.put("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await queue.get(), float)
    assert_type(queue.get_sync(timeout=1), float)
    assert_type([item async for item in queue], list[float])
    assert_type(list(queue), list[float])
    assert_type(await queue.qsize(), int)
    await creche.run_in_process(queue.put_sync, 1.5)


async def check_channels() -> None:
    send, receive = creche.create_channel[int](10)
    assert_type(send, creche.ChannelSendStream[int])
    assert_type(receive, creche.ChannelReceiveStream[int])
    await send.send(1)
    send.send_nowait(1)
    send.send_sync(1, timeout=1.5)
    await send.send("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(send.clone(), creche.ChannelSendStream[int])
    assert_type(await receive.receive(), int)
    assert_type(receive.receive_nowait(), int)
    assert_type(receive.receive_sync(timeout=1), int)
    assert_type(receive.clone(), creche.ChannelReceiveStream[int])
    assert_type(receive.statistics(), creche.ChannelStatistics)
    for item in receive:
        assert_type(item, int)
    async for item in receive:
        assert_type(item, int)
    with send as entered:
        assert_type(entered, creche.ChannelSendStream[int])
    async with receive:
        pass
    here, there = creche.create_duplex_channel[str]()
    assert_type(here, creche.ChannelStream[str])
    assert_type(there.send_stream, creche.ChannelSendStream[str])
    assert_type(await here.receive(), str)
    assert_type(there.receive_nowait(), str)
    async for text in here:
        assert_type(text, str)
    for text in there:
        assert_type(text, str)


async def check_supervisor() -> None:
    async with creche.open_supervisor(
        strategy="rest_for_one", backoff=creche.Backoff(initial=1)
    ) as supervisor:
        assert_type(supervisor, creche.Supervisor)
        child = await supervisor.start(halve, 1, restart="transient", shutdown="kill")
        assert_type(child, creche.SupervisedChild)
        await supervisor.start(halve_async, 1, health=creche.Heartbeat(1))
        await supervisor.start(halve, "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await supervisor.start(halve, 1, restart="always")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]

        async def check(child: creche.SupervisedChild) -> bool:
            return child.state is creche.ChildState.READY

        await supervisor.start(no_value, health=creche.HealthCheck(check, interval=1))

        async def set_up(nested: creche.Supervisor) -> None:
            await nested.start(no_value, shutdown=creche.StopPolicy(grace=1))

        nested = await supervisor.start_supervisor(set_up, name="nested")
        assert_type(nested, creche.Supervisor)
        assert_type(supervisor.children["nested"], creche.SupervisedChild)
        assert_type(child.process, creche.AsyncProcess[Any] | None)
        assert_type(child.pid, int | None)
        async for event in supervisor.events():
            assert_type(event, creche.SupervisorEvent)
            if isinstance(event, creche.ChildExited):
                assert_type(event.exception, BaseException | None)
        assert_type(supervisor.statistics().children, tuple[creche.ChildStatistics, ...])


class Observer(creche.Instrument):
    def process_exited(self, process: creche.ObservedProcess) -> None:
        assert_type(process.id, int)
        assert_type(process.pid, int | None)
        assert_type(process.kind, Literal["process", "worker"])
        assert_type(process.func, str | None)
        assert_type(process.exitcode, int | None)
        assert_type(process.exception, BaseException | None)
        assert_type(process.stop_requested, bool)

    def call_finished(self, call: creche.ObservedCall) -> None:
        assert_type(call.func, str)
        assert_type(call.items, int)
        assert_type(call.process, creche.ObservedProcess | None)
        assert_type(call.status, Literal["ok", "error", "cancelled", "killed"] | None)
        assert_type(call.seconds, float | None)
        assert_type(call.attributes, dict[str, Any])


def check_instruments() -> None:
    creche.add_instrument(Observer())
    creche.remove_instrument(Observer())
    creche.add_instrument(Observer)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with trace_processes(workers=True) as tracing:
        assert_type(tracing, ProcessTracing)
        tracing.stop()
