"""Measure, print, and renew ``docs/benchmarks.md`` and its plots.

python -m benchmarks [cold warm ...] [--quick] [--docs | --no-docs]
python -m benchmarks soak [CALLS]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import (
    _cancel,
    _channels,
    _cold,
    _instruments,
    _large,
    _map,
    _output,
    _report,
    _scale,
    _service,
    _soak,
    _stall,
    _starts,
    _streams,
    _supervisor,
    _sync,
    _talking,
    _throughput,
    _warm,
    _warm_cancel,
)
from benchmarks._measuring import Table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"


def measure_cluster(rounds: int) -> Iterable[Table]:
    # Dask starts a thread when it is imported, so what imports it is imported in each child again.
    from benchmarks import _cluster

    return _cluster.measure(max(3, rounds // 5))


SUITES: dict[str, Callable[[int], Iterable[Table]]] = {
    "cold": _cold.measure,
    "starts": lambda rounds: _starts.measure(min(5.0, rounds / 5)),
    "stall": lambda rounds: _stall.measure(max(3, rounds // 3)),
    "cancel": _cancel.measure,
    "scale": lambda rounds: _scale.measure(),
    "warm": lambda rounds: [_warm.measure(max(3, rounds // 5))],
    "throughput": lambda rounds: [_throughput.measure(max(3, rounds // 5))],
    "map": lambda rounds: _map.measure(max(3, rounds // 5)),
    "large": lambda rounds: _large.measure(max(3, rounds // 5)),
    "output": lambda rounds: [_output.measure(max(3, rounds // 5))],
    "talking": lambda rounds: [_talking.measure(max(3, rounds // 5))],
    "streams": lambda rounds: _streams.measure(max(3, rounds // 8)),
    "channels": lambda rounds: _channels.measure(max(3, rounds // 5)),
    "warm-stall": lambda rounds: [_stall.measure_warm(max(3, rounds // 5))],
    "instruments": lambda rounds: [_instruments.measure(max(3, rounds // 5))],
    "sync": lambda rounds: _sync.measure(max(3, rounds // 5)),
    "cluster": measure_cluster,
    "supervisor": _supervisor.measure,
    "service": lambda rounds: _service.measure(max(2, rounds // 8)),
    "warm-cancel": lambda rounds: _warm_cancel.measure(max(3, rounds // 4)),
}


def main() -> None:
    warnings.simplefilter("ignore")  # of peers that fork with threads, and the like
    if sys.argv[1:2] == ["soak"]:
        sys.exit(_soak.main(sys.argv[2:]))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure creche and its peers side by side.",
        epilog="`python -m benchmarks soak` looks for leaks instead.",
    )
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; by default all"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument(
        "--docs",
        action=argparse.BooleanOptionalAction,
        help="renew the page and its plots; the default where all suites run",
    )
    options = parser.parse_args()
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")

    rounds = 5 if options.quick else 25
    for suite in options.suites or SUITES:
        tables = []
        for table in SUITES[suite](rounds):
            tables.append(table)
            show(table)
        if options.docs or (options.docs is None and not options.suites):
            write(suite, tables)


def show(table: Table) -> None:
    print(f"\n{table.title}")
    for row in table.rows:
        ratio = "" if row.ratio is None else f"{row.ratio:6.2f}x"
        met = {None: "", True: "met", False: "NOT MET"}[row.met]
        print(f"  {row.name:<52} {row.value:9.2f} {row.unit:<5} {ratio:<8} {row.target} {met}")
    sys.stdout.flush()


def write(suite: str, tables: list[Table]) -> None:
    """Renew what the page says of one suite; of the others, if it was this machine."""
    machine = (
        f"{os.cpu_count()} cores, {platform.system()},"
        f" {platform.python_implementation()} {platform.python_version()}"
    )
    results: dict[str, Any] = json.loads(RESULTS.read_text())
    suites = results["suites"] if results["machine"] == machine else {}
    suites[suite] = [table.as_dict() for table in tables]
    ordered = {name: suites[name] for name in SUITES if name in suites}
    results = {"machine": machine, "suites": ordered}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    (ROOT / "docs" / "benchmarks.md").write_text(_report.page(results))
    for table in tables:
        if table.plot:
            (ROOT / "docs" / "_static" / f"{table.plot}.svg").write_text(_report.plot(table))


if __name__ == "__main__":
    main()
