"""A recording as one HTML page.

The page is made of the files in ``page/``, and draws by itself from the data that is put into it:
columns of whole numbers, most of them differences, which are small and quick to read.
"""

from __future__ import annotations

import html
import json
import platform
from importlib import resources
from typing import Any

from ._spans import ProcessSpan, Recording, calls_of_each

# In the order of the page's scripts, each of which uses those before it.
SCRIPTS = ("model.js", "draw.js", "main.js")
STATUSES = ("ok", "running", "cancelled", "error", "killed")
"""From the least to the most that people look for: in ``model.js`` as well."""


def page(recording: Recording, title: str) -> str:
    """Return the page."""
    files = resources.files("creche.timeline") / "page"

    def read(name: str) -> str:
        return (files / name).read_text(encoding="utf-8")

    scripts = "\n".join(read(name) for name in SCRIPTS)
    # The title and the data come last: whatever they contain is not looked through.
    text = read("page.html").replace("/*{style}*/", read("style.css"))
    before, _, after = text.replace("/*{scripts}*/", scripts).partition("{data}")
    before = before.replace("{title}", html.escape(title))
    return f"{before}{_embed(page_data(recording, title))}{after}"


def _embed(data: dict[str, Any]) -> str:
    # Nothing in it can end the script element, or begin a comment there.
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")


class _Strings:
    """Texts, each of which is kept once and called by its number."""

    def __init__(self) -> None:
        self.all: list[str] = [""]
        self._numbers = {"": 0}

    def number(self, text: str | None) -> int:
        text = text or ""
        number = self._numbers.get(text)
        if number is None:
            number = self._numbers[text] = len(self.all)
            self.all.append(text)
        return number


def page_data(recording: Recording, title: str) -> dict[str, Any]:
    """Return what the page draws, for JSON."""
    strings = _Strings()
    return {
        "title": title,
        "began": recording.began,
        "length": _microseconds(recording.seconds),
        "pid": recording.pid,
        "python": platform.python_version(),
        "dropped": recording.dropped,
        "processes": [_process(process, strings) for process in recording.processes],
        "calls": _calls(recording, strings),
        "strings": strings.all,
    }


def _microseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e6))


def _or_none(seconds: float | None) -> int:
    return -1 if seconds is None else _microseconds(seconds)


def _process(process: ProcessSpan, strings: _Strings) -> list[int | None]:
    return [
        process.id,
        strings.number(process.name),
        process.pid,
        strings.number(process.pool) if process.kind == "worker" else -1,
        strings.number(process.start_method),
        strings.number(process.func),
        _microseconds(process.created),
        _or_none(process.started),
        _or_none(process.ready),
        _or_none(process.stop_requested),
        _or_none(process.exited),
        process.exitcode,
        STATUSES.index(process.status),
        strings.number(process.error),
    ]


def _calls(recording: Recording, strings: _Strings) -> dict[str, list[int]]:
    """Describe calls by columns, in the order in which they were made."""
    end = recording.seconds
    left_worker = {
        call.id: until for _, of_one in calls_of_each(recording) for call, until in of_one
    }
    columns: dict[str, list[int]] = {
        name: []
        for name in (
            "queued", "wait", "run", "over", "worker", "process", "func", "pool", "items", "status",
            "error",
        )
    }  # fmt: skip
    add = {name: column.append for name, column in columns.items()}
    last = 0
    for call in recording.calls:
        queued = _microseconds(call.queued)
        over = max(queued, _microseconds(end if call.finished is None else call.finished))
        started = over if call.started is None else max(queued, _microseconds(call.started))
        ran_until = left_worker.get(call.id)
        add["queued"](queued - last)
        add["wait"](started - queued)
        # None where it never ran
        add["run"](-1 if ran_until is None else max(0, _microseconds(ran_until) - started))
        add["over"](over - started)
        add["worker"](_or_none(call.seconds))
        add["process"](-1 if call.process is None else call.process)
        add["func"](strings.number(call.func))
        add["pool"](strings.number(call.pool))
        add["items"](call.items)
        add["status"](STATUSES.index(call.status))
        add["error"](strings.number(call.error))
        last = queued
    return columns
