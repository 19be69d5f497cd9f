"""What large payloads travel through on Linux, without a pool."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support import TIMEOUT

from creche._platform import (
    KeptSegment,
    SegmentSocket,
    StreamReader,
    StreamWriter,
    fresh_memory,
    keep_segment,
    segment_sockets,
)

if sys.platform != "linux":
    pytest.skip("there are no such things", allow_module_level=True)

from creche._platform import _fresh_memory
from creche._platform._fresh_memory import ask_for_huge_pages

MIB = 1024 * 1024


# --- streams --------------------------------------------------------------------------------------


@pytest.fixture
def sockets() -> Iterator[tuple[SegmentSocket, SegmentSocket]]:
    pair = segment_sockets()
    assert pair is not None
    yield pair
    for end in pair:
        end.close()


class Stream:
    """Both ends of a stream."""

    def __init__(self, sockets: Any, *pieces: Any, patient: bool = False) -> None:
        self.stalled = threading.Event()
        self.writer: StreamWriter = sockets[0].open_stream(pieces, patient=patient)
        self.reader: StreamReader = sockets[1].receive_stream(self.stalled.set)

    def read_in_thread(self, size: int) -> tuple[threading.Thread, list[bytes]]:
        received: list[bytes] = []

        def read() -> None:
            with self.reader.reading(), contextlib.suppress(OSError):
                received.append(self.reader.read(size))

        thread = threading.Thread(target=read)
        thread.start()
        return thread, received


def test_stream_carries_pieces_of_all_sizes(sockets: Any) -> None:
    pieces = [os.urandom(size) for size in (0, 1, 5 * MIB, 0, 70_000)]
    pieces += [bytes([i % 256]) for i in range(3000)]
    stream = Stream(sockets, *pieces, memoryview(b"end"), patient=True)
    whole = b"".join(pieces) + b"end"
    thread, received = stream.read_in_thread(len(whole))
    assert stream.writer.write()
    thread.join(TIMEOUT)
    assert received == [whole]
    assert stream.reader.received == len(whole)
    assert not stream.reader.at_end


def test_writer_says_that_nobody_reads_and_goes_on_later(sockets: Any) -> None:
    data = os.urandom(4 * MIB)
    stream = Stream(sockets, data)
    assert not stream.writer.write()
    thread, received = stream.read_in_thread(len(data))
    while not stream.writer.write():
        pass
    thread.join(TIMEOUT)
    assert received == [data]


def test_reader_says_that_nothing_comes_and_goes_on(sockets: Any) -> None:
    stream = Stream(sockets, b"abc")
    thread, received = stream.read_in_thread(3)
    assert stream.stalled.wait(TIMEOUT)
    assert stream.writer.write()
    thread.join(TIMEOUT)
    assert received == [b"abc"]


def test_closing_one_end_wakes_who_waits_at_it(sockets: Any) -> None:
    stream = Stream(sockets, b"abc")
    thread, received = stream.read_in_thread(3)
    assert stream.stalled.wait(TIMEOUT)
    stream.reader.close()
    thread.join(TIMEOUT)
    assert received == [b""]
    assert stream.reader.fileno() == -1
    assert stream.writer.write()  # nobody wants it any more
    assert stream.writer.fileno() == -1


def test_closing_the_sending_end_wakes_who_waits_there(sockets: Any) -> None:
    stream = Stream(sockets, bytes(4 * MIB), patient=True)
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(stream.writer.write()))
    thread.start()
    assert stream.reader.read(1) == b"\0"
    stream.writer.close()
    thread.join(TIMEOUT)
    assert done == [True]
    rest = fresh_memory(4 * MIB)
    with stream.reader.reading():
        assert 0 < stream.reader.readinto(rest) < 4 * MIB - 1
        assert stream.reader.at_end
    assert stream.reader.fileno() == stream.writer.fileno() == -1


def test_closed_ends_are_not_used(sockets: Any) -> None:
    stream = Stream(sockets, b"abc")
    stream.writer.close()
    stream.reader.close()
    stream.writer.close()
    stream.reader.close()
    stream.writer.hang_up()
    stream.reader.hang_up()
    assert stream.writer.write()
    with stream.reader.reading(), pytest.raises(OSError, match="descriptor"):
        stream.reader.read(3)


def test_what_was_sent_can_be_read_after_hanging_up(sockets: Any) -> None:
    """The process that has sent it is gone, and others may still have its end."""
    stream = Stream(sockets, b"first\nsecond")
    copy = os.dup(stream.writer.fileno())
    assert stream.writer.write()
    stream.reader.hang_up()
    with stream.reader.reading():
        assert stream.reader.readline() == b"first\n"
        assert stream.reader.read(100) == b"second"
        assert stream.reader.readline() == b""
    os.close(copy)


def test_stream_to_nobody(sockets: Any) -> None:
    sockets[1].close()
    with pytest.raises(BrokenPipeError):
        sockets[0].open_stream([b"abc"], patient=True)


def test_no_stream_came(sockets: Any) -> None:
    sockets[0].close()
    with pytest.raises(EOFError):
        sockets[1].receive_stream(None)


def test_default_timeout_of_the_application_does_not_count(sockets: Any) -> None:
    data = bytes(4 * MIB)
    socket.setdefaulttimeout(0.001)
    try:
        stream = Stream(sockets, data, patient=True)
    finally:
        socket.setdefaulttimeout(None)
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(stream.writer.write()))
    thread.start()
    thread.join(0.05)  # many times as long
    with stream.reader.reading():
        assert stream.reader.read(len(data)) == data
    thread.join(TIMEOUT)
    assert done == [True]


# --- segments that are kept -----------------------------------------------------------------------


def test_kept_segment_is_seen_by_both() -> None:
    ours = keep_segment(MIB)
    theirs = KeptSegment(os.dup(ours.fileno()), MIB)
    for segment in (ours, theirs):
        segment.release_descriptor()
    ours.write([[b"ab", b"c"], [memoryview(b"def")]], [0, 64])
    assert bytes(theirs.memory[:3]) == b"abc"
    assert bytes(theirs.memory[64:67]) == b"def"
    for segment in (ours, theirs):
        segment.close()


def make_unsealed() -> int:
    descriptor = os.memfd_create("creche", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, MIB)
    return descriptor


def make_small() -> int:
    segment = keep_segment(4096)
    descriptor = os.dup(segment.fileno())
    segment.close()
    return descriptor


def make_other() -> int:
    return os.open(os.devnull, os.O_RDWR)


@pytest.mark.parametrize("make", [make_unsealed, make_small, make_other])
def test_what_could_kill_who_touches_it_is_refused(make: Any) -> None:
    descriptor = make()
    with pytest.raises(OSError):
        KeptSegment(descriptor, MIB)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_kept_segment_cannot_shrink() -> None:
    segment = keep_segment(MIB)
    with pytest.raises(PermissionError):
        os.ftruncate(segment.fileno(), 0)
    assert fcntl.fcntl(segment.fileno(), fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    segment.close()


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, MIB, 4 * MIB - 1, 4 * MIB, 9 * MIB + 7])
def test_fresh_memory(size: int) -> None:
    memory = fresh_memory(size)
    assert memory.nbytes == size
    assert not memory.readonly
    ask_for_huge_pages(memory)
    memory[:] = data = os.urandom(size)
    assert memory == data


def test_advice_changes_nothing() -> None:
    memory = fresh_memory(9 * MIB)
    memory[:] = data = os.urandom(9 * MIB)
    for begin, end in ((0, 0), (1, 1), (4095, 3), (4096, 4096)):
        ask_for_huge_pages(memory[begin : len(memory) - end])
    assert memory == data
    ask_for_huge_pages(memory.toreadonly())


def test_without_means_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    _fresh_memory._adviser.cache_clear()
    try:
        ask_for_huge_pages(fresh_memory(4 * MIB))
        assert _fresh_memory._adviser() is None
    finally:
        _fresh_memory._adviser.cache_clear()
