"""Measure, print, and renew ``docs/benchmarks.md`` and its plot.

python -m benchmarks [--quick] [--only cold stall cancel scale] [--no-docs]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

from benchmarks import _cancel, _cold, _report, _scale, _stall
from benchmarks._measuring import Table

ROOT = Path(__file__).parent.parent
SUITES = ("cold", "stall", "cancel", "scale")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", nargs="+", choices=SUITES, default=SUITES)
    parser.add_argument("--no-docs", action="store_true", help="print only")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of peers that fork with threads, and the like

    rounds = 5 if options.quick else 25
    tables: list[Table] = []

    def add(*new: Table) -> None:
        for table in new:
            tables.append(table)
            show(table)

    if "cold" in options.only:
        add(_cold.measure(rounds), _cold.measure_with_heavy_main(max(3, rounds // 2)))
    if "stall" in options.only:
        add(*_stall.measure(max(3, rounds // 3)))
    if "cancel" in options.only:
        add(*_cancel.measure(rounds))
    if "scale" in options.only:
        add(*_scale.measure())
    if not options.no_docs and set(options.only) == set(SUITES):
        write(tables)


def show(table: Table) -> None:
    print(f"\n{table.title}")
    for row in table.rows:
        ratio = "" if row.ratio is None else f"{row.ratio:6.2f}x"
        met = {None: "", True: "met", False: "NOT MET"}[row.met]
        print(f"  {row.name:<52} {row.value:9.2f} {row.unit:<5} {ratio:<8} {row.target} {met}")
    sys.stdout.flush()


def write(tables: list[Table]) -> None:
    results: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.system()},"
        f" {platform.python_implementation()} {platform.python_version()}",
        "tables": [table.as_dict() for table in tables],
    }
    (ROOT / "benchmarks" / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (ROOT / "docs" / "benchmarks.md").write_text(_report.page(results))
    (ROOT / "docs" / "_static" / "benchmarks.svg").write_text(
        _report.plot(results["tables"][0]["rows"], results["tables"][0]["title"])
    )


if __name__ == "__main__":
    main()
