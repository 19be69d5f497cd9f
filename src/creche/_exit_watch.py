"""Hearing of the end of a process, and reaping it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._watcher import Watcher

CallLater = Callable[[float, Callable[[], None]], None]


class ExitWatch:
    """Waits for one process. Lives in the watcher.

    :param popen: the process
    :param group: whether what is left of its process group is to be killed when it ends
    :param call_later: calls back in the watcher, unless the process has ended by then
    :param on_exit: called with the exit code when the process is reaped
    """

    def __init__(
        self,
        watcher: Watcher,
        popen: Any,
        *,
        group: bool,
        call_later: CallLater,
        on_exit: Callable[[int], None],
    ) -> None:
        self._poller = watcher.poller
        self._popen = popen
        self._group = group
        self._call_later = call_later
        self._on_exit = on_exit
        self._watched: int | None = None

    def begin(self) -> None:
        """Begin to wait, or do so again."""
        self._end()
        if self._popen.returncode is not None:  # it had ended when it was adopted
            self._reap()
            return
        try:
            watchable: int = self._popen.watchable()
        except OSError:  # gone, or no descriptor left to watch it with
            self._popen.give_up_exit_code()
            self._reap()
        else:
            self._watched = watchable
            self._poller.watch(watchable, self._reap)

    def _reap(self) -> None:
        exitcode: int | None = self._popen.reap(kill_group=self._group)
        if exitcode is None:
            # It has ended, and somebody else reaps it, who will tell. Or that somebody has ended.
            self.begin()
            self._popen.expect_exit_code(self._call_later, self._reap)
            return
        self._end()
        self._on_exit(exitcode)

    def _end(self) -> None:
        if self._watched is not None:
            self._poller.unwatch(self._watched)
            self._watched = None
