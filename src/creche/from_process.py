"""What code that runs in a child calls to talk to the parent, after ``anyio.from_thread``."""

from __future__ import annotations

from ._child import parent_connection
from ._errors import ProcessStateError, SerializationError
from ._wire._framing import FrameKind
from ._wire._outcomes import value_message
from ._wire._pickling import loads

__all__ = ["started"]


def started(value: object = None) -> None:
    """Tell the parent that this process is ready.

    :meth:`creche.ProcessNursery.start` waits for this, and returns ``value``. Elsewhere it has no
    effect. May be called from any thread of the child.

    :param value: anything that can be pickled: the port that a server listens on, say
    :raises ProcessStateError: if this process was not started by creche, or has called it before
    :raises SerializationError: if ``value`` cannot be pickled
    """
    connection = parent_connection()
    if connection is None:
        raise ProcessStateError(
            "started() was called outside of a process that creche started: only the code that such"
            " a process runs can call it"
        )
    message = value_message(value, FrameKind.STARTED)
    if message[0] is FrameKind.BAD_VALUE:
        type_name, (error_name, text, _) = loads(message[1])
        raise SerializationError(
            f"the value given to started(), of type {type_name}, cannot be pickled"
            f" ({error_name}: {text})"
        )
    connection.send_started(message)
