"""Measuring what processes use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ._watching import GroupStatus, ProcessStatus


class Sampler:
    """Measures the CPU and the memory of processes. Belongs to one thread.

    :param psutil: the module
    """

    def __init__(self, psutil: Any) -> None:
        self._psutil = psutil
        self._known: dict[int, Any] = {}
        self._peaks: dict[tuple[str, int | None], int] = {}

    def measure(self, groups: tuple[GroupStatus, ...]) -> tuple[GroupStatus, ...]:
        """Fill in what the processes use just now; for those that have ended, the most memory that
        they were seen with."""
        before, peaks = self._known, self._peaks
        self._known, self._peaks = {}, {}
        measured: list[GroupStatus] = []
        for group in groups:
            alive = tuple(self._measure(status, before) for status in group.processes)
            ended = tuple(
                replace(status, memory=peaks.get((status.name, status.pid)))
                for status in group.ended
            )
            for status in (*alive, *ended):
                key = status.name, status.pid
                most = max(status.memory or 0, peaks.get(key, 0))
                if most:
                    self._peaks[key] = most
            measured.append(replace(group, processes=alive, ended=ended))
        return tuple(measured)

    def _measure(self, status: ProcessStatus, before: dict[int, Any]) -> ProcessStatus:
        pid = status.pid
        if pid is None:
            return status
        try:
            process: Any = before.get(pid)
            # Another process may have got the same pid.
            fresh = process is None or not process.is_running()
            process = self._psutil.Process(pid) if fresh else process
            with process.oneshot():
                cpu = process.cpu_percent(None)  # of the first time, it says nothing
                memory = process.memory_info().rss
        except self._psutil.Error:  # it has just ended
            return status
        self._known[pid] = process
        return replace(status, cpu=None if fresh else cpu, memory=memory)
