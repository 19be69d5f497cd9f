"""Memory that two processes write and read, even when the other was killed: numbers, and bytes."""

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
        """Memory with a name, which is gone when the last process has closed it.

        :param size: bytes; by default a page
        """

        def __init__(self, size: int = _SIZE, name: str | None = None) -> None:
            self._name = f"creche-{secrets.token_hex(16)}" if name is None else name
            self._size = size
            self._memory = mmap.mmap(-1, size, tagname=self._name)
            self.bytes: memoryview = memoryview(self._memory)
            """All of it, 0 at first."""
            self.cells: memoryview = self.bytes.cast("Q")
            """The same as numbers."""

        def __reduce__(self) -> tuple[Any, ...]:
            return SharedNumbers, (self._size, self._name)

        def release_descriptor(self) -> None:
            """In the parent, when the child has its own: there is no descriptor here."""

        def close(self) -> None:
            self.cells.release()
            self.bytes.release()
            self._memory.close()

else:
    import fcntl

    from ._mapping import map_descriptor
    from ._posix import DescriptorForChild

    class SharedNumbers:
        """Memory without a name, of which nothing is left, whoever is killed.

        :param size: bytes; by default a page. What is not used takes no memory
        :raises OSError: if there are no descriptors left
        """

        def __init__(self, size: int = _SIZE, descriptor: int | None = None) -> None:
            self._size = size
            self._descriptor = _open_memory(size) if descriptor is None else descriptor
            try:
                self._memory = map_descriptor(self._descriptor, size)
            except BaseException:
                os.close(self._descriptor)
                raise
            self.bytes: memoryview = memoryview(self._memory)
            """All of it, 0 at first."""
            self.cells: memoryview = self.bytes.cast("Q")
            """The same as numbers."""

        def __reduce__(self) -> tuple[Any, ...]:
            # While a process is being started.
            return _of_child, (self._size, DescriptorForChild(self._descriptor))

        def release_descriptor(self) -> None:
            """In the parent, when the child has its own: the memory stays."""
            if self._descriptor >= 0:
                descriptor, self._descriptor = self._descriptor, -1
                os.close(descriptor)

        def close(self) -> None:
            self.release_descriptor()
            self.cells.release()
            self.bytes.release()
            self._memory.close()

    def _of_child(size: int, handle: Any) -> SharedNumbers:
        memory = SharedNumbers(size, handle.detach())
        memory.release_descriptor()
        return memory

    def _open_memory(size: int) -> int:
        if sys.platform == "linux":
            descriptor = os.memfd_create("creche", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            # A file that has lost its name by the time this returns.
            with tempfile.TemporaryFile(buffering=0) as file:
                descriptor = os.dup(file.fileno())
        try:
            os.ftruncate(descriptor, size)
            if sys.platform == "linux":
                # If it could shrink, whoever touches what was cut off would be killed by SIGBUS.
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
