"""Those who want to know what happens to processes and calls.

Nothing is paid for where there are none: whoever has something to tell looks at
:attr:`Instruments.of_calls`, say, first.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Literal, final

from ._ctrl_c import is_ctrl_c
from ._own_log import log_exception

__all__ = [
    "Instrument",
    "ObservedCall",
    "ObservedProcess",
    "add_instrument",
    "remove_instrument",
]

CallStatus = Literal["ok", "error", "cancelled", "killed"]


class Instrument:
    """Hears what happens to processes and to the calls of pools, as an instrument of Trio's does of
    tasks. Derive from it, override what is of interest, and :func:`add_instrument` an object::

        class Deaths(creche.Instrument):
            def process_exited(self, process):
                print(process.name, process.pid, process.exitcode)

        creche.add_instrument(Deaths())

    The methods are called at once, in the thread in which the thing happens: the event loop, or one
    of creche's. So they have to be quick, and may be called in several threads at the same time,
    although never for the same process or the same call. They must not wait for anything of
    creche's. One that raises is logged, and its instrument is told nothing more.

    A process that is run for one function, by :func:`run_in_process`, a nursery, a stream and so
    on, has no calls. Those are what a pool gives to its workers.

    An instrument that was added while things were going on hears of how they go on. (Of a call, if
    there was an instrument when it was made.) A child of the start method ``"fork"`` has no
    instruments.
    """

    def process_created(self, process: ObservedProcess) -> None:
        """A process is going to be started, or was adopted by :meth:`AsyncProcess.wrap`. Exactly
        once for each that anybody begins to start."""

    def process_started(self, process: ObservedProcess) -> None:
        """The process exists. It has a ``pid`` from now on."""

    def process_ready(self, process: ObservedProcess) -> None:
        """The child has called :func:`creche.from_process.started`; a worker of a pool can take
        calls."""

    def process_stop_requested(self, process: ObservedProcess) -> None:
        """The process is going to be stopped, by whatever wants that first: a cancellation, its
        timeout, ``terminate()``, a pool. It may have to be started first. (A worker that ends in
        order, as its pool is closed or it has nothing to do, is not stopped.)"""

    def process_exited(self, process: ObservedProcess) -> None:
        """The process has ended and was reaped, or could not be started: then it has no ``pid``.

        Exactly once for each that was created, and last. It comes before whoever awaits the process
        goes on.
        """

    def call_queued(self, call: ObservedCall) -> None:
        """A call of a pool was made, or a chunk of a map. In the context of the task that made the
        call; of a chunk, in any."""

    def call_started(self, call: ObservedCall) -> None:
        """A worker runs the call from now on, as far as can be seen from here: it has no call
        before this one. Comes again where it turns out that the worker did not, and another does.
        """

    def call_finished(self, call: ObservedCall) -> None:
        """The call is over. Exactly once for each that was queued, and last.

        Where a worker has died, this comes after its ``process_exited``. Where a result takes long
        to be unpickled, this may come after the worker's next ``call_started``.
        """


HOOKS = tuple(name for name in vars(Instrument) if name.startswith(("process_", "call_")))


class Instruments:
    """Those that the application has added.

    Looked at without a lock: what is in here is replaced, not changed.
    """

    def __init__(self) -> None:
        self.all: tuple[Instrument, ...] = ()
        self.of_calls = False
        """Whether anybody wants to know of calls."""
        self._hooks: dict[str, tuple[tuple[Instrument, Callable[[Any], None]], ...]] = {}
        self._lock = threading.Lock()
        self._last_id = 0

    def add(self, instrument: Instrument) -> None:
        with self._lock:
            if not any(instrument is other for other in self.all):
                self._replace((*self.all, instrument))

    def remove(self, instrument: Instrument) -> bool:
        """Remove an instrument; return whether it was one."""
        with self._lock:
            left = tuple(other for other in self.all if other is not instrument)
            removed = len(left) < len(self.all)
            self._replace(left)
            return removed

    def new_id(self) -> int:
        """Return a number that nothing else has."""
        with self._lock:
            self._last_id += 1
            return self._last_id

    def tell(self, hook: str, subject: Any) -> None:
        """Call a hook of all who have it.

        :raises KeyboardInterrupt: if Ctrl-C has struck in one of them
        """
        interrupt = None
        for instrument, method in self._hooks.get(hook, ()):
            try:
                self._call(hook, instrument, method, subject)
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _call(
        self, hook: str, instrument: Instrument, method: Callable[[Any], None], subject: Any
    ) -> None:
        try:
            method(subject)
        except BaseException as error:
            if is_ctrl_c(error):  # which is not for the instrument
                raise
            if self.remove(instrument):
                log_exception(
                    "the instrument %r has raised an exception in %s(), and is told nothing more",
                    instrument,
                    hook,
                )

    def forget(self) -> None:
        """In a fork of this process: what there was is the parent's."""
        self._lock = threading.Lock()  # a thread of the parent may have held it
        self._replace(())

    def _replace(self, instruments: tuple[Instrument, ...]) -> None:
        self.all = instruments
        self._hooks = {
            hook: tuple((i, getattr(i, hook)) for i in instruments if _overrides(i, hook))
            for hook in HOOKS
        }
        self.of_calls = any(self._hooks[hook] for hook in HOOKS if hook.startswith("call_"))


def _overrides(instrument: Instrument, hook: str) -> bool:
    in_class = getattr(type(instrument), hook) is not getattr(Instrument, hook)
    return in_class or hook in getattr(instrument, "__dict__", ())


instruments = Instruments()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=instruments.forget)


def add_instrument(instrument: Instrument) -> None:
    """Have an instrument hear of all processes and calls of this application from now on, in
    whatever event loop they are. To add one twice has no effect. From any thread.

    :raises TypeError: if it is not an :class:`Instrument`
    """
    if not isinstance(instrument, Instrument):
        raise TypeError(
            f"expected an object of a class derived from creche.Instrument, not {instrument!r}"
        )
    instruments.add(instrument)


def remove_instrument(instrument: Instrument) -> None:
    """Have an instrument hear of nothing any more. From any thread, in its own hooks as well.

    A hook of it that is being called in another thread goes on. To remove one that was not added,
    or was removed because it has raised an exception, is no error.
    """
    instruments.remove(instrument)


@final
class ObservedProcess:
    """What an :class:`Instrument` gets to know of a process: to be read, from any thread."""

    __slots__ = (
        "_exited",
        "_loads",
        "_lock",
        "_ready",
        "attributes",
        "exception",
        "exitcode",
        "func",
        "id",
        "kind",
        "name",
        "pid",
        "pool",
        "start_method",
        "stop_requested",
    )

    id: int
    """Unlike a pid, no other process of this application, and no call, ever has the same."""
    name: str
    pid: int | None
    kind: Literal["process", "worker"]
    """``"worker"`` for that of a pool."""
    pool: str | None
    """The name of the pool, for a worker."""
    start_method: str
    func: str | None
    """The full name of its function; ``None`` for a worker, and for an adopted process."""
    exitcode: int | None
    """As :attr:`AsyncProcess.exitcode`, when it has exited."""
    exception: BaseException | None
    """What it has failed with, when it has exited: what awaiting the process raises."""
    stop_requested: bool
    """Whether it was to be stopped."""
    attributes: dict[str, Any]
    """For what instruments want to remember of it, under names of their own."""

    def __init__(self, name: str, start_method: str) -> None:
        self.id = instruments.new_id()
        self.name = name
        self.pid = None
        self.kind = "process"
        self.pool = None
        self.start_method = start_method
        self.func = None
        self.exitcode = None
        self.exception = None
        self.stop_requested = False
        self.attributes = {}
        self._loads: dict[str, Any] = {}
        self._lock = threading.RLock()  # so that nothing is told after the end
        self._ready = False
        self._exited = False

    def __repr__(self) -> str:
        return f"<ObservedProcess {self.id} name={self.name!r} pid={self.pid}>"

    def _created(self, name: str, func: str | None) -> None:
        self.name = name
        self.func = func
        self._tell("process_created")

    def _started(self, pid: int) -> None:
        self.pid = pid
        self._tell("process_started")

    def _became_ready(self) -> None:
        with self._lock:
            if not self._ready and not self._exited:
                self._ready = True
                self._tell("process_ready")

    def _is_to_stop(self) -> None:
        with self._lock:
            if not self.stop_requested and not self._exited:
                self.stop_requested = True
                self._tell("process_stop_requested")

    def _has_exited(self, exitcode: int | None, exception: BaseException | None) -> None:
        with self._lock:
            self.exitcode = exitcode
            self.exception = exception
            self._exited = True
            self._tell("process_exited")

    def _tell(self, hook: str) -> None:
        if instruments.all:
            with self._lock:
                instruments.tell(hook, self)


_GRAVITY: tuple[CallStatus, ...] = ("ok", "cancelled", "error", "killed")


def _graver(one: CallStatus | None, other: CallStatus) -> CallStatus:
    if one is None or _GRAVITY.index(one) < _GRAVITY.index(other):
        return other
    return one


@final
class ObservedCall:
    """What an :class:`Instrument` gets to know of a call of a pool: to be read."""

    __slots__ = (
        "_failing",
        "_loads",
        "attributes",
        "exception",
        "func",
        "id",
        "items",
        "pool",
        "process",
        "seconds",
        "status",
    )

    id: int
    """No other call of this application, and no process, ever has the same."""
    func: str
    """The full name of the function."""
    pool: str
    """The name of the pool."""
    items: int
    """1; of a chunk of a map, how many items are in it. (Those that its worker gives back, as
    others are free to run them, travel again in other chunks.)"""
    process: ObservedProcess | None
    """The worker that runs the call, or has."""
    status: CallStatus | None
    """How the call has ended: ``"ok"``; ``"error"``: it has failed, of a chunk, an item of it has;
    ``"killed"``: the worker has died while it ran the call; ``"cancelled"``: nobody wants the
    result any more, because of a cancellation, a timeout, the end of a map, or a pool whose block
    is left by an exception. ``None`` before."""
    exception: BaseException | None
    """What it has failed with; of a chunk, the first of what its items have."""
    seconds: float | None
    """For how long the worker has run the function, when the call has ended and the worker has said
    so; ``None`` where it has not."""
    attributes: dict[str, Any]
    """For what instruments want to remember of it, under names of their own."""

    def __init__(self, func: str, pool: str, items: int) -> None:
        self.id = instruments.new_id()
        self.func = func
        self.pool = pool
        self.items = items
        self.process = None
        self.status = None
        self.exception = None
        self.seconds = None
        self.attributes = {}
        self._loads: dict[str, Any] = {}
        self._failing: CallStatus | None = None

    def __repr__(self) -> str:
        return f"<ObservedCall {self.id} func={self.func!r} status={self.status}>"

    def _queued(self) -> None:
        instruments.tell("call_queued", self)

    def _started(self, process: ObservedProcess) -> None:
        if self.status is None:
            self.process = process
            instruments.tell("call_started", self)

    def _ran(self, seconds: float) -> None:
        """The worker has run it, or some items of it, for so many seconds."""
        self.seconds = seconds if self.seconds is None else self.seconds + seconds

    def _fails(self, status: CallStatus, exception: BaseException) -> None:
        """It has failed, or a part of it has, but is not over yet."""
        if self.status is None:
            self._failing = _graver(self._failing, status)
            if self.exception is None:
                self.exception = exception

    def _finished(self, status: CallStatus) -> None:
        """It is over, unless it was before."""
        if self.status is None:
            self.status = _graver(self._failing, status)
            instruments.tell("call_finished", self)
