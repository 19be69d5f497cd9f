"""Handing an end over to another process, with a call."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from .._errors import ProcessStateError
from .._multiprocessing import context, reduction
from .._runtime import runtime
from .._wire._handing_over import (
    CallHandles,
    Carrier,
    DescriptorOfCall,
    Parcel,
    Parcels,
    current_carrier,
)
from .._wire._pickling import ArgumentHandles

# How often it is looked whether a process of multiprocessing's own, which tells nobody, has been
# started; in seconds.
_LOOK_AGAIN = 0.01


def send_along(parcel: Parcel) -> Callable[[int], Any]:
    """Have a parcel go with whatever is being pickled by this thread.

    :return: makes what travels in place of a descriptor
    :raises ProcessStateError: if nothing is being pickled that it could go with
    """
    popen: Any = context.get_spawning_popen()
    carrier: Carrier | None = popen if isinstance(popen, ArgumentHandles) else current_carrier()
    if isinstance(carrier, CallHandles) and popen is None:
        carrier.carry(parcel)
        return lambda descriptor: DescriptorOfCall(carrier.duplicate_for_child(descriptor))
    if carrier is not None:
        carrier.carry(parcel)
    elif popen is not None:
        _close_when_started(popen, parcel)
    else:
        raise ProcessStateError(
            "an end of a channel can only be handed over to another process as an argument of a"
            " call, or of a process that is being started"
        )
    return lambda descriptor: reduction.DupFd(descriptor)


def _close_when_started(popen: Any, parcel: Parcel) -> None:
    """Close a parcel when ``multiprocessing`` has started a process, or has failed to do so.

    It does not tell us when a process has ended: an end that it has never unpickled is closed when
    its process object is.
    """
    parcels = Parcels()
    parcels.add(parcel)
    parcels.take()
    starting = weakref.ref(popen)
    watcher = runtime().watcher

    def look() -> None:
        popen: Any = starting()
        if popen is None:
            parcels.close()
        # What it sets last, whichever start method it is of.
        elif getattr(popen, "finalizer", None) is not None:
            parcels.started()
            # What is left: nobody can claim it when the process object was closed, or is gone.
            weakref.finalize(popen, parcels.close).atexit = False
        else:
            watcher.call_later(_LOOK_AGAIN, look)

    watcher.call_soon(look)
