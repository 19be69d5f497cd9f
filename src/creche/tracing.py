"""OpenTelemetry spans for processes and for the calls of pools.

Needs the extra ``creche[opentelemetry]``, and a tracer provider that the application sets up::

    with creche.tracing.trace_processes():
        anyio.run(main)
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ._instruments import (
    Instrument,
    ObservedCall,
    ObservedProcess,
    add_instrument,
    instruments,
    remove_instrument,
)
from ._wire._context import NOTHING

try:
    from opentelemetry import context as otel_context
    from opentelemetry import propagate, trace
    from opentelemetry.trace import Span, StatusCode, Tracer, TracerProvider
except ImportError as error:
    raise ImportError(
        "creche.tracing needs the API of OpenTelemetry: pip install 'creche[opentelemetry]'"
    ) from error

__all__ = ["ProcessTracing", "trace_processes"]


def trace_processes(
    tracer_provider: TracerProvider | None = None, *, workers: bool = False
) -> ProcessTracing:
    """Have a span made for each call of a pool, and for each process that runs one function.

    It begins when the call is made, or the process is started, as a child of the caller's span, and
    tells how that ends: with an exception, by a signal, cancelled. Spans that the function makes in
    the child are its children; the child exports them, so it needs a tracer provider of its own.
    (Those of a generator in :func:`creche.open_stream` are not connected.) A chunk of a map is one
    span.

    Spans end in the event loop, or in a thread of creche's, and so should be exported elsewhere, as
    OpenTelemetry's ``BatchSpanProcessor`` does it.

    :param tracer_provider: by default that of ``opentelemetry.trace``
    :param workers: whether the workers of pools have spans, each of which begins a trace of its
        own, as it serves many callers
    :return: what ends it, as a context manager
    """
    tracing = ProcessTracing(_Spans(trace.get_tracer("creche", tracer_provider=tracer_provider)))
    tracing._spans.workers = workers
    add_instrument(tracing._spans)
    return tracing


class ProcessTracing:
    """What :func:`trace_processes` returns. As a context manager, it ends the tracing with its
    block. From any thread."""

    def __init__(self, spans: _Spans) -> None:
        self._spans = spans

    def stop(self) -> None:
        """Have no more spans made. Those that were begun end as they would have."""
        self._spans.stop()

    def __enter__(self) -> ProcessTracing:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()


class _Spans(Instrument):
    """Makes the spans. It stays among the instruments until the last of them has ended."""

    def __init__(self, tracer: Tracer) -> None:
        self.workers = False
        self._tracer = tracer
        self._open: dict[int, Span] = {}  # by the numbers of processes and calls
        self._stopped = False
        self._lock = threading.Lock()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            over = not self._open
        if over:
            remove_instrument(self)

    def process_created(self, process: ObservedProcess) -> None:
        is_worker = process.kind == "worker"
        if is_worker and not self.workers:
            return
        attributes: dict[str, Any] = {"creche.process.name": process.name}
        if process.func is not None:
            attributes["code.function.name"] = process.func
        if process.pool is not None:
            attributes["creche.pool.name"] = process.pool
        name = f"worker of {process.pool}" if is_worker else process.func or process.name
        context = otel_context.Context() if is_worker else None
        self._begin(process, name, attributes, context)

    def process_started(self, process: ObservedProcess) -> None:
        span = self._open.get(process.id)
        if span is not None and process.pid is not None:
            span.set_attribute("process.pid", process.pid)
            span.add_event("started")

    def process_ready(self, process: ObservedProcess) -> None:
        if (span := self._open.get(process.id)) is not None:
            span.add_event("ready")

    def process_stop_requested(self, process: ObservedProcess) -> None:
        if (span := self._open.get(process.id)) is not None:
            span.add_event("stop requested")

    def process_exited(self, process: ObservedProcess) -> None:
        span = self._take(process)
        if span is not None:
            if process.exitcode is not None:
                span.set_attribute("process.exit.code", process.exitcode)
            _end(span, process.exception)
            self._ended()

    def call_queued(self, call: ObservedCall) -> None:
        attributes: dict[str, Any] = {
            "code.function.name": call.func,
            "creche.pool.name": call.pool,
            "creche.items": call.items,
        }
        self._begin(call, call.func, attributes, None)

    def call_started(self, call: ObservedCall) -> None:
        span = self._open.get(call.id)
        if span is not None and call.process is not None and call.process.pid is not None:
            span.set_attribute("process.pid", call.process.pid)
            span.set_attribute("creche.process.name", call.process.name)
            span.add_event("started", {"process.pid": call.process.pid})

    def call_finished(self, call: ObservedCall) -> None:
        span = self._take(call)
        if span is not None:
            span.set_attribute("creche.status", str(call.status))
            if call.seconds is not None:
                span.set_attribute("creche.seconds", call.seconds)
            _end(span, call.exception)
            self._ended()

    def _begin(
        self,
        subject: ObservedProcess | ObservedCall,
        name: str,
        attributes: dict[str, Any],
        context: otel_context.Context | None,
    ) -> None:
        if self._stopped:
            return
        span = self._tracer.start_span(name, context, attributes=attributes)
        load: dict[str, str] = {}
        propagate.inject(load, trace.set_span_in_context(span, context))
        if load:
            # As a string, which is pickled in no time.
            subject._loads[span_carrier.key] = json.dumps(load)
        with self._lock:
            self._open[subject.id] = span

    def _take(self, subject: ObservedProcess | ObservedCall) -> Span | None:
        with self._lock:
            return self._open.pop(subject.id, None)

    def _ended(self) -> None:
        with self._lock:
            over = self._stopped and not self._open
        if over:
            instruments.remove(self)


def _end(span: Span, error: BaseException | None) -> None:
    if error is not None:
        kind = type(error)
        span.record_exception(error)
        span.set_attribute("error.type", f"{kind.__module__}.{kind.__qualname__}")
        span.set_status(StatusCode.ERROR, f"{kind.__name__}: {error}")
    span.end()


class SpanCarrier:
    """Takes the span of a call to its function."""

    key = "creche.tracing:span_carrier"
    name = "the span of the call"

    def take(self) -> Any:
        return NOTHING  # it is given what it carries

    def put(self, load: Any) -> Callable[[], object]:
        token = otel_context.attach(propagate.extract(json.loads(load)))
        return lambda: otel_context.detach(token)


span_carrier = SpanCarrier()
