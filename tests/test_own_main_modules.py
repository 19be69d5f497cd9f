"""Main modules of all kinds under creche's own start method, for plain ``multiprocessing`` code.

What :func:`creche.run_in_process` makes of them is in :mod:`test_start_faults`.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from scripts import Program, Result
from support import START_METHODS

GUARD = 'if __name__ == "__main__":'

# Runs a function in plain processes and in creche's own, and prints what came of them. What the
# function is, and what happens at import, is the test's.
PROGRAM = """
import os, signal, socket, sys, threading
import anyio, creche, support
import start_targets as targets

{head}

def run_plain(function):
    process = creche.get_context().Process(target=function, args=(-3,))
    process.start()
    process.join(60)
    print("exit code:", process.exitcode)
    process.close()

async def run(function):
    try:
        print("value:", await creche.run_in_process(function, -3, timeout=60))
    except creche.ProcessError as error:
        print(f"{{type(error).__name__}}: {{error}}")

{guard}
    for backend in ("asyncio", "trio"):
        run_plain({function})
        anyio.run(run, {function}, backend=backend)
"""


def source(*, head: str = "", guard: str = GUARD, function: str = "abs") -> str:
    return PROGRAM.format(head=head, guard=guard, function=function)


def lines_of(result: Result) -> list[str]:
    report = f"{result.stdout}\n--- stderr ---\n{result.stderr}"
    assert result.returncode == 0, report
    return result.stdout.splitlines()


WELL = ["exit code: 0", "value: 3"] * 2

OF_MAIN = "def function(number):\n    return -number\n"


# --- that fail in children ------------------------------------------------------------------------


def test_missing_guard(program: Program) -> None:
    """Nothing of it is run by more than the server and the children that ask for it."""
    head = "support.append_line('imports', __name__)"
    path = program.write(source(head=head, guard="if True:"))
    result = program.run(path)
    lines = [
        line for line in lines_of(result) if line.startswith(("exit code", "value", "Process"))
    ]
    assert lines[0::2] == ["exit code: 1"] * 2
    assert [line.split(":")[0] for line in lines[1::2]] == ["ProcessStartError"] * 2
    assert GUARD in result.stdout
    assert "if __name__ == '__main__':" in result.stderr
    imports = (program.folder / "imports").read_text().split()
    # The application, a server or two, and the two plain children.
    assert imports.count("__main__") == 1
    assert 3 <= imports.count("__mp_main__") <= 6


@pytest.mark.parametrize(
    ("head", "exitcode", "expected"),
    [
        ('raise ImportError("needs a terminal")', 1, "ImportError: needs a terminal"),
        ('sys.exit("not twice")', 1, "not twice"),
        ("sys.exit(3)", 3, "sys.exit(3)"),
        ("os._exit(7)", 7, "exit code 7"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, "SIGKILL"),
    ],
    ids=["raises", "sys.exit", "sys.exit-3", "os._exit", "killed"],
)
def test_main_fails_in_children(program: Program, head: str, exitcode: int, expected: str) -> None:
    """As in spawned children: each of them fails the same way, whatever the server has seen."""
    path = program.write(source(head=f'if __name__ != "__main__":\n    {head}'))
    result = program.run(path)
    lines = lines_of(result)
    assert lines[0::2] == [f"exit code: {exitcode}"] * 2
    for line in lines[1::2]:
        assert line.startswith(("ProcessStartError: ", "ProcessDied: "))
        assert expected in line
    if exitcode == 1:
        assert expected in result.stderr


# --- of all kinds ---------------------------------------------------------------------------------


def test_on_the_command_line(program: Program) -> None:
    assert lines_of(program.run("-c", source())) == WELL


def test_on_stdin(program: Program) -> None:
    assert lines_of(program.run("-", stdin=source())) == WELL


def test_in_a_repl(program: Program) -> None:
    """As a user types it, and with a main module that has neither file nor spec."""
    result = program.run("-i", "-q", "-c", "", stdin=f"exec({source()!r})\n")
    assert lines_of(result) == WELL


def test_main_without_a_file(program: Program) -> None:
    """As in notebooks and other hosts that run code in a module of their own making."""
    program.write(source(), "code.txt")
    host = program.write(
        """
        import sys, types
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        with open("code.txt") as file:
            exec(file.read(), module.__dict__)
        """,
        "host.py",
    )
    assert lines_of(program.run(host)) == WELL


def test_package(program: Program) -> None:
    program.write(OF_MAIN, "package/__init__.py")
    program.write(
        source(head="from package import function", function="function"), "package/__main__.py"
    )
    assert lines_of(program.run("-m", "package")) == WELL


def test_module_of_a_package(program: Program) -> None:
    program.write("", "package/__init__.py")
    program.write(OF_MAIN, "package/other.py")
    head = f"from .other import function as other\n{OF_MAIN}"
    program.write(source(head=head, function="function"), "package/module.py")
    assert lines_of(program.run("-m", "package.module")) == WELL


def test_folder(program: Program) -> None:
    program.write(source(head=OF_MAIN), "folder/__main__.py")
    assert lines_of(program.run(program.folder / "folder")) == WELL


def test_zip_file(program: Program) -> None:
    archive = program.folder / "program.pyz"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("inside.py", OF_MAIN)
        head = "from inside import function"
        file.writestr("__main__.py", source(head=head, function="function"))
    assert lines_of(program.run(archive)) == WELL


@pytest.mark.parametrize(
    "folder",
    ["with spaces", "{braces} and %s", 'it\'s "quoted"', "ünï 雪", "back\\slash\nand newline"],
)
def test_folder_with_an_unusual_name(program: Program, folder: str) -> None:
    program.write("def double(number): return 2 * number\n", f"{folder}/beside_it.py")
    head = f"import beside_it\n{OF_MAIN}"
    path = program.write(source(head=head, function="function"), f"{folder}/the program.py")
    assert lines_of(program.run(path)) == WELL


def test_folder_whose_name_is_no_text(program: Program) -> None:
    folder = Path(f"{program.folder}/\udcff\udcfe")
    folder.mkdir()
    path = folder / "program.py"
    path.write_text(source(head=OF_MAIN, function="function"))
    assert lines_of(program.run(path)) == WELL


def test_relative_path_and_another_directory(program: Program) -> None:
    """The main module is found again from where the program has gone."""
    (program.folder / "elsewhere").mkdir()
    program.write("def double(number): return 2 * number\n", "folder/beside_it.py")
    head = f"import beside_it\n{OF_MAIN}\nif __name__ == '__main__': os.chdir('elsewhere')"
    program.write(source(head=head, function="function"), "folder/program.py")
    assert lines_of(program.run("folder/program.py")) == WELL


@pytest.mark.parametrize("options", ["-I", "-s -E", "-O", "-X utf8", "-X dev", "-bb", "-u"])
def test_options_of_the_interpreter(program: Program, options: str) -> None:
    """The server has them as the application has, and so have its children."""
    text = """
    import sys
    sys.path[:0] = {path!r}
    import creche, start_targets as targets

    if __name__ == "__main__":
        context = creche.get_context()
        ours, theirs = targets.flags(), targets.value_of(context, targets.flags)
        print(ours == theirs or (ours, theirs))
    """
    import sys

    path = [program.environment["PYTHONPATH"].split(":")[0], *filter(None, sys.path)]
    script = program.write(text.format(path=path))
    assert lines_of(program.run(*options.split(), script)) == ["True"]


# --- that do something at import ------------------------------------------------------------------


def test_main_starts_a_thread(program: Program) -> None:
    """It cannot be preloaded. Children import it, and the application hears of it once."""
    head = f"""
support.append_line("imports", os.getpid())
threading.Thread(target=threading.Event().wait, daemon=True).start()
{OF_MAIN}"""
    path = program.write(source(head=head, function="function"))
    result = program.run(path)
    assert lines_of(result) == WELL
    assert result.stderr.count("RuntimeWarning: ") == 1
    assert "cannot preload the main module in the fork server: it starts threads" in result.stderr
    # The application, a server, and four children.
    imports = (program.folder / "imports").read_text().split()
    assert len(imports) == len(set(imports)) == 6


def test_main_waits_for_its_thread(program: Program) -> None:
    """A thread that has ended by the end of the import is none that a fork would lack."""
    head = f"""
thread = threading.Thread(target=abs, args=(1,))
thread.start()
thread.join()
{OF_MAIN}"""
    path = program.write(source(head=head, function="function"))
    result = program.run(path)
    assert lines_of(result) == WELL
    assert result.stderr == ""


def test_main_changes_the_process(program: Program) -> None:
    """Whatever it does to the server at import, children are as the application is."""
    head = """
if __name__ != "__main__":
    os.chdir("/")
    os.environ["CRECHE_TESTS_VARIABLE"] = "of the server"
    sys.argv[:] = ["nothing"]
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    pair = socket.socketpair()
    pair[0].setblocking(False)
    signal.set_wakeup_fd(pair[0].fileno(), warn_on_full_buffer=False)

def function(_):
    handlers = {signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGCHLD)}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    wakeup = signal.set_wakeup_fd(-1)
    assert (os.getcwd(), sys.argv) == (folder, arguments), (os.getcwd(), sys.argv)
    assert "CRECHE_TESTS_VARIABLE" not in os.environ
    assert handlers == {signal.SIG_DFL}, handlers
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert (blocked, wakeup) == (set(), -1), (blocked, wakeup)
    return 3
"""
    path = program.folder / "program.py"
    head += f"\nfolder, arguments = {str(program.folder)!r}, [{str(path)!r}]\n"
    program.write(source(head=head, function="function"))
    assert lines_of(program.run(path)) == WELL


def test_main_prints_at_import(program: Program) -> None:
    """What is in the server's buffers is written once, not by each child again."""
    head = f'sys.stderr.flush(); sys.stdout.write(f"imported as {{__name__}}, ")\n{OF_MAIN}'
    path = program.write(source(head=head, function="function"))
    result = program.run(path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("imported as __main__, ") == 1
    assert result.stdout.count("imported as __mp_main__, ") == 1


@pytest.mark.parametrize("method", START_METHODS)
def test_main_that_uses_a_pool_of_plain_processes(program: Program, method: str) -> None:
    """With creche imported, other methods see nothing of it."""
    text = """
    import multiprocessing, sys
    import creche

    def function(number):
        return 2 * number

    if __name__ == "__main__":
        with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
            print(pool.map(function, range(4)))
            pool.close()
            pool.join()
    """
    assert lines_of(program.run(program.write(text), method)) == ["[0, 2, 4, 6]"]
