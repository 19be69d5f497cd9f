"""The decisions of a supervisor, without processes."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any, get_args

import anyio
import pytest
from support import TIMEOUT

import creche
from creche import Backoff, ChildState, HealthCheck, Heartbeat, StopPolicy, open_supervisor
from creche._progress_feed import ProgressFeed
from creche._supervisor import _health
from creche._supervisor._backoff import Attempts
from creche._supervisor._events import ChildStarted, EventHub
from creche._supervisor._intensity import Intensity
from creche._supervisor._shutdown import bounded, shutdown_policy
from creche._supervisor._states import Step, next_child_state
from creche._supervisor._strategies import RestartType, Strategy, affected, is_restarted

# --- strategies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "failed", "expected"),
    [
        ("one_for_one", "b", "b"),
        ("one_for_one", "db", "bd"),
        ("one_for_all", "b", "abcd"),
        ("one_for_all", "d", "abcd"),
        ("rest_for_one", "a", "abcd"),
        ("rest_for_one", "c", "cd"),
        ("rest_for_one", "d", "d"),
        ("rest_for_one", "dc", "cd"),
    ],
)
def test_affected(strategy: Strategy, failed: str, expected: str) -> None:
    assert "".join(affected(strategy, "abcd", failed)) == expected


@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_nobody_is_affected_by_who_is_no_child(strategy: Strategy) -> None:
    assert affected(strategy, "abcd", "x") == []
    assert affected(strategy, "abcd", "") == []


@pytest.mark.parametrize(
    ("restart", "when_failed", "when_ended"),
    [("permanent", True, True), ("transient", True, False), ("temporary", False, False)],
)
def test_restart_types(restart: RestartType, when_failed: bool, when_ended: bool) -> None:
    assert is_restarted(restart, failed=True) is when_failed
    assert is_restarted(restart, failed=False) is when_ended


# --- intensity ----------------------------------------------------------------------------------


def test_intensity() -> None:
    intensity = Intensity(2, 5.0)
    failures = [ValueError(number) for number in range(5)]
    assert intensity.note(0.0, failures[0])
    assert intensity.note(1.0, failures[1])
    assert not intensity.note(5.0, failures[2])  # within 5 seconds, and one too many
    assert intensity.failures == failures[:3]
    assert intensity.count(5.5) == 2
    assert not intensity.note(5.9, failures[3])
    assert intensity.note(100.0, failures[4])
    assert intensity.failures == failures[4:]


def test_no_restart_at_all() -> None:
    assert not Intensity(0, 5.0).note(0.0, ValueError())


def test_without_a_period_restarts_count_that_happen_at_once() -> None:
    intensity = Intensity(1, 0.0)
    assert intensity.note(1.0, ValueError())
    assert intensity.note(1.1, ValueError())
    assert not intensity.note(1.1, ValueError())


def test_memory_is_bounded_by_the_period() -> None:
    intensity = Intensity(10**9, 5.0)
    for number in range(1000):
        assert intensity.note(float(number), ValueError())
    assert len(intensity.failures) == 6


# --- back-off -----------------------------------------------------------------------------------


def test_delays() -> None:
    backoff = Backoff(initial=1, factor=3, maximum=20, jitter=0, immediate=2)
    delays = [backoff.delay(attempt) for attempt in range(1, 8)]
    assert delays == [0, 0, 1, 3, 9, 20, 20]


def test_default_comes_back_at_once_and_then_later() -> None:
    backoff = Backoff()
    assert backoff.delay(1) == 0
    assert 0 <= backoff.delay(2) <= backoff.initial
    assert 0 <= backoff.delay(10_000_000) <= backoff.maximum  # no overflow


def test_jitter() -> None:
    full = [Backoff(immediate=0, initial=8, jitter=1).delay(1) for _ in range(500)]
    assert 0 <= min(full) < 2
    assert 6 < max(full) <= 8
    half = [Backoff(immediate=0, initial=8, jitter=0.5).delay(1) for _ in range(500)]
    assert 4 <= min(half) < 5
    assert 7 < max(half) <= 8


def test_who_stays_up_begins_anew() -> None:
    attempts = Attempts(Backoff(initial=1, factor=2, jitter=0, immediate=1, reset_after=10))
    assert [attempts.next_delay(uptime) for uptime in (0, 1, 9, 10, 0)] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"initial": -1}, ValueError, "initial must be zero or more seconds"),
        ({"maximum": math.nan}, ValueError, "maximum"),
        ({"reset_after": "1"}, TypeError, "reset_after must be a number"),
        ({"factor": 0.5}, ValueError, "factor must be at least 1"),
        ({"factor": math.nan}, ValueError, "factor must be at least 1"),
        ({"jitter": 1.5}, ValueError, "jitter must be between 0 and 1"),
        ({"jitter": None}, TypeError, "jitter must be a number"),
        ({"immediate": -1}, ValueError, "immediate must be zero or more"),
    ],
)
def test_bad_backoff(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Backoff(**options)


# --- states -------------------------------------------------------------------------------------


def test_life_of_a_child() -> None:
    state = ChildState.WAITING
    for step, expected in [
        (Step.LAUNCH, ChildState.STARTING),
        (Step.READY, ChildState.READY),
        (Step.END, ChildState.ENDED),
        (Step.RETRY, ChildState.WAITING),
        (Step.LAUNCH, ChildState.STARTING),
        (Step.STOP, ChildState.STOPPING),
        (Step.END, ChildState.ENDED),
        (Step.REMOVE, ChildState.REMOVED),
    ]:
        state = next_child_state(state, step, "x")
        assert state is expected


def test_removed_is_the_end() -> None:
    for step in Step:
        with pytest.raises(creche.ProcessStateError, match="it is removed"):
            next_child_state(ChildState.REMOVED, step, "x")


def test_every_state_is_left_and_reached() -> None:
    reached = set()
    for state, step in itertools.product(ChildState, Step):
        try:
            reached.add(next_child_state(state, step, "x"))
        except creche.ProcessStateError:
            continue
    assert reached == set(ChildState)


# --- shutdown -----------------------------------------------------------------------------------


def test_shutdown() -> None:
    default = StopPolicy(grace=2, exit_timeout=3)
    other = StopPolicy(grace=4)
    assert shutdown_policy(None, default) is default
    assert shutdown_policy(other, default) is other
    assert shutdown_policy("kill", default) == StopPolicy(grace=0, exit_timeout=3)
    assert shutdown_policy("wait", default) == StopPolicy(grace=math.inf, exit_timeout=3)
    with pytest.raises(TypeError, match="shutdown must be a StopPolicy, 'kill', 'wait' or None"):
        shutdown_policy("brutal_kill", default)  # type: ignore[arg-type]


def test_nobody_waits_for_ever_for_who_hangs() -> None:
    assert bounded(StopPolicy(grace=math.inf)).grace == StopPolicy().grace
    assert bounded(StopPolicy(grace=7)).grace == 7


# --- silence ------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("lateness", "looks", "sign_at"),
    [
        (0.4, 1, None),
        (0.9, 2, None),
        (1.5, 3, None),
        (100, 9, None),
        (0.9, 4, 2),  # a sign of life: the next look that is late blames nobody again
    ],
)
async def test_loop_that_is_always_late(
    lateness: float, looks: int, sign_at: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It blames nobody at first, but in the end."""
    now = 1000.0
    looked = 0
    within = 0.02
    feed = ProgressFeed()

    async def sleep(seconds: float) -> None:
        nonlocal now, looked
        looked += 1
        assert looked < 100
        now += seconds + lateness * within
        if looked == sign_at:
            feed._latest_at = now

    monkeypatch.setattr(_health, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(_health, "anyio", SimpleNamespace(sleep=sleep))
    await _health._wait_for_silence(feed, within)
    assert looked == looks


# --- events -------------------------------------------------------------------------------------


def _event(number: int) -> ChildStarted:
    return ChildStarted(supervisor="s", time=float(number), child="c", pid=number)


def test_slow_reader_loses_the_oldest() -> None:
    hub = EventHub()
    slow, other = hub.reader(3), hub.reader(math.inf)
    for number in range(5):
        hub.publish(_event(number))
    assert (slow.dropped, other.dropped) == (2, 0)
    assert [event.time for event in slow._events] == [2, 3, 4]
    assert len(other._events) == 5


def test_reader_that_nobody_has_takes_no_memory() -> None:
    hub = EventHub()
    hub.reader(3)
    hub.publish(_event(1))
    assert list(hub._readers) == []


def test_events_of_a_nested_supervisor_are_those_of_the_outer_one() -> None:
    outer, inner = EventHub(), EventHub()
    inner.outer = outer
    reader = outer.reader(3)
    inner.publish(_event(1))
    assert list(reader._events) == [_event(1)]


@pytest.mark.anyio
async def test_tasks_share_a_reader() -> None:
    """Each event is for one of them; who finds that another one was faster waits for the next."""
    hub = EventHub()
    reader = hub.reader(3)
    read: list[float] = []

    async def read_one() -> None:
        read.append((await anext(reader)).time)

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as tasks:
            hub.publish(_event(1))
            tasks.start_soon(read_one)
            tasks.start_soon(read_one)
            await anyio.wait_all_tasks_blocked()
            assert read == [1]
            hub.publish(_event(2))
        assert read == [1, 2]
        hub.publish(_event(3))
        hub.end()
        await read_one()
        with pytest.raises(StopAsyncIteration):
            await anext(reader)


@pytest.mark.parametrize("buffer", [0, -1])
def test_bad_buffer(buffer: int) -> None:
    with pytest.raises(ValueError, match="buffer must be at least 1 event"):
        EventHub().reader(buffer)


@pytest.mark.parametrize("buffer", [1.5, "1", None, True, math.nan])
def test_bad_type_of_buffer(buffer: Any) -> None:
    with pytest.raises(TypeError, match="buffer must be a whole number"):
        EventHub().reader(buffer)


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strategy": "simple_one_for_one"}, ValueError, "strategy must be one of 'one_for_one'"),
        ({"intensity": -1}, ValueError, "intensity must be zero or more restarts"),
        ({"intensity": 1.5}, TypeError, "intensity must be a whole number"),
        ({"period": -1}, ValueError, "period must be zero or more seconds"),
        ({"name": ""}, ValueError, "name must not be empty"),
        ({"name": 3}, TypeError, "name must be a string"),
        ({"backoff": 3}, TypeError, "backoff must be a Backoff"),
        ({"stop": 3}, TypeError, "stop must be a StopPolicy"),
        ({"stop_order": "all"}, ValueError, "stop_order must be one of 'reverse', 'together'"),
        ({"start_method": "sporn"}, ValueError, "no start method 'sporn'"),
        ({"stdout": "stream"}, ValueError, "each restart makes a new process"),
    ],
)
def test_bad_options(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_supervisor(**options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Heartbeat(0), ValueError, "within must be more than 0"),
        (lambda: Heartbeat("1"), TypeError, "within must be a number"),  # type: ignore[arg-type]
        (lambda: HealthCheck(3), TypeError, "check must be an async function"),  # type: ignore[arg-type]
        (lambda: HealthCheck(print, failures=0), ValueError, "failures must be at least 1"),  # type: ignore[arg-type]
        (lambda: HealthCheck(print, interval=-1), ValueError, "interval"),  # type: ignore[arg-type]
    ],
)
def test_bad_health(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
