"""A table of the processes that run, in the terminal, while they run::

    with creche.monitor.monitor():
        anyio.run(main)

``python -m creche monitor script.py`` does that for a script as it is.

An extra: ``pip install creche[monitor]`` brings along `rich <https://rich.readthedocs.io>`_, which
draws, and `psutil <https://psutil.readthedocs.io>`_, which measures. Both are imported when the
first monitor is made.
"""

from __future__ import annotations

from ._monitor import Monitor as Monitor
from ._monitor import monitor as monitor
from ._watching import GroupStatus as GroupStatus
from ._watching import ProcessStatus as ProcessStatus

__all__ = ["GroupStatus", "Monitor", "ProcessStatus", "monitor"]

for _value in (Monitor, monitor, ProcessStatus, GroupStatus):
    _value.__module__ = __name__
