"""A web service with a pool: Starlette on Hypercorn, on asyncio or Trio.

    python examples/web_service.py [--backend trio] [--bind 127.0.0.1:8000] [--workers N]
    curl --data-binary @photo.jpg http://127.0.0.1:8000/thumbnails

The answer has thumbnails of the picture and its perceptual hash. They are made in a worker:

- a client that goes away takes its work with it, even if that runs already;
- each request has a deadline, from its arrival on (the header ``X-Deadline: 2.5`` shortens it);
- a file that is broken, or too large once unpacked, gets a 4xx; one that crashes its worker, a 500;
- when more wait than can be served soon, the next ones get a 503 that says when to come back;
- SIGTERM and SIGINT (Ctrl-C) drain: what was accepted is answered, then all processes go.

``/healthz`` is for load balancers, ``/metrics`` for Prometheus. The work itself is in
``pictures.py``, the metrics are in ``web_metrics.py``. Needs ``pip install creche[examples]``.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, fields

import anyio
import hypercorn
import pictures
import web_metrics
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import creche

MIB = 1024 * 1024
CLIENT_GONE = 499  # nginx's number for it. Nobody receives it, but metrics count it

log = logging.getLogger("web_service")


@dataclass(frozen=True, kw_only=True)
class Settings:
    workers: int = 2
    queue: int = 30  # requests that may be here besides those that workers have
    deadline: float = 10.0  # seconds for a request, its upload and its wait included
    max_upload: int = 10 * MIB  # bytes. All uploads together take no more than 32 times that
    memory_limit: int = 300 * MIB  # bytes for each worker
    niceness: int = 10  # of the workers, so that the service itself gets a CPU at once
    goodbye: float = 5.0  # seconds for slow clients to take their answers when all work is done


def open_pool(settings: Settings) -> creche.ProcessPool:
    return creche.open_pool(
        settings.workers,
        min_workers=settings.workers,  # ready before the first request, replaced at once
        initializer=pictures.prepare,
        initargs=[settings.niceness],
        memory_limit=settings.memory_limit,
        stop=creche.StopPolicy(grace=0),  # nothing to clean up: kill at once
        name="thumbnails",
    )


class Service:
    """The application, its pool, and the requests that it has accepted."""

    def __init__(self, settings: Settings, pool: creche.ProcessPool | None = None) -> None:
        self.settings = settings
        self.pool = pool or open_pool(settings)
        self.metrics = web_metrics.Metrics(["/thumbnails", "/healthz", "/metrics"], self.pool)
        self.accepted: set[anyio.CancelScope] = set()
        self.draining = False
        self.all_ended = anyio.Event()
        self.app = Starlette(
            routes=[
                Route("/thumbnails", self.thumbnails, methods=["POST"]),
                Route("/healthz", self.healthz),
                Route("/metrics", self.show_metrics),
            ],
            middleware=[
                Middleware(web_metrics.Measured, metrics=self.metrics),
                Middleware(Connections, service=self),
            ],
            exception_handlers={ClientDisconnect: client_gone},
            lifespan=self.lifespan,
        )

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with self.pool:
            yield

    # --- what clients ask for -------------------------------------------------------------------

    async def thumbnails(self, request: Request) -> Response:
        deadline = anyio.current_time() + self.seconds_for(request)
        with self.accepting():
            with until(deadline, HTTPException(408, "the upload took too long\n")):
                upload = await read_body(request, self.settings.max_upload)
            with until(deadline, HTTPException(504, "the deadline has passed\n")):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(cancel_when_gone, request, tasks.cancel_scope)
                    answer = await self.describe(upload)
                    tasks.cancel_scope.cancel()
                    return answer
        return client_gone(request)

    async def describe(self, upload: bytes) -> Response:
        """Have a worker make the answer. Cancelling this, as the deadline does, stops the worker.

        All that can go wrong is an answer here: an error that leaves a task group would come out of
        it as an ``ExceptionGroup``.
        """
        try:
            answer = await self.pool.run(pictures.describe, upload)
            return Response(answer, media_type="application/json")
        except pictures.BadPicture as error:
            return PlainTextResponse(f"{error}\n", 422)
        except creche.WorkerMemoryError:
            return PlainTextResponse("this picture takes too much memory\n", 422)
        except creche.ProcessError as error:
            log.error("a request has failed: %s", error)
            return PlainTextResponse("the worker has died\n", 500)

    async def healthz(self, request: Request) -> Response:
        if self.draining:  # a load balancer sends no more
            return PlainTextResponse("draining\n", 503)
        return PlainTextResponse("ok\n")

    async def show_metrics(self, request: Request) -> Response:
        return self.metrics.response()

    # --- how much, and for how long -------------------------------------------------------------

    def seconds_for(self, request: Request) -> float:
        try:
            wanted = float(request.headers.get("x-deadline", "inf"))
        except ValueError:
            wanted = math.nan
        if not wanted > 0:
            raise HTTPException(400, "X-Deadline is not a number of seconds\n")
        return min(wanted, self.settings.deadline)

    @contextmanager
    def accepting(self) -> Iterator[None]:
        """Count a request, from before its upload takes memory until it is answered."""
        if self.draining or len(self.accepted) >= self.settings.workers + self.settings.queue:
            raise HTTPException(503, "too busy\n", {"Retry-After": str(self.seconds_until_free())})
        with anyio.CancelScope() as scope:
            self.accepted.add(scope)
            try:
                yield
            finally:
                self.accepted.remove(scope)
                if self.draining and not self.accepted:
                    self.all_ended.set()
        if scope.cancelled_caught:
            raise HTTPException(503, "shutting down\n")

    def seconds_until_free(self) -> int:
        workers = self.pool.statistics().workers
        calls = sum(worker.tasks for worker in workers)
        seconds = sum(worker.seconds_busy for worker in workers) / max(1, calls)
        return max(1, math.ceil(len(self.accepted) * seconds / self.settings.workers))

    async def drain(self) -> None:
        """Accept nothing more, and wait until what was accepted has ended.

        Its deadlines bound that.
        """
        log.info("draining: %d requests are still to be answered", len(self.accepted))
        self.draining = True
        if self.accepted:
            await self.all_ended.wait()

    def give_up(self) -> None:
        for scope in self.accepted:
            scope.cancel()


# --- requests -----------------------------------------------------------------------------------


def client_gone(request: Request, error: Exception | None = None) -> Response:
    return Response(status_code=CLIENT_GONE)


@contextmanager
def until(deadline: float, error: Exception) -> Iterator[None]:
    """Raise an error if the block, which is cancelled at the deadline, has not ended by then."""
    with anyio.CancelScope(deadline=deadline) as scope:
        yield
    if scope.cancelled_caught:
        raise error


async def read_body(request: Request, max_size: int) -> bytes:
    """Read an upload without ever having more of it than is allowed."""
    too_large = HTTPException(413, f"uploads may have {max_size} bytes\n")
    if int(request.headers.get("content-length", "0")) > max_size:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_size:
            raise too_large
    return bytes(body)


async def cancel_when_gone(request: Request, scope: anyio.CancelScope) -> None:
    """Cancel a scope when the client closes its connection. To be used once the body is read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


class Connections:
    """Middleware for what HTTP connections need besides the answer."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        read = False

        async def noting_receive() -> Message:
            nonlocal read
            message = await receive()
            read = not message.get("more_body", False)
            return message

        async def polite_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Clients send first and read then: one that is refused while it sends an upload
                # would not see the answer.
                with anyio.move_on_after(self.service.settings.goodbye):
                    while not read:
                        await noting_receive()
                if self.service.draining:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        return await self.app(scope, noting_receive, polite_send)


# --- the server ---------------------------------------------------------------------------------


async def serve(service: Service, backend: str, bind: str) -> None:
    """Serve until SIGTERM or SIGINT, and then until what was accepted is answered.

    A second signal makes an end to all work at once.
    """
    config = hypercorn.Config()
    config.bind = [bind]
    config.backlog = 1000
    config.errorlog = log
    config.graceful_timeout = service.settings.goodbye
    if backend == "trio":
        from hypercorn.trio import serve as serve_app
    else:
        from hypercorn.asyncio import serve as serve_app

    async def until_drained() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            await anext(signals)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(give_up_at_next, signals)
                await service.drain()
                tasks.cancel_scope.cancel()
        last_resort = threading.Timer(2 * service.settings.goodbye, leave)
        last_resort.daemon = True
        last_resort.start()

    async def give_up_at_next(signals: AsyncIterator[signal.Signals]) -> None:
        await anext(signals)
        service.give_up()

    # On Windows Hypercorn itself waits for Ctrl-C, and does not drain.
    trigger = None if sys.platform == "win32" else until_drained
    await serve_app(service.app, config, shutdown_trigger=trigger)
    log.info("drained; %d uploads were answered", service.metrics.answered("/thumbnails"))


def leave() -> None:
    """Go, although Hypercorn still waits for clients that do not take their answers.

    On Trio, and with later versions of Python, it would do so for ever. Processes of the pool that
    are left go with this one.
    """
    log.warning("some clients do not take their answers")
    os._exit(0)


def app() -> Starlette:
    """For other servers: ``uvicorn --factory web_service:app``, say."""
    return Service(Settings()).app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve thumbnails.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--bind", default="127.0.0.1:8000", metavar="HOST:PORT")
    for field in fields(Settings):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    backend, bind = options.pop("backend"), options.pop("bind")
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    anyio.run(serve, Service(Settings(**options)), backend, bind, backend=backend)
