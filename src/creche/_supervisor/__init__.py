"""Processes that are kept alive, in the words of Erlang/OTP.

``_supervisor`` is what users hold, ``_engine`` is what an open supervisor consists of, ``_mending``
brings back what has failed, ``_lives`` and ``_nested`` are one life of a child each. What can be
decided without processes (``_states``, ``_strategies``, ``_intensity``, ``_backoff``) is.
"""

from __future__ import annotations

from ._backoff import Backoff as Backoff
from ._child import SupervisedChild as SupervisedChild
from ._events import ChildExited as ChildExited
from ._events import ChildReady as ChildReady
from ._events import ChildRestarting as ChildRestarting
from ._events import ChildStarted as ChildStarted
from ._events import SupervisorEvent as SupervisorEvent
from ._events import SupervisorEvents as SupervisorEvents
from ._events import SupervisorGaveUp as SupervisorGaveUp
from ._failures import ChildEnded as ChildEnded
from ._failures import ChildUnhealthy as ChildUnhealthy
from ._health import HealthCheck as HealthCheck
from ._health import Heartbeat as Heartbeat
from ._states import ChildState as ChildState
from ._statistics import ChildStatistics as ChildStatistics
from ._statistics import SupervisorStatistics as SupervisorStatistics
from ._supervisor import Supervisor as Supervisor
from ._supervisor import open_supervisor as open_supervisor


# As for all other public names, tracebacks, pickles and the documentation show them as such.
def _show_as_public(names: dict[str, object]) -> None:
    for value in names.values():
        if getattr(value, "__module__", "").startswith(f"{__name__}."):
            value.__module__ = "creche"


_show_as_public(dict(globals()))
