"""What the tests of channels run in children."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import anyio
from support import announce, open_descriptors

import creche
from creche import ChannelReceiveStream, ChannelSendStream, ChannelStream, run_in_process

Send = ChannelSendStream[Any]
Receive = ChannelReceiveStream[Any]


def produce(send: Send, count: int, start: int = 0) -> int:
    with send:
        for number in range(start, start + count):
            send.send_sync(number)
    return count


async def produce_async(send: Send, count: int, start: int = 0) -> int:
    async with send:
        for number in range(start, start + count):
            await send.send(number)
    return count


def consume(receive: Receive) -> list[Any]:
    with receive:
        return list(receive)


async def consume_async(receive: Receive) -> list[Any]:
    async with receive:
        return [item async for item in receive]


PRODUCERS: tuple[Callable[..., Any], ...] = (produce, produce_async)
CONSUMERS: tuple[Callable[..., Any], ...] = (consume, consume_async)


def send_items(send: Send, items: list[Any]) -> None:
    with send:
        for item in items:
            send.send_sync(item)


def send_and_announce(send: Send, path: str, count: int) -> None:
    """Send items, and announce each that is sent."""
    with send:
        for number in range(count):
            send.send_sync(number)
            announce(path, number)


def send_and_wait(send: Send, item: Any) -> None:
    """Send an item, close the end, and stay."""
    send_items(send, [item])
    while True:
        signal.pause()


def sizes_of_memory() -> list[int]:
    """How large what is open here is that has no name but that of creche's memory."""
    return [
        os.fstat(number).st_size
        for number in open_descriptors()
        if os.readlink(f"/proc/self/fd/{number}").startswith("/memfd:creche")
    ]


def keep(end: Any, path: str) -> None:
    """Hold an end until somebody ends this process."""
    announce(path)
    while True:
        time.sleep(60)
        end.statistics()


def close_early(end: Any, path: str) -> None:
    end.close()
    keep_nothing(path)


def keep_nothing(path: str) -> None:
    announce(path)
    while True:
        time.sleep(60)


def receive_then_wait(receive: Receive, count: int, path: str) -> None:
    for _ in range(count):
        announce(path, receive.receive_sync())
    keep(receive, path)


def forward(receive: Receive, send: Send) -> None:
    with receive, send:
        for item in receive:
            send.send_sync(item)


def double_all(stream: ChannelStream[int]) -> None:
    with stream:
        for item in stream:
            stream.send_sync(2 * item)


async def double_all_async(stream: ChannelStream[int]) -> None:
    async with stream:
        async for item in stream:
            await stream.send(2 * item)


def in_grandchild(method: str, func: Callable[..., Any], end: Any, backend: str, *args: Any) -> Any:
    run = functools.partial(in_grandchild_async, method, func, end, *args)
    return anyio.run(run, backend=backend)


async def in_grandchild_async(method: str, func: Callable[..., Any], end: Any, *args: Any) -> Any:
    return await run_in_process(func, end, *args, start_method=method)


def wait_for_ever_in(method: str, end: Any, path: str) -> None:
    """Wait in a blocking call of an end that will never return."""
    if method == "send_sync":
        announce(path)
        while True:
            end.send_sync(0)
    try:
        announce(path)  # in here, as the request to stop may come at once
        end.receive_sync()
    finally:
        announce(path, "unwound")


def send_and_die(send: Send, count: int) -> None:
    for number in range(count):
        send.send_sync(number)
    os.kill(os.getpid(), signal.SIGKILL)


def send_for_ever(send: Send, tag: int) -> None:
    number = 0
    while True:
        send.send_sync((tag, number))
        number += 1


def receive_for_ever(receive: Receive) -> None:
    while True:
        receive.receive_sync()


def send_zeros(send: Send, size: int, count: int) -> None:
    with send:
        for _ in range(count):
            send.send_sync(bytes(size))


def measure_items(receive: Receive) -> list[int]:
    with receive:
        return [len(item) for item in receive]


_end: Any = None


def initialize(end: Any) -> None:
    global _end
    _end = end


def send_from_worker(item: Any) -> int:
    _end.send_sync(item)
    return os.getpid()


def receive_one(receive: Receive) -> Any:
    with receive:
        return receive.receive_sync()


def give_end_back() -> Any:
    return creche.create_channel[int]()[0]


class HiddenEnd:
    """An end that is hidden inside an argument."""

    def __init__(self, end: Any) -> None:
        self.end = end


def produce_hidden(hidden: HiddenEnd, count: int) -> int:
    return produce(hidden.end, count)


def refuse() -> Any:
    raise LookupError("not here")


class RefusesToComeBack:
    def __reduce__(self) -> Any:
        return refuse, ()


class ExplodesOnPickling:
    def __reduce__(self) -> Any:
        raise LookupError("not to be pickled")


def send_bad_ones(send: Send) -> None:
    with send:
        send.send_sync(RefusesToComeBack())
        send.send_sync("next")
        try:
            send.send_sync(ExplodesOnPickling())
        except creche.SerializationError as error:
            send.send_sync(str(error))


def fork_then_close(send: Send, path: str) -> None:
    """Have a fork outlive this end."""
    pid = os.fork()
    if pid == 0:
        try:
            send.send_sync("from the fork")
        except anyio.ClosedResourceError as error:
            announce(path, str(error))
        time.sleep(60)
        os._exit(0)
    send.send_sync(pid)
    send.close()
    keep_nothing(path)
