"""The ring of streams by itself: in one process, and with two threads at its ends."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from creche._stream._ring import (
    MORE,
    NUMBERS_BYTES,
    PLAIN,
    TABLE,
    WRITTEN,
    BadRingError,
    RingReader,
    RingWriter,
    largest_record,
)

SIZE = 1024


class Ring:
    def __init__(self, size: int = SIZE, ahead: int = 1 << 62) -> None:
        memory = memoryview(bytearray(NUMBERS_BYTES + size))
        self.rung: list[str] = []
        self.reader = RingReader(memory, ahead, lambda: self.rung.append("writer"))
        self.writer = RingWriter(memory, lambda: self.rung.append("reader"))

    def read(self, most: int = 1 << 30) -> list[bytes]:
        return [bytes(record) for _, record in self.reader.records(most)]


@pytest.fixture
def ring() -> Ring:
    return Ring()


def test_records_come_out_as_they_went_in(ring: Ring) -> None:
    assert ring.reader.empty
    kinds = [PLAIN, TABLE, TABLE | MORE]
    for i, kind in enumerate(kinds):
        assert ring.writer.write(b"x" * i, kind)
    assert not ring.reader.empty
    assert [(kind, bytes(record)) for kind, record in ring.reader.records(SIZE)] == [
        (kind, b"x" * i) for i, kind in enumerate(kinds)
    ]
    assert ring.reader.empty


def test_all_lengths_at_all_positions() -> None:
    chance = random.Random(0)
    ring = Ring()
    waiting: list[bytes] = []
    for _ in range(20_000):
        data = bytes([chance.randrange(256)]) * chance.randrange(largest_record(SIZE) + 1)
        if chance.random() < 0.5:
            written = ring.writer.write(data)
        else:
            middle = chance.randrange(len(data) + 1)
            view = memoryview(data)
            written = ring.writer.write_pieces([view[:middle], view[middle:]], PLAIN)
        if written:
            waiting.append(data)
        else:
            assert waiting
            read = ring.read(chance.choice([1, SIZE]))
            assert read == waiting[: len(read)]
            del waiting[: len(read)]


def test_the_largest_record_fits_when_all_was_read() -> None:
    for before in range(0, SIZE, 8):
        ring = Ring()
        for _ in range(before // 8):
            assert ring.writer.write(b"")
            ring.read()
        assert ring.writer.write(bytes(largest_record(SIZE)))
        assert ring.read() == [bytes(largest_record(SIZE))]


def test_full(ring: Ring) -> None:
    number = 0
    while ring.writer.write(bytes(24)):
        number += 1
    assert number == SIZE // 32
    records = ring.reader.records(SIZE)
    next(records)
    assert not ring.writer.write(bytes(24))  # what is being read is not written to
    records.close()
    assert ring.writer.write(bytes(24))
    assert not ring.writer.write(bytes(24))


def test_how_many_may_be_written() -> None:
    ring = Ring(ahead=2)
    for _ in range(2):
        assert ring.writer.may_write()
        ring.writer.write(b"")
    assert not ring.writer.may_write()
    ring.read()
    assert not ring.writer.may_write()
    ring.reader.take()
    assert ring.writer.may_write()
    ring.writer.write(b"part", TABLE | MORE)
    assert ring.writer.may_write()
    ring.writer.write(b"part", TABLE)
    assert not ring.writer.may_write()


def test_who_waits_is_rung_once(ring: Ring) -> None:
    ring.writer.write(b"")
    assert ring.rung == []
    ring.reader.about_to_wait()
    ring.writer.write(b"")
    ring.writer.write(b"")
    assert ring.rung == ["reader"]
    ring.reader.about_to_wait()
    ring.writer.write(b"")
    assert ring.rung == ["reader"] * 2

    ring.rung.clear()
    ring.read()
    assert ring.rung == []
    ring.writer.write(b"")
    ring.writer.await_room()
    ring.read()
    assert ring.rung == ["writer"]
    ring.writer.write(b"")
    ring.read()
    assert ring.rung == ["writer"]


def test_who_waits_for_its_turn_is_rung_once(ring: Ring) -> None:
    ring.reader.take()
    assert not ring.reader.writer_awaits_turn()
    ring.writer.await_turn()
    assert ring.reader.writer_awaits_turn()
    assert ring.rung == []
    ring.reader.give_turn()
    assert ring.rung == ["writer"]
    assert not ring.reader.writer_awaits_turn()


def test_plain_records_are_loaded(ring: Ring) -> None:
    for number in range(5):
        assert ring.writer.write(bytes([number]))
    ring.writer.write(b"table", TABLE)
    ring.writer.write(b"last")
    items: list[bytes] = []
    ring.reader.read_plain(bytes, items, 2, SIZE)
    assert items == [b"\0", b"\1"]
    ring.reader.read_plain(bytes, items, 100, 17)  # one is within that, and one more begins there
    assert items == [b"\0", b"\1", b"\2", b"\3"]
    ring.reader.read_plain(bytes, items, 100, SIZE)
    assert items == [bytes([number]) for number in range(5)]
    ring.reader.read_plain(bytes, items, 100, SIZE)
    assert len(items) == 5
    assert ring.read() == [b"table", b"last"]


def test_what_cannot_be_loaded_is_read(ring: Ring) -> None:
    def load(record: memoryview) -> bytes:
        if record == b"bad":
            raise ValueError("bad")
        return bytes(record)

    for data in (b"good", b"bad", b"better"):
        ring.writer.write(data)
    items: list[bytes] = []
    with pytest.raises(ValueError, match="bad"):
        ring.reader.read_plain(load, items, 100, SIZE)
    assert items == [b"good"]
    ring.reader.read_plain(load, items, 100, SIZE)
    assert items == [b"good", b"better"]


@pytest.mark.parametrize("written", [-8, SIZE + 8, 1 << 60])
def test_impossible_numbers(ring: Ring, written: int) -> None:
    ring.writer.write(b"")
    ring.read()
    ring.writer._cells[WRITTEN] += written
    with pytest.raises(BadRingError):
        ring.read()


@pytest.mark.parametrize("header", [1, 8, SIZE, 1 << 39, (1 << 40) - 1, (1 << 64) - 1])
def test_impossible_records(ring: Ring, header: int) -> None:
    ring.writer.write(b"")
    ring.writer._words[0] = header
    with pytest.raises(BadRingError):
        if header < 4096:
            ring.reader.read_plain(bytes, [], 10, SIZE)
        else:
            ring.read()


def test_noise() -> None:
    """Reading ends, whatever is there."""
    chance = random.Random(0)
    for _ in range(300):
        ring = Ring()
        ring.writer._bytes[:] = chance.randbytes(SIZE)
        for position in range(0, SIZE, 8):
            if chance.random() < 0.8:
                ring.writer._words[position >> 3] = chance.randrange(64) | chance.choice([0, TABLE])
        ring.writer._cells[WRITTEN] = chance.randrange(SIZE)
        with contextlib.suppress(BadRingError):
            assert len(ring.read()) <= SIZE // 8


def test_ends_of_two_rings_in_two_threads() -> None:
    """Each has a fence of its own: nobody gives back the lock that somebody else has taken."""
    failures: list[BaseException] = []

    def use(ring: Ring) -> None:
        try:
            for _ in range(20_000):
                ring.reader.about_to_wait()
                ring.reader.writer_awaits_turn()
        except RuntimeError as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=use, args=(Ring(),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


def test_two_threads() -> None:
    """Each waits for the other, often, and neither waits for ever."""
    number = 5_000
    size = 512
    memory = memoryview(bytearray(NUMBERS_BYTES + size))
    bells = {name: threading.Semaphore(0) for name in ("reader", "writer")}
    reader = RingReader(memory, 3, bells["writer"].release)
    writer = RingWriter(memory, bells["reader"].release)

    def wait(name: str) -> None:
        assert bells[name].acquire(timeout=60), f"the {name} was not rung"

    def write() -> None:
        for i in range(number):
            while not writer.may_write():
                writer.await_turn()
                if not writer.may_write():
                    wait("writer")
            data = i.to_bytes(4, "little") * (i % 40)
            while not writer.write(data):
                writer.await_room()
                if not writer.write(data):
                    wait("writer")
                else:
                    break

    def read() -> Iterator[Any]:
        while True:
            for _, record in reader.records(100):
                yield bytes(record)
                reader.take()
                if reader.writer_awaits_turn():
                    reader.give_turn()
            if reader.empty:
                reader.about_to_wait()
                if reader.empty:
                    wait("reader")

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    for i, data in zip(range(number), read(), strict=False):
        assert data == i.to_bytes(4, "little") * (i % 40)
    thread.join(60)
    assert not thread.is_alive()
