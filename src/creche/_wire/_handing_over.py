"""Objects that move to another process with the call that they are an argument of.

Such an object owns descriptors. While the call is being pickled, it packs them into a
:class:`Parcel`. When that has succeeded, the parcel owns them, and the object is of no more use
here; whatever becomes of the call, its parcels are closed once it has been made, as the other
process has its own copies then. Where pickling fails, the object gets them back.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol


class Movable(ABC):
    """An object that moves to the process of the call that it is an argument of."""

    @abstractmethod
    def claim(self) -> None:
        """Move with a call that is about to be made, and will be pickled later.

        :raises anyio.ClosedResourceError: if it is closed, or was handed over before
        """

    @abstractmethod
    def unclaim(self) -> None:
        """The call cannot even be begun."""

    @abstractmethod
    def lend(self) -> Lent:
        """After :meth:`claim`: return what can be pickled any number of times."""

    @abstractmethod
    def release(self) -> None:
        """The call that has claimed it has been made, or never will be: close it, if it is here."""


class Lent(ABC):
    """Takes the place of a movable object of which many processes get one like it."""

    @abstractmethod
    def close(self) -> None:
        """There will be no more calls."""


def claim_all(objects: Iterable[object]) -> list[Movable]:
    """Have what is movable among the arguments of a call move with it; return that.

    What is hidden inside of others moves when it is pickled.

    :raises anyio.ClosedResourceError: if something is closed, or was handed over before
    """
    claimed: list[Movable] = []
    try:
        for obj in objects:
            if isinstance(obj, Movable):
                obj.claim()
                claimed.append(obj)
    except BaseException:
        for movable in claimed:
            movable.unclaim()
        raise
    return claimed


class Claims:
    """What moves with a call that is about to be made.

    :param call: the call; ``None`` where none is known
    """

    def __init__(self, call: Any) -> None:
        arguments = () if call is None else (*call.args, *call.kwargs.values())
        self._arguments = [obj for obj in arguments if isinstance(obj, Movable)]
        self._claimed: list[Movable] = []
        self.parcels = Parcels()
        """What is on its way to the process, once the call has been pickled."""

    def claim(self) -> None:
        """Have the arguments be of no more use elsewhere; once.

        :raises anyio.ClosedResourceError: if one is closed, or was handed over before
        """
        arguments, self._arguments = self._arguments, []
        self._claimed += claim_all(arguments)

    def release(self) -> None:
        """The other process has its own, or never will."""
        claimed, self._claimed = self._claimed, []
        for movable in claimed:
            movable.release()
        self.parcels.close()


def lend_all(objects: Iterable[Any]) -> tuple[tuple[Any, ...], list[Lent]]:
    """Have what is movable among the arguments of many calls move with each of them.

    :return: the arguments to pickle for each call, and those that are to be closed in the end
    :raises anyio.ClosedResourceError: if something is closed, or was handed over before
    """
    claimed = claim_all(objects := tuple(objects))
    lent = {id(movable): movable.lend() for movable in claimed}
    return tuple(lent.get(id(obj), obj) for obj in objects), list(lent.values())


class Parcel(ABC):
    """What a movable object owned, on its way."""

    @abstractmethod
    def take(self) -> None:
        """Take it from the object: the call has been pickled."""

    @abstractmethod
    def give_back(self) -> None:
        """Leave it to the object: pickling has failed."""

    def started(self) -> None:
        """The process exists, and has inherited its descriptors: close our copies of them."""
        self.close()

    @abstractmethod
    def close(self) -> None:
        """The other process has it, or never will: close our copies, if they were taken. May be
        called more than once."""

    @abstractmethod
    def close_in_fork(self) -> None:
        """In a fork of this process: do so, without regard to its other threads."""

    @abstractmethod
    def leave_in_fork(self) -> None:
        """In the fork that it goes to: what is unpickled there owns our copies, which are the same
        descriptors."""


class Carrier(Protocol):
    """What a call takes along."""

    def carry(self, parcel: Parcel) -> None: ...

    def duplicate_for_child(self, descriptor: int) -> Any: ...


class Parcels:
    """The parcels of a call."""

    def __init__(self) -> None:
        self._parcels: list[Parcel] = []
        self.fork_thread: int | None = None
        """The thread that makes the process of the call, as a fork of this one."""

    def __bool__(self) -> bool:
        return bool(self._parcels)

    def __len__(self) -> int:
        return len(self._parcels)

    def add(self, parcel: Parcel) -> None:
        self._parcels.append(parcel)
        _on_their_way.add(self)

    def take(self) -> None:
        """The call has been pickled."""
        with no_fork_meanwhile():
            for parcel in self._parcels:
                parcel.take()

    def give_back(self) -> None:
        """The call could not be pickled."""
        parcels, self._parcels = self._parcels, []
        for parcel in parcels:
            parcel.give_back()

    def started(self) -> None:
        """The process of the call exists: only what does not come to it by itself is left."""
        self.fork_thread = None
        with no_fork_meanwhile():
            for parcel in self._parcels:
                parcel.started()

    def close(self) -> None:
        """The call has been made, or never will be."""
        if not self._parcels:  # few calls have any
            return
        with no_fork_meanwhile():
            parcels, self._parcels = self._parcels, []
            for parcel in parcels:
                parcel.close()

    def close_in_fork(self) -> None:
        parcels, self._parcels = self._parcels, []
        for parcel in parcels:
            if self.fork_thread == threading.get_ident():
                parcel.leave_in_fork()
            else:
                parcel.close_in_fork()

    def __del__(self) -> None:
        self.close()


MAX_DESCRIPTORS = 253
"""How many descriptors can travel together: sendmsg(2) takes no more of them (SCM_MAX_FD)."""


class CallHandles:
    """Collects what the arguments of a call to a warm worker own."""

    def __init__(self) -> None:
        self.parcels = Parcels()
        self.descriptors: list[int] = []

    def carry(self, parcel: Parcel) -> None:
        self.parcels.add(parcel)

    def duplicate_for_child(self, descriptor: int) -> int:
        if len(self.descriptors) == MAX_DESCRIPTORS:
            raise ValueError(f"no more than {MAX_DESCRIPTORS} descriptors can travel with a call")
        self.descriptors.append(descriptor)
        return len(self.descriptors) - 1


_local = threading.local()


@contextlib.contextmanager
def carrying(carrier: Carrier) -> Iterator[None]:
    """Have movable objects that are pickled in the block, by this thread, go with ``carrier``."""
    outer = current_carrier()
    _local.carrier = carrier
    try:
        yield
    finally:
        _local.carrier = outer


def current_carrier() -> Carrier | None:
    """What movable objects that this thread pickles go with."""
    return getattr(_local, "carrier", None)


# --- in the process that they come to -------------------------------------------------------------


class ReceivedDescriptors:
    """Descriptors that came with a call; each belongs to the object that is made of it."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors: list[int | None] = list(descriptors)

    def take(self, index: int) -> int:
        descriptor, self._descriptors[index] = self._descriptors[index], None
        if descriptor is None:
            raise ValueError("two objects refer to one descriptor")
        return descriptor

    def close(self) -> None:
        """Close what belongs to nobody."""
        descriptors, self._descriptors = self._descriptors, []
        for descriptor in descriptors:
            if descriptor is not None:
                os.close(descriptor)


@contextlib.contextmanager
def received_with_call(descriptors: Sequence[int]) -> Iterator[None]:
    """Have the objects of a call, which is unpickled in the block, find what came with it."""
    received = _local.received = ReceivedDescriptors(descriptors)
    try:
        yield
    finally:
        _local.received = None
        received.close()


class DescriptorOfCall:
    """A descriptor in the pickle of a call."""

    def __init__(self, index: int) -> None:
        self._index = index

    def detach(self) -> int:
        received: ReceivedDescriptors | None = getattr(_local, "received", None)
        if received is None:
            raise ValueError("the descriptors of a call did not come with it")
        return received.take(self._index)


# --- in a fork of this process --------------------------------------------------------------------


class ClosedInForks(Protocol):
    """What a fork of this process must not keep open."""

    def close_in_fork(self) -> None: ...


_on_their_way: weakref.WeakSet[Parcels] = weakref.WeakSet()
_owners: weakref.WeakSet[Any] = weakref.WeakSet()

_forking = threading.RLock()  # reentrant: a signal handler, or the garbage collector, may fork

# Seconds. Nobody keeps it that long, unless it waits for another lock, whose owner wants this one:
# the garbage collector closes ends, too, in the middle of anything.
_PATIENCE = 1.0


def close_in_forks(owner: ClosedInForks) -> None:
    """Have a fork of this process close its copies of what ``owner`` owns.

    They would keep the other ends waiting for ever: no fork knows that it has them.
    """
    _owners.add(owner)


@contextlib.contextmanager
def no_fork_meanwhile() -> Iterator[None]:
    """Have no other thread fork this process while the block runs.

    For what is open without an owner that a fork would ask to close it: before there is one, while
    it changes, or when that is at it.
    """
    lock = _forking
    taken = lock.acquire(timeout=_PATIENCE)
    try:
        yield
    finally:
        if taken:
            lock.release()


def _before_fork() -> None:
    _forking.acquire(timeout=_PATIENCE)


def _after_fork() -> None:
    with contextlib.suppress(RuntimeError):  # it was in vain
        _forking.release()


def _close_in_fork() -> None:
    global _forking
    _forking = threading.RLock()
    for parcels in list(_on_their_way):
        parcels.close_in_fork()
    for owner in list(_owners):
        owner.close_in_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_close_in_fork
    )
