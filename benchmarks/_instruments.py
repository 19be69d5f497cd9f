"""What it costs to be observed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import creche

from ._measuring import Row, Table, in_turn
from ._pools import creche_pools, measuring
from ._throughput import calls_per_second
from ._warm import one_at_a_time

WORKERS = 2
CALLERS = 8

LIMIT = 10.0


class Counter(creche.Instrument):
    """What asks for everything, and does next to nothing with it."""

    def __init__(self) -> None:
        self.count = 0

    def process_exited(self, process: creche.ObservedProcess) -> None:
        self.count += 1

    def call_queued(self, call: creche.ObservedCall) -> None:
        self.count += 1

    def call_started(self, call: creche.ObservedCall) -> None:
        self.count += 1

    def call_finished(self, call: creche.ObservedCall) -> None:
        self.count += 1


def observed(measure: Callable[[], float]) -> Callable[[], float]:
    def run() -> float:
        counter = Counter()
        creche.add_instrument(counter)
        try:
            return measure()
        finally:
            creche.remove_instrument(counter)
            assert counter.count > 0

    return run


def measure(rounds: int) -> Table:
    alone: dict[str, Callable[[], float]] = {}
    together: dict[str, Callable[[], float]] = {}
    for pool in creche_pools():
        for contenders, workers, way in (
            (alone, 1, one_at_a_time),
            (together, WORKERS, partial(calls_per_second, callers=CALLERS)),
        ):
            contenders[pool.name] = measuring(pool, workers, way)
            contenders[f"{pool.name}, observed"] = observed(contenders[pool.name])
    one = {name: 1e6 * value for name, value in in_turn(alone, rounds, warm_up=0).items()}
    many = in_turn(together, rounds, warm_up=0)
    rows = []
    for pool in creche_pools():
        name, seen = pool.name, f"{pool.name}, observed"
        cost = one[seen] - one[name]
        rows += [
            Row(f"{name}: a call alone", one[name], "us"),
            Row(f"{seen}: a call alone", one[seen], "us", one[seen] / one[name]),
            Row(
                f"{name}: an instrument's cost",
                cost,
                "us",
                None,
                f"at most {LIMIT:g}",
                cost <= LIMIT,
            ),
            Row(f"{name}: calls from {CALLERS} tasks", many[name], "calls/s"),
            Row(
                f"{seen}: calls from {CALLERS} tasks",
                many[seen],
                "calls/s",
                many[seen] / many[name],
            ),
        ]
    return Table(
        "Calls that are observed",
        "A function that does nothing, with and without an instrument that counts what it is told:"
        f" one call at a time and one worker, and {CALLERS} tasks with {WORKERS} workers.",
        rows,
    )
