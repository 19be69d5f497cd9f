"""The options of a map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .._durations import check_timeout


@dataclass(frozen=True, slots=True)
class MapOptions:
    """The options of :meth:`creche.ProcessPool.map`, checked; see there."""

    ordered: bool
    chunksize: int | None
    in_flight: int | None
    timeout: float | None
    yields_errors: bool
    on_progress: Callable[[int, int | None], object] | None


def check_map_options(
    *,
    ordered: bool,
    chunksize: int | Literal["auto"],
    in_flight: int | None,
    timeout: float | None,
    on_error: str,
    on_progress: Callable[[int, int | None], object] | None,
) -> MapOptions:
    """Check the options of :meth:`creche.ProcessPool.map`.

    :raises ValueError: if one is out of its range
    :raises TypeError: if one is of a wrong type
    """
    seconds = check_timeout(timeout)
    for name, value in (("chunksize", chunksize), ("in_flight", in_flight)):
        if value is None or (name == "chunksize" and value == "auto"):
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            expected = 'an integer or "auto"' if name == "chunksize" else "an integer"
            raise TypeError(f"{name} must be {expected}, not {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, not {value}")
    if seconds is not None and chunksize not in ("auto", 1):
        raise ValueError("a timeout is for each item, so chunksize must be 1 or left out")
    if on_error not in ("raise", "yield"):
        raise ValueError(f'on_error must be "raise" or "yield", not {on_error!r}')
    if on_progress is not None and not callable(on_progress):
        raise TypeError(f"on_progress must be callable, not {type(on_progress).__name__}")
    fixed = None if chunksize == "auto" else chunksize
    return MapOptions(
        ordered=ordered,
        chunksize=1 if seconds is not None else fixed,
        in_flight=in_flight,
        timeout=seconds,
        yields_errors=on_error == "yield",
        on_progress=on_progress,
    )
