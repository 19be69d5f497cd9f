"""The states behind :mod:`creche.sync`, without processes: what they grant, to whom, and when."""

from __future__ import annotations

import math
import random
import struct
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from creche._hub._channel_state import ChannelState
from creche._hub._protocol import (
    ANSWER,
    HELLO,
    REQUEST,
    WELCOME,
    BadMessageError,
    HubRef,
    MessageReader,
    Op,
    check_welcome,
    json_bytes,
    make_hello,
    pack_answer,
    pack_error,
    pack_request,
    read_hello,
    unpack_answer,
)
from creche._hub._queue_state import QueueState
from creche._hub._states import (
    BarrierState,
    EventState,
    LimiterState,
    LockState,
    Party,
    SemaphoreState,
    State,
    Ticket,
)
from creche._platform import HubAddress

A, B, C = Party(1), Party(2), Party(3)


class Request(Ticket):
    """A request that somebody listens to, or nobody any more."""

    def __init__(self, party: Party, number: int, holder: int, body: Any, deaf: bool) -> None:
        super().__init__(party, number, holder, body)
        self.deaf = deaf
        self.outcome: Any = "waiting"

    def settle(self, value: object) -> bool:
        assert self.outcome == "waiting"
        if not self.deaf:
            self.outcome = value
        return not self.deaf

    def fail(self, error: BaseException) -> None:
        assert self.outcome == "waiting"
        self.outcome = error


class Driver:
    """Asks and tells, with numbers as a connection gives them."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.number = 0

    def ask(
        self, op: Op, party: Party, holder: int = 0, body: Any = (), deaf: bool = False
    ) -> Request:
        self.number += 1
        request = Request(party, self.number, holder, list(body), deaf)
        try:
            self.state.ask(op, request)
        except Exception as error:
            request.fail(error)
        return request

    def tell(self, op: Op, party: Party, holder: int = 0, number: int = 0, body: Any = ()) -> None:
        self.state.tell(op, party, number, holder, list(body))

    def cancel(self, request: Request) -> None:
        self.state.cancel(request.party, request.number)


def outcomes(*requests: Request) -> list[Any]:
    return [request.outcome for request in requests]


# --- locks ----------------------------------------------------------------------------------------


def test_lock_goes_to_whoever_waits_first() -> None:
    lock = Driver(LockState())
    first = lock.ask(Op.ACQUIRE, A)
    second, third = lock.ask(Op.ACQUIRE, B), lock.ask(Op.ACQUIRE, A, holder=1)
    assert outcomes(first, second, third) == [None, "waiting", "waiting"]
    assert lock.state.statistics() == {
        "locked": True, "holder": A.pid, "tasks_waiting": 2, "abandoned_by": None,
    }  # fmt: skip
    lock.tell(Op.RELEASE, A)
    assert outcomes(second, third) == [None, "waiting"]
    lock.tell(Op.RELEASE, B)
    assert third.outcome is None
    lock.tell(Op.RELEASE, A, holder=1)
    assert lock.state.statistics()["locked"] is False


def test_lock_belongs_to_its_holder() -> None:
    lock = Driver(LockState())
    lock.ask(Op.ACQUIRE, A)
    assert isinstance(lock.ask(Op.ACQUIRE, A).outcome, RuntimeError)
    for party, holder in ((A, 1), (B, 0)):
        with pytest.raises(RuntimeError, match="does not hold the lock"):
            lock.tell(Op.RELEASE, party, holder)
    assert isinstance(lock.ask(Op.TRY_ACQUIRE, B).outcome, anyio.WouldBlock)
    lock.tell(Op.RELEASE, A)
    assert lock.ask(Op.TRY_ACQUIRE, B).outcome is None


def test_lock_of_a_dead_process() -> None:
    lock = Driver(LockState())
    lock.ask(Op.ACQUIRE, A)
    waits_too, second, third = (lock.ask(Op.ACQUIRE, party, 1) for party in (A, B, C))
    lock.state.drop(A)
    assert outcomes(waits_too, second, third) == ["waiting", A.pid, "waiting"]
    lock.state.drop(B)  # dies with it, too
    assert third.outcome == B.pid
    lock.tell(Op.RELEASE, C, holder=1)
    assert lock.ask(Op.ACQUIRE, A).outcome is None


def test_who_abandoned_a_lock_is_not_lost_with_a_cancelled_request() -> None:
    lock = Driver(LockState())
    lock.ask(Op.ACQUIRE, A)
    second, third = lock.ask(Op.ACQUIRE, B), lock.ask(Op.ACQUIRE, C)
    lock.state.drop(A)
    assert second.outcome == A.pid
    lock.cancel(second)  # which had been granted
    assert third.outcome == A.pid


def test_cancelled_request_takes_nothing() -> None:
    lock = Driver(LockState())
    first, second, third = (lock.ask(Op.ACQUIRE, party) for party in (A, B, C))
    lock.cancel(second)
    lock.cancel(first)  # which had been granted: whoever made it did not hear of it
    assert outcomes(second, third) == ["waiting", None]
    lock.cancel(first)
    assert lock.state.statistics()["holder"] == C.pid


def test_lock_of_whoever_is_not_there_any_more_goes_on() -> None:
    lock = Driver(LockState())
    lock.ask(Op.ACQUIRE, A)
    lock.ask(Op.ACQUIRE, B, deaf=True)
    third = lock.ask(Op.ACQUIRE, C)
    lock.tell(Op.RELEASE, A)
    assert third.outcome is None


# --- semaphores and limiters ----------------------------------------------------------------------


def test_semaphore_counts() -> None:
    semaphore = Driver(SemaphoreState(2))
    first, second, third = (semaphore.ask(Op.ACQUIRE, A) for _ in range(3))
    assert outcomes(first, second, third) == [None, None, "waiting"]
    semaphore.tell(Op.RELEASE, A)
    assert third.outcome is None
    assert semaphore.state.statistics() == {"value": 0, "acquired": 2, "tasks_waiting": 0}
    semaphore.tell(Op.RELEASE, A)
    semaphore.tell(Op.RELEASE, A)
    semaphore.tell(Op.RELEASE, A)  # one more than was acquired
    assert semaphore.state.statistics() == {"value": 3, "acquired": 0, "tasks_waiting": 0}


def test_tokens_of_a_dead_process_are_given_back_once() -> None:
    semaphore = Driver(SemaphoreState(3))
    for party in (A, A, B):
        semaphore.ask(Op.ACQUIRE, party)
    waiting = semaphore.ask(Op.ACQUIRE, C)
    semaphore.tell(Op.RELEASE, C)  # one of A's: C has none
    assert waiting.outcome is None
    assert semaphore.state.statistics()["acquired"] == 3
    semaphore.state.drop(A)
    assert semaphore.state.statistics() == {"value": 1, "acquired": 2, "tasks_waiting": 0}
    semaphore.state.drop(A)
    assert semaphore.state.statistics()["value"] == 1


def test_semaphore_as_a_signal() -> None:
    semaphore = Driver(SemaphoreState(0))
    waiting = semaphore.ask(Op.ACQUIRE, B)
    semaphore.tell(Op.RELEASE, A)
    assert waiting.outcome is None
    semaphore.tell(Op.RELEASE, A)
    assert semaphore.ask(Op.TRY_ACQUIRE, B).outcome is None
    assert isinstance(semaphore.ask(Op.TRY_ACQUIRE, B).outcome, anyio.WouldBlock)


@pytest.mark.parametrize("releaser", [A, B, C])
def test_released_token_of_which_nobody_has_heard_is_not_lost(releaser: Party) -> None:
    semaphore = Driver(SemaphoreState(0))
    unheard = semaphore.ask(Op.ACQUIRE, A)
    semaphore.tell(Op.RELEASE, releaser)
    assert unheard.outcome is None
    semaphore.tell(Op.RELEASE, releaser)
    semaphore.cancel(unheard)
    assert semaphore.state.statistics() == {"value": 2, "acquired": 0, "tasks_waiting": 0}
    semaphore.cancel(unheard)
    assert semaphore.state.statistics()["value"] == 2


def test_release_was_of_another_token_than_the_cancelled_one() -> None:
    semaphore = Driver(SemaphoreState(3))
    unheard, heard, other = (semaphore.ask(Op.ACQUIRE, party) for party in (A, A, B))
    got(semaphore, heard)
    got(semaphore, other)
    waiting = [semaphore.ask(Op.ACQUIRE, C) for _ in range(3)]
    semaphore.tell(Op.RELEASE, A)
    assert outcomes(*waiting) == [None, "waiting", "waiting"]
    semaphore.cancel(unheard)
    assert outcomes(*waiting) == [None, None, "waiting"]
    semaphore.state.drop(A)  # has none any more
    assert waiting[-1].outcome == "waiting"
    semaphore.state.drop(B)
    assert waiting[-1].outcome is None


@pytest.mark.parametrize("seed", range(20))
def test_no_death_and_no_cancellation_changes_the_number_of_tokens(seed: int) -> None:
    """Whatever is done, by whoever holds a token: what was given and taken adds up."""
    chance = random.Random(seed)
    semaphore = Driver(SemaphoreState(3))
    state: Any = semaphore.state
    parties = [A, B, C]
    requests: list[Request] = []  # of which nobody has heard
    heard = released = given_back_by_deaths = 0
    for _ in range(500):
        match chance.randrange(6):
            case 0 | 1:
                request = semaphore.ask(
                    Op.ACQUIRE, chance.choice(parties), deaf=chance.random() < 0.1
                )
                if not request.deaf:
                    requests.append(request)
            case 2:
                semaphore.tell(Op.RELEASE, chance.choice(parties))
                released += 1
            case 3 if requests:
                semaphore.cancel(requests.pop(chance.randrange(len(requests))))
            case 4 if granted := [request for request in requests if request.outcome is None]:
                request = chance.choice(granted)
                requests.remove(request)
                got(semaphore, request)
                heard += 1
            case 5 if chance.random() < 0.1:
                dead = chance.choice(parties)
                tokens = state.value + len(state.held)
                given_back_by_deaths += sum(key[0] is dead for key in state.held)
                # Those that were released without having been heard of stay so.
                heard += sum(
                    request.party is dead and request.outcome is None for request in requests
                )
                requests = [request for request in requests if request.party is not dead]
                state.drop(dead)
                assert state.value + len(state.held) == tokens
            case _:
                pass
        acquired = heard + sum(request.outcome is None for request in requests)
        found = state.statistics()
        assert found["value"] == 3 + released + given_back_by_deaths - acquired
        assert not (found["value"] and found["tasks_waiting"])
    for request in requests:
        got(semaphore, request)
    assert not state.unheard


def test_limiter() -> None:
    limiter = Driver(LimiterState(1))
    first, second, third = (limiter.ask(Op.ACQUIRE, A, holder) for holder in range(3))
    assert isinstance(limiter.ask(Op.ACQUIRE, A).outcome, RuntimeError)
    limiter.tell(Op.SET_TOTAL, B, body=[json_bytes(2)])
    assert outcomes(first, second, third) == [None, None, "waiting"]
    assert limiter.state.statistics() == {
        "borrowed_tokens": 2, "total_tokens": 2, "borrowers": {"1": 2}, "tasks_waiting": 1,
    }  # fmt: skip
    limiter.tell(Op.SET_TOTAL, B, body=[json_bytes(0)])
    limiter.tell(Op.RELEASE, A, holder=0)
    limiter.tell(Op.RELEASE, A, holder=1)
    assert third.outcome == "waiting"
    limiter.tell(Op.SET_TOTAL, B, body=[json_bytes(float("inf"))])
    assert third.outcome is None
    with pytest.raises(RuntimeError, match="does not hold the limiter"):
        limiter.tell(Op.RELEASE, A, holder=0)
    limiter.state.drop(A)
    assert limiter.state.statistics()["borrowed_tokens"] == 0


# --- events and barriers --------------------------------------------------------------------------


def test_event() -> None:
    event = Driver(EventState())
    first, second = event.ask(Op.WAIT, A), event.ask(Op.WAIT, B)
    event.cancel(second)
    event.state.drop(B)
    assert event.state.statistics() == {"is_set": False, "tasks_waiting": 1}
    event.tell(Op.SET, C)
    assert outcomes(first, second, event.ask(Op.WAIT, A)) == [None, "waiting", None]
    event.state.drop(C)
    assert event.state.statistics()["is_set"] is True


def test_barrier_opens_again_and_again() -> None:
    barrier = Driver(BarrierState(2))
    for _ in range(3):
        requests = [barrier.ask(Op.WAIT, party) for party in (A, B)]
        assert outcomes(*requests) == [0, 1]


def test_party_that_gives_up_does_not_break_the_barrier() -> None:
    barrier = Driver(BarrierState(2))
    first = barrier.ask(Op.WAIT, A)
    barrier.cancel(first)
    second, third = barrier.ask(Op.WAIT, B), barrier.ask(Op.WAIT, C)
    assert outcomes(first, second, third) == ["waiting", 0, 1]
    barrier.cancel(third)  # open by then
    assert barrier.state.statistics() == {"parties": 2, "broken": False, "tasks_waiting": 0}


def test_party_that_dies_breaks_the_barrier() -> None:
    barrier = Driver(BarrierState(3))
    _, second = barrier.ask(Op.WAIT, A), barrier.ask(Op.WAIT, B)
    barrier.state.drop(C)  # did not wait
    assert second.outcome == "waiting"
    barrier.state.drop(A)
    for request in (second, barrier.ask(Op.WAIT, C)):
        assert isinstance(request.outcome, threading.BrokenBarrierError)
        assert "process 1 died" in str(request.outcome)
    assert barrier.state.statistics()["broken"] is True
    barrier.tell(Op.RESET, B)
    assert outcomes(*(barrier.ask(Op.WAIT, A, holder) for holder in range(3))) == [0, 1, 2]


def test_barrier_is_aborted_and_reset() -> None:
    barrier = Driver(BarrierState(2))
    first = barrier.ask(Op.WAIT, A)
    barrier.tell(Op.RESET, B)
    assert "was reset by process 2" in str(first.outcome)
    second = barrier.ask(Op.WAIT, A)
    barrier.tell(Op.ABORT, B)
    for request in (second, barrier.ask(Op.WAIT, C)):
        assert "was aborted by process 2" in str(request.outcome)


# --- queues ---------------------------------------------------------------------------------------


def put(queue: Driver, party: Party, item: bytes, op: Op = Op.PUT) -> Request:
    return queue.ask(op, party, body=[item])


def get(queue: Driver, party: Party, op: Op = Op.GET, deaf: bool = False) -> Request:
    return queue.ask(op, party, deaf=deaf)


def got(queue: Driver, request: Request) -> None:
    queue.tell(Op.GOT, request.party, number=request.number)


def test_queue_is_first_in_first_out() -> None:
    queue = Driver(QueueState(2))
    puts = [put(queue, A, b"%d" % i) for i in range(4)]
    assert outcomes(*puts) == [None, None, "waiting", "waiting"]
    assert isinstance(put(queue, A, b"x", Op.TRY_PUT).outcome, anyio.WouldBlock)
    gets = [get(queue, B) for _ in range(5)]
    assert outcomes(*gets) == [[b"0"], [b"1"], [b"2"], [b"3"], "waiting"]
    assert outcomes(*puts) == [None] * 4
    assert isinstance(get(queue, B, Op.TRY_GET).outcome, anyio.WouldBlock)
    put(queue, A, b"4", Op.TRY_PUT)
    assert gets[-1].outcome == [b"4"]


def test_item_that_nobody_has_heard_of_goes_back_to_the_front() -> None:
    queue = Driver(QueueState(0))
    for i in range(4):
        put(queue, A, b"%d" % i)
    first, second, third = get(queue, B), get(queue, B), get(queue, C)
    got(queue, first)
    queue.state.drop(A)  # whoever put them
    queue.state.drop(B)  # has got the first, but not the second
    assert get(queue, C).outcome == [b"1"]
    queue.cancel(third)
    assert outcomes(get(queue, C), get(queue, C)) == [[b"2"], [b"3"]]
    assert second.outcome == [b"1"]


def test_request_that_is_cancelled_twice_takes_no_item_out() -> None:
    """By the connection, which finds its event loop closed, and by the task that is collected."""
    queue = Driver(QueueState(0))
    first = get(queue, A)
    put(queue, B, b"1")
    queue.cancel(first)
    queue.cancel(first)
    assert get(queue, C).outcome == [b"1"]


def test_item_that_is_being_unpickled() -> None:
    queue = Driver(QueueState(0))
    for i in range(3):
        put(queue, A, b"%d" % i)
    queue.tell(Op.CLOSE, A)
    first, second = get(queue, B), get(queue, B)
    for request in (first, second):
        queue.tell(Op.UNPICKLING, B, number=request.number)
    queue.cancel(first)
    again = get(queue, C)
    assert again.outcome == [b"0"]
    queue.tell(Op.UNPICKLING, C, number=again.number)
    queue.state.drop(B)  # because of the second, perhaps
    third, waiting = get(queue, B), get(queue, B)
    assert outcomes(third, waiting) == [[b"2"], "waiting"]
    got(queue, third)
    assert waiting.outcome == "waiting"  # for what may go back
    got(queue, again)
    assert isinstance(waiting.outcome, anyio.EndOfStream)
    assert queue.state.unpickling == set()


def test_items_go_back_in_order() -> None:
    queue = Driver(QueueState(0))
    for i in range(3):
        put(queue, A, b"%d" % i)
        get(queue, B)
    waiting = get(queue, C)
    queue.state.drop(B)
    assert outcomes(waiting, get(queue, C), get(queue, C)) == [[b"0"], [b"1"], [b"2"]]


def test_item_for_whoever_is_not_there_any_more_goes_to_the_next() -> None:
    queue = Driver(QueueState(0))
    get(queue, A, deaf=True)
    second = get(queue, B)
    put(queue, C, b"item")
    assert second.outcome == [b"item"]
    put(queue, C, b"other")
    assert get(queue, A, Op.TRY_GET, deaf=True).outcome == "waiting"
    assert get(queue, B).outcome == [b"other"]


def test_cancelled_put_takes_its_item_out_again() -> None:
    queue = Driver(QueueState(1))
    first, second, third = (put(queue, A, b"%d" % i) for i in range(3))
    queue.cancel(second)
    queue.cancel(first)  # done, but whoever did it does not know
    assert third.outcome is None
    assert get(queue, B).outcome == [b"2"]
    queue.cancel(third)  # too late
    assert queue.state.statistics() == {
        "maxsize": 1, "qsize": 0, "closed": False, "tasks_waiting_put": 0, "tasks_waiting_get": 0,
    }  # fmt: skip


def test_closed_queue() -> None:
    queue = Driver(QueueState(1))
    first, second = put(queue, A, b"0"), put(queue, A, b"1")
    queue.tell(Op.CLOSE, A)
    queue.tell(Op.CLOSE, B)
    assert first.outcome is None
    for request in (second, put(queue, A, b"2"), put(queue, A, b"2", Op.TRY_PUT)):
        assert isinstance(request.outcome, anyio.ClosedResourceError)
    last, more = get(queue, B), get(queue, C)
    assert last.outcome == [b"0"]
    # The item may come back yet.
    assert more.outcome == "waiting"
    assert isinstance(get(queue, C, Op.TRY_GET).outcome, anyio.WouldBlock)
    queue.cancel(last)
    assert more.outcome == [b"0"]
    waiting = get(queue, A)
    got(queue, more)
    for request in (waiting, get(queue, A), get(queue, A, Op.TRY_GET)):
        assert isinstance(request.outcome, anyio.EndOfStream)


@pytest.mark.parametrize("seed", range(20))
def test_every_item_is_got_once(seed: int) -> None:
    """Whatever is cancelled and whoever dies."""
    chance = random.Random(seed)
    queue = Driver(QueueState(3))
    gets: list[Request] = []
    received: list[bytes] = []
    sent: list[Request] = []
    for number in range(500):
        match chance.randrange(5):
            case 0 | 1:
                sent.append(put(queue, A, b"%d" % number))
            case 2:
                gets.append(get(queue, chance.choice([B, C]), deaf=chance.random() < 0.1))
            case 3 if gets:
                request = gets.pop(chance.randrange(len(gets)))
                if isinstance(request.outcome, list) and chance.random() < 0.2:
                    queue.tell(Op.UNPICKLING, request.party, number=request.number)
                    queue.cancel(request)
                elif isinstance(request.outcome, list):
                    received += request.outcome
                    got(queue, request)
                else:
                    queue.cancel(request)
            case 4 if chance.random() < 0.1:
                dead = chance.choice([B, C])
                queue.state.drop(dead)
                gets = [request for request in gets if request.party is not dead]
            case _:
                pass
    for request in gets:
        queue.cancel(request)
    while isinstance(item := get(queue, B, Op.TRY_GET).outcome, list):
        received += item
    assert sorted(received, key=int) == [request.body[0] for request in sent]


# --- channels -------------------------------------------------------------------------------------


def end(op: Op, channel: Driver, party: Party, *what: Any) -> None:
    channel.tell(op, party, body=[json_bytes(what if len(what) > 1 else what[0])])


def claim(channel: Driver, party: Party, side: str, token: str, number: int) -> None:
    request = channel.ask(Op.CLAIM_END, party, body=[json_bytes([side, token, number])])
    assert request.outcome is None


def test_channel_without_a_buffer() -> None:
    channel = Driver(ChannelState(0, A))
    first = put(channel, A, b"0")
    assert first.outcome == "waiting"
    assert isinstance(put(channel, A, b"1", Op.TRY_PUT).outcome, anyio.WouldBlock)
    assert get(channel, B).outcome == [b"0"]
    assert first.outcome is None
    waiting = get(channel, B)
    assert put(channel, A, b"2", Op.TRY_PUT).outcome is None
    assert waiting.outcome == [b"2"]


def test_channel_whose_last_send_end_is_gone() -> None:
    channel = Driver(ChannelState(2, A))
    end(Op.OPEN_END, channel, B, "send", 7)
    put(channel, A, b"0")
    end(Op.CLOSE_END, channel, A, "send", 0)
    put(channel, B, b"1")
    channel.state.drop(B)
    first, second, third = (get(channel, A) for _ in range(3))
    assert outcomes(first, second, third) == [[b"0"], [b"1"], "waiting"]
    got(channel, first)
    got(channel, second)
    assert isinstance(third.outcome, anyio.EndOfStream)
    assert isinstance(get(channel, A).outcome, anyio.EndOfStream)


def test_channel_whose_last_receive_end_is_gone() -> None:
    channel = Driver(ChannelState(1, A))
    put(channel, A, b"0")
    waiting = put(channel, A, b"1")
    end(Op.OPEN_END, channel, B, "receive", 1)
    end(Op.CLOSE_END, channel, A, "receive", 0)
    assert waiting.outcome == "waiting"
    channel.state.drop(B)
    for request in (waiting, put(channel, A, b"2"), put(channel, A, b"2", Op.TRY_PUT)):
        assert isinstance(request.outcome, anyio.BrokenResourceError)


def test_end_on_its_way_keeps_a_channel_open() -> None:
    channel = Driver(ChannelState(math.inf, A))
    end(Op.HAND_OVER_END, channel, A, "send", "token")
    end(Op.HAND_OVER_END, channel, A, "receive", "other")
    end(Op.CLOSE_END, channel, A, "send", 0)
    end(Op.CLOSE_END, channel, A, "receive", 0)
    claim(channel, B, "send", "token", 3)
    assert put(channel, B, b"0").outcome is None
    assert channel.state.statistics() == {
        "current_buffer_used": 1, "max_buffer_size": math.inf, "open_send_streams": 1,
        "open_receive_streams": 1, "tasks_waiting_send": 0, "tasks_waiting_receive": 0,
    }  # fmt: skip
    end(Op.TAKE_BACK_END, channel, A, "other")  # the process could not be started
    assert isinstance(put(channel, B, b"1").outcome, anyio.BrokenResourceError)


def test_end_is_claimed_before_it_is_known_to_be_handed_over() -> None:
    channel = Driver(ChannelState(1, A))
    claim(channel, B, "send", "token", 1)
    end(Op.HAND_OVER_END, channel, A, "send", "token")
    end(Op.CLOSE_END, channel, A, "send", 0)
    assert channel.state.open_ends("send") == 1
    end(Op.TAKE_BACK_END, channel, A, "token")
    assert channel.state.open_ends("send") == 1
    end(Op.CLOSE_END, channel, B, "send", 1)
    assert channel.state.open_ends("send") == 0


def test_end_of_a_dead_process_can_be_claimed_by_the_next() -> None:
    channel = Driver(ChannelState(1, A))
    end(Op.HAND_OVER_END, channel, A, "send", "token")
    end(Op.CLOSE_END, channel, A, "send", 0)
    claim(channel, B, "send", "token", 1)
    channel.state.drop(B)
    waiting = get(channel, A)
    assert waiting.outcome == "waiting"
    claim(channel, C, "send", "token", 1)
    channel.state.drop(C)
    assert waiting.outcome == "waiting"
    end(Op.TAKE_BACK_END, channel, A, "token")
    assert isinstance(waiting.outcome, anyio.EndOfStream)


def test_end_on_its_way_goes_with_whoever_has_handed_it_over() -> None:
    unused: list[State] = []
    channel = Driver(ChannelState(1, A, unused.append))
    end(Op.OPEN_END, channel, B, "send", 1)
    end(Op.HAND_OVER_END, channel, B, "send", "token")
    end(Op.CLOSE_END, channel, B, "send", 1)
    end(Op.CLOSE_END, channel, A, "send", 0)
    waiting = get(channel, A)
    claim(channel, C, "send", "other", 1)
    end(Op.HAND_OVER_END, channel, B, "send", "other")
    channel.state.drop(B)
    assert waiting.outcome == "waiting"
    channel.state.drop(C)
    assert isinstance(waiting.outcome, anyio.EndOfStream)
    assert not unused
    end(Op.CLOSE_END, channel, A, "receive", 0)
    assert unused == [channel.state]


def test_item_of_a_dead_receiver_goes_to_the_others() -> None:
    channel = Driver(ChannelState(1, A))
    end(Op.OPEN_END, channel, B, "receive", 1)
    put(channel, A, b"0")
    assert get(channel, B).outcome == [b"0"]
    waiting = get(channel, A)
    channel.state.drop(B)
    assert waiting.outcome == [b"0"]


# --- all of them ----------------------------------------------------------------------------------

STATES: dict[str, Callable[[], State]] = {
    "lock": LockState,
    "semaphore": lambda: SemaphoreState(0),
    "limiter": lambda: LimiterState(0),
    "event": EventState,
    "barrier": lambda: BarrierState(3),
    "queue": lambda: QueueState(0),
    "channel": lambda: ChannelState(0, A),
}


@pytest.mark.parametrize("make", STATES.values(), ids=STATES)
def test_end(make: Callable[[], State]) -> None:
    driver = Driver(make())
    ops = (Op.ACQUIRE, Op.WAIT, Op.GET)
    waiting = [driver.ask(op, A, holder) for op in ops for holder in range(2)]
    waiting = [request for request in waiting if request.outcome == "waiting"]
    assert waiting
    driver.state.end(lambda: anyio.BrokenResourceError("gone"))
    driver.state.end(lambda: anyio.BrokenResourceError("again"))
    for request in (*waiting, driver.ask(Op.STATISTICS, A)):
        assert str(request.outcome) == "gone"
    with pytest.raises(anyio.BrokenResourceError, match="gone"):
        driver.tell(Op.RELEASE, A)


@pytest.mark.parametrize("make", STATES.values(), ids=STATES)
def test_what_a_state_does_not_know(make: Callable[[], State]) -> None:
    driver = Driver(make())
    unknown = 0
    for op in Op:
        if op < Op.RELEASE:
            outcome = driver.ask(op, A, body=[b"[1, 1]"]).outcome
        elif op < Op.OPEN_END:
            try:
                driver.tell(op, A, body=[b"1"])
            except RuntimeError as error:
                outcome = error
            else:
                outcome = None
        else:
            continue
        unknown += "knows no" in str(outcome)
    assert unknown >= 5


# --- the protocol ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
def test_messages_come_in_pieces(size: int) -> None:
    bodies = [b"", b"x", b"y" * 1000, b"", b"z" * 70_000]
    stream = b"".join(
        b"".join(bytes(piece) for piece in pack_request(Op.PUT, 1, i, 3, [body] if body else []))
        for i, body in enumerate(bodies)
    )
    reader = MessageReader(REQUEST)
    found = [
        (fields, b"".join(body))
        for start in range(0, len(stream), size)
        for fields, body in reader.feed(stream[start : start + size])
    ]
    assert [body for _, body in found] == bodies
    assert [fields[:4] for fields, _ in found] == [(Op.PUT, 1, i, 3) for i in range(5)]


@pytest.mark.parametrize("value", [None, 0, 5, True, {"a": [1, None]}, [b"item", b"pieces"]])
def test_answers(value: Any) -> None:
    ((kind, number, _), body), *others = MessageReader(ANSWER).feed(b"".join(pack_answer(7, value)))
    assert not others
    assert number == 7
    answer = unpack_answer(kind, body)
    assert b"".join(answer) == b"itempieces" if isinstance(value, list) else answer == value


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("why"),
        threading.BrokenBarrierError("why"),
        anyio.WouldBlock(),
        anyio.EndOfStream(),
        anyio.ClosedResourceError(),
        anyio.BrokenResourceError("why"),
    ],
    ids=repr,
)
def test_errors(error: Exception) -> None:
    (((kind, _, _), body),) = MessageReader(ANSWER).feed(b"".join(pack_error(7, error)))
    with pytest.raises(type(error)) as caught:
        unpack_answer(kind, body)
    assert str(caught.value) == str(error)


def test_both_sides_show_that_they_know_the_secret() -> None:
    ref = HubRef(HubAddress(b"", 1), b"secret", 1)
    hello, expected = make_hello(ref, 4711)
    assert len(hello) == HELLO.size
    pid, welcome = read_hello(hello, b"secret")
    assert (pid, len(welcome)) == (4711, WELCOME.size)
    check_welcome(welcome, expected)
    assert b"secret" not in hello + welcome
    with pytest.raises(BadMessageError):
        read_hello(hello, b"other")
    with pytest.raises(BadMessageError):
        read_hello(b"x" * HELLO.size, b"secret")
    with pytest.raises(BadMessageError):
        check_welcome(read_hello(make_hello(ref, 4711)[0], b"secret")[1], expected)
    # What one side has shown does not serve the other.
    nonce, proof = struct.unpack_from("8x16s32s", hello)
    with pytest.raises(BadMessageError):
        check_welcome(WELCOME.pack(b"creche/1", proof), expected)
    del nonce
