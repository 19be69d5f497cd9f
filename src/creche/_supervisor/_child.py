"""A child of a supervisor, through all of its lives."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any

from .._errors import ProcessStateError
from .._process import AsyncProcess
from ._backoff import Attempts, Backoff
from ._states import ChildState, Step, next_child_state
from ._strategies import RestartType

__all__ = ["SupervisedChild"]


class Life(ABC):
    """One process of a child, or one life of a nested supervisor."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.process: AsyncProcess[Any] | None = None
        self.supervisor: Any = None
        self.ready_value: Any = None
        self.began_at = time.monotonic()
        self.ready_at: float | None = None
        """When it became ready; ``None`` before that, or where it never did."""
        self.ended = False
        self.stopping = False
        """Whether its end was ordered."""
        self.failure: BaseException | None = None
        """Why it has ended, if not in order."""
        self.exitcode: int | None = None

    @abstractmethod
    def begin(self) -> None:
        """Begin to start it. What goes wrong is a failure; nothing is raised."""

    @abstractmethod
    async def run(self) -> None:
        """Be alive, whatever is cancelled around it. Does not raise."""

    @abstractmethod
    def stop(self, *, at_once: bool = False) -> None:
        """Have it end, in its own way.

        :param at_once: even if its way is to be waited for, however long it takes
        """


class SupervisedChild:
    """A child of a :class:`creche.Supervisor`: a live view of it.

    It stands for the child through all of its restarts, each of which is a new process.
    """

    def __init__(self, name: str, restart: RestartType, backoff: Backoff) -> None:
        self._name = name
        self._restart: RestartType = restart
        self._attempts = Attempts(backoff)
        self._state = ChildState.WAITING
        self._restarts = 0
        self._life: Life | None = None  # the one that counts
        self._lives: set[Life] = set()  # and those which come and go when it is rolled
        self._removed = False
        self._introducing = True  # never ready so far: somebody is starting it
        self._failed_starts = 0
        self._start_failure: BaseException | None = None

    @property
    def name(self) -> str:
        """Its name, unique among the children of its supervisor."""
        return self._name

    @property
    def restart(self) -> RestartType:
        """When it is started again: ``"permanent"``, ``"transient"`` or ``"temporary"``."""
        return self._restart

    @property
    def state(self) -> ChildState:
        """Where it is in its life."""
        return self._state

    @property
    def pid(self) -> int | None:
        """The process id of its newest process that exists or existed; ``None`` for a nested
        supervisor."""
        return None if self._life is None else self._life.pid

    @property
    def process(self) -> AsyncProcess[Any] | None:
        """Its newest process; ``None`` for a nested supervisor. The supervisor owns it: look at
        it, but do not stop it, which counts as a failure."""
        return None if self._life is None else self._life.process

    @property
    def supervisor(self) -> Any:
        """The :class:`creche.Supervisor` that it is; ``None`` for a process."""
        return None if self._life is None else self._life.supervisor

    @property
    def restarts(self) -> int:
        """How many times its supervisor has started it again, for whatever reason."""
        return self._restarts

    @property
    def ready_value(self) -> Any:
        """What its process gave to :func:`creche.from_process.started`.

        :raises ProcessStateError: if it is not ready
        """
        if self._life is None or self._state is not ChildState.READY:
            raise ProcessStateError(f"child {self._name!r} is not ready: it is {self._state.value}")
        return self._life.ready_value

    @property
    def uptime(self) -> float:
        """For how many seconds it has been ready; 0 if it is not."""
        return _uptime(self._life) if self._state is ChildState.READY else 0.0

    def __repr__(self) -> str:
        return f"<SupervisedChild {self._name!r} pid={self.pid} {self._state.value}>"

    def _advance(self, step: Step) -> None:
        self._state = next_child_state(self._state, step, self._name)

    def _next_delay(self) -> float:
        """It has failed: for how long is it to wait?"""
        return self._attempts.next_delay(_uptime(self._life))

    def _runs(self) -> bool:
        """Whether the process that counts runs."""
        return self._life is not None and not self._life.ended

    def _has_ended(self) -> bool:
        """Whether its process has ended by itself, and there is no other."""
        ended = self._state is ChildState.ENDED
        return ended and self._life is not None and not self._life.stopping

    def _is_ready(self) -> bool:
        return self._state is ChildState.READY


def _uptime(life: Life | None) -> float:
    if life is None or life.ready_at is None:
        return 0.0
    return time.monotonic() - life.ready_at
