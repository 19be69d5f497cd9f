"""What a pool is made of, without processes: messages, payloads, chunks, inputs, options."""

from __future__ import annotations

import itertools
import math
import pickle
import socket
import types
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st

import creche
from creche._loop_poller import loop_poller
from creche._loops import current_loop
from creche._pool import _map_input
from creche._pool._answers import Unbegun
from creche._pool._calls import CallState, PoolCall, what_runs
from creche._pool._chunk_size import CHUNK_SECONDS, ChunkSize
from creche._pool._chunks import Chunk, Part
from creche._pool._deadlines import Deadlines
from creche._pool._map_input import MapInput
from creche._pool._options import PoolOptions, check_options
from creche._pool._outcomes import ItemOutcome
from creche._wire._framing import BadFrameError, FrameKind
from creche._wire._messages import (
    ALIGNMENT,
    BUFFERS,
    CALL_HEADER_BYTES,
    INLINE_BYTES,
    LAST,
    AnswerReader,
    lengths_in,
    offsets_of,
    pack_answer,
    pack_call,
    sections_of,
    size_of,
    table_of,
    unpack_call,
)
from creche._wire._outcomes import Failure, Value
from creche._wire._payloads import TooHeavyError, dump, load, loader

RELAXED = settings(max_examples=50)

# --- messages -----------------------------------------------------------------------------------

messages = st.lists(
    st.tuples(
        st.sampled_from(FrameKind),
        st.integers(0, 31),
        st.floats(0, 1000, width=32),
        st.integers(0, 1 << 31),
        st.binary(max_size=60),
    ),
    max_size=6,
)


def joined(payload: Any) -> bytes:
    return b"".join(payload) if isinstance(payload, list) else bytes(payload)


def stream_of(sent: list[Any]) -> bytes:
    return b"".join(
        pack_answer(kind, flags, seconds, len(payload), items) + payload
        for kind, flags, seconds, items, payload in sent
    )


def received(reader: AnswerReader, data: bytes) -> list[Any]:
    return [(*message[:4], joined(message[4])) for message in reader.feed(data)]


@RELAXED
@given(messages)
def test_answers_survive_every_splitting_in_two(sent: list[Any]) -> None:
    stream = stream_of(sent)
    for cut in range(len(stream) + 1):
        reader = AnswerReader()
        assert received(reader, stream[:cut]) + received(reader, stream[cut:]) == sent
        assert not reader.in_message


@RELAXED
@given(messages, st.randoms(use_true_random=False))
def test_answers_survive_any_splitting(sent: list[Any], random: Any) -> None:
    stream = stream_of(sent)
    reader = AnswerReader()
    got: list[Any] = []
    while stream:
        size = random.randint(1, 30)
        got += received(reader, stream[:size])
        stream = stream[size:]
    assert got == sent
    assert not reader.in_message


@RELAXED
@given(messages)
def test_answers_survive_byte_by_byte(sent: list[Any]) -> None:
    stream = stream_of(sent)
    reader = AnswerReader()
    got: list[Any] = []
    for index in range(len(stream)):
        got += received(reader, stream[index : index + 1])
    assert got == sent


@RELAXED
@given(messages.filter(bool))
def test_answers_that_are_cut_off(sent: list[Any]) -> None:
    stream = stream_of(sent)
    starts = list(itertools.accumulate((len(stream_of([one])) for one in sent), initial=0))
    for end in range(len(stream)):
        reader = AnswerReader()
        complete = received(reader, stream[:end])
        assert complete == sent[: len(complete)]
        assert reader.in_message == (end not in starts)


@RELAXED
@given(st.binary(min_size=20).filter(lambda data: not data.startswith(b"rc")))
def test_garbage_is_no_answer(data: bytes) -> None:
    with pytest.raises(BadFrameError):
        AnswerReader().feed(data)


@RELAXED
@given(messages, st.binary(min_size=20).filter(lambda data: not data.startswith(b"rc")))
def test_garbage_after_answers(sent: list[Any], data: bytes) -> None:
    reader = AnswerReader()
    with pytest.raises(BadFrameError):
        reader.feed(stream_of(sent) + data)


def test_impossible_answers() -> None:
    for header in (
        pack_answer(0, 0, 0.0, 1),
        pack_answer(200, 0, 0.0, 1),
        pack_answer(FrameKind.VALUE, 0, 0.0, 1 << 62),
    ):
        with pytest.raises(BadFrameError):
            AnswerReader().feed(header + b"x")


@RELAXED
@given(st.binary(max_size=300))
def test_anything_at_all_is_understood_or_refused(data: bytes) -> None:
    reader = AnswerReader()
    try:
        reader.feed(data)
    except BadFrameError:
        assert len(data) >= 20
    else:
        assert reader.in_message == bool(data) or data.startswith(b"rc")


def test_large_answers_are_not_copied_together() -> None:
    data = bytes(100_000)
    stream = pack_answer(FrameKind.VALUE, LAST, 0.5, 3 * len(data))
    reader = AnswerReader()
    assert reader.feed(stream) == []
    assert reader.feed(data) == []
    assert reader.feed(data) == []
    ((kind, flags, seconds, items, payload),) = reader.feed(data + b"rc")
    assert (kind, flags, seconds, items) == (FrameKind.VALUE, LAST, 0.5, 1)
    assert isinstance(payload, list)
    assert any(piece is data for piece in payload)
    assert joined(payload) == 3 * data
    assert reader.in_message


@RELAXED
@given(
    st.sampled_from(FrameKind),
    st.integers(0, 31),
    st.integers(0, 1 << 31),
    st.integers(0, 1 << 40),
)
def test_calls(kind: FrameKind, flags: int, number: int, size: int) -> None:
    header = pack_call(kind, flags, number, size)
    assert len(header) == CALL_HEADER_BYTES
    assert unpack_call(memoryview(header + b"payload")) == (kind, flags, number, size)


def test_garbage_is_no_call() -> None:
    with pytest.raises(BadFrameError):
        unpack_call(b"x" * CALL_HEADER_BYTES)


sections = st.lists(st.lists(st.binary(max_size=20), max_size=4), min_size=1, max_size=5)


@RELAXED
@given(sections, st.randoms(use_true_random=False))
def test_sections_survive_any_splitting(original: list[Any], random: Any) -> None:
    data = table_of(original) + b"".join(map(joined, original))
    expected = [joined(section) for section in original]
    assert [joined(section) for section in sections_of(data, BUFFERS)] == expected
    pieces: list[Any] = []
    rest = data
    while rest:
        size = random.randint(1, 10)
        pieces.append(rest[:size])
        rest = rest[size:]
    assert [joined(section) for section in sections_of(pieces, BUFFERS)] == expected
    lengths, _ = lengths_in(data)
    assert lengths == [len(section) for section in expected]


@RELAXED
@given(st.lists(st.integers(0, 10_000), min_size=1))
def test_offsets(lengths: list[int]) -> None:
    offsets = offsets_of(lengths)
    assert len(offsets) == len(lengths) + 1
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    for start, length, end in zip(offsets, lengths, offsets[1:], strict=False):
        assert start + length <= end < start + length + ALIGNMENT


def test_size_is_in_bytes() -> None:
    assert size_of([b"abc", bytearray(2), memoryview(np.zeros(3))]) == 3 + 2 + 24


# --- payloads -----------------------------------------------------------------------------------

plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


class Reversing:
    def dumps(self, obj: Any) -> bytes:
        return pickle.dumps(obj)[::-1]

    def loads(self, data: bytes) -> Any:
        assert type(data) is bytes
        return pickle.loads(data[::-1])


@RELAXED
@given(plain_data)
def test_payloads(data: object) -> None:
    assert load(dump(data, None).sections, None) == data
    assert load(dump(data, None, light=True).sections, None) == data
    assert load(dump(data, Reversing()).sections, Reversing()) == data
    (section,) = dump(data, None).sections
    assert loader(None)(joined(section)) == data
    (section,) = dump(data, Reversing()).sections
    assert loader(Reversing())(joined(section)) == data
    assert loader(Reversing())(memoryview(joined(section))) == data


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 300_000, 3_000_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_large_payloads(size: int, kind: Any) -> None:
    data = {"a": kind(b"x" * size), "b": [1, kind(b"y" * size)]}
    for serializer in (None, Reversing()):
        assert load(dump(data, serializer).sections, serializer) == data


def test_large_payloads_are_not_copied() -> None:
    data, array = b"x" * 1_000_000, np.arange(1_000_000)
    payload = dump([1, data, array], None, light=True)
    assert not payload.heavy
    assert any(piece is data for piece in payload.sections[0])
    assert np.shares_memory(np.frombuffer(payload.sections[1][0], array.dtype), array)
    copy = [[bytearray(joined(section))] for section in payload.sections]
    result = load(copy, None)  # type: ignore[arg-type]
    assert np.array_equal(result[2], array)
    assert result[2].flags.writeable


def test_heavy_payloads() -> None:
    heavy = support.many_objects(100_000)
    with pytest.raises(TooHeavyError):
        dump(heavy, None, light=True)
    payload = dump(heavy, None)
    assert payload.heavy
    assert load(payload.sections, None) == heavy
    # How long a serializer of the application's takes, nobody knows.
    with pytest.raises(TooHeavyError):
        dump(1, Reversing(), light=True)
    assert dump(1, Reversing()).heavy


def test_errors_of_pickling_pass() -> None:
    for light in (False, True):
        with pytest.raises((pickle.PicklingError, AttributeError)):
            dump(lambda: None, None, light=light)
    with pytest.raises(RuntimeError, match="not in here"):
        load(dump(support.RefusesUnpickling(), None).sections, None)


def test_call_as_a_message() -> None:
    def message_of(obj: object) -> tuple[tuple[int, int, int, int], bytes] | None:
        call = PoolCall(dump(obj, None), None, lambda: None)
        message = call.message()
        if message is None:
            return None
        return unpack_call(message), message[CALL_HEADER_BYTES:]

    small = message_of((len, ("abc",)))
    assert small is not None
    assert small[0] == (FrameKind.CALL, 0, 0, len(small[1]))
    assert pickle.loads(small[1]) == (len, ("abc",))
    with_buffer = message_of(np.arange(10))
    assert with_buffer is not None
    assert with_buffer[0] == (FrameKind.CALL, BUFFERS, 0, len(with_buffer[1]))
    assert np.array_equal(load(sections_of(with_buffer[1], BUFFERS), None), np.arange(10))
    assert message_of(bytes(INLINE_BYTES)) is None
    assert message_of(np.zeros(INLINE_BYTES)) is None


def test_first_word_about_a_call_counts() -> None:
    told: list[Any] = []
    call = PoolCall(dump(1, None), None, lambda: told.append(call.outcome))
    call.finish(Value(1))
    call.fail(ValueError())
    call.deliver(0, True, 0.0, Value(2))
    assert told == [Value(1)]
    assert call.done


def test_what_tells_functions_from_others() -> None:
    import functools

    def function() -> None: ...

    class Methods:
        def one(self) -> None: ...
        def two(self) -> None: ...
        def __call__(self) -> None: ...

    assert what_runs(function) == what_runs(functools.partial(functools.partial(function)))
    assert what_runs(Methods().one) == what_runs(Methods().one)
    assert what_runs(Methods().one) != what_runs(Methods().two)
    assert what_runs(Methods()) == what_runs(Methods())
    assert what_runs(len) == what_runs(len) != what_runs(sum)
    assert what_runs(int) != what_runs(str)
    hash((what_runs(function), what_runs(Methods()), what_runs(len), what_runs(int)))


# --- the size of chunks -------------------------------------------------------------------------


def test_chunks_of_fixed_size() -> None:
    sizes = ChunkSize(7)
    assert sizes.next() == 7
    assert sizes.budget == math.inf
    sizes.sent(7, 10_000_000)
    sizes.answered(7, 100.0)
    assert sizes.next() == 7


def grow(sizes: ChunkSize, seconds: float, size: int = 10, rounds: int = 20) -> list[int]:
    taken = []
    for _ in range(rounds):
        number = sizes.next()
        taken.append(number)
        sizes.sent(number, number * size)
        sizes.answered(number, number * seconds)
    return taken


def test_chunks_of_tiny_items_grow() -> None:
    taken = grow(ChunkSize(None), 1e-7)
    assert taken[0] == 1
    assert all(after <= 8 * before for before, after in itertools.pairwise(taken))
    assert taken[-1] >= 1000
    assert grow(ChunkSize(None), 0.0)[-1] >= 1000


def test_slow_items_travel_alone() -> None:
    assert set(grow(ChunkSize(None), 0.1)) == {1}
    assert set(grow(ChunkSize(None), CHUNK_SECONDS)) == {1}


def test_items_in_between() -> None:
    taken = grow(ChunkSize(None), CHUNK_SECONDS / 10)
    assert 8 <= taken[-1] <= 10


def test_items_that_become_slow() -> None:
    sizes = ChunkSize(None)
    assert grow(sizes, 1e-7)[-1] > 100
    sizes.answered(1, 0.1)
    assert sizes.next() == 1
    assert grow(sizes, 1e-7, rounds=100)[-1] > 100  # and fast again


def test_large_items_travel_alone() -> None:
    assert grow(ChunkSize(None), 1e-7, size=1_000_000)[-1] == 1
    taken = grow(ChunkSize(None), 1e-7, size=1000)
    assert taken[-1] * 1000 <= 512 * 1024
    assert taken[-1] > 50


@RELAXED
@given(
    st.lists(
        st.tuples(st.integers(1, 10_000), st.floats(0, 1e6), st.integers(0, 1 << 40)), max_size=30
    )
)
def test_size_of_chunks_is_always_sensible(history: list[Any]) -> None:
    sizes = ChunkSize(None)
    for items, seconds, size in history:
        sizes.sent(items, size)
        sizes.answered(items, seconds)
        assert 1 <= sizes.next() <= 10_000
        assert sizes.seconds(sizes.next()) >= 0
        assert 0 < sizes.budget < 1


# --- chunks -------------------------------------------------------------------------------------


class Owner:
    """A map that only keeps account."""

    def __init__(self, timeout: float | None = None) -> None:
        self.timeout = timeout
        self.outcomes: dict[int, Any] = {}
        self.given_back: list[tuple[int, Sequence[Any], bool]] = []
        self.ended: list[Chunk] = []
        self.sent: list[Chunk] = []
        self.broken: list[BaseException] = []
        self.seconds = 0.0
        self.deaths = 0

    def add_part(self, part: Part, seconds: float) -> None:
        self.seconds += seconds
        outcomes = list(part.give_out(yields_errors=True))
        assert len(outcomes) == len(part)
        for index, outcome in enumerate(outcomes, part.start):
            assert outcome.index == index
            assert index not in self.outcomes
            self.outcomes[index] = outcome

    def give_back(self, start: int, items: Sequence[Any], *, alone: bool) -> None:
        self.given_back.append((start, items, alone))

    def chunk_sent(self, chunk: Chunk) -> None:
        self.sent.append(chunk)

    def chunk_died(self) -> None:
        self.deaths += 1

    def chunk_ended(self, chunk: Chunk) -> None:
        self.ended.append(chunk)

    def break_off(self, error: BaseException) -> None:
        self.broken.append(error)

    def check_complete(self, chunk: Chunk, items: str) -> None:
        """Each item has an outcome or was given back, and the chunk has ended once."""
        indices = list(self.outcomes)
        for start, back, _ in self.given_back:
            assert back == list(items[start - 10 : start - 10 + len(back)])
            indices += range(start, start + len(back))
        assert sorted(indices) == list(range(10, 10 + len(items)))
        assert self.ended == [chunk]
        assert chunk.state is CallState.DONE
        for index, outcome in self.outcomes.items():
            assert outcome.item == items[index - 10]


ITEMS = "abcdef"


def make_chunk(owner: Owner) -> Chunk:
    chunk = Chunk(owner, 10, list(ITEMS))
    chunk.state = CallState.SENT
    return chunk


def test_chunk_with_all_of_its_values() -> None:
    owner = Owner()
    chunk = make_chunk(owner)
    chunk.deliver(0, True, 0.5, Value(list("ABCDEF")))
    owner.check_complete(chunk, ITEMS)
    assert [outcome.value for outcome in owner.outcomes.values()] == list("ABCDEF")
    assert owner.seconds == 0.5


def test_answers_in_any_order() -> None:
    answers: list[tuple[int, bool, Any]] = [
        (0, False, Value(["A", "B"])),
        (1, False, Failure(LookupError("c"))),
        (2, False, Value(["D"])),
        (3, True, Value(["E", "F"])),
    ]
    for order in itertools.permutations(answers):
        owner = Owner()
        chunk = make_chunk(owner)
        for number, last, outcome in order:
            chunk.deliver(number, last, 0.1, outcome)
        owner.check_complete(chunk, ITEMS)
        assert isinstance(owner.outcomes[12].exception, LookupError)
        assert [owner.outcomes[i].value for i in (10, 11, 13, 14, 15)] == list("ABDEF")


def test_chunk_of_which_the_rest_is_given_back() -> None:
    owner = Owner()
    chunk = make_chunk(owner)
    chunk.deliver(0, True, 0.1, Value(["A", "B"]))
    owner.check_complete(chunk, ITEMS)
    assert owner.given_back == [(12, list("cdef"), False)]


def test_chunk_that_cannot_be_unpickled_is_taken_apart() -> None:
    owner = Owner()
    chunk = make_chunk(owner)
    chunk.deliver(0, True, 0.0, Unbegun(ValueError()))
    owner.check_complete(chunk, ITEMS)
    assert owner.given_back == [(10, list(ITEMS), True)]
    owner = Owner()
    chunk = Chunk(owner, 10, ["a"])
    chunk.deliver(0, True, 0.0, Unbegun(ValueError("x")))
    owner.check_complete(chunk, "a")
    assert isinstance(owner.outcomes[10].exception, ValueError)


@pytest.mark.parametrize("begun", range(7))
@pytest.mark.parametrize("answered", range(6))
def test_death_of_the_worker(answered: int, begun: int) -> None:
    if begun and begun <= answered:
        return  # it has answered for what it had begun
    if not begun and answered:
        return
    owner = Owner()
    chunk = make_chunk(owner)
    if answered:
        chunk.answers = 1
        chunk.deliver(0, False, 0.1, Value(list(ITEMS[:answered].upper())))
    chunk.died(creche.ProcessDied(-9, name="w", pid=1), begun)
    owner.check_complete(chunk, ITEMS)
    for index in range(answered):
        assert owner.outcomes[10 + index].value == ITEMS[index].upper()
    for index in range(answered, begun):
        error = owner.outcomes[10 + index].exception
        assert isinstance(error, creche.ProcessDied)
        if index + 1 < begun:
            assert f"item {10 + begun - 1} ended the process" in str(error)
    assert len(owner.outcomes) == max(answered, begun)
    if not begun:
        assert owner.given_back == [(10, list(ITEMS), True)]
    elif begun < len(ITEMS):
        assert owner.given_back == [(10 + begun, list(ITEMS[begun:]), False)]


def test_death_while_answers_are_being_unpickled() -> None:
    owner = Owner()
    chunk = make_chunk(owner)
    chunk.answers = 1  # came, and is in a thread
    chunk.died(creche.ProcessDied(-9), 4)
    assert owner.outcomes == {}
    assert owner.ended == []
    chunk.deliver(0, False, 0.1, Value(["A", "B"]))
    owner.check_complete(chunk, ITEMS)
    assert sorted(owner.outcomes) == [10, 11, 12, 13]


def test_chunk_that_times_out() -> None:
    owner = Owner(timeout=2.0)
    chunk = Chunk(owner, 10, ["a"])
    assert chunk.ahead_seconds == 0
    chunk.time_out()
    owner.check_complete(chunk, "a")
    error = owner.outcomes[10].exception
    assert isinstance(error, creche.ProcessTimeout)
    assert str(error) == "item 10 of a map was stopped after its timeout of 2 seconds"


def test_chunk_that_nothing_will_run() -> None:
    owner = Owner()
    chunk = make_chunk(owner)
    chunk.fail(creche.ProcessClosedError("closed"))
    chunk.fail(creche.ProcessClosedError("closed"))
    assert len(owner.broken) == 1
    assert owner.outcomes == {}
    chunk.deliver(0, True, 0.0, Value(list("ABCDEF")))  # too late
    assert owner.outcomes == {}


def test_parts() -> None:
    part = Part(3, ["a", "b"], [1, 2])
    assert list(part.give_out(yields_errors=False)) == [1, 2]
    outcomes = list(part.give_out(yields_errors=True))
    assert outcomes == [ItemOutcome(3, "a", None, 1), ItemOutcome(4, "b", None, 2)]
    failed = Part(3, ["a"], None, LookupError("x"))
    (outcome,) = failed.give_out(yields_errors=True)
    assert isinstance(outcome.exception, LookupError)
    with pytest.raises(LookupError) as caught:
        failed.give_out(yields_errors=False)
    assert caught.value.__notes__ == ["This was item 3 of the map: 'a'"]


def test_item_with_a_repr_that_raises() -> None:
    class Unprintable:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(LookupError) as caught:
        Part(0, [Unprintable()], None, LookupError()).give_out(yields_errors=False)
    assert "an object of type" in caught.value.__notes__[0]


def test_item_outcomes() -> None:
    good = ItemOutcome(1, "a", None, 5)
    assert good.value == 5
    bad = ItemOutcome(1, "a", LookupError("x"), None)
    with pytest.raises(LookupError, match="x"):
        _ = bad.value
    assert pickle.loads(pickle.dumps(good)) == good
    with pytest.raises(AttributeError):
        good.index = 2  # type: ignore[misc]


# --- deadlines ------------------------------------------------------------------------------------


def deadlines_of(on_due: Callable[[str], object]) -> tuple[Deadlines[str], list[Any]]:
    timers: list[Any] = []
    deadlines: Deadlines[str]
    deadlines = Deadlines(0.0, lambda _seconds, method: timers.append(method), on_due)
    return deadlines, timers


def test_one_that_is_due_ends_another() -> None:
    due: list[str] = []

    def on_due(what: str) -> None:
        due.append(what)
        deadlines.discard("b")

    deadlines, timers = deadlines_of(on_due)
    for what in "abc":
        deadlines.add(what)
    (check,) = timers
    check()
    assert due == ["a", "c"]


def test_one_that_is_counted_anew_is_the_last() -> None:
    due: list[str] = []
    deadlines, timers = deadlines_of(due.append)
    for what in "aba":
        deadlines.add(what)
    (check,) = timers
    check()
    assert due == ["b", "a"]


# --- the input ----------------------------------------------------------------------------------


class Reader:
    """Takes from a map's input what there is room for."""

    def __init__(self, *iterables: Any, room: int = 1_000_000) -> None:
        self.left = room
        self.changes = 0
        self.changed = anyio.Event()
        self.input = MapInput(current_loop(), iterables, self.room, self.on_change)

    def room(self) -> int:
        return self.left - self.input.buffered

    def on_change(self) -> None:
        self.changes += 1
        self.changed.set()

    def take(self, size: int) -> Sequence[Any]:
        items = self.input.take(size)
        self.left -= len(items)
        self.input.tell_room()
        return items

    async def take_all(self) -> list[Any]:
        items: list[Any] = []
        with anyio.fail_after(support.TIMEOUT):
            while not self.input.exhausted:
                self.changed = anyio.Event()
                taken = self.take(100)
                items += taken
                if not taken and not self.input.exhausted:
                    await self.changed.wait()
        return items


async def in_async(items: Any, error: Exception | None = None) -> AsyncIterator[Any]:
    for item in items:
        await anyio.lowlevel.checkpoint()
        yield item
    if error is not None:
        raise error


def in_plain(items: Any, error: Exception | None = None) -> Iterator[Any]:
    yield from items
    if error is not None:
        raise error


@pytest.mark.anyio
async def test_inputs() -> None:
    for size in (0, 1, 99, 100, 101, 1000):
        expected = list(range(size))
        assert await Reader(expected).take_all() == expected
        assert await Reader(in_plain(expected)).take_all() == expected
        assert await Reader(in_async(expected)).take_all() == expected
        pairs = [(i, i) for i in expected]
        assert await Reader(expected, itertools.count()).take_all() == pairs
        assert await Reader(in_async(expected), expected).take_all() == pairs
        assert await Reader(range(size)).take_all() == expected
        assert await Reader(range(size - 1, -1, -1)).take_all() == expected[::-1]


@pytest.mark.anyio
async def test_something_is_taken_however_late_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this process has to wait for a CPU between two looks at the clock, too."""
    seconds = itertools.count()
    clock = types.SimpleNamespace(perf_counter=lambda: next(seconds))
    monkeypatch.setattr(_map_input, "time", clock)
    reader = Reader(list(range(200)))
    assert reader.take(1) == [0]
    assert 0 < len(reader.take(150)) < 150
    assert (await reader.take_all())[-1] == 199


@pytest.mark.anyio
async def test_ranges_are_taken_in_slices() -> None:
    reader = Reader(range(10, 0, -2))
    assert [reader.take(3) for _ in range(2)] == [range(10, 4, -2), range(4, 0, -2)]
    assert reader.input.exhausted
    assert list(reader.take(3)) == []
    assert reader.input.error is None
    stopped = Reader(range(10))
    assert stopped.take(1) == range(1)
    stopped.input.stop()
    assert list(stopped.take(1)) == []
    assert 0 < len(Reader(range(10**30)).take(10**20)) < 10**6
    assert Reader(range(10), range(10)).take(2) == [(0, 0), (1, 1)]


@pytest.mark.anyio
async def test_totals() -> None:
    assert Reader([1, 2, 3]).input.total == 3
    assert Reader([1, 2, 3], "ab").input.total == 2
    assert Reader([1, 2, 3], itertools.count()).input.total is None
    assert Reader(iter([1])).input.total is None
    assert Reader(range(10, 0, -3)).input.total == 4
    assert Reader(range(10**30)).input.total is None
    reader = Reader(in_async([1]))
    assert reader.input.total is None
    assert await reader.take_all() == [1]


@pytest.mark.anyio
@pytest.mark.parametrize("wrap", [in_plain, in_async])
@pytest.mark.parametrize("size", [0, 1, 70, 500])
async def test_input_that_raises(wrap: Any, size: int) -> None:
    reader = Reader(wrap(range(size), LookupError("no more")))
    assert await reader.take_all() == list(range(size))
    assert isinstance(reader.input.error, LookupError)


@pytest.mark.anyio
async def test_async_input_is_read_only_as_far_as_there_is_room() -> None:
    given = 0

    class Numbers:
        def __aiter__(self) -> AsyncIterator[int]:
            return self

        async def __anext__(self) -> int:
            nonlocal given
            given += 1
            await anyio.lowlevel.checkpoint()
            return given - 1

    reader = Reader(Numbers(), room=5)
    await anyio.wait_all_tasks_blocked()
    assert (given, reader.input.buffered) == (5, 5)
    assert reader.take(3) == [0, 1, 2]
    await anyio.wait_all_tasks_blocked()
    assert given == 5
    reader.left += 3
    reader.input.tell_room()
    await anyio.wait_all_tasks_blocked()
    assert (given, reader.input.buffered) == (8, 5)
    assert reader.take(100) == [3, 4, 5, 6, 7]
    reader.input.stop()
    await reader.input.wait_stopped()
    assert reader.input.exhausted
    assert reader.take(100) == []
    assert given == 8


@pytest.mark.anyio
async def test_plain_input_is_read_only_as_asked() -> None:
    given: list[int] = []
    source = (given.append(number) or number for number in itertools.count())  # type: ignore[func-returns-value]
    reader = Reader(source)
    assert given == []
    assert reader.take(5) == [0, 1, 2, 3, 4]
    assert given == [0, 1, 2, 3, 4]
    assert reader.take(1) == [5]
    reader.input.stop()
    assert reader.input.exhausted
    assert reader.take(5) == []
    assert len(given) == 6


@pytest.mark.anyio
async def test_stopping_an_async_input_that_waits() -> None:
    cleaned_up = False

    class Never:
        def __aiter__(self) -> AsyncIterator[int]:
            return self

        async def __anext__(self) -> int:
            nonlocal cleaned_up
            try:
                await anyio.sleep_forever()
            finally:
                cleaned_up = True
            raise AssertionError

    reader = Reader(Never())
    await anyio.wait_all_tasks_blocked()
    reader.input.stop()
    with anyio.fail_after(support.TIMEOUT):
        await reader.input.wait_stopped()
    assert cleaned_up
    assert reader.input.error is None


@pytest.mark.anyio
async def test_stopping_an_async_generator_that_is_not_at_its_end() -> None:
    """It is closed in the task that has read it: cancel scopes in it stay in order."""
    closed = 0

    async def generate() -> AsyncIterator[int]:
        nonlocal closed
        try:
            async with anyio.create_task_group():
                for number in itertools.count():
                    await anyio.lowlevel.checkpoint()
                    yield number
        finally:
            closed += 1

    for room in (1, 10):
        reader = Reader(generate(), room=room)
        await anyio.wait_all_tasks_blocked()
        reader.input.stop()
        with anyio.fail_after(support.TIMEOUT):
            await reader.input.wait_stopped()
    assert closed == 2


@pytest.mark.anyio
async def test_no_iterable() -> None:
    with pytest.raises(TypeError):
        Reader(5)


# --- options ------------------------------------------------------------------------------------

DEFAULTS: dict[str, Any] = {
    "logs": False,
    "workers": None,
    "min_workers": 0,
    "spares": None,
    "initializer": None,
    "initargs": (),
    "finalizer": None,
    "max_tasks_per_worker": None,
    "max_idle": 300.0,
    "memory_limit": None,
    "serializer": None,
    "preload": (),
    "stop": None,
    "start_method": None,
    "name": "p",
    "stdout": None,
    "stderr": None,
}


def checked(**options: Any) -> PoolOptions:
    return check_options(**(DEFAULTS | options))


def test_options() -> None:
    import os

    cpus = len(os.sched_getaffinity(0))
    default = checked()
    assert default.workers == cpus
    assert default.spares == 0
    assert default.max_tasks_per_worker == math.inf
    assert default.stop == creche.StopPolicy()
    assert checked(max_tasks_per_worker=1).spares == cpus
    assert checked(max_tasks_per_worker=1, workers=1).spares == 1
    assert checked(max_tasks_per_worker=1, spares=0).spares == 0
    assert checked(max_tasks_per_worker=2).spares == 0
    assert checked(initargs=[1, 2]).initargs == (1, 2)
    assert checked(preload=["os"]).preload == ("os",)
    assert checked(max_idle=0).max_idle == 0.0
    assert checked(workers=5, min_workers=5).min_workers == 5
    with pytest.raises(ValueError, match="more than workers"):
        checked(min_workers=cpus + 1)


# --- waiting in the event loop ------------------------------------------------------------------


@pytest.mark.anyio
async def test_poller_that_is_told_to_stop_at_once() -> None:
    poller = loop_poller(current_loop())
    left, right = socket.socketpair()
    with right:
        right.send(b"x")
        poller.watch(left.fileno(), lambda: pytest.fail("called back"))
        poller.unwatch(left.fileno())
        left.close()
        await anyio.wait_all_tasks_blocked()


@pytest.mark.anyio
async def test_poller_of_which_one_callback_closes_the_others() -> None:
    poller = loop_poller(current_loop())
    pairs = [socket.socketpair() for _ in range(5)]
    called = 0

    def close_all() -> None:
        nonlocal called
        called += 1
        for left, _ in pairs:
            poller.unwatch(left.fileno())
            left.close()

    for left, right in pairs:
        right.send(b"x")
        poller.watch(left.fileno(), close_all)
    for _ in range(3):
        await anyio.wait_all_tasks_blocked()
    assert called == 1
    for _, right in pairs:
        right.close()
