"""Waiting for descriptors in the event loop, and no longer."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import anyio
import pytest
from support import TIMEOUT

from creche._loop_poller import loop_poller
from creche._loops import current_loop

pytestmark = pytest.mark.anyio

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    pairs = [socket.socketpair() for _ in range(2)]
    yield pairs
    for pair in pairs:
        for end in pair:
            end.close()


async def turn_a_few_times() -> None:
    for _ in range(5):
        await anyio.lowlevel.checkpoint()


async def test_unwatched_before_it_was_waited_for(pairs: list[Pair]) -> None:
    poller = loop_poller(current_loop())
    with anyio.fail_after(TIMEOUT):
        for ours, _ in pairs:
            poller.watch(ours.fileno(), pytest.fail)
            poller.watch_writable(ours.fileno(), pytest.fail)
            poller.unwatch(ours.fileno())
            ours.close()
        await turn_a_few_times()


async def test_unwatched_when_it_was_about_to_be_told(pairs: list[Pair]) -> None:
    """Both are readable in the same turn, and whichever is told first closes the other."""
    poller = loop_poller(current_loop())
    (first, first_sender), (second, second_sender) = pairs
    called: list[str] = []

    def on_readable(name: str, other: socket.socket) -> None:
        called.append(name)
        poller.unwatch(other.fileno())
        other.close()
        os.read({"first": first, "second": second}[name].fileno(), 1)

    with anyio.fail_after(TIMEOUT):
        poller.watch(first.fileno(), lambda: on_readable("first", second))
        poller.watch(second.fileno(), lambda: on_readable("second", first))
        await turn_a_few_times()
        first_sender.send(b"x")
        second_sender.send(b"x")
        while not called:
            await anyio.lowlevel.checkpoint()
        await turn_a_few_times()
        assert len(called) == 1
        left = first if called == ["first"] else second
        poller.unwatch(left.fileno())
        await turn_a_few_times()


async def test_descriptor_is_used_again_at_once(pairs: list[Pair]) -> None:
    """By another socket, of which nobody wants to hear under the old name."""
    poller = loop_poller(current_loop())
    ours, _ = pairs[0]
    number = ours.fileno()
    told = anyio.Event()
    with anyio.fail_after(TIMEOUT):
        poller.watch(number, pytest.fail)
        await turn_a_few_times()
        poller.unwatch(number)
        ours.close()
        os.dup2(pairs[1][0].fileno(), number)
        poller.watch(number, told.set)
        pairs[1][1].send(b"x")
        await told.wait()
        poller.unwatch(number)
        await turn_a_few_times()
        os.close(number)
