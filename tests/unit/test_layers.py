"""Modules import downwards only: see CONTRIBUTING.md."""

from __future__ import annotations

import ast
from pathlib import Path

import creche

PACKAGE = Path(creche.__file__).parent

# From the top down. A module imports from lower layers, or from others of its own layer as long as
# there is no cycle.
LAYERS = [
    ["__main__", "_running"],
    ["__init__"],
    ["timeline", "monitor"],
    ["to_process", "progress", "context", "sync", "tracing", "pytest_plugin", "cluster"],
    ["_pool", "_stream", "_channel", "_supervisor"],
    ["_nursery"],
    ["_run", "from_process", "_preload"],
    ["_process", "_process_facts"],
    ["_handle"],
    ["_hub"],
    ["_life", "_launching", "_inbox", "_stopping", "_conversation", "_exit_watch"],
    ["_request_server", "_parent_requests", "_output"],
    ["_runtime", "_in_thread", "_served_calls"],
    ["_watcher", "_child", "_loop_poller", "_carried"],
    ["_log_forwarding", "_parent_connection", "_progress_feed", "_child_output"],
    ["_stop_request"],
    ["_start_methods"],
    ["_platform"],
    ["_wire"],
    [
        "_worker_threads",
        "_thread_queue",
        "_output_lines",
        "_output_log",
        "_output_stream",
        "_starter",
        "_loops",
        "_loop_end",
        "_shielded",
        "_multiprocessing",
        "_lifecycle",
        "_stop_policy",
        "_failures",
        "_instruments",
        "_function_names",
        "_leftovers",
    ],
    ["_durations", "_errors", "_own_log", "_ctrl_c"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# Run in another process than everything else of its package: the fork server.
EXCEPTIONS = {("_start_methods._fork_server_preload", "_child")}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """The modules of creche that a module imports, by their names within the package."""
    found: set[str] = set()
    package = module_name(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            if node.module is None:
                found |= {".".join([*base, alias.name]) for alias in node.names}
            else:
                found.add(".".join([*base, node.module]))
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("creche.")
                for alias in node.names
                if alias.name.startswith("creche.")
            }
    return found


MODULES = {module_name(path): imports(path) for path in PACKAGE.rglob("*.py")}


def test_every_module_has_a_layer() -> None:
    assert {name.partition(".")[0] for name in MODULES} == set(RANK)


def test_imports_go_down() -> None:
    upwards = [
        f"{name} imports {imported}"
        for name, found in MODULES.items()
        for imported in found
        if RANK[name.partition(".")[0]] > RANK[imported.partition(".")[0]]
        and (name, imported) not in EXCEPTIONS
    ]
    assert upwards == []


def test_no_cycles() -> None:
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name in done:
            return
        for imported in MODULES.get(name, ()):
            visit(imported, (*above, name))
        done.add(name)

    for name in MODULES:
        visit(name, ())


def code_lines(path: Path) -> int:
    """Count the lines of a module without comments, docstrings and blank lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lines: set[int] = set()
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and not is_text:
            lines.add(node.lineno)
        elif isinstance(node, ast.expr | ast.arg | ast.keyword) and node.end_lineno is not None:
            lines.update((node.lineno, node.end_lineno))
    texts = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    return len(lines - texts)


def test_modules_are_small() -> None:
    lengths = {str(path.relative_to(PACKAGE)): code_lines(path) for path in PACKAGE.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_only_the_platform_asks_which_system_it_runs_on() -> None:
    asking = {
        name
        for name in MODULES
        if "sys.platform" in (PACKAGE / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
    }
    assert {name.partition(".")[0] for name in asking} <= {"_platform", "_start_methods"}
