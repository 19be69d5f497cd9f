"""Recording what ran: the recording itself, the trace, and the page."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections import defaultdict
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anyio
import pytest
import timeline_targets as targets
from chromium import Page, chromium, find_chromium
from scripts import Program
from support import TIMEOUT, Announcements
from timeline_data import Clock, call, many, process, worker

import creche
import creche.timeline
from creche.timeline import Timeline

HOSTILE = '</script><script>alert("1")</script><!-- \u2028 & \'" {data} \ud800'


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def small(clock: Clock) -> Timeline:
    """300 calls on workers that die at times, and processes of their own."""
    timeline = Timeline()
    clock.now += 0.001
    service = process("service", func="shop.serve")
    for made in (service, process("never-started", func=HOSTILE)):
        timeline.process_created(made)
    made.exception = creche.ProcessStartError("no pids")
    timeline.process_exited(made)
    service.pid = 77
    timeline.process_started(service)
    timeline.process_ready(service)
    many(timeline, clock, 300)
    return timeline


# --- the recording --------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_pool(announcements: Announcements) -> None:
    with creche.timeline.record() as timeline:
        async with creche.open_pool(workers=1, name="own") as pool:
            assert await pool.run(targets.double, 2) == 4
            with pytest.raises(ValueError, match="no good"):
                await pool.run(targets.fail, "no good")
            with pytest.raises(creche.ProcessDied):
                await pool.run(targets.crash)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.run, targets.announce_and_wait, announcements.path)
                await announcements.get_pid()
                tasks.start_soon(pool.run, targets.double, 1)  # never begins
                await anyio.wait_all_tasks_blocked()
                (running,) = (c for c in timeline.calls if c.func.endswith("announce_and_wait"))
                assert running.status == "running"
                assert running.finished is None
                tasks.cancel_scope.cancel()
            assert [value async for value in pool.map(targets.double, range(10))] == [
                2 * number for number in range(10)
            ]
    ids = [span.id for span in timeline.processes]
    assert all(span.kind == "worker" and span.pool == "own" for span in timeline.processes)
    assert [span.status for span in timeline.processes] == ["killed", "cancelled", "ok"]
    assert all(
        0 <= span.created <= span.started <= span.ready <= span.exited <= timeline.seconds  # type: ignore[operator]
        for span in timeline.processes
    )
    first = timeline.calls[:5]
    assert [c.status for c in first] == ["ok", "error", "killed", "cancelled", "cancelled"]
    assert [c.func.rpartition(".")[2] for c in first[:3]] == ["double", "fail", "crash"]
    assert first[1].error == "ValueError: no good"
    assert first[4].process is None
    assert first[4].started is None
    assert all(c.process in ids for c in first[:4])
    chunks = timeline.calls[5:]
    assert sum(c.items for c in chunks) >= 10
    for span in timeline.calls:
        times = [span.queued, span.started, span.finished]
        known = [time for time in times if time is not None]
        assert known == sorted(known)
        assert known[-1] <= timeline.seconds
    validate(timeline.trace())


@pytest.mark.anyio
async def test_processes(start_method: str, announcements: Announcements) -> None:
    with creche.timeline.record() as timeline:
        assert await creche.run_in_process(targets.double, 1, start_method=start_method) == 2
        async with creche.open_nursery(start_method=start_method) as nursery:
            await nursery.start(targets.serve, announcements.path)
            await announcements.get_pid()
            nursery.cancel_scope.cancel()
    ended_well, stopped = timeline.processes
    assert (ended_well.kind, ended_well.pool, ended_well.status) == ("process", None, "ok")
    assert ended_well.func == "timeline_targets.double"
    assert ended_well.start_method == start_method
    assert ended_well.ready is None
    assert stopped.status == "cancelled"
    assert stopped.exitcode == -15
    assert stopped.ready is not None
    assert stopped.stop_requested is not None
    assert stopped.exited is not None
    assert stopped.ready <= stopped.stop_requested <= stopped.exited
    validate(timeline.trace())


@pytest.mark.anyio
async def test_records_just_its_block() -> None:
    timeline = creche.timeline.record()
    await creche.run_in_process(targets.double, 1)
    assert timeline.processes == ()
    async with creche.open_pool(workers=1) as pool:
        await pool.run(targets.double, 1)
        with timeline:
            await pool.run(targets.double, 1)
        await pool.run(targets.double, 1)
    # Its worker was created before.
    assert len(timeline.calls) == 1
    assert timeline.calls[0].process is not None
    length = timeline.seconds
    with timeline:
        await creche.run_in_process(targets.double, 1)
    assert len(timeline.processes) == 1
    assert timeline.seconds > length
    validate(timeline.trace())
    assert page_data(timeline)["calls"]["process"] == [timeline.calls[0].process]


def test_memory_is_bounded(clock: Clock) -> None:
    timeline = Timeline(max_spans=100)
    many(timeline, clock, 1000)
    assert len(timeline.calls) == 100
    assert timeline.dropped == 900
    ids = [span.id for span in timeline.calls]
    assert ids == sorted(ids)
    trace = timeline.trace()
    validate(trace)
    assert trace["otherData"]["dropped"] == timeline.dropped
    assert page_data(timeline)["dropped"] == timeline.dropped


def test_parameters() -> None:
    with pytest.raises(ValueError, match="max_spans must be 1 or more, not 0"):
        creche.timeline.record(max_spans=0)
    assert "processes=0 calls=0" in repr(creche.timeline.record())


def test_an_error_that_cannot_be_shown(clock: Clock) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    timeline = Timeline()
    for error in (Odd(), ValueError(), ValueError("x" * 10_000)):
        made = call()
        timeline.call_queued(made)
        made.status, made.exception = "error", error
        timeline.call_finished(made)
    odd, empty, long = (span.error for span in timeline.calls)
    assert odd == "Odd"
    assert empty == "ValueError"
    assert long is not None
    assert len(long) == 400


def test_looked_at_while_it_records(clock: Clock) -> None:
    timeline = Timeline(max_spans=50)
    stop = threading.Event()
    failed: list[BaseException] = []

    def look() -> None:
        try:
            while not stop.is_set():
                timeline.trace()
                timeline.html()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        by = worker(timeline, "worker-1", 10)
        for _ in range(3000):
            made = call()
            timeline.call_queued(made)
            made.process = by
            timeline.call_started(made)
            made.status = "ok"
            timeline.call_finished(made)
    finally:
        stop.set()
        thread.join(TIMEOUT)
    assert failed == []
    assert timeline.dropped == 2950


# --- the trace ------------------------------------------------------------------------------------


def validate(trace: dict[str, Any]) -> None:
    """Check a trace by the rules of the format."""
    trace = json.loads(json.dumps(trace, allow_nan=False))
    assert set(trace) == {"traceEvents", "displayTimeUnit", "otherData"}
    fields = {
        "M": {"ph", "name", "pid", "tid", "ts", "args"},
        "X": {"ph", "name", "cat", "pid", "tid", "ts", "dur", "args"},
        "b": {"ph", "name", "cat", "id2", "pid", "tid", "ts"},
        "e": {"ph", "name", "cat", "id2", "pid", "tid", "ts", "args"},
        "C": {"ph", "name", "pid", "tid", "ts", "args"},
    }
    metadata = {
        "process_name": ("name", str),
        "process_labels": ("labels", str),
        "process_sort_index": ("sort_index", int),
        "thread_name": ("name", str),
    }
    lanes: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    begun: dict[tuple[str, str], float] = {}
    named: dict[str, set[int]] = defaultdict(set)
    last = 0.0
    for event in trace["traceEvents"]:
        phase = event["ph"]
        assert set(event) - {"cname"} == fields[phase], event
        assert type(event["name"]) is str
        assert type(event["pid"]) is type(event["tid"]) is int
        assert event["ts"] >= 0
        if phase == "M":
            key, kind = metadata[event["name"]]
            assert type(event["args"][key]) is kind
            if event["name"] == "process_name":
                assert event["pid"] not in named["process"]
                named["process"].add(event["pid"])
            continue
        assert event["pid"] in named["process"]
        assert event["ts"] >= last, "events are in order of time"
        last = event["ts"]
        if phase == "X":
            assert event["dur"] >= 0
            assert event.get("cname", "good") in ("good", "terrible", "bad", "black", "grey")
            lanes[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        elif phase == "b":
            begun[event["cat"], event["id2"]["local"]] = event["ts"]
        elif phase == "e":
            assert begun.pop((event["cat"], event["id2"]["local"])) <= event["ts"]
        else:
            assert all(type(n) is int and n >= 0 for n in event["args"].values())
    assert begun == {}, "what has begun has ended"
    for spans in lanes.values():
        open_until: list[float] = []
        for begin, end in sorted(spans, key=lambda span: (span[0], -span[1])):
            while open_until and open_until[-1] <= begin + 0.002:
                open_until.pop()
            # Within what is open, but for a rounding.
            assert not open_until or end <= open_until[-1] + 0.002, "complete events nest"
            open_until.append(end)


def test_trace(small: Timeline, tmp_path: Path) -> None:
    small.write_trace(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))
    validate(trace)
    events = trace["traceEvents"]
    ran = [span for span in small.calls if span.started is not None]
    bars = [e for e in events if e["ph"] == "X" and e["cat"] == "call"]
    assert len(bars) == len(ran) < len(small.calls)
    for span in ran:
        assert span.started is not None
        (bar,) = (e for e in bars if abs(e["ts"] - span.started * 1e6) < 0.01)
        assert bar["name"] == span.func
        assert bar["args"]["status"] == span.status
        assert bar["args"]["waited (ms)"] == pytest.approx(1e3 * (span.started - span.queued))
        assert bar["args"].get("error") == span.error
    waits = [e for e in events if e["ph"] == "b"]
    assert len(waits) == len(small.calls)
    lives = [e for e in events if e["ph"] == "X" and e["cat"] == "process"]
    assert len(lives) >= len(small.processes)
    lengths = [e["args"]["calls"] for e in events if e["ph"] == "C"]
    assert max(lengths) > 1
    assert lengths[-1] == 0


def test_pids_that_are_used_again(clock: Clock) -> None:
    timeline = Timeline()
    for _ in range(3):
        clock.now += 1
        made = worker(timeline, "again", 10)
        clock.now += 1
        timeline.process_exited(made)
    validate(timeline.trace())
    lives = [e for e in timeline.trace()["traceEvents"] if e["ph"] == "X" and e["name"] == "again"]
    assert len({e["pid"] for e in lives}) == 3


def test_a_result_that_arrives_after_the_next_call_has_begun(clock: Clock) -> None:
    timeline = Timeline()
    by = worker(timeline, "w", 10)
    large, next_one = call("large"), call("next")
    for made in (large, next_one):
        timeline.call_queued(made)
    for made in (large, next_one):
        clock.now += 1
        made.process = by
        timeline.call_started(made)
    clock.now += 1
    for made in (next_one, large):
        made.status = "ok"
        timeline.call_finished(made)
        clock.now += 1
    validate(timeline.trace())
    data = page_data(timeline)
    assert data["calls"]["run"] == [1_000_000, 1_000_000]
    assert data["calls"]["over"] == [3_000_000, 1_000_000]


# --- the page -------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.references: list[str] = []
        self.title = ""
        self._in = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._in = tag
        if tag == "script":
            self.scripts.append((dict(attributes), ""))
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action", "data"):
                self.references.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] = self.scripts[-1][0], self.scripts[-1][1] + data
        elif self._in == "title":
            self.title += data


def read_page(timeline: Timeline, title: str = "a title") -> Reader:
    reader = Reader()
    reader.feed(timeline.html(title=title))
    reader.close()
    return reader


def page_data(timeline: Timeline) -> dict[str, Any]:
    (text,) = (text for attributes, text in read_page(timeline).scripts if attributes)
    return json.loads(text)  # type: ignore[no-any-return]


def test_page_has_it_all(small: Timeline) -> None:
    data = page_data(small)
    strings, calls = data["strings"], data["calls"]
    assert data["length"] == round(small.seconds * 1e6)
    queued = 0
    for number, span in enumerate(small.calls):
        queued += calls["queued"][number]
        assert queued == pytest.approx(span.queued * 1e6, abs=1)
        assert strings[calls["func"][number]] == span.func
        assert strings[calls["error"][number]] == (span.error or "")
        assert calls["items"][number] == span.items
        assert calls["process"][number] == (-1 if span.process is None else span.process)
        status = ["ok", "running", "cancelled", "error", "killed"][calls["status"][number]]
        assert status == span.status
        if span.started is not None:
            started = queued + calls["wait"][number]
            assert started == pytest.approx(span.started * 1e6, abs=1.5)
            assert calls["run"][number] >= 0
        else:
            assert calls["run"][number] == -1
    assert {len(column) for column in calls.values()} == {len(small.calls)}
    assert [strings[row[1]] for row in data["processes"]] == [p.name for p in small.processes]


def test_page_needs_nothing_else(small: Timeline) -> None:
    page = small.html()
    reader = read_page(small)
    assert [reference for reference in reader.references if reference != "data:,"] == []
    assert not re.search(
        r"https?:|//[a-z]+\.|@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket", page
    )
    assert "default-src 'none'" in page


def test_page_with_hostile_names(clock: Clock, tmp_path: Path) -> None:
    timeline = Timeline()
    by = worker(timeline, HOSTILE, 10, pool=HOSTILE)
    made = call(HOSTILE, HOSTILE)
    timeline.call_queued(made)
    made.process = by
    timeline.call_started(made)
    made.status, made.exception = "error", ValueError(HOSTILE)
    timeline.call_finished(made)
    reader = read_page(timeline, title=HOSTILE)
    assert len(reader.scripts) == 2
    assert reader.title.startswith(HOSTILE)
    data = page_data(timeline)
    assert data["strings"].count(HOSTILE) == 1
    assert f"ValueError: {HOSTILE}" in data["strings"]
    timeline.write_html(tmp_path / "page.html", title=HOSTILE)
    timeline.write_trace(tmp_path / "trace.json")


def test_empty() -> None:
    with creche.timeline.record() as timeline:
        pass
    validate(timeline.trace())
    assert page_data(timeline)["processes"] == []


# --- the page in a browser ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if find_chromium() is None:
        pytest.skip("needs Chromium or Chrome")
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


SHOWN = "creche.spanCount"


def test_in_a_browser(browser: Page, small: Timeline, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    small.write_html(file, title="300 calls")
    browser.open(file)
    assert browser.run("document.title") == "300 calls - timeline"
    assert browser.run(SHOWN) == len(small.calls) + len(small.processes)
    labels = browser.run("creche.view.lanes.map(lane => lane.label)")
    assert labels[:5] == ["Processes", "service", "never-started", "Pool images", "waiting"]
    # It has drawn bars: there is more than a few colours.
    assert (
        browser.run(
            "new Set(new Uint32Array(document.getElementById('canvas').getContext('2d')"
            ".getImageData(0, 0, 1400, 600).data.buffer)).size"
        )
        > 8
    )
    assert browser.complaints() == []


def test_search_in_a_browser(browser: Page, small: Timeline, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    small.write_html(file)
    browser.open(file)
    browser.press("/")
    browser.type("status:error")
    wrong = sum(span.status == "error" for span in (*small.calls, *small.processes))
    assert wrong > 1
    browser.until(f"document.getElementById('hits').textContent == '{wrong}'")
    browser.press("Enter")
    browser.until(f"document.getElementById('hits').textContent == '1 of {wrong}'")
    browser.until("document.querySelector('aside .pill')?.textContent == 'error'")
    for text, count in (
        ("thumbnail killed", sum(
            c.status == "killed" and "thumbnail" in c.func for c in small.calls)),
        ("no such thing", 0),
    ):  # fmt: skip
        assert browser.run(f"creche.search({text!r}).reduce((sum, n) => sum + n, 0)") == count
    assert browser.complaints() == []


def test_zoom_and_details_in_a_browser(browser: Page, small: Timeline, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    small.write_html(file)
    number = next(n for n, c in enumerate(small.calls) if c.status == "error")
    span = small.calls[number]
    browser.open(file)
    whole = browser.run("creche.view.to - creche.view.from")
    browser.mouse("mouseWheel", 700, 400, deltaX=0, deltaY=-240)
    browser.until(f"creche.view.to - creche.view.from < {0.99 * whole}")
    browser.press("f")
    browser.until(f"Math.abs(creche.view.to - creche.view.from - {whole}) < 1e-6 * {whole}")
    # The bar of this call, as large as it gets, is under the pointer.
    assert span.started is not None
    assert span.finished is not None
    browser.open(file, f"from={span.started * 1e6 - 10:.0f}&to={span.finished * 1e6 + 10:.0f}")
    y = browser.run(
        f"creche.laneOf({number}).y - creche.view.scroll + 26 + 10"
        " + document.getElementById('view').getBoundingClientRect().top"
    )
    x = browser.run("190 + (innerWidth - 190) / 2")
    browser.mouse("mouseMoved", x, y)
    tooltip = "document.getElementById('tooltip').innerText"
    browser.until(f"{tooltip}.includes('image file is truncated')")
    browser.click(x, y)
    browser.until("!document.getElementById('details').hidden")
    details = browser.run("document.getElementById('details').innerText")
    assert span.func in details
    assert "ValueError: image file is truncated" in details
    browser.press("Escape")
    browser.until("document.getElementById('details').hidden")
    assert browser.complaints() == []


def test_all_views_in_a_browser(browser: Page, small: Timeline, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    small.write_html(file)
    browser.open(file, "theme=dark&pack=1&functions=1&q=thumbnail&span=3")
    assert browser.run("document.documentElement.dataset.theme") == "dark"
    assert browser.run("document.querySelectorAll('tbody tr').length") >= 3
    assert browser.run("creche.view.pack") is True
    assert browser.run("creche.view.selected") == 3
    for key in "pdtt[]nN+-0wsad?":
        browser.press(key)
        browser.settle()
    browser.run("document.getElementById('keys').close()")
    assert browser.run("document.documentElement.dataset.theme") == "dark"
    assert browser.complaints() == []


def test_hostile_names_in_a_browser(browser: Page, clock: Clock, tmp_path: Path) -> None:
    test_page_with_hostile_names(clock, tmp_path)
    browser.open(tmp_path / "page.html", "span=0")
    assert "<script>alert" in browser.run("document.getElementById('details').innerText")
    assert browser.run("document.scripts.length") == 2
    assert browser.complaints() == []


@pytest.mark.slow
def test_100_000_calls_in_a_browser(browser: Page, clock: Clock, tmp_path: Path) -> None:
    timeline = Timeline()
    many(timeline, clock, 100_000)
    file = tmp_path / "page.html"
    timeline.write_html(file)
    assert file.stat().st_size < 8_000_000
    browser.open(file)
    assert browser.run(SHOWN) > 100_000
    # No element a bar, and nothing that takes seconds: how fast it is, the benchmarks know.
    assert browser.run("document.querySelectorAll('*').length") < 300
    assert browser.complaints() == []


# --- as a program ---------------------------------------------------------------------------------

SCRIPT = """
    import sys
    import anyio, creche

    class Point:
        def __init__(self, x):
            self.x = x

    def make(x):
        return Point(x)

    async def main():
        async with creche.open_pool(workers=1, name="own") as pool:
            print("got", (await pool.run(make, 3)).x, sys.argv[1:])
        if "fail" in sys.argv:
            raise LookupError("no such thing")
        sys.exit(5 if "exit" in sys.argv else 0)

    if __name__ == "__main__":
        anyio.run(main, backend="trio")
"""


def test_program(program: Program) -> None:
    script = program.write(SCRIPT)
    done = program.run("-m", "creche", "timeline", script, "a", "-o", "b")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "got 3 ['a', '-o', 'b']\n"
    assert "1 processes and 1 calls" in done.stderr
    page = (program.folder / "timeline.html").read_text(encoding="utf-8")
    assert "__main__.make" in page
    assert "<h1>program.py</h1>" in page


def test_program_that_fails(program: Program) -> None:
    script = program.write(SCRIPT)
    trace = program.folder / "trace.json"
    done = program.run("-m", "creche", "timeline", "--trace", trace, script, "fail")
    assert done.returncode == 1
    assert "LookupError: no such thing" in done.stderr
    assert "creche/__main__.py" not in done.stderr
    validate(json.loads(trace.read_text(encoding="utf-8")))
    assert not (program.folder / "timeline.html").exists()
    assert program.run("-m", "creche", "timeline", script, "exit").returncode == 5


def test_program_that_is_terminated(program: Program, announcements: Announcements) -> None:
    script = program.write(
        """
        import sys
        import anyio, creche
        import timeline_targets as targets

        if __name__ == "__main__":
            anyio.run(creche.run_in_process, targets.announce_and_wait, sys.argv[1])
        """
    )
    with program.running("-m", "creche", "timeline", script, announcements.path) as running:
        announcements.get_blocking()
        running.terminate()
        assert running.wait(TIMEOUT) == -signal.SIGTERM
    page = (program.folder / "timeline.html").read_text(encoding="utf-8")
    assert "announce_and_wait" in page
    assert "1 processes and 0 calls" in program.output()


def test_program_that_is_a_module(program: Program) -> None:
    program.write(SCRIPT, "package/program.py")
    program.write("", "package/__init__.py")
    done = program.run("-m", "creche", "timeline", "-m", "package.program", "a")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "got 3 ['a']\n"
    (program.folder / "timeline.html").unlink()
    for name in ("no.such", "nosuch", "package.nosuch", "package"):
        done = program.run("-m", "creche", "timeline", "-m", name)
        assert done.returncode == 2
        assert done.stderr.startswith(f"python -m creche: there is no module {name}")
    assert not (program.folder / "timeline.html").exists()  # nor would an earlier one be lost
    done = program.run("-m", "creche", "timeline", "no-such.py")
    assert done.returncode == 2
    assert done.stderr == "python -m creche: there is no file no-such.py\n"
    assert "COMMAND" in program.run("-m", "creche", "--help").stdout
