"""What connects a stream's parent with its child."""

from __future__ import annotations

import contextlib

from .._platform import SharedNumbers
from ._doorbell import Doorbell, doorbells
from ._ring import NUMBERS_BYTES

_RING_BYTES = 4 * 1024 * 1024
"""How much of what was not read yet fits in. Only what is used takes memory."""


class StreamLink:
    """The memory and the doorbells of one stream, in the parent.

    :raises OSError: if there are no descriptors left
    """

    def __init__(self) -> None:
        with contextlib.ExitStack() as undo:
            self.memory = SharedNumbers(NUMBERS_BYTES + _RING_BYTES)
            undo.callback(self.memory.close)
            self.doorbell, self._child_doorbell = doorbells()
            undo.pop_all()
        self._child_has_its_own = False

    @property
    def child_ends(self) -> tuple[SharedNumbers, Doorbell]:
        """What the child gets."""
        return self.memory, self._child_doorbell

    def release_child_ends(self) -> None:
        """The child has its own."""
        if not self._child_has_its_own:
            self._child_has_its_own = True
            self.memory.release_descriptor()
            self._child_doorbell.close()

    def close(self) -> None:
        """Close all. Nobody uses the memory any more."""
        self.release_child_ends()
        self.doorbell.close()
        # An object that has kept a piece of the memory from its own unpickling keeps all of it.
        with contextlib.suppress(BufferError):
            self.memory.close()

    def forget(self, *, child_exists: bool) -> None:
        """In a fork of this process: close our copies of what belongs to its parent.

        :param child_exists: whether the child does; or else this process may be it
        """
        self.doorbell.close()
        if child_exists:
            self.release_child_ends()
