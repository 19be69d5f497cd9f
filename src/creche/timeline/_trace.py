"""A recording in the Chrome trace event format.

The format is described in "Trace Event Format" by the Chromium project. Of it, this uses metadata
(``M``), complete events (``X``), nestable asynchronous events (``b`` and ``e``) and counters
(``C``), all of which Perfetto reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ._spans import CallSpan, ProcessSpan, Recording, calls_of_each

Event = dict[str, Any]

# Lanes of a process. The life of one and its calls are two: they need not nest, as a call is over
# when the parent knows of it, which may be after the process has gone.
LIFE = 1
CALLS = 2

# How Perfetto is to colour the rest; these names are part of the format.
COLORS = {
    "ok": "good",
    "error": "terrible",
    "cancelled": "bad",
    "killed": "black",
    "running": "grey",
}


def trace(recording: Recording) -> dict[str, Any]:
    """Return a trace as a JSON object."""
    processes, calls, end = recording.processes, recording.calls, recording.seconds
    lanes = _lanes(processes, recording.pid)
    events = [*_parent(recording.pid)]
    for sort_index, process in enumerate(processes, 1):
        events += _names(process, lanes[process.id], sort_index)
    timed = [event for process in processes for event in _life(process, lanes[process.id], end)]
    for id, of_one in calls_of_each(recording):
        # The worker of a call is unknown if it was forgotten, as there were too many.
        lane = lanes.get(id)
        if lane is None:
            lane = lanes[id] = _free(lanes)
            events += _forgotten(lane)
        timed += [_call(call, until, lane) for call, until in of_one]
    timed += _waits(calls, recording.pid, end)
    timed += _queue_lengths(calls, recording.pid)
    # A begin and an end at the same time stay in order, as sorting is stable.
    timed.sort(key=lambda event: event["ts"])
    return {
        "traceEvents": events + timed,
        "displayTimeUnit": "ms",
        "otherData": {
            "creator": "creche",
            "began": recording.began,
            "dropped": recording.dropped,
        },
    }


def _lanes(processes: Iterable[ProcessSpan], parent: int) -> dict[int, int]:
    """Choose what each process is called by: its pid, if no other has had the same."""
    lanes: dict[int, int] = {}
    taken = {parent}
    left: list[int] = []
    for process in processes:
        if process.pid is None or process.pid in taken:
            left.append(process.id)
        else:
            lanes[process.id] = process.pid
            taken.add(process.pid)
    free = max(taken)
    return lanes | {id: number for number, id in enumerate(left, free + 1)}


def _free(lanes: dict[int, int]) -> int:
    return max(lanes.values(), default=0) + 1


def _microseconds(seconds: float) -> float:
    # Nanoseconds are the finest that the format's readers know.
    return round(max(0.0, seconds) * 1e6, 3)


def _metadata(name: str, pid: int, args: dict[str, Any], tid: int = 0) -> Event:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "ts": 0, "args": args}


def _parent(pid: int) -> Iterator[Event]:
    yield _metadata("process_name", pid, {"name": "application"})
    yield _metadata("process_sort_index", pid, {"sort_index": 0})


def _names(process: ProcessSpan, lane: int, sort_index: int) -> Iterator[Event]:
    yield _metadata("process_name", lane, {"name": process.name})
    yield _metadata("process_sort_index", lane, {"sort_index": sort_index})
    label = process.start_method if process.pool is None else f"pool {process.pool}"
    yield _metadata("process_labels", lane, {"labels": label})
    yield _metadata("thread_name", lane, {"name": "process"}, LIFE)
    if process.kind == "worker":
        yield _metadata("thread_name", lane, {"name": "calls"}, CALLS)


def _forgotten(lane: int) -> Iterator[Event]:
    yield _metadata("process_name", lane, {"name": "worker"})
    yield _metadata("thread_name", lane, {"name": "calls"}, CALLS)


def _complete(
    name: str, category: str, lane: tuple[int, int], begin: float, end: float, args: dict[str, Any]
) -> Event:
    ts = _microseconds(begin)
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": lane[0],
        "tid": lane[1],
        "ts": ts,
        "dur": round(max(0.0, _microseconds(end) - ts), 3),
        "args": {key: value for key, value in args.items() if value is not None},
    }


def _life(process: ProcessSpan, lane: int, end: float) -> Iterator[Event]:
    exited = end if process.exited is None else process.exited
    args = {
        "status": process.status,
        "pid": process.pid,
        "exit code": process.exitcode,
        "error": process.error,
        "start method": process.start_method,
        "function": process.func,
        "pool": process.pool,
    }
    place = lane, LIFE
    name = process.func or process.name
    life = _complete(name, "process", place, process.created, exited, args)
    yield {**life, "cname": COLORS[process.status]}
    # Within it: what it had to do before it could work, and before it was gone.
    up = process.started if process.ready is None else process.ready
    if up is not None and process.created < up <= exited:
        yield _complete("starting", "process", place, process.created, up, {})
    stop = process.stop_requested
    if stop is not None:
        begin = stop if up is None else max(stop, up)
        if begin <= exited:
            yield _complete("stopping", "process", place, begin, exited, {})


def _call(call: CallSpan, until: float, lane: int) -> Event:
    assert call.started is not None
    args = {
        "status": call.status,
        "waited (ms)": _milliseconds(call.started - call.queued),
        "worker's time (ms)": None if call.seconds is None else _milliseconds(call.seconds),
        "items": call.items if call.items > 1 else None,
        "pool": call.pool,
        "error": call.error,
    }
    event = _complete(call.func, "call", (lane, CALLS), call.started, until, args)
    return {**event, "cname": COLORS[call.status]}


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 6)


def _waits(calls: Iterable[CallSpan], parent: int, end: float) -> Iterator[Event]:
    for call in calls:
        until = _left_queue(call)
        common = {
            "name": call.func,
            "cat": f"waiting for pool {call.pool}",
            "id2": {"local": hex(call.id)},
            "pid": parent,
            "tid": LIFE,
        }
        ts = _microseconds(call.queued)
        yield {"ph": "b", **common, "ts": ts}
        last = max(ts, _microseconds(end if until is None else until))
        status = call.status if call.started is None else "ran"
        yield {"ph": "e", **common, "ts": last, "args": {"then": status}}


def _left_queue(call: CallSpan) -> float | None:
    return call.finished if call.started is None else call.started


def _queue_lengths(calls: Iterable[CallSpan], parent: int) -> Iterator[Event]:
    changes: dict[str, list[tuple[float, int]]] = {}
    for call in calls:
        of_pool = changes.setdefault(call.pool, [])
        of_pool.append((call.queued, 1))
        until = _left_queue(call)
        if until is not None:
            of_pool.append((until, -1))
    for pool, steps in changes.items():
        # At the same instant, first those that come: the length is never below 0.
        steps.sort(key=lambda step: (step[0], -step[1]))
        length = 0
        for time, change in steps:
            length += change
            yield {
                "ph": "C",
                "name": f"waiting for pool {pool}",
                "pid": parent,
                "tid": 0,
                "ts": _microseconds(time),
                "args": {"calls": length},
            }
