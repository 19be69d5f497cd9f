"""Structured concurrency for operating-system processes, for asyncio and Trio.

A process becomes something that you ``await``: it gives back a value or raises, it cannot outlive
the block that started it, and cancelling it really stops it.
"""

from __future__ import annotations

import importlib as _importlib
import typing as _typing

from . import context as context
from . import from_process as from_process
from . import to_process as to_process
from ._channel._create import create_channel as create_channel
from ._channel._create import create_duplex_channel as create_duplex_channel
from ._channel._duplex import ChannelStream as ChannelStream
from ._channel._end import ChannelStatistics as ChannelStatistics
from ._channel._receive_stream import ChannelReceiveStream as ChannelReceiveStream
from ._channel._send_stream import ChannelSendStream as ChannelSendStream
from ._errors import ProcessClosedError as ProcessClosedError
from ._errors import ProcessDied as ProcessDied
from ._errors import ProcessError as ProcessError
from ._errors import ProcessStartError as ProcessStartError
from ._errors import ProcessStateError as ProcessStateError
from ._errors import ProcessStuckError as ProcessStuckError
from ._errors import ProcessTimeout as ProcessTimeout
from ._errors import RemoteError as RemoteError
from ._errors import RemoteTraceback as RemoteTraceback
from ._errors import SerializationError as SerializationError
from ._errors import WorkerMemoryError as WorkerMemoryError
from ._instruments import Instrument as Instrument
from ._instruments import ObservedCall as ObservedCall
from ._instruments import ObservedProcess as ObservedProcess
from ._instruments import add_instrument as add_instrument
from ._instruments import remove_instrument as remove_instrument
from ._lifecycle import ProcessState as ProcessState
from ._nursery import ProcessNursery as ProcessNursery
from ._nursery import open_nursery as open_nursery
from ._pool._map import ProcessMap as ProcessMap
from ._pool._outcomes import ItemOutcome as ItemOutcome
from ._pool._process_pool import ProcessPool as ProcessPool
from ._pool._process_pool import open_pool as open_pool
from ._pool._statistics import PoolStatistics as PoolStatistics
from ._pool._statistics import WorkerStatistics as WorkerStatistics
from ._preload import ForkServerStatistics as ForkServerStatistics
from ._preload import Preloaded as Preloaded
from ._preload import fork_server_statistics as fork_server_statistics
from ._preload import preload as preload
from ._process import AsyncProcess as AsyncProcess
from ._progress_feed import Progress as Progress
from ._progress_feed import ProgressFeed as ProgressFeed
from ._run import current_default_run_limiter as current_default_run_limiter
from ._run import in_process as in_process
from ._run import run_in_process as run_in_process
from ._start_methods import get_context as get_context
from ._stop_policy import StopPolicy as StopPolicy
from ._stop_request import StopRequested as StopRequested
from ._stream._process_stream import ProcessStream as ProcessStream
from ._stream._process_stream import open_stream as open_stream
from ._wire._payloads import Serializer as Serializer

_MODULES = frozenset({"cluster", "monitor", "progress", "sync", "timeline", "tracing"})

if _typing.TYPE_CHECKING:
    from . import cluster as cluster
    from . import monitor as monitor
    from . import progress as progress
    from . import sync as sync
    from . import timeline as timeline
    from . import tracing as tracing
    from ._supervisor import *  # noqa: F403


# What not every child needs, and all of them import this. Any other name may be one of supervision.
def __getattr__(name: str) -> _typing.Any:
    if name in _MODULES:
        return _importlib.import_module(f"{__name__}.{name}")
    if not name.startswith("_"):
        found = getattr(_importlib.import_module(f"{__name__}._supervisor"), name, None)
        if getattr(found, "__module__", None) == __name__:  # public there
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Tracebacks, pickles and the documentation show the public names.
def _show_as_public(names: dict[str, object]) -> None:
    for value in names.values():
        if getattr(value, "__module__", "").startswith("creche._"):
            value.__module__ = __name__


_show_as_public(dict(globals()))
