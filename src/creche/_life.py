"""Where a process is in its life, for any thread to read."""

from __future__ import annotations

from typing import Any

from . import _failures
from ._instruments import ObservedProcess
from ._lifecycle import Event, ProcessState, next_state
from ._loops import Latch
from ._stop_policy import StopPolicy
from ._wire._handing_over import Claims
from ._wire._outcomes import Failure, Outcome


class ProcessLife:
    """What is known of one process. Its handle, which derives from this, sees to it.

    :param process: the ``multiprocessing`` process object
    :param method: its start method
    :param policy: how it is stopped
    :param timeout: seconds from the start after which it is stopped, or ``None``
    :param claims: what moves to it
    """

    def __init__(
        self,
        process: Any,
        method: str,
        policy: StopPolicy,
        timeout: float | None,
        claims: Claims,
    ) -> None:
        self.process = process
        self.method = method
        self.policy = policy
        self.timeout = timeout
        self.claims = claims
        self.state = ProcessState.CREATED
        self.pid: int | None = None
        self.exitcode: int | None = None
        self.outcome: Outcome | None = None
        self.stop_requested = False
        self.stuck = False
        self.start_hung = False  # if it is stuck: whether that was before it could be killed
        self.observed = ObservedProcess(process.name, method)
        self.launched = Latch()
        self.ready = Latch()
        self.gone = Latch()
        self.finished = Latch()
        self._timed_out = False

    def check_gone(self) -> None:
        """Check that the process has gone.

        :raises ProcessStuckError: if the process was killed in vain
        :raises ProcessTimeout: if it could not even be started in time
        """
        if self.stuck and not self.finished.is_set():
            if not self.start_hung:
                assert self.pid is not None
                raise _failures.killed_in_vain(
                    self.process.name, self.pid, self.policy.kill_timeout
                )
            if self._timed_out:
                raise _failures.not_started_in_time(self.process.name, self.timeout)
            raise _failures.still_starting(self.process.name)

    async def wait_for(self, latch: Latch) -> None:
        """Wait for what comes before the end of the process, or for the end: a start may hang.

        :param latch: one of the four
        """
        either = Latch()
        latch.tell(either.set, None)
        self.gone.tell(either.set, None)
        await either.wait()

    def give_up_unless_started(self) -> None:
        """Where the process was not started, see to it that it never will be."""
        if self.state is ProcessState.CREATED:
            self.stop_requested = True
            self.outcome = Failure(_failures.stopped_before_start(self.process.name))
            self.state = ProcessState.TERMINATED
            self._set_all_latches()

    def _advance(self, event: Event) -> None:
        """Enter the next state.

        :raises ProcessStateError: if ``event`` cannot happen in the present one
        """
        self.state = next_state(self.state, event, self.process.name)

    def _set_all_latches(self) -> None:
        self.claims.release()  # what the process never got
        for latch in (self.launched, self.ready, self.finished, self.gone):
            latch.set()
