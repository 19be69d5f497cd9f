"""Ctrl-C, which comes between any two lines of what runs in the main thread.

There Trio raises ``KeyboardInterrupt``, and asyncio cancels the main task. Each sweep has an
interpreter of its own: Ctrl-C strikes at one line of creche's code after another, and then
everything has to be as before.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import support
import targets
from backends import in_asyncio, in_trio
from scripts import Program

from creche import _loops, open_pool, run_in_process
from creche._loops import current_loop, waiter_in

SWEEP = """
import os, signal, sys, time
import anyio, creche, creche.sync, support
from creche import open_nursery, open_pool, open_stream, open_supervisor, run_in_process
from creche._runtime import runtime

FOLDER = os.path.dirname(creche.__file__)
TIMES = 50
where, backend = sys.argv[1:]


async def use():
{use}


async def in_child_task():
    async with anyio.create_task_group() as group:
        group.start_soon(use)


class Tracer:
    "Counts the lines of creche's that this thread runs, and strikes at one of them."

    def __init__(self, strikes_at):
        self.lines = 0
        self.strikes_at = strikes_at
        # The interpreter wants whatever it is calling to outlive the call.
        self.of_calls, self.of_lines = self.on_call, self.on_line

    def on_call(self, frame, event, arg):
        return self.of_lines if frame.f_code.co_filename.startswith(FOLDER) else None

    def on_line(self, frame, event, arg):
        # Before and after the event loop, Ctrl-C is the application's business.
        handler = signal.getsignal(signal.SIGINT)
        if event == "line" and handler is not signal.default_int_handler:
            self.lines += 1
            if self.lines == self.strikes_at:
                signal.raise_signal(signal.SIGINT)
        return self.of_lines


def run(strikes_at=None):
    tracer = Tracer(strikes_at)
    sys.settrace(tracer.of_calls)
    try:
        anyio.run(use if where == "main" else in_child_task, backend=backend)
    except* KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return tracer.lines


def count_open():
    picklers = runtime().picklers  # which close what they have sent or received last
    while picklers._jobs or picklers._idle < picklers._threads:
        time.sleep(0.001)
    return len(support.sockets_and_pipes())


if __name__ == "__main__":
    run()  # imports, and starts threads
    before = count_open()
    lines = run()
    for strike in range(1, lines, -(-lines // TIMES)):
        run(strike)
    run()
    assert count_open() == before
    print("in order")
"""

USES = {
    "call": """
        async with open_pool(1) as pool:
            for number in range(3):
                assert await pool.run(support.double, number) == 2 * number
    """,
    "large-call": """
        async with open_pool(1) as pool:
            assert await pool.run(len, bytes(3 * 1024**2)) == 3 * 1024**2
    """,
    "map": """
        async with open_pool(1) as pool:
            for items in (range(20), list(range(20))):
                async for value in pool.map(support.double, items):
                    pass
    """,
    "process": """
        assert await run_in_process(support.double, 2) == 4
        async with creche.AsyncProcess(target=support.double, args=(2,)) as process:
            assert await process.result() == 4
    """,
    "nursery": """
        async with open_nursery() as nursery:
            nursery.start_soon(support.double, 2)
            nursery.start_soon(support.double, 2)
    """,
    "stream": """
        async with open_stream(range, 100) as items:
            assert [item async for item in items] == list(range(100))
    """,
    "channel": """
        send, receive = creche.create_channel(max_buffer_size=10)
        async with send, receive:
            for item in (1, bytes(3 * 1024**2)):
                await send.send(item)
                assert await receive.receive() == item
    """,
    "sync": """
        async with creche.sync.Lock(), creche.sync.Semaphore(1):
            queue = creche.sync.Queue(3)
            await queue.put(1)
            assert await queue.get() == 1
    """,
    "supervisor": """
        async with open_supervisor() as supervisor:
            await supervisor.start(time.sleep, 60, name="sleeper", ready=False)
            await supervisor.remove("sleeper")
            supervisor.cancel_scope.cancel()
    """,
}


@pytest.mark.parametrize("where", ["main", "child-task"])
@pytest.mark.parametrize("use", USES)
def test_at_one_line_after_another(
    program: Program, anyio_backend: str, use: str, where: str
) -> None:
    main = program.write(
        SWEEP.replace("{use}", textwrap.indent(textwrap.dedent(USES[use]), "    "))
    )
    result = program.run(main, where, anyio_backend)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "in order\n"
    assert not result.stderr
    assert not program.wait_until_gone()
    assert not program.files_left()


@contextmanager
def striking_code_of_the_application() -> Iterator[None]:
    """It is not spared, for all that it has ``contextlib`` in common with creche."""
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    yield


# asyncio raises KeyboardInterrupt in no task before it is struck a second time.
@in_trio
async def test_code_of_the_application_is_not_spared(anyio_backend: str) -> None:
    async with open_pool(1) as pool:
        with striking_code_of_the_application():
            assert await pool.run(support.double, 1) == 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@in_trio
async def test_input_of_a_map_that_waits_for_something(anyio_backend: str) -> None:
    struck = []

    def blocking() -> Iterator[int]:
        yield 1
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            struck.append(error)
            raise

    async with open_pool(1) as pool:
        with pytest.raises(KeyboardInterrupt):
            async for _ in pool.map(support.double, blocking()):
                pass
        assert len(struck) == 1
        assert await pool.run(support.double, 1) == 2


class Interrupted:
    """Ctrl-C strikes while it is being pickled, the first time."""

    def __init__(self) -> None:
        self.struck = False

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.struck:
            self.struck = True
            raise KeyboardInterrupt
        return Interrupted, ()


@in_trio
async def test_arguments_are_being_pickled(anyio_backend: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        async with open_pool(
            1, initializer=targets.echo, initargs=(Interrupted(),), serializer=pickle
        ):
            pass
    async with open_pool(1) as pool:
        with pytest.raises(KeyboardInterrupt):
            await pool.run(targets.echo, Interrupted())
        with pytest.raises(KeyboardInterrupt):
            await pool.map(targets.echo, [1, Interrupted(), 2])
        assert await pool.run(support.double, 1) == 2


@in_trio
async def test_children_do_not_look_through_creche_again(
    anyio_backend: str, start_method: str
) -> None:
    """It takes longer than to fork them. Those of servers find it done, where Trio is imported."""
    known = await run_in_process(targets.codes_spared_by_ctrl_c, start_method=start_method)
    assert (known > 0) == (start_method != "spawn")


@in_asyncio
async def test_task_is_cancelled_while_it_is_woken(anyio_backend: str) -> None:
    """As a Ctrl-C does it under asyncio: in a signal handler, between any two lines."""

    async def wait(waiter: Any) -> None:
        await waiter

    async def cancel_at(strikes_at: int) -> bool:
        loop = current_loop()
        waiter = waiter_in(loop)
        task = asyncio.ensure_future(wait(waiter))
        await asyncio.sleep(0)
        lines = itertools.count(1)

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            if frame.f_code.co_filename != _loops.__file__:
                return None
            if event == "line" and next(lines) == strikes_at:
                task.cancel()
            return trace

        def wake() -> None:
            sys.settrace(trace)
            try:
                waiter.wake()
            finally:
                sys.settrace(None)

        failures: list[object] = []
        loop.set_exception_handler(lambda _, context: failures.append(context))
        loop.call_soon(wake)
        await asyncio.wait([task])
        loop.set_exception_handler(None)
        assert failures == []
        return next(lines) > strikes_at

    strikes_at = 1
    while await cancel_at(strikes_at):
        strikes_at += 1
    assert strikes_at > 5
