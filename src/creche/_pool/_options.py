"""What a pool was asked to be."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .._durations import check_duration
from .._log_forwarding import LogTarget, check_log_target
from .._output import check_output
from .._platform import usable_cpus
from .._start_methods import check_start_method
from .._stop_policy import StopPolicy, check_stop_policy
from .._wire._payloads import Serializer


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """The arguments of :func:`creche.open_pool`, checked; see there."""

    workers: float
    min_workers: int
    spares: int
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    finalizer: Callable[[], object] | None
    max_tasks_per_worker: float
    max_idle: float
    memory_limit: int | None
    serializer: Serializer | None
    preload: tuple[str, ...]
    stop: StopPolicy
    start_method: str
    logs: LogTarget
    name: str
    stdout: logging.Logger | None
    stderr: logging.Logger | Literal["stdout"] | None


def check_options(
    *,
    workers: float | None,
    min_workers: int,
    spares: int | None,
    initializer: Callable[..., object] | None,
    initargs: Sequence[Any],
    finalizer: Callable[[], object] | None,
    max_tasks_per_worker: int | None,
    max_idle: float,
    memory_limit: int | None,
    serializer: Serializer | None,
    preload: Sequence[str],
    stop: StopPolicy | None,
    start_method: str | None,
    logs: LogTarget,
    name: str,
    stdout: logging.Logger | None,
    stderr: logging.Logger | Literal["stdout"] | None,
) -> PoolOptions:
    """Check the arguments of :func:`creche.open_pool`.

    :raises ValueError: if one is out of its range
    :raises TypeError: if one is of a wrong type
    """
    if workers is None:
        workers = usable_cpus()
    elif workers != math.inf:
        _check_count("workers", workers, 1)
    _check_count("min_workers", min_workers, 0)
    if min_workers > workers:
        raise ValueError(f"min_workers is {min_workers}, which is more than workers, {workers}")
    if max_tasks_per_worker is not None:
        _check_count("max_tasks_per_worker", max_tasks_per_worker, 1)
    if spares is None:
        spares = int(min(workers, usable_cpus())) if max_tasks_per_worker == 1 else 0
    _check_count("spares", spares, 0)
    if memory_limit is not None:
        _check_count("memory_limit", memory_limit, 1)
    for what, func in (("initializer", initializer), ("finalizer", finalizer)):
        if func is not None and not callable(func):
            raise TypeError(f"{what} must be callable, not {type(func).__name__}")
    for method in ("dumps", "loads"):
        if serializer is not None and not callable(getattr(serializer, method, None)):
            raise TypeError(f"serializer has no {method}(): {serializer!r}")
    if isinstance(preload, str) or not _is_all(preload, str):
        raise TypeError("preload must be a sequence of names of modules")
    if not isinstance(initargs, Iterable):
        raise TypeError(f"initargs must be a sequence, not {type(initargs).__name__}")
    check_output(stdout, stderr, no_stream="workers serve many calls; use a logging.Logger")
    return PoolOptions(
        workers=workers,
        min_workers=min_workers,
        spares=spares,
        initializer=initializer,
        initargs=tuple(initargs),
        finalizer=finalizer,
        max_tasks_per_worker=math.inf if max_tasks_per_worker is None else max_tasks_per_worker,
        max_idle=check_duration("max_idle", max_idle),
        memory_limit=memory_limit,
        serializer=serializer,
        preload=tuple(preload),
        stop=check_stop_policy(stop),
        start_method=check_start_method(start_method),
        logs=check_log_target(logs),
        name=name,
        stdout=stdout,
        stderr=stderr,
    )


def _is_all(values: object, kind: type) -> bool:
    return isinstance(values, Iterable) and all(isinstance(value, kind) for value in values)


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value}")
