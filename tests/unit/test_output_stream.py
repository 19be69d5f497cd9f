"""The stream of lines, fed by a thread as the watcher feeds it."""

from __future__ import annotations

import random
import threading

import anyio
import anyio.to_thread
import pytest

from creche._output_stream import LineStream

pytestmark = pytest.mark.anyio

TIMEOUT = 60.0


class Feeder(threading.Thread):
    """Feeds a stream in pieces, as long as there is room."""

    def __init__(self, stream: LineStream, pieces: list[bytes]) -> None:
        super().__init__(daemon=True)
        self.fed = 0
        self.most = 0
        self._stream = stream
        self._pieces = pieces
        self._room = threading.Event()
        stream.on_room = self._room.set

    def run(self) -> None:
        for piece in self._pieces:
            self._room.clear()
            room = self._stream.feed(piece)
            self.fed += len(piece)
            self.most = max(self.most, self._stream._size)
            if not room:
                assert self._room.wait(TIMEOUT)
        self._stream.end()


def pieces_of(data: bytes, largest: int, seed: int) -> list[bytes]:
    cut = random.Random(seed)
    pieces = []
    while data:
        size = cut.randint(1, largest)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


async def test_closed_from_another_event_loop(anyio_backend: str) -> None:
    stream = LineStream()
    errors: list[BaseException] = []

    async def receive() -> None:
        try:
            await stream.receive()
        except anyio.ClosedResourceError as error:
            errors.append(error)

    thread = threading.Thread(
        target=anyio.run, args=(receive,), kwargs={"backend": anyio_backend}, daemon=True
    )
    thread.start()
    with anyio.fail_after(TIMEOUT):
        while stream._sleeper is None:
            await anyio.sleep(0.001)
        await stream.aclose()
        await anyio.to_thread.run_sync(thread.join, abandon_on_cancel=True)
    assert len(errors) == 1


async def collect(stream: LineStream) -> list[str]:
    with anyio.fail_after(TIMEOUT):
        return [line async for line in stream]


@pytest.mark.parametrize("largest", [3, 100, 70_000])
async def test_nothing_is_lost(largest: int) -> None:
    for seed in range(100 if largest > 3 else 10):
        expected = [f"{number:05d}" for number in range(max(seed, largest // 10))]
        stream = LineStream()
        feeder = Feeder(stream, pieces_of("\n".join(expected).encode(), largest, seed))
        feeder.start()
        assert await collect(stream) == expected
        feeder.join(TIMEOUT)
        assert feeder.most <= 2 * 70_000


async def test_it_is_full_until_something_is_taken() -> None:
    stream = LineStream()
    rooms: list[int] = []
    stream.on_room = lambda: rooms.append(stream._size)
    assert stream.feed(b"a\n" * 30_000)
    assert not stream.feed(b"b\n" * 33_000)
    assert await stream.receive() == "a"
    assert rooms == []  # there is still more than the limit
    for _ in range(29_999):
        assert await stream.receive() == "a"
    assert await stream.receive() == "b"
    assert rooms == [0]
    assert stream.feed(b"c\n")


async def test_more_room_at_the_end() -> None:
    stream = LineStream()
    rooms: list[int] = []
    stream.on_room = lambda: rooms.append(stream._size)
    assert not stream.feed(b"a\n" * 40_000)
    stream.take_more(1_000_000)
    assert len(rooms) == 1
    assert stream.feed(b"b\n" * 400_000)
    stream.end()
    assert len(await collect(stream)) == 440_000


async def test_end_wakes_the_receiver() -> None:
    stream = LineStream()
    stream.feed(b"last")
    async with anyio.create_task_group() as tasks:

        async def receive() -> None:
            assert await stream.receive() == "last"
            for _ in range(2):
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()

        tasks.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        stream.end()


async def test_closed_stream_takes_everything() -> None:
    stream = LineStream()
    stream.feed(b"a\nb\n")
    assert await stream.receive() == "a"
    await stream.aclose()
    assert stream.feed(bytes(1_000_000))
    assert stream._size == 0
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()
    await stream.aclose()


async def test_receiving_is_a_checkpoint() -> None:
    stream = LineStream()
    stream.feed(b"a\nb\n")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await stream.receive()
    assert scope.cancelled_caught
    assert await stream.receive() == "a"
