"""Programs that use creche, run as a user would run them: each with an interpreter of its own.

Some tests need to kill the parent, to lower its limits or to have a main module of their own, and
so cannot be that parent.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import TIMEOUT, wait_until_gone

MARKER = "CRECHE_TEST_PROGRAM"
TESTS = Path(__file__).parent


@dataclass
class Result:
    """How a program ended."""

    returncode: int
    stdout: str
    stderr: str


class Program:
    """One program with a folder and an environment of its own.

    Whatever it starts, and whatever that starts, is recognised by its environment.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary_files = folder / "tmp"
        self.temporary_files.mkdir(parents=True)
        self._marker = uuid.uuid4().hex
        self.environment = {
            **os.environ,
            MARKER: self._marker,
            # Where the fork server puts its socket. Short, for the sake of that socket's limits.
            "TMPDIR": str(self.temporary_files),
            "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def write(self, source: str, name: str = "program.py") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    def run(
        self, *arguments: object, stdin: str = "", cwd: Path | None = None, timeout: float = TIMEOUT
    ) -> Result:
        """Run ``python arguments...`` to its end."""
        done = subprocess.run(
            self._command(arguments),
            input=stdin,
            cwd=cwd or self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def running(self, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
        """Run ``python arguments...`` for as long as the block takes, at most."""
        with open(self.folder / "output", "ab") as output:
            process = subprocess.Popen(
                self._command(arguments),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait(TIMEOUT)

    def output(self) -> str:
        """What a :meth:`running` program has printed."""
        return (self.folder / "output").read_text()

    def processes(self) -> set[int]:
        """The processes that come from the program and have not ended."""
        found = set()
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    environment = Path(f"/proc/{entry}/environ").read_bytes()
                except OSError:
                    continue
                if f"{MARKER}={self._marker}".encode() in environment.split(b"\0"):
                    found.add(int(entry))
        return found

    def wait_until_gone(self, timeout: float = TIMEOUT) -> set[int]:
        """Wait until all of its processes are gone; return those that are not."""
        deadline = time.monotonic() + timeout
        while (left := self.processes()) and time.monotonic() < deadline:
            for pid in left:
                wait_until_gone(pid, deadline - time.monotonic())
        return left

    def files_left(self) -> list[str]:
        """What is left of the program's temporary files."""
        return sorted(
            str(path.relative_to(self.temporary_files)) for path in self.temporary_files.rglob("*")
        )

    def remove_files_left(self) -> None:
        shutil.rmtree(self.temporary_files)
        self.temporary_files.mkdir()

    @staticmethod
    def _command(arguments: Sequence[object]) -> list[str]:
        return [sys.executable, *map(str, arguments)]
