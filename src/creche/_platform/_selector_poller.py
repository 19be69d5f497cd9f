"""Waiting for many descriptors at once on POSIX."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable
from typing import Protocol

_Callback = Callable[[], None]


class DescriptorPoller(Protocol):
    """What a wire needs of whoever tells it when it can read and write."""

    def watch(self, descriptor: int, callback: _Callback) -> None: ...

    def watch_writable(self, descriptor: int, callback: _Callback) -> None: ...

    def unwatch(self, descriptor: int) -> None: ...

    def unwatch_writable(self, descriptor: int) -> None: ...


class SelectorPoller:
    """Calls back when descriptors become ready. One thread uses it; any thread may wake it."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._callbacks: dict[int, dict[int, _Callback]] = {}
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self.watch(self._wake_receiver.fileno(), self._on_wake)

    def watch(self, descriptor: int, callback: _Callback) -> None:
        """Call ``callback`` whenever ``descriptor`` is readable or at its end."""
        self._set(descriptor, selectors.EVENT_READ, callback)

    def watch_writable(self, descriptor: int, callback: _Callback) -> None:
        """Call ``callback`` whenever ``descriptor`` can be written to."""
        self._set(descriptor, selectors.EVENT_WRITE, callback)

    def unwatch(self, descriptor: int) -> None:
        """Forget ``descriptor``, which is still open."""
        if self._callbacks.pop(descriptor, None) is not None:
            self._selector.unregister(descriptor)

    def unwatch_writable(self, descriptor: int) -> None:
        callbacks = self._callbacks.get(descriptor)
        if callbacks is not None and callbacks.pop(selectors.EVENT_WRITE, None) is not None:
            if callbacks:
                self._selector.modify(descriptor, selectors.EVENT_READ)
            else:
                self.unwatch(descriptor)

    def wake(self) -> None:
        """Make :meth:`poll` return, now or the next time."""
        with contextlib.suppress(BlockingIOError):  # full: it is awake
            self._wake_sender.send(b"\0")

    def poll(self, timeout: float | None) -> None:
        """Wait at most ``timeout`` seconds for something to become ready, and call back."""
        for key, events in self._selector.select(timeout):
            for event in (selectors.EVENT_READ, selectors.EVENT_WRITE):
                # An earlier callback of this round may have unwatched this one, or another.
                callback = self._callbacks.get(key.fd, {}).get(event)
                if events & event and callback is not None:
                    callback()

    def close(self) -> None:
        """Close what the poller itself opened."""
        self._selector.close()
        self._wake_receiver.close()
        self._wake_sender.close()

    def _set(self, descriptor: int, event: int, callback: _Callback) -> None:
        callbacks = self._callbacks.setdefault(descriptor, {})
        known = bool(callbacks)
        callbacks[event] = callback
        events = sum(callbacks)
        if known:
            self._selector.modify(descriptor, events)
        else:
            self._selector.register(descriptor, events)

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_receiver.recv(4096)
