"""Where the state of an object is, in this process or in another, seen from whoever uses it."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from abc import ABC, abstractmethod
from functools import partial

from .._errors import ProcessStateError
from .._runtime import has_runtime
from .._wire._framing import Section
from ._driver import socket_watcher
from ._hub import Hub, gone
from ._link import Link, forget_links, link_to
from ._protocol import HubRef, Op
from ._states import Party, State
from ._waits import Wait


class Source(ABC):
    """Where an object's state is."""

    @abstractmethod
    def ask(self, op: Op, wait: Wait) -> None:
        """Ask for something: ``wait`` is settled, now or later.

        :raises Exception: what is wrong with it
        """

    @abstractmethod
    def cancel(self, wait: Wait) -> None:
        """Undo what was asked for, whether it was granted or not."""

    @abstractmethod
    def cancel_soon(self, wait: Wait) -> None:
        """Do so in the watcher. For the garbage collector, which comes in the middle of anything:
        it takes none of the locks that this thread may have."""

    def give_up(self, wait: Wait, error: BaseException) -> None:
        """Undo what was asked for, as ``error`` has ended the wait for it."""
        if isinstance(error, GeneratorExit):  # the task was collected: its event loop is closed
            self.cancel_soon(wait)
        else:
            self.cancel(wait)

    @abstractmethod
    def tell(self, op: Op, number: int, holder: int, body: Section) -> None:
        """Tell something that is done at once.

        :raises Exception: what is wrong with it
        """

    def tell_later(self, op: Op, number: int) -> None:
        """Tell something of which nobody needs to hear before anything else is told or asked."""
        self.tell(op, number, 0, [])

    @abstractmethod
    def refer(self) -> tuple[HubRef, int]:
        """How another process finds the state.

        :raises OSError: if there are no descriptors left
        """


class Here(Source):
    """The state is in this process."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.obj = _places.add(state)
        # Counted under the state's lock: without the GIL, counters are not for several threads.
        self._numbers = itertools.count(1)

    def ask(self, op: Op, wait: Wait) -> None:
        state = self.state
        wait.party = _places.party
        with state.lock:
            wait.number = next(self._numbers)
            wait.asked = state
            state.ask(op, wait)
            if not wait.is_done:
                wait.arm()

    def cancel(self, wait: Wait) -> None:
        if wait.asked is not None:
            with self.state.lock:
                self.state.cancel(wait.party, wait.number)

    def cancel_soon(self, wait: Wait) -> None:
        if wait.asked is not None:
            socket_watcher().call_soon(partial(self.cancel, wait))

    def tell(self, op: Op, number: int, holder: int, body: Section) -> None:
        with self.state.lock:
            self.state.tell(op, _places.party, number, holder, body)

    def refer(self) -> tuple[HubRef, int]:
        return _places.open_hub().ref, self.obj

    def leave(self) -> None:
        """Nobody in this process uses it any more. Called by the garbage collector, in the middle
        of anything: it takes no lock."""
        if _places.hub is not None:
            _places.hub.call_soon(partial(_end, self.state, os.getpid()))


def _end(state: State, pid: int) -> None:
    with state.lock:
        state.end(partial(gone, pid))


class There(Source):
    """The state is in another process."""

    def __init__(self, ref: HubRef, obj: int) -> None:
        self._ref = ref
        self._obj = obj

    def ask(self, op: Op, wait: Wait) -> None:
        link = wait.asked = link_to(self._ref)
        link.ask(op, self._obj, wait)

    def cancel(self, wait: Wait) -> None:
        link: Link | None = wait.asked
        if link is not None:
            link.cancel(self._obj, wait.number)

    def cancel_soon(self, wait: Wait) -> None:
        link: Link | None = wait.asked
        if link is not None:
            link.call_soon(partial(self.cancel, wait))

    def tell(self, op: Op, number: int, holder: int, body: Section) -> None:
        link_to(self._ref).tell(op, self._obj, number, holder, body)

    def tell_later(self, op: Op, number: int) -> None:
        link_to(self._ref).tell_later(op, self._obj, number)

    def refer(self) -> tuple[HubRef, int]:
        return self._ref, self._obj


class Nowhere(Source):
    """The state is in the process that this is a fork of, and cannot be reached."""

    def ask(self, op: Op, wait: Wait) -> None:
        raise self._error()

    def cancel(self, wait: Wait) -> None:
        pass

    cancel_soon = cancel

    def tell(self, op: Op, number: int, holder: int, body: Section) -> None:
        raise self._error()

    def refer(self) -> tuple[HubRef, int]:
        raise self._error()

    def _error(self) -> ProcessStateError:
        return ProcessStateError(
            "this belongs to the process that this one was forked from, which listens to nobody:"
            " pass it to a process as an argument of creche's calls"
        )


class _Places:
    """What this process has, and what those had that it is a fork of."""

    def __init__(self) -> None:
        self.party = Party(os.getpid())
        self._objects = itertools.count(1)
        self.states: weakref.WeakValueDictionary[int, State] = weakref.WeakValueDictionary()
        self.hub: Hub | None = None
        self._lock = threading.RLock()  # reentrant: the garbage collector may run in between

    def add(self, state: State) -> int:
        with self._lock:
            obj = next(self._objects)
            self.states[obj] = state
        return obj

    def find(self, obj: int) -> State | None:
        return self.states.get(obj)

    def open_hub(self) -> Hub:
        """Return the hub of this process, made on demand.

        :raises OSError: if there are no descriptors left
        """
        with self._lock:
            if self.hub is None:
                self.hub = Hub(self.find)
            return self.hub


_places = _Places()
_ancestors: list[HubRef | None] = []
"""How to reach the processes that this is a fork of, from the first one on."""
_inherited: list[object] = []
"""What this process has from them and does not use. It is not freed: that would copy its memory,
and a request to stop that comes while a weak reference calls back is lost."""


def generation() -> int:
    """How many forks have led from the first Python program to this process."""
    return len(_ancestors)


def after_fork(source: Source, born: int) -> Source:
    """Where the state of an object is after this process has been forked.

    :param source: where it was
    :param born: the generation in which it was there
    """
    if not isinstance(source, Here):
        return source
    _inherited.append(source)
    ref = _ancestors[born]
    return Nowhere() if ref is None else There(ref, source.obj)


def this_party() -> Party:
    """Who this process is to the states that are here."""
    return _places.party


def open_hub() -> Hub:
    """Return the hub of this process, made on demand.

    :raises OSError: if there are no descriptors left
    """
    return _places.open_hub()


def _before_fork() -> None:
    # A server that forks other people's children uses no runtime, and must have no threads.
    if has_runtime() and _places.hub is None and len(_places.states):
        _places.open_hub()


def _after_fork_in_child() -> None:
    global _places
    forgotten, _places = _places, _Places()
    _inherited.append(forgotten)
    _ancestors.append(None if forgotten.hub is None else forgotten.hub.ref)
    if forgotten.hub is not None:
        forgotten.hub.forget()
    forget_links()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
