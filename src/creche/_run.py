"""One call in a process of its own."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Literal, ParamSpec, TypeVar, TypeVarTuple, Unpack, overload

import anyio
import anyio.lowlevel

from ._durations import check_timeout
from ._errors import ProcessTimeout
from ._log_forwarding import LogTarget, check_log_target
from ._output import check_output
from ._platform import usable_cpus
from ._process import AsyncProcess
from ._stop_policy import StopPolicy

__all__ = ["current_default_run_limiter", "in_process", "run_in_process"]

T = TypeVar("T")
P = ParamSpec("P")
PosArgsT = TypeVarTuple("PosArgsT")

_NO_STREAM = "there is no process object to read it from; use AsyncProcess or a nursery"

_default_limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar(
    "_creche_default_run_limiter"
)


def current_default_run_limiter() -> anyio.CapacityLimiter:
    """Return the limiter that :func:`run_in_process` uses in this event loop by default.

    It has as many tokens as there are CPUs that this process may use. Set its ``total_tokens`` to
    change that for the event loop.
    """
    try:
        return _default_limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(usable_cpus())
        _default_limiter.set(limiter)
        return limiter


@overload
async def run_in_process(
    func: Callable[[Unpack[PosArgsT]], Coroutine[Any, Any, T]],
    *args: *PosArgsT,
    timeout: float | None = None,
    name: str | None = None,
    stop: StopPolicy | None = None,
    start_method: str | None = None,
    limiter: anyio.CapacityLimiter | None = None,
    logs: LogTarget = False,
    stdout: logging.Logger | None = None,
    stderr: logging.Logger | Literal["stdout"] | None = None,
) -> T: ...


@overload
async def run_in_process(
    func: Callable[[Unpack[PosArgsT]], T],
    *args: *PosArgsT,
    timeout: float | None = None,
    name: str | None = None,
    stop: StopPolicy | None = None,
    start_method: str | None = None,
    limiter: anyio.CapacityLimiter | None = None,
    logs: LogTarget = False,
    stdout: logging.Logger | None = None,
    stderr: logging.Logger | Literal["stdout"] | None = None,
) -> T: ...


async def run_in_process(
    func: Callable[[Unpack[PosArgsT]], Any],
    *args: *PosArgsT,
    timeout: float | None = None,
    name: str | None = None,
    stop: StopPolicy | None = None,
    start_method: str | None = None,
    limiter: anyio.CapacityLimiter | None = None,
    logs: LogTarget = False,
    stdout: logging.Logger | None = None,
    stderr: logging.Logger | Literal["stdout"] | None = None,
) -> Any:
    """Call ``func(*args)`` in a fresh process of its own; return its value or raise its error.

    Whichever way this is left, the process is gone.

    Cancellation stops the process, and waits until it is gone. A call that still waits for the
    limiter just leaves.

    :param func: anything that can be called and pickled. An ``async`` function runs in an event
        loop of the backend that this is called from
    :param args: its positional arguments (for keyword arguments use :func:`functools.partial`)
    :param timeout: seconds that the process may run, counted from its start. 0 times out at once
    :param name: the name of the process; by default ``func``'s name and a number
    :param stop: how the process is stopped
    :param start_method: as for :class:`AsyncProcess`
    :param limiter: bounds how many processes run at once. By default, all calls in an event loop
        share :func:`current_default_run_limiter`
    :param logs: as for :class:`AsyncProcess`
    :param stdout: a logger for the lines that the process writes to its standard output, as for
        :class:`AsyncProcess`; by default they go to the application's own
    :param stderr: a logger for those of standard error; ``"stdout"`` for where standard output goes
    :raises Exception: whatever ``func`` raises, and all that :meth:`AsyncProcess.result` raises
    """
    check_output(stdout, stderr, no_stream=_NO_STREAM)
    process: AsyncProcess[Any] = AsyncProcess(
        target=func,
        name=name,
        args=args,
        timeout=timeout,
        stop=stop,
        start_method=start_method,
        logs=logs,
        stdout=stdout,
        stderr=stderr,
    )
    if name is None:
        name_after(process, func)
    async with current_default_run_limiter() if limiter is None else limiter:
        if check_timeout(timeout) == 0:
            raise ProcessTimeout(f"process {process.name!r} was given a timeout of 0 seconds")
        try:
            return await process.result()
        finally:
            await process._leave_nothing()


def in_process(
    *,
    timeout: float | None = None,
    name: str | None = None,
    stop: StopPolicy | None = None,
    start_method: str | None = None,
    limiter: anyio.CapacityLimiter | None = None,
    logs: LogTarget = False,
    stdout: logging.Logger | None = None,
    stderr: logging.Logger | Literal["stdout"] | None = None,
) -> _InProcess:
    """Decorate a module-level function so that every call of it runs in a process of its own::

        @in_process(timeout=30)
        def thumbnail(path: str, *, size: int = 128) -> bytes: ...

        data = await thumbnail("a.png", size=64)

    The function itself stays available as ``thumbnail.__wrapped__``. Parameters, errors and
    cancellation are those of :func:`run_in_process`.
    """
    check_timeout(timeout)
    check_output(stdout, stderr, no_stream=_NO_STREAM)
    return _InProcess(
        timeout=timeout,
        name=name,
        stop=stop,
        start_method=start_method,
        limiter=limiter,
        logs=check_log_target(logs),
        stdout=stdout,
        stderr=stderr,
    )


class _InProcess:
    """What :func:`in_process` gives: the decorator proper."""

    def __init__(self, **options: Any) -> None:
        self._options = options

    @overload
    def __call__(
        self, func: Callable[P, Coroutine[Any, Any, T]]
    ) -> Callable[P, Coroutine[Any, Any, T]]: ...

    @overload
    def __call__(self, func: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __call__(self, func: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
        options = self._options

        @functools.wraps(func)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            # The decorated name means the wrapper, here as in the child, so it is the wrapper that
            # can be pickled; the child then looks behind it.
            call = functools.partial(_call_wrapped, wrapper, *args, **kwargs)
            return await run_in_process(call, **options)

        return wrapper


def _call_wrapped(wrapper: Any, /, *args: Any, **kwargs: Any) -> Any:
    return wrapper.__wrapped__(*args, **kwargs)


def name_after(process: AsyncProcess[Any], func: Callable[..., Any]) -> None:
    """Give a process without a name of its own that of its function: ``parse-3``."""
    number = process.name.partition("-")[2]
    process.name = f"{base_name(func)}-{number}"


def base_name(func: Callable[..., Any]) -> str:
    """The name of a function, for that of a process."""
    while isinstance(func, functools.partial):
        func = func.args[0] if func.func is _call_wrapped else func.func
    return getattr(func, "__name__", type(func).__name__)
