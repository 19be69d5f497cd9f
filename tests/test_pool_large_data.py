"""Large arguments and values of a pool: they arrive whole, hold up nobody, and leave nothing."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import support
import targets

import creche
from creche import open_pool

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024

# Around where a payload goes through shared memory, or a stream, and into what kind of memory.
SIZES = [0, 1, 1000, 65_000, 65_536, 66_000, 300_000, MIB, 1_572_800, 3 * MIB, 5 * MIB]


def resident() -> int:
    """Bytes of memory that this process has, mapped segments included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def segments() -> int:
    """How many segments this process has mapped."""
    return Path("/proc/self/maps").read_text().count("memfd:creche")


def segment_descriptors() -> int:
    links = []
    for descriptor in support.open_descriptors():
        try:
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:
            continue
    return sum("memfd:creche" in link for link in links)


# --- bytes --------------------------------------------------------------------------------------


async def test_bytes_of_all_sizes() -> None:
    async with open_pool(1) as pool:
        for size in SIZES:
            data = os.urandom(size)
            for value in (data, bytearray(data), [data], {"a": data, "b": bytearray(data)}):
                result = await pool.run(targets.echo, value)
                assert result == value
                assert type(result) is type(value)
        assert pool.statistics().restarts == 0


async def test_large_bytes_both_ways(start_method: str) -> None:
    data = os.urandom(MIB) * 8
    async with open_pool(1, start_method=start_method) as pool:
        for _ in range(3):
            assert await pool.run(targets.echo, data) == data
        assert await pool.run(len, data) == 8 * MIB
        assert await pool.run(support.payload, 8 * MIB) == bytes(8 * MIB)


async def test_large_text_and_many_objects() -> None:
    text = "ä" * 2 * MIB
    objects = support.many_objects(50_000)
    async with open_pool(1) as pool:
        assert await pool.run(targets.echo, text) == text
        assert await pool.run(targets.echo, objects) == objects
        assert await pool.run(support.many_objects, 50_000) == objects


async def test_large_exception() -> None:
    async with open_pool(1) as pool:
        message = "x" * 3 * MIB
        with pytest.raises(LookupError) as caught:
            await pool.run(targets.fail, message)
        assert caught.value.args == (message,)
        assert await pool.run(targets.add, 1) == 1


async def test_large_calls_at_once() -> None:
    async with open_pool(2) as pool, anyio.create_task_group() as tasks:

        async def use(number: int) -> None:
            data = bytes([number]) * (number * 400_000 + 1)
            for _ in range(3):
                assert await pool.run(targets.echo, data) == data

        for number in range(12):
            tasks.start_soon(use, number)


async def test_large_and_small_calls_at_once() -> None:
    data = os.urandom(4 * MIB)
    async with open_pool(2) as pool, anyio.create_task_group() as tasks:

        async def use_large() -> None:
            for _ in range(5):
                assert await pool.run(targets.echo, data) == data

        async def use_small(number: int) -> None:
            for i in range(50):
                assert await pool.run(targets.add, number, i) == number + i

        for number in range(3):
            tasks.start_soon(use_large)
            tasks.start_soon(use_small, number)


# --- arrays -------------------------------------------------------------------------------------


async def test_arrays_of_all_sizes(start_method: str) -> None:
    async with open_pool(1, start_method=start_method) as pool:
        for size in [0, 1, 1000, 8191, 8192, 33_000, MIB]:
            array = np.arange(size)
            result = await pool.run(targets.double_array, array)
            assert np.array_equal(result, array * 2)
            assert result.flags.writeable
            result += 1
            assert np.array_equal(array, np.arange(size))


async def test_arrays_that_come_back_are_apart() -> None:
    async with open_pool(1) as pool:
        first = await pool.run(targets.make_array, MIB)
        second = await pool.run(targets.make_array, MIB)
        first[:] = 0
        assert np.array_equal(second, np.arange(MIB))
        assert not np.shares_memory(first, second)
        assert np.array_equal(await pool.run(targets.echo, first), first)


async def test_arrays_arrive_writable_in_the_worker() -> None:
    async with open_pool(1) as pool:
        for size in (10, 20_000, MIB):
            array = np.ones(size)
            expected = (size,), "float64", True, float(size)
            assert await pool.run(targets.describe_array, array) == expected


async def test_many_small_arrays() -> None:
    arrays = [np.full(10, number) for number in range(2000)]
    async with open_pool(1) as pool:
        result = await pool.run(targets.echo, arrays)
        assert all(np.array_equal(*pair) for pair in zip(result, arrays, strict=True))
        result[0][0] = 5


async def test_several_arrays_of_different_sizes() -> None:
    arrays = [np.arange(size, dtype=np.int8) for size in (*SIZES, *reversed(SIZES))]
    async with open_pool(1) as pool:
        result = await pool.run(targets.echo, arrays)
        assert all(np.array_equal(*pair) for pair in zip(result, arrays, strict=True))
        assert all(array.flags.writeable for array in result)


@pytest.mark.parametrize(
    "make",
    [
        lambda base: base[::2],
        lambda base: base[::-1],
        lambda base: base.T,
        lambda base: np.asfortranarray(base),
        lambda base: base[:, 1:-1],
        lambda base: np.broadcast_to(base[0], base.shape),
        lambda base: base.astype("U3"),
        lambda base: base.astype(object),
        lambda base: base.astype([("a", "i4")]),
        lambda base: base.reshape(-1),
    ],
)
async def test_kinds_of_arrays(make: Any) -> None:
    async with open_pool(1) as pool:
        for side in (3, 500):
            array = make(np.arange(side * side).reshape(side, side))
            result = await pool.run(targets.echo, array)
            assert np.array_equal(result, array)
            assert result.dtype == array.dtype
            assert result.shape == array.shape


async def test_read_only_array() -> None:
    array = np.arange(MIB)
    array.flags.writeable = False
    async with open_pool(1) as pool:
        assert np.array_equal(await pool.run(targets.echo, array), array)


async def test_nested_structures_with_several_buffers() -> None:
    value = {
        "arrays": [np.arange(MIB), {"inner": (np.ones((300, 300)), np.zeros(0))}],
        "bytes": os.urandom(2 * MIB),
        "more": [bytearray(b"x" * 500_000), "text" * 100_000, None],
        "same": (array := np.arange(100_000), array),
    }
    async with open_pool(1) as pool:
        for _ in range(2):
            result = await pool.run(targets.echo, value)
            assert np.array_equal(result["arrays"][0], value["arrays"][0])
            assert np.array_equal(result["arrays"][1]["inner"][0], np.ones((300, 300)))
            assert result["arrays"][1]["inner"][1].size == 0
            assert result["bytes"] == value["bytes"]
            assert result["more"] == value["more"]
            assert result["same"][0] is result["same"][1]


# --- maps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 4, "auto"])
async def test_map_over_arrays(chunksize: Any) -> None:
    arrays = [np.full(size, size) for size in (10, 100_000, 3, 40_000, MIB // 4, 0) * 3]
    async with open_pool(2) as pool:
        for ordered in (True, False):
            values = pool.map(targets.double_array, arrays, chunksize=chunksize, ordered=ordered)
            results = [value async for value in values]
            expected = [2 * array for array in arrays]
            if not ordered:
                results.sort(key=len)
                expected.sort(key=len)
            assert all(np.array_equal(*pair) for pair in zip(results, expected, strict=True))
        for array in arrays:
            assert (array == array.size).all()


async def test_map_over_large_bytes() -> None:
    async with open_pool(2) as pool:
        items = [bytes([number]) * 700_000 for number in range(20)]
        assert [value async for value in pool.map(targets.echo, items)] == items
        lengths = pool.map(len, items, in_flight=3)
        assert [value async for value in lengths] == [700_000] * 20


async def test_map_with_large_and_bad_items() -> None:
    items: list[Any] = [b"x" * MIB, lambda: None, b"y" * 2 * MIB, support.RefusesUnpickling()]
    async with open_pool(2) as pool:
        outcomes = [outcome async for outcome in pool.map(targets.echo, items, on_error="yield")]
        for index in (0, 2):
            assert outcomes[index].value == items[index]
        for index in (1, 3):
            assert isinstance(outcomes[index].exception, creche.SerializationError)


# --- what is left -------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_memory_is_released_when_its_last_user_lets_go() -> None:
    async with open_pool(1) as pool:
        assert await pool.run(targets.add, 1) == 1
        gc.collect()
        before, segments_before, descriptors_before = resident(), segments(), segment_descriptors()
        array = await pool.run(targets.make_array, 8 * MIB)
        array += 1
        view = array[: MIB // 2]
        assert resident() - before > 48 * MIB
        del array
        # What resumed this task knows the value, too, until the task waits for something else.
        await anyio.wait_all_tasks_blocked()
        gc.collect()
        assert resident() - before > 48 * MIB
        assert view[5] == 6
        del view
        gc.collect()
        assert segments() == segments_before
        assert segment_descriptors() == descriptors_before
        assert resident() - before < 24 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_memory_does_not_grow_with_calls() -> None:
    array = np.ones(2 * MIB)
    data = bytes(16 * MIB)
    async with open_pool(1) as pool:

        async def use() -> None:
            for _ in range(3):
                await pool.run(targets.double_array, array)
                await pool.run(targets.echo, data)

        assert await pool.run(targets.add, 1) == 1
        gc.collect()
        segments_before, descriptors_before = segments(), segment_descriptors()
        await use()
        gc.collect()
        before = resident()
        for _ in range(4):
            await use()
        await anyio.wait_all_tasks_blocked()
        gc.collect()
        assert resident() - before < 200 * MIB  # 384 went, and 384 came
        assert segments() == segments_before
        assert segment_descriptors() == descriptors_before


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_what_a_worker_was_given_is_released_there() -> None:
    async with open_pool(1) as pool:
        idle = await pool.run(resident_in_worker)
        for _ in range(3):
            assert await pool.run(targets.describe_array, np.ones(8 * MIB))
        assert await pool.run(resident_in_worker) - idle < 40 * MIB


resident_in_worker = resident


async def test_arrays_outlive_the_pool() -> None:
    async with open_pool(1) as pool:
        array = await pool.run(targets.make_array, MIB)
    assert np.array_equal(array, np.arange(MIB))
    array[0] = 7


async def test_cancelled_with_large_data() -> None:
    """Wherever it is just then, nothing is left (which the check after each test sees to)."""
    data = os.urandom(4 * MIB)
    async with open_pool(1) as pool:
        for delay in (0.0, 0.001, 0.003, 0.006, 0.012):
            with anyio.move_on_after(delay):
                await pool.run(targets.echo, data)
        assert await pool.run(targets.echo, data) == data
        assert pool.statistics().calls_queued == 0


# --- meanwhile ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "array", "text"])
async def test_loop_turns_while_large_data_goes_and_comes(kind: str) -> None:
    value: Any = {
        "bytes": lambda: bytes(64 * MIB),
        "array": lambda: np.ones(8 * MIB),
        "text": lambda: "x" * 64 * MIB,
    }[kind]()
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            await anyio.sleep(0)
            turns += 1

    async with open_pool(1, min_workers=1) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        result = await pool.run(targets.echo, value)
        tasks.cancel_scope.cancel()
    assert np.array_equal(result, value) if kind == "array" else result == value
    assert turns > 10
