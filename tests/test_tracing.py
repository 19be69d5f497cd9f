"""OpenTelemetry spans of processes and calls."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator

import anyio
import instrument_targets as targets
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from support import Announcements

import creche
from creche import ProcessDied, open_nursery, open_pool, open_stream, run_in_process, to_process
from creche._instruments import instruments
from creche.tracing import trace_processes

pytestmark = pytest.mark.anyio


class Spans:
    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    def take(self) -> list[ReadableSpan]:
        found = list(self._exporter.get_finished_spans())
        self._exporter.clear()
        return found

    def take_only(self) -> ReadableSpan:
        (span,) = self.take()
        return span


@pytest.fixture
def spans() -> Iterator[Spans]:
    spans = Spans()
    with trace_processes(spans.provider):
        yield spans
    assert not instruments.all


def ids(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def parent_of(span: ReadableSpan) -> str | None:
    return None if span.parent is None else f"{span.parent.span_id:016x}"


@pytest.mark.parametrize("function", [targets.span_ids, targets.span_ids_async])
async def test_call(spans: Spans, function: object) -> None:
    async with open_pool(1, name="tracers") as pool:
        with spans.tracer.start_as_current_span("parent") as parent:
            inner = await pool.run(function)  # type: ignore[arg-type]
        call, _ = spans.take()
        assert inner == ids(call)
        assert parent_of(call) == ids(parent)[1]  # type: ignore[arg-type]
        assert call.name == f"instrument_targets.{function.__name__}"  # type: ignore[attr-defined]
        attributes = dict(call.attributes or {})
        assert attributes.pop("creche.seconds") is not None
        assert attributes == {
            "code.function.name": call.name,
            "creche.pool.name": "tracers",
            "creche.items": 1,
            "creche.status": "ok",
            "creche.process.name": "tracers-worker-1",
            "process.pid": pool.statistics().workers[0].pid,
        }
        assert call.status.status_code is StatusCode.UNSET
        assert await pool.run(targets.span_ids) != inner
    assert spans.take_only().parent is None


async def test_process(spans: Spans, start_method: str) -> None:
    with spans.tracer.start_as_current_span("parent") as parent:
        inner = await run_in_process(targets.span_ids, start_method=start_method)
    process, _ = spans.take()
    assert inner == ids(process)
    assert parent_of(process) == ids(parent)[1]  # type: ignore[arg-type]
    assert process.name == "instrument_targets.span_ids"
    assert process.attributes is not None
    assert process.attributes["process.exit.code"] == 0
    assert [event.name for event in process.events] == ["started"]


async def test_nursery_and_to_process(spans: Spans) -> None:
    async with open_nursery() as nursery:
        process = nursery.start_soon(targets.span_ids)
    assert process.return_value == ids(spans.take_only())
    assert await to_process.run_sync(targets.span_ids) == ids(spans.take_only())


async def test_map(spans: Spans) -> None:
    async with open_pool(2) as pool:
        with spans.tracer.start_as_current_span("parent") as parent:
            values = pool.map(targets.span_ids_of, range(20), chunksize=5)
        inner = await values
    chunks = [span for span in spans.take() if span.name != "parent"]
    assert {parent_of(chunk) for chunk in chunks} == {ids(parent)[1]}  # type: ignore[arg-type]
    assert set(inner) <= {ids(chunk) for chunk in chunks}
    assert len(set(inner)) >= 4


async def test_with_the_context_of_the_caller(spans: Spans) -> None:
    """The span of the call is nearer than that of the caller."""
    with creche.context.carry_trace_context(), spans.tracer.start_as_current_span("parent"):
        async with open_pool(1) as pool:
            inner = await pool.run(targets.span_ids)
            assert inner == ids(spans.take_only())
            assert await pool.map(targets.span_ids_of, [1]) == [ids(spans.take_only())]


async def test_failures(spans: Spans) -> None:
    async with open_pool(1) as pool:
        with pytest.raises(LookupError):
            await pool.run(targets.fail, "text")
        span = spans.take_only()
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "LookupError: text"
        assert span.attributes is not None
        assert span.attributes["error.type"] == "builtins.LookupError"
        assert [event.name for event in span.events] == ["started", "exception"]

        with pytest.raises(ProcessDied):
            await pool.run(targets.die)
        span = spans.take_only()
        assert span.attributes is not None
        assert span.attributes["creche.status"] == "killed"
        assert span.status.status_code is StatusCode.ERROR
    with pytest.raises(LookupError):
        await run_in_process(targets.fail, "text")
    span = spans.take_only()
    assert span.status.description == "LookupError: text"
    assert span.attributes is not None
    assert span.attributes["process.exit.code"] == 1


async def test_cancelled(spans: Spans, announcements: Announcements) -> None:
    async with open_pool(1) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run, targets.announce_and_wait, announcements.path)
        await announcements.get()
        tasks.cancel_scope.cancel()
    span = spans.take_only()
    assert span.attributes is not None
    assert span.attributes["creche.status"] == "cancelled"
    assert span.status.status_code is StatusCode.UNSET


async def test_stream(spans: Spans) -> None:
    async with open_stream(targets.count_to, 3) as numbers:
        assert [number async for number in numbers] == [0, 1, 2]
    assert spans.take_only().name == "instrument_targets.count_to"


async def test_ready(spans: Spans) -> None:
    async with open_nursery() as nursery:
        await nursery.start(targets.ready_then_return, 1)
    assert [event.name for event in spans.take_only().events] == ["started", "ready"]


async def test_workers() -> None:
    spans = Spans()
    with trace_processes(spans.provider, workers=True), spans.tracer.start_as_current_span("top"):
        async with open_pool(1, name="tracers") as pool:
            await pool.run(targets.add, 1)
    call, worker, _ = spans.take()
    assert worker.name == "worker of tracers"
    assert worker.parent is None
    assert ids(worker)[0] != ids(call)[0]


async def test_what_was_begun_ends(announcements: Announcements) -> None:
    spans = Spans()
    async with open_pool(2) as pool, anyio.create_task_group() as tasks:
        with trace_processes(spans.provider):
            tasks.start_soon(pool.run, targets.announce_and_wait, announcements.path)
            await announcements.get()
        await pool.run(targets.add, 1)
        assert instruments.all
        tasks.cancel_scope.cancel()
    assert spans.take_only().name == "instrument_targets.announce_and_wait"
    assert not instruments.all


async def test_without_a_provider() -> None:
    with trace_processes():
        async with open_pool(1) as pool:
            assert await pool.run(functools.partial(targets.add, 1), 2) == 3


def test_without_opentelemetry() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "try: import creche.tracing\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'creche[opentelemetry]'" in done.stdout
