"""Numbers that two processes write and read, even when the other was killed."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from typing import Any

_SIZE = mmap.PAGESIZE

if sys.platform == "win32":
    import secrets

    class SharedNumbers:
        """Memory with a name, which is gone when the last process has closed it."""

        def __init__(self, name: str | None = None) -> None:
            self._name = f"creche-{secrets.token_hex(16)}" if name is None else name
            self._memory = mmap.mmap(-1, _SIZE, tagname=self._name)
            self.cells: memoryview = memoryview(self._memory).cast("Q")
            """The numbers, all 0 at first."""

        def __reduce__(self) -> tuple[Any, ...]:
            return SharedNumbers, (self._name,)

        def release_descriptor(self) -> None:
            """In the parent, when the child has its own: there is no descriptor here."""

        def close(self) -> None:
            self.cells.release()
            self._memory.close()

else:
    from ._mapping import map_descriptor
    from ._posix import DescriptorForChild

    class SharedNumbers:
        """Memory without a name, of which nothing is left, whoever is killed.

        :raises OSError: if there are no descriptors left
        """

        def __init__(self, descriptor: int | None = None) -> None:
            self._descriptor = _open_memory() if descriptor is None else descriptor
            try:
                self._memory = map_descriptor(self._descriptor, _SIZE)
            except BaseException:
                os.close(self._descriptor)
                raise
            self.cells: memoryview = memoryview(self._memory).cast("Q")
            """The numbers, all 0 at first."""

        def __reduce__(self) -> tuple[Any, ...]:
            # While a process is being started.
            return _of_child, (DescriptorForChild(self._descriptor),)

        def release_descriptor(self) -> None:
            """In the parent, when the child has its own: the memory stays."""
            if self._descriptor >= 0:
                descriptor, self._descriptor = self._descriptor, -1
                os.close(descriptor)

        def close(self) -> None:
            self.release_descriptor()
            self.cells.release()
            self._memory.close()

    def _of_child(handle: Any) -> SharedNumbers:
        counter = SharedNumbers(handle.detach())
        counter.release_descriptor()
        return counter

    def _open_memory() -> int:
        if sys.platform == "linux":
            descriptor = os.memfd_create("creche", os.MFD_CLOEXEC)
        else:
            # A file that has lost its name by the time this returns.
            with tempfile.TemporaryFile(buffering=0) as file:
                descriptor = os.dup(file.fileno())
        try:
            os.ftruncate(descriptor, _SIZE)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
