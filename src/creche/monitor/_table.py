"""The table, as rich draws it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ._watching import GroupStatus, ProcessStatus

_STYLES = {
    "starting": "cyan",
    "running": "green",
    "ready": "green",
    "busy": "bold green",
    "idle": "dim",
    "stopping": "yellow",
    "ended": "dim",
}
# What the table needs beside the rows of processes: the line above it, its head, and its end.
_OTHER_LINES = 5


def draw(
    groups: tuple[GroupStatus, ...],
    *,
    title: str,
    seconds: float,
    rate: float | None,
    most_lines: int | None,
    over: bool = False,
) -> RenderableType:
    """Return what is shown of some groups.

    :param seconds: for how long there has been something to show
    :param rate: how many calls or processes ended in a second
    :param most_lines: how many lines there is room for
    :param over: show what has ended, too: nothing follows
    """
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1))
    table.add_column("name", no_wrap=True, min_width=16, overflow="ellipsis")
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True, min_width=20)
    table.add_column("CPU", justify="right", no_wrap=True, min_width=6)
    table.add_column("memory", justify="right", no_wrap=True, min_width=9)
    table.add_column("tasks", justify="right", no_wrap=True)
    table.add_column("failed", justify="right", no_wrap=True)
    table.add_column("restarts", justify="right", no_wrap=True, min_width=8)
    table.add_column("uptime", justify="right", no_wrap=True, min_width=7)
    table.add_column("function", no_wrap=True, overflow="ellipsis", min_width=8)
    room = None if most_lines is None else max(1, most_lines - _OTHER_LINES - len(groups))
    for group, shown in zip(groups, _share_out(groups, room, over), strict=True):
        _add_group(table, group, shown, over)
    return Group(_headline(groups, title, seconds, rate), table)


def _share_out(groups: tuple[GroupStatus, ...], room: int | None, over: bool) -> list[int]:
    """Say how many processes of each group are shown: as many as there is room for, fairly."""
    wanted = [len(group.processes) + (len(group.ended) if over else 0) for group in groups]
    if room is None or sum(wanted) <= room:
        return wanted
    shown = [0] * len(groups)
    while room > 0 and shown != wanted:
        for number in range(len(groups)):
            if room > 0 and shown[number] < wanted[number]:
                shown[number] += 1
                room -= 1
    return shown


def _headline(
    groups: tuple[GroupStatus, ...], title: str, seconds: float, rate: float | None
) -> Text:
    every = [process for group in groups for process in group.processes]
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(title, style="bold")
    parts = [duration(seconds), _count(len(every), "process", "processes")]
    cpu = _sum(process.cpu for process in every)
    memory = _sum(process.memory for process in every)
    if cpu is not None:
        parts.append(f"{cpu:.0f} % CPU")
    if memory is not None:
        parts.append(size(int(memory)))
    parts.append(_count(sum(group.tasks for group in groups), "task") + " done")
    if rate is not None:
        parts.append(f"{rate:,.0f}/s")
    for part in parts:
        text.append(f" · {part}")
    if failed := sum(group.failed for group in groups):
        text.append(f" · {failed:,} failed", style="red")
    return text


def _add_group(table: Table, group: GroupStatus, shown: int, over: bool) -> None:
    name = "processes" if group.pool is None else f"pool {group.pool}"
    cpu = _sum(process.cpu for process in group.processes)
    memory = _sum(process.memory for process in group.processes)
    state = [f"{group.started:,} started"] if over else [f"{len(group.processes)} alive"]
    if group.waiting:
        state.append(f"{group.waiting:,} waiting")
    table.add_row(
        Text(name, style="bold"),
        "",
        Text(", ".join(state)),
        "" if cpu is None else f"{cpu:.0f} %",
        "" if memory is None else size(int(memory)),
        f"{group.tasks:,}",
        _alarming(group.failed),
        f"{group.restarts:,}",
        "",
        "",
    )
    every = [*group.processes, *(reversed(group.ended) if over else ())]
    for process in every[:shown]:
        _add_process(table, process)
    hidden = (group.started if over else len(every)) - shown
    if hidden > 0:
        table.add_row(Text(f"  and {hidden:,} more", style="dim"))


def _add_process(table: Table, process: ProcessStatus) -> None:
    ended = process.state == "ended"
    worked = process.tasks or process.failed
    table.add_row(
        Text(f"  {process.name}", style="dim" if ended else ""),
        "-" if process.pid is None else str(process.pid),
        _state(process),
        "" if process.cpu is None else f"{process.cpu:.0f} %",
        "" if process.memory is None else size(process.memory),
        f"{process.tasks:,}" if worked or process.func is None else "",
        _alarming(process.failed),
        str(process.restarts) if process.restarts else "",
        duration(process.uptime),
        Text((process.func or "").removeprefix("__main__."), style="dim"),
    )


def _state(process: ProcessStatus) -> Text:
    if process.state == "ended":
        code = process.exitcode
        text = "not started" if code is None else f"exit code {code}"
        return Text(text, style="red" if code is None or code > 0 or code < -15 else "dim")
    return Text(process.state, style=_STYLES[process.state])


def _alarming(failed: int) -> Text:
    return Text(f"{failed:,}", style="bold red") if failed else Text("")


def _count(number: int, one: str, more: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def _sum(values: Iterable[float | int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def size(number: int) -> str:
    """Show a number of bytes."""
    value = float(number)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def duration(seconds: float) -> str:
    """Show a number of seconds."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02} h"
