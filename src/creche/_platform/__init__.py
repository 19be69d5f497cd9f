"""What differs between operating systems, behind the same names.

Nothing outside of this package and :mod:`creche._start_methods` asks which system it runs on.
"""

from __future__ import annotations

import sys

from ._eager_receiving import EagerReceiver
from ._hub_sockets import HubAddress, hub_accept, hub_connect, hub_listen
from ._memory_order import STORES_IN_ORDER, make_fence
from ._missed_signals import SignalThread, raise_in_main_thread, take_back
from ._selector_poller import SelectorPoller
from ._shared_numbers import SharedNumbers

if sys.platform == "linux":
    from ._call_socket import CallReceiver, CallSender, call_sockets
    from ._fresh_memory import fresh_memory
    from ._kept_segments import KeptSegment, keep_segment
    from ._packet_channel import (
        PACKET_BYTES,
        PacketReceiver,
        PacketSender,
        Watch,
        packet_channel,
    )
    from ._segments import (
        Segment,
        SegmentReader,
        SegmentSocket,
        segment_sockets,
        write_segment,
    )
    from ._streams import StreamReader, StreamWriter
else:
    from ._no_call_sockets import CallReceiver, CallSender, call_sockets
    from ._no_packet_channel import (
        PACKET_BYTES,
        PacketReceiver,
        PacketSender,
        Watch,
        packet_channel,
    )
    from ._no_segments import (
        KeptSegment,
        Segment,
        SegmentReader,
        SegmentSocket,
        StreamReader,
        StreamWriter,
        fresh_memory,
        keep_segment,
        segment_sockets,
        write_segment,
    )

if sys.platform == "win32":
    from ._connection_poller import ConnectionPoller as Poller
    from ._connection_wire import ChildWire, ParentWire, wire_pair
    from ._output_connection import OutputReceiver, OutputSender, merge_output, output_pipe
    from ._windows import (
        DEFAULT_START_METHOD,
        DescriptorForChild,
        Lifeline,
        default_stop_request,
        die_as_terminated,
        lift_memory_limit,
        limit_memory,
        on_missed_stop_request,
        on_stop_request,
        usable_cpus,
        wait_for_socket,
    )
else:
    from ._output_pipe import OutputReceiver, OutputSender, merge_output, output_pipe
    from ._parent_death import Lifeline
    from ._posix import (
        DEFAULT_START_METHOD,
        DescriptorForChild,
        default_stop_request,
        die_as_terminated,
        lift_memory_limit,
        limit_memory,
        on_missed_stop_request,
        on_stop_request,
        usable_cpus,
        wait_for_socket,
    )
    from ._posix_wire import ChildWire, ParentWire, wire_pair

    Poller = SelectorPoller

LOOPS_CAN_READ = sys.platform != "win32"
"""Whether event loops can wait for a wire, so that no thread has to."""

WATCHER_TAKES_SOCKETS = sys.platform != "win32"
"""Whether :class:`Poller` can wait for sockets that are not ends of pipes."""

HAS_PACKET_SOCKETS = sys.platform == "linux"
"""Whether sockets keep packets whole and tell of room, so that channels can be made of them."""

LONGEST_WAIT = 3600.0
"""Seconds that anything should wait at once: epoll_wait(2) takes milliseconds in an int, for which
what is a month away is too far."""

LONGEST_DEAF_WAIT = 0.1 if sys.platform == "win32" else None
"""Seconds that a thread may wait for a lock at once, where a request to stop does not end that."""

__all__ = [
    "DEFAULT_START_METHOD",
    "EagerReceiver",
    "HAS_PACKET_SOCKETS",
    "LONGEST_DEAF_WAIT",
    "LONGEST_WAIT",
    "LOOPS_CAN_READ",
    "PACKET_BYTES",
    "STORES_IN_ORDER",
    "WATCHER_TAKES_SOCKETS",
    "CallReceiver",
    "CallSender",
    "ChildWire",
    "DescriptorForChild",
    "HubAddress",
    "KeptSegment",
    "Lifeline",
    "OutputReceiver",
    "OutputSender",
    "PacketReceiver",
    "PacketSender",
    "ParentWire",
    "Poller",
    "Segment",
    "SegmentReader",
    "SegmentSocket",
    "SelectorPoller",
    "SharedNumbers",
    "SignalThread",
    "StreamReader",
    "StreamWriter",
    "Watch",
    "call_sockets",
    "default_stop_request",
    "die_as_terminated",
    "fresh_memory",
    "hub_accept",
    "hub_connect",
    "hub_listen",
    "keep_segment",
    "lift_memory_limit",
    "limit_memory",
    "make_fence",
    "merge_output",
    "on_missed_stop_request",
    "on_stop_request",
    "output_pipe",
    "packet_channel",
    "raise_in_main_thread",
    "segment_sockets",
    "take_back",
    "usable_cpus",
    "wait_for_socket",
    "wire_pair",
    "write_segment",
]
