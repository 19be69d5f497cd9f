"""The job queue of the examples, run as a user runs it, with whatever works killed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from scripts import Program
from service_programs import EXAMPLES, kill, running
from support import TIMEOUT

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs signals and /proc")


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def job_queue() -> ModuleType:
    spec = importlib.util.spec_from_file_location("job_queue", EXAMPLES / "job_queue.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["job_queue"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def store(job_queue: ModuleType, tmp_path: Path) -> Iterator[Any]:
    with closing(job_queue.Store(tmp_path / "jobs.sqlite")) as store:
        yield store


# --- the store ------------------------------------------------------------------------------------


def test_jobs_are_claimed_once_and_in_order(store: Any) -> None:
    store.enqueue("sleep", 1, 2)
    first, second, third = store.claim("a", 10), store.claim("b", 10), store.claim("a", 10)
    assert (first.id, first.argument, first.attempt) == (1, 1, 1)
    assert (second.id, second.argument, second.attempt) == (2, 2, 1)
    assert third is None
    assert sorted(store.owners()) == ["a", "b"]
    assert store.counts() == {"queued": 0, "running": 2, "done": 0, "dead": 0}


def test_effect_and_mark_are_one(store: Any, tmp_path: Path) -> None:
    store.enqueue("sleep", 1)
    job = store.claim("a", 10)
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as other:
        other.execute(
            "CREATE TRIGGER full BEFORE INSERT ON ledger BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
        with pytest.raises(sqlite3.IntegrityError, match="full"):
            store.complete(job, "a", 7)
        assert store.counts()["running"] == 1
        other.execute("DROP TRIGGER full")
    store.complete(job, "a", 7)
    assert store.counts()["done"] == 1
    assert store.ledger() == (1, 1)


def test_who_has_lost_a_claim_cannot_complete_it(store: Any, job_queue: ModuleType) -> None:
    store.enqueue("sleep", 1)
    slow = store.claim("a", 10)
    assert store.release("a") == [1]
    with pytest.raises(job_queue.LeaseLost):
        store.complete(slow, "a", 1)
    again = store.claim("a", 10)  # even the same worker has to have claimed it again
    for owner, job in (("a", slow), ("b", again)):
        with pytest.raises(job_queue.LeaseLost):
            store.complete(job, owner, 1)
        store.fail(job, owner, ValueError("too late"))
    assert store.ledger() == (0, 0)
    store.complete(again, "a", 1)
    with pytest.raises(job_queue.LeaseLost):
        store.complete(again, "a", 1)
    assert store.ledger() == (1, 1)


def test_what_fails_again_and_again_is_dead(store: Any, job_queue: ModuleType) -> None:
    store.enqueue("sleep", 1, 2)
    for attempt in range(1, job_queue.ATTEMPTS + 1):
        store._database.execute("UPDATE jobs SET due = 0 WHERE state = 'queued'")
        first, second = store.claim("a", 10), store.claim("b", 10)
        assert first.attempt == second.attempt == attempt
        store.fail(first, "a", ValueError("no"))
        assert store.release("b") == [2]
    assert store.dead() == [(1, "sleep", "ValueError: no"), (2, "sleep", "its worker died")]
    assert store.claim("a", 10) is None


def test_what_failed_waits(
    store: Any, job_queue: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(job_queue, "time", SimpleNamespace(time=lambda: now))
    store.enqueue("sleep", 1)
    store.fail(store.claim("a", 10), "a", ValueError("no"))
    assert store.counts()["queued"] == 1
    assert store.claim("a", 10) is None
    now += 1
    assert store.claim("a", 10).attempt == 2


def test_release_without_blame_is_no_attempt(store: Any, job_queue: ModuleType) -> None:
    store.enqueue("sleep", 1)
    for _ in range(2 * job_queue.ATTEMPTS):
        assert store.claim("a", 10).attempt == 1
        assert store.release_all(blame=False) == [1]


def test_overdue_jobs(store: Any) -> None:
    store.enqueue("sleep", 1, 2)
    store.claim("a", 100)
    assert store.owners(overdue=True) == []
    store.claim("b", -1)
    assert store.owners(overdue=True) == ["b"]


def test_many_at_once_claim_each_job_once(job_queue: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    claimed: list[int] = []

    def use(number: int) -> None:
        with closing(job_queue.Store(path)) as store:
            store.enqueue("sleep", *range(20))
            while job := store.claim(str(number), 10):
                claimed.append(job.id)
                store.complete(job, str(number), job.argument)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert sorted(claimed) == list(range(1, 81))


# --- the program ----------------------------------------------------------------------------------


def run(program: Program, *arguments: object) -> str:
    done = program.run(EXAMPLES / "job_queue.py", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def working(program: Program, *arguments: object) -> Any:
    """Run workers for as long as the block takes, at most."""
    return running(program, "job_queue.py", *arguments)


def processes_of(store: Any) -> list[int]:
    """The processes that run a job."""
    return [int(owner.rpartition(":")[2]) for owner in store.owners()]


def wait_until_running(store: Any, count: int = 1) -> list[int]:
    """Wait until so many jobs run; return the processes that run them."""
    deadline = time.monotonic() + TIMEOUT
    while len(found := processes_of(store)) < count:
        assert time.monotonic() < deadline, store.counts()
        time.sleep(0.005)
    return found


def shorten(store: Any) -> None:
    """Have the next attempt of each job sleep no more: those that run have read for how long."""
    store._database.execute("UPDATE jobs SET argument = '0'")


@pytest.fixture
def jobs(job_queue: ModuleType, program: Program) -> Iterator[Any]:
    """The store that programs work on by default: in the folder where they run."""
    with closing(job_queue.Store(program.folder / "jobs.sqlite")) as store:
        yield store


@linux_only
def test_demonstration(program: Program) -> None:
    output = run(program)
    assert output.count("--- killing process") == 4
    # One may be killed between two jobs; and the parent before it has heard of the last one.
    assert output.count(" was killed by SIGKILL; released: ") in (2, 3)
    assert " was killed by SIGKILL; released: job " in output
    assert "all workers died; released: job " in output
    assert output.count("ended with exit code 3 and without a result; released: job 44") == 3
    assert "queued: 0  running: 0  done: 42  dead: 2\n" in output
    assert "job 43 (flaky) is dead: ConnectionError: attempt 3 failed" in output
    assert "job 44 (crash) is dead: its worker died" in output
    assert "has 42 lines, one each for 42 of" in output


def test_commands(program: Program) -> None:
    run(program, "enqueue", "primes", "100", "--count", "3")
    run(program, "enqueue", "flaky", "1")
    assert "queued: 4  running: 0  done: 0  dead: 0" in run(program, "status")
    run(program, "work", "--until-empty", "--workers", "2")
    assert "queued: 0  running: 0  done: 4  dead: 0" in run(program, "status")


@linux_only
def test_stop_lets_jobs_be_finished(program: Program, jobs: Any, backend: str) -> None:
    jobs.enqueue("sleep", *[0.5] * 100)
    with working(program, "--backend", backend, "work", "--workers", 2) as workers:
        wait_until_running(jobs, 2)
        workers.kill(signal.SIGTERM)
        assert workers.wait() == 0, workers.output
    # Whatever was begun before they heard of it is finished; nothing was given up.
    done = jobs.counts()["done"]
    assert 2 <= done < 100
    assert jobs.counts() == {"queued": 100 - done, "running": 0, "done": done, "dead": 0}
    assert jobs.ledger() == (done, done)
    assert not jobs._database.execute("SELECT * FROM jobs WHERE error IS NOT NULL").fetchall()


@linux_only
def test_what_takes_too_long_to_be_finished_goes_back(program: Program, jobs: Any) -> None:
    jobs.enqueue("sleep", 600)
    with working(program, "work", "--workers", 1) as workers:
        (pid,) = wait_until_running(jobs)
        workers.kill(signal.SIGTERM)
        assert workers.wait() == 0, workers.output
    assert jobs.counts() == {"queued": 1, "running": 0, "done": 0, "dead": 0}
    assert jobs.claim("a", 10).attempt == 1
    assert not Path(f"/proc/{pid}").exists()


@linux_only
def test_job_of_a_killed_worker_runs_again_at_once(program: Program, jobs: Any) -> None:
    jobs.enqueue("sleep", 600)
    with working(program, "work", "--until-empty", "--workers", 2, "--lease", 1000) as workers:
        (pid,) = wait_until_running(jobs)
        shorten(jobs)
        assert kill(pid)
        assert workers.wait() == 0, workers.output  # which a lease of 1,000 seconds would not allow
    assert "released: job 1" in workers.output
    assert jobs.ledger() == (1, 1)


@linux_only
def test_job_that_takes_too_long_is_given_up(program: Program, jobs: Any, backend: str) -> None:
    jobs.enqueue("sleep", 600, 0)
    arguments = ("work", "--until-empty", "--workers", 1, "--lease", 0.3)
    with working(program, "--backend", backend, *arguments) as workers:
        assert workers.wait() == 0, workers.output
    assert jobs.counts() == {"queued": 0, "running": 0, "done": 1, "dead": 1}
    assert jobs.dead() == [(1, "sleep", "its worker died")]


@linux_only
def test_worker_that_is_stopped_loses_its_job(program: Program, jobs: Any) -> None:
    jobs.enqueue("sleep", 600)
    with working(program, "work", "--until-empty", "--workers", 1, "--lease", 3) as workers:
        (pid,) = wait_until_running(jobs)
        with contextlib.suppress(ProcessLookupError):  # where the lease was over before
            os.kill(pid, signal.SIGSTOP)
        shorten(jobs)
        assert workers.wait() == 0, workers.output
    assert "was killed by SIGKILL; released: job 1" in workers.output
    assert jobs.ledger() == (1, 1)


@linux_only
def test_one_at_a_time_works_on_a_file(program: Program) -> None:
    with working(program, "work", "--workers", 1) as workers:
        workers.wait_for("has 1 workers")
        refused = program.run(EXAMPLES / "job_queue.py", "work")
        assert refused.returncode == 1
        assert "somebody else works on" in refused.stderr


@linux_only
def test_next_run_takes_over_what_died_with_the_last(program: Program, jobs: Any) -> None:
    jobs.enqueue("sleep", *[600] * 3)
    with working(program, "work", "--workers", 3, "--lease", 1000) as workers:
        wait_until_running(jobs, 3)
        workers.kill(signal.SIGKILL)
        workers.wait()
    shorten(jobs)
    assert jobs.counts() == {"queued": 0, "running": 3, "done": 0, "dead": 0}
    output = run(program, "work", "--until-empty", "--workers", 3)
    assert "all workers died; released: job 1, job 2, job 3" in output
    assert jobs.ledger() == (3, 3)


@linux_only
@pytest.mark.parametrize(
    "lives",
    [
        pytest.param(2, id="seconds"),
        pytest.param(20, id="minute", marks=[pytest.mark.chaos, pytest.mark.timeout(400)]),
    ],
)
def test_chaos(program: Program, jobs: Any, backend: str, lives: int) -> None:
    """Workers, and now and then all of them with their parent, are killed at random."""
    dice = random.Random(lives)
    arguments = ("--backend", backend, "work", "--workers", 3)
    queued = 0
    for _ in range(lives):
        with working(program, *arguments):
            kills = dice.randrange(1, 10)
            while kills > 0:
                queued += keep_busy(jobs, 30, dice)  # they may all be done by the next line
                if at_work := processes_of(jobs):
                    kills -= kill(dice.choice(at_work)) is not None
                time.sleep(dice.uniform(0, 0.1))
            # Left by killing the parent.
    run(program, "--backend", backend, *arguments[2:], "--until-empty")
    # A job may have been so unlucky as to have lost all of its workers. It is not lost for that.
    unlucky = jobs.dead()
    assert all(error == "its worker died" for *_, error in unlucky)
    assert jobs.counts() == {
        "queued": 0,
        "running": 0,
        "done": queued - len(unlucky),
        "dead": len(unlucky),
    }
    assert jobs.ledger() == (queued - len(unlucky), queued - len(unlucky))


def keep_busy(jobs: Any, count: int, dice: random.Random) -> int:
    """Have as many jobs be in the queue, at least; return how many were put there."""
    missing = count - jobs.counts()["queued"]
    if missing <= 0:
        return 0
    jobs.enqueue("primes", *[dice.randrange(10_000) for _ in range(missing)])
    return missing
