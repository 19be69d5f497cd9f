"""A channel as a queue whose ends are counted: see :mod:`._queue_state`.

For systems on which channels have no sockets of their own to hand over. Nothing uses it yet.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import anyio

from .._wire._framing import Section
from ._protocol import Op, json_value
from ._queue_state import QueueState
from ._states import Party, Ticket, pop_first

Side = Literal["send", "receive"]


class ChannelState(QueueState):
    """Ends are opened and closed; an end that was handed over is open, too, until it is claimed.

    When the last send end is gone, those who receive get what is left, and then the end of the
    stream. When the last receive end is gone, nobody can send.

    :param max_buffer_size: how many items wait; with 0 an item waits with whoever sends it
    :param party: the process that has the first two ends, number 0 of either side
    """

    def __init__(self, max_buffer_size: float, party: Party) -> None:
        super().__init__(0)
        self.max_buffer_size = max_buffer_size
        self.ends: dict[str, set[tuple[Party, int]]] = {
            "send": {(party, 0)},
            "receive": {(party, 0)},
        }
        self.handed_over: dict[str, str] = {}
        """The sides of ends that nobody has claimed yet, by what identifies them."""

    def open_ends(self, side: str) -> int:
        return len(self.ends[side]) + list(self.handed_over.values()).count(side)

    def _has_room(self) -> bool:
        return len(self.items) < self.max_buffer_size or bool(self.waiting)

    def _ask(self, op: Op, ticket: Ticket) -> None:
        if op is Op.CLAIM_END:
            token, number = json_value(ticket.body)
            side = self.handed_over.pop(token, None)
            if side is None:
                raise anyio.ClosedResourceError  # somebody else has it, or it was taken back
            self.ends[side].add((ticket.party, number))
            ticket.settle(side)
        else:
            super()._ask(op, ticket)

    def _ask_put(self, ticket: Ticket, *, wait: bool) -> None:
        if not self.open_ends("receive"):
            raise anyio.BrokenResourceError
        super()._ask_put(ticket, wait=wait)

    def _tell(self, op: Op, party: Party, number: int, holder: int, body: Section) -> None:
        match op:
            case Op.OPEN_END:
                side, end = json_value(body)
                self.ends[side].add((party, end))
            case Op.CLOSE_END:
                side, end = json_value(body)
                self.ends[side].discard((party, end))
                self._count_ends()
            case Op.HAND_OVER_END:
                side, token = json_value(body)
                self.handed_over[token] = side
            case Op.TAKE_BACK_END:
                self.handed_over.pop(json_value(body), None)
                self._count_ends()
            case _:
                super()._tell(op, party, number, holder, body)

    def drop(self, party: Party) -> None:
        super().drop(party)
        for ends in self.ends.values():
            ends.difference_update([end for end in ends if end[0] is party])
        self._count_ends()

    def _count_ends(self) -> None:
        if not self.open_ends("send"):
            self.closed = True  # nobody is left whom it could fail
            self._end_if_empty()
        if not self.open_ends("receive"):
            self.items.clear()
            while self.putting:
                pop_first(self.putting).fail(anyio.BrokenResourceError())

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
