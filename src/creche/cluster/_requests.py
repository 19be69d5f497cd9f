"""What the caller and the Dask workers tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._stop_policy import StopPolicy
from .._wire._payloads import Serializer


@dataclass(frozen=True, slots=True)
class PoolSetup:
    """What the processes of a pool are like, on every Dask worker.

    :param pool: what tells the pool from all others
    :param versions: of what the caller has
    :param setup: a frame with the initializer, its arguments and the finalizer; if there is one
    :param log_level: from which on log records are wanted
    """

    pool: str
    name: str
    versions: dict[str, str]
    backend: str
    serializer: Serializer
    setup: bytes | None
    max_tasks_per_worker: int | None
    max_idle: float
    memory_limit: int | None
    preload: tuple[str, ...]
    stop: StopPolicy
    start_method: str | None
    log_level: int | None


@dataclass(frozen=True, slots=True)
class CallRequest:
    """One call.

    :param number: among the calls of the pool
    :param chunk: whether it is a chunk of a map
    :param timeout: seconds that its process may take
    :param frame: the call, without its parts
    """

    setup: PoolSetup
    number: int
    chunk: bool
    timeout: float | None
    reports: bool
    frame: bytes


def topic_of(pool: str) -> str:
    """The Dask topic on which the workers tell the caller what is not an answer."""
    return f"creche-{pool}"


PLUGIN_NAME = "creche"

Event = dict[str, Any]
