"""What a pool knows of its processes on the cluster, and what became of its calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any

from .._pool._statistics import PoolStatistics, WorkerStatistics


@dataclass(frozen=True, slots=True)
class FarStatistics:
    """How the processes of a pool were on one Dask worker, when it said so.

    :param worker: its address
    :param moment: by the clock of its machine; says which of two is newer
    :param workers: the fields of a :class:`creche.WorkerStatistics` each, which is a fraction of
        the work for pickle: every answer has them
    """

    worker: str
    moment: float
    restarts: int
    workers: tuple[tuple[Any, ...], ...]

    @classmethod
    def take(cls, worker: str, found: PoolStatistics) -> FarStatistics:
        """Make them of those of the pool there."""
        return cls(worker, time.monotonic(), found.restarts, tuple(map(_fields, found.workers)))

    def rebuild(self) -> Iterator[WorkerStatistics]:
        """Make what users get."""
        for values in self.workers:
            worker = WorkerStatistics(*values)
            yield replace(worker, name=f"{worker.name} on {self.worker}")


_fields = attrgetter(*(field.name for field in fields(WorkerStatistics)))


class ClusterStatistics:
    """Counts what becomes of the calls; keeps what each Dask worker has said last.

    :param under_way: the calls that have not come back
    """

    def __init__(self, under_way: Sized) -> None:
        self.on_change: Callable[[], None] | None = None
        self.cancelled = 0
        self.places = 0
        """How many calls the Dask workers run at once."""
        self._under_way = under_way
        self._done = 0
        self._failed = 0
        self._heard: dict[str, FarStatistics] = {}
        self._restarts_of_gone = 0

    def count(self, *, done: int = 0, failed: int = 0) -> None:
        self._done += done
        self._failed += failed

    def hear(self, news: FarStatistics) -> None:
        """A Dask worker has said how its processes are. Answers may overtake each other."""
        known = self._heard.get(news.worker)
        if known is None or known.moment < news.moment:
            self._heard[news.worker] = news

    def workers_are(self, threads: dict[str, int]) -> None:
        """These are the Dask workers, and how many calls each runs at once.

        Others are gone, and their processes with them.
        """
        self.places = sum(threads.values())
        for gone in self._heard.keys() - threads.keys():
            self._restarts_of_gone += self._heard.pop(gone).restarts

    def statistics(self) -> PoolStatistics:
        """Return how things are; of the processes, as far as this side knows."""
        places, under_way = self.places, len(self._under_way)
        busy = min(under_way, places)
        heard = sorted(self._heard.values(), key=lambda one: one.worker)
        return PoolStatistics(
            workers_alive=places,
            workers_starting=0,
            workers_idle=places - busy,
            workers_busy=busy,
            calls_queued=under_way - busy,
            calls_running=busy,
            calls_done=self._done,
            calls_failed=self._failed,
            calls_cancelled=self.cancelled,
            restarts=self._restarts_of_gone + sum(one.restarts for one in heard),
            workers=tuple(worker for one in heard for worker in one.rebuild()),
        )
