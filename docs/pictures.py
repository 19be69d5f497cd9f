"""Make the pictures of the timeline and of the monitor again, from a program that really runs.

    python docs/pictures.py

Needs Chromium, and the packages of the test group.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import anyio
from PIL import Image
from rich.console import Console

import creche
import creche.monitor
import creche.timeline

HERE = Path(__file__).parent


def thumbnail(seconds: float) -> None:
    if seconds < 0.02:
        raise OSError("image file is truncated")
    time.sleep(seconds)


def perceptual_hash(seconds: float) -> None:
    end = time.thread_time() + seconds / 2
    while time.thread_time() < end:
        pass


def read_raw(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGSEGV)


def index(number: int) -> int:
    time.sleep(0.004)
    return number


def serve() -> None:
    creche.from_process.started(8080)
    time.sleep(60)


async def image_service() -> None:
    dice = random.Random(4)
    with creche.monitor.monitor(
        console=Console(file=io.StringIO(), width=118), title="image_service.py"
    ) as monitor:
        async with (
            creche.open_nursery() as nursery,
            creche.open_pool(workers=4, name="images") as images,
            creche.open_pool(workers=2, name="search") as search,
            anyio.create_task_group() as tasks,
        ):
            await nursery.start(serve, name="web")
            nursery.start_soon(time.sleep, 1.0, name="reload-config")

            async def call(func: object, seconds: float, timeout: float | None) -> None:
                with contextlib.suppress(creche.ProcessError, OSError):
                    await images.run(func, seconds, timeout=timeout)  # type: ignore[arg-type]

            async def index_all() -> None:
                async for _ in search.map(index, range(420)):
                    pass

            tasks.start_soon(index_all)
            for number in range(120):
                func = dice.choice([thumbnail, thumbnail, perceptual_hash])
                seconds = dice.lognormvariate(-3.4, 0.6)
                timeout = 0.02 if number % 29 == 15 else None
                if number in (31, 83):
                    func = read_raw
                tasks.start_soon(call, func, seconds, timeout)
                await anyio.sleep(dice.expovariate(1 / 0.011))
                if number in (60, 100):
                    picture(monitor)
            nursery.cancel_scope.deadline = anyio.current_time() + 0.6


def picture(monitor: creche.monitor.Monitor) -> None:
    console = Console(record=True, file=io.StringIO(), width=118)
    console.print(monitor._picture())
    svg = console.export_svg(title="python -m creche monitor image_service.py")
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)  # from the network
    (HERE / "_static" / "monitor.svg").write_text(svg, encoding="utf-8")


def main() -> None:
    sys.path.insert(0, str(HERE.parent / "tests"))
    from chromium import chromium

    with creche.timeline.record() as timeline:
        anyio.run(image_service)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "timeline.html")
        timeline.write_html(page, title="image_service.py")
        with chromium(Path(folder), width=1360, height=640) as browser:
            failed = next(
                number for number, span in enumerate(timeline.calls) if span.status == "error"
            )
            browser.open(page, f"theme=light&span={failed}")
            browser.screenshot(Path(folder, "timeline.png"))
        with Image.open(Path(folder, "timeline.png")) as image:
            small = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
            small.save(HERE / "_static" / "timeline.png", optimize=True)


if __name__ == "__main__":
    main()
