"""Starting one child: the wire, what it is to run, and the process itself. Blocks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ._child import ChildMain
from ._log_forwarding import LogSettings
from ._output import OutputCapture
from ._platform import Lifeline, ParentWire, wire_pair
from ._start_methods import main_module_settings, start, ties_children
from ._wire._framing import FrameKind, Section, pack
from ._wire._handing_over import Parcels
from ._wire._outcomes import Call, encode_call
from ._wire._pickling import ArgumentHandles


def start_child(
    process: Any,
    *,
    method: str,
    call: Call | None,
    backend: str,
    lifeline: Lifeline,
    logs: LogSettings | None,
    output: OutputCapture,
    on_wire: Callable[[ParentWire | None], None],
    parcels: Parcels,
) -> Any:
    """Start ``process`` with creche's side of a child in it; return its ``Popen``.

    :param process: a ``multiprocessing`` process object
    :param method: its start method
    :param call: what it is to run; ``None`` for its own ``run``
    :param backend: anyio's name of the backend for async functions
    :param lifeline: what ends with this process
    :param logs: what log records it is to send
    :param output: what becomes of its output
    :param on_wire: told the wire before the child exists, as a fork that another thread makes
        meanwhile has to close it; and ``None`` when the start has failed
    :param parcels: takes what moves to the child; to be closed when the child has ended
    :raises SerializationError: if the function or an argument cannot be pickled
    :raises Exception: if the process cannot be started
    """
    handles = ArgumentHandles(inherited=method == "fork", parcels=parcels)
    # First, because it is what fails most, and nothing has to be undone then.
    sections: list[Section] = [] if call is None else encode_call(call, process.name, handles)
    handles.parcels.take()
    try:
        wire, child_end = wire_pair(lines=True)
    except BaseException:
        handles.parcels.close()
        raise
    child_lifeline = child_output = None
    try:
        on_wire(wire)
        child_output = output.open()
        if not ties_children(method):
            # A copy, because a fork closes its parent's before the child gets to see it.
            child_lifeline = lifeline.duplicate()
        # Before the child exists, so that it need not wait for what fits into the socket's buffer.
        wire.send(pack(FrameKind.CALL, sections))
        process.run = ChildMain(
            wire=child_end,
            lifeline=child_lifeline,
            descriptors=handles.descriptors,
            objects=handles.objects or (),
            main=main_module_settings(),
            backend=backend,
            own_run=process.run if call is None else None,
            start_method=method,
            parent_pid=os.getpid(),
            logs=logs,
            output=child_output,
        )
        popen = start(process, method)
        handles.parcels.started()  # the child has its own
        return popen
    except BaseException:
        on_wire(None)
        handles.parcels.close()
        wire.close()
        output.close()
        raise
    finally:
        child_end.close()
        if child_output is not None:
            child_output.close()
        if child_lifeline is not None:
            os.close(child_lifeline)
        process.__dict__.pop("run", None)
