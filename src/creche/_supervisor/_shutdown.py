"""How a child is stopped, in OTP's words: a policy, brutal kill, or wait for ever."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from .._stop_policy import DEFAULT_STOP_POLICY, StopPolicy

__all__ = ["Shutdown"]

Shutdown = StopPolicy | Literal["kill", "wait"]
"""A stop policy; ``"kill"``: at once, without asking; ``"wait"``: asked, and waited for without
limit."""


def shutdown_policy(shutdown: Shutdown | None, default: StopPolicy) -> StopPolicy:
    """Return the stop policy that ``shutdown`` stands for."""
    if shutdown is None:
        return default
    if isinstance(shutdown, StopPolicy):
        return shutdown
    if shutdown == "kill":
        return replace(default, grace=0)
    if shutdown == "wait":
        return replace(default, grace=math.inf)
    raise TypeError(f"shutdown must be a StopPolicy, 'kill', 'wait' or None, not {shutdown!r}")


def bounded(policy: StopPolicy) -> StopPolicy:
    """A policy for a child that hangs: nobody waits for ever for that one."""
    if math.isinf(policy.grace):
        return replace(policy, grace=DEFAULT_STOP_POLICY.grace)
    return policy
