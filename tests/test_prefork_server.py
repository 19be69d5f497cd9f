"""The pre-forking server of the examples, run as a user runs it, under load and under fire."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from scripts import Program
from service_programs import LINGER, Clients, Kill, Service, kill, running
from support import TIMEOUT

pytest.importorskip("h11", reason="the example needs h11")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs signals and /proc")

READY = r"child 'worker-\d+' \(pid (\d+)\) is ready"
STOPPED = r"child 'worker-\d+' \(pid (\d+)\) was stopped"


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.contextmanager
def serving(program: Program, backend: str, workers: int = 3) -> Iterator[tuple[Service, int]]:
    """Run the server; give it, and its port."""
    arguments = ("--port", 0, "--workers", workers, "--backend", backend)
    with running(program, "prefork_server.py", *arguments) as server:
        (address,) = server.wait_for(r"listens on http://127.0.0.1:(\d+)")
        yield server, int(address[1])


def workers_of(server: Service) -> set[int]:
    """Those that are ready and have not ended."""
    ready = {int(match[1]) for match in server.wait_for(READY)}
    ended = r"child 'worker-\d+' \(pid (\d+)\) (was stopped|has failed)"
    return ready - {int(match[1]) for match in server.wait_for(ended, 0)}


def request(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()


def send_raw(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_answers(program: Program, backend: str) -> None:
    with serving(program, backend, workers=1) as (server, port):
        (pid,) = workers_of(server)
        assert request(port, "GET", "/") == (200, b"hello\n")
        assert request(port, "HEAD", "/") == (200, b"")
        assert request(port, "GET", "/pid") == (200, f"{pid}\n".encode())
        assert request(port, "POST", "/echo", b"a" * 200_000) == (200, b"a" * 200_000)
        assert request(port, "GET", "/nowhere")[0] == 404
        assert request(port, "HEAD", "/nowhere") == (404, b"")
        assert request(port, "GET", "/slow?seconds=nonsense")[0] == 500
        assert request(port, "POST", "/echo", b"a" * 3_000_000)[0] == 413
        # Two requests at once, and one that asks first whether it may send its body.
        two = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /pid HTTP/1.1\r\nHost: a\r\n\r\n"
        assert send_raw(port, two).endswith(f"\r\n\r\n{pid}\n".encode())
        asking = b"POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
        assert send_raw(port, asking + b"\r\nok").endswith(b"\r\n\r\nok")
        # Nonsense, and clients that leave in the middle.
        assert b" 400 " in send_raw(port, b"nonsense\r\n\r\n")
        assert b" 400 " in send_raw(port, b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9")
        assert send_raw(port, b"") == b""
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /slow?seconds=0.1 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert request(port, "GET", "/slow?seconds=0.2") == (200, f"{pid}\n".encode())
        assert workers_of(server) == {pid}


def test_is_killed_and_rolled_and_drained_under_load(program: Program, backend: str) -> None:
    with serving(program, backend) as (server, port), Clients(port) as clients:
        clients.wait_for_answers(50)

        # One is killed: others answer meanwhile, and there is a new one.
        victim = min(workers_of(server))
        killed = kill(victim)
        assert killed is not None
        new = int(server.wait_for(READY, 4)[3][1])
        clients.wait_for_answers(1, of=new)
        assert clients.failures_apart_from([killed]) == []

        # All are replaced, and nobody notices.
        before = workers_of(server)
        server.kill(signal.SIGHUP)
        server.wait_for("the rolling restart is over")
        after = workers_of(server)
        assert len(before) == len(after) == 3
        assert not before & after
        for pid in after:
            clients.wait_for_answers(1, of=pid)
        # (A client that the kill has struck may only say so now.)
        assert clients.failures_apart_from([killed]) == []

        # It ends: what has been accepted is answered, and then there is nobody any more.
        ended = time.monotonic()
        server.kill(signal.SIGTERM)
        assert server.wait() == 0, server.output
        clients.stop()
        early = clients.failures_apart_from([killed])
        assert [failure for failure in early if failure.ended < ended] == []
        assert clients.turned_away(ended), clients.failures
        assert "every request is answered" in server.output
        assert "Traceback" not in server.output.replace("creche.ProcessDied", "")


def test_open_requests_are_answered_when_it_ends(program: Program, backend: str) -> None:
    with serving(program, backend, workers=2) as (server, port), ThreadPoolExecutor(10) as threads:
        idle = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        answers = [threads.submit(request, port, "GET", "/slow?seconds=1.5") for _ in range(10)]
        wait_until_accepted(server, port, 11, answers)
        ended = time.monotonic()
        server.kill(signal.SIGTERM)
        # A client that is connected may still send its request, if it does so soon. Another one
        # may not come.
        idle.sendall(b"GET /pid HTTP/1.1\r\nHost: a\r\n\r\n")
        late = time.monotonic() - ended >= LINGER
        answer = b""
        with idle, contextlib.suppress(ConnectionError):
            answer = b"".join(iter(lambda: idle.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 ") or late
        for each in answers:
            assert each.result(TIMEOUT)[0] == 200
        assert server.wait() == 0
        with pytest.raises(ConnectionRefusedError):
            request(port, "GET", "/")


def wait_until_accepted(
    server: Service, port: int, connections: int, answers: list[Future[tuple[int, bytes]]]
) -> None:
    """Wait until the workers have the connections, by the sockets that they hold, or had them."""
    import psutil

    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        held = sum(
            connection.status == psutil.CONN_ESTABLISHED
            for pid in workers_of(server)
            for connection in psutil.Process(pid).net_connections("tcp")
        )
        if held + sum(answer.done() for answer in answers) >= connections:
            return
        time.sleep(0.01)
    raise AssertionError(f"{held} of {connections} connections were accepted")


def test_hanging_worker_is_replaced(program: Program) -> None:
    with serving(program, "asyncio", workers=2) as (server, port), Clients(port, 2) as clients:
        victim = min(workers_of(server))
        clients.wait_for_answers(1, of=victim)
        os.kill(victim, signal.SIGSTOP)
        server.wait_for(rf"child 'worker-\d' \(pid {victim}\) has failed")
        new = int(server.wait_for(READY, 3)[2][1])
        clients.wait_for_answers(1, of=new)
        # It was asked to end, and woken up for that: what it had accepted is answered.
        clients.stop()
        assert clients.failures == []


def test_nothing_is_left_of_a_killed_server(program: Program) -> None:
    with serving(program, "asyncio", workers=4) as (server, port), Clients(port, 2) as clients:
        clients.wait_for_answers(10)
        server.kill(signal.SIGKILL)
        server.wait()
        assert program.wait_until_gone() == set()
        with socket.create_server(("127.0.0.1", port)):  # nobody listens there any more
            pass


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(15, id="seconds"),
        pytest.param(200, id="minute", marks=[pytest.mark.chaos, pytest.mark.timeout(400)]),
    ],
)
def test_chaos(program: Program, backend: str, count: int) -> None:
    """Workers are killed at random, and rolled: only requests of killed ones fail."""
    dice = random.Random(count)
    with serving(program, backend, workers=4) as (server, port), Clients(port, 8) as clients:
        kills: list[Kill] = []
        while len(kills) < count:
            clients.wait_for_answers(dice.randrange(10, 200))
            if dice.random() < 0.2:
                server.kill(signal.SIGHUP)
            if (workers := sorted(workers_of(server))) and (done := kill(dice.choice(workers))):
                kills.append(done)
        clients.wait_for_answers(100)
        ended = time.monotonic()
        server.kill(signal.SIGTERM)
        assert server.wait() == 0, server.output
        clients.stop()
        failures = clients.failures_apart_from(kills)
        assert [failure for failure in failures if failure.ended < ended] == []
        assert clients.turned_away(ended), clients.failures
