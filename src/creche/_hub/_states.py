"""What a lock, an event and the like *are*: state machines without I/O, processes and waiting.

A request that has to be waited for is a :class:`Ticket`, which the state settles when its turn
comes. All methods are called with the state's lock held, by whichever thread, and return at once.
Whoever waits first is served first.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import anyio

from .._wire._framing import Section
from ._protocol import Op, json_value


class Party:
    """A process that uses a state, and whose death is heard of."""

    __slots__ = ("__weakref__", "pid")

    def __init__(self, pid: int) -> None:
        self.pid = pid


class Ticket(ABC):
    """A request of a task or a thread.

    :param holder: which task or thread of the process it is
    :param number: which request of the process it is
    """

    __slots__ = ("body", "holder", "number", "party")

    def __init__(self, party: Party, number: int, holder: int, body: Section) -> None:
        self.party = party
        self.number = number
        self.holder = holder
        self.body = body

    @abstractmethod
    def settle(self, value: object) -> bool:
        """It is granted; return whether there is somebody who hears of it."""

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """It never will be."""


Waiting = OrderedDict[tuple[Party, int], Ticket]
"""Those who wait, in order, by what a cancellation says: the process, and the number of its
request."""


def pop_first(waiting: Waiting) -> Ticket:
    return waiting.popitem(last=False)[1]


def add(waiting: Waiting, ticket: Ticket) -> None:
    waiting[ticket.party, ticket.number] = ticket


def drop(waiting: Waiting, party: Party) -> list[Ticket]:
    """Remove all requests of a process."""
    gone = [key for key in waiting if key[0] is party]
    return [waiting.pop(key) for key in gone]


class State(ABC):
    """What the methods of all of them mean."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiting: Waiting = OrderedDict()
        self.over: Callable[[], BaseException] | None = None
        """Once nobody can use it any more: makes the error that says so."""

    def ask(self, op: Op, ticket: Ticket) -> None:
        """Take a request, which is settled now or later.

        :raises Exception: what is wrong with it
        """
        if self.over is not None:
            raise self.over()
        if op is Op.STATISTICS:
            ticket.settle(self.statistics())
        else:
            self._ask(op, ticket)

    def tell(self, op: Op, party: Party, number: int, holder: int, body: Section) -> None:
        """Take a request that is done at once.

        :raises Exception: what is wrong with it
        """
        if self.over is not None:
            raise self.over()
        self._tell(op, party, number, holder, body)

    @abstractmethod
    def _ask(self, op: Op, ticket: Ticket) -> None: ...

    def _tell(self, op: Op, party: Party, number: int, holder: int, body: Section) -> None:
        raise no_such(self, op)

    def cancel(self, party: Party, number: int) -> None:
        """Undo a request, whether it was granted or not: whoever made it did not hear of that."""
        self.waiting.pop((party, number), None)

    def drop(self, party: Party) -> None:
        """A process has died: release what it held, forget what it asked for."""
        drop(self.waiting, party)

    @abstractmethod
    def statistics(self) -> dict[str, Any]: ...

    def end(self, make_error: Callable[[], BaseException]) -> None:
        """Nobody will use it any more: it fails those who wait, and those who still come."""
        if self.over is None:
            self.over = make_error
            for waiting in self._all_waiting():
                while waiting:
                    pop_first(waiting).fail(make_error())

    def _all_waiting(self) -> list[Waiting]:
        return [self.waiting]


class EventState(State):
    """Set once, for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.is_set = False

    def _ask(self, op: Op, ticket: Ticket) -> None:
        if op is not Op.WAIT:
            raise no_such(self, op)
        if self.is_set:
            ticket.settle(None)
        else:
            add(self.waiting, ticket)

    def _tell(self, op: Op, party: Party, number: int, holder: int, body: Section) -> None:
        if op is not Op.SET:
            raise no_such(self, op)
        self.is_set = True
        while self.waiting:
            pop_first(self.waiting).settle(None)

    def statistics(self) -> dict[str, Any]:
        return {"is_set": self.is_set, "tasks_waiting": len(self.waiting)}


class TokenState(State):
    """Hands out tokens, and knows who has them."""

    def __init__(self) -> None:
        super().__init__()
        self.held: OrderedDict[tuple[Party, int], Ticket] = OrderedDict()

    @abstractmethod
    def _is_free(self) -> bool:
        """Whether there is a token."""

    @abstractmethod
    def _key(self, ticket: Ticket) -> tuple[Party, int]:
        """By what a token is found when it is given back."""

    def _value(self) -> object:
        """What whoever gets a token gets to know."""
        return None

    def _ask(self, op: Op, ticket: Ticket) -> None:
        if op not in (Op.ACQUIRE, Op.TRY_ACQUIRE):
            raise no_such(self, op)
        if not self.waiting and self._is_free():
            self._grant(ticket)
        elif op is Op.TRY_ACQUIRE:
            raise anyio.WouldBlock
        else:
            add(self.waiting, ticket)

    def _grant(self, ticket: Ticket) -> None:
        key = self._key(ticket)
        self.held[key] = ticket
        if not ticket.settle(self._value()):
            self._take_back(key)

    def _take_back(self, key: tuple[Party, int]) -> None:
        del self.held[key]

    def hand_on(self) -> None:
        while self.waiting and self._is_free():
            self._grant(pop_first(self.waiting))

    def cancel(self, party: Party, number: int) -> None:
        if self.waiting.pop((party, number), None) is None:
            for key, ticket in self.held.items():
                if ticket.party is party and ticket.number == number:
                    self._take_back(key)
                    break
        self.hand_on()  # the first one that waits may have wanted more than the second

    def drop(self, party: Party) -> None:
        super().drop(party)
        for key in [key for key in self.held if key[0] is party]:
            self._take_back(key)
        self.hand_on()


class StrictTokenState(TokenState):
    """A token belongs to the task or thread that has acquired it, and to nobody else."""

    name = "limiter"

    def _key(self, ticket: Ticket) -> tuple[Party, int]:
        return ticket.party, ticket.holder

    def _ask(self, op: Op, ticket: Ticket) -> None:
        if (ticket.party, ticket.holder) in self.held:
            raise RuntimeError(
                f"this task or thread holds the {self.name} already: it would wait for itself"
            )
        super()._ask(op, ticket)

    def _release(self, party: Party, holder: int) -> None:
        if (party, holder) not in self.held:
            raise not_held(self.name)
        self._take_back((party, holder))


class LockState(StrictTokenState):
    name = "lock"

    def __init__(self) -> None:
        super().__init__()
        self.abandoned_by: int | None = None
        """Which process has died with it, until the one that got it then releases it."""

    def _is_free(self) -> bool:
        return not self.held

    def _value(self) -> object:
        return self.abandoned_by

    def _tell(self, op: Op, party: Party, number: int, holder: int, body: Section) -> None:
        if op is not Op.RELEASE:
            raise no_such(self, op)
        self._release(party, holder)
        self.abandoned_by = None
        self.hand_on()

    def drop(self, party: Party) -> None:
        if any(key[0] is party for key in self.held):
            self.abandoned_by = party.pid
        super().drop(party)

    def statistics(self) -> dict[str, Any]:
        return {
            "locked": bool(self.held),
            "holder": next((party.pid for party, _ in self.held), None),
            "tasks_waiting": len(self.waiting),
            "abandoned_by": self.abandoned_by,
        }


class LimiterState(StrictTokenState):
    def __init__(self, total_tokens: float) -> None:
        super().__init__()
        self.total_tokens = total_tokens

    def _is_free(self) -> bool:
        return len(self.held) < self.total_tokens

    def _tell(self, op: Op, party: Party, number: int, holder: int, body: Section) -> None:
        if op is Op.SET_TOTAL:
            self.total_tokens = json_value(body)
        elif op is Op.RELEASE:
            self._release(party, holder)
        else:
            raise no_such(self, op)
        self.hand_on()

    def statistics(self) -> dict[str, Any]:
        borrowers: dict[str, int] = {}
        for party, _ in self.held:
            borrowers[str(party.pid)] = borrowers.get(str(party.pid), 0) + 1
        return {
            "borrowed_tokens": len(self.held),
            "total_tokens": self.total_tokens,
            "borrowers": borrowers,
            "tasks_waiting": len(self.waiting),
        }


class SemaphoreState(TokenState):
    """Anybody may release it.

    A release gives back a token of the process that releases; if it has none, the one that was
    acquired first by any; if nobody has one, there is one more from then on. So the number of free
    and acquired tokens together never changes when a process dies.

    It may be one that was granted, and that whoever asked for it has not heard of. If that request
    is cancelled then, the release was for another token. So whoever hears of a grant says GOT.
    """

    def __init__(self, value: int) -> None:
        super().__init__()
        self.value = value
        self.unheard: dict[tuple[Party, int], Party | None] = {}
        """What was granted, as far as we know, without having been heard of, and who has released
        it nevertheless."""

    def _is_free(self) -> bool:
        return self.value > 0

    def _key(self, ticket: Ticket) -> tuple[Party, int]:
        return ticket.party, ticket.number

    def _grant(self, ticket: Ticket) -> None:
        self.value -= 1
        self.unheard[self._key(ticket)] = None
        super()._grant(ticket)

    def _take_back(self, key: tuple[Party, int]) -> None:
        super()._take_back(key)
        self.unheard.pop(key, None)
        self.value += 1

    def _tell(self, op: Op, party: Party, number: int, holder: int, body: Section) -> None:
        if op is Op.GOT:
            self.unheard.pop((party, number), None)
        elif op is Op.RELEASE:
            self._release(party)
            self.hand_on()
        else:
            raise no_such(self, op)

    def _release(self, party: Party) -> None:
        own = (key for key in self.held if key[0] is party)
        key = next(own, None) or next(iter(self.held), None)
        if key is None:
            self.value += 1
            return
        is_unheard = key in self.unheard
        self._take_back(key)
        if is_unheard:
            self.unheard[key] = party

    def cancel(self, party: Party, number: int) -> None:
        if (releaser := self.unheard.get((party, number))) is not None:
            del self.unheard[party, number]
            self._release(releaser)
        super().cancel(party, number)

    def drop(self, party: Party) -> None:
        for key in [key for key in self.unheard if key[0] is party]:
            del self.unheard[key]
        super().drop(party)

    def statistics(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "acquired": len(self.held),
            "tasks_waiting": len(self.waiting),
        }


class BarrierState(State):
    """Opens for so many at once; broken when one that waits at it dies."""

    def __init__(self, parties: int) -> None:
        super().__init__()
        self.parties = parties
        self.broken = ""
        """Why it is; empty if it is not."""

    def _ask(self, op: Op, ticket: Ticket) -> None:
        if op is not Op.WAIT:
            raise no_such(self, op)
        if self.broken:
            raise threading.BrokenBarrierError(self.broken)
        add(self.waiting, ticket)
        if len(self.waiting) >= self.parties:
            for index in range(self.parties):
                pop_first(self.waiting).settle(index)

    def _tell(self, op: Op, party: Party, number: int, holder: int, body: Section) -> None:
        if op not in (Op.ABORT, Op.RESET):
            raise no_such(self, op)
        what = "was reset" if op is Op.RESET else "was aborted"
        self._break(f"the barrier {what} by process {party.pid}")
        if op is Op.RESET:
            self.broken = ""

    def drop(self, party: Party) -> None:
        if drop(self.waiting, party):
            self._break(f"process {party.pid} died while it waited at the barrier")

    def _break(self, why: str) -> None:
        self.broken = why
        while self.waiting:
            pop_first(self.waiting).fail(threading.BrokenBarrierError(why))

    def statistics(self) -> dict[str, Any]:
        return {
            "parties": self.parties,
            "broken": bool(self.broken),
            "tasks_waiting": len(self.waiting),
        }


def not_held(name: str) -> RuntimeError:
    return RuntimeError(
        f"this task or thread does not hold the {name}: whoever has acquired it has to release it"
    )


def no_such(state: State, op: Op) -> RuntimeError:
    return RuntimeError(f"{type(state).__name__} knows no {op.name}")


def check_tokens(value: Any) -> float:
    """Check a number of tokens.

    :raises TypeError: if it is not an integer or infinity
    :raises ValueError: if it is negative
    """
    if isinstance(value, bool) or not (isinstance(value, int) or value == math.inf):
        raise TypeError(f"total_tokens must be an integer or math.inf, not {value!r}")
    if value < 0:
        raise ValueError(f"total_tokens must be zero or more, not {value!r}")
    return float(value) if value == math.inf else value
