"""creche.progress: a bar over whatever is iterated over asynchronously."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
import rich
import targets
from rich.console import Console
from rich.live import Live

import creche
from creche import open_pool, run_in_process
from creche.progress import track

pytestmark = pytest.mark.anyio

TIMEOUT = 60.0
HIDE_CURSOR = "\x1b[?25l"
SHOW_CURSOR = "\x1b[?25h"
ERASE_LINE = "\x1b[2K"


class Terminal(io.StringIO):
    """What was written to a terminal, and a way to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.on_write: Callable[[], object] = lambda: None
        self.console = Console(
            file=self, force_terminal=True, force_interactive=True, width=80, color_system=None
        )

    def write(self, text: str) -> int:
        written = super().write(text)
        self.on_write()
        return written

    async def wait_for(self, text: str) -> None:
        shown = anyio.Event()

        def look() -> None:
            if text in self.getvalue():
                shown.set()

        self.on_write = look
        look()
        with anyio.fail_after(TIMEOUT):
            await shown.wait()

    @property
    def frames(self) -> list[str]:
        """The contents of the terminal's last line, one after the other."""
        return self.getvalue().replace(HIDE_CURSOR, "").replace("\r", "").split(ERASE_LINE)

    @property
    def last(self) -> str:
        """What is left when no bar is drawn any more."""
        written = self.getvalue()
        assert written.count(HIDE_CURSOR) == written.count(SHOW_CURSOR) > 0
        assert written.rstrip("\r").endswith(SHOW_CURSOR)
        return self.frames[-1].removesuffix(SHOW_CURSOR)


class Source:
    """Counts from 0, as a map does that knows its total."""

    def __init__(self, count: int, total: int | None = None) -> None:
        self.total = total
        self.closed = 0
        self._numbers = iter(range(count))

    def __aiter__(self) -> Source:
        return self

    async def __anext__(self) -> int:
        await anyio.lowlevel.checkpoint()
        try:
            return next(self._numbers)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        self.closed += 1


class StuckSource(Source):
    """Gives one value, and has no second one."""

    async def __anext__(self) -> int:
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            await anyio.sleep_forever()
            raise


class PlainSource:
    """Has nothing but what the protocol asks for."""

    def __init__(self, count: int) -> None:
        self._numbers = iter(range(count))

    def __aiter__(self) -> PlainSource:
        return self

    async def __anext__(self) -> int:
        for number in self._numbers:
            return number
        raise StopAsyncIteration


@pytest.fixture(autouse=True)
def terminal_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rich asks the environment for."""
    monkeypatch.setenv("TERM", "xterm")
    for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


# --- what is drawn --------------------------------------------------------------------------------


async def test_values_and_bar(terminal: Terminal) -> None:
    values = [
        value
        async for value in track(
            Source(3, total=3), description="counting [/b]", console=terminal.console
        )
    ]
    assert values == [0, 1, 2]
    assert "counting [/b] " in terminal.frames[0]
    assert " 0/3 " in terminal.frames[0]
    assert "counting [/b] ━" in terminal.last
    assert " 3/3 " in terminal.last


async def test_total_as_a_parameter(terminal: Terminal) -> None:
    async for _ in track(Source(3, total=7), total=4, console=terminal.console):
        pass
    assert " 3/4 " in terminal.last


@pytest.mark.parametrize("make", [numbers, PlainSource, Source])
async def test_unknown_total(make: Callable[[int], Any], terminal: Terminal) -> None:
    async for _ in track(make(12), console=terminal.console):
        pass
    assert " 0/? " in terminal.frames[0]
    assert " 12/12 " in terminal.last


async def test_total_that_is_known_late(terminal: Terminal) -> None:
    source = Source(3)
    async for number in track(source, console=terminal.console):
        if number == 1:
            source.total = 5
    assert " 0/? " in terminal.frames[0]
    assert " 3/5 " in terminal.last


async def test_attributes_with_another_meaning(terminal: Terminal) -> None:
    source: Any = Source(2)
    source.done = lambda: False
    source.total = "all"
    async for _ in track(source, console=terminal.console):
        pass
    assert " 0/? " in terminal.frames[0]
    assert " 2/2 " in terminal.last


async def test_items_count_when_they_have_ended(terminal: Terminal) -> None:
    source: Any = Source(2, total=20)
    source.done = 0
    async for number in track(source, console=terminal.console):
        source.done = 10 * (number + 1)
        if number == 1:
            break
    assert " 20/20 " in terminal.last


async def test_drawn_while_a_value_is_waited_for(terminal: Terminal) -> None:
    source: Any = StuckSource(1, total=20)
    source.done = 0

    async def iterate() -> None:
        async for _ in track(source, console=terminal.console):
            pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(iterate)
        await terminal.wait_for(" 0/20 ")
        source.done = 17
        await terminal.wait_for(" 17/20 ")
        tasks.cancel_scope.cancel()
    assert " 17/20 " in terminal.last


async def test_not_drawn_in_the_body_of_the_loop(terminal: Terminal) -> None:
    async for _ in track(Source(3), console=terminal.console):
        written = terminal.getvalue()
        await anyio.sleep(0.25)
        assert terminal.getvalue() == written


async def test_drawn_ten_times_a_second_at_most(terminal: Terminal) -> None:
    began = time.monotonic()
    async for _ in track(Source(5_000, total=5_000), console=terminal.console):
        pass
    elapsed = time.monotonic() - began
    assert len(terminal.frames) <= elapsed / 0.1 + 3


async def test_transient(terminal: Terminal) -> None:
    async for _ in track(Source(3), console=terminal.console, transient=True):
        pass
    assert HIDE_CURSOR in terminal.getvalue()
    assert "━" not in terminal.last


async def test_several_bars(terminal: Terminal) -> None:
    async with anyio.create_task_group() as tasks:

        async def iterate(name: str, count: int) -> None:
            async for _ in track(Source(count), description=name, console=terminal.console):
                await anyio.sleep(0.001)

        for i in range(3):
            tasks.start_soon(iterate, f"bar {i}", 10 - 4 * i)
    assert terminal.getvalue().count(HIDE_CURSOR) == 1
    lines = [" ".join(line.split()) for line in terminal.getvalue().splitlines()[-4:-1]]
    for name, count in ("bar 0", 10), ("bar 1", 6), ("bar 2", 2):
        (line,) = (line for line in lines if f"{name} ━" in line)
        assert f" {count}/{count} " in line


async def test_below_a_display_of_the_application(terminal: Terminal) -> None:
    with Live("the application's own", console=terminal.console, auto_refresh=False):
        assert [value async for value in track(Source(2), console=terminal.console)] == [0, 1]
    assert "the application's own" in terminal.getvalue()
    assert terminal.getvalue().endswith(SHOW_CURSOR)


async def test_no_thread(terminal: Terminal) -> None:
    before = set(threading.enumerate())
    async for _ in track(Source(2), console=terminal.console):
        assert set(threading.enumerate()) <= before


async def test_what_is_printed_appears_above(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    async for number in track(Source(2), console=terminal.console):
        print(f"printed {number}")
    assert sys.stdout is terminal
    assert "printed 0\n" in terminal.getvalue()
    assert "printed" not in terminal.last


async def test_standard_output_is_left_alone_where_it_goes_elsewhere(
    terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    async for _ in track(Source(1), console=terminal.console):
        print("to a file")
    assert capsys.readouterr().out == "to a file\n"
    assert "to a file" not in terminal.getvalue()


# --- where nothing is drawn -----------------------------------------------------------------------


@pytest.mark.parametrize("force_color", [False, True])
async def test_quiet_without_a_terminal(
    force_color: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if force_color:
        monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(rich, "_console", None)
    assert [value async for value in track(Source(3), description="counting")] == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


async def test_quiet_on_a_console_that_is_no_terminal() -> None:
    file = io.StringIO()
    async with track(Source(3), console=Console(file=file)) as tracked:
        assert [value async for value in tracked] == [0, 1, 2]
    assert file.getvalue() == ""


async def test_terminal_by_default(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(rich, "_console", None)
    monkeypatch.setenv("NO_COLOR", "1")
    async for _ in track(Source(3)):
        pass
    assert "3/3" in terminal.last


# --- how a loop is left ---------------------------------------------------------------------------


async def test_break(terminal: Terminal) -> None:
    async for number in track(Source(9), total=9, console=terminal.console):
        if number == 3:
            break
    assert " 4/9 " in terminal.last


async def test_error_in_the_loop(terminal: Terminal) -> None:
    with pytest.raises(LookupError, match="oh"):
        async for _ in track(Source(9, total=9), console=terminal.console):
            raise LookupError("oh")
    assert " 1/9 " in terminal.last


async def test_error_of_the_source(terminal: Terminal) -> None:
    async def source() -> AsyncIterator[int]:
        yield 1
        raise LookupError("oh")

    tracked = track(source(), total=9, console=terminal.console)
    with pytest.raises(LookupError, match="oh"):
        async for _ in tracked:
            pass
    assert " 1/9 " in terminal.last
    assert [value async for value in tracked] == []  # as after an error of a generator


async def test_cancelled(terminal: Terminal) -> None:
    tracked = track(StuckSource(1, total=9), console=terminal.console)
    with anyio.move_on_after(TIMEOUT) as scope:
        async for _ in tracked:
            scope.cancel()
    assert scope.cancelled_caught
    assert " 1/9 " in terminal.last


async def test_goes_on_without_a_bar_after_a_cancellation(terminal: Terminal) -> None:
    send, receive = anyio.create_memory_object_stream[int](10)
    with send, receive:
        tracked = track(receive, console=terminal.console)
        send.send_nowait(1)
        assert await anext(tracked) == 1
        with anyio.move_on_after(0):
            await anext(tracked)
        ended = terminal.getvalue()
        send.send_nowait(2)
        assert await anext(tracked) == 2
    assert " 1/? " in terminal.last
    assert terminal.getvalue() == ended


async def test_async_with(terminal: Terminal) -> None:
    source = Source(9, total=9)
    tracked = track(source, console=terminal.console)
    with pytest.raises(LookupError):
        async with tracked:
            async for _ in tracked:
                raise LookupError
    assert " 1/9 " in terminal.last
    assert source.closed == 1
    assert [value async for value in tracked] == []


@pytest.mark.parametrize("make", [numbers, PlainSource, Source])
async def test_aclose(make: Callable[[int], Any], terminal: Terminal) -> None:
    source = make(9)
    tracked = track(source, total=9, console=terminal.console)
    assert await anext(tracked) == 0
    await tracked.aclose()
    assert " 1/9 " in terminal.last
    await tracked.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(tracked)
    if make is not PlainSource:
        assert [value async for value in source] == ([] if make is numbers else [*range(1, 9)])


async def test_aclose_before_the_first_value(terminal: Terminal) -> None:
    source = Source(9)
    async with track(source, console=terminal.console):
        pass
    assert source.closed == 1
    assert terminal.getvalue() == ""


async def test_aclose_of_the_source_fails(terminal: Terminal) -> None:
    class Failing(Source):
        async def aclose(self) -> None:
            raise LookupError("oh")

    with pytest.raises(LookupError, match="oh"):
        async with track(Failing(9), total=9, console=terminal.console) as tracked:
            await anext(tracked)
    assert " 1/9 " in terminal.last


async def test_collected_in_another_thread(terminal: Terminal) -> None:
    held = [track(Source(9), total=9, console=terminal.console)]
    await anext(held[0])
    await anyio.to_thread.run_sync(held.clear)
    gc.collect()
    assert " 1/9 " in terminal.last


async def test_collected_in_the_middle_of_a_drawing(terminal: Terminal) -> None:
    held = [track(Source(9), total=9, description="first", console=terminal.console)]
    await anext(held[0])
    terminal.on_write = held.clear
    async for _ in track(Source(2), total=3, description="second", console=terminal.console):
        pass
    first, second = terminal.getvalue().splitlines()[-3:-1]
    assert "first " in first
    assert " 1/9 " in first
    assert "second" in second
    assert " 2/3 " in second
    assert terminal.getvalue().endswith(SHOW_CURSOR)


def test_collected_after_its_loop(terminal: Terminal, anyio_backend: str) -> None:
    held = [track(Source(9), total=9, console=terminal.console)]

    async def main() -> None:
        await anext(held[0])

    anyio.run(main, backend=anyio_backend)
    assert not terminal.getvalue().endswith(SHOW_CURSOR)
    held.clear()
    gc.collect()
    assert " 1/9 " in terminal.last


HOLDS_A_BAR = """
import sys
import anyio
from rich.console import Console
from creche.progress import track

async def numbers():
    yield 1
    yield 2

async def main():
    sys.held = bar = track(numbers(), total=9, console=Console(force_terminal=True))
    print(await anext(bar))

anyio.run(main, backend=sys.argv[1])
"""


def test_held_until_the_interpreter_exits(anyio_backend: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOLDS_A_BAR, anyio_backend],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=TIMEOUT,
        check=True,
    )
    assert done.stdout.endswith(SHOW_CURSOR)
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing forks there")
async def test_children_that_are_forked_print_past_the_bar(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal)
    async for _ in track(Source(1), console=terminal.console):
        assert name_of_standard_output() == "FileProxy"
        name = await run_in_process(name_of_standard_output, start_method="fork")
        assert name == "Terminal"


def name_of_standard_output() -> str:
    return type(sys.stdout).__name__


# --- a pool ---------------------------------------------------------------------------------------


async def test_map_of_a_pool(terminal: Terminal) -> None:
    async with open_pool(workers=2) as pool:
        async for value in track(pool.map(targets.add, range(50)), console=terminal.console):
            assert value in range(50)
        assert " 50/50 " in terminal.last


async def test_map_of_a_pool_that_is_left_early(terminal: Terminal) -> None:
    async with open_pool(workers=2) as pool:
        values = pool.map(targets.add, range(1_000_000))
        async with track(values, console=terminal.console) as tracked:
            assert await anext(tracked) == 0
        with pytest.raises(StopAsyncIteration):
            await anext(values)
        assert "/1000000 " in terminal.last
        assert await pool.run(targets.add, 1, 2) == 3


# --- errors ---------------------------------------------------------------------------------------


async def test_bad_arguments(terminal: Terminal) -> None:
    with pytest.raises(ValueError, match="total must be 0 or more, not -1"):
        track(Source(1), total=-1, console=terminal.console)
    not_async: Any = [1, 2]
    with pytest.raises(TypeError, match="async iter"):
        track(not_async, console=terminal.console)


async def test_missing_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError, match=r"pip install creche\[progress\]") as caught:
        track(Source(1))
    assert caught.value.name == "rich"


def test_rich_is_imported_when_it_is_needed() -> None:
    code = "import sys, creche\nassert 'creche.progress' not in sys.modules\n"
    code += "import creche.progress\nassert 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], timeout=TIMEOUT, check=True)


def test_progress_is_no_part_of_the_package() -> None:
    assert not hasattr(creche, "track")
