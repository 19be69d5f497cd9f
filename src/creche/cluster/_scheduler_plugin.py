"""In the scheduler: a task of ours is not run a second time where its worker dies, unless it may.

Dask runs a task again, three times by default, when the worker that had it is gone: its functions
are taken to have no effects. A pool's may have some.
"""

from __future__ import annotations

from typing import Any

from ._dask import distributed

KEY_PREFIX = "creche-call-"


def task_group(pool: str, retries: int) -> str:
    """The first part of the keys of a pool's tasks."""
    return f"{KEY_PREFIX}{retries}-{pool}"


def make_plugin() -> Any:
    """Return the plugin, of a class that travels as a whole: the scheduler may lack creche."""
    key_prefix = KEY_PREFIX

    class AtMostOnce(distributed.SchedulerPlugin):  # type: ignore[misc]
        name = "creche-at-most-once"
        idempotent = True  # one for all pools

        def update_graph(self, scheduler: Any, *, keys: Any, **_: Any) -> None:
            for key in keys:
                if isinstance(key, tuple) and str(key[0]).startswith(key_prefix):
                    task = scheduler.tasks.get(key)
                    if task is not None:
                        retries = int(key[0][len(key_prefix) :].partition("-")[0])
                        # As if it had been in so many deaths that this one is the last.
                        task.suspicious = scheduler.allowed_failures - retries

    return AtMostOnce()
