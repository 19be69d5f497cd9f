"""Survey the Python standard library, a process for every bundle of its modules.

    python examples/stdlib_survey.py [--backend trio] [--workers 4] [FOLDER]

Every ``.py`` file of the running interpreter's own standard library (or of FOLDER) is parsed with
``ast`` in child processes. Then one child fails and one crashes, to show what that looks like.
Leave with Ctrl-C whenever you like: nothing is left running.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import os
import sys
import sysconfig
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio

import creche

FILES_IN_A_BUNDLE = 60


@dataclass
class Survey:
    """What a child found in its bundle of files; the parent adds them up."""

    files: int = 0
    lines: int = 0
    functions: int = 0
    classes: int = 0
    unparsable: list[str] = field(default_factory=list)
    biggest: list[tuple[int, str]] = field(default_factory=list)
    deepest: list[tuple[int, str]] = field(default_factory=list)
    branchiest: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Survey) -> None:
        self.files += other.files
        self.lines += other.lines
        self.functions += other.functions
        self.classes += other.classes
        self.unparsable += other.unparsable
        for name in ("biggest", "deepest", "branchiest"):
            top = sorted(getattr(self, name) + getattr(other, name), reverse=True)
            setattr(self, name, top[:5])


# --- in the children ----------------------------------------------------------------------------


def survey(folder: str, files: Sequence[str]) -> Survey:
    """Parse some files. This is what runs in a process of its own."""
    warnings.simplefilter("ignore", SyntaxWarning)  # old test data has odd escapes
    total = Survey()
    for file in files:
        source = Path(folder, file).read_bytes()
        try:
            tree = ast.parse(source, file)
        except (SyntaxError, ValueError):  # test data that is broken on purpose
            total.add(Survey(files=1, unparsable=[file]))
        else:
            total.add(survey_tree(file, source.count(b"\n"), tree))
    return total


def survey_tree(file: str, lines: int, tree: ast.Module) -> Survey:
    result = Survey(files=1, lines=lines, biggest=[(lines, file)])
    for node, depth in walk(tree):
        if isinstance(node, ast.ClassDef):
            result.classes += 1
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            result.functions += 1
            place = f"{node.name}()  {file}:{node.lineno}"
            branches = sum(isinstance(child, BRANCHES) for child in ast.walk(node))
            result.deepest.append((depth, place))
            result.branchiest.append((branches, place))
    result.deepest = sorted(result.deepest, reverse=True)[:5]
    result.branchiest = sorted(result.branchiest, reverse=True)[:5]
    return result


BRANCHES = (ast.If, ast.For, ast.While, ast.Try, ast.With, ast.BoolOp, ast.IfExp, ast.match_case)
BLOCKS = (*BRANCHES, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def walk(tree: ast.AST) -> Iterator[tuple[ast.AST, int]]:
    """Yield every node with the number of blocks in itself and its descendants, nested."""
    depths: dict[ast.AST, int] = {}
    for node in reversed(list(ast.walk(tree))):  # children come before their parents
        below = max((depths[child] for child in ast.iter_child_nodes(node)), default=0)
        depths[node] = below + isinstance(node, BLOCKS)
        yield node, depths[node]


def fail(file: str) -> None:
    ast.parse("def oops(:\n    pass\n", file)


def crash() -> None:
    ctypes.string_at(0)


# --- in the parent ------------------------------------------------------------------------------


class Progress:
    """One line that is written over on a terminal, and a line now and then elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._began = time.monotonic()
        self._live = sys.stdout.isatty()

    def advance(self, files: int, running: int) -> None:
        step = self._done * 10 // self._total
        self._done += files
        seconds = time.monotonic() - self._began
        line = f"{self._done:>6} of {self._total} files  {running} processes  {seconds:.1f} s"
        if self._live:
            print(f"\r{line}\033[K", end="", flush=True)
        elif self._done * 10 // self._total > step:
            print(line, flush=True)

    def close(self) -> None:
        if self._live:
            print()


async def survey_folder(folder: Path, workers: int) -> Survey:
    # Files as they come, but the big ones spread over the bundles.
    files = sorted(folder.rglob("*.py"), key=lambda file: file.stat().st_size, reverse=True)
    names = [str(file.relative_to(folder)) for file in files if "site-packages" not in file.parts]
    if not names:
        raise SystemExit(f"no .py files in {folder}")
    count = -(-len(names) // FILES_IN_A_BUNDLE)
    bundles = [names[i::count] for i in range(count)]
    print(f"parsing {len(names)} files of {folder}, {workers} processes at a time", flush=True)

    total = Survey()
    progress = Progress(len(names))
    limiter = anyio.CapacityLimiter(workers)

    async def collect(process: creche.AsyncProcess[Survey]) -> None:
        result = await process
        total.add(result)
        progress.advance(result.files, min(workers, len(nursery.processes)))

    async with creche.open_nursery(limiter=limiter) as nursery, anyio.create_task_group() as tasks:
        for bundle in bundles:
            tasks.start_soon(collect, nursery.start_soon(survey, str(folder), bundle))
    progress.close()
    return total


async def main(folder: Path, workers: int) -> None:
    report(await survey_folder(folder, workers))

    print("\nA child that fails. Its exception comes back, with the child's traceback:\n")
    try:
        await creche.run_in_process(fail, "oops.py")
    except SyntaxError as error:
        print_indented("".join(traceback.format_exception(error, limit=1)))

    print("\nA child that crashes. That is an error as well, and this process lives on:\n")
    try:
        await creche.run_in_process(crash)
    except creche.ProcessDied as error:
        print_indented(f"{type(error).__name__}: {error}")


def report(found: Survey) -> None:
    print(
        f"\n{found.files:,} files, {found.lines:,} lines, {found.classes:,} classes,"
        f" {found.functions:,} functions; {len(found.unparsable)} files do not parse"
    )
    for title, rows in (
        ("Biggest modules (lines)", found.biggest),
        ("Most nested functions (blocks)", found.deepest),
        ("Functions with the most branches", found.branchiest),
    ):
        print(f"\n{title}")
        for number, what in rows:
            print(f"  {number:>7,}  {what}")


def print_indented(text: str) -> None:
    print("\n".join(f"    {line}" for line in text.rstrip().splitlines()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Survey the standard library in processes.")
    parser.add_argument("folder", nargs="?", type=Path, default=sysconfig.get_path("stdlib"))
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    status = 0
    try:
        anyio.run(main, Path(options.folder), options.workers, backend=options.backend)
    except* KeyboardInterrupt:  # in a group where it struck inside a task group
        print("\ninterrupted; every process is gone")
        status = 130
    sys.exit(status)
