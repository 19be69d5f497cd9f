"""ProcessPool.map: what it gives, in which order, how much it takes, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import cloudpickle
import pytest
import support
import targets
from backends import in_asyncio
from support import TIMEOUT, Announcements, until_statistics

import creche
from creche import ItemOutcome, ProcessMap, ProcessPool, StopPolicy, open_pool

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_worker_is_deaf")]

CHUNKSIZES = pytest.mark.parametrize("chunksize", [1, 7, 100, "auto"])


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """What waits for this file goes on when it exists."""
    return tmp_path / "gate"


class Numbers:
    """An infinite input that counts what it has given out."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.given += 1
        return self.given - 1


class AsyncNumbers:
    def __init__(self) -> None:
        self.given = 0

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        await anyio.lowlevel.checkpoint()
        self.given += 1
        return self.given - 1


async def in_async(*items: Any, error: Exception | None = None) -> AsyncIterator[Any]:
    for item in items:
        await anyio.lowlevel.checkpoint()
        yield item
    if error is not None:
        raise error


def in_plain(*items: Any, error: Exception | None = None) -> Iterator[Any]:
    yield from items
    if error is not None:
        raise error


async def collect(values: ProcessMap[Any]) -> list[Any]:
    return [value async for value in values]


async def collect_into(received: list[Any], values: ProcessMap[Any]) -> None:
    """For when an error ends that."""
    async for value in values:
        received += [value]


async def take(values: ProcessMap[Any], number: int) -> list[Any]:
    return [await anext(values) for _ in range(number)]


def quiet(statistics: creche.PoolStatistics) -> bool:
    return not statistics.calls_running and not statistics.calls_queued


# --- values -------------------------------------------------------------------------------------


async def test_values_come_in_order(start_method: str) -> None:
    async with open_pool(2, start_method=start_method) as pool:
        assert await collect(pool.map(support.double, range(1000))) == list(range(0, 2000, 2))


async def test_all_values_at_once() -> None:
    async with open_pool(2) as pool:
        assert await pool.map(support.double, range(1000)) == list(range(0, 2000, 2))
        assert await pool.map(support.double, []) == []
        values = pool.map(support.double, range(10))
        assert await take(values, 3) == [0, 2, 4]
        assert await values == [6, 8, 10, 12, 14, 16, 18]
        assert await values == []
        outcomes = await pool.map(int, ["1", "two", "3"], on_error="yield")
        assert [outcome.index for outcome in outcomes] == [0, 1, 2]
        assert isinstance(outcomes[1].exception, ValueError)
        with pytest.raises(ValueError, match="two"):
            await pool.map(int, ["1", "two", "3"])


async def test_batches_of_values() -> None:
    async with open_pool(2, initializer=targets.answer_for_whole_chunks) as pool:
        batches = [batch async for batch in pool.map(support.double, range(1000)).batches()]
        assert all(batches)
        assert list(itertools.chain(*batches)) == list(range(0, 2000, 2))
        assert [batch async for batch in pool.map(support.double, []).batches()] == []

        values = pool.map(support.double, range(10), chunksize=4)
        assert await take(values, 1) == [0]
        batches = [batch async for batch in values.batches()]
        assert batches == [[2, 4, 6], [8, 10, 12, 14], [16, 18]]
        assert await values == []

        outcomes = pool.map(int, ["1", "two"], chunksize=1, on_error="yield").batches()
        assert [len(batch) for batch in [batch async for batch in outcomes]] == [1, 1]


async def test_batches_end_with_an_error() -> None:
    received: list[int] = []
    async with open_pool(1) as pool:
        with pytest.raises(ValueError, match="three"):
            async for batch in pool.map(int, ["1", "2", "three", "4"]).batches():
                received += batch
        assert received == [1, 2]
        assert await pool.run(support.double, 2) == 4


async def test_batches_hold_up_the_input() -> None:
    numbers = Numbers()
    async with open_pool(2) as pool, pool.map(support.double, numbers, in_flight=8) as values:
        batches = values.batches()
        given = 0
        while given < 100:
            given += len(await anext(batches))
            assert numbers.given <= given + 8
    assert quiet(pool.statistics())


async def test_batches_that_are_left_early(announcements: Announcements) -> None:
    async with open_pool(1) as pool:
        values = pool.map(targets.wait_for_ever, [announcements.path])
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def cancel() -> None:
                    await announcements.get_pid()
                    with pytest.raises(anyio.BusyResourceError):
                        await anext(values)
                    scope.cancel()

                tasks.start_soon(cancel)
                await anext(values.batches())
        assert scope.cancelled_caught
        assert await values == []
        assert await pool.run(support.double, 2) == 4


async def test_cancelled_while_all_values_are_awaited(announcements: Announcements) -> None:
    async with open_pool(1) as pool:
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await pool.map(targets.wait_for_ever, [announcements.path])

            tasks.start_soon(run)
            pid = await announcements.get_pid()
            tasks.cancel_scope.cancel()
        assert support.wait_until_gone(pid, 0)
        assert await pool.run(support.double, 2) == 4


async def test_fresh_process_for_each_item() -> None:
    async with open_pool(2, max_tasks_per_worker=1) as pool:
        pids = await pool.map(targets.pid_of_worker, range(6))
    assert len(set(pids)) == 6


async def test_all_combinations_of_options() -> None:
    async with open_pool(2) as pool:
        for size, chunksize, in_flight, ordered, on_error, kind in itertools.product(
            (0, 1, 17),
            (1, 3, 1000, "auto"),
            (None, 1, 4),
            (True, False),
            ("raise", "yield"),
            (range, lambda size: in_plain(*range(size)), lambda size: in_async(*range(size))),
        ):
            make_input: Any = kind
            options: Any = {
                "chunksize": chunksize,
                "in_flight": in_flight,
                "ordered": ordered,
                "on_error": on_error,
            }
            values = await collect(pool.map(support.double, make_input(size), **options))
            if on_error == "yield":
                assert all(outcome.value == 2 * outcome.item for outcome in values)
                assert all(outcome.index == outcome.item for outcome in values)
                values = [outcome.value for outcome in values]
            if not ordered:
                values.sort()
            assert values == list(range(0, 2 * size, 2)), options
        statistics = pool.statistics()
        assert statistics.restarts == statistics.calls_failed == statistics.calls_queued == 0


async def test_many_items() -> None:
    async with open_pool(2) as pool:
        number = 0
        async for value in pool.map(support.double, range(200_000)):
            assert value == 2 * number
            number += 1
        assert number == 200_000
        assert pool.statistics().calls_done == number


async def test_kinds_of_functions(start_method: str) -> None:
    async with open_pool(1, start_method=start_method) as pool:
        for func in (
            functools.partial(targets.add, extra=1),
            functools.partial(targets.add_async, extra=1),
            targets.Adder(1),
            targets.AsyncAdder(1),
            targets.Adder(1).add,
            targets.Adder.add_one,
        ):
            assert await collect(pool.map(func, range(50))) == list(range(1, 51))


async def test_function_that_returns_coroutines_now_and_then() -> None:
    async with open_pool(2) as pool:
        for chunksize in (1, 7, "auto"):
            options: Any = {"chunksize": chunksize}
            values = await collect(pool.map(targets.coroutine_if_odd, range(300), **options))
            assert values == list(range(100, 400))


@pytest.mark.parametrize("chunksize", [1, 2, 7, 100, "auto"])
async def test_function_with_all_kinds_of_outcomes(chunksize: Any) -> None:
    async with open_pool(2) as pool:
        outcomes = await outcomes_of(pool, targets.give_all_kinds, list(range(150)), chunksize)
        for outcome in outcomes:
            kind = outcome.index % 7
            if kind == 3:
                assert isinstance(outcome.exception, creche.SerializationError)
                assert "lock" in str(outcome.exception)
            elif kind in (2, 4):
                assert isinstance(outcome.exception, LookupError)
                assert outcome.exception.args[0] in (outcome.index, str(outcome.index))
            else:
                assert outcome.value == outcome.index + 100
        assert pool.statistics().restarts == 0


async def test_async_functions_run_under_the_backend_of_the_parent(
    anyio_backend_name: str,
) -> None:
    def ignore(_: int) -> Any:
        return targets.backend_in_use()

    async with open_pool(1, serializer=_CloudPickle()) as pool:
        assert set(await collect(pool.map(ignore, range(10)))) == {anyio_backend_name}


class _CloudPickle:
    def dumps(self, obj: Any) -> bytes:
        return cloudpickle.dumps(obj)  # type: ignore[no-any-return]

    def loads(self, data: bytes) -> Any:
        return cloudpickle.loads(data)


async def test_values_that_take_long_to_pickle() -> None:
    """So long that the worker's time for a chunk is over when it has answered for a part of it."""
    async with open_pool(2) as pool:
        func = functools.partial(targets.become_slow, 2000)
        with anyio.fail_after(TIMEOUT):
            assert await collect(pool.map(func, range(2010))) == list(range(2010))


@pytest.mark.parametrize("chunksize", [1, 10, "auto"])
async def test_serializer(chunksize: Any) -> None:
    async with open_pool(2, serializer=_CloudPickle()) as pool:
        values = pool.map(lambda left, right: left * right, range(50), range(50))
        assert await collect(values) == [i * i for i in range(50)]
        funcs = [lambda value, i=i: value + i for i in range(30)]
        adders = pool.map(lambda func: func(1), funcs, chunksize=chunksize)
        assert await collect(adders) == list(range(1, 31))


async def test_kinds_of_inputs() -> None:
    async with open_pool(2) as pool:
        send, receive = anyio.create_memory_object_stream[int](10)
        for number in range(5):
            send.send_nowait(number)
        send.close()
        inputs: list[Any] = [
            [0, 1, 2, 3, 4],
            (0, 1, 2, 3, 4),
            range(5),
            dict.fromkeys(range(5)),
            iter(range(5)),
            in_plain(*range(5)),
            in_async(*range(5)),
            receive,
        ]
        for items in inputs:
            assert await collect(pool.map(targets.echo, items)) == list(range(5))
        receive.close()
        assert await collect(pool.map(targets.echo, "abc")) == ["a", "b", "c"]
        assert await collect(pool.map(targets.echo, {1: 2})) == [1]


async def test_items_and_values_of_any_kind() -> None:
    items = [None, (), (1, 2), [], {}, "", b"", 0, False, ..., b"x" * 100_000, {"a": [1]}]
    async with open_pool(2) as pool:
        for chunksize in (1, 5, "auto"):
            options: Any = {"chunksize": chunksize}
            assert await collect(pool.map(targets.echo, items, **options)) == items


@CHUNKSIZES
@pytest.mark.parametrize(
    "numbers",
    [
        range(0),
        range(5, 5, -1),
        range(1),
        range(7, 300),
        range(300, -300, -3),
        range(-(10**6), 10**6, 9973),
        range(2**63 - 30, 2**63 + 30),
        range(2**64, -(2**64), -(2**58) - 1),
        range(10**40, 10**40 + 10**33, 10**31),
    ],
    ids=repr,
)
async def test_ranges(numbers: range, chunksize: Any) -> None:
    async with open_pool(2) as pool:
        values = pool.map(targets.echo, numbers, chunksize=chunksize)
        assert values.total == len(numbers)
        assert await collect(values) == list(numbers)
        outcomes = await outcomes_of(pool, targets.echo, numbers, chunksize)
        assert [outcome.value for outcome in outcomes] == list(numbers)
        assert await pool.map(support.double, iter(numbers)) == [2 * n for n in numbers]


@CHUNKSIZES
async def test_error_in_a_range(chunksize: Any) -> None:
    numbers = range(5000, -5000, -7)
    func = functools.partial(targets.fail_if, numbers[100])
    async with open_pool(2) as pool:
        values = pool.map(func, numbers, chunksize=chunksize)
        received: list[int] = []
        with pytest.raises(LookupError, match="4300 is bad") as caught:
            await collect_into(received, values)
        assert received == list(numbers[:100])
        assert caught.value.__notes__ == ["This was item 100 of the map: 4300"]


async def test_range_longer_than_any_list() -> None:
    async with open_pool(2) as pool, pool.map(targets.echo, range(-5, 10**30)) as values:
        assert values.total is None
        assert await take(values, 5000) == list(range(-5, 4995))


async def test_types_of_values() -> None:
    """True is not 1, nor is an enum, and -0.0 is not 0.0."""
    numbers: list[Any] = [
        1,
        True,
        targets.Colour.RED,
        targets.Count(1),
        1.0,
        0.0,
        -0.0,
        math.nan,
        math.inf,
    ]
    numbers += [2**62, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**400, None, "1", b"1"]
    async with open_pool(2) as pool:
        for items in (numbers, *([item] * 20 for item in numbers)):
            values = await pool.map(targets.echo, items, chunksize=10)
            assert [(type(v), repr(v)) for v in values] == [(type(i), repr(i)) for i in items]


async def test_several_iterables_end_with_the_shortest() -> None:
    async with open_pool(2) as pool:
        values = pool.map(targets.add, range(10), itertools.count(100))
        assert values.total is None
        assert await collect(values) == [100 + 2 * i for i in range(10)]
        values = pool.map(targets.add, range(7), range(100, 200))
        assert values.total == 7
        assert await collect(values) == [100 + 2 * i for i in range(7)]
        values = pool.map(targets.add, in_async(1, 2, 3), [10, 20], itertools.count())
        with pytest.raises(TypeError):  # add() takes two
            await collect(values)
        values = pool.map(targets.add, in_async(1, 2, 3), [10, 20])
        assert await collect(values) == [11, 22]
        values = pool.map(targets.add, range(3), in_async(10, 20, 30, 40))
        assert await collect(values) == [10, 21, 32]
        values = pool.map(targets.add, in_async(1, 2), in_async(10, 20))
        assert await collect(values) == [11, 22]


async def test_empty_input() -> None:
    async with open_pool(1) as pool:
        for inputs in ([[]], [in_async()], [[], itertools.count()], [in_async(), [1]]):
            iterables: Any = inputs
            values = pool.map(targets.add, *iterables)
            assert await collect(values) == []
            assert values.done == 0
            with pytest.raises(StopAsyncIteration):
                await anext(values)
        assert pool.statistics().workers == ()


@pytest.mark.parametrize("chunksize", [1, 4, 100])
async def test_fixed_chunksize(chunksize: int) -> None:
    async with open_pool(2, max_tasks_per_worker=1) as pool:
        pids = await collect(pool.map(targets.pid_of_worker, range(12), chunksize=chunksize))
    # Each chunk has a process of its own.
    assert [pid for pid, _ in itertools.groupby(pids)] == pids[::chunksize]
    assert len(set(pids)) == -(-12 // chunksize)


async def test_unordered_values_come_when_they_are_there(
    announcements: Announcements, gate: Path
) -> None:
    func = functools.partial(targets.wait_for_file_if_item, 0, announcements.path, str(gate))
    async with open_pool(2) as pool:
        values = pool.map(func, range(100), ordered=False, chunksize=1)
        assert set(await take(values, 99)) == set(range(1, 100))
        gate.touch()
        assert await collect(values) == [0]


async def test_ordered_values_wait_for_those_before(
    announcements: Announcements, gate: Path
) -> None:
    func = functools.partial(targets.wait_for_file_if_item, 0, announcements.path, str(gate))
    async with open_pool(2) as pool:
        values = pool.map(func, range(10), chunksize=1)
        async with anyio.create_task_group() as tasks:
            received: list[int] = []

            async def receive() -> None:
                received.extend(await collect(values))

            tasks.start_soon(receive)
            await announcements.get_pid()
            await until_statistics(pool, lambda s: s.calls_done == 9)
            assert received == []
            gate.touch()
        assert received == list(range(10))


async def test_slow_item_does_not_hold_up_those_behind_it(
    announcements: Announcements, gate: Path
) -> None:
    """Whatever chunk it is in: what its worker has not begun goes to another."""
    func = functools.partial(targets.wait_for_file_if_item, 500, announcements.path, str(gate))
    async with open_pool(2) as pool:
        values = pool.map(func, range(600), ordered=False, chunksize=1)
        received = await take(values, 599)
        assert sorted([*received, 500]) == list(range(600))
        gate.touch()
        assert await collect(values) == [500]


# --- the input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [Numbers, AsyncNumbers])
@pytest.mark.parametrize("ordered", [True, False])
async def test_infinite_input(numbers: Any, ordered: bool) -> None:
    async with open_pool(2) as pool:
        received: list[int] = []
        async with pool.map(support.double, numbers(), ordered=ordered) as values:
            assert values.total is None
            async for value in values:
                received.append(value)
                if len(received) == 500:
                    break
        assert len(set(received)) == 500
        if ordered:
            assert received == list(range(0, 1000, 2))
        await until_statistics(pool, quiet)
        assert await pool.run(targets.add, 1) == 1


async def test_async_input_is_closed() -> None:
    closed = anyio.Event()

    async def generate() -> AsyncIterator[int]:
        try:
            for number in itertools.count():
                yield number
                await anyio.lowlevel.checkpoint()
        finally:
            closed.set()

    async with open_pool(1) as pool:
        async with pool.map(support.double, generate()) as values:
            assert await take(values, 10) == list(range(0, 20, 2))
        with anyio.fail_after(TIMEOUT):
            await closed.wait()


@pytest.mark.parametrize("items", [in_plain, in_async])
@pytest.mark.parametrize("number", [0, 1, 50])
async def test_input_that_raises(items: Any, number: int) -> None:
    async with open_pool(2) as pool:
        received: list[Any] = []
        values = pool.map(support.double, items(*range(number), error=LookupError("no more")))
        with pytest.raises(LookupError, match="no more"):
            await collect_into(received, values)
        assert received == list(range(0, 2 * number, 2))
        assert await collect(values) == []
        outcomes = pool.map(
            support.double, items(*range(number), error=LookupError("no more")), on_error="yield"
        )
        with pytest.raises(LookupError, match="no more"):
            while True:
                await anext(outcomes)


async def test_input_that_is_none() -> None:
    async with open_pool(1) as pool:
        with pytest.raises(TypeError):
            await collect(pool.map(targets.add, 5))  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="at least one iterable"):
            pool.map(targets.add)


@pytest.mark.parametrize("numbers", [Numbers, AsyncNumbers])
@pytest.mark.parametrize("in_flight", [1, 3, 40])
@pytest.mark.parametrize("chunksize", [1, 5, "auto"])
async def test_in_flight_bounds_what_is_taken(numbers: Any, in_flight: int, chunksize: Any) -> None:
    source = numbers()
    async with (
        open_pool(2) as pool,
        pool.map(support.double, source, in_flight=in_flight, chunksize=chunksize) as values,
    ):
        for received in range(200):
            assert await anext(values) == 2 * received
            assert source.given - received <= in_flight
        # Nobody takes a value: at some time all is done that there is room for.
        await until_statistics(pool, quiet)
        assert 0 < source.given - 199 <= in_flight


async def test_in_flight_does_not_count_the_values_that_were_taken() -> None:
    """A bound below the number of workers still keeps them busy, as far as it goes."""
    async with open_pool(1) as pool:
        values = pool.map(support.double, range(1000), in_flight=1, ordered=False)
        assert await collect(values) == list(range(0, 2000, 2))


@pytest.mark.parametrize("numbers", [Numbers, AsyncNumbers])
@pytest.mark.parametrize("ordered", [True, False])
async def test_slow_consumer_holds_up_the_input(numbers: Any, ordered: bool) -> None:
    source = numbers()
    async with open_pool(2) as pool:
        values = pool.map(support.double, source, ordered=ordered)
        async with values:
            await take(values, 100)
            # Which it would never be; and once more, as it is between two chunks, too.
            taken, done = 0, 0
            with anyio.fail_after(TIMEOUT):
                while (taken, done) != (source.given, values.done):
                    await until_statistics(pool, quiet)
                    taken, done = source.given, values.done
                    for _ in range(20):
                        await anyio.wait_all_tasks_blocked()
            assert len(await take(values, taken)) == taken  # it goes on
            assert source.given > taken


async def test_slow_first_item_bounds_what_is_kept(
    announcements: Announcements, gate: Path
) -> None:
    """Values that wait for one before them count as well."""
    source = Numbers()
    func = functools.partial(targets.wait_for_file_if_item, 0, announcements.path, str(gate))
    async with open_pool(2) as pool, pool.map(func, source, in_flight=50) as values:
        async with anyio.create_task_group() as tasks:
            received: list[int] = []

            async def receive() -> None:
                received.extend(await take(values, 100))

            tasks.start_soon(receive)
            await until_statistics(pool, lambda s: s.calls_running == 1 and s.calls_done > 0)
            await announcements.get_pid()
            await until_statistics(pool, lambda s: s.calls_done == source.given - 1)
            assert source.given <= 50
            assert received == []
            gate.touch()
        assert received == list(range(100))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 7, 100, "auto"])
async def test_error_ends_the_map(chunksize: Any) -> None:
    async with open_pool(2) as pool:
        values = pool.map(
            functools.partial(targets.fail_if, 23), itertools.count(), chunksize=chunksize
        )
        received: list[Any] = []
        with pytest.raises(LookupError, match="23 is bad") as caught:
            await collect_into(received, values)
        assert received == list(range(23))
        assert caught.value.__notes__ == ["This was item 23 of the map: 23"]
        assert isinstance(caught.value.__cause__, creche.RemoteTraceback)
        assert "in fail_if" in str(caught.value.__cause__)
        assert await collect(values) == []
        assert await pool.run(targets.add, 1) == 1


async def test_note_is_short() -> None:
    items = ["a" * 10_000, "b"]
    async with open_pool(1) as pool:
        with pytest.raises(LookupError) as caught:
            await collect(pool.map(functools.partial(targets.fail_if, items[0]), items))
        (note,) = caught.value.__notes__
        assert note.startswith("This was item 0 of the map: 'aaa")
        assert len(note) < 200
        with pytest.raises(LookupError) as caught:
            await collect(pool.map(targets.fail_if, [1, 2, 3], [1, 0, 3]))
        assert caught.value.__notes__ == ["This was item 0 of the map: (1, 1)"]


async def outcomes_of(
    pool: ProcessPool, func: Callable[..., Any], items: Sequence[Any], chunksize: Any
) -> list[ItemOutcome[Any]]:
    outcomes = await collect(pool.map(func, items, chunksize=chunksize, on_error="yield"))
    assert [outcome.index for outcome in outcomes] == list(range(len(items)))
    for outcome, item in zip(outcomes, items, strict=True):
        assert outcome.item is item or type(items) is range
        assert outcome.item == item
        if outcome.exception is not None:
            with pytest.raises(type(outcome.exception)) as caught:
                _ = outcome.value
            assert caught.value is outcome.exception
    return outcomes


@CHUNKSIZES
async def test_errors_as_outcomes(chunksize: Any) -> None:
    items = list(range(60))
    async with open_pool(2) as pool:
        for bad in (0, 6, 7, 30, 59):
            func = functools.partial(targets.fail_if, bad)
            outcomes = await outcomes_of(pool, func, items, chunksize)
            for outcome in outcomes:
                if outcome.index == bad:
                    assert isinstance(outcome.exception, LookupError)
                    assert isinstance(outcome.exception.__cause__, creche.RemoteTraceback)
                else:
                    assert outcome.value == outcome.item
        outcomes = await outcomes_of(pool, targets.fail, ["a"] * 60, chunksize)
        assert all(isinstance(outcome.exception, LookupError) for outcome in outcomes)
        statistics = pool.statistics()
        assert statistics.restarts == 0
        assert statistics.calls_failed == 5 + 60


async def test_errors_of_async_functions_as_outcomes() -> None:
    async with open_pool(1) as pool:
        outcomes = await outcomes_of(pool, targets.fail_async, ["a", "b"], "auto")
        assert [str(outcome.exception) for outcome in outcomes] == ["a", "b"]


@CHUNKSIZES
@pytest.mark.parametrize("bad", [0, 33, 59])
async def test_items_that_cannot_be_pickled(chunksize: Any, bad: int) -> None:
    items: list[Any] = list(range(60))
    items[bad] = lambda: None
    async with open_pool(2) as pool:
        outcomes = await outcomes_of(pool, targets.echo, items, chunksize)
        for outcome in outcomes:
            if outcome.index == bad:
                assert isinstance(outcome.exception, creche.SerializationError)
                assert "argument 1" in str(outcome.exception)
            else:
                assert outcome.value == outcome.item
        received: list[Any] = []
        with pytest.raises(creche.SerializationError):
            await collect_into(received, pool.map(targets.echo, items, chunksize=chunksize))
        assert received == items[:bad]


@pytest.mark.parametrize("chunksize", [1, 3, 6])
async def test_heavy_items_that_cannot_be_pickled(chunksize: int) -> None:
    """They are pickled in a thread; nothing else goes on that would have the map go on, too."""
    heavy = list(range(100_000))
    items: list[Any] = [(heavy, threading.Lock()), (heavy, 0)] * 3
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1) as pool:
            outcomes = await outcomes_of(pool, len, items, chunksize)
    for outcome in outcomes:
        if outcome.index % 2:
            assert outcome.value == 2
        else:
            assert isinstance(outcome.exception, creche.SerializationError)
            assert "argument 1" in str(outcome.exception)


async def test_function_that_cannot_be_pickled() -> None:
    async with open_pool(1) as pool:
        outcomes = await outcomes_of(pool, lambda item: item, [1, 2, 3], "auto")
        for outcome in outcomes:
            assert isinstance(outcome.exception, creche.SerializationError)
            assert "the function" in str(outcome.exception)


@CHUNKSIZES
@pytest.mark.parametrize("bad", [0, 33, 59])
async def test_items_that_cannot_be_unpickled(chunksize: Any, bad: int) -> None:
    items: list[Any] = list(range(60))
    items[bad] = support.RefusesUnpickling()
    async with open_pool(2) as pool:
        outcomes = await outcomes_of(pool, targets.echo, items, chunksize)
        for outcome in outcomes:
            if outcome.index == bad:
                assert isinstance(outcome.exception, creche.SerializationError)
                assert "not in here" in str(outcome.exception)
            else:
                assert outcome.value == outcome.item
        assert pool.statistics().restarts == 0


@CHUNKSIZES
@pytest.mark.parametrize("bad", [0, 33, 59])
async def test_values_that_cannot_be_pickled(chunksize: Any, bad: int) -> None:
    async with open_pool(2) as pool:
        func = functools.partial(targets.lock_if, bad)
        outcomes = await outcomes_of(pool, func, list(range(60)), chunksize)
        for outcome in outcomes:
            if outcome.index == bad:
                assert isinstance(outcome.exception, creche.SerializationError)
                assert "lock" in str(outcome.exception)
            else:
                assert outcome.value == outcome.item
        assert pool.statistics().restarts == 0


@CHUNKSIZES
async def test_values_that_cannot_be_unpickled(
    chunksize: Any, announcements: Announcements
) -> None:
    """All that travelled with it may be lost, but nothing is run twice."""
    func = functools.partial(targets.announce_and_refuse, announcements.path, 20)
    async with open_pool(2) as pool:
        outcomes = await outcomes_of(pool, func, list(range(40)), chunksize)
        for outcome in outcomes:
            if outcome.exception is None:
                assert outcome.value == outcome.item
            else:
                assert isinstance(outcome.exception, creche.SerializationError)
        assert outcomes[20].exception is not None
        if chunksize == 1:
            assert sum(outcome.exception is not None for outcome in outcomes) == 1
        support.announce(announcements.path, "end")
        lines = [await announcements.get()]
        while lines[-1] != "end":
            lines.append(await announcements.get())
        assert sorted(map(int, lines[:-1])) == list(range(40))


@CHUNKSIZES
async def test_stop_iteration_of_the_function(chunksize: Any) -> None:
    async with open_pool(2) as pool:
        func = functools.partial(targets.stop_iteration_if, 30)
        outcomes = await outcomes_of(pool, func, list(range(60)), chunksize)
        for outcome in outcomes:
            if outcome.index == 30:
                assert isinstance(outcome.exception, creche.RemoteError)
                assert outcome.exception.type_name == "builtins.StopIteration"
            else:
                assert outcome.value == outcome.item


def strike(values: ProcessMap[Any], index: int) -> None:
    """The time of an item, which travels alone, is over."""
    deadlines: Any = values._run._deadlines
    (chunk,) = (chunk for chunk in deadlines._deadlines if chunk.start == index)
    deadlines.discard(chunk)
    values._run._time_out(chunk)


async def test_timeout_of_an_item(announcements: Announcements) -> None:
    func = functools.partial(targets.wait_if, 2, announcements.path)
    received: list[Any] = []

    async def strike_when_it_runs(values: ProcessMap[Any]) -> None:
        await announcements.get_pid()
        strike(values, 2)

    async with open_pool(2, min_workers=2) as pool, anyio.create_task_group() as tasks:
        before = {worker.pid for worker in pool.statistics().workers}
        outcomes = pool.map(func, range(6), timeout=2 * TIMEOUT, on_error="yield")
        tasks.start_soon(strike_when_it_runs, outcomes)
        await collect_into(received, outcomes)
        assert [outcome.index for outcome in received] == list(range(6))
        (stopped,) = before - {worker.pid for worker in pool.statistics().workers}
        assert stopped is not None
        assert support.wait_until_gone(stopped, 0)
        for outcome in received:
            if outcome.index == 2:
                assert isinstance(outcome.exception, creche.ProcessTimeout)
                assert "item 2" in str(outcome.exception)
                assert "timeout of 120 seconds" in str(outcome.exception)
            else:
                assert outcome.value == outcome.item
        assert pool.statistics().restarts == 1
        received.clear()
        values = pool.map(func, range(6), timeout=2 * TIMEOUT)
        tasks.start_soon(strike_when_it_runs, values)
        with pytest.raises(creche.ProcessTimeout, match="item 2"):
            await collect_into(received, values)
        assert received == [0, 1]


async def test_timeout_of_an_item_strikes_by_itself() -> None:
    """Whether or not its worker has begun it by then."""
    async with open_pool(1) as pool:
        outcomes = pool.map(time.sleep, [TIMEOUT], timeout=0.2, on_error="yield")
        (outcome,) = await collect(outcomes)
        assert isinstance(outcome.exception, creche.ProcessTimeout)
        assert await pool.run(targets.add, 1) == 1


async def test_item_that_ends_as_its_time_is_over(announcements: Announcements, gate: Path) -> None:
    """Its answer lies there when the loop, which was held up, comes to the timer: it counts."""

    async def hold_up() -> None:
        await announcements.get_pid()
        assert pool._engine is not None
        (worker,) = pool._engine.scheduler.workforce.all
        gate.touch()
        assert select.select([worker.channel.wire._sock], [], [], TIMEOUT)[0]
        strike(outcomes, 0)

    func = functools.partial(targets.wait_for_file_if_item, 0, announcements.path, str(gate))
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1) as pool, anyio.create_task_group() as tasks:
            outcomes = pool.map(func, range(3), timeout=2 * TIMEOUT, on_error="yield")
            tasks.start_soon(hold_up)
            assert [outcome.value for outcome in await collect(outcomes)] == [0, 1, 2]
            assert pool.statistics().restarts == 0


async def test_timeout_does_not_count_the_wait_for_a_worker(
    announcements: Announcements, gate: Path
) -> None:
    """Nor what the consumer takes between two values."""
    received: list[int] = []

    async def receive() -> None:
        received.extend(await take(values, 1))

    async with open_pool(1) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run, targets.wait_for_file, announcements.path, str(gate))
        await announcements.get_pid()
        values = pool.map(support.double, range(3), timeout=2 * TIMEOUT)
        deadlines: Any = values._run._deadlines
        tasks.start_soon(receive)
        await until_statistics(pool, lambda s: s.calls_queued > 0)
        assert not deadlines._deadlines
        gate.touch()
        await support.until(lambda: received)
        await until_statistics(pool, quiet)
        assert not deadlines._deadlines
        assert await collect(values) == [2, 4]


# --- progress -----------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["raise", "yield"])
@pytest.mark.parametrize("ordered", [True, False])
async def test_progress(on_error: Any, ordered: bool) -> None:
    told: list[tuple[int, int | None]] = []

    def note(done: int, total: int | None) -> None:
        told.append((done, total))

    async with open_pool(2) as pool:
        values = pool.map(
            support.double, range(300), on_progress=note, on_error=on_error, ordered=ordered
        )
        assert values.total == 300
        assert len(await collect(values)) == values.done == 300
        counts = [done for done, _ in told]
        assert counts == sorted(set(counts))
        assert told[-1] == (300, 300)
        assert {total for _, total in told} == {300}

        told.clear()
        await collect(pool.map(support.double, in_async(*range(10)), on_progress=note))
        assert told[-1] == (10, None)

        told.clear()
        outcomes = pool.map(targets.fail, ["a"] * 5, on_progress=note, on_error="yield")
        await collect(outcomes)
        assert told[-1] == (5, 5)


async def test_progress_that_raises() -> None:
    def fail(done: int, total: int | None) -> None:
        raise ZeroDivisionError

    async with open_pool(1) as pool:
        with pytest.raises(ZeroDivisionError):
            await collect(pool.map(support.double, itertools.count(), on_progress=fail))
        await until_statistics(pool, quiet)
        assert await pool.run(targets.add, 1) == 1


async def test_done_and_total() -> None:
    async with open_pool(1) as pool:
        values = pool.map(support.double, [1, 2, 3])
        assert (values.done, values.total) == (0, 3)
        assert await anext(values) == 2
        assert 1 <= values.done <= 3
        await collect(values)
        assert (values.done, values.total) == (3, 3)


# --- the end ------------------------------------------------------------------------------------


WAITING = pytest.mark.parametrize("target", [support.clean_up, support.clean_up_async])


@WAITING
@pytest.mark.parametrize("leave", ["async with", "aclose", "error"])
async def test_leaving_early_stops_what_runs(
    target: Any, leave: str, announcements: Announcements
) -> None:
    async with open_pool(2, stop=StopPolicy(grace=TIMEOUT)) as pool:
        values = pool.map(target, itertools.repeat(announcements.path), chunksize=1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_expect_end, values)
            running = {await announcements.get_pid() for _ in range(2)}
            if leave == "aclose":
                await values.aclose()
            elif leave == "async with":
                async with values:
                    pass
            else:
                with pytest.raises(ZeroDivisionError):
                    async with values:
                        raise ZeroDivisionError
        assert all(support.wait_until_gone(pid, 0) for pid in running)
        assert [await announcements.get() for _ in range(2)] == ["cleaned up"] * 2
        await values.aclose()  # again
        assert await collect(values) == []
        assert await pool.run(targets.add, 1) == 1
        statistics = pool.statistics()
        assert statistics.calls_queued == 0
        assert statistics.restarts == 2


async def _expect_end(values: ProcessMap[Any]) -> None:
    with pytest.raises(StopAsyncIteration):
        await anext(values)


async def test_break_stops_what_runs(announcements: Announcements) -> None:
    func = functools.partial(targets.wait_if, 3, announcements.path)

    async def use() -> int:
        async for value in pool.map(func, itertools.count(), ordered=False, chunksize=1):
            if value >= 4:
                pid = await announcements.get_pid()
                break
        return pid

    async with open_pool(2) as pool:
        pid = await use()
        gc.collect()
        # Nobody waits for it, but it goes.
        await until_statistics(pool, lambda s: pid not in {worker.pid for worker in s.workers})
        assert support.wait_until_gone(pid)
        assert await collect(pool.map(support.double, [1, 2])) == [2, 4]


async def test_garbage_collected_map(announcements: Announcements) -> None:
    numbers = Numbers()
    async with open_pool(1) as pool:
        values: Any = pool.map(targets.wait_for_ever, [announcements.path])
        task_scope = anyio.CancelScope()
        with task_scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anext, values)
                pid = await announcements.get_pid()
                task_scope.cancel()
        assert support.wait_until_gone(pid, 0)

        values = pool.map(support.double, numbers)
        await take(values, 10)
        del values
        gc.collect()
        await until_statistics(pool, quiet)
        taken = numbers.given
        for _ in range(20):
            await anyio.wait_all_tasks_blocked()
        assert numbers.given == taken

        unused = pool.map(support.double, AsyncNumbers())
        await anyio.wait_all_tasks_blocked()
        del unused
        gc.collect()


@WAITING
async def test_cancelled(target: Any, announcements: Announcements) -> None:
    async with open_pool(2, stop=StopPolicy(grace=TIMEOUT)) as pool:
        values = pool.map(target, itertools.repeat(announcements.path), chunksize=1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect, values)
            running = {await announcements.get_pid() for _ in range(2)}
            tasks.cancel_scope.cancel()
        assert all(support.wait_until_gone(pid, 0) for pid in running)
        assert await collect(values) == []
        assert await pool.run(targets.add, 1) == 1


async def test_other_calls_do_not_notice(announcements: Announcements, gate: Path) -> None:
    async with open_pool(2) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run, targets.wait_for_file, announcements.path, str(gate))
        held = await announcements.get_pid()
        values = pool.map(targets.wait_for_ever, [announcements.path] * 5)
        async with anyio.create_task_group() as receiving:
            receiving.start_soon(_expect_end, values)
            pid = await announcements.get_pid()
            await values.aclose()
        assert support.wait_until_gone(pid, 0)
        statistics = pool.statistics()
        assert held in {worker.pid for worker in statistics.workers if worker.state == "busy"}
        gate.touch()


async def test_two_consumers_at_once(announcements: Announcements, gate: Path) -> None:
    async with open_pool(1) as pool:
        call = functools.partial(targets.wait_for_file, announcements.path)
        values = pool.map(call, [str(gate)])
        async with anyio.create_task_group() as tasks:
            received: list[str] = []

            async def receive() -> None:
                received.append(await anext(values))

            tasks.start_soon(receive)
            await announcements.get_pid()
            with pytest.raises(anyio.BusyResourceError):
                await anext(values)
            gate.touch()
        assert received == ["seen"]


async def test_two_maps_at_once() -> None:
    results: dict[int, list[int]] = {}

    async def use(factor: int) -> None:
        items = range(0, 3000 * factor, factor)
        results[factor] = await collect(pool.map(support.double, items))

    async with open_pool(2) as pool, anyio.create_task_group() as tasks:
        for factor in (1, 2, 3):
            tasks.start_soon(use, factor)
    assert results == {n: list(range(0, 6000 * n, 2 * n)) for n in (1, 2, 3)}


async def test_calls_are_served_while_an_infinite_map_runs() -> None:
    async with open_pool(1) as pool, anyio.create_task_group() as tasks:

        async def consume() -> None:
            async for _ in pool.map(support.double, itertools.count()):
                pass

        tasks.start_soon(consume)
        for number in range(20):
            assert await pool.run(targets.add, number) == number
        tasks.cancel_scope.cancel()


async def test_closed_pool() -> None:
    async with open_pool(1, name="K") as pool:
        numbers = Numbers()
        values = pool.map(support.double, numbers)
        assert await anext(values) == 0
    received = 0
    with pytest.raises(creche.ProcessClosedError, match="'K' was closed before the map had ended"):
        async for _ in values:
            received += 1
    assert received < numbers.given
    assert await collect(values) == []
    with pytest.raises(creche.ProcessClosedError):
        pool.map(support.double, [1])


async def test_closing_the_pool_ends_a_map_whose_consumer_waits(
    announcements: Announcements,
) -> None:
    async with anyio.create_task_group() as tasks:

        async def consume() -> None:
            with pytest.raises(creche.ProcessClosedError):
                await collect(pool.map(targets.wait_for_ever, [announcements.path] * 3))

        with pytest.raises(ZeroDivisionError):
            async with open_pool(1) as pool:
                tasks.start_soon(consume)
                pid = await announcements.get_pid()
                raise ZeroDivisionError
        assert support.wait_until_gone(pid, 0)


async def test_leaving_the_pool_ends_a_map_that_waits_for_its_input() -> None:
    send, receive = anyio.create_memory_object_stream[int](1)
    received: list[int] = []

    async def consume() -> None:
        with pytest.raises(creche.ProcessClosedError):
            await collect_into(received, pool.map(support.double, receive))

    with anyio.fail_after(TIMEOUT), send, receive:
        async with anyio.create_task_group() as tasks, open_pool(1) as pool:
            tasks.start_soon(consume)
            await send.send(1)
            await support.until(lambda: received)
    assert received == [2]


@in_asyncio
async def test_input_is_cancelled_by_somebody(anyio_backend: str) -> None:
    """A map does not take that for the end of it."""

    async def give_some() -> AsyncIterator[int]:
        yield 1
        other = asyncio.ensure_future(asyncio.sleep(TIMEOUT))
        other.cancel()
        await other

    received: list[int] = []
    with anyio.fail_after(TIMEOUT):
        async with open_pool(1) as pool:
            with pytest.raises(RuntimeError, match="the input of a map was cancelled"):
                await collect_into(received, pool.map(support.double, give_some()))
    assert received == [2]


def run_in_thread(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run an event loop that may be hard to end."""

    def run() -> None:
        with contextlib.suppress(SystemExit):
            asyncio.run(main())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def test_loop_ends_before_the_input_is_read() -> None:
    """Nothing runs of an asyncio task that is cancelled before its first step."""

    async def give() -> AsyncIterator[int]:
        while True:
            yield 1
            await asyncio.sleep(0.01)

    async def use_a_map() -> None:
        async with open_pool(1) as pool, pool.map(support.double, give()) as values:
            async for _ in values:
                pass

    async def main() -> None:
        tasks.append(asyncio.create_task(use_a_map()))

    tasks: list[asyncio.Task[None]] = []
    run_in_thread(main)


def test_task_leaves_the_loop_at_the_last_answer_of_a_dead_worker() -> None:
    async def call_and_leave(pool: ProcessPool) -> None:
        await pool.run(support.double, 1)
        sys.exit(3)

    async def main() -> None:
        async with open_pool(1, min_workers=1) as pool:
            pid = await pool.run(os.getpid)
            task = asyncio.create_task(call_and_leave(pool))
            assert pool._engine is not None
            (worker,) = pool._engine.scheduler.workforce.all
            while not pool.statistics().calls_running:
                await asyncio.sleep(0)
            # The loop is held up: the answer comes, and the worker is killed.
            wire: Any = worker.channel.wire
            assert select.select([wire._sock], [], [], TIMEOUT)[0]
            os.kill(pid, signal.SIGKILL)
            assert support.wait_until_gone(pid)
            await task

    run_in_thread(main)


async def test_leaving_the_pool_while_another_task_takes_values() -> None:
    """The map ends: with all of its values, or with an error after some of them."""
    received: list[int] = []

    async def consume(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        values = pool.map(support.double, range(5000))
        received.append(await anext(values))
        task_status.started()
        with contextlib.suppress(creche.ProcessClosedError):
            await collect_into(received, values)

    async with anyio.create_task_group() as tasks, open_pool(1) as pool:
        await tasks.start(consume)
    assert received == list(range(0, 2 * len(received), 2))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"chunksize": 0}, ValueError, "chunksize must be 1 or more"),
        ({"chunksize": -1}, ValueError, "chunksize must be 1 or more"),
        ({"chunksize": 1.5}, TypeError, 'chunksize must be an integer or "auto"'),
        ({"chunksize": "automatic"}, TypeError, 'chunksize must be an integer or "auto"'),
        ({"chunksize": True}, TypeError, 'chunksize must be an integer or "auto"'),
        ({"in_flight": 0}, ValueError, "in_flight must be 1 or more"),
        ({"in_flight": -1}, ValueError, "in_flight must be 1 or more"),
        ({"in_flight": 1.5}, TypeError, "in_flight must be an integer"),
        ({"in_flight": "auto"}, TypeError, "in_flight must be an integer"),
        ({"timeout": -1}, ValueError, "timeout must be"),
        ({"timeout": float("nan")}, ValueError, "timeout must be"),
        ({"timeout": "1"}, TypeError, "timeout must be"),
        ({"timeout": 1, "chunksize": 2}, ValueError, "chunksize must be 1 or left out"),
        ({"on_error": "ignore"}, ValueError, 'on_error must be "raise" or "yield"'),
        ({"on_error": None}, ValueError, 'on_error must be "raise" or "yield"'),
        ({"on_progress": 5}, TypeError, "on_progress must be callable"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
async def test_bad_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    async with open_pool(1) as pool:
        with pytest.raises(error, match=text):
            pool.map(targets.add, [1], **options)


async def test_max_tasks_per_worker_counts_chunks() -> None:
    async with open_pool(2, max_tasks_per_worker=2) as pool:
        pids = await collect(pool.map(targets.pid_of_worker, range(80), chunksize=10))
        assert len(pids) == 80
        assert all(pids.count(pid) <= 20 for pid in pids)
        assert os.getpid() not in pids
        assert pool.statistics().restarts == 0


async def test_closed_while_a_chunk_is_pickled() -> None:
    opened = threading.Event()
    items = [support.slow_to_pickle(opened) for _ in range(3)]
    try:
        with anyio.fail_after(TIMEOUT):
            async with open_pool(1) as pool:
                async with anyio.create_task_group() as tasks:
                    lengths = pool.map(len, items, chunksize=1)
                    tasks.start_soon(lengths.__anext__)
                    await support.until(items[0][-1].begun.is_set)
                    tasks.cancel_scope.cancel()
                opened.set()
                assert pool.statistics().calls_queued == 0
                assert await pool.run(targets.add, 1, 2) == 3
    finally:
        opened.set()


async def test_pool_left_while_a_chunk_is_pickled() -> None:
    opened = threading.Event()
    items = [support.slow_to_pickle(opened) for _ in range(3)]
    errors: list[BaseException] = []

    async def consume(pool: ProcessPool) -> None:
        try:
            await pool.map(len, items, chunksize=1)
        except BaseException as error:
            errors.append(error)

    try:
        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                with pytest.raises(KeyError):
                    async with open_pool(1) as pool:
                        tasks.start_soon(consume, pool)
                        await support.until(items[0][-1].begun.is_set)
                        raise KeyError
                opened.set()
    finally:
        opened.set()
    assert [type(error) for error in errors] == [creche.ProcessClosedError]
