"""A pre-forking server: N processes serve one listening socket, and a supervisor keeps them up.

    python examples/prefork_server.py [--port 8000] [--workers 4] [--backend trio]

    curl http://127.0.0.1:8000/pid     # also: /  /slow?seconds=2  and  --data text .../echo
    kill -KILL PID-OF-A-WORKER         # replaced at once; only its own open requests fail
    kill -HUP  PID-OF-THE-SERVER       # a rolling restart, without one failed request
    kill -TERM PID-OF-THE-SERVER       # answers what it has begun, then ends; so does Ctrl-C

The parent opens the socket and hands it to each worker. There is one queue of connections for all
of them, in the kernel, and the parent keeps it open: what arrives while a worker is replaced waits
there for another one. For Linux and macOS.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.lowlevel
import h11
from anyio.abc import TaskGroup

from creche import (
    Backoff,
    Heartbeat,
    StopPolicy,
    Supervisor,
    from_process,
    open_supervisor,
)

HOST = "127.0.0.1"
BACKLOG = 1024  # connections that wait to be accepted
KEEP_ALIVE = 30.0  # seconds that a connection may be idle, and that a request may take to arrive
LINGER = 1.0  # the same in a worker that drains: for requests that are on their way to it
GRACE = 10.0  # seconds that a worker has to answer what it has begun
HEARTBEAT = 1.0  # seconds between two signs of life
MAX_BODY = 1 << 20

wait_readable = getattr(anyio, "wait_readable", None) or anyio.wait_socket_readable
wait_writable = getattr(anyio, "wait_writable", None) or anyio.wait_socket_writable

Answer = tuple[int, bytes]  # status and text


async def answer(request: h11.Request, body: bytes) -> Answer:
    """The application."""
    url = urlsplit(request.target.decode("ascii"))
    match request.method, url.path:
        case b"GET" | b"HEAD", "/":
            return 200, b"hello\n"
        case b"GET", "/pid":
            return 200, b"%d\n" % os.getpid()
        case b"GET", "/slow":
            await anyio.sleep(float(parse_qs(url.query).get("seconds", ["1"])[0]))
            return 200, b"%d\n" % os.getpid()
        case b"POST", "/echo":
            return 200, body
        case _:
            return 404, b"there is no such page\n"


# --- in a worker ----------------------------------------------------------------------------------


async def serve(listener: socket.socket) -> None:
    """What each worker runs, until it is stopped, and then until it has answered what it began."""
    listener.setblocking(False)
    server = Server(listener)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(give_signs_of_life)
        tasks.start_soon(server.drain_when_cancelled)
        from_process.started()
        with anyio.CancelScope(shield=True):
            await server.serve()
        tasks.cancel_scope.cancel()


async def give_signs_of_life() -> None:
    """Tell the supervisor that the event loop turns; one that hangs is replaced."""
    while True:
        from_process.report(0)
        await anyio.sleep(HEARTBEAT)


class Server:
    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._draining = False
        self._accepting = anyio.CancelScope()
        self._idle: set[anyio.CancelScope] = set()

    async def drain_when_cancelled(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self._draining = True
            self._accepting.cancel()
            for scope in self._idle:
                scope.deadline = min(scope.deadline, anyio.current_time() + LINGER)

    async def serve(self) -> None:
        async with anyio.create_task_group() as connections:
            # To wait is cancelled, to accept never is: no connection is accepted and then dropped.
            with self._accepting:
                while True:
                    await wait_readable(self._listener)
                    if not self._accept(connections):
                        await anyio.sleep(0.01)
            # If all workers end, nobody else accepts what waits now; and what comes after the last
            # of them has closed the socket is turned away at once.
            while self._accept(connections):
                pass
            self._listener.close()

    def _accept(self, connections: TaskGroup) -> bool:
        try:
            client, _ = self._listener.accept()
        except OSError:  # another worker was faster, or there is no descriptor left for it
            return False
        client.setblocking(False)
        connections.start_soon(self._serve_connection, Connection(client))
        return True

    async def _serve_connection(self, connection: Connection) -> None:
        try:
            while request := await self._next_request(connection):
                await self._serve_request(connection, request)
                if not connection.next_cycle():
                    break
        except h11.RemoteProtocolError as error:
            with contextlib.suppress(OSError, h11.LocalProtocolError):
                await connection.send(error.error_status_hint, b"that is not HTTP\n", last=True)
        except OSError:  # TimeoutError is one, too
            pass  # the client has gone, or takes too long
        except Exception:
            logging.exception("a connection failed")  # one connection is not worth all the others
        finally:
            await connection.close()

    async def _next_request(self, connection: Connection) -> h11.Request | None:
        """Wait for a request; ``None`` if there is none any more."""
        with anyio.move_on_after(LINGER if self._draining else KEEP_ALIVE) as scope:
            self._idle.add(scope)
            try:
                event = await connection.receive()
            finally:
                self._idle.remove(scope)
            if isinstance(event, h11.Request):
                return event
        return None

    async def _serve_request(self, connection: Connection, request: h11.Request) -> None:
        with anyio.fail_after(KEEP_ALIVE):
            body = await connection.body()
        if len(body) > MAX_BODY:
            await connection.send(413, b"that is too much\n", last=True)
            return
        try:
            status, text = await answer(request, body)
        except Exception:
            logging.exception("a request failed")
            status, text = 500, b"something went wrong\n"
        # The client hears that it has to open a new connection, which another worker will accept.
        await connection.send(status, text, last=self._draining)


class Connection:
    """HTTP/1.1 on a socket. h11 knows the protocol and leaves sending and receiving to us."""

    def __init__(self, client: socket.socket) -> None:
        self._socket = client
        self._http = h11.Connection(h11.SERVER)
        self._head_only = False

    async def receive(self) -> object:
        """Wait for one of h11's events."""
        await anyio.lowlevel.checkpoint()  # a client that sends all the time is not the only one
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._write(h11.InformationalResponse(status_code=100, headers=[]))
            self._http.receive_data(await self._read())
        if isinstance(event, h11.Request):
            self._head_only = event.method == b"HEAD"
        return event

    async def body(self) -> bytes:
        """The body of the request, or as much of it as shows that it is too long."""
        body = bytearray()
        while isinstance(event := await self.receive(), h11.Data) and len(body) <= MAX_BODY:
            body += event.data
        return bytes(body)

    async def send(self, status: int, text: bytes, *, last: bool) -> None:
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))]
        if last:
            headers.append(("Connection", "close"))
        response = h11.Response(status_code=status, headers=headers)
        body = b"" if self._head_only else text
        await self._write(response, h11.Data(data=body), h11.EndOfMessage())

    def next_cycle(self) -> bool:
        """Get ready for another request, if there may be one."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def close(self) -> None:
        """Close it in such a way that the last answer arrives."""
        with self._socket, contextlib.suppress(OSError), anyio.move_on_after(LINGER):
            self._socket.shutdown(socket.SHUT_WR)
            while await self._read():  # data that nobody has read would make this a reset
                pass

    async def _read(self) -> bytes:
        while True:
            try:
                return self._socket.recv(65536)
            except BlockingIOError:
                await wait_readable(self._socket)

    async def _write(self, *events: h11.Event) -> None:
        data = b"".join(self._http.send(event) or b"" for event in events)
        while data:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                with anyio.fail_after(KEEP_ALIVE):
                    await wait_writable(self._socket)


# --- in the parent --------------------------------------------------------------------------------


async def main(port: int, workers: int) -> None:
    with (
        anyio.open_signal_receiver(signal.SIGHUP, signal.SIGTERM, signal.SIGINT) as signals,
        socket.create_server((HOST, port), backlog=BACKLOG) as listener,
    ):
        async with open_supervisor(
            name="server",
            stop=StopPolicy(grace=GRACE),
            stop_order="together",
            # Requests that crash their workers are no reason to turn all others away.
            intensity=100,
            period=10.0,
            backoff=Backoff(maximum=1.0),
            logs=True,
        ) as supervisor:
            async with anyio.create_task_group() as tasks:
                for number in range(1, workers + 1):
                    await supervisor.start(
                        serve,
                        listener,
                        name=f"worker-{number}",
                        health=Heartbeat(within=5 * HEARTBEAT),
                    )
                address = "{}:{}".format(*listener.getsockname())
                print(f"process {os.getpid()} listens on http://{address}", flush=True)
                async for signum in signals:
                    if signum != signal.SIGHUP:
                        break
                    tasks.start_soon(roll, supervisor)
                tasks.cancel_scope.cancel()
            # Who comes from now on is turned away, and the end of the block waits for answers to
            # who is here.
            listener.close()
    print("every request is answered", flush=True)


async def roll(supervisor: Supervisor) -> None:
    """Replace the workers one by one: the new one serves before the old one drains."""
    for name in list(supervisor.children):
        try:
            await supervisor.roll(name)
        except Exception:  # the new one does not come up: the old one serves on
            logging.exception("%s was not replaced", name)
    print("the rolling restart is over", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A pre-forking server.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    anyio.run(main, options.port, options.workers, backend=options.backend)
