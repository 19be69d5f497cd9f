"""Whether both sides can understand each other."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from ._errors import ClusterError

_PACKAGES = ("creche", "distributed")


async def check_versions(client: Any) -> None:
    """Check that all workers have the Python, the creche and the Dask of this side.

    :raises ClusterError: if one has not; it names both sides
    """
    found: dict[str, Any] = await client.get_versions()
    # That knows only packages of which Dask has heard, and, up to 2025.1, those that tell theirs
    # by themselves. A worker without creche can say this, too.
    creches: dict[str, Any] = await client.run(version, "creche", on_error="return")
    for address, side in found["workers"].items():
        creche = creches.get(address)
        side["packages"]["creche"] = creche if isinstance(creche, str) else None
    check_found(found, our_versions())


def check_found(found: dict[str, Any], ours: dict[str, str]) -> None:
    """Check what the scheduler and the workers say of themselves.

    :raises ClusterError: if one of them does not fit
    """
    # The scheduler passes pickles on without looking into them, and needs no creche for that.
    scheduler = found.get("scheduler")
    sides: list[tuple[str, Any, tuple[str, ...]]] = []
    if scheduler:
        sides.append(("the scheduler", scheduler, ("python", "distributed")))
    sides += [
        (f"the Dask worker {address}", side, ("python", *_PACKAGES))
        for address, side in found["workers"].items()
    ]
    for who, side, names in sides:
        theirs = dict(side["packages"])
        theirs["python"] = side["host"]["python"]
        _compare(who, theirs, ours, names)


def check_late_comer(address: str, callers: dict[str, str]) -> None:
    """Check this Dask worker, which may have joined after the pool was opened.

    :raises ClusterError: if it has other versions than the caller; it names both sides
    """
    _compare(f"the Dask worker {address}", our_versions(), callers, ("python", *_PACKAGES))


def _compare(
    who: str, theirs: Mapping[str, str | None], ours: dict[str, str], names: Iterable[str]
) -> None:
    for name in names:
        there, here = _shown(name, theirs.get(name)), _shown(name, ours[name])
        if there is None:
            raise ClusterError(
                f"{who} has no {name}; this side has {name} {here}. Install the same there"
            )
        if there != here:
            raise ClusterError(
                f"{who} has {name} {there}, and this side has {name} {here}: they cannot work"
                " together. Install the same on both sides"
            )


@functools.cache
def this_side() -> str:
    """Name this machine, in errors."""
    return f"{platform.node()} (Python {platform.python_version()}, creche {version('creche')})"


@functools.cache
def our_versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def _shown(name: str, found: str | None) -> str | None:
    """Of Python, what matters: pickles of code are for one minor version."""
    if found is None or name != "python":
        return found
    return ".".join(found.split(".")[:2])
