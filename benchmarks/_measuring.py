"""Measuring in rounds, and what comes out of it."""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Row:
    """A figure of one contender."""

    name: str
    value: float
    unit: str
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    note: str = ""


@dataclass
class Table:
    """Figures that can be compared with each other: they come from one run."""

    title: str
    about: str
    rows: list[Row] = field(default_factory=list)
    plot: str = ""
    """The name of the file with its plot, if it has one."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def in_turn(
    contenders: dict[str, Callable[[], float]], rounds: int, warm_up: int = 2
) -> dict[str, float]:
    """Call every contender once a round; return the medians of what they give.

    In turn, so that whatever else the machine does hits all of them alike.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(warm_up + rounds):
        for name, measure in contenders.items():
            gc.collect()
            value = measure()
            if number >= warm_up:
                samples[name].append(value)
    return {name: statistics.median(values) for name, values in samples.items()}


def in_fresh_process(module: str, expression: str) -> Any:
    """Evaluate ``expression`` in another interpreter, with the names of a module of benchmarks.

    :return: its value, which JSON can represent
    """
    code = (
        f"import anyio, json, sys; from benchmarks.{module} import *;"
        f"json.dump({expression}, sys.stdout)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def rows_with_ratios(
    medians: dict[str, float], floor: str, unit: str, targets: dict[str, tuple[str, bool]]
) -> list[Row]:
    return [
        Row(
            name=name,
            value=value,
            unit=unit,
            ratio=value / medians[floor],
            target=targets.get(name, ("", None))[0],
            met=targets.get(name, ("", None))[1],
        )
        for name, value in medians.items()
    ]
