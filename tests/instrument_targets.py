"""What the tests of instruments, of spans and of the pytest plugin run in children."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import anyio
from support import announce, wait_for_ever

import creche
from creche import from_process


def add(left: int, right: int = 0) -> int:
    return left + right


async def add_async(left: int, right: int = 0) -> int:
    await anyio.sleep(0)
    return left + right


def fail(text: str = "") -> NoReturn:
    raise LookupError(text)


def fail_at(deadly: int, number: int) -> int:
    if number == deadly:
        raise LookupError(str(number))
    return number


def die_at(deadly: int, number: int) -> int:
    if number == deadly:
        die()
    return number


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def announce_and_wait(path: str) -> None:
    announce(path)
    wait_for_ever()


def announce_and_wait_if_any(path: str | None) -> None:
    if path is not None:
        announce_and_wait(path)


def ready_then_return(value: Any) -> Any:
    from_process.started("ready")
    return value


def ready_twice() -> None:
    from_process.started(1)
    with contextlib.suppress(Exception):
        from_process.started(2)


def count_to(number: int) -> Iterator[int]:
    yield from range(number)


def at_random(seed: int) -> int:
    """Return, raise, take a moment, or die."""
    what = random.Random(seed).random()
    if what < 0.5:
        return seed
    if what < 0.65:
        raise LookupError(str(seed))
    if what < 0.97:
        time.sleep(0.002)
        return seed
    die()


def initializer_that_fails() -> NoReturn:
    raise LookupError("initializer")


def instruments_here() -> int:
    from creche._instruments import instruments

    return len(instruments.all)


class LateInstrument(creche.Instrument):
    """A child can have instruments of its own."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def process_exited(self, process: creche.ObservedProcess) -> None:
        self.names.append(process.name)


async def observe_in_child() -> list[str]:
    instrument = LateInstrument()
    creche.add_instrument(instrument)
    await creche.run_in_process(add, 1, name="grandchild")
    return instrument.names


@creche.in_process()
def decorated() -> int:
    return 5


# --- spans ----------------------------------------------------------------------------------------


def span_ids() -> tuple[str, str]:
    """The trace and the span in which the caller runs."""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def span_ids_of(_item: int) -> tuple[str, str]:
    return span_ids()


async def span_ids_async() -> tuple[str, str]:
    await anyio.sleep(0)
    return span_ids()
