"""A job queue in a file: SQLite keeps the jobs, processes under a supervisor work them off.

    python examples/job_queue.py                      # a demonstration: kills whatever it can
    python examples/job_queue.py enqueue primes 20000 --count 10
    python examples/job_queue.py work [--workers 2] [--until-empty] [--backend trio]
    python examples/job_queue.py status

Any process may be killed at any time. No job is lost: a worker claims one before it runs it, and
a claim whose worker has died is released. None is done that was not: what a job changes in the
database and the mark that it is done are one transaction. And none is done twice: a worker that has
lost its claim cannot complete the job.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.to_thread

from creche import (
    Backoff,
    ChildExited,
    StopPolicy,
    Supervisor,
    SupervisorEvents,
    from_process,
    open_supervisor,
)

ATTEMPTS = 3  # how often one is tried
GRACE = 5.0  # seconds that a worker has to finish its job when it is stopped
POLL = 0.05  # seconds between two looks into the database: any process may put jobs there

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    argument TEXT NOT NULL,               -- JSON
    state TEXT NOT NULL DEFAULT 'queued', -- queued, running, done, dead
    due REAL NOT NULL DEFAULT 0,          -- not to be run before
    attempts INTEGER NOT NULL DEFAULT 0,
    owner TEXT,                           -- of a job that runs: run and process that have it
    lease REAL,                           -- and until when
    result TEXT,                          -- JSON
    error TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, due);
-- What the jobs are for: each adds a line. Two lines of one job would be one too many.
CREATE TABLE IF NOT EXISTS ledger (job INTEGER NOT NULL, value INTEGER NOT NULL);
"""


# --- the store ------------------------------------------------------------------------------------


class Job(NamedTuple):
    id: int
    kind: str
    argument: Any
    attempt: int


class LeaseLost(Exception):
    """The job is no longer this worker's, and its work is void."""


class Store:
    """The jobs in their file. Each method is one transaction."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(
            path, timeout=60, isolation_level=None, check_same_thread=False
        )
        self._use_wal()
        self._database.execute("PRAGMA synchronous = FULL")  # what is done survives a power cut
        self._database.executescript(SCHEMA)

    def _use_wal(self) -> None:
        """Have readers and a writer at once. Where several do so to a new file, SQLite may say that
        it is locked without having waited, as one of them must not wait for another.
        """
        give_up = time.monotonic() + 60
        while True:
            try:
                self._database.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                    raise
                time.sleep(0.01)

    def close(self) -> None:
        self._database.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        with self._database:  # commits, or rolls back
            yield

    def enqueue(self, kind: str, *arguments: object) -> None:
        with self._transaction():
            self._database.executemany(
                "INSERT INTO jobs (kind, argument) VALUES (?, ?)",
                [(kind, json.dumps(argument)) for argument in arguments],
            )

    def claim(self, owner: str, lease: float) -> Job | None:
        """Take the job that is due first, for ``lease`` seconds."""
        now = time.time()
        with self._transaction():
            row = self._database.execute(
                "SELECT id, kind, argument, attempts + 1 FROM jobs"
                " WHERE state = 'queued' AND due <= ? ORDER BY due, id LIMIT 1",
                (now,),
            ).fetchone()
            if row is None:
                return None
            self._database.execute(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1, owner = ?, lease = ?"
                " WHERE id = ?",
                (owner, now + lease, row[0]),
            )
        return Job(row[0], row[1], json.loads(row[2]), row[3])

    def complete(self, job: Job, owner: str, value: int) -> None:
        """Do what the job is for and mark it as done, both or neither.

        :raises LeaseLost: if the job was taken from this worker
        """
        with self._transaction():
            marked = self._database.execute(
                "UPDATE jobs SET state = 'done', owner = NULL, lease = NULL, error = NULL,"
                " result = ? WHERE id = ? AND owner = ? AND attempts = ?",
                (json.dumps(value), job.id, owner, job.attempt),
            )
            if marked.rowcount == 0:
                raise LeaseLost(f"job {job.id} was taken from {owner}")
            self._database.execute("INSERT INTO ledger VALUES (?, ?)", (job.id, value))

    def fail(self, job: Job, owner: str, error: Exception) -> None:
        """Have the job tried again, later and later; or give it up."""
        self._release(
            "id = ? AND owner = ? AND attempts = ?",
            (job.id, owner, job.attempt),
            due=time.time() + 0.1 * 2**job.attempt,
            error=f"{type(error).__name__}: {error}",
        )

    def release(self, owner: str) -> list[int]:
        """Have the jobs of a worker that is dead tried again; return which these are."""
        return self._release("owner = ?", (owner,), due=time.time(), error="its worker died")

    def release_all(self, *, blame: bool = True) -> list[int]:
        """Nobody works any more: release all jobs. Without ``blame``, that was no attempt."""
        now = time.time()
        return self._release("TRUE", (), due=now, error="its worker died", counted=int(blame))

    def _release(
        self, which: str, values: tuple[Any, ...], *, due: float, error: str, counted: int = 1
    ) -> list[int]:
        with self._transaction():
            which = f"state = 'running' AND {which}"
            found = self._database.execute(f"SELECT id FROM jobs WHERE {which}", values).fetchall()
            self._database.execute(
                "UPDATE jobs SET owner = NULL, lease = NULL, due = ?, error = ?,"
                " state = CASE WHEN attempts < ? THEN 'queued' ELSE 'dead' END,"
                f" attempts = attempts - ? WHERE {which}",
                (due, error, ATTEMPTS + 1 - counted, 1 - counted, *values),
            )
        return [job for (job,) in found]

    def owners(self, *, overdue: bool = False) -> list[str]:
        """Who has a job; or has had one for too long."""
        rows = self._database.execute(
            "SELECT owner FROM jobs WHERE state = 'running' AND lease < ?",
            (time.time() if overdue else float("inf"),),
        )
        return [owner for (owner,) in rows]

    def counts(self) -> dict[str, int]:
        rows = self._database.execute("SELECT state, count(*) FROM jobs GROUP BY state")
        return dict.fromkeys(("queued", "running", "done", "dead"), 0) | dict(rows)

    def dead(self) -> list[tuple[int, str, str]]:
        return self._database.execute(
            "SELECT id, kind, error FROM jobs WHERE state = 'dead' ORDER BY id"
        ).fetchall()

    def ledger(self) -> tuple[int, int]:
        """How many lines it has, and for how many of the jobs that are done there is just one."""
        (lines,) = self._database.execute("SELECT count(*) FROM ledger").fetchone()
        (good,) = self._database.execute(
            "SELECT count(*) FROM jobs WHERE state = 'done'"
            " AND (SELECT count(*) FROM ledger WHERE job = jobs.id) = 1"
        ).fetchone()
        return lines, good


@contextlib.contextmanager
def working_alone(path: Path) -> Iterator[None]:
    """Be the only one who works on these jobs, so that nobody else's claims are released.

    The lock is SQLite's own, on a file beside: the system lets go of it when this process dies.
    """
    lock = sqlite3.connect(f"{path}-lock", timeout=1, isolation_level=None)
    with contextlib.closing(lock):
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise SystemExit(f"somebody else works on {path}: {error}") from None
        yield


# --- in a worker ----------------------------------------------------------------------------------


def count_primes(below: int, _: int) -> int:
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, below))


def sleep(seconds: float, _: int) -> int:
    time.sleep(seconds)
    return 0


def fail_at_first(times: int, attempt: int) -> int:
    if attempt <= times:
        raise ConnectionError(f"attempt {attempt} failed")
    return attempt


def crash(exitcode: int, _: int) -> int:
    os._exit(exitcode)


# A job gets its argument and the number of the attempt. It may run more than once, so what it
# changes elsewhere than in this database has to be such that doing it twice does no harm.
KINDS: dict[str, Callable[[Any, int], int]] = {
    "primes": count_primes,
    "sleep": sleep,
    "flaky": fail_at_first,
    "crash": crash,
}


def work_off(path: Path, run: str, lease: float) -> None:
    """What each worker runs, until it is stopped: one job after the other."""
    owner = owner_of(run, os.getpid())
    with contextlib.closing(Store(path)) as store:
        from_process.started()
        while True:
            # A stop lets it finish the job that it has, for as long as the grace period is.
            with from_process.deferred_cancellation():
                worked = run_one(store, owner, lease)
            if not worked:
                time.sleep(POLL)


def run_one(store: Store, owner: str, lease: float) -> bool:
    job = store.claim(owner, lease)
    if job is None:
        return False
    try:
        value = KINDS[job.kind](job.argument, job.attempt)
    except Exception as error:
        store.fail(job, owner, error)
    else:
        with contextlib.suppress(LeaseLost):
            store.complete(job, owner, value)
    return True


def owner_of(run: str, pid: int | None) -> str:
    return f"{run}:{pid}"


# --- in the parent --------------------------------------------------------------------------------


class Work:
    """One run of the workers."""

    def __init__(self, path: Path, store: Store, lease: float) -> None:
        self._path = path
        self._store = store
        self._lease = lease
        self._run = uuid.uuid4().hex
        self._one_at_a_time = anyio.CapacityLimiter(1)

    async def run(self, workers: int, until_empty: bool) -> None:
        jobs = await self._call(self._store.release_all)
        if jobs:
            print(f"all workers died; released: {numbers(jobs)}", flush=True)
        # A job that kills its worker is no reason to give up: it gets ATTEMPTS workers, not more.
        async with (
            open_supervisor(
                name="jobs",
                stop=StopPolicy(grace=GRACE),
                stop_order="together",
                intensity=1000,
                period=1.0,
                backoff=Backoff(maximum=1.0),
            ) as supervisor,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(cancel_on_signal, tasks.cancel_scope)
            tasks.start_soon(self._release_claims, supervisor.events())
            for number in range(1, workers + 1):
                await supervisor.start(
                    work_off, self._path, self._run, self._lease, name=f"worker-{number}"
                )
            print(f"process {os.getpid()} has {workers} workers", flush=True)
            tasks.start_soon(self._kill_the_overdue, supervisor)
            if until_empty:
                await self._wait_until_empty()
                tasks.cancel_scope.cancel()
        # What was not finished within the grace period is not to blame for that.
        await self._call(lambda: self._store.release_all(blame=False))

    async def _call(self, func: Callable[..., Any], *args: Any) -> Any:
        """Use the database, which may take its time, in a thread."""
        return await anyio.to_thread.run_sync(func, *args, limiter=self._one_at_a_time)

    async def _release_claims(self, events: SupervisorEvents) -> None:
        """Have the jobs of workers that die run again at once, and not when their leases end."""
        async for event in events:
            if isinstance(event, ChildExited):
                jobs = await self._call(self._store.release, owner_of(self._run, event.pid))
                reason = event.exception or f"{event.child} was stopped"
                print(f"{reason}; released: {numbers(jobs)}", flush=True)

    async def _kill_the_overdue(self, supervisor: Supervisor) -> None:
        """Kill workers whose jobs take too long. Their deaths do the rest."""
        while True:
            late = await self._call(lambda: self._store.owners(overdue=True))
            for child in list(supervisor.children.values()):
                if owner_of(self._run, child.pid) in late and child.process is not None:
                    await child.process.kill()  # a failure like any other: it is replaced
            await anyio.sleep(0.5)

    async def _wait_until_empty(self) -> None:
        while True:
            counts = await self._call(self._store.counts)
            if counts["queued"] == counts["running"] == 0:
                return
            await anyio.sleep(POLL)


async def cancel_on_signal(scope: anyio.CancelScope) -> None:
    if sys.platform == "win32":
        return  # Ctrl-C interrupts the program, which is as good
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()


def numbers(jobs: list[int]) -> str:
    return ", ".join(f"job {job}" for job in jobs) or "nothing"


def work(path: Path, workers: int, lease: float, until_empty: bool, backend: str) -> None:
    with working_alone(path), contextlib.closing(Store(path)) as store:
        anyio.run(Work(path, store, lease).run, workers, until_empty, backend=backend)


def show_status(path: Path) -> None:
    with contextlib.closing(Store(path)) as store:
        print("  ".join(f"{state}: {count}" for state, count in store.counts().items()))
        for job, kind, error in store.dead():
            print(f"job {job} ({kind}) is dead: {error}")
        lines, good = store.ledger()
        print(f"the ledger has {lines} lines, one each for {good} of the jobs that are done")


# --- the demonstration ----------------------------------------------------------------------------


def demonstrate(workers: int, backend: str) -> None:
    """Work off some jobs, while workers are killed, and once the parent."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "jobs.sqlite")
        with contextlib.closing(Store(path)) as store:
            store.enqueue("primes", *[50_000] * 40)
            store.enqueue("flaky", 1, 2, ATTEMPTS)  # the last one never works
            store.enqueue("crash", 3)
            for kill in (kill_some_workers, let_it_finish):
                command = [sys.executable, __file__, "--database", str(path), "--backend", backend]
                command += ["work", "--until-empty", "--workers", str(workers)]
                with subprocess.Popen(command) as process:
                    kill(process, store)
        show_status(path)


def kill_some_workers(process: subprocess.Popen[bytes], store: Store) -> None:
    for done in (4, 8, 12):
        pid = int(random.choice(wait_for(store, done)).rpartition(":")[2])
        print(f"--- killing process {pid}, which works on a job", flush=True)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, FORCE)
    wait_for(store, 16)
    print(f"--- killing process {process.pid}, and so all of its workers", flush=True)
    process.kill()


def wait_for(store: Store, done: int) -> list[str]:
    """Wait until so many jobs are done; return who has others."""
    while store.counts()["done"] < done or not (owners := store.owners()):
        time.sleep(0.01)
    return owners


def let_it_finish(process: subprocess.Popen[bytes], store: Store) -> None:
    process.wait()


FORCE = signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A job queue in a file.")
    parser.add_argument("--database", type=Path, default=Path("jobs.sqlite"))
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--workers", type=int, default=3)
    commands = parser.add_subparsers(dest="command")
    enqueue = commands.add_parser("enqueue", help="add jobs")
    enqueue.add_argument("kind", choices=KINDS)
    enqueue.add_argument("argument", type=json.loads)
    enqueue.add_argument("--count", type=int, default=1)
    working = commands.add_parser("work", help="work jobs off, until SIGTERM or Ctrl-C")
    working.add_argument("--workers", type=int, default=argparse.SUPPRESS)
    working.add_argument("--lease", type=float, default=30.0, help="seconds that a job may take")
    working.add_argument("--until-empty", action="store_true", help="end when there are none left")
    commands.add_parser("status", help="show what became of them")
    commands.add_parser("demo", help="work some jobs off, and kill whatever works")
    parser.set_defaults(command="demo")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)  # what becomes of workers is printed, in fewer words
    match options.command:
        case "enqueue":
            with contextlib.closing(Store(options.database)) as store:
                store.enqueue(options.kind, *[options.argument] * options.count)
        case "work":
            work(
                options.database,
                options.workers,
                options.lease,
                options.until_empty,
                options.backend,
            )
        case "status":
            show_status(options.database)
        case "demo":
            demonstrate(options.workers, options.backend)
