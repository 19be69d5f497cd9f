"""How a process is stopped: one routine for everybody.

Cancellation, ``terminate()``, ``kill()``, timeouts, failed nurseries, a child that has given its
outcome and hangs at exit, and the end of the interpreter all come here: ask, wait for the grace
period, kill, wait for the kernel, give up. The timers run in the watcher, so a stop goes on while
the event loop that wanted it is blocked, or closed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Protocol

from ._platform import ParentWire
from ._stop_policy import StopPolicy
from ._watcher import Timer, Watcher

# A Python signal handler does not run in the instant of the signal, but when the interpreter looks
# for signals. One that arrives between the last look and a system call that blocks waits for the
# end of that call, and with it the child. So it is nudged, ever less often.
_FIRST_NUDGE = 0.02


class Target(Protocol):
    """What can be stopped. The calls come from the watcher alone."""

    def ask_to_stop(self) -> None: ...

    def nudge(self) -> None:
        """Have a request that has arrived, and was not noticed, noticed."""

    def kill(self, *, group: bool) -> None: ...


class StoppableChild:
    """A child process, which hears requests over its wire where that is the platform's way.

    Signals that do not get there are no error. A child that is another user's by now, say, may yet
    end by itself; if it does not, it is stuck.
    """

    def __init__(self, popen: Target, wire: ParentWire | None) -> None:
        self._popen = popen
        self._wire = wire

    def ask_to_stop(self) -> None:
        if self._wire is None or not self._wire.ask_to_stop():
            with contextlib.suppress(OSError):
                self._popen.ask_to_stop()

    def nudge(self) -> None:
        if self._wire is None or not self._wire.ask_to_stop():
            with contextlib.suppress(OSError):
                self._popen.nudge()

    def kill(self, *, group: bool) -> None:
        with contextlib.suppress(OSError):
            self._popen.kill(group=group)


class Stopper:
    """Stops one process. Everything in here runs in the watcher.

    :param on_stuck: called where the process is still there ``kill_timeout`` seconds after SIGKILL
    """

    def __init__(self, watcher: Watcher, target: Target, on_stuck: Callable[[], None]) -> None:
        self._watcher = watcher
        self._target = target
        self._on_stuck = on_stuck
        self._timer: Timer | None = None
        self._nudge_timer: Timer | None = None
        self._kill_at: float | None = None
        self._over = False  # killed, or gone
        self.has_killed = False
        """Whether this has sent SIGKILL, or tried to."""

    def stop(self, policy: StopPolicy) -> None:
        """Ask, and kill after the grace period; whoever asks again can only shorten it."""
        if policy.grace == 0:
            self.kill(policy)
            return
        kill_at = time.monotonic() + policy.grace
        if self._over or (self._kill_at is not None and self._kill_at <= kill_at):
            return
        is_first = self._kill_at is None
        self._kill_at = kill_at
        # First the timers, here and below: they go on whatever becomes of the signal.
        self._set_timer(policy.grace, lambda: self.kill(policy))
        if is_first:
            self._nudge_later(_FIRST_NUDGE)
            self._target.ask_to_stop()

    def kill(self, policy: StopPolicy) -> None:
        """Kill at once."""
        if not self._over:
            self.has_killed = True
            self._end_nudges()
            self._set_timer(policy.kill_timeout, self._on_stuck)
            self._target.kill(group=policy.group)

    def close(self) -> None:
        """The process is gone."""
        self._end_nudges()
        if self._timer is not None:
            self._timer.cancel()

    def _nudge_later(self, delay: float) -> None:
        def nudge() -> None:
            self._nudge_later(4 * delay)
            self._target.nudge()

        self._nudge_timer = self._watcher.call_later(delay, nudge)

    def _end_nudges(self) -> None:
        self._over = True
        if self._nudge_timer is not None:
            self._nudge_timer.cancel()

    def _set_timer(self, delay: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._watcher.call_later(delay, callback)
