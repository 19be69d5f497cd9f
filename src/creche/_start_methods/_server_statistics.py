"""What there is to know of a fork server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ForkServerStatistics"]


@dataclass(frozen=True)
class ForkServerStatistics:
    """A fork server, as :func:`fork_server_statistics` finds it."""

    pid: int
    """Its process id."""

    modules: tuple[str, ...]
    """What it has imported for its children; ``__main__`` is the main module."""

    left_to_children: Mapping[str, str]
    """What each child has to import itself, and why."""

    children_started: int
    """How many children it has started."""

    memory: int | None
    """Its proportional share of memory (PSS) in bytes, of which its children use the greater part,
    too; ``None`` where it has just ended."""


def memory_of(pid: int) -> int | None:
    """The proportional set size of a process in bytes, from Linux; ``None`` if it has ended."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            sizes = dict(line.split(":", 1) for line in file if ":" in line)
            return int(sizes["Pss"].split()[0]) * 1024
    except (OSError, KeyError):
        return None
