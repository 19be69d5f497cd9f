"""A queue of items that nobody loses: see :mod:`._states`."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

import anyio

from .._wire._framing import Section
from ._protocol import Op
from ._states import Party, State, Ticket, Waiting, add, drop, no_such, pop_first

_Put = tuple[Party, int, Section]
"""An item, and the request that it came with; 0 for none that could be cancelled."""


class QueueState(State):
    """Items wait here, and so do those who want to put or get one.

    An item that was handed out is kept until whoever got it says so: if that process dies before,
    or its request was cancelled, the item goes back to the front. One that is being unpickled goes
    back after a cancellation only: it may be what has killed the process, and must not go on to
    kill the next.

    :param maxsize: how many items wait before those who put have to; 0 for no limit
    """

    def __init__(self, maxsize: int) -> None:
        super().__init__()
        self.maxsize = maxsize
        self.closed = False
        self.items: deque[_Put] = deque()
        self.putting: Waiting = OrderedDict()
        self.handed_out: dict[tuple[Party, int], Section] = {}
        self.unpickling: set[tuple[Party, int]] = set()  # of what was handed out

    # Those who want an item are in `waiting`, so one of it and `items` is always empty.

    def _ask(self, op: Op, ticket: Ticket) -> None:
        if op in (Op.PUT, Op.TRY_PUT):
            self._ask_put(ticket, wait=op is Op.PUT)
        elif op in (Op.GET, Op.TRY_GET):
            self._ask_get(ticket, wait=op is Op.GET)
        else:
            raise no_such(self, op)

    def _ask_put(self, ticket: Ticket, *, wait: bool) -> None:
        if self.closed:
            raise anyio.ClosedResourceError
        if self._has_room():
            self._take(ticket)
            self._hand_out()
        elif wait:
            add(self.putting, ticket)
        else:
            raise anyio.WouldBlock

    def _ask_get(self, ticket: Ticket, *, wait: bool) -> None:
        if self.items or self.putting:
            add(self.waiting, ticket)
            self._hand_out()
        elif self.closed and not self.handed_out:
            raise anyio.EndOfStream
        elif wait:
            add(self.waiting, ticket)
        else:
            raise anyio.WouldBlock

    def _tell(self, op: Op, party: Party, number: int, holder: int, body: Section) -> None:
        if op is Op.GOT:
            self.handed_out.pop((party, number), None)
            self.unpickling.discard((party, number))
            self._end_if_empty()
        elif op is Op.UNPICKLING:
            if (party, number) in self.handed_out:
                self.unpickling.add((party, number))
        elif op is Op.CLOSE:
            self.closed = True
            while self.putting:
                pop_first(self.putting).fail(anyio.ClosedResourceError())
            self._end_if_empty()
        else:
            raise no_such(self, op)

    def cancel(self, party: Party, number: int) -> None:
        super().cancel(party, number)
        self.putting.pop((party, number), None)
        self.unpickling.discard((party, number))
        item = self.handed_out.pop((party, number), None)
        if item is not None:
            # As nobody's: a request may be cancelled twice, where its event loop was closed.
            self.items.appendleft((party, 0, item))
        else:
            for put in self.items:
                if put[:2] == (party, number):
                    self.items.remove(put)
                    break
        self._hand_out()
        self._end_if_empty()

    def drop(self, party: Party) -> None:
        super().drop(party)
        drop(self.putting, party)
        # The last that was handed out goes back first, so that the order stays.
        for key in [key for key in self.handed_out if key[0] is party][::-1]:
            item = self.handed_out.pop(key)
            if key in self.unpickling:
                self.unpickling.remove(key)
            else:
                self.items.appendleft((party, 0, item))
        self._hand_out()
        self._end_if_empty()

    def _has_room(self) -> bool:
        return not self.maxsize or len(self.items) < self.maxsize or bool(self.waiting)

    def _take(self, ticket: Ticket) -> None:
        self.items.append((ticket.party, ticket.number, ticket.body))
        if not ticket.settle(None):
            self.items.pop()

    def _hand_out(self) -> None:
        """Give what is there to those who want it, and let in what has room then."""
        while True:
            while self.items and self.waiting:
                ticket = pop_first(self.waiting)
                put = self.items.popleft()
                self.handed_out[ticket.party, ticket.number] = put[2]
                if not ticket.settle(put[2]):
                    del self.handed_out[ticket.party, ticket.number]
                    self.items.appendleft(put)
            if not self.putting or not self._has_room():
                return
            self._take(pop_first(self.putting))

    def _end_if_empty(self) -> None:
        """Closed, and nothing can come any more."""
        if self.closed and not self.items and not self.handed_out:
            while self.waiting:
                pop_first(self.waiting).fail(anyio.EndOfStream())

    def statistics(self) -> dict[str, Any]:
        return {
            "maxsize": self.maxsize,
            "qsize": len(self.items),
            "closed": self.closed,
            "tasks_waiting_put": len(self.putting),
            "tasks_waiting_get": len(self.waiting),
        }

    def _all_waiting(self) -> list[Waiting]:
        return [self.waiting, self.putting]
