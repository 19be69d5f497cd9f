"""``creche.preload``: modules that the servers import once, for all children.

In programs, as a server that has a module cannot be told to forget it.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from scripts import Program, Result

import creche
from creche._start_methods import preloaded

HEAD = """
import gc, itertools, os, signal, sys, threading, time, warnings
from pathlib import Path
import anyio, creche, psutil, support
import start_targets as targets
from start_targets import has_modules

context = creche.get_context()
ways = itertools.cycle(["plain", "asyncio", "trio"])

# In a plain process, and in one of creche's under each of the loops, in turn.
def run(function, *args):
    how = next(ways)
    if how == "plain":
        return targets.value_of(context, function, *args)
    return anyio.run(lambda: creche.run_in_process(function, *args), backend=how)

def fails(function, *args):
    try:
        run(function, *args)
    except (creche.ProcessError, AssertionError):
        return
    sys.exit("it did not fail")

def server():
    (found,) = [each for each in creche.fork_server_statistics() if each.memory is not None]
    return found

def start_held(gate, announcements):
    process = context.Process(
        target=targets.hold_and_exit, args=(announcements, gate, 7), daemon=True
    )
    process.start()
    return process
"""

COUNTED = """
import os, support
support.append_line({path!r}, f"{{__name__}} {{os.getpid()}}")
VALUE = 42
"""

THREADED = COUNTED + "import threading\nthreading.Thread(target={target}, daemon=True).start()\n"
ENDLESS, BRIEF = "threading.Event().wait", "int"


class Modules:
    """Modules of a program, which note down where they are imported."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._imports = program.folder / "imports"

    def write(self, name: str, text: str = "", source: str = COUNTED) -> None:
        path = str(self._imports)
        self._program.write(source.format(path=path, target=ENDLESS) + text, f"{name}.py")

    def imports(self, name: str) -> list[int]:
        """The processes that have imported a module."""
        if not self._imports.exists():
            return []
        lines = map(str.split, self._imports.read_text().splitlines())
        return [int(pid) for module, pid in lines if module == name]


@pytest.fixture
def modules(program: Program) -> Modules:
    return Modules(program)


def run(program: Program, text: str, *options: str) -> Result:
    guard = 'if __name__ == "__main__":\n'
    body = textwrap.indent(textwrap.dedent(text), "    ")
    result = program.run(*options, program.write(HEAD + guard + body))
    assert result.returncode == 0, f"{result.stdout}\n--- stderr ---\n{result.stderr}"
    return result


def warnings_of(result: Result) -> list[str]:
    return [
        line.partition("RuntimeWarning: ")[2]
        for line in result.stderr.splitlines()
        if "RuntimeWarning: " in line
    ]


# --- modules that can be preloaded ----------------------------------------------------------------


def test_imported_once(program: Program, modules: Modules) -> None:
    """In the server, before any function runs, and nowhere else."""
    modules.write("counted")
    modules.write("package/__init__")
    modules.write("package/inner")
    result = run(
        program,
        """
        creche.preload("counted", "package.inner")
        for _ in range(3):
            print(*run(has_modules, "counted", "package.inner", "package"))
        print(*has_modules("counted", "package"))
        print(server().pid, *server().modules)
        """,
    )
    *children, application, described = result.stdout.splitlines()
    assert children == ["True True True"] * 3
    assert application == "False False"
    pid, *names = described.split()
    assert names == ["__main__", "counted", "package.inner"]
    for name in ("counted", "package", "package.inner"):
        assert modules.imports(name) == [int(pid)]
    assert result.stderr == ""


def test_imported_by_each_child_otherwise(program: Program, modules: Modules) -> None:
    modules.write("counted")
    text = (
        "for _ in range(3): print(*run(has_modules, 'counted'), run(targets.value_from, 'counted'))"
    )
    assert run(program, text).stdout.splitlines() == ["False 42"] * 3
    assert len(set(modules.imports("counted"))) == 3


def test_numpy(program: Program) -> None:
    """Its threads end before a fork, and begin anew when they are needed: it is safe."""
    pytest.importorskip("numpy")
    result = run(
        program,
        """
        creche.preload("numpy")
        for _ in range(2):
            print(*run(has_modules, "numpy"), run(targets.multiply_matrices, 300))
        print(*server().modules, dict(server().left_to_children))
        """,
        "-W",
        "error::RuntimeWarning",
    )
    assert result.stdout.splitlines() == [*["True 300.0"] * 2, "__main__ numpy {}"]
    assert result.stderr == ""


def test_thread_that_ends_in_time(program: Program, modules: Modules) -> None:
    modules.write(
        "counted", "import threading\nt = threading.Thread(target=int)\nt.start()\nt.join()"
    )
    result = run(program, "creche.preload('counted'); print(*run(has_modules, 'counted'))")
    assert (result.stdout, result.stderr) == ("True\n", "")
    assert len(modules.imports("counted")) == 1


def test_module_that_changes_the_server(program: Program, modules: Modules) -> None:
    modules.write(
        "meddling",
        """
import gc, random, signal, sys, warnings
os.chdir("/")
os.environ["CRECHE_TESTS_VARIABLE"] = "of the server"
random.seed(1)
sys.argv[:] = []
sys.path.append("/nonexistent")
warnings.simplefilter("ignore")
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.signal(signal.SIGINT, lambda *_: None)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
""",
    )
    result = run(
        program,
        """
        def describe():
            return (
                run(targets.surroundings),
                run(targets.reaction_to_warnings),
                targets.value_of(context, targets.signals),
            )

        before = describe()
        creche.preload("meddling")
        for _ in range(2):
            print(*run(has_modules, "meddling"))
            after = describe()
            assert after == before, (before, after)
        print(run(targets.random_numbers)[0] != run(targets.random_numbers)[0])
        """,
    )
    assert (result.stdout.split(), result.stderr) == (["True"] * 3, "")


# --- modules that cannot --------------------------------------------------------------------------


def test_module_that_starts_a_thread(program: Program, modules: Modules) -> None:
    """Children import it. One warning says so, however many servers follow."""
    modules.write("threaded", source=THREADED)
    modules.write("counted")
    result = run(
        program,
        """
        creche.preload("threaded", "counted")
        for _ in range(3):
            print(*run(has_modules, "threaded", "counted"), run(targets.threads)[1])
        first = server().pid
        print(*server().modules, *server().left_to_children)
        os.kill(first, signal.SIGKILL)
        support.wait_until_gone(first)
        print(*run(has_modules, "threaded", "counted"))
        with creche.preload("colorsys"):
            print(*run(has_modules, "threaded", "counted", "colorsys"))
        """,
    )
    lines = result.stdout.splitlines()
    assert lines[:3] == ["True True 2"] * 3
    assert lines[3] == "__main__ counted threaded"
    assert lines[4:] == ["True True", "True True True"]
    (warning,) = warnings_of(result)
    assert "'threaded'" in warning
    assert "threads" in warning
    # A server that ended, and each child or spare.
    imports = modules.imports("threaded")
    assert len(imports) == len(set(imports)) >= 9
    assert len(modules.imports("counted")) == 3


@pytest.mark.parametrize(
    "text",
    [
        "os._exit(9)",
        "os.kill(os.getpid(), 9)",
        "os.kill(os.getpid(), 15)",
        "raise KeyboardInterrupt",
    ],
)
def test_module_that_ends_the_server(program: Program, modules: Modules, text: str) -> None:
    """One warning names it. It is left to those children that import it themselves."""
    modules.write("deadly", text)
    modules.write("counted")
    result = run(
        program,
        """
        creche.preload("deadly", "counted")
        for _ in range(3):
            print(*run(has_modules, "deadly", "counted"))
        fails(targets.value_from, "deadly")
        print(*server().modules, *server().left_to_children)
        """,
    )
    assert result.stdout.splitlines() == [*["False True"] * 3, "__main__ counted deadly"]
    (warning,) = warnings_of(result)
    assert "'deadly'" in warning
    assert "ends" in warning
    assert len(modules.imports("counted")) == 1
    assert len(modules.imports("deadly")) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import nosuchmodule", "No module named 'nosuchmodule'"),
        ("raise LookupError('not today')", "LookupError: not today"),
        ("this is no Python", "SyntaxError"),
        ("raise MemoryError", "MemoryError"),
        ("import sys; sys.exit(9)", "SystemExit: 9"),
    ],
)
def test_module_that_cannot_be_imported(
    program: Program, modules: Modules, text: str, expected: str
) -> None:
    modules.write("broken", text)
    modules.write("counted")
    result = run(
        program,
        """
        creche.preload("broken", "counted")
        for _ in range(2):
            print(*run(has_modules, "broken", "counted"))
        print(*server().modules, *server().left_to_children)
        """,
    )
    assert result.stdout.splitlines() == ["False True"] * 2 + ["__main__ counted broken"]
    (warning,) = warnings_of(result)
    assert "'broken'" in warning
    assert expected in warning


def test_warning_as_an_error(program: Program, modules: Modules) -> None:
    """The start fails that brought it up, and no other."""
    modules.write("threaded", source=THREADED)
    result = run(
        program,
        """
        creche.preload("threaded")
        try:
            print(run(abs, -3))
        except (creche.ProcessStartError, RuntimeWarning) as error:
            print("failed:", error)
        print(run(abs, -4))
        """,
        "-W",
        "error::RuntimeWarning",
    )
    first, second = result.stdout.splitlines()
    assert first.startswith("failed: ")
    assert "'threaded'" in first
    assert second == "4"


# --- taking it back -------------------------------------------------------------------------------


def test_context_manager(program: Program, modules: Modules) -> None:
    """Blocks may lie in each other, want the same, and end in any order."""
    for name in ("one", "two", "three"):
        modules.write(name)
    result = run(
        program,
        """
        def show():
            print("".join("-+"[has] for has in run(has_modules, "one", "two", "three")))

        show()
        with creche.preload("one"):
            show()
            with creche.preload("one", "two"):
                show()
            show()
        show()
        first, second = creche.preload("one", "two"), creche.preload("three")
        with second:
            with first:
                show()
            show()
        show()
        try:
            with creche.preload("one"):
                raise LookupError
        except LookupError:
            show()
        assert creche.preload().__exit__(None, None, None) is None
        show()
        """,
    )
    shown = ["---", "+--", "++-", "+--", "---", "+++", "--+", "---", "---", "---"]
    assert result.stdout.split() == shown
    assert result.stderr == ""


def test_same_server_where_nothing_changes(program: Program) -> None:
    result = run(
        program,
        """
        creche.preload("colorsys")
        run(abs, 1)
        pid = server().pid
        creche.preload("colorsys")
        creche.preload()
        with creche.preload("colorsys"):
            run(abs, 1)
        run(abs, 1)
        print(server().pid == pid, server().children_started)
        """,
    )
    assert result.stdout.split() == ["True", "3"]


def test_wrong_names() -> None:
    for wrong in (3, None, b"json", ["json"]):
        with pytest.raises(TypeError, match="names of modules must be strings"):
            creche.preload("json", wrong)  # type: ignore[arg-type]
    for wrong in ("", ".relative", "..relative.more"):
        with pytest.raises(ValueError, match="is not the absolute name"):
            creche.preload("json", wrong)
    assert preloaded() == ()


# --- servers, old and new -------------------------------------------------------------------------


def test_statistics(program: Program) -> None:
    result = run(
        program,
        """
        print(creche.fork_server_statistics())
        for _ in range(3):
            parent = run(os.getppid)
        (found,) = creche.fork_server_statistics()
        assert found.pid == parent == server().pid
        assert (found.modules, found.left_to_children) == (("__main__",), {}), found
        assert found.children_started == 3
        assert found.memory > 1_000_000
        os.kill(found.pid, signal.SIGKILL)
        support.wait_until_gone(found.pid)
        creche.fork_server_statistics()
        run(abs, 1)
        print(server().pid != found.pid, server().children_started)
        """,
    )
    assert result.stdout.splitlines() == ["[]", "True 1"]


def test_statistics_cannot_be_changed() -> None:
    statistics = creche.ForkServerStatistics(1, (), {}, 0, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        statistics.pid = 2  # type: ignore[misc]


OLD_SERVER = """
gate, announcements = sys.argv[1:]
os.mkfifo(gate)
os.mkfifo(announcements)
# A reader that is there all the time: whoever announces something does not wait.
descriptor = os.open(announcements, os.O_RDWR)
process = start_held(gate, announcements)
os.read(descriptor, 100)
old = server().pid
creche.preload("colorsys")
print(*run(has_modules, "colorsys"), os.getpgid(old) == old)
found = {each.pid: each.children_started for each in creche.fork_server_statistics()}
print(len(found), found.get(old))
assert process.is_alive()
Path(gate).write_text("")
process.join(60)
print(process.exitcode, support.wait_until_gone(old))
"""


def test_old_server_ends_after_its_last_child(program: Program) -> None:
    """Which gets its exit code from it. It is reaped with the next start, at the latest."""
    text = """
    print(*run(has_modules, "colorsys"))
    print(psutil.pid_exists(old), [each.pid == old for each in creche.fork_server_statistics()])
    """
    path = write_old_server(program, text)
    result = program.run(path, program.folder / "gate", program.folder / "announcements")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "True True",
        "2 1",
        "7 True",
        "True",
        "False [False]",
    ]


def test_old_server_is_no_zombie(program: Program) -> None:
    """Although nothing is started any more."""
    path = write_old_server(
        program,
        """
        deadline = time.monotonic() + 5
        while psutil.pid_exists(old) and time.monotonic() < deadline:
            assert old not in [each.pid for each in creche.fork_server_statistics()]
            time.sleep(0.01)
        print(psutil.pid_exists(old))
        """,
    )
    result = program.run(path, program.folder / "gate", program.folder / "announcements")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "False"


def write_old_server(program: Program, text: str) -> Path:
    guard = 'if __name__ == "__main__":\n'
    body = textwrap.indent(OLD_SERVER + textwrap.dedent(text), "    ")
    return program.write(HEAD + guard + body)


def test_idle_server_ends_at_once(program: Program) -> None:
    result = run(
        program,
        """
        run(abs, 1)
        old = server().pid
        creche.preload("colorsys")
        print(support.wait_until_gone(old))
        """,
    )
    assert result.stdout.split() == ["True"]


def test_changed_while_others_start(program: Program) -> None:
    """Each start gets its process, and each process its exit code, from whichever server."""
    text = """
    def change():
        while not ended.is_set():
            with creche.preload("colorsys"):
                ended.wait(0.02)
            ended.wait(0.02)

    def start(first):
        for code in range(first, first + 8):
            process = context.Process(target=targets.exit_with, args=(code,))
            process.start()
            process.join(60)
            codes.append(process.exitcode)

    codes, ended = [], threading.Event()
    changing = threading.Thread(target=change)
    changing.start()
    starting = [threading.Thread(target=start, args=(first,)) for first in (0, 100)]
    for thread in starting:
        thread.start()
    for thread in starting:
        thread.join()
    ended.set()
    changing.join()
    print(*sorted(codes))
    """
    result = run(program, text)
    expected = [*range(8), *range(100, 108)]
    assert list(map(int, result.stdout.split())) == expected
    assert result.stderr == ""


# --- pools and other start methods ----------------------------------------------------------------

POOLS = """
async def main():
    async with (
        creche.open_pool(1, preload=["one"], start_method="creche") as left,
        creche.open_pool(1, preload=["two", "one"], start_method="creche") as right,
        creche.open_pool(1, start_method="creche") as third,
    ):
        for pool in (left, right, third):
            print(*await pool.run(has_modules, "one", "two", "three"))
        print(*await creche.run_in_process(has_modules, "one", "two", "three"))
        servers = creche.fork_server_statistics()
        print(sorted(" ".join(server.modules) for server in servers))
    async with creche.open_pool(1, preload=["one"], start_method="creche") as pool:
        print(*await pool.run(has_modules, "one", "two", "three"))
    print(len(creche.fork_server_statistics()))

creche.preload("three")
anyio.run(main, backend=BACKEND)
"""


def test_pools(program: Program, modules: Modules, anyio_backend: str) -> None:
    for name in ("one", "two", "three"):
        modules.write(name)
    lines = run(program, POOLS.replace("BACKEND", repr(anyio_backend))).stdout.splitlines()
    assert lines[:4] == [
        "True False True",
        "True True True",
        "False False True",
        "False False True",
    ]
    assert lines[4] == str(["__main__ three", "__main__ three one", "__main__ three one two"])
    assert lines[5:] == ["True False True", "3"]
    # Each server has imported its own once, and no worker anything.
    assert Counter(map(len, map(modules.imports, ("one", "two", "three")))) == {2: 1, 1: 1, 3: 1}


@pytest.mark.parametrize(("method", "expected"), [("forkserver", True), ("spawn", False)])
def test_other_start_methods(
    program: Program, modules: Modules, method: str, expected: bool
) -> None:
    modules.write("counted")
    text = """
    async def main():
        for _ in range(2):
            print(*await creche.run_in_process(has_modules, "counted", start_method=METHOD))

    creche.preload("counted")
    anyio.run(main, backend="trio")
    print(creche.fork_server_statistics())
    """
    result = run(program, text.replace("METHOD", repr(method)))
    assert result.stdout.splitlines() == [str(expected), str(expected), "[]"]
    assert len(modules.imports("counted")) == int(expected)


def test_in_a_child(program: Program, modules: Modules) -> None:
    """A process that is a child itself has servers, and preloads, of its own."""
    modules.write("counted")
    text = """
    print(*run(targets.preload_in_child, "counted"), *run(has_modules, "counted"))
    """
    assert run(program, text).stdout.split() == ["True", "False", "False"]
    assert len(modules.imports("counted")) == 1
