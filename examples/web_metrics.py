"""What ``web_service.py`` tells Prometheus: requests, how long they take, and its pool."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import creche


class Metrics:
    """The metrics of one service.

    :param paths: those that are told apart
    """

    def __init__(self, paths: Collection[str], pool: creche.ProcessPool) -> None:
        self.paths = paths
        self.registry = CollectorRegistry()
        self.registry.register(PoolCollector(pool))
        self.requests = Counter(
            "http_requests", "Requests answered", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "http_request_seconds", "From a request to its answer", ["path"], registry=self.registry
        )

    def count(self, path: str, status: int, seconds: float) -> None:
        if path not in self.paths:  # or clients could make up as many series as they like
            path = "other"
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)

    def answered(self, path: str, status: int = 200) -> float:
        labels = {"path": path, "status": str(status)}
        return self.registry.get_sample_value("http_requests_total", labels) or 0

    def response(self) -> Response:
        text = generate_latest(self.registry)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


class PoolCollector(Collector):
    """Asks a pool for its statistics whenever Prometheus asks for metrics."""

    def __init__(self, pool: creche.ProcessPool) -> None:
        self._pool = pool

    def describe(self) -> list[Metric]:
        return []  # so that nobody asks before the pool is open

    def collect(self) -> Iterator[Metric]:
        now = self._pool.statistics()
        workers = GaugeMetricFamily("pool_workers", "Worker processes", labels=["state"])
        for state in ("starting", "idle", "busy"):
            workers.add_metric([state], getattr(now, f"workers_{state}"))
        yield workers
        yield GaugeMetricFamily("pool_calls_queued", "Calls that wait", now.calls_queued)
        yield GaugeMetricFamily("pool_calls_running", "Calls that run", now.calls_running)
        calls = CounterMetricFamily("pool_calls", "Calls that ended", labels=["outcome"])
        for outcome in ("done", "failed", "cancelled"):
            calls.add_metric([outcome], getattr(now, f"calls_{outcome}"))
        yield calls
        yield CounterMetricFamily(
            "pool_worker_restarts", "Workers that died or were stopped early", now.restarts
        )


class Measured:
    """Middleware that counts requests and measures them."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began = time.perf_counter()
        status = 500  # unless there is an answer

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            return await self.app(scope, receive, noting_send)
        finally:
            self.metrics.count(scope["path"], status, time.perf_counter() - began)
