"""How a process is stopped."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ._durations import check_duration

__all__ = ["StopPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StopPolicy:
    """How a process is stopped: asked politely, then by force.

    The child is asked first (SIGTERM on POSIX, a message on Windows). Its function is unwound, so
    that its ``finally`` blocks and ``with`` statements run: a plain function sees
    :exc:`creche.StopRequested` raised at its next bytecode, an ``async`` function has its cancel
    scope cancelled. If it is still there after ``grace`` seconds it is killed (SIGKILL).

    :param grace: seconds between asking and killing. 0 kills at once, without asking.
    :param group: whether everything that the child started and that is still in its process group
        goes with it. A descendant that should outlive the child needs a session of its own
        (``subprocess.Popen(..., start_new_session=True)``).
    :param exit_timeout: seconds that a child which has given its outcome may take to exit: to flush
        its output, run its exit handlers and join its threads. Then it is killed, and its outcome
        stands.
    :param kill_timeout: seconds to wait for a killed process to go. Only a process in
        uninterruptible sleep takes longer; the wait then ends with :exc:`ProcessStuckError`.
    :raises ValueError: if a duration is negative or NaN, or ``kill_timeout`` is infinite
    :raises TypeError: if a duration is not a number
    """

    grace: float = 5.0
    group: bool = True
    exit_timeout: float = 5.0
    kill_timeout: float = 5.0

    def __post_init__(self) -> None:
        check_duration("grace", self.grace)
        check_duration("exit_timeout", self.exit_timeout)
        if math.isinf(check_duration("kill_timeout", self.kill_timeout)):
            raise ValueError("kill_timeout must be finite: nothing but it bounds the wait")


DEFAULT_STOP_POLICY = StopPolicy()


def check_stop_policy(policy: StopPolicy | None) -> StopPolicy:
    """Return ``policy``, or the default one for ``None``."""
    if policy is None:
        return DEFAULT_STOP_POLICY
    if not isinstance(policy, StopPolicy):
        raise TypeError(f"stop must be a StopPolicy, not {type(policy).__name__}")
    return policy
