"""One process as creche's threads see it, from start to end, without event loops.

:class:`ProcessHandle` is the state machine under :class:`creche.AsyncProcess`. Its methods say in
which thread they run; those of the watcher need no locks. It tells event loops what happened by
setting latches:

========== ===================================================================================
launched   the process exists, or could not be started
ready      the child has called ``started()``, or has ended
finished   the process is reaped, or never existed, and its outcome is known
gone       finished, or killed in vain (:attr:`stuck`)
========== ===================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import _failures
from ._carried import call_in_context, call_with, called_name
from ._conversation import Conversation
from ._errors import ProcessError
from ._exit_watch import ExitWatch
from ._inbox import Inbox
from ._launching import start_child
from ._life import ProcessLife
from ._lifecycle import Event, ProcessState
from ._output import OutputCapture
from ._platform import ParentWire
from ._runtime import Runtime
from ._start_methods import abort_start, forget_process, own_started
from ._starter import Claim
from ._stop_policy import StopPolicy
from ._stopping import StoppableChild, Stopper
from ._watcher import Timer
from ._wire._handing_over import Claims
from ._wire._outcomes import Call, Failure, Outcome, Value


class ProcessHandle(ProcessLife):
    """A process from the first thought of it until its outcome is known.

    :param process: the ``multiprocessing`` process object
    :param method: its start method
    :param call: what it runs; ``None`` where the process object brings its own ``run``
    :param timeout: seconds from the start after which it is stopped, or ``None``
    :param conversation: what the child says while it runs
    :param output: what becomes of its output, if that is not the application's own
    """

    def __init__(
        self,
        process: Any,
        *,
        method: str,
        call: Call | None,
        policy: StopPolicy,
        timeout: float | None,
        conversation: Conversation,
        output: OutputCapture | None = None,
    ) -> None:
        super().__init__(process, method, policy, timeout, Claims(call))
        self.conversation = conversation
        self.keeps_descriptors = False
        self.on_forget: Callable[[], object] | None = None
        self.output = OutputCapture(None, None) if output is None else output
        self.gone.tell(self.output.end_streams, None)
        self.gone.tell(conversation.progress._end, None)
        self._call = call
        self._maybe_runtime: Runtime | None = None
        self._popen: Any = None
        self._wire: ParentWire | None = None
        self._inbox: Inbox | None = None
        self._stopper: Stopper | None = None
        self._stop_when_launched: StopPolicy | None = None
        self._owned = False
        self._start_claim = Claim()  # to start the process, or to see that it never is
        self._stopping: StopPolicy | None = None  # how, if it is to stop
        self._timers: list[Timer] = []

    # --- from any thread ----------------------------------------------------------------------

    def take_context(self) -> None:
        """Have the function find what it is to find of the context of the caller."""
        self._call = call_in_context(self._call)

    def start(self, runtime: Runtime, backend: str) -> None:
        """Begin to start the process; :attr:`launched` tells when that is done.

        :raises ProcessStateError: if it was started already
        :raises anyio.ClosedResourceError: if an argument cannot be handed over
        """
        # A KeyboardInterrupt may strike here at any moment (see _ctrl_c for when). It must not find
        # the main thread holding a lock that other threads need, nor a process in a state in
        # which the watcher stops it, before the watcher is known.
        self.claims.claim()
        self._maybe_runtime = runtime
        self._advance(Event.START)
        runtime.live.add(self)
        self.observed._created(self.process.name, called_name(self._call))
        self._call = call_with(self._call, self.observed._loads)
        runtime.starter.submit(lambda: self._start(backend))
        if self.timeout is not None:
            runtime.watcher.call_soon(self._start_timeout)

    def adopt(self, runtime: Runtime) -> None:
        """Take over a process that runs already."""
        self._advance(Event.START)
        self._advance(Event.RUN)
        self._maybe_runtime = runtime
        runtime.live.add(self)
        self.observed._created(self.process.name, None)
        if self.timeout is not None:
            runtime.watcher.call_soon(self._start_timeout)
        self._start_claim.take()
        self._launch(lambda: own_started(self.process))

    def stop(self, policy: StopPolicy) -> None:
        """Begin to stop the process. :attr:`gone` is set within the time that ``policy`` allows."""
        self.stop_requested = True
        if self._maybe_runtime is None:
            self.give_up_unless_started()
        else:
            self._runtime.watcher.call_soon(lambda: self._stop(policy))

    def own(self) -> None:
        """Somebody waits for the end of the process: once it has given its outcome it must exit."""
        self._owned = True
        if self._maybe_runtime is not None:
            self._runtime.watcher.call_soon(self._expect_exit)

    def expect_end(self, seconds: float) -> None:
        """Stop the process unless it ends by itself within ``seconds``."""
        self._runtime.watcher.call_soon(lambda: self._expect_end(seconds))

    def forget(self) -> None:
        """In a fork of this process: close our copies of what belongs to its parent."""
        if self.on_forget is not None:
            self.on_forget()
        self.conversation.forget()
        if self._wire is not None:
            self._wire.forget()
        self.output.close()
        if self._popen is not None:
            self._popen.forget()
            forget_process(self.process)

    @property
    def started_outcome(self) -> Outcome | None:
        """What the child gave to ``started()``, when :attr:`ready` is set."""
        return None if self._inbox is None else self._inbox.started

    @property
    def failure_of_its_own(self) -> BaseException | None:
        """Why there is no value, unless it is that the process was stopped. Known at its end."""
        if not isinstance(self.outcome, Failure):
            return None
        error = self.outcome.exception
        was_killed = self._stopper is not None and self._stopper.has_killed
        return None if _failures.comes_of_stopping(error, was_killed=was_killed) else error

    @property
    def _runtime(self) -> Runtime:
        assert self._maybe_runtime is not None, "the process was not started"
        return self._maybe_runtime

    # --- in the starter thread ----------------------------------------------------------------

    def _start(self, backend: str) -> None:
        if self._start_claim.take():
            self._launch(lambda: self._make_child(backend))

    def _launch(self, start_process: Callable[[], Any]) -> None:
        watcher = self._runtime.watcher
        try:
            self._popen = start_process()
        except BaseException as error:
            failure = error  # the name is unbound when the block ends
            watcher.call_soon(lambda: self._not_started(failure))
            return
        self.pid = self._popen.pid
        self.observed._started(self._popen.pid)
        watcher.call_soon(self._attach)
        self.launched.set()

    def _make_child(self, backend: str) -> Any:
        call, self._call = self._call, None  # what runs for hours keeps no arguments alive
        return start_child(
            self.process,
            method=self.method,
            call=call,
            backend=backend,
            lifeline=self._runtime.lifeline,
            logs=self.conversation.log_settings(),
            output=self.output,
            on_wire=self._set_wire,
            parcels=self.claims.parcels,
        )

    def _set_wire(self, wire: ParentWire | None) -> None:
        self._wire = wire

    # --- in the watcher -----------------------------------------------------------------------

    def _not_started(self, error: BaseException) -> None:
        name = self.process.name
        if self._timed_out:
            self._finish(Failure(_failures.not_started_in_time(name, self.timeout, error)))
        else:
            self._finish(Failure(_failures.not_started(name, error)))

    def _attach(self) -> None:
        watcher = self._runtime.watcher
        self._stopper = Stopper(watcher, StoppableChild(self._popen, self._wire), self._give_up)
        if self._wire is not None:
            self.conversation.open(self._wire, self._settle_if_known)
            name, pid = self.process.name, self._popen.pid
            self._inbox = Inbox(self, self._runtime, self.conversation, name, pid)
            self._wire.attach(watcher.poller, self._inbox.receive)
        self.output.attach(
            watcher,
            self._runtime.loggers,
            self.process.name,
            self._popen.pid,
            self._settle_if_known,
        )
        if self._stop_when_launched is not None:
            self._stopper.stop(self._stop_when_launched)
        ExitWatch(
            watcher,
            self._popen,
            group=self.policy.group,
            call_later=self._call_later,
            on_exit=self._on_exit,
        ).begin()

    def _on_exit(self, exitcode: int) -> None:
        self.exitcode = exitcode
        if self._stopper is not None:
            self._stopper.close()  # what is left of it may take longer: records, and values
        if self._wire is not None:
            self._wire.drain()
            self._wire.close()
        if not self.keeps_descriptors:
            self._popen.close()
        if self._inbox is not None:
            self._inbox.decode_exit(self._known_exitcode)
        self.output.process_ended(self.policy.exit_timeout)
        if self.conversation.busy:
            self._call_later(self.policy.exit_timeout, self.conversation.give_up)
        self._settle_if_known()
        if self._stopping is not None:
            self._expect_unpickled(self._stopping)

    def heard_running(self) -> None:
        if self.state is ProcessState.STARTED:
            self._advance(Event.RUN)

    def heard_ready(self) -> None:
        self.observed._became_ready()
        self.ready.set()
        self._settle_if_known()

    def heard_last_word(self) -> None:
        self.output.expect_end()
        self._expect_exit()

    def heard_outcome(self) -> None:
        self._settle_if_known()

    def heard_garbage(self) -> None:
        assert self._stopper is not None
        self._stopper.kill(self.policy)

    def _start_timeout(self) -> None:
        if self.timeout is not None and not self.finished.is_set():
            self._call_later(self.timeout, self._on_timeout)

    def _on_timeout(self) -> None:
        # An outcome that came in time counts, but exiting and unpickling must not take for ever.
        # So does a death, while something that the process has said is still being handled.
        self._timed_out = self.exitcode is None and (
            self._inbox is None or not self._inbox.has_outcome
        )
        self._stop(self.policy)

    def _stop(self, policy: StopPolicy) -> None:
        if self.finished.is_set():
            return
        self._stopping = policy
        self.observed._is_to_stop()
        self.output.expect_end()
        if self._start_claim.take():
            self._not_started(_failures.stopped_before_start(self.process.name))
        elif self.exitcode is not None:
            self._expect_unpickled(policy)
        elif self._stopper is not None:
            self._stopper.stop(policy)
        else:
            asked = self._stop_when_launched
            if asked is None or policy.grace < asked.grace:
                self._stop_when_launched = policy  # whoever asks again can only shorten it
            # Whoever starts it may hang: a fork server that was stopped, say.
            seconds = policy.grace + policy.kill_timeout
            self._call_later(seconds, lambda: self._give_up_start(policy))

    def _expect_end(self, seconds: float) -> None:
        if not self.finished.is_set():
            self._call_later(seconds, lambda: self._stop(self.policy))

    def _expect_exit(self) -> None:
        """See to it that a child that has said its last word, and is waited for, exits in time."""
        inbox, stopper = self._inbox, self._stopper
        if not self._owned or self.exitcode is not None or inbox is None or stopper is None:
            return
        if inbox.has_outcome or inbox.ended:
            self._call_later(self.policy.exit_timeout, lambda: stopper.kill(self.policy))

    def _give_up(self) -> None:
        self.stuck = True
        self.start_hung = False
        self.gone.set()

    def _give_up_start(self, policy: StopPolicy) -> None:
        if self._stopper is not None:
            # It came through after all, so late that there is no grace left. (If the process has
            # ended by now, or was killed, this does nothing.)
            self._stopper.kill(policy)
        elif not self.gone.is_set():
            self.stuck = self.start_hung = True
            if self._popen is None:
                # The thread that starts processes hangs, and with it all who come after this one.
                abort_start(self.method)
            self.gone.set()

    def _expect_unpickled(self, policy: StopPolicy) -> None:
        """The process is gone. Do not wait for ever for an object that blocks its unpickling."""
        if not self.finished.is_set():
            seconds = policy.kill_timeout
            self._call_later(seconds, lambda: self._give_up_unpickling(seconds))

    def _give_up_unpickling(self, seconds: float) -> None:
        self.output.give_up()
        self.conversation.give_up()
        if self.finished.is_set():  # that was what it waited for
            return
        assert self._inbox is not None
        self._inbox.close()
        self._settle(Failure(_failures.unpickling_never_ends(self.process.name, self.pid, seconds)))

    @property
    def _known_exitcode(self) -> int | None:
        return None if self._popen.exitcode_lost else self.exitcode

    def _death(self) -> ProcessError:
        """Say how a process ended that gave no outcome."""
        return _failures.died(
            self.process.name,
            self.pid,
            self._known_exitcode,
            ran=self.state is ProcessState.RUNNING or self.stop_requested or self._inbox is None,
            garbage=None if self._inbox is None else self._inbox.error,
            cut_off=self._inbox is not None and self._inbox.cut_off,
        )

    def _settle_if_known(self) -> None:
        """The process has ended: its outcome is known when all that it has said is unpickled."""
        inbox = self._inbox
        if self.exitcode is None or self.outcome is not None or self.output.busy:
            return
        if inbox is not None and inbox.busy:
            return
        if inbox is not None and inbox.outcome is not None:
            self._settle(inbox.outcome)
        elif inbox is None and self.exitcode == 0:
            self._settle(Value(None))
        else:
            self._settle(Failure(self._death()))

    def _settle(self, outcome: Outcome) -> None:
        if self._timed_out:
            last_word = outcome.exception if isinstance(outcome, Failure) else None
            outcome = Failure(
                _failures.timed_out(self.process.name, self.pid, self.timeout, last_word)
            )
        self._finish(outcome)

    def _finish(self, outcome: Outcome) -> None:
        for timer in self._timers:
            timer.cancel()
        self.outcome = outcome
        self.conversation.close()
        self._advance(Event.END)
        self._runtime.live.discard(self)
        error = outcome.exception if isinstance(outcome, Failure) else None
        self.observed._has_exited(self.exitcode, error)
        self._set_all_latches()

    def _call_later(self, delay: float, callback: Callable[[], None]) -> None:
        self._timers.append(self._runtime.watcher.call_later(delay, callback))
