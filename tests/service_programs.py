"""The example services as running programs, and clients that load them."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scripts import Program
from support import TIMEOUT

EXAMPLES = Path(__file__).parent.parent / "examples"
LINGER = 1.0  # as in the server: so long a worker that drains waits for one more request


class Service:
    """A program that runs, whose output can be waited for."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, pattern: str, count: int = 1) -> list[re.Match[str]]:
        """Wait until ``count`` lines of the output have matched; return all matches."""

        def found() -> list[re.Match[str]]:
            return [match for line in self._lines if (match := re.search(pattern, line))]

        with self._changed:
            self._changed.wait_for(lambda: len(found()) >= count or self._ended, TIMEOUT)
            matches = found()
        assert len(matches) >= count, f"no {pattern!r} in:\n{self.output}"
        return matches

    def kill(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def wait(self) -> int:
        code = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@contextlib.contextmanager
def running(program: Program, example: str, *arguments: object) -> Iterator[Service]:
    """Run an example for as long as the block takes, at most."""
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / example), *map(str, arguments)],
        env=program.environment,
        cwd=program.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        service = Service(process)
        try:
            yield service
        finally:
            process.kill()
            # Its children hold the pipe until they have noticed.
            program.wait_until_gone(TIMEOUT)
            service._reader.join(TIMEOUT)


@dataclass(frozen=True)
class Kill:
    """When a process was killed, and when it was gone."""

    began: float
    ended: float

    def meets(self, failure: Failure) -> bool:
        return self.began <= failure.ended and failure.began <= self.ended


def kill(pid: int) -> Kill | None:
    """Kill a process, if it is there, and wait until it is not."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        began = time.monotonic()
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        assert select.select([descriptor], [], [], TIMEOUT)[0]
        return Kill(began, time.monotonic())
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)


@dataclass
class Failure:
    """A request that got no good answer."""

    began: float
    """When it was sent; or, on a connection that was kept, the one before."""
    ended: float
    error: str
    kept: bool
    """Whether there was a request on the same connection before."""


@dataclass
class Clients:
    """Threads that send one request after the other. Half of them keep their connections."""

    port: int
    count: int = 6
    answers: Counter[int] = field(default_factory=Counter)
    """How many requests each process has answered."""
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._answered = threading.Condition(self._lock)
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(self.count)
        ]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "a request hangs"

    def wait_for_answers(self, count: int, of: int | None = None) -> None:
        """Wait until there are so many more answers: by any process, or by one."""

        def answered() -> int:
            return self.answers.total() if of is None else self.answers[of]

        with self._answered:
            goal = answered() + count
            assert self._answered.wait_for(lambda: answered() >= goal, TIMEOUT), self.failures

    def failures_apart_from(self, kills: list[Kill]) -> list[Failure]:
        """Those that were under way when no process was killed."""
        return [
            failure
            for failure in self.failures
            if not any(
                kill.began <= failure.ended and failure.began <= kill.ended for kill in kills
            )
        ]

    def turned_away(self, ended: float) -> bool:
        """Whether a server that was told to end at ``ended`` has failed nobody whom it had taken.

        Those who connect in the very moment in which the last worker closes the socket are reset,
        and not refused: that happens to each of them once at most.
        """
        late = [failure for failure in self.failures if failure.ended >= ended]
        refused = [failure for failure in late if "Connection refused" in failure.error]
        reset = [
            failure for failure in late if "Connection reset" in failure.error and not failure.kept
        ]
        return len(refused) + len(reset) == len(late) and len(reset) <= self.count

    def _run(self, number: int) -> None:
        keeps, slow = number % 2 == 0, number % 3 == 0
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        with contextlib.closing(connection):
            before = None  # when the last request was sent on this connection
            while not self._stopping.is_set():
                began = time.monotonic()
                try:
                    try:
                        connection.request("GET", "/slow?seconds=0.05" if slow else "/pid")
                    finally:
                        sent = time.monotonic()
                    response = connection.getresponse()
                    text = response.read()
                    assert response.status == 200, text
                except Exception as error:
                    # It may be too late for a connection that was kept: a machine that is busy
                    # can take longer from one request to the next than a worker waits.
                    if before is None or sent - before < LINGER:
                        failure = Failure(
                            before or began, time.monotonic(), repr(error), before is not None
                        )
                        self.failures.append(failure)
                    connection.close()
                else:
                    with self._answered:
                        self.answers[int(text)] += 1
                        self._answered.notify_all()
                    if not keeps:
                        connection.close()
                before = began if connection.sock else None
