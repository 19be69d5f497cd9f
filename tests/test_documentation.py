"""The code in the README and the documentation works as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TIMEOUT = 100.0
RUNS_A_LOOP = ("anyio.run(", "asyncio.run(", "trio.run(")


def code_blocks() -> Iterator[tuple[str, str]]:
    """Yield the place and the code of every block that is marked as Python."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        if "_build" in path.parts:
            continue
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 2
            yield f"{path.relative_to(ROOT).as_posix()}:{line}", match[1]


BLOCKS = dict(code_blocks())


@pytest.mark.parametrize("place", BLOCKS)
def test_code(place: str, tmp_path: Path) -> None:
    """Every block compiles; one that runs an event loop is a program and ends well."""
    code = BLOCKS[place]
    compile(code, place, "exec")
    if not any(call in code for call in RUNS_A_LOOP):
        return
    program = tmp_path / "program.py"
    program.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
