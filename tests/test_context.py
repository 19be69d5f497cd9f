"""Context variables, and the trace context, that travel with calls."""

from __future__ import annotations

import contextvars
import functools
import re
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import cloudpickle
import output_targets as targets
import pytest
import support
from output_targets import other_name, request_id, user
from support import TIMEOUT, Announcements

import creche
import creche.context
from creche import open_nursery, open_pool, run_in_process, to_process
from creche._carried import carriers, in_context

pytestmark = pytest.mark.anyio

CONTEXTS = [
    targets.context,
    targets.context_async,
    targets.context_of_coroutine,
    targets.ContextCallable(),
    targets.ContextCallableAsync(),
    functools.partial(targets.context, 1),
    functools.partial(targets.context_async, 1),
]


@pytest.fixture
def carried() -> Iterator[None]:
    with creche.context.carry(request_id, user):
        yield
    assert not carriers.all


async def in_fresh_process(method: str, func: Callable[..., Any]) -> Any:
    return await run_in_process(func, start_method=method)


async def in_nursery(method: str, func: Callable[..., Any]) -> Any:
    async with open_nursery(start_method=method) as nursery:
        process = nursery.start_soon(func)
    return process.return_value


async def in_async_process(method: str, func: Callable[..., Any]) -> Any:
    return await creche.AsyncProcess(target=func, start_method=method)


async def in_pool(method: str, func: Callable[..., Any]) -> Any:
    async with open_pool(1, start_method=method) as pool:
        return await pool.run(func)


async def in_map(method: str, func: Callable[..., Any]) -> Any:
    async with open_pool(2, start_method=method) as pool:
        values = await pool.map(func, range(20))
        values += await pool.map(func, range(2), range(2))
    assert all(value == values[0] for value in values)
    return values[0]


async def in_pool_of_cloudpickle(method: str, func: Callable[..., Any]) -> Any:
    async with open_pool(1, start_method=method, serializer=cloudpickle) as pool:
        return await pool.run(func)


async def in_warm_call(method: str, func: Callable[..., Any]) -> Any:
    return await to_process.run_sync(func)


WAYS: list[Callable[[str, Callable[..., Any]], Awaitable[Any]]] = [
    in_fresh_process,
    in_nursery,
    in_async_process,
    in_pool,
    in_map,
    in_pool_of_cloudpickle,
    in_warm_call,
]


def name_of(way: Any) -> str:
    return getattr(way, "__name__", type(way).__name__)


# --- what travels ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("carried")
@pytest.mark.parametrize("way", WAYS, ids=name_of)
@pytest.mark.parametrize("function", CONTEXTS, ids=name_of)
async def test_values_travel(way: Any, function: Any) -> None:
    request_id.set("r1")
    assert await way(None, function) == ("r1", "nobody")
    user.set("somebody")
    assert await way(None, function) == ("r1", "somebody")


@pytest.mark.usefixtures("carried")
@pytest.mark.parametrize("way", [in_fresh_process, in_pool, in_map])
async def test_start_methods(way: Any, start_method: str) -> None:
    request_id.set({"number": 1})
    for func in (targets.context, targets.context_async):
        assert await way(start_method, func) == ({"number": 1}, "nobody")


@pytest.mark.parametrize("way", WAYS, ids=name_of)
async def test_nothing_travels_unasked(way: Any) -> None:
    request_id.set("r1")
    assert await way(None, targets.context) == (None, "nobody")


@pytest.mark.usefixtures("carried")
async def test_without_a_value_nothing_is_set() -> None:
    assert in_context(targets.context) is targets.context
    assert await run_in_process(targets.context) == (None, "nobody")


@pytest.mark.usefixtures("carried")
async def test_moment_of_the_call() -> None:
    """In a nursery it is that of ``start_soon``; of a process, that of its start."""
    request_id.set("before")
    process = creche.AsyncProcess(target=targets.context)
    limiter = anyio.CapacityLimiter(1)
    async with open_nursery(limiter=limiter) as nursery, open_pool(1) as pool:
        started = [nursery.start_soon(targets.context)]
        request_id.set("then")
        started.append(nursery.start_soon(targets.context))
        mapped = pool.map(targets.context, range(2))
        await process.start()
        request_id.set("after")
        assert await mapped == [("then", "nobody")] * 2
    assert [p.return_value[0] for p in started] == ["before", "then"]
    assert (await process)[0] == "then"


@pytest.mark.usefixtures("carried")
async def test_values_are_those_of_the_calling_task() -> None:
    seen: dict[str, Any] = {}

    async def call(name: str) -> None:
        request_id.set(name)
        await anyio.sleep(0)
        seen[name] = (await pool.run(targets.context))[0]

    async with open_pool(2) as pool, anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(call, f"r{number}")
    assert seen == {f"r{number}": f"r{number}" for number in range(20)}


@pytest.mark.usefixtures("carried")
@pytest.mark.parametrize("setter", [targets.set_request_id, targets.set_request_id_async])
async def test_next_call_sees_nothing_of_it(setter: Any, start_method: str) -> None:
    async with open_pool(1, start_method=start_method) as pool:
        with creche.context.carry(other_name):
            other_name.set(5)
            token = request_id.set("first")
            assert await pool.run(setter, "set in the child") == ("first", "nobody")
            request_id.reset(token)
            assert await pool.run(targets.context) == (None, "nobody")
            assert await pool.run(targets.context_async) == (None, "nobody")
            request_id.set("mapped")
            values = await pool.map(setter, range(10))
            assert values == [("mapped", "nobody")] * 10
        creche.context.drop(request_id, user)
        assert await pool.run(targets.context) == (None, "nobody")


@pytest.mark.usefixtures("carried")
async def test_stopped_function_sees_them_to_its_end(
    announcements: Announcements, start_method: str
) -> None:
    request_id.set("r1")
    for func in (targets.wait_in_context, targets.wait_in_context_async):
        process = creche.AsyncProcess(
            target=func, args=(announcements.path,), start_method=start_method
        )
        async with process:
            assert await announcements.get() == "r1"
            await process.terminate(creche.StopPolicy(grace=TIMEOUT))
        assert await announcements.get() == "stopped r1"


@pytest.mark.usefixtures("carried")
@pytest.mark.parametrize("function", [targets.wait_in_context, targets.wait_in_context_async])
async def test_cancelled_call_of_a_pool(announcements: Announcements, function: Any) -> None:
    request_id.set("r1")
    async with open_pool(1, stop=creche.StopPolicy(grace=TIMEOUT)) as pool:
        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.run, function, announcements.path)
                assert await announcements.get() == "r1"
                tasks.cancel_scope.cancel()
        assert await announcements.get() == "stopped r1"
        assert await pool.run(targets.context) == ("r1", "nobody")


@pytest.mark.usefixtures("carried")
async def test_keyword_arguments_and_large_ones() -> None:
    request_id.set("r" * 1_000_000)
    data = bytes(5_000_000)
    assert await run_in_process(support.call, support.double, 2) == 4
    async with open_pool(1) as pool:
        value = await pool.run(functools.partial(dict, data=data))
        assert value == {"data": data}
        seen = await pool.run(targets.context)
        assert seen[0] == "r" * 1_000_000


@pytest.mark.usefixtures("carried")
async def test_grandchildren_have_their_own_registry() -> None:
    request_id.set("r1")
    value = await run_in_process(support.nested, "creche", targets.context)
    assert value == (None, "nobody")


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("carried")
@pytest.mark.parametrize("way", WAYS, ids=name_of)
async def test_value_that_cannot_be_pickled(way: Any) -> None:
    user.set(threading.Lock())
    request_id.set("fine")
    with pytest.raises((creche.SerializationError, ExceptionGroup)) as caught:
        await way(None, targets.context)
    error: Any = caught.value
    if way is in_nursery:
        (error,) = error.exceptions
    assert isinstance(error, creche.SerializationError)
    assert re.search(r"variable output_targets\.user, .*cannot be pickled", str(error))


@pytest.mark.usefixtures("carried")
async def test_function_that_cannot_be_pickled_is_named() -> None:
    request_id.set("fine")

    def local() -> None: ...

    async with open_pool(1) as pool:
        for call in (pool.run, run_in_process):
            with pytest.raises(creche.SerializationError, match=r"function, .*<locals>\.local,"):
                await call(local)
        with pytest.raises(creche.SerializationError, match=r"argument 2, <unlocked"):
            await pool.run(max, 1, threading.Lock())


@pytest.mark.usefixtures("carried")
@pytest.mark.parametrize("way", [in_fresh_process, in_pool])
async def test_value_that_cannot_be_unpickled(way: Any) -> None:
    request_id.set(targets.RefusesUnpickling())
    with pytest.raises(creche.SerializationError, match="could not unpickle"):
        await way(None, targets.context)


@pytest.mark.usefixtures("carried")
async def test_errors_and_names_are_those_of_the_function() -> None:
    request_id.set("r1")
    async with open_pool(1) as pool:
        with pytest.raises(LookupError, match="r1") as caught:
            await pool.run(targets.fail_in_context)
        assert "_context.py" not in str(caught.value.__cause__)
        with pytest.raises(creche.ProcessTimeout, match="a call of 'wait_for_ever' in"):
            await pool.run(support.wait_for_ever, timeout=0)
    process = creche.AsyncProcess(target=targets.context)
    assert process.name.startswith("Process-")
    async with open_nursery() as nursery:
        assert nursery.start_soon(targets.context).name.startswith("context-")


async def test_what_cannot_be_found() -> None:
    nowhere: contextvars.ContextVar[int] = contextvars.ContextVar("nowhere")
    with pytest.raises(ValueError, match="'nowhere' cannot be carried: it is not an attribute"):
        creche.context.carry(nowhere)
    with pytest.raises(ValueError, match="'hidden'"):
        creche.context.carry(targets.Holder.hidden)
    with pytest.raises(ValueError, match="'nowhere'"):
        creche.context.carry(request_id, nowhere)
    with pytest.raises(TypeError, match=r"expected a contextvars\.ContextVar, not str"):
        creche.context.carry("request_id")  # type: ignore[arg-type]
    assert not carriers.all


# --- the registry ---------------------------------------------------------------------------------


async def test_block_takes_back_what_it_has_added() -> None:
    creche.context.carry(request_id)
    with creche.context.carry(request_id, user):
        assert len(carriers.all) == 2
        with creche.context.carry(user):
            pass
        assert len(carriers.all) == 2
    assert request_id in carriers
    assert user not in carriers
    creche.context.drop(request_id, user)
    creche.context.drop(request_id)
    assert not carriers.all


async def test_variable_whose_name_is_another() -> None:
    with creche.context.carry(other_name):
        (carrier,) = carriers.all
        assert carrier.name.endswith(("output_targets.also_known_as", "output_targets.other_name"))
        other_name.set(3)
        assert await run_in_process(other_name_in_child) == 3


def other_name_in_child() -> int:
    return targets.other_name.get()


IN_MAIN = """
import contextvars, sys
import anyio
import creche.context

request_id = contextvars.ContextVar("request_id")
creche.context.carry(request_id)  # in every child, too, which imports this again

def context(*_):
    return request_id.get(None)

def nested(method):
    return anyio.run(in_child, method)

async def in_child(method):
    request_id.set("child's own")
    return await creche.run_in_process(context, start_method=method)

async def main():
    request_id.set("r1")
    for method in ("creche", "forkserver", "spawn", "fork"):
        assert await creche.run_in_process(context, start_method=method) == "r1"
        async with creche.open_pool(1, start_method=method) as pool:
            assert await pool.map(context, range(3)) == ["r1"] * 3
        assert await creche.run_in_process(nested, method, start_method=method) == "child's own"
    print("well")

if __name__ == "__main__":
    anyio.run(main)
"""


async def test_variable_of_the_main_module(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(IN_MAIN, encoding="utf-8")
    done = await anyio.run_process([sys.executable, str(script)])
    assert done.stdout == b"well\n"


async def test_variable_of_a_main_module_that_no_child_can_import() -> None:
    code = (
        "import contextvars, creche.context\n"
        "variable = contextvars.ContextVar('variable')\n"
        "creche.context.carry(variable)"
    )
    done = await anyio.run_process([sys.executable, "-c", code], check=False)
    assert done.returncode == 1
    assert b"ValueError: the context variable 'variable' cannot be carried" in done.stderr


# --- OpenTelemetry --------------------------------------------------------------------------------


@pytest.fixture
def traced() -> Iterator[None]:
    with creche.context.carry_trace_context():
        yield
    assert not carriers.all


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("way", WAYS, ids=name_of)
@pytest.mark.parametrize("function", [targets.trace_ids, targets.trace_ids_async], ids=name_of)
async def test_span_travels(way: Any, function: Any) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    with TracerProvider().get_tracer("test").start_as_current_span("parent") as span:
        context = span.get_span_context()
        if way is in_map:
            async with open_pool(1) as pool:
                values = await pool.map(targets.child_span, range(3))
            assert values == [(context.trace_id, context.span_id)] * 3
        else:
            assert await way(None, function) == (context.trace_id, context.span_id)


@pytest.mark.usefixtures("traced")
async def test_spans_of_the_child_are_children(start_method: str) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    async with open_pool(1, start_method=start_method) as pool:
        with TracerProvider().get_tracer("test").start_as_current_span("parent") as span:
            context = span.get_span_context()
            expected = context.trace_id, context.span_id
            assert await run_in_process(targets.child_span, start_method=start_method) == expected
            assert await pool.run(targets.child_span) == expected
        trace_id, parent = await pool.run(targets.child_span)
        assert trace_id != context.trace_id
        assert not parent


@pytest.mark.usefixtures("traced")
async def test_baggage_travels() -> None:
    from opentelemetry import baggage, context

    token = context.attach(baggage.set_baggage("user", "somebody"))
    try:
        assert await run_in_process(targets.baggage) == "somebody"
    finally:
        context.detach(token)
    assert await run_in_process(targets.baggage) is None


async def test_without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.propagate", None)
    with pytest.raises(ImportError, match=r"pip install 'creche\[opentelemetry\]'"):
        creche.context.carry_trace_context()
    assert not carriers.all
