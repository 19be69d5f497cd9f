"""What code could leave behind in a process: children, threads, descriptors, shared memory.

Works without anything to be installed, from ``/proc`` on Linux. Elsewhere it sees what there is to
be seen: with psutil all descendants, without it the children of :mod:`multiprocessing`; descriptors
where there is a ``/dev/fd``.
"""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import os
import sys
import threading
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import process as _multiprocessing_process
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_HAS_PROC = Path("/proc/self/stat").exists()
_SEGMENTS = Path("/dev/shm")
_DESCRIPTORS = next((p for p in ("/proc/self/fd", "/dev/fd") if os.path.isdir(p)), None)

# Whoever has inherited this was started from here, whatever has become of its parent.
_MARKER = "CRECHE_NO_LEAKS"

# What multiprocessing makes.
_SEGMENT_NAMES = ("psm_", "sem.mp")

# Creche's machinery, and threads that Trio keeps for some seconds, as more may have to be done.
_LASTING_THREADS = ("creche-", "Trio thread ")


@dataclass(frozen=True)
class Inventory:
    """What is there."""

    processes: frozenset[int]
    """The ids of all there are. Which of them are ours takes longer, and is asked of new ones."""
    threads: frozenset[threading.Thread]
    descriptors: dict[int, str]
    """What each refers to."""
    segments: frozenset[str]

    @classmethod
    def take(cls) -> Inventory:
        return cls(
            frozenset(_processes()),
            frozenset(threading.enumerate()),
            _descriptors(),
            frozenset(_segments()),
        )

    def later(self) -> Inventory:
        """Take another. A segment that was made meanwhile, or is used by others, is not ours."""
        used = {name for name in self.segments if is_used_elsewhere(name)}
        now = Inventory.take()
        return dataclasses.replace(now, segments=(now.segments & self.segments) - used)

    def beyond(self, before: Inventory) -> list[str]:
        """Describe what is here, was not there before, and is not creche's own machinery."""
        found = [
            _describe_process(pid)
            for pid in sorted(self.processes - before.processes)
            if _is_ours(pid) and not _is_machinery(pid)
        ]
        found += [
            f"thread {thread.name!r}{' (a daemon)' if thread.daemon else ''}"
            for thread in self.threads - before.threads
            if thread.is_alive() and not thread.name.startswith(_LASTING_THREADS)
        ]
        machinery = _machinery_descriptors()
        ours, theirs = (
            _without(self.descriptors, machinery),
            _without(before.descriptors, machinery),
        )
        if len(ours) > len(theirs):
            found += [
                f"descriptor {number} -> {target}"
                for number, target in ours.items()
                if theirs.get(number) != target
            ]
        found += [
            f"shared memory {_SEGMENTS / name}" for name in sorted(self.segments - before.segments)
        ]
        return [text for text in found if text]


def mark_children() -> None:
    """Have those that are started from now on known as such, even when their parents are gone."""
    os.environ.setdefault(f"{_MARKER}_{os.getpid()}", uuid.uuid4().hex)


# --- processes ------------------------------------------------------------------------------------


def _processes() -> Iterable[int]:
    if not _HAS_PROC:
        return _children_without_proc()
    return [int(entry) for entry in os.listdir(_PROC) if entry.isdigit()]


def _is_ours(pid: int) -> bool:
    """Whether it is a descendant, be it a zombie, or an orphan that was started from here."""
    if not _HAS_PROC:
        return True
    marker = _own_marker()
    if marker is not None and _has(pid, marker):
        return True
    ancestor = pid
    while ancestor > 1 and (fields := _stat(ancestor)) is not None:
        ancestor = int(fields[1])
        if ancestor == os.getpid():
            return True
    return False


def _stat(pid: int) -> list[str] | None:
    """The fields after the name: state, parent, and so on. ``None`` if there is no such process."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _own_marker() -> bytes | None:
    name = f"{_MARKER}_{os.getpid()}"
    value = os.environ.get(name)
    return None if value is None else f"{name}={value}".encode()


def _has(pid: int, marker: bytes) -> bool:
    try:
        return marker in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:  # another user's
        return False


def _children_without_proc() -> Iterable[int]:
    try:
        psutil: Any = importlib.import_module("psutil")
    except ImportError:
        return [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    return [child.pid for child in psutil.Process().children(recursive=True)]


def _describe_process(pid: int) -> str:
    names = [child.name for child in _known_children() if child.pid == pid]
    name = f" {names[0]!r}" if names else ""
    if not _HAS_PROC:
        return f"process{name} (pid {pid})"
    fields = _stat(pid)
    if fields is None:
        return ""  # it has just ended
    if fields[0] == "Z":
        command = f"a zombie: {_read(pid, 'comm')} has ended, and nobody has waited for it"
    else:
        command = _read(pid, "cmdline").replace("\0", " ").strip() or _read(pid, "comm")
    return f"process{name} (pid {pid}): {command}"


def _known_children() -> Iterable[Any]:
    """The process objects of multiprocessing, without reaping any as ``active_children`` does."""
    known: Any = _multiprocessing_process
    return list(known._children)


def _read(pid: int, name: str) -> str:
    try:
        return (_PROC / str(pid) / name).read_text(errors="replace").strip()
    except OSError:
        return "?"


# --- descriptors and segments ---------------------------------------------------------------------


def _descriptors() -> dict[int, str]:
    found: dict[int, str] = {}
    if _DESCRIPTORS is not None:
        for entry in os.listdir(_DESCRIPTORS):
            try:
                os.fstat(int(entry))  # it is gone if it was that of the listing
                found[int(entry)] = _target(int(entry))
            except OSError:
                continue
    return found


def _target(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return "?"


def _without(descriptors: dict[int, str], others: set[int]) -> dict[int, str]:
    return {number: target for number, target in descriptors.items() if number not in others}


def _segments() -> Iterable[str]:
    """Those of this user with the names that multiprocessing gives."""
    if not _SEGMENTS.is_dir() or not _HAS_PROC:
        return
    owner = (_PROC / "self").stat().st_uid
    for entry in os.scandir(_SEGMENTS):
        try:
            if entry.name.startswith(_SEGMENT_NAMES) and entry.stat().st_uid == owner:
                yield entry.name
        except OSError:  # just removed
            continue


def is_used_elsewhere(name: str) -> bool:
    """Whether a process uses a segment that was not started from here: another run of tests."""
    path = f"{_SEGMENTS / name}"
    return any(
        pid != os.getpid() and path in _read(pid, "maps") and not _is_ours(pid)
        for pid in (_processes() if _HAS_PROC else ())
    )


# --- what lasts as long as the application --------------------------------------------------------


def _is_machinery(pid: int) -> bool:
    """Whether this is a server that starts processes, a spare of one, or multiprocessing's own."""
    servers = _creche_servers()
    if pid in {server.pid for server in servers} | {_pid_of(s) for s in _library_servers()}:
        return True
    fields = _stat(pid)  # of which one is the process group
    return fields is not None and int(fields[2]) in {server.pid for server in servers}


def _machinery_descriptors() -> set[int]:
    found: set[int] = set()
    for owner in (*_creche_servers(), *_library_servers(), *_lifelines()):
        for name in (*getattr(owner, "__dict__", ()), *getattr(owner, "__slots__", ())):
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                if name.endswith(("fd", "_end")):
                    found.add(value)
            elif fileno := getattr(value, "fileno", None):
                try:
                    found.add(fileno())
                except (OSError, ValueError):  # closed
                    continue
    return found


def _creche_servers() -> list[Any]:
    module: Any = sys.modules.get("creche._start_methods._server._servers")
    return [] if module is None else list(module.server_processes())


def _lifelines() -> list[Any]:
    module: Any = sys.modules.get("creche._start_methods._server._servers")
    found = [None if module is None else module._servers.lifeline]
    found += [getattr(server, "_lifeline", None) for server in _library_servers()]
    return [lifeline for lifeline in found if lifeline is not None]


def _library_servers() -> list[Any]:
    found: list[Any] = []
    for module_name, attribute in (
        ("multiprocessing.forkserver", "_forkserver"),
        ("multiprocessing.resource_tracker", "_resource_tracker"),
    ):
        module = sys.modules.get(module_name)
        if module is not None:
            found.append(getattr(module, attribute, None))
    creche_module: Any = sys.modules.get("creche._start_methods._fork_server")
    if creche_module is not None:
        found += creche_module._servers.values()
    return found


def _pid_of(server: Any) -> int | None:
    return getattr(server, "_forkserver_pid", None) or getattr(server, "_pid", None)
