"""A channel as a queue whose ends are counted: see :mod:`._queue_state`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import anyio

from .._wire._framing import Section
from ._protocol import Op, json_value
from ._queue_state import QueueState
from ._states import Party, State, Ticket, pop_first

Side = Literal["send", "receive"]


@dataclass(slots=True)
class _OnItsWay:
    """An end that was handed over, until whoever did so takes back what was not claimed."""

    side: str
    owner: Party | None
    """Who has handed it over; ``None`` if it is dead, or we have not heard of that yet."""
    claimed_as: tuple[Party, int] | None = None


class ChannelState(QueueState):
    """Ends are opened and closed; an end that was handed over is open, too, until it is claimed.

    When the last send end is gone, those who receive get what is left, and then the end of the
    stream. When the last receive end is gone, nobody can send.

    If a process dies that has claimed an end, that is on its way again, because its call may go to
    another process. It is gone when whoever has handed it over takes it back.

    :param max_buffer_size: how many items wait; with 0 an item waits with whoever sends it
    :param party: the process that has the first two ends, number 0 of either side
    :param on_unused: called when there is no end left
    """

    def __init__(
        self,
        max_buffer_size: float,
        party: Party,
        on_unused: Callable[[State], object] = lambda _state: None,
    ) -> None:
        super().__init__(0)
        self.max_buffer_size = max_buffer_size
        self.ends: dict[str, set[tuple[Party, int]]] = {
            "send": {(party, 0)},
            "receive": {(party, 0)},
        }
        self.on_their_way: dict[str, _OnItsWay] = {}
        """Ends that were handed over, by what identifies them."""
        self._on_unused = on_unused

    def open_ends(self, side: str) -> int:
        unclaimed = sum(
            end.side == side and end.claimed_as is None for end in self.on_their_way.values()
        )
        return len(self.ends[side]) + unclaimed

    def _has_room(self) -> bool:
        return len(self.items) < self.max_buffer_size or bool(self.waiting)

    def _ask(self, op: Op, ticket: Ticket) -> None:
        if op is Op.CLAIM_END:
            side, token, number = json_value(ticket.body)
            self._claim(side, token, (ticket.party, number))
            ticket.settle(None)
        else:
            super()._ask(op, ticket)

    def _claim(self, side: str, token: str, claimant: tuple[Party, int]) -> None:
        # It may come before we hear from whoever has handed the end over, on another connection.
        end = self.on_their_way.setdefault(token, _OnItsWay(side, None))
        end.claimed_as = claimant
        self.ends[side].add(claimant)

    def _ask_put(self, ticket: Ticket, *, wait: bool) -> None:
        if not self.open_ends("receive"):
            raise _nobody_receives()
        super()._ask_put(ticket, wait=wait)

    def _tell(self, op: Op, party: Party, number: int, holder: int, body: Section) -> None:
        match op:
            case Op.OPEN_END:
                side, end = json_value(body)
                self.ends[side].add((party, end))
            case Op.CLOSE_END:
                side, end = json_value(body)
                self._close(side, (party, end))
            case Op.HAND_OVER_END:
                side, token = json_value(body)
                self.on_their_way.setdefault(token, _OnItsWay(side, None)).owner = party
            case Op.TAKE_BACK_END:
                self.on_their_way.pop(json_value(body), None)
                self._count_ends()
            case _:
                super()._tell(op, party, number, holder, body)

    def _close(self, side: str, closed: tuple[Party, int]) -> None:
        self.ends[side].discard(closed)
        for token, end in list(self.on_their_way.items()):
            if end.side == side and end.claimed_as == closed:
                del self.on_their_way[token]
        self._count_ends()

    def drop(self, party: Party) -> None:
        super().drop(party)
        for ends in self.ends.values():
            ends.difference_update([end for end in ends if end[0] is party])
        for token, end in list(self.on_their_way.items()):
            if end.claimed_as is not None and end.claimed_as[0] is party:
                end.claimed_as = None
            if end.owner is party:
                end.owner = None
            if end.claimed_as is None and end.owner is None:
                del self.on_their_way[token]
        self._count_ends()

    def _count_ends(self) -> None:
        senders, receivers = self.open_ends("send"), self.open_ends("receive")
        if not senders:
            self.closed = True  # nobody is left whom it could fail
            self._end_if_empty()
        if not receivers:
            self.items.clear()
            while self.putting:
                pop_first(self.putting).fail(_nobody_receives())
        if not senders and not receivers:
            self._on_unused(self)

    def statistics(self) -> dict[str, Any]:
        size = self.max_buffer_size
        return {
            "current_buffer_used": len(self.items),
            "max_buffer_size": size if size == math.inf else int(size),
            "open_send_streams": self.open_ends("send"),
            "open_receive_streams": self.open_ends("receive"),
            "tasks_waiting_send": len(self.putting),
            "tasks_waiting_receive": len(self.waiting),
        }


def _nobody_receives() -> anyio.BrokenResourceError:
    return anyio.BrokenResourceError("all ends that receive from this channel are closed")
