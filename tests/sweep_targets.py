"""What runs in the children of tests that strike at one moment after another."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from multiprocessing import util
from pathlib import Path
from types import FrameType
from typing import Any

from talk_targets import echo_after

import creche
from creche import ChannelSendStream, from_process, sync


def start(value: int) -> None:
    from_process.started(value)


def ask_parent(times: int) -> list[int]:
    answers = [from_process.run(echo_after, 0, number) for number in range(times)]
    return [*answers, from_process.run_sync(len, bytes(300_000))]


def report_and_print(times: int) -> None:
    for number in range(times):
        from_process.report(number, times)
        logging.getLogger(__name__).info("%d", number)
        print(number)


async def send_all(send: ChannelSendStream[Any], items: Iterable[Any]) -> None:
    for item in items:
        await send.send(item)


async def send_all_and_close(send: ChannelSendStream[Any], items: Iterable[Any]) -> None:
    async with send:
        await send_all(send, items)


def send_all_sync(send: ChannelSendStream[Any], items: Iterable[Any]) -> None:
    with send:
        for item in items:
            send.send_sync(item)


# --- killed at one line after another -------------------------------------------------------------

_CRECHE = os.path.join(os.path.dirname(creche.__file__), "")


def kill_at_line(number: int, path: str) -> None:
    """Kill this process at a line of creche's code, in this thread; at its end tell ``path``.

    :param path: a file, for the number of lines that there were
    """
    lines = 0

    def on_line(_frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return on_line

    def on_call(frame: FrameType, _event: str, _arg: object) -> Any:
        return on_line if frame.f_code.co_filename.startswith(_CRECHE) else None

    frame = sys._getframe()
    while frame.f_back is not None:  # what called this is traced, too
        frame = frame.f_back
        if frame.f_code.co_filename.startswith(_CRECHE):
            frame.f_trace = on_line
    sys.settrace(on_call)
    util.Finalize(None, lambda: Path(path).write_text(str(lines)), exitpriority=-999)


def killed_at(number: int, path: str, func: Callable[..., Any], *args: Any) -> Any:
    kill_at_line(number, path)
    return func(*args)


async def killed_at_async(
    number: int, path: str, func: Callable[..., Coroutine[Any, Any, Any]], *args: Any
) -> Any:
    kill_at_line(number, path)
    return await func(*args)


def generate_until_killed(number: int, path: str, sizes: list[int]) -> Iterator[bytes]:
    kill_at_line(number, path)
    for size in sizes:
        yield bytes(size)


def use_all(
    lock: sync.Lock,
    semaphore: sync.Semaphore,
    limiter: sync.CapacityLimiter,
    queue: sync.Queue[int],
    event: sync.Event,
) -> None:
    for number in range(3):
        with lock, semaphore, limiter:
            pass
        queue.put_sync(number)
        queue.get_sync()
    event.set()
    event.wait_sync()


async def ask_parent_async(times: int) -> None:
    for number in range(times):
        assert await from_process.arun(echo_after, 0, number) == number
        assert await from_process.arun_sync(abs, -number) == number
    assert await from_process.arun_sync(len, bytes(300_000)) == 300_000
