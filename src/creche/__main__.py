"""Run a program and watch its processes: ``python -m creche --help``."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from ._running import check_program, run_program, without_own_frames

MONITOR = """\
Run a program and show, in the terminal, a live table of the processes that it starts with creche:
what they do, what CPU and memory they use, how many calls they have served. What the program prints
appears above the table. Without a terminal, one table is printed when the program has ended.
"""
TIMELINE = """\
Run a program and record the processes that it starts with creche, and the calls of its pools. When
it ends, by whatever way, a picture is written: a page that any browser opens, or, with --trace, a
file for https://ui.perfetto.dev.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        watching = _monitor(options) if options.command == "monitor" else _timeline(options)
        check_program(options.program, is_module=options.module)
    except (ImportError, FileNotFoundError) as error:
        print(f"python -m creche: {error}", file=sys.stderr)
        return 2
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(watching)
            _close_when_terminated(stack)
            run_program(options.program, options.arguments, is_module=options.module)
    except SystemExit:
        raise
    except BaseException as error:
        error = without_own_frames(error)
        sys.excepthook(type(error), error, error.__traceback__)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _close_when_terminated(stack: contextlib.ExitStack) -> None:
    """Have SIGTERM, where the program does not handle it, write the page or give the cursor back
    before it ends this process, as it would have."""
    own_pid = os.getpid()

    def close(number: int, _: object) -> None:
        if os.getpid() == own_pid:  # not in a fork
            stack.close()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, close)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m creche",
        description="Run a program and watch the processes that it starts with creche.",
        epilog="`python -m creche COMMAND --help` tells more of each command.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    monitor = commands.add_parser(
        "monitor", help="show a live table of its processes", description=MONITOR
    )
    monitor.add_argument(
        "--interval",
        type=_positive(float),
        default=0.5,
        metavar="SECONDS",
        help="from one look to the next (default: %(default)s)",
    )
    timeline = commands.add_parser(
        "timeline", help="draw what ran when, as a page", description=TIMELINE
    )
    timeline.add_argument(
        "-o",
        "--output",
        metavar="PAGE",
        help="the page to write (default: timeline.html, unless there is a --trace)",
    )
    timeline.add_argument("--trace", metavar="FILE", help="write a Chrome trace as well")
    timeline.add_argument(
        "--max-spans",
        type=_positive(int),
        metavar="N",
        help="keep the last N calls, and as many processes (default: all)",
    )
    for command in (monitor, timeline):
        command.add_argument(
            "-m", dest="module", action="store_true", help="PROGRAM is a module, as in python -m"
        )
        command.add_argument("program", metavar="PROGRAM", help="a script, or a module after -m")
        command.add_argument(
            "arguments", nargs=argparse.REMAINDER, metavar="...", help="what the program is given"
        )
    return parser


def _positive(kind: type[float] | type[int]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError(text)
        return value

    parse.__name__ = f"positive {'number' if kind is float else 'integer'}"
    return parse


def _monitor(options: argparse.Namespace) -> AbstractContextManager[object]:
    from .monitor import monitor

    title = os.path.basename(options.program)
    return monitor(interval=options.interval, title=title)


@contextlib.contextmanager
def _timeline(options: argparse.Namespace) -> Iterator[object]:
    from .timeline import record

    page = options.output or (None if options.trace else "timeline.html")
    # Where they are now: the program may go elsewhere.
    page, trace = (path and os.path.abspath(path) for path in (page, options.trace))
    timeline = record(max_spans=options.max_spans)
    try:
        with timeline:
            yield timeline
    finally:
        if page:
            timeline.write_html(page, title=os.path.basename(options.program))
        if trace:
            timeline.write_trace(trace)
        names = " and ".join(filter(None, (page, trace)))
        print(
            f"{len(timeline.processes):,} processes and {len(timeline.calls):,} calls: {names}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
