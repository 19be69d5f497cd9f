"""Framing, pickling and outcomes, without processes."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import numpy as np
import pytest
import support
import targets
from hypothesis import given
from hypothesis import strategies as st

import creche
from creche._wire._framing import BadFrameError, Frame, FrameKind, FrameReader, pack
from creche._wire._outcomes import (
    Call,
    Failure,
    Value,
    decode,
    encode_call,
    exception_message,
    exit_message,
    value_message,
)
from creche._wire._pickling import ArgumentHandles, dumps, loads

frames = st.lists(
    st.tuples(st.sampled_from(FrameKind), st.lists(st.lists(st.binary(max_size=50)))), max_size=5
)


def joined(section: list[Any]) -> bytes:
    return b"".join(section)


@given(frames, st.randoms(use_true_random=False))
def test_frames_survive_any_splitting(sent: list[Any], random: Any) -> None:
    stream = b"".join(joined(list(pack(kind, sections))) for kind, sections in sent)
    reader = FrameReader()
    received: list[Frame] = []
    while stream:
        size = random.randint(1, 30)
        received += reader.feed(stream[:size])
        stream = stream[size:]
    assert not reader.in_frame
    assert [(frame.kind, [joined(s) for s in frame.sections]) for frame in received] == [
        (kind, [joined(section) for section in sections]) for kind, sections in sent
    ]


@given(st.binary(min_size=9).filter(lambda data: not data.startswith(b"crch")))
def test_garbage_is_no_frame(data: bytes) -> None:
    with pytest.raises(BadFrameError):
        list(FrameReader().feed(data))


@pytest.mark.parametrize("byte", [b"x", b"cr\0", b"crcx"])
def test_garbage_is_found_at_once(byte: bytes) -> None:
    with pytest.raises(BadFrameError):
        list(FrameReader().feed(byte))


def test_impossible_headers() -> None:
    header = bytearray(next(iter(pack(FrameKind.VALUE, [[b"x"]]))))
    unknown_kind, too_many, too_long = header.copy(), header.copy(), header.copy()
    unknown_kind[4] = 200
    too_many[5] = 255
    too_long[9] = 255
    for bad in (unknown_kind, too_many, too_long):
        with pytest.raises(BadFrameError):
            list(FrameReader().feed(bytes(bad)))


def test_cut_off() -> None:
    reader = FrameReader()
    data = joined(list(pack(FrameKind.VALUE, [[b"12345"]])))
    assert list(reader.feed(data[:-1])) == []
    assert reader.in_frame
    assert len(list(reader.feed(data[-1:]))) == 1


plain_data = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@given(plain_data)
def test_data_survives_pickling(data: object) -> None:
    assert loads(dumps(data)) == data


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 300_000, 3_000_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_large_data_survives_pickling(size: int, kind: Any) -> None:
    data = {"a": kind(b"x" * size), "b": [1, kind(b"y" * size)]}
    assert loads(dumps(data)) == data


def test_large_bytes_are_not_copied() -> None:
    data = b"x" * 1_000_000
    (section,) = dumps([1, data, 2])
    assert any(piece is data for piece in section)


def test_buffers_are_not_copied() -> None:
    array = np.arange(1_000_000)
    sections = dumps(array)
    assert len(sections) == 2
    assert np.shares_memory(np.frombuffer(sections[1][0], array.dtype), array)
    result = loads(sections)
    assert np.array_equal(result, array)
    assert result.flags.writeable


def test_unpicklable_parts_are_named() -> None:
    for call, what in (
        (Call(lambda: None, (), {}), "the function"),
        (Call(print, (1, open), {"x": {1: lambda: None}}), "keyword argument 'x'"),
        (Call(print, (1, threading.Lock()), {}), "argument 2"),
    ):
        with pytest.raises(creche.SerializationError, match=what):
            encode_call(call, "p", ArgumentHandles())


def outcome_of(message: Any, exitcode: int | None = 0) -> Any:
    kind, sections = message
    return decode(Frame(kind, [list(section) for section in sections]), "p", 1, exitcode)


def test_outcomes() -> None:
    assert outcome_of(value_message({"a": 1})) == Value({"a": 1})
    unpicklable = outcome_of(value_message(lambda: None))
    assert isinstance(unpicklable.exception, creche.SerializationError)
    left = outcome_of(exit_message("a message"), 1).exception
    assert isinstance(left, creche.ProcessDied)
    assert (left.exitcode, left.detail) == (1, "a message")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        support.CustomBaseException("x"),
        ExceptionGroup("x", [ValueError(1), ExceptionGroup("y", [KeyError(2)])]),
        creche.ProcessDied(-9, name="q", pid=2),
        creche.RemoteError("a.B", "m", "t"),
    ],
)
def test_exceptions_keep_their_type(error: BaseException) -> None:
    outcome = outcome_of(exception_message(error))
    assert isinstance(outcome, Failure)
    assert type(outcome.exception) is type(error)
    assert str(outcome.exception) == str(error)
    assert isinstance(outcome.exception.__cause__, creche.RemoteTraceback)


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        GeneratorExit(),
        StopIteration(1),
        support.TwoArguments("a", "b"),
        support.HoldsALock("x"),
    ],
)
def test_exceptions_that_cannot_be_raised_here(error: BaseException) -> None:
    remote = outcome_of(exception_message(error)).exception
    assert isinstance(remote, creche.RemoteError)
    assert remote.type_name == f"{type(error).__module__}.{type(error).__qualname__}"
    assert remote.message == str(error)
    assert type(error).__name__ in remote.traceback


@pytest.mark.parametrize(
    "error",
    [
        creche.ProcessDied(-11, name="p", pid=3, detail="d"),
        creche.ProcessDied(None),
        creche.ProcessTimeout("t"),
        creche.ProcessStartError("s"),
        creche.SerializationError("s"),
        creche.RemoteError("a.B", "m", "t"),
        creche.RemoteTraceback("t"),
        creche.ProcessStuckError("s"),
        creche.ProcessStateError("s"),
        creche.ProcessClosedError("s"),
    ],
)
def test_errors_can_be_pickled(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert type(error).__module__ == "creche"


def test_words_of_process_died() -> None:
    def words(*args: Any, **kwargs: Any) -> str:
        return str(creche.ProcessDied(*args, name="parse-3", pid=4711, **kwargs))

    assert words(-11) == "process 'parse-3' (pid 4711) was killed by SIGSEGV"
    assert words(3) == "process 'parse-3' (pid 4711) ended with exit code 3 and without a result"
    assert words(1, detail="bye").endswith("without a result: bye")
    assert "unknown exit code" in words(None)
    assert words(-99).endswith("was killed by signal 99")


def test_public_names() -> None:
    assert targets.creche is creche
    for name, value in vars(creche).items():
        if isinstance(value, type) or (callable(value) and not name.startswith("_")):
            assert value.__module__ == "creche", name
